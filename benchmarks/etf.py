"""What the chapter on leveraged ETFs measures on real prices: its tables of results, for machines without prices.

Needs MLBOOK_PRICES, or a network. Only small tables of results are kept, no price.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
from nbclient import NotebookClient
from provenance import arguments, provenance, told

from mlbook.leveraged_etfs import prices
from mlbook.leveraged_etfs.backtest import follow
from mlbook.leveraged_etfs.leverage import price_level
from mlbook.leveraged_etfs.measures import drawdown

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "leveraged-etfs.ipynb"
DUMP = "import json; print(json.dumps(evidence.measured))"
PLANS = {  # of the post: weights, final balance in millions, largest drawdown in %
    "TQQQ": ({"TQQQ": 1.0}, 11, 78),
    "80:20": ({"TQQQ": 0.8, "SPY": 0.2}, 10.6, 66),
    "70:30": ({"TQQQ": 0.7, "SPY": 0.3}, 9.6, 60),
    "60:40": ({"TQQQ": 0.6, "SPY": 0.4}, 8.3, 54),
    "50:50": ({"TQQQ": 0.5, "SPY": 0.5}, 7, 49),
    "QLD": ({"QLD": 1.0}, 7, 59),
}


def tables(path: Path = NOTEBOOK, scale: str = "cpu") -> Iterator[dict]:
    """Name and JSON of each table of results of the notebook, executed now.

    Raises:
        prices.PricesUnavailable: there are no real prices.
    """
    prices.load_prices(["TQQQ", "SPY"])
    book = nbformat.read(path, as_version=4)
    book.cells.append(nbformat.v4.new_code_cell(DUMP))
    client = NotebookClient(
        book,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute(env=os.environ | {"MLBOOK_SCALE": scale})
    for name, table in json.loads(book.cells[-1].outputs[0].text).items():
        yield {"name": name, "table": table}


def monthly_site(
    closes: pd.DataFrame, weights: dict[str, float], months: set[int]
) -> pd.Series:
    """The post's monthly plan as a site with monthly data may do it: grow, add 5,000 dollars of December 2012 by what is
    held (10,000 at first), come back to `weights` at the end of each of `months`; the balance at each month's end."""
    month_ends = closes[list(weights)].resample("ME").last()
    growth = month_ends.pct_change().iloc[1:]
    level = price_level(pd.DatetimeIndex(["2012-12-15", *growth.index]))[1:]
    target = np.array(list(weights.values()))
    held, balance = 10_000 * target, []
    for month, r in growth.iterrows():
        held = held * (1 + r.to_numpy())
        held += 5000 * level[month] * held / held.sum()
        if month.month in months:
            held = held.sum() * target
        balance.append(held.sum())
    return pd.Series(balance, growth.index)


def site() -> Iterator[dict]:
    """How many of the post's twelve numbers come out if one rebalances in December, or in June and December.

    Balances are rounded to the post's digits, drawdowns cut off.
    """
    tickers = ["TQQQ", "QLD", "SPY"]
    closes = prices.load_prices(tickers, "2012-12-01", "2025-08-01")["close"]
    rows = {}
    for label, months in (("December", {12}), ("June and December", {6, 12})):
        hits = moved = 0
        for weights, million, fall in PLANS.values():
            balance = monthly_site(closes, weights, months)
            digits = 0 if million == int(million) else 1
            right = int(round(balance.iloc[-1] / 1e6, digits) == million)
            right += int(-100 * drawdown(balance).min()) == fall
            hits += right
            moved += right * (len(weights) > 1)
        rows[label] = {"of twelve": hits, "of eight that rebalancing moves": moved}
    table = pd.DataFrame(rows).T
    yield {"name": "site", "table": table.to_json(orient="split")}


def fall_and_2022(values: pd.Series) -> dict[str, float]:
    """The largest drawdown and the return of 2022, in %."""
    ends = values.groupby(values.index.year).last()
    fall = -100 * drawdown(values).min()
    return {"drawdown": fall, "in 2022": 100 * (ends[2022] / ends[2021] - 1)}


def partners() -> Iterator[dict]:
    """The post's other numbers, in %: drawdowns until its day and returns in 2022, of funds by themselves, and of TQQQ
    with BTAL since 2011 on month ends, rebalanced in the last days of a year."""
    rows = {}
    for ticker in ("TQQQ", "BTAL", "JEPI", "SPY"):
        close = prices.load_prices(ticker, None, "2024-07-09")["close"][ticker]
        rows[ticker] = fall_and_2022(close)
    yield {"name": "single", "table": pd.DataFrame(rows).to_json(orient="split")}
    both = prices.load_prices(["TQQQ", "BTAL"], "2011-09-30", "2024-07-01")
    days = both.groupby(both.index.year).tail(1).index.union(both.index[:1])
    rows = {}
    for share in (0.7, 0.65, 0.5):
        plan = pd.DataFrame({"TQQQ": share, "BTAL": 1 - share}, days)
        ends = follow(both, plan, 10_000.0, at="close").values.resample("ME").last()
        rows[f"{share:.0%}"] = fall_and_2022(ends)
    yield {"name": "turns", "table": pd.DataFrame(rows).to_json(orient="split")}


def measure(options: argparse.Namespace, parts: dict | None = None) -> dict:
    """Run the parts and write the record: its "tables" by their names."""
    record = provenance("pandas", "arch", "scikit-learn")
    record["commit"] = options.commit or record["commit"]
    path = options.out / "etf-cpu.json"
    parts = parts or {
        "site": (0.5, site),
        "partners": (0.5, partners),
        "chapter": (1.0, tables),
    }
    told(parts, record, path, options.minutes)
    rows = [row for name in parts for row in record.pop(name)]
    record["tables"] = {row["name"]: row["table"] for row in rows}
    path.write_text(json.dumps(record, indent=1) + "\n")
    return record


def main() -> int:
    record = measure(arguments(__doc__, minutes=10).parse_args())
    return int(not record["tables"] or "broken" in record)


if __name__ == "__main__":
    sys.exit(main())
