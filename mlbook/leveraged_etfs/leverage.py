"""Funds with daily leverage: what they earn by the day, in the long run by formula, and some made of an index."""

import importlib
import warnings
from collections.abc import Mapping

import numpy as np
import pandas as pd

from mlbook.leveraged_etfs import prices
from mlbook.leveraged_etfs.borders import check_days, check_prices

DAYS = 252  # trading days in a year, for quantities of a model
FUNDS = {  # ticker → index in `arch`, leverage, yearly fee (the prospectuses', 2010s)
    "SPY": ("sp500", 1, 0.0009),
    "SSO": ("sp500", 2, 0.0091),
    "UPRO": ("sp500", 3, 0.0093),
    "QQQ": ("nasdaq", 1, 0.0020),
    "QLD": ("nasdaq", 2, 0.0095),
    "TQQQ": ("nasdaq", 3, 0.0095),
}
SPREAD = 0.0075  # over the policy rate, a year: what TQQQ paid on what it borrowed, 2010 to 2025
# The target of the Federal Reserve for the federal funds rate, in percent, from the day of each decision on; since
# December 2008 the middle of its range. Board of Governors, "Open Market Operations" (public domain), to 2025.
POLICY = """
1998-11-17 4.75   1999-06-30 5.00   1999-08-24 5.25   1999-11-16 5.50   2000-02-02 5.75   2000-03-21 6.00
2000-05-16 6.50   2001-01-03 6.00   2001-01-31 5.50   2001-03-20 5.00   2001-04-18 4.50   2001-05-15 4.00
2001-06-27 3.75   2001-08-21 3.50   2001-09-17 3.00   2001-10-02 2.50   2001-11-06 2.00   2001-12-11 1.75
2002-11-06 1.25   2003-06-25 1.00   2004-06-30 1.25   2004-08-10 1.50   2004-09-21 1.75   2004-11-10 2.00
2004-12-14 2.25   2005-02-02 2.50   2005-03-22 2.75   2005-05-03 3.00   2005-06-30 3.25   2005-08-09 3.50
2005-09-20 3.75   2005-11-01 4.00   2005-12-13 4.25   2006-01-31 4.50   2006-03-28 4.75   2006-05-10 5.00
2006-06-29 5.25   2007-09-18 4.75   2007-10-31 4.50   2007-12-11 4.25   2008-01-22 3.50   2008-01-30 3.00
2008-03-18 2.25   2008-04-30 2.00   2008-10-08 1.50   2008-10-29 1.00   2008-12-16 0.125  2015-12-16 0.375
2016-12-14 0.625  2017-03-15 0.875  2017-06-14 1.125  2017-12-13 1.375  2018-03-21 1.625  2018-06-13 1.875
2018-09-26 2.125  2018-12-19 2.375  2019-07-31 2.125  2019-09-18 1.875  2019-10-30 1.625  2020-03-03 1.125
2020-03-15 0.125  2022-03-16 0.375  2022-05-04 0.875  2022-06-15 1.625  2022-07-27 2.375  2022-09-21 3.125
2022-11-02 3.875  2022-12-14 4.375  2023-02-01 4.625  2023-03-22 4.875  2023-05-03 5.125  2023-07-26 5.375
2024-09-18 4.875  2024-11-07 4.625  2024-12-18 4.375  2025-09-17 4.125  2025-10-29 3.875  2025-12-10 3.625
"""
POLICY_ENDS = pd.Timestamp("2025-12-31")
# Consumer prices in December of each year from 1998 on: all urban consumers, not seasonally adjusted. Bureau of Labor
# Statistics, CUUR0000SA0 (public domain).
CPI = """
163.9 168.3 174.0 176.7 180.9 184.3 190.3 196.8 201.8 210.036 210.228 215.949 219.179 225.672 229.601 233.049 234.812
236.525 241.432 246.524 251.233 256.974 260.474 278.802 296.797 306.746 315.605
"""


def simulate_leveraged(
    returns: pd.Series,
    leverage: float,
    rate: float | pd.Series = 0.0,
    fee: float = 0.0,
    spread: float = 0.0,
) -> pd.Series:
    """Daily returns of a fund that holds `leverage` times its capital, reset every day:
    L·ρ − (L − 1)·(rate + spread)/252 − fee/252 for L ≥ 1.

    It cannot lose more than everything.

    Args:
        returns: ρ, of the underlying, a day each (0.01 is one percent).
        leverage: L; below 1 the rest earns the rate, below 0 shares are sold short.
        rate: a yearly fraction, or one a day, on the days of `returns`.
        fee, spread: yearly fractions; the spread is paid on what is borrowed, dollars or shares.
    Raises:
        ValueError: `returns` below −1 or missing, or a rate that lacks one of their days.
    """
    if not (returns >= -1).all():
        raise ValueError("returns must be at least −1, and none may be missing")
    if isinstance(rate, pd.Series):
        rate = rate.reindex(returns.index)
    if not np.isfinite(rate).all():
        raise ValueError("the rate is missing on some day of the returns")
    # dollars are borrowed, or shares, to be sold short
    borrowed = max(leverage - 1, 0) + max(-leverage, 0)
    paid = (leverage - 1) * rate + borrowed * spread
    return (leverage * returns - (paid + fee) / DAYS).clip(lower=-1.0)


