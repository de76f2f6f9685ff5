"""What prices, signals, positions and flows must be before anything is computed from them."""

import numpy as np
import pandas as pd


def check_days(days: pd.Index, what: str) -> None:
    """Refuse days that are not dates at midnight, without a zone, in order, each once.

    Raises:
        ValueError: they are not; it names the first day at fault.
    """
    if not isinstance(days, pd.DatetimeIndex) or days.tz is not None:
        kind = getattr(days, "dtype", type(days).__name__)
        raise ValueError(f"{what} must be indexed by dates without a zone, not {kind}")
    if not len(days):
        raise ValueError(f"{what}: there are no days")
    for fault, where in (
        ("a date is missing", days.isna()),
        ("a time of day stands in the date", days != days.normalize()),
        ("a day stands twice", days.duplicated()),
        ("the days are not in order", np.r_[False, np.diff(days.asi8) < 0]),
    ):
        if where.any():
            raise ValueError(f"{what}: {fault}: {days[where][0]}")


def check_prices(prices: pd.DataFrame) -> None:
    """Refuse a table that is not opens and closes of the same tickers, all positive, on days as in `check_days`.

    Raises:
        ValueError: it is not; it names the day.
    """
    columns = getattr(prices, "columns", pd.Index([]))
    fields = set(columns.get_level_values(0)) if columns.nlevels == 2 else set()
    if not {"open", "close"} <= fields or not columns.is_unique:
        raise ValueError(
            f"prices need columns like ('open', 'SPY') and ('close', 'SPY'), each once, got {list(columns)}"
        )
    if list(prices["open"].columns) != list(prices["close"].columns):
        raise ValueError("prices need an open and a close of each ticker")
    check_days(prices.index, "prices")
    priced = prices[["open", "close"]]
    good = (np.isfinite(priced) & (priced > 0)).all(axis=1)
    if not good.all():
        day = prices.index[~good][0]
        raise ValueError(
            f"prices must be positive numbers; on {day:%Y-%m-%d} they are {prices.loc[day].to_dict()}"
        )


def check_series(
    series: pd.Series,
    what: str,
    days: pd.DatetimeIndex,
    *,
    some: bool = False,
    before: bool = False,
    positive: bool = False,
) -> None:
    """Refuse numbers that are not finite, or whose days are not `days`.

    Args:
        some: days may be missing (flows).
        before: it may begin earlier (the signal of an average).
        positive: and all must be above zero.
    Raises:
        ValueError: as said; it names the first day at fault.
    """
    check_days(series.index, what)
    values = series.to_numpy(float)
    good = np.isfinite(values) & (values > 0 if positive else True)
    if not good.all():
        raise ValueError(
            f"{what} on {series.index[~good][0]:%Y-%m-%d} is {values[~good][0]}"
        )
    own = series.index[series.index >= days[0]] if before else series.index
    strange = own[own <= days[-1]].difference(days) if before else own.difference(days)
    if len(strange):
        raise ValueError(f"{what} has {strange[0]:%Y-%m-%d}, a day without prices")
    lacking = days.difference(series.index)
    if len(lacking) and not some:
        raise ValueError(f"{what} lacks {lacking[0]:%Y-%m-%d}, a day of the prices")
