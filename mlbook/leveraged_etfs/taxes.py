"""Taxes on gains, lot by lot."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

SOLD = 1e-9  # of a lot: what is left of it is a rounding


@dataclass(frozen=True)
class Tax:
    """Rates on gains held up to a year and longer, and which lots are sold first: "fifo" the oldest, "best" those that
    cost the least tax."""

    short: float = 0.35
    long: float = 0.15
    lots: str = "fifo"

    def __post_init__(self):
        if not (0 <= self.short < 1 and 0 <= self.long < 1):
            raise ValueError(
                f"tax rates must lie in [0, 1), got {self.short}, {self.long}"
            )
        if self.lots not in ("fifo", "best"):
            raise ValueError(f"lots are sold 'fifo' or 'best' first, got {self.lots!r}")

    def on(self, short: float, long: float) -> tuple[float, float, float]:
        """(tax, short-term loss, long-term loss carried to the next year), for a year's net gains of both kinds.

        A loss of one kind reduces the gain of the other (26 U.S.C. § 1222, § 1212).
        """
        if short < 0 < long:
            short, long = (
                (0.0, short + long) if short + long > 0 else (short + long, 0.0)
            )
        elif long < 0 < short:
            short, long = (
                (short + long, 0.0) if short + long > 0 else (0.0, short + long)
            )
        tax = max(short, 0) * self.short + max(long, 0) * self.long
        return tax, min(short, 0.0), min(long, 0.0)


@dataclass
class Lot:
    """Units of one purchase that are still held, and what each cost."""

    day: pd.Timestamp
    units: float
    basis: float


@dataclass
class Lots:
    """What was bought when and for how much, and the gains realised since the last settlement."""

    tax: Tax
    open: dict[str, list[Lot]] = field(default_factory=dict)
    short: float = 0.0
    long: float = 0.0

    def trade(
        self, day: pd.Timestamp, ticker: str, units: float, price: float, cost: float
    ) -> None:
        """Open a lot, or sell from those that are open; costs raise the basis and lower the proceeds.

        Raises:
            ValueError: more is sold than the lots hold, or a number is missing or 0.
        """
        if not units or not np.isfinite([units, price, cost]).all():
            raise ValueError(f"{units} of {ticker} at {price} on {day}: no trade")
        day, lots = day.normalize(), self.open.setdefault(ticker, [])
        if units > 0:
            lots.append(Lot(day, units, price + cost / units))
            return
        price -= cost / -units
        a_year_ago = day - pd.DateOffset(years=1)  # held for more than a year: long
        if self.tax.lots == "best":
            lots.sort(
                key=lambda lot: (
                    (price - lot.basis)
                    * (self.tax.long if lot.day < a_year_ago else self.tax.short)
                )
            )
        left = -units
        while lots and left > 0:
            lot = lots[0]
            sold = min(lot.units, left)
            gain = sold * (price - lot.basis)
            if lot.day < a_year_ago:
                self.long += gain
            else:
                self.short += gain
            left -= sold
            if lot.units - sold <= SOLD * lot.units:
                lots.pop(0)
            else:
                lot.units -= sold
        if left > 1e3 * SOLD * -units:
            raise ValueError(
                f"{-units:g} of {ticker} sold on {day:%Y-%m-%d}, {left:g} more than held"
            )

    def due(self) -> float:
        return self.tax.on(self.short, self.long)[0]

    def settle(self) -> float:
        """The tax on what was realised; losses are carried on."""
        tax, self.short, self.long = self.tax.on(self.short, self.long)
        return tax
