"""What an account did: to a dollar in it from the start, and to the dollars that were paid in."""

import math
import warnings

import numpy as np
import pandas as pd
import pyxirr
from scipy.optimize import brentq

from mlbook.leveraged_etfs.borders import check_series

YEAR = 365.25  # calendar days in a year
CENT = 0.01
ROUNDING = 1e-9


def unit_value(
    values: pd.Series, flows: pd.Series, before: pd.Series | None = None
) -> pd.Series:
    """What one dollar that is in from the start becomes: growth with the effect of flows taken out (time-weighted).

    While nothing is in the account it stays what it was; once everything was lost it is 0.

    Args:
        values: at the close.
        flows: paid in (negative: taken out) on a day, before its close.
        before: the value just before the day's flow; the close before unless given.
    Raises:
        ValueError: nothing is paid in on the first day, a value is negative or missing, or flows are on other days.
    """
    check_series(values, "a value", values.index)
    check_series(flows, "a flow", values.index, some=True)
    if (values < 0).any():
        raise ValueError(f"values must not be negative, got {values.min()}")
    paid = flows.reindex(values.index, fill_value=0.0).to_numpy(float)
    if not paid[0] > 0:
        raise ValueError(
            f"nothing is paid in on the first day, {values.index[0]:%Y-%m-%d}"
        )
    worth = values.to_numpy(float)
    last = np.r_[0.0, worth[:-1]]
    if before is not None:
        check_series(before, "a value before a flow", values.index)
    reached = last if before is None else before.to_numpy(float)
    held = reached + paid
    short = held < -(CENT + ROUNDING * reached)
    if short.any():
        day = values.index[short][0]
        raise ValueError(
            f"on {day:%Y-%m-%d} more was taken out than there was before; `before` says what there was"
        )
    # Who has taken out everything, but for a cent, holds nothing until the next payment; who has lost it goes on
    closed = (paid < 0) & (held <= CENT + ROUNDING * reached)
    state = np.where(closed, 0.0, np.where(paid > 0, 1.0, np.nan))
    inside = pd.Series(state).ffill().to_numpy() > 0
    was_inside = np.r_[False, inside[:-1]]
    until, since = np.ones_like(worth), np.ones_like(worth)
    np.divide(reached, last, out=until, where=was_inside & (last > 0))
    np.divide(worth, held, out=since, where=inside & (held > 0))
    return pd.Series(np.cumprod(until * since), values.index)


def drawdown(values: pd.Series) -> pd.Series:
    """By how much each value is below the highest before it, as a fraction: 0 at a peak, −0.5 at half of it.

    Raises:
        ValueError: a value is negative or missing, or the first is 0.
    """
    if not ((values >= 0).all() and values.iloc[0] > 0):
        raise ValueError("values must not be negative, nor missing, nor the first be 0")
    return values / values.cummax() - 1


def money_weighted(values: pd.Series, flows: pd.Series) -> float:
    """The yearly rate at which the flows, each growing from its day on, become the last value (internal rate of return).

    Computed by pyxirr, with years of 365.25 days. Unique when all flows are payments in; where money was also taken
    out there can be several such rates: a warning names them, and the one nearest to 0 is given.

    Raises:
        ValueError: no money was paid in before the last day, or no rate explains the flows and the value.
    """
    check_series(values, "a value", values.index)
    check_series(flows, "a flow", values.index, some=True)
    end, last = values.index[-1], float(values.iloc[-1])
    flows = flows[flows != 0]
    if not (flows[flows.index < end] > 0).any():
        raise ValueError("a rate needs money that was paid in before the last day")
    if last <= 0 and (flows > 0).all():
        return -1.0
    days, amounts = [*flows.index.date, end.date()], [*-flows, last]
    years = (end - flows.index).days.to_numpy() / YEAR
    rate = pyxirr.xirr(days, amounts, day_count="ACT/365.25", silent=True)
    if rate is not None and (flows > 0).all():
        return float(rate)
    # Several rates, or one that is near a total loss: search the logarithms of rates from −99.9999 % on
    excess = lambda x: float(np.exp(x * years) @ flows.to_numpy() - last)  # noqa: E731
    tried = 0.01 * np.sinh(np.linspace(-12, 12, 2401))
    tried = tried[np.abs(tried) * years.max() < 700]
    over = np.array([excess(x) >= 0 for x in tried])
    found = np.flatnonzero(over[1:] != over[:-1])
    rates = [math.expm1(brentq(excess, *tried[i : i + 2], xtol=1e-13)) for i in found]
    if not rates:
        raise ValueError("no yearly rate explains these flows and this value")
    if len(rates) > 1:
        told = ", ".join(f"{rate:.2%}" for rate in rates)
        warnings.warn(f"more than one rate solves these flows: {told}", stacklevel=2)
    return min(rates, key=abs)