def log_growth(leverage, mu: float, sigma: float, rate: float = 0.0, fee: float = 0.0):
    """Growth rate of the logarithm of an L-times fund on a geometric Brownian motion, a year:
    rate + L·(mu − rate) − L²·sigma²/2 − fee.

    Args:
        leverage: L, a number or an array.
        mu: drift of dS/S, that is E[S_t] = S_0·e^(mu·t); sigma: volatility; all yearly.
    """
    return rate + leverage * (mu - rate) - leverage**2 * sigma**2 / 2 - fee


def policy_rate(days: pd.DatetimeIndex) -> pd.Series:
    """The Federal Reserve's target for overnight money on each of `days`, a yearly fraction (0.05, not 5).

    After the end of the table, 2025, its last decision stands, and a warning says so.

    Raises:
        ValueError: days are none, or missing, or lie before the table, from 1998-11-17 on.
    """
    if not isinstance(days, pd.DatetimeIndex) or days.hasnans or not len(days):
        raise ValueError(f"days must be dates, got {days!r}")
    words = POLICY.split()
    decided = pd.Series(np.float64(words[1::2]) / 100, pd.DatetimeIndex(words[::2]))
    if min(days) < decided.index[0]:
        raise ValueError(
            f"the policy rate is tabulated from {decided.index[0]:%Y-%m-%d}, and was asked for {min(days):%Y-%m-%d}"
        )
    if max(days) > POLICY_ENDS:
        warnings.warn(
            f"the policy rate is tabulated to {POLICY_ENDS:%Y-%m-%d}; its last, {decided.iloc[-1]:.3%}, "
            f"stands for the days to {max(days):%Y-%m-%d}",
            stacklevel=2,
        )
    return decided.reindex(days, method="ffill")


def price_level(days: pd.DatetimeIndex) -> pd.Series:
    """Consumer prices on each of `days` over those of the first: what a value is divided by to be real.

    Between two Decembers they grow by a constant rate; beyond the table, by its last year's, and a year beyond a warning says so.

    Raises:
        ValueError: days are not in order, or lie before December 1998.
    """
    check_days(days, "days")
    if days[0] < pd.Timestamp("1998-12-01"):
        raise ValueError(
            f"prices are tabulated from December 1998, got {days[0]:%Y-%m-%d}"
        )
    logs = np.log(np.float64(CPI.split()))
    years = np.arange(len(logs)) + 1998 + 11.5 / 12  # the middle of December
    at = days.year + (days.day_of_year - 0.5) / (365 + days.is_leap_year)
    if at.max() > years[-1] + 1:
        warnings.warn("consumer prices are tabulated to December 2024", stacklevel=2)
    level = np.interp(at, years, logs) + np.maximum(at - years[-1], 0) * (
        logs[-1] - logs[-2]
    )
    return pd.Series(np.exp(level - level[0]), days)


def simulated_funds(
    funds: Mapping[str, tuple[str, float, float]] = FUNDS, spread: float = SPREAD
) -> pd.DataFrame:
    """Funds as they might have been, 1999 to 2018, in the shape of `load_prices`, from data that ship with `arch`.

    Each is the S&P 500 or the Nasdaq composite with daily leverage, financed at the policy rate plus `spread`, less
    its fee. The indices leave dividends out (some 1.9 and 0.8 % a year), the composite is not the Nasdaq-100, and the
    S&P 500's opens in these data are often the closes before.

    Args:
        funds: by name: "sp500" or "nasdaq", leverage, yearly fee; any that you like: {"five": ("sp500", 5, 0.01)}.
    Raises:
        ValueError: another index.
    """
    indices = {}
    for name in {index for index, *_ in funds.values()}:
        if name not in ("sp500", "nasdaq"):
            raise ValueError(f"the indices are 'sp500' and 'nasdaq', got {name!r}")
        indices[name] = importlib.import_module(f"arch.data.{name}").load()
    series = {}
    for ticker, (index, leverage, fee) in funds.items():
        raw = indices[index]
        before = raw["Close"].shift().fillna(raw["Open"].iloc[0])
        returns = simulate_leveraged(
            raw["Close"] / before - 1, leverage, policy_rate(raw.index), fee, spread
        )
        close = 100 * (1 + returns).cumprod()
        overnight = (1 + leverage * (raw["Open"] / before - 1)).clip(lower=0.0)
        series[ticker] = pd.DataFrame(
            {"open": close.shift(fill_value=100.0) * overnight, "close": close}
        )
    return prices.align(series, [])


def with_cash(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with one more ticker, CASH: a dollar that earns `policy_rate` from close to close.

    Raises:
        ValueError: as `policy_rate`, or the table has it already.
    """
    check_prices(table)
    if "CASH" in table["close"]:
        raise ValueError("the table has CASH already")
    nights = table.index.to_series().diff().dt.days.fillna(0) / 360  # money market days
    close = (1 + policy_rate(table.index) * nights).cumprod()
    cash = pd.concat({("open", "CASH"): close, ("close", "CASH"): close}, axis=1)
    both = pd.concat([table, cash], axis=1)
    both.attrs = table.attrs
    return prices.select(both, [*table["close"].columns, "CASH"])
