"""Backtests that keep books. A rule sees the past and today's price of trade; every dollar is accounted for."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from mlbook.leveraged_etfs.leverage import DAYS
from mlbook.leveraged_etfs.taxes import Lots, Tax

YEAR = 365.25  # calendar days in a year
MONTHS = {
    "day": 0,
    "month": 1,
    "quarter": 3,
    "half-year": 6,
    "year": 12,
    "never": math.inf,
}
CENT = 0.01

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

    def metrics(self, rate: float | pd.Series = 0.0) -> dict:
        """`metrics` of this account, with the value at the moment of each flow."""
        return metrics(self.values, self.flows, self.before, rate)

    def imbalance(self, prices: pd.DataFrame) -> float:
        """The largest amount, in dollars, by which on some day the value differs from what was paid in, plus gains,
        less costs and taxes; counted anew from the trades and the prices."""
        closes = prices["close"].loc[self.values.index]
        signed = self.trades.pivot_table(
            "units", "day", "ticker", aggfunc="sum", observed=True
        )
        held = signed.reindex(closes.index).reindex(columns=closes.columns)
        held = held.fillna(0.0).cumsum()
        gains = (held.shift().fillna(0.0) * closes.diff().fillna(0.0)).sum(axis=1)
        t = self.trades
        at_close = closes.stack().reindex(
            pd.MultiIndex.from_frame(t[["day", "ticker"]])
        )
        intraday = t.units * (at_close.to_numpy() - t.price)
        gains = gains.add(intraday.groupby(t.day).sum(), fill_value=0.0)
        costs = t.cost.groupby(t.day).sum().reindex(closes.index, fill_value=0.0)
        expected = (self.flows + gains - costs - self.taxes).cumsum()
        return float((self.values - expected).abs().max())


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
        ValueError: a cost outside [0, 1), flows on a day without prices, an order or a withdrawal of more than there is.
            The message says on which day.
    """
    if not 0 <= cost < 1:
        raise ValueError(f"cost is a fraction of the traded dollars, got {cost}")
    if at not in ("open", "close"):
        raise ValueError(f"trades are at the 'open' or the 'close', got {at!r}")
    days, tickers = prices.index, list(prices["close"].columns)
    strangers = flows.index.difference(days)
    if len(strangers):
        raise ValueError(
            f"money comes in on {strangers[0]:%Y-%m-%d}, a day without prices"
        )
    trade, closes = prices[at].to_numpy(), prices["close"].to_numpy()
    paid_in = flows.reindex(days, fill_value=0.0).to_numpy()
    years = days.year.to_numpy()
    n_days, n = closes.shape
    past = closes.view()
    past.flags.writeable = False
    values, before, cashes, taxes = (np.zeros(n_days) for _ in range(4))
    held, rows = np.zeros((n_days, n)), []
    units, cash = np.zeros(n), 0.0
    lots = Lots(tax) if tax else None

    def fill(d: int, dollars: np.ndarray) -> None:
        nonlocal cash
        sold_out = dollars < -units * trade[d] * (1 - 1e-12)
        if (dollars < -units * trade[d] - CENT).any():
            raise ValueError(
                f"on {days[d]:%Y-%m-%d} the rule sells more than is held: {dollars.tolist()}"
            )
        amounts = np.where(sold_out, -units, dollars / trade[d])
        fees = cost * np.abs(amounts * trade[d])
        cash -= (amounts * trade[d]).sum() + fees.sum()
        if cash < -CENT:
            raise ValueError(
                f"on {days[d]:%Y-%m-%d} the rule spends {-cash:.2f} more than there is"
            )
        if abs(cash) < 1e-12 * np.abs(dollars).sum():  # all spent, but for a rounding
            cash = 0.0
        units[:] = np.where(sold_out, 0.0, units + amounts)
        for i in np.flatnonzero(amounts):
            rows.append((days[d], tickers[i], amounts[i], trade[d, i], fees[i]))
            if lots:
                lots.trade(*rows[-1])

    for d in range(n_days):
        before[d] = cash + units @ trade[d]
        cash += paid_in[d]
        if lots and d and years[d] != years[d - 1]:
            taxes[d] = lots.settle()
        missing = taxes[d] - cash
        if missing > 0:
            worth = units @ trade[d]
            sale = missing / (1 - cost)
            if sale > worth + CENT:
                raise ValueError(
                    f"on {days[d]:%Y-%m-%d} {missing:.2f} more is to be paid out than there is"
                )
            if worth:
                fill(d, -units * trade[d] * min(sale / worth, 1.0))
        cash -= taxes[d]
        if -CENT <= cash < 0:  # all was paid out, but for a rounding
            cash = 0.0
        orders = rule(past[:d], trade[d], units.copy(), cash)
        if orders is not None:
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
    """Every `every`-th day, from day `start` on, buy for `amount` dollars the first of two funds if it is under its
    target (always, if that is 1), else the second; never sell.

    Args:
        prices: of two tickers; `target` is the share of the first, valued at the closes before.
    Raises:
        ValueError: not two tickers, a target outside [0, 1], or `every` or `amount` not positive.
    """
    _check_dca(prices, target, every, amount)

    def rule(past, price, units, cash):
        if not cash:
            return None
        worth = units * past[-1] if len(past) else units
        share = worth[0] / worth.sum() if worth.any() else 0.0
        dollars = cash / (1 + cost)
        first = share < target or target == 1
        return np.array([dollars, 0.0] if first else [0.0, dollars])

    flows = pd.Series(amount, prices.index[start::every])
    return simulate(prices, rule, flows, cost, at, tax)


