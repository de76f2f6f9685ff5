"""Results on real prices: measured where the prices are, and elsewhere as they were recorded."""

import io
from collections.abc import Callable, Iterable

import pandas as pd

from mlbook.claims import claim
from mlbook.leveraged_etfs.prices import Unfit


class Evidence:
    """Small tables of results, each by its name; never prices.

    Attributes:
        measured: the tables that were measured here, as JSON: what a record keeps under "tables".
    """

    def __init__(self, prices: dict[str, pd.DataFrame], record: dict | None = None):
        """`prices`: a table of each ticker that is there; `record`: "tables", "device" and "date", or None."""
        self.prices, self.record, self.measured = prices, record, {}
        self.asked = set()
        self.recorded = (record or {}).get("tables", {})

    def table(
        self,
        name: str,
        tickers: Iterable[str] = (),
        measure: Callable[[], pd.DataFrame] | None = None,
    ) -> pd.DataFrame | None:
        """`measure()`, if all of `tickers` are there; else the table on record; None if there is neither.
        Without `measure` only the record is asked.

        Raises:
            ValueError: a name twice.
        """
        if name in self.measured:
            raise ValueError(f"there is a table {name!r} already")
        self.asked.add(name)
        table = None
        if measure and set(tickers) <= set(self.prices):
            try:
                table = measure()
            except Unfit as error:
                print(f"{name} is not measured: {error}")
        if table is not None:
            self.measured[name] = table.to_json(orient="split", double_precision=15)
            return table
        if name not in self.recorded:
            return None
        return pd.read_json(
            io.StringIO(self.recorded[name]),
            orient="split",
            convert_axes=False,
            dtype=False,
            precise_float=True,
        )

    def claim(
        self,
        names: str | Iterable[str],
        id: str,
        statement: str,
        measured: Callable[[], float],
        **options,
    ) -> None:
        """`mlbook.claim` about tables: measured here, or from the record if one of them is; or a line where one is neither.

        Raises:
            ValueError: a table was never asked for.
        """
        names = {names} if isinstance(names, str) else set(names)
        if not names <= self.asked:
            raise ValueError(f"no table was asked for by {names - self.asked}")
        if names <= set(self.measured):
            claim(id, statement, measured=measured(), **options)
        elif names <= set(self.measured) | set(self.recorded):
            claim(id, statement, measured=measured(), recorded=self.record, **options)
        else:
            print(f"{id} needs real prices")
