"""What the chapter on leveraged ETFs measures on real prices: its claims' numbers, for machines without prices.

Needs MLBOOK_PRICES, or a network. Only what the claims measured is kept, no price.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from provenance import arguments, provenance, told

from book.builder.execute import collect
from mlbook.claims import MIME
from mlbook.leveraged_etfs import prices

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "leveraged-etfs.ipynb"


def claims(path: Path = NOTEBOOK, scale: str = "cpu") -> Iterator[dict]:
    """Id and measured number of each claim of the notebook, executed now.

    Raises:
        prices.PricesUnavailable: there are no real prices.
    """
    prices.load_prices(["TQQQ", "SPY"])
    book = nbformat.read(path, as_version=4)
    client = NotebookClient(
        book,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute(env=os.environ | {"MLBOOK_SCALE": scale})
    for found in collect(book, MIME):
        if found["place"] == "here":
            yield {key: found[key] for key in ("id", "measured")}


def measure(options: argparse.Namespace, rows=claims) -> dict:
    record = provenance("pandas", "arch", "bt")
    record["commit"] = options.commit or record["commit"]
    told({"claims": (1.0, rows)}, record, options.out / "etf-cpu.json", options.minutes)
    return record


def main() -> int:
    record = measure(arguments(__doc__, minutes=10).parse_args())
    return int(not record["claims"] or "broken" in record)


if __name__ == "__main__":
    sys.exit(main())