def _check_dca(prices, target, every, amount) -> None:
    tickers = list(prices["close"].columns)
    if len(tickers) != 2:
        raise ValueError(f"two funds are needed, got {', '.join(tickers)}")
    if not (np.min(target) >= 0 and np.max(target) <= 1):
        raise ValueError(f"target is a share between 0 and 1, got {target}")
    if every < 1 or not amount > 0:
        raise ValueError(f"every = {every} and amount = {amount} must be positive")


def dca_grid(
    prices: pd.DataFrame,
    targets: Iterable[float],
    starts: Iterable[int],
    every: int = 10,
    amount: float = 3000.0,
) -> dict[str, np.ndarray]:
    """`dca` for all pairs of target and start at once, at the open and without costs.

    Simulations whose starts differ by a multiple of `every` buy on the same days and are done together; between two
    purchases units are constant.

    Returns:
        "invested", "final" (dollars), "growth" (of a dollar that is in from the start) and "drawdown" (largest fall of
        that dollar, daily; positive): arrays (targets, starts).
    Raises:
        ValueError: as `dca`; or a start outside the table.
    """
    targets, starts = np.asarray(list(targets), float), np.asarray(list(starts), int)
    _check_dca(prices, targets, every, amount)
    opens, closes = (prices[f].to_numpy().T for f in ("open", "close"))
    n = closes.shape[1]
    if starts.min() < 0 or starts.max() >= n:
        raise ValueError(
            f"starts must lie in 0 to {n - 1}, got {starts.min()} to {starts.max()}"
        )
    out = {
        k: np.empty((len(targets), len(starts)))
        for k in ("invested", "final", "growth", "drawdown")
    }
    for residue in np.unique(starts % every):
        mine = np.flatnonzero(starts % every == residue)
        goal = np.repeat(targets, len(mine))
        first = np.tile(starts[mine], len(targets))
        risky, safe, scale = np.zeros((3, len(goal)))
        peak, low = np.full(len(goal), np.finfo(float).tiny), np.ones(len(goal))
        for day in range(starts[mine].min(), n, every):
            active = first <= day
            if day:  # valued at yesterday's close
                a, b = risky * closes[0, day - 1], safe * closes[1, day - 1]
                under = a < goal * (a + b)
            else:
                under = np.zeros(len(goal), bool)
            begins = first == day
            under |= begins & (goal > 0) | (goal == 1)
            opened = risky * opens[0, day] + safe * opens[1, day]
            scale = np.where(begins, 1 / amount, scale * (opened / (opened + amount)))
            risky += np.where(active & under, amount / opens[0, day], 0.0)
            safe += np.where(active & ~under, amount / opens[1, day], 0.0)
            low[begins] = 1.0
            # A dollar's value at the closes until the next purchase: (days, simulations).
            unit = closes[:, day : day + every].T @ (np.stack((risky, safe)) * scale)
            highest = unit.copy()
            for height in highest:  # np.maximum.accumulate takes three times as long
                peak = np.maximum(peak, height, out=height)
            np.minimum(low, (unit / highest).min(axis=0), out=low)
        shape = (len(targets), len(mine))
        value = risky * closes[0, -1] + safe * closes[1, -1]
        out["final"][:, mine] = value.reshape(shape)
        out["growth"][:, mine] = (value * scale).reshape(shape)
        out["drawdown"][:, mine] = (1 - low).reshape(shape)
        out["invested"][:, mine] = amount * (1 + (n - 1 - starts[mine]) // every)
    return out


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
    if not isinstance(flows, pd.Series):
        flows = pd.Series([float(flows)], prices.index[:1])
    tickers = list(prices["close"].columns)
    if set(schedule.columns) != set(tickers):
        raise ValueError(
            f"weights are for {list(schedule.columns)}, prices for {tickers}"
        )
    weights = schedule[tickers].to_numpy(float)
    if not ((weights >= 0).all() and (weights.sum(axis=1) <= 1 + 1e-9).all()):
        raise ValueError("weights must not be negative and must sum to at most 1")
    strangers = schedule.index.difference(prices.index)
    if len(strangers):
        raise ValueError(
            f"a trade is planned for {strangers[0]:%Y-%m-%d}, a day without prices"
        )
    rows = dict(zip(prices.index.get_indexer(schedule.index), weights, strict=True))
    paid_in = flows.reindex(prices.index, fill_value=0.0).to_numpy()
    last = np.zeros(len(tickers))

    def rule(past, price, units, cash):
        nonlocal last
        d = len(past)
        if d in rows:
            last = rows[d]
            return toward(last, units * price, cash, cost)
        new = min(paid_in[d], cash) / (1 + cost)
        return last * new if new > 0 and last.any() else None

    return simulate(prices, rule, flows, cost, at, tax)


def toward(
    weights: np.ndarray, worth: np.ndarray, cash: float, cost: float
) -> np.ndarray:
    """Dollars to trade of each so that afterwards positions are `weights` of what is left after the costs.

    What is left, T, solves T = worth + cash − cost·Σ|weights·T − worth|; the map contracts.
    """
    before = total = worth.sum() + cash
    for _ in range(50 if cost else 0):
        total = before - cost * np.abs(weights * total - worth).sum()
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
    if frequency not in MONTHS:
        raise ValueError(
            f"frequency is {frequency!r}; it must be one of {', '.join(MONTHS)}"
        )
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
        ValueError: `month` is not 1 to 12.
    """
    if month not in range(1, 13):
        raise ValueError(f"month must be 1 to 12, got {month}")
    months = MONTHS[frequency]
    if not months:
        return days
    period = (days.year * 12 + days.month - month) // months
    return days[np.diff(period, prepend=period[0] - 1) != 0]


def monthly(
    days: pd.DatetimeIndex, amount: float, initial: float = 0.0, inflation: float = 0.0
) -> pd.Series:
    """`amount` dollars on the first trading day of each month, grown by `inflation` a year, and `initial` on the first."""
    first = first_days(days, "month")
    elapsed = np.arange(len(first)) / 12
    flows = pd.Series(amount * (1 + inflation) ** elapsed, first)
    flows.iloc[0] += initial
    return flows


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
        signal: closes of an index, with at least `window` + `lag` days before the first of `prices`.
        lag: trading days between the signal's close and the trade. 1: yesterday's close. 0 looks ahead, and is there
            to show what that does.
    Raises:
        ValueError: more than two tickers, a window or lag out of range, or a signal that starts too late or has gaps.
    """
    if window < 1 or lag < 0:
        raise ValueError(
            f"window = {window} must be positive and lag = {lag} not negative"
        )
    above = above_average(signal, window).shift(lag)
    known = signal.rolling(window).count().shift(lag).reindex(prices.index)
    if not (known == window).all():
        day = prices.index[~(known == window)][0]
        raise ValueError(
            f"the signal has no {window} closes up to {lag} days before {day:%Y-%m-%d}"
        )
    return switch(
        prices, above.reindex(prices.index).astype(bool), contributions, cost, at, tax
    )


def above_average(signal: pd.Series, window: int) -> pd.Series:
    """Whether each of `signal` stands above the mean of the last `window`, itself included; false while there are fewer."""
    return signal > signal.rolling(window).mean()


def switch(
    prices: pd.DataFrame,
    hold: pd.Series,
    contributions: pd.Series | float = 10_000.0,
    cost: float = 0.0,
    at: str = "open",
    tax: Tax | None = None,
) -> Run:
    """Hold the first ticker on days when `hold` is true, else the second (cash, if there is none)."""
    tickers = list(prices["close"].columns)
    if len(tickers) > 2:
        raise ValueError(f"at most two tickers, got {', '.join(tickers)}")
    weights = np.stack([hold, ~hold], axis=1)[:, : len(tickers)].astype(float)
    schedule = pd.DataFrame(weights, prices.index, tickers)
    turns = (hold != hold.shift()).to_numpy()
    return follow(prices, schedule[turns], contributions, cost, at, tax)


# --- Measures ----------------------------------------------------------------------------------------------------


def unit_value(
    values: pd.Series, flows: pd.Series | None = None, before: pd.Series | None = None
) -> pd.Series:
    """What one dollar that is in from the start becomes: growth with the effect of flows taken out (time-weighted).

    Args:
        values: at the close.
        flows: paid in on a day, before its close; all on the first unless given.
        before: the value just before the day's flow; the close before unless given.
    Raises:
        ValueError: nothing is in on the first day, or a value is negative or missing.
    """
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError("values must be finite and not negative")
    last = values.shift()
    if flows is None:
        flows = pd.Series([values.iloc[0]], values.index[:1])
    flows = flows.reindex(values.index, fill_value=0.0)
    before = last if before is None else before
    growth = before / last * values / (before + flows)
    growth.iloc[0] = values.iloc[0] / flows.iloc[0] if flows.iloc[0] else np.nan
    if not np.isfinite(growth).all():
        day = growth.index[~np.isfinite(growth)][0]
        raise ValueError(
            f"the account is empty on {day:%Y-%m-%d}; it has no growth there"
        )
    return growth.cumprod()


def drawdown(values: pd.Series) -> pd.Series:
    """By how much each value is below the highest before it, as a fraction: 0 at a peak, −0.5 at half of it."""
    return values / values.cummax() - 1


def money_weighted(values: pd.Series, flows: pd.Series) -> float:
    """The yearly rate at which the flows, each growing from its day on, become the last value (internal rate of return).

    Unique when all flows are payments in.

    Raises:
        ValueError: no payment in, or none before the last day.
    """
    flows = flows[flows != 0]
    years = (values.index[-1] - flows.index).days.to_numpy() / YEAR
    if not len(flows) or flows.iloc[0] <= 0 or years.max() == 0:
        raise ValueError("a rate needs money that was paid in before the last day")
    paid, last = flows.to_numpy(), values.iloc[-1]
    if last <= 0:
        return -1.0

    def excess(log_rate: float) -> float:
        return float((paid * np.exp(log_rate * years)).sum() - last)

    bound = 1.0
    while excess(-bound) > 0 or excess(bound) < 0:
        bound *= 2
        if bound > 1e3:
            raise ValueError("no yearly rate explains these flows and this value")
    return math.expm1(brentq(excess, -bound, bound, xtol=1e-12))


def metrics(
    values: pd.Series,
    flows: pd.Series | None = None,
    before: pd.Series | None = None,
    rate: float | pd.Series = 0.0,
) -> dict:
    """The usual measures of an account, of the growth of a dollar in it unless it says otherwise.

    Args:
        values, flows, before: as in `unit_value`.
        rate: yearly riskless rate that the two ratios are over.
    Returns:
        "final" (dollars), "invested" (dollars), "cagr", "money_weighted" (yearly rates), "volatility" (yearly),
        "sharpe", "sortino" (yearly; Sortino's deviation is the root mean square of the shortfalls below `rate`, over
        all days), "max_drawdown" (positive), "peak", "trough", "recovered" (days; None where not yet), "worst_year"
        (of calendar years, a broken first or last one counting as it is) and "worst_year_when".
    Raises:
        ValueError: as `unit_value`.
    """
    if flows is None:
        flows = pd.Series([values.iloc[0]], values.index[:1])
    unit = unit_value(values, flows, before)
    daily = unit / unit.shift(fill_value=1.0) - 1
    excess = daily - rate / DAYS
    shortfall = math.sqrt((np.minimum(excess, 0) ** 2).mean())
    years = (values.index[-1] - values.index[0]).days / YEAR
    fall = drawdown(unit)
    trough = fall.idxmin()
    peak = unit.loc[:trough].idxmax()
    after = unit.loc[trough:]
    back = after.index[after >= unit[peak]]
    ends = unit.groupby(unit.index.year).last()
    by_year = ends / ends.shift(fill_value=1.0) - 1
    deviation = excess.std()
    return {
        "final": float(values.iloc[-1]),
        "invested": float(flows.sum()),
        "cagr": float(unit.iloc[-1] ** (1 / years) - 1) if years else math.nan,
        "money_weighted": money_weighted(values, flows),
        "volatility": float(daily.std() * math.sqrt(DAYS)),
        "sharpe": _ratio(excess.mean(), deviation),
        "sortino": _ratio(excess.mean(), shortfall),
        "max_drawdown": float(-fall.min()),
        "peak": peak,
        "trough": trough,
        "recovered": back[0] if len(back) and fall.min() < 0 else None,
        "worst_year": float(by_year.min()),
        "worst_year_when": int(by_year.idxmin()),
    }


def _ratio(mean: float, deviation: float) -> float:
    return float(mean / deviation * math.sqrt(DAYS)) if deviation > 0 else math.nan