def metrics(
    unit: pd.Series, rate: float | pd.Series = 0.0, start: float | None = None
) -> dict:
    """The usual measures of a price, or of the unit of an account; never of a balance into which money flows.

    Years are counted by the calendar, and periods a year by the index, so that monthly values are measured as well.

    Args:
        unit: by day, week or month.
        rate: yearly riskless rate that the two ratios are over.
        start: the value before the first, 1 for the unit of an account, whose first day then counts (as no time); the
            first itself unless given.
    Returns:
        "cagr", "volatility" (yearly), "sharpe", "sortino" (yearly; Sortino's deviation is the root mean square of the
        shortfalls below `rate`, over all periods), "max_drawdown" (positive), "peak", "trough", "recovered" (days;
        None where not yet, or where there was no fall), "ulcer" (root mean square of the drawdowns, Martin and McCann
        1989), "calmar" (cagr over drawdown), "worst_year" (of calendar years, a broken first or last one counting as
        it is) and "worst_year_when". What cannot be said of so few values, or of none that move, is NaN.
    Raises:
        ValueError: days out of order, values that are missing or negative, or a `start` for values that are not daily.
    """
    check_series(unit, "a value", unit.index)
    price, start = start is None, float(unit.iloc[0]) if start is None else start
    if (unit < 0).any() or not start > 0:
        raise ValueError("values must not be negative, nor the first be 0")
    if not price and (unit.index[-1] - unit.index[0]).days > 4 * len(unit):
        raise ValueError("`start` is for daily values")
    days, u = unit.index, unit.to_numpy(float)
    last = np.r_[start, u[:-1]]
    moves = np.divide(u, last, out=np.ones_like(u), where=last > 0) - 1
    if price:  # it has no return on its first day
        moves = moves[1:]
    years = (days[-1] - days[0]).days / YEAR
    per_year = (len(u) - 1) / years if years else math.nan
    if isinstance(rate, pd.Series):
        rate = rate.reindex(days).to_numpy(float)[len(u) - len(moves) :]
        if not np.isfinite(rate).all():
            raise ValueError("the riskless rate is missing on some day of the values")
    excess = moves - rate / per_year
    peaks = np.maximum(np.maximum.accumulate(u), start)
    fall = 1 - u / peaks
    trough = int(fall.argmax())
    back = np.flatnonzero(u[trough:] >= peaks[trough])
    ends = unit.groupby(days.year).last()
    by_year = ends / ends.shift(fill_value=start).where(lambda x: x > 0) - 1
    few = len(moves) < 2
    deviation = math.nan if few else excess.std(ddof=1)
    shortfall = math.nan if few else math.sqrt((np.minimum(excess, 0) ** 2).mean())
    cagr = (u[-1] / start) ** (1 / years) - 1 if years else math.nan

    def ratio(over, under):
        return float(over / under) if under > ROUNDING * abs(over) else math.nan

    return {
        "cagr": float(cagr),
        "volatility": math.nan if few else float(moves.std(ddof=1) * per_year**0.5),
        "sharpe": ratio(excess.mean() * per_year**0.5, deviation)
        if not few
        else math.nan,
        "sortino": ratio(excess.mean() * per_year**0.5, shortfall)
        if not few
        else math.nan,
        "max_drawdown": float(fall.max()),
        "peak": days[u[: trough + 1].argmax()],
        "trough": days[trough],
        "recovered": days[trough + back[0]] if len(back) and fall.max() > 0 else None,
        "ulcer": float(np.sqrt((fall**2).mean())),
        "calmar": ratio(cagr, fall.max()),
        "worst_year": float(by_year.min()),
        "worst_year_when": int(by_year.idxmin()),
    }
