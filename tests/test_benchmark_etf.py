"""The record of the leveraged-ETF chapter: what a claim measured is kept, and no price."""

import argparse
import importlib
import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    pytest.importorskip("pandas")
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.delitem(sys.modules, "etf", raising=False)
    return importlib.import_module("etf")


def test_claims_are_harvested(benchmark, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark.prices, "load_prices", lambda tickers: None)
    cell = (
        "from mlbook import claim\n"
        "claim('etf.a', 'x', measured=2.5, above=1.0)\n"
        "claim('etf.b', 'y', measured=3.0, above=1.0, recorded={'device': 'd', 'date': 'today'})"
    )
    nbformat.write(new_notebook(cells=[new_code_cell(cell)]), tmp_path / "n.ipynb")
    rows = lambda: benchmark.claims(tmp_path / "n.ipynb", "smoke")  # noqa: E731
    options = argparse.Namespace(minutes=60, out=tmp_path, commit="abc")
    record = benchmark.measure(options, rows)
    assert record["claims"] == [{"id": "etf.a", "measured": 2.5}]
    assert json.loads((tmp_path / "etf-cpu.json").read_text()) == record


def test_without_prices_nothing_is_recorded(benchmark, monkeypatch, tmp_path):
    def none(tickers):
        raise benchmark.prices.PricesUnavailable("none here")

    monkeypatch.setattr(benchmark.prices, "load_prices", none)
    options = argparse.Namespace(minutes=60, out=tmp_path, commit="abc")
    record = benchmark.measure(options)
    assert record["claims"] == [] and "none here" in record["broken"]["claims"]


def test_the_record_holds_claims_only():
    for path in (BENCHMARKS / "results").glob("etf-*.json"):
        record = json.loads(path.read_text())
        for row in record["claims"]:
            assert set(row) == {"id", "measured"} and row["id"].startswith("etf.")


def test_every_claim_about_real_prices_is_on_record(benchmark):
    """Else a reader without prices would find a gap where the page has a number."""
    (path,) = (BENCHMARKS / "results").glob("etf-*.json")
    known = {row["id"] for row in json.loads(path.read_text())["claims"]}
    code = "\n".join(c.source for c in nbformat.read(benchmark.NOTEBOOK, 4).cells)
    asked = set(re.findall(r'on_real\(\s*"([^"]+)"', code))
    assert len(asked) > 20 and asked <= known
