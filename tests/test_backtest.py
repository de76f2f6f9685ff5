"""Backtests: the books balance, nothing looks ahead, the grid is the plan one by one, and luck is measured."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mlbook.leveraged_etfs import backtest
from mlbook.leveraged_etfs.backtest import (
    above_average,
    dca,
    dca_grid,
    first_days,
    follow,
    moving_average_switch,
    rebalance,
    simulate,
    switch,
    toward,
)
from mlbook.leveraged_etfs.luck import (
    deflated_sharpe,
    expected_max_sharpe,
    probabilistic_sharpe,
)
from mlbook.leveraged_etfs.measures import money_weighted
from mlbook.leveraged_etfs.taxes import Tax


def market(days=700, seed=0, tickers=("AAA", "BBB"), sigma=(0.03, 0.01)):
    rng = np.random.default_rng(seed)
    index = pd.bdate_range("2015-03-02", periods=days, name="date")
    n = len(tickers)
    night, day = rng.normal(0.0003, sigma[:n], (2, days, n))
    night[0] = 0
    opens = 100 * np.exp(np.cumsum(night, 0) + np.cumsum(day, 0) - day)
    closes = opens * np.exp(day)
    both = pd.concat(
        {
            "open": pd.DataFrame(opens, index, tickers),
            "close": pd.DataFrame(closes, index, tickers),
        },
        axis=1,
    )
    return both


def paid(days, amount, first=0.0):
    """A payment on the first day of each month."""
    flows = pd.Series(amount, first_days(days, "month"))
    flows.iloc[0] += first
    return flows


def imbalance(run, prices):
    """The largest amount by which on some day the value differs from what was paid in, plus gains, less costs and
    taxes; counted anew from the trades and the prices."""
    closes, t = prices["close"].loc[run.values.index], run.trades
    signed = t.pivot_table("units", "day", "ticker", aggfunc="sum", observed=True)
    held = signed.reindex(index=closes.index, columns=closes.columns)
    held = held.fillna(0.0).cumsum()
    gains = (held.shift().fillna(0.0) * closes.diff().fillna(0.0)).sum(axis=1)
    pairs = pd.MultiIndex.from_frame(t[["day", "ticker"]])
    within = t.units * (closes.stack().reindex(pairs).to_numpy() - t.price)
    gains = gains.add(within.groupby(t.day).sum(), fill_value=0.0)
    costs = t.cost.groupby(t.day).sum().reindex(closes.index, fill_value=0.0)
    expected = (run.flows + gains - costs - run.taxes).cumsum()
    return float((run.values - expected).abs().max())


def runs(prices, seed):
    """Every strategy of the module, with costs and taxes, at random settings."""
    rng = np.random.default_rng(seed)
    cost, at = rng.choice([0.0, 0.001, 0.05]), rng.choice(["open", "close"])
    w = rng.dirichlet([1, 1]) * rng.choice([1.0, 0.7])
    weights = dict(zip(prices["close"].columns, w, strict=True))
    monthly = paid(prices.index, 500.0, 10_000.0)
    signal = prices["close"].iloc[:, 0]
    tax = rng.choice([None, Tax(0.4, 0.2, "fifo"), Tax(0.4, 0.2, "best")])
    frequency = rng.choice(["month", "quarter", "half-year", "year", "never"])
    every, month = int(rng.integers(1, 30)), int(rng.integers(1, 13))
    yield dca(prices, rng.random(), every, 3000.0, 0, cost, at, tax), prices
    yield rebalance(prices, weights, frequency, monthly, cost, at, tax, month), prices
    tail = prices.iloc[60:]
    flows = pd.Series(10_000.0, tail.index[:1])
    yield moving_average_switch(tail, signal, 50, 1, flows, cost, at, tax), tail
    yield switch(prices, signal > 100, 5000.0, cost, at, tax), prices


@pytest.mark.parametrize("seed", range(12))
def test_the_books_balance_to_the_cent(seed):
    prices = market(seed=seed)
    for run, table in runs(prices, seed):
        assert imbalance(run, table) < 0.005
        assert (run.cash > -0.005).all() and (run.units.to_numpy() >= 0).all()
        assert (run.trades.cost >= 0).all()
        assert run.trades.day.isin(table.index).all()


def test_an_entry_that_is_wrong_is_found_by_the_books():
    prices = market()
    run = dca(prices, 0.5)
    for name, factor in (("price", 1.001), ("units", 1.001), ("units", 0.999)):
        broken = run.trades.copy()
        broken.loc[7, name] *= factor
        assert imbalance(replace(run, trades=broken), prices) > 0.1
    for change in (10.0, -10.0):
        values = run.values.copy()
        values.iloc[5] += change
        assert imbalance(replace(run, values=values), prices) == pytest.approx(10.0)
    late = run.flows.shift(1, fill_value=0.0)
    assert imbalance(replace(run, flows=late), prices) > 1000


@pytest.mark.parametrize("seed", range(6))
def test_what_comes_later_changes_nothing_before(seed):
    """No strategy sees a price of a later moment: change all after some day, and the trades up to it stay."""
    prices = market(seed=seed)
    cut = 400
    changed = prices.copy()
    changed.iloc[cut + 1 :] *= np.random.default_rng(9).uniform(0.5, 2, (299, 4))
    day = prices.index[cut]
    for moment in ("close", "open"):
        if moment == "open":  # that day's closes come after its opens
            changed.iloc[cut, 2:] *= 1.7
        pairs = zip(_at(moment, prices), _at(moment, changed), strict=True)
        for (a, _), (b, _) in pairs:
            before = [run.trades[run.trades.day <= day] for run in (a, b)]
            pd.testing.assert_frame_equal(*before)
            assert len(before[0]) > 1


def _at(moment, prices):
    tail = prices.iloc[60:]
    signal = prices["close"].iloc[:, 0]
    half = {"AAA": 0.5, "BBB": 0.5}
    yield dca(prices, 0.4, 7, at=moment), prices
    yield rebalance(prices, half, "month", cost=0.01, at=moment), prices
    yield moving_average_switch(tail, signal, 50, at=moment, tax=Tax()), tail


def test_a_lag_of_zero_does_look_ahead():
    prices = market()
    signal, tail = prices["close"]["AAA"], prices.iloc[60:]
    changed = signal.copy()
    changed.iloc[400] *= 3 if signal.iloc[400] < signal.iloc[351:401].mean() else 0.3
    for lag, same in ((0, False), (1, True)):
        a, b = (
            moving_average_switch(tail, s, 50, lag).trades for s in (signal, changed)
        )
        day = prices.index[400]
        assert a[a.day <= day].equals(b[b.day <= day]) == same


def test_a_rule_cannot_write_into_the_past():
    prices = market(20)

    def rule(past, price, units, cash):
        if len(past):
            past[0] = 1.0

    with pytest.raises(ValueError, match="read-only"):
        simulate(prices, rule, pd.Series(1.0, prices.index[:1]))


# --- The strategies ------------------------------------------------------------------------------


def test_dca_by_hand():
    prices = market(5)
    o, c = prices["open"].to_numpy(), prices["close"].to_numpy()
    run = dca(prices, 0.5, every=2, amount=100.0)
    first = 100 / o[0, 0]  # nothing is held: the first fund is under its target
    second = 100 / o[2, 1]  # the first has everything
    worth = first * c[3, 0], second * c[3, 1]  # at the close before day 4
    third = int(worth[0] / sum(worth) >= 0.5)
    units = [first, second]
    units[third] += 100 / o[4, third]
    assert run.trades.ticker.tolist() == ["AAA", "BBB", ("AAA", "BBB")[third]]
    assert run.values.iloc[-1] == pytest.approx(units @ c[4], rel=1e-14)
    assert run.flows.tolist() == [100, 0, 100, 0, 100]


@pytest.mark.parametrize("seed", range(8))
def test_the_grid_is_the_same_as_one_by_one(seed):
    rng = np.random.default_rng(seed)
    prices = market(300, seed, sigma=((0.03, 0.01), (0.1, 0.02))[seed % 2])
    every, amount = (1, 10, 33, *rng.integers(2, 60, 5))[seed], rng.uniform(1, 5000)
    targets = [0.0, 1.0, *rng.random(3)]
    starts = [0, 299, *rng.integers(0, 300, 4).tolist()]
    grid = dca_grid(prices, targets, starts, int(every), amount)
    for i, target in enumerate(targets):
        for j, start in enumerate(starts):
            run = dca(prices, target, int(every), amount, start)
            measured = run.metrics()
            expected = {
                "invested": run.flows.sum(),
                "final": run.values.iloc[-1],
                "growth": run.unit.iloc[-1],
                "drawdown": measured["max_drawdown"],
            }
            for name, value in expected.items():
                assert grid[name][i, j] == pytest.approx(value, rel=1e-11, abs=1e-13)


def test_a_loss_on_the_first_day_is_in_the_drawdown():
    days = pd.bdate_range("2020-01-01", periods=4, name="date")
    prices = pd.concat(
        {
            "open": pd.DataFrame({"AAA": [100.0, 50, 55, 60]}, days),
            "close": pd.DataFrame({"AAA": [50.0, 55, 60, 90]}, days),
        },
        axis=1,
    )
    run = rebalance(prices, {"AAA": 1.0}, contributions=100.0)
    assert run.unit.iloc[0] == 0.5 and run.metrics()["max_drawdown"] == 0.5
    two = pd.concat([prices, prices.rename(columns={"AAA": "BBB"})], axis=1)
    assert dca(two, 1.0, 10).metrics()["max_drawdown"] == 0.5
    assert dca_grid(two, [1.0], [0], 10)["drawdown"] == 0.5


def test_daily_rebalancing_compounds_the_weighted_returns():
    prices = market()
    run = rebalance(prices, {"AAA": 0.3, "BBB": 0.7}, "day", 1000.0, at="close")
    r = prices["close"].pct_change().fillna(0.0) @ [0.3, 0.7]
    np.testing.assert_allclose(run.values, 1000 * (1 + r).cumprod(), rtol=1e-12)


def test_periods_begin_where_they_should():
    days = pd.bdate_range("2020-11-16", "2022-02-10")
    firsts = {
        f: [f"{d:%y-%m-%d}" for d in first_days(days, f)] for f in backtest.MONTHS
    }
    assert firsts["year"] == ["20-11-16", "21-01-01", "22-01-03"]
    assert firsts["half-year"] == ["20-11-16", "21-01-01", "21-07-01", "22-01-03"]
    assert firsts["quarter"][:3] == ["20-11-16", "21-01-01", "21-04-01"]
    assert len(firsts["month"]) == 16 and firsts["never"] == ["20-11-16"]
    assert len(firsts["day"]) == len(days)
    april = [f"{d:%y-%m-%d}" for d in first_days(days, "year", 4)]
    assert april == ["20-11-16", "21-04-01"]
    august = [f"{d:%y-%m-%d}" for d in first_days(days, "half-year", 8)]
    assert august == ["20-11-16", "21-02-01", "21-08-02", "22-02-01"]
    assert list(first_days(days, "half-year", 2)) == list(
        first_days(days, "half-year", 8)
    )
    assert len(first_days(days, "never", 12)) == 1


def test_contributions_are_invested_between_rebalancings_without_selling():
    prices = market()
    flows = paid(prices.index, 500.0, 10_000.0)
    run = rebalance(prices, {"AAA": 0.6, "BBB": 0.3}, "year", flows)
    sold = run.trades[run.trades.units < 0].day
    assert set(sold) <= set(first_days(prices.index, "year"))
    day = run.trades.day[run.trades.day > prices.index[30]].iloc[0]
    rows = run.trades[run.trades.day == day].set_index("ticker")
    spent = rows.units * rows.price
    assert spent["AAA"] / spent["BBB"] == pytest.approx(2.0)
    # a tenth stays in cash
    assert run.cash[day] == pytest.approx(run.cash.shift()[day] + 50, rel=1e-9)


def test_withdrawals_are_paid_by_selling_in_proportion():
    prices = market()
    flows = paid(prices.index, -100.0, 50_000.0)
    run = rebalance(prices, {"AAA": 0.5, "BBB": 0.5}, "never", flows, cost=0.01)
    assert imbalance(run, prices) < 0.005 and run.cash.abs().max() < 1e-6
    sold = run.trades[run.trades.day == run.trades.day.iloc[-1]]
    held = run.units.shift().loc[sold.day.iloc[0]]
    assert len(sold) == 2 and (-sold.units.to_numpy() / held.to_numpy()).std() < 1e-12
    with pytest.raises(ValueError, match="more is to be paid out than there is"):
        rebalance(prices, {"AAA": 1.0}, contributions=paid(prices.index, -500.0, 900.0))


def test_switching_is_in_only_on_days_that_say_so():
    prices = market()
    hold = pd.Series(np.arange(700) % 50 < 30, prices.index)
    run = switch(prices, hold, 1000.0, at="close")
    r = prices["close"].pct_change().shift(-1)
    expected = 1000 * (1 + r["AAA"].where(hold, r["BBB"])).cumprod().shift().fillna(1.0)
    np.testing.assert_allclose(run.values, expected, rtol=1e-12)
    assert run.metrics()["final"] == run.values.iloc[-1]


def test_costs_are_solved_for():
    worth, weights = np.array([800.0, 100.0]), np.array([0.2, 0.7])
    dollars = toward(weights, worth, 50.0, 0.01)
    left = worth.sum() + 50 - 0.01 * np.abs(dollars).sum()
    np.testing.assert_allclose(worth + dollars, weights * left, rtol=1e-12)


def test_borders_of_strategies():
    prices = market(30)
    flow = pd.Series(1.0, prices.index[:1])
    signal = prices["close"]["AAA"]
    row = pd.DataFrame([[0.5, 0.5]], prices.index[:1], ["AAA", "BBB"])
    sunday = pd.Series(1.0, pd.DatetimeIndex(["2015-03-08"]))
    hold = signal > 0
    three = market(30, tickers=("AAA", "BBB", "CCC"), sigma=(0.01, 0.01, 0.01))
    for call, message in (
        (lambda: dca(three, 0.5), "two funds are needed"),
        (lambda: dca(prices, 1.5), r"between 0 and 1, got \[1.5\]"),
        (lambda: dca(prices, math.nan), r"between 0 and 1, got \[nan\]"),
        (lambda: dca(prices, 0.5, every=0), "every must be .* got 0"),
        (lambda: dca(prices, 0.5, amount=-1), "positive dollars, got -1"),
        (lambda: dca(prices, 0.5, cost=1.0), "cost is a fraction"),
        (lambda: dca(prices, 0.5, at="noon"), "'noon'"),
        (lambda: dca_grid(prices, [0.5], [30]), "start must be one of 30 days, got 30"),
        (lambda: dca_grid(prices, [1.1], [0]), "between 0 and 1"),
        (lambda: rebalance(prices, {"AAA": 1.0}, "week"), "'week'"),
        (lambda: rebalance(prices, {"AAA": 1.0}, month=0), "month must be .* got 0"),
        (lambda: rebalance(prices, {"CCC": 1.0}), "no prices of CCC"),
        (lambda: rebalance(prices, {"AAA": 0.8, "BBB": 0.3}), "sum to at most 1"),
        (lambda: rebalance(prices, {"AAA": -0.1}), "must not be negative"),
        (lambda: rebalance(prices, {"AAA": 1.0}, contributions=sunday), "2015-03-08"),
        (lambda: follow(prices, row[["AAA"]], flow), r"weights are for \['AAA'\]"),
        (
            lambda: follow(prices, row.set_axis(sunday.index), flow),
            "a weight has 2015-03-08, a day without prices",
        ),
        (
            lambda: moving_average_switch(prices, signal, 10),
            "no 10 closes up to 1 days",
        ),
        (lambda: moving_average_switch(prices, signal, 0), "window must be .* got 0"),
        (lambda: moving_average_switch(prices, signal, 5, -1), "lag must be .* got -1"),
        (lambda: switch(three, hold), "at most two tickers"),
        (lambda: simulate(prices, lambda p, x, u, c: [c, c], flow), "spends 1.00 more"),
        (
            lambda: simulate(prices, lambda p, x, u, c: [-5, 0], flow),
            "sells more than is held",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def unfit(prices):
    """Tables that are no prices, and what is said of them."""
    day = f"{prices.index[20]:%Y-%m-%d}"
    yield prices.iloc[::-1], "prices: the days are not in order"
    yield prices.iloc[[0, 1, 1, 2]], "prices: a day stands twice"
    yield prices.tz_localize("UTC"), "dates without a zone"
    yield prices.reset_index(drop=True), "dates without a zone"
    yield prices.set_axis(prices.index + pd.Timedelta(hours=9)), "a time of day"
    yield prices.iloc[:0], "there are no days"
    yield prices.drop(columns=("open", "BBB")), "an open and a close of each"
    yield prices["close"], "prices need columns like"
    yield prices[["close"]], "prices need columns like"
    yield prices["close"]["AAA"], "prices need columns like"
    yield pd.concat([prices, prices], axis=1), "each once"
    yield pd.concat([prices, prices[[("open", "AAA")]]], axis=1), "each once"
    yield pd.concat({"x": prices}, axis=1), "prices need columns like"
    yield prices.swaplevel(axis=1), "prices need columns like"
    for price in prices.columns:
        for bad in (np.nan, 0.0, -1.0, np.inf):
            broken = prices.copy()
            broken.loc[day, price] = bad
            yield broken, f"positive numbers; on {day}"


def test_what_is_no_price_is_refused_by_every_strategy():
    prices = market(60)
    signal = market(100)["close"]["AAA"]
    hold = pd.Series(True, prices.index)
    row = pd.DataFrame([[0.5, 0.5]], prices.index[:1], ["AAA", "BBB"])
    for broken, message in unfit(prices):
        for call in (
            lambda p: simulate(p, lambda *_: None, paid(prices.index, 1.0)),
            lambda p: dca(p, 0.5),
            lambda p: dca_grid(p, [0.5], [0]),
            lambda p: follow(p, row, 1.0),
            lambda p: rebalance(p, {"AAA": 0.5}),
            lambda p: switch(p, hold),
            lambda p: moving_average_switch(p, signal, 1, 0),
        ):
            with pytest.raises(ValueError, match=message):
                call(broken)


def test_a_table_without_opens_or_of_one_field_is_refused():
    prices = market(60)
    hold = pd.Series(True, prices.index)
    for broken in (prices["close"], prices[["close"]]):
        for call in (
            lambda p: dca(p, 0.5),
            lambda p: dca_grid(p, [0.5], [0]),
            lambda p: rebalance(p, {"AAA": 0.5}),
            lambda p: switch(p, hold),
        ):
            with pytest.raises(ValueError, match="prices need"):
                call(broken)


def test_prices_are_judged_before_what_goes_with_them():
    prices = market(60)
    signal = prices["close"]["AAA"]
    for call in (
        lambda p: rebalance(p, {"CCC": 0.5}, "week"),
        lambda p: switch(p, signal),
        lambda p: moving_average_switch(p, signal, 0, -1),
    ):
        with pytest.raises(ValueError) as other:
            call(prices)
        assert "prices must" not in str(other.value)
        with pytest.raises(ValueError, match="prices must be positive"):
            call(prices * np.r_[np.ones(59), np.nan][:, None])


def test_a_table_may_have_more_than_opens_and_closes():
    prices = market(60)
    volume = pd.concat({"volume": prices["close"]}, axis=1)
    run = rebalance(pd.concat([volume, prices], axis=1), {"AAA": 0.5})
    pd.testing.assert_series_equal(run.values, rebalance(prices, {"AAA": 0.5}).values)


def test_the_unit_begins_with_the_first_payment():
    prices = market(100)
    flows = pd.Series([100.0, 50.0, -20.0], prices.index[[30, 40, 70]])
    whole = rebalance(prices, {"AAA": 0.6, "BBB": 0.4}, "never", flows)
    late = rebalance(prices.iloc[30:], {"AAA": 0.6, "BBB": 0.4}, "never", flows)
    assert (whole.values.iloc[:30] == 0).all() and len(whole.unit) == 70
    pd.testing.assert_series_equal(whole.unit, late.unit, check_freq=False)
    rate = pd.Series(0.03, prices.index)
    assert whole.metrics(rate) == late.metrics(rate)
    assert whole.earned() == late.earned()
    assert whole.unit.iloc[0] != 1, "its first day counts"
    first = rebalance(prices, {"AAA": 1.0}, contributions=100.0)
    assert len(first.unit) == 100


def test_who_never_pays_has_no_unit():
    prices = market(10)
    run = simulate(prices, lambda *_: None, pd.Series(0.0, prices.index))
    with pytest.raises(ValueError, match="nothing is paid in on the first day"):
        run.unit  # noqa: B018


def test_flows_that_are_no_flows_are_refused():
    prices = market(60)
    first = prices.index[:1]
    for flows, message in (
        (pd.Series([np.nan], first), "a flow on 2015-03-02 is nan"),
        (np.nan, "a flow on 2015-03-02 is nan"),
        (pd.Series([1.0, np.inf], prices.index[:2]), "a flow on 2015-03-03 is inf"),
        (pd.Series(1.0, first.append(first)), "a flow: a day stands twice"),
        (pd.Series(1.0, prices.index[1::-1]), "a flow: the days are not in order"),
        (pd.Series(1.0, first.tz_localize("UTC")), "a flow must be .* without a zone"),
        (pd.Series(1.0, pd.DatetimeIndex(["2015-03-08"])), "2015-03-08, a day without"),
    ):
        with pytest.raises(ValueError, match=message):
            rebalance(prices, {"AAA": 1.0}, contributions=flows)
        if isinstance(flows, pd.Series):
            with pytest.raises(ValueError, match=message):
                simulate(prices, lambda *_: None, flows)


def test_schedules_that_are_none_are_refused():
    prices = market(60)
    rows = pd.DataFrame(0.5, prices.index[:2], ["AAA", "BBB"])
    for schedule, message in (
        (rows.iloc[::-1], "a weight: the days are not in order"),
        (rows.iloc[[0, 0]], "a weight: a day stands twice"),
        (rows.assign(AAA=[0.5, np.nan]), "a weight on 2015-03-03 is nan"),
        (rows.set_axis(rows.index + pd.Timedelta(days=5)), "a day without prices"),
        (rows.iloc[:0], "there are no days"),
    ):
        with pytest.raises(ValueError, match=message):
            follow(prices, schedule, 1.0)


def test_a_switch_goes_by_date():
    prices = market(60)
    hold = pd.Series(np.arange(60) % 7 < 3, prices.index)
    for wrong, message in (
        (hold.iloc[::-1], "hold: the days are not in order"),
        (hold.sample(frac=1, random_state=0), "hold: the days are not in order"),
        (hold.shift(1, freq="D"), "a day without prices"),
        (hold.iloc[1:], "hold lacks 2015-03-02"),
        (hold.iloc[:-1], "hold lacks 2015-05-22"),
        (hold.iloc[[0, *range(60)]], "hold: a day stands twice"),
        (hold.reset_index(drop=True), "indexed by dates"),
        (hold.astype(float), "must be True or False"),
        (hold.astype(object).where(hold, None), "must be True or False"),
    ):
        with pytest.raises(ValueError, match=message):
            switch(prices, wrong)


def test_a_signal_goes_by_date():
    prices = market(100)
    signal, tail = prices["close"]["AAA"], prices.iloc[30:]
    calendar = signal.asfreq("D").ffill()
    zero, gap = signal.copy(), signal.copy()
    zero.iloc[50], gap.iloc[50] = 0.0, np.nan
    for wrong, message in (
        (signal.iloc[::-1], "the signal: the days are not in order"),
        (calendar, "a day without prices"),
        (zero, "the signal on 2015-05-11 is 0.0"),
        (gap, "the signal on 2015-05-11 is nan"),
        (-signal, "the signal on 2015-03-02 is -"),
        (signal.iloc[[0, *range(100)]], "the signal: a day stands twice"),
        (signal.drop(signal.index[60]), "the signal lacks 2015-05-25"),
        (signal.iloc[:-1], "the signal lacks"),
        (signal.tz_localize("UTC"), "without a zone"),
    ):
        with pytest.raises(ValueError, match=message):
            moving_average_switch(tail, wrong, 20)
    longer = market(150)["close"]["AAA"]
    pd.testing.assert_series_equal(
        moving_average_switch(tail, longer, 20).values,
        moving_average_switch(tail, longer.iloc[:100], 20).values,
    )


def test_the_average_knows_from_its_first_whole_window_on():
    signal = pd.Series([1.0, 2, 3, 1, 5], pd.bdate_range("2020-01-01", periods=5))
    for lag in (0, 1, 2):
        above = above_average(signal, 2, lag)
        assert above.index[0] == signal.index[1 + lag]
        assert above.tolist() == [True, True, False, True][: 4 - lag]
    with pytest.raises(ValueError, match="the signal has 5 days, 6 are needed"):
        above_average(signal, 5, 1)


def test_what_is_earned_is_after_all_taxes():
    prices = market(tickers=("AAA",)) * np.exp(np.arange(700) * 0.002)[:, None]
    flows = paid(prices.index, 100.0)
    free = rebalance(prices, {"AAA": 1.0}, "never", flows)
    assert free.left == free.values.iloc[-1]
    assert free.earned() == money_weighted(free.values, free.flows)
    run = rebalance(prices, {"AAA": 1.0}, "never", flows, tax=Tax(0.4, 0.2))
    assert run.latent > 0 and run.left == run.values.iloc[-1] - run.owed - run.latent
    rate, years = (
        run.earned(),
        (prices.index[-1] - flows.index).days.to_numpy() / 365.25,
    )
    assert (100 * (1 + rate) ** years).sum() == pytest.approx(run.left)
    assert run.earned() < free.earned()
    assert run.metrics()["final"] == run.values.iloc[-1]
    assert run.metrics()["invested"] == flows.sum()
    assert run.metrics()["cagr"] == free.metrics()["cagr"], (
        "a unit knows no tax to come"
    )


# --- Chance --------------------------------------------------------------------------------------


def test_the_best_of_many_that_are_worth_nothing():
    rng = np.random.default_rng(0)
    for trials in (10, 100, 1000):
        best = rng.normal(0, 0.3, (4000, trials)).max(axis=1)
        expected = expected_max_sharpe(trials, 0.3)
        # the formula is the limit of extreme value theory; the paper's figure 1 has 2 % at 10
        assert expected == pytest.approx(best.mean(), rel=0.03)
    with pytest.raises(ValueError, match="at least 2"):
        expected_max_sharpe(1, 0.3)


def test_probabilistic_sharpe_is_calibrated():
    """Of many histories without skill, five in a hundred should look 95 % sure."""
    rng = np.random.default_rng(0)
    sure = np.mean(
        [probabilistic_sharpe(rng.standard_t(6, 750)) > 0.95 for _ in range(3000)]
    )
    assert sure == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / 3000) ** 0.5)


def test_deflating_agrees_with_ffn():
    ffn = pytest.importorskip("ffn.core")
    if not hasattr(ffn, "calc_deflated_sharpe_ratio"):
        pytest.skip("this ffn has no deflated Sharpe ratio")
    rng = np.random.default_rng(3)
    days = pd.bdate_range("2015-01-01", periods=1500)
    r = pd.Series(rng.normal(0.0007, 0.01, 1500), days)
    trials = rng.normal(0.02, 0.02, 40)
    theirs = ffn.calc_deflated_sharpe_ratio(
        r, trials * 252**0.5, nperiods=252, annualized_trials=True
    )
    assert deflated_sharpe(r.to_numpy(), trials) == pytest.approx(theirs, abs=2e-3)
    assert deflated_sharpe(r.to_numpy(), trials) < probabilistic_sharpe(r.to_numpy())


# --- Details that a reader of the code relies on ---------------------------------------------------


def test_defaults_are_those_of_the_chapter():
    import inspect

    def default(function, name):
        return inspect.signature(function).parameters[name].default

    assert [default(dca, k) for k in ("every", "amount", "at")] == [10, 3000.0, "open"]
    assert [default(dca_grid, k) for k in ("every", "amount")] == [10, 3000.0]
    assert default(rebalance, "frequency") == "year"
    assert [default(moving_average_switch, k) for k in ("window", "lag")] == [200, 1]
    assert (Tax().short, Tax().long, Tax().lots) == (0.35, 0.15, "fifo")


def test_orders_of_a_rule():
    prices = market(10, tickers=("AAA",))
    flow = pd.Series(100.0, prices.index[:1])

    def grasping(past, price, units, cash):
        units[:] = 1e9  # its own copy
        return [cash] if cash else None

    assert simulate(prices, grasping, flow).units["AAA"].iloc[-1] < 1e3
    for order, message in (
        (lambda worth: -worth - 0.5, "sells more than is held"),
        (lambda worth: 0.1, "spends 0.10 more"),
    ):

        def rule(past, price, units, cash, order=order):
            return [cash] if not len(past) else [order((units * price)[0])]

        with pytest.raises(ValueError, match=message):
            simulate(prices, rule, flow)

    def out(past, price, units, cash):
        return [cash] if not len(past) else -units * price * (1 + 1e-14)

    assert (simulate(prices, out, flow).units["AAA"].iloc[1:] == 0).all()
    with pytest.raises(ValueError, match="cost is a fraction"):
        dca(market(), 0.5, cost=-0.1)


def test_all_cash_is_spent_costs_included():
    prices = market()
    for run in (
        dca(prices, 0.5, cost=0.05),
        rebalance(prices, {"AAA": 1.0}, "never", paid(prices.index, 100.0), 0.05),
    ):
        assert run.cash.abs().max() < 1e-9


def test_a_late_start_is_a_shorter_table():
    prices = market()
    late, short = dca(prices, 0.5, start=7), dca(prices.iloc[7:], 0.5)
    assert late.values.iloc[-1] == pytest.approx(short.values.iloc[-1], rel=1e-14)


def test_a_target_of_one_always_buys_the_first():
    run = dca(market(), 1.0)
    assert set(run.trades.ticker) == {"AAA"} and len(run.trades) == 70


def test_orders_by_name_are_of_what_can_be_held():
    prices, start = market(30), pd.Series(100.0, market(30).index[:1])
    by_name = lambda **orders: lambda *_: pd.Series(orders)  # noqa: E731
    for orders in (
        dict(AAA=1.0),
        dict(AAA=1.0, BBB=1.0, CCC=1.0),
        dict(AAA=1.0, CCC=1.0),
    ):
        with pytest.raises(ValueError, match="a rule orders dollars of"):
            simulate(prices, by_name(**orders), start)
    once = simulate(prices, by_name(BBB=1.0, AAA=2.0), start)
    assert once.trades[:2][["ticker", "units"]].to_numpy()[:, 0].tolist() == [
        "AAA",
        "BBB",
    ]
    assert (once.trades.units * once.trades.price)[:2].tolist() == pytest.approx([2, 1])


def test_trials_must_be_known():
    r = np.random.default_rng(0).normal(size=100)
    with pytest.raises(ValueError, match="trials must be finite"):
        deflated_sharpe(r, [0.1, np.nan])


def test_weights_after_costs_are_what_is_wanted():
    rng = np.random.default_rng(0)
    for cost in (0, 5e-4, 0.01, 0.1, 0.49):
        worth, cash = rng.uniform(0, 1e6, 2), rng.uniform(0, 1e5)
        for weights in (np.array([0.6, 0.4]), np.array([0.0, 0.1]), np.zeros(2)):
            dollars = toward(weights, worth, cash, cost)
            left = worth.sum() + cash - cost * np.abs(dollars).sum()
            np.testing.assert_allclose(
                worth + dollars, weights * left, rtol=1e-12, atol=1e-8
            )


def test_more_borders():
    prices = market(30)
    for call, message in (
        (lambda: dca(prices, -0.5), r"between 0 and 1, got \[-0.5\]"),
        (lambda: dca(prices, 0.5, amount=0.0), "positive dollars, got 0.0"),
        (lambda: dca(prices, 0.5, start=-5), "at least 0, got -5"),
        (lambda: dca(prices, 0.5, start=10_000), "one of 30 days, got 10000"),
        (lambda: dca(prices, 0.5, start=30), "one of 30 days, got 30"),
        (lambda: dca(prices, 0.5, start=1.0), "whole number"),
        (lambda: dca(prices, 0.5, amount=math.inf), "positive dollars, got inf"),
        (lambda: rebalance(prices, {"AAA": 1.0}, month=13), "1 to 12, got 13"),
        (
            lambda: dca_grid(prices, [0.5], [-1]),
            "start must be a whole number, at least 0, got -1",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    over = {"AAA": 0.1 + 0.2, "BBB": 0.7 + 2e-16}  # one, and a rounding
    assert sum(over.values()) > 1 and rebalance(prices, over).cash.iloc[-1] < 1e-6
    tenths = {f"T{i}": 0.1 for i in range(10)}  # whose sum is not quite one
    many = market(30, tickers=tuple(tenths), sigma=(0.01,) * 10)
    assert rebalance(many, tenths).cash.abs().max() < 1e-6


def test_weights_go_by_name_and_none_means_cash():
    prices = market()
    a = rebalance(prices, {"AAA": 0.3, "BBB": 0.7})
    b = rebalance(prices, {"BBB": 0.7, "AAA": 0.3})
    pd.testing.assert_series_equal(a.values, b.values)
    rows = pd.DataFrame([[0.7, 0.3]], prices.index[:1], ["BBB", "AAA"])
    c = follow(prices, rows, 10_000.0)
    assert c.values.iloc[200] == pytest.approx(a.values.iloc[200])
    nothing = rebalance(prices, {"AAA": 0.0}, contributions=paid(prices.index, 5.0))
    assert nothing.values.iloc[-1] == nothing.flows.sum() and nothing.trades.empty


def test_costs_are_solved_to_the_last_digit():
    worth, weights = np.array([800.0, 100.0]), np.array([0.1, 0.9])
    dollars = toward(weights, worth, 50.0, 0.2)
    left = 950 - 0.2 * np.abs(dollars).sum()
    np.testing.assert_allclose(worth + dollars, weights * left, rtol=1e-12)


def test_the_average_by_hand():
    prices = market(tickers=("AAA",))
    signal = prices["close"]["AAA"]
    tail = prices.iloc[21:]
    run = moving_average_switch(tail, signal, 20, 1, 1000.0)
    for d in range(21, 700, 7):
        known = signal.iloc[d - 20 : d]
        assert (run.units["AAA"].iloc[d - 21] > 0) == (known.iloc[-1] > known.mean())
    turns = (np.diff(np.sign(run.units["AAA"])) != 0).sum() + (
        run.units["AAA"].iloc[0] > 0
    )
    assert len(run.trades) == turns
    flat = moving_average_switch(tail, signal * 0 + 5, 20)
    assert flat.trades.empty  # equal is not above
    assert len(moving_average_switch(prices.iloc[20:], signal, 20).values) == 680
    with pytest.raises(ValueError, match="no 20 closes up to 1 days before 2015-03-27"):
        moving_average_switch(prices.iloc[19:], signal, 20)


def test_probabilistic_sharpe_knows_skew_and_tails():
    """With a true ratio of a half and a long left tail, estimates scatter far more than normal ones do."""
    rng = np.random.default_rng(1)
    p = [
        probabilistic_sharpe(1.5 - rng.exponential(size=800), 0.5) for _ in range(3000)
    ]
    assert np.mean(np.array(p) > 0.95) == pytest.approx(0.05, abs=0.016)
    r = rng.normal(0.3, 1, 5)
    z, s = (r - r.mean()) / r.std(), r.mean() / r.std(ddof=1)
    scatter = 1 - (z**3).mean() * s + ((z**4).mean() - 1) / 4 * s**2
    expected = 0.5 * (1 + math.erf(s * math.sqrt(4 / scatter) / 2**0.5))
    assert probabilistic_sharpe(r) == pytest.approx(expected, rel=1e-12)


def test_the_expected_best_of_ten():
    from scipy.stats import norm

    g = 0.5772156649
    best = (1 - g) * norm.ppf(0.9) + g * norm.ppf(1 - 0.1 / math.e)
    assert expected_max_sharpe(10, 1.0) == pytest.approx(best, rel=1e-9)
    r = np.random.default_rng(0).normal(0.05, 1, 300)
    spread = np.std([0.1, -0.1, 0.03], ddof=1)
    hurdle = expected_max_sharpe(3, spread)
    assert deflated_sharpe(r, [0.1, -0.1, 0.03]) == probabilistic_sharpe(r, hurdle)


def test_selling_a_little_more_than_all_sells_all():
    prices = market(2)

    def rule(past, price, units, cash):
        return -units * price - 0.005 if len(past) else [cash, 0.0]

    run = simulate(prices, rule, pd.Series(100.0, prices.index[:1]))
    assert run.trades.units.sum() == 0 and imbalance(run, prices) < 1e-9


def test_a_withdrawal_may_miss_by_half_a_cent():
    index = pd.bdate_range("2020-01-01", periods=2, name="date")
    columns = pd.MultiIndex.from_product([["open", "close"], ["AAA"]])
    flat = pd.DataFrame(50.0, index, columns)
    run = rebalance(flat, {"AAA": 1.0}, "never", pd.Series([100.0, -100.005], index))
    assert run.units["AAA"].iloc[-1] == 0 and run.values.iloc[-1] == 0


def test_what_an_order_misses_is_owed():
    """A rule that overspends by less than a cent a day buys nothing with it in the end."""
    prices = market(400, tickers=("AAA",))
    flows = pd.Series(1.0, prices.index[:1])
    greedy = lambda past, price, units, cash: np.array([cash + 0.0009])  # noqa: E731
    with pytest.raises(ValueError, match="more than there is"):
        simulate(prices, greedy, flows)


def test_orders_have_one_number_a_ticker_and_go_by_name():
    prices = market(50)
    flows = pd.Series(1000.0, prices.index[:1])
    by_name = lambda past, price, units, cash: pd.Series({"BBB": cash, "AAA": 0.0})  # noqa: E731
    run = simulate(prices, by_name, flows)
    assert run.units["BBB"].iloc[-1] > 0 and not run.units["AAA"].any()
    for orders in (5.0, [5.0], [1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match="a rule orders dollars of"):
            simulate(prices, lambda *_, orders=orders: orders, flows)


def test_a_cost_of_half_of_what_is_traded_is_no_cost():
    with pytest.raises(ValueError, match="cost is a fraction"):
        rebalance(market(30), {"AAA": 1.0}, cost=0.5)
    run = rebalance(market(30), {"AAA": 0.5, "BBB": 0.5}, cost=0.45, at="close")
    assert run.values.iloc[0] == pytest.approx(10_000 / 1.45)


def test_a_sharpe_ratio_needs_returns_that_move():
    for returns in (np.full(10, 1e-3 / 3), [0.1] * 7):
        with pytest.raises(ValueError, match="not all the same"):
            probabilistic_sharpe(returns)
