"""The record of the leveraged-ETF chapter: small tables of results are kept, and no price."""

import argparse
import importlib
import io
import json
import re
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    pytest.importorskip("arch")
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.delitem(sys.modules, "etf", raising=False)
    return importlib.import_module("etf")


def options(folder):
    return argparse.Namespace(minutes=60, out=folder, commit="abc")


def test_tables_are_harvested(benchmark, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark.prices, "load_prices", lambda tickers: None)
    cell = (
        "import pandas as pd\nfrom mlbook.leveraged_etfs.evidence import Evidence\n"
        "evidence = Evidence({'SPY': None})\n"
        "evidence.table('a', ['SPY'], lambda: pd.DataFrame({'x': [1.5]}))\n"
        "evidence.table('b', ['QQQ'], lambda: 1 / 0)"
    )
    nbformat.write(new_notebook(cells=[new_code_cell(cell)]), tmp_path / "n.ipynb")
    rows = lambda: benchmark.tables(tmp_path / "n.ipynb", "smoke")  # noqa: E731
    record = benchmark.measure(options(tmp_path), {"chapter": (1.0, rows)})
    assert list(record["tables"]) == ["a"] and "1.5" in record["tables"]["a"]
    assert json.loads((tmp_path / "etf-cpu.json").read_text()) == record


def test_without_prices_nothing_is_recorded(benchmark, monkeypatch, tmp_path):
    def none(*_, **__):
        raise benchmark.prices.PricesUnavailable("none here")

    monkeypatch.setattr(benchmark.prices, "load_prices", none)
    record = benchmark.measure(options(tmp_path))
    assert record["tables"] == {} and "none here" in record["broken"]["chapter"]


def test_the_monthly_site_by_hand(benchmark):
    days = pd.DatetimeIndex(["2012-12-31", "2013-01-31", "2013-02-28"])
    closes = pd.DataFrame({"A": [1.0, 2.0, 2.0], "B": [1.0, 1.0, 1.0]}, days)
    balance = benchmark.monthly_site(closes, {"A": 0.5, "B": 0.5}, {1})
    np.testing.assert_allclose(balance.iloc[0], 15_000 + 5_000, rtol=0.005)
    np.testing.assert_allclose(np.diff(balance), 5_000, rtol=0.01)


def test_partners_by_hand(benchmark, monkeypatch):
    """TQQQ halves in 2022 and doubles in 2023, its partners stand still: half and half loses a quarter, and gains half."""
    days = pd.bdate_range("2011-10-03", "2024-06-28")
    level = np.select([days.year < 2022, days.year == 2022], [2.0, 1.0], 2.0)

    def load(tickers, start=None, end=None):
        tickers = [tickers] if isinstance(tickers, str) else tickers
        close = pd.DataFrame({t: level if t == "TQQQ" else 1.0 for t in tickers}, days)
        return pd.concat({"open": close, "close": close}, axis=1)

    monkeypatch.setattr(benchmark.prices, "load_prices", load)
    single, turns = (
        pd.read_json(io.StringIO(row["table"]), orient="split")
        for row in benchmark.partners()
    )
    assert single["TQQQ"].round(9).to_list() == [50, -50]
    assert single["JEPI"].to_list() == [0, 0]
    assert turns["50%"].round(9).to_list() == [25, -25]
    assert turns["70%"].round(9).to_list() == [35, -35]


def test_the_record_holds_no_prices():
    """A table of results is small: a few eras, looks or measures by a few settings; none has a row for a day."""
    for path in (BENCHMARKS / "results").glob("etf-*.json"):
        for name, text in json.loads(path.read_text())["tables"].items():
            table = json.loads(text)
            assert len(table["index"]) <= 12, name
            assert len(table["columns"]) <= 150, name
            labels = " ".join(map(str, table["index"] + table["columns"]))
            assert not re.search(r"\d{4}-\d\d-\d\d|\d{9}", labels), name


def test_every_table_of_real_prices_is_on_record(benchmark):
    """Else a reader without prices would find a gap where the page has a number."""
    (path,) = (BENCHMARKS / "results").glob("etf-*.json")
    known = set(json.loads(path.read_text())["tables"])
    code = "\n".join(c.source for c in nbformat.read(benchmark.NOTEBOOK, 4).cells)
    asked = set(re.findall(r'(?:evidence\.table|in_all)\(\s*"([^"]+)"', code))
    assert len(asked) > 10 and asked <= known
