"""Backtests that keep books. A rule sees the past and today's price of trade; every dollar is accounted for."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mlbook.common.checks import check_count
from mlbook.leveraged_etfs.borders import check_days, check_prices, check_series
from mlbook.leveraged_etfs.measures import CENT, metrics, money_weighted, unit_value
from mlbook.leveraged_etfs.taxes import Lots, Tax

MONTHS = {
    "day": 0,
    "month": 1,
    "quarter": 3,
    "half-year": 6,
    "year": 12,
    "never": math.inf,
}
DUST = 1e-12  # of what is traded: a rounding

# (closes before today (days, n), today's prices of trade (n,), units held (n,), cash) → dollars to buy of each
# (negative: to sell), or None for no trade
Rule = Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray | None]


@dataclass(frozen=True)
class Run:
    """The books of one account, by day.

    Attributes:
        values: cash and positions at the close, in dollars.
        before: the same at the day's price of trade, before the day's flow.
        flows: paid in (negative: taken out).
        cash: what is not invested.
        units: held of each ticker after the day's trades.
        trades: one row a trade: day, ticker, units (negative: sold), price, cost.
        taxes: paid.
        owed: tax on what was realised in the last calendar year, not yet paid.
        latent: the further tax if everything were sold at the last close.
    """

    values: pd.Series
    before: pd.Series
    flows: pd.Series
    cash: pd.Series
    units: pd.DataFrame
    trades: pd.DataFrame
    taxes: pd.Series
    owed: float = 0.0
    latent: float = 0.0

    @property
    def unit(self) -> pd.Series:
        """What a dollar becomes that is in from the first payment on."""
        first = self.flows.ne(0).idxmax()
        return unit_value(self.values[first:], self.flows[first:], self.before[first:])

    @property
    def left(self) -> float:
        """Dollars at the end, after all taxes, everything sold."""
        return float(self.values.iloc[-1] - self.owed - self.latent)

    def earned(self) -> float:
        """The money-weighted return, a year, after all taxes."""
        values = self.values.copy()
        values.iloc[-1] = self.left
        return money_weighted(values, self.flows)

    def metrics(self, rate: float | pd.Series = 0.0) -> dict:
        """`metrics` of the unit, and "final" and "invested" in dollars."""
        dollars = {"final": float(self.values.iloc[-1]), "invested": self.flows.sum()}
        return dollars | metrics(self.unit, rate, start=1.0)


def simulate(
    prices: pd.DataFrame,
    rule: Rule,
    flows: pd.Series,
    cost: float = 0.0,
    at: str = "open",
    tax: Tax | None = None,
) -> Run:
    """Run `rule` over `prices` day by day.

    On each day money comes in or goes out, tax on the gains of the year before is paid (on the first day of a year),
    both by selling of everything in proportion if cash does not suffice, the rule is asked, and its orders are filled
    at the day's price of trade. What a rule sees of the day is that price; everything else is earlier. (A rule that brings a
    schedule along, as `follow` does, sees what its maker saw.)

    Args:
        prices: as from `prices.load_prices`; its columns are all that can be held.
        rule: see `Rule`.
        flows: dollars paid in (negative: taken out), by day.
        cost: of a trade, as a fraction of its dollars.
        at: trade at the "open" or the "close".
        tax: on realised gains; none unless given.
    Raises:
        ValueError: a cost outside [0, 0.5), prices or flows that are not fit, an order or a withdrawal of more than there
            is. The message says on which day.
    """
    check_prices(prices)
    check_series(flows, "a flow", prices.index, some=True)
    if not 0 <= cost < 0.5:
        raise ValueError(f"cost is a fraction of the traded dollars, got {cost}")
    if at not in ("open", "close"):
        raise ValueError(f"trades are at the 'open' or the 'close', got {at!r}")
    days, tickers = prices.index, list(prices["close"].columns)
    trade, closes = prices[at].to_numpy(float), prices["close"].to_numpy(float)
    paid_in = flows.reindex(days, fill_value=0.0).to_numpy(float)
    new_year = np.diff(days.year, prepend=days.year[0]) != 0
    past = closes.view()
    past.flags.writeable = False
    values, before, cashes, taxes = np.zeros((4, len(days)))
    held, rows = np.zeros(closes.shape), []
    units, cash = np.zeros(len(tickers)), 0.0
    lots = Lots(tax) if tax else None

    def fill(d: int, dollars: np.ndarray) -> None:
        nonlocal cash
        worth = units * trade[d]
        slack = _slack(worth.sum() + max(cash, 0.0))
        if not (dollars >= -worth - slack).all():
            raise ValueError(
                f"on {days[d]:%Y-%m-%d} the rule sells more than is held: {dollars.tolist()}"
            )
        everything = dollars <= (DUST - 1) * worth
        amounts = np.where(everything, -units, dollars / trade[d])
        fees = cost * np.abs(amounts * trade[d])
        cash -= (amounts * trade[d]).sum() + fees.sum()
        if cash < -slack:
            raise ValueError(
                f"on {days[d]:%Y-%m-%d} the rule spends {-cash:.2f} more than there is"
            )
        if abs(cash) < DUST * np.abs(dollars).sum():
            cash = 0.0
        units[:] = np.where(everything, 0.0, units + amounts)
        for i in np.flatnonzero(amounts):
            rows.append((days[d], tickers[i], amounts[i], trade[d, i], fees[i]))
            if lots:
                lots.trade(*rows[-1])

    for d in range(len(days)):
        before[d] = cash + units @ trade[d]
        cash += paid_in[d]
        if lots and new_year[d]:
            taxes[d] = lots.settle()
        missing = taxes[d] - cash
        if missing > 0:
            worth, sale = units @ trade[d], missing / (1 - cost)
            if sale > worth + _slack(worth):
                raise ValueError(
                    f"on {days[d]:%Y-%m-%d} {missing:.2f} more is to be paid out than there is"
                )
            if worth:
                fill(d, -units * trade[d] * min(sale / worth, 1.0))
        cash -= taxes[d]
        if cash < 0 and not units.any():  # all was paid out, but for less than a cent
            cash = 0.0
        orders = rule(past[:d], trade[d], units.copy(), max(cash, 0.0))
        if orders is not None:
            if isinstance(orders, pd.Series):
                whole = set(orders.index) == set(tickers)
                orders = orders[tickers] if whole else orders.to_dict()
            if np.shape(orders) != (len(tickers),):
                raise ValueError(f"a rule orders dollars of {tickers}, got {orders!r}")
            fill(d, np.asarray(orders, float))
        held[d], cashes[d] = units, cash
        values[d] = cash + units @ closes[d]
    owed = latent = 0.0
    if lots:
        owed = lots.due()
        for i in np.flatnonzero(units):
            lots.trade(days[-1], tickers[i], -units[i], closes[-1, i], 0.0)
        latent = lots.due() - owed
    series = [pd.Series(x, days) for x in (values, before, paid_in, cashes, taxes)]
    trades = pd.DataFrame(rows, columns=["day", "ticker", "units", "price", "cost"])
    held = pd.DataFrame(held, days, tickers)
    return Run(*series[:4], held, trades, series[4], owed, latent)


def _slack(account: float) -> float:
    """Dollars by which an order may miss what is there: a cent, less in a small account. They are owed, not given."""
    return min(CENT, 1e-3 * account) + DUST * account


def behind(risky, safe, target):
    """Whether new money goes to the first of two funds: it is under its target, or the target is everything."""
    return (risky < target * (risky + safe)) | (
        (target > 0) & ((risky + safe == 0) | (target == 1))
    )


def dca(
    prices: pd.DataFrame,
    target: float,
    every: int = 10,
    amount: float = 3000.0,
    start: int = 0,
    cost: float = 0.0,
    at: str = "open",
    tax: Tax | None = None,
) -> Run:
    """Every `every`-th day, from day `start` on, buy for `amount` dollars the first of two funds if it is `behind` its
    target, else the second; never sell. The account begins with the first purchase.

    Args:
        prices: of two tickers; `target` is the share of the first, valued at the closes before.
    Raises:
        ValueError: not two tickers, a target outside [0, 1], `every` or `amount` not positive, or a start that is not
            a day of the table.
    """
    _check_dca(prices, [target], [start], every, amount)

    def rule(past, price, units, cash):
        if not cash:
            return None
        worth = units * past[-1] if len(past) else units
        dollars = cash / (1 + cost)
        return np.array([dollars, 0.0] if behind(*worth, target) else [0.0, dollars])

    flows = pd.Series(amount, prices.index[start::every])
    return simulate(prices.iloc[start:], rule, flows, cost, at, tax)


def _check_dca(prices, targets, starts, every, amount) -> None:
    check_prices(prices)
    tickers = list(prices["close"].columns)
    if len(tickers) != 2:
        raise ValueError(f"two funds are needed, got {', '.join(tickers)}")
    if not all(0 <= t <= 1 for t in targets):
        raise ValueError(f"target is a share between 0 and 1, got {targets}")
    check_count("every", every)
    if not 0 < amount < math.inf:
        raise ValueError(f"amount must be positive dollars, got {amount}")
    for start in starts:
        if check_count("start", start, 0) >= len(prices):
            raise ValueError(f"start must be one of {len(prices)} days, got {start}")


def dca_grid(
    prices: pd.DataFrame,
    targets: Iterable[float],
    starts: Iterable[int],
    every: int = 10,
    amount: float = 3000.0,
) -> dict[str, np.ndarray]:
    """`dca` for all pairs of target and start at once, at the open and without costs: purchase by purchase, since units
    are constant between two.

    Returns:
        "invested", "final" (dollars), "growth" (of a dollar that is in from the start) and "drawdown" (largest fall of
        that dollar, daily; positive): arrays (targets, starts).
    Raises:
        ValueError: as `dca`.
    """
    targets, starts = np.asarray(list(targets), float), list(starts)
    _check_dca(prices, targets.tolist(), starts, every, amount)
    opens, closes = (prices[f].to_numpy(float).T for f in ("open", "close"))
    goal = np.repeat(targets, len(starts))
    first = np.tile(starts, len(targets))
    units, scale, low = np.empty((2, len(goal))), *np.empty((2, len(goal)))
    for phase in np.unique(first % every):
        group = np.flatnonzero(first % every == phase)
        held, (per, top, least) = np.zeros((2, len(group))), np.ones((3, len(group)))
        mine, aim = first[group], goal[group]
        for day in range(mine.min(), closes.shape[1], every):
            active = mine <= day
            worth = held * closes[:, [day - 1]]  # nothing is held on day 0
            opened = held.T @ opens[:, day]
            per = np.where(mine == day, 1 / amount, per * opened / (opened + amount))
            bought = active * amount / opens[:, [day]]
            held += (
                np.where(behind(*worth, aim), [[1.0], [0.0]], [[0.0], [1.0]]) * bought
            )
            # A dollar's value at the closes until the next purchase: (days, plans)
            unit = closes[:, day : day + every].T @ (held * per)
            for close in unit:
                top = np.maximum(top, close)
                least = np.minimum(least, close / top, where=active, out=least)
        units[:, group], scale[group], low[group] = held, per, least
    final = closes[:, -1] @ units
    purchases = 1 + (closes.shape[1] - 1 - first) // every
    out = {
        "invested": amount * purchases,
        "final": final,
        "growth": final * scale,
        "drawdown": 1 - low,
    }
    return {k: v.reshape(len(targets), len(starts)) for k, v in out.items()}


def follow(
    prices: pd.DataFrame,
    schedule: pd.DataFrame,
    flows: pd.Series | float,
    cost: float = 0.0,
    at: str = "open",
    tax: Tax | None = None,
) -> Run:
    """Trade to the weights of `schedule` on its days; on other days put new money in by the last weights, sell nothing.

    Args:
        schedule: one row for each day on which to trade, one column for each ticker of `prices`; rows sum to at most
            1, and what is left stays in cash. Who makes it must see to it that a row uses nothing of its own day.
        flows: dollars paid in, by day; or one amount on the first day.
    Raises:
        ValueError: negative weights, a sum above 1, a missing column, or a day without prices.
    """
    check_prices(prices)
    days, tickers = prices.index, list(prices["close"].columns)
    if set(schedule.columns) != set(tickers):
        raise ValueError(
            f"weights are for {list(schedule.columns)}, prices for {tickers}"
        )
    schedule = schedule[tickers].astype(float)
    check_series(schedule.sum(axis=1, skipna=False), "a weight", days, some=True)
    if not (
        (schedule >= 0).all(axis=None) and (schedule.sum(axis=1) <= 1 + 1e-9).all()
    ):
        raise ValueError("weights must not be negative and must sum to at most 1")
    if not isinstance(flows, pd.Series):
        flows = pd.Series([float(flows)], days[:1])
    check_series(flows, "a flow", days, some=True)
    weights = schedule.reindex(days).ffill().fillna(0.0).to_numpy()
    due = days.isin(schedule.index)
    paid_in = flows.reindex(days, fill_value=0.0).to_numpy(float)

    def rule(past, price, units, cash):
        d = len(past)
        if due[d]:
            return toward(weights[d], units * price, cash, cost)
        new = min(paid_in[d], cash) / (1 + cost)
        return weights[d] * new if new > 0 else None

    return simulate(prices, rule, flows, cost, at, tax)


def toward(
    weights: np.ndarray, worth: np.ndarray, cash: float, cost: float
) -> np.ndarray:
    """Dollars to trade of each so that afterwards positions are `weights` of what is left after the costs.

    What is left, T, solves T = worth + cash − cost·Σ|weights·T − worth|; the map contracts.
    """
    before = total = worth.sum() + cash
    for _ in range(50):  # some six, at a cost of a thousandth
        last, total = total, before - cost * np.abs(weights * total - worth).sum()
        if abs(total - last) <= 1e-15 * before:
            break
    return weights * total - worth


def rebalance(
    prices: pd.DataFrame,
    weights: Mapping[str, float],
    frequency: str = "year",
    contributions: pd.Series | float = 10_000.0,
    cost: float = 0.0,
    at: str = "open",
    tax: Tax | None = None,
    month: int = 1,
) -> Run:
    """Hold `weights`, and come back to them on the first trading day of each period.

    Args:
        weights: by ticker; those left out are 0.
        frequency: "day", "month", "quarter", "half-year", "year" or "never".
        contributions: dollars by day, invested by the weights; or one amount on the first day.
        month: one in which a period begins: with "year" and 4, rebalanced each April.
    Raises:
        ValueError: an unknown frequency, month or ticker, or weights as in `follow`.
    """
    check_prices(prices)
    unknown = set(weights) - set(prices["close"].columns)
    if unknown:
        raise ValueError(f"there are no prices of {', '.join(sorted(unknown))}")
    days = first_days(prices.index, frequency, month)
    schedule = pd.DataFrame(0.0, days, prices["close"].columns)
    schedule[list(weights)] = list(weights.values())
    return follow(prices, schedule, contributions, cost, at, tax)


def first_days(
    days: pd.DatetimeIndex, frequency: str, month: int = 1
) -> pd.DatetimeIndex:
    """The first of `days`, and the first of each later period of `frequency`; `month` is one in which a period begins.

    Raises:
        ValueError: an unknown frequency, or a month that is not 1 to 12.
    """
    check_days(days, "days")
    if frequency not in MONTHS:
        raise ValueError(
            f"frequency is {frequency!r}; it must be one of {', '.join(MONTHS)}"
        )
    if check_count("month", month) > 12:
        raise ValueError(f"month must be 1 to 12, got {month}")
    months = MONTHS[frequency]
    if not months:
        return days
    period = (days.year * 12 + days.month - month) // months
    return days[np.diff(period, prepend=period[0] - 1) != 0]


def above_average(signal: pd.Series, window: int, lag: int) -> pd.Series:
    """Whether, `lag` days before, `signal` stood above the mean of its last `window`; from the first day that knows.

    Raises:
        ValueError: a window below 1, a negative lag, or a signal of fewer than `window` + `lag` days.
    """
    check_count("window", window)
    check_count("lag", lag, 0)
    check_series(signal, "the signal", signal.index, positive=True)
    if len(signal) < window + lag:
        raise ValueError(
            f"the signal has {len(signal)} days, {window + lag} are needed"
        )
    above = signal > signal.rolling(window).mean()
    return above.shift(lag)[window - 1 + lag :].astype(bool)


def moving_average_switch(
    prices: pd.DataFrame,
    signal: pd.Series,
    window: int = 200,
    lag: int = 1,
    contributions: pd.Series | float = 10_000.0,
    cost: float = 0.0,
    at: str = "open",
    tax: Tax | None = None,
) -> Run:
    """Hold the first ticker while `signal` stands above its moving average, else the second (cash, if there is none).

    Args:
        signal: closes of an index, on the days of `prices` and at least `window` + `lag` before the first.
        lag: trading days between the signal's close and the trade. 1: yesterday's close. 0 looks ahead, and is there
            to show what that does.
    Raises:
        ValueError: as `above_average` and `switch`.
    """
    check_prices(prices)
    hold = above_average(signal, window, lag)
    if hold.index[0] > prices.index[0]:
        raise ValueError(
            f"the signal has no {window} closes up to {lag} days before {prices.index[0]:%Y-%m-%d}"
        )
    check_series(hold, "the signal", prices.index, before=True)
    return switch(prices, hold[prices.index], contributions, cost, at, tax)


def switch(
    prices: pd.DataFrame,
    hold: pd.Series,
    contributions: pd.Series | float = 10_000.0,
    cost: float = 0.0,
    at: str = "open",
    tax: Tax | None = None,
) -> Run:
    """Hold the first ticker on days when `hold` is true, else the second (cash, if there is none).

    Raises:
        ValueError: more than two tickers, or a `hold` that is not True or False on each day of `prices`.
    """
    check_prices(prices)
    tickers = list(prices["close"].columns)
    if len(tickers) > 2:
        raise ValueError(f"at most two tickers, got {', '.join(tickers)}")
    if hold.dtype != bool:
        raise ValueError(f"hold must be True or False on each day, got {hold.dtype}")
    check_series(hold, "hold", prices.index)
    weights = np.stack([hold, ~hold], axis=1)[:, : len(tickers)].astype(float)
    schedule = pd.DataFrame(weights, prices.index, tickers)
    turns = np.r_[True, hold.to_numpy()[1:] != hold.to_numpy()[:-1]]
    return follow(prices, schedule[turns], contributions, cost, at, tax)
