"""Backtests: the books balance, nothing looks ahead, and measures agree with closed forms and with other libraries."""

import math

import numpy as np
import pandas as pd
import pytest

from mlbook.leveraged_etfs import backtest
from mlbook.leveraged_etfs.backtest import (
    dca,
    dca_grid,
    drawdown,
    first_days,
    follow,
    metrics,
    money_weighted,
    monthly,
    moving_average_switch,
    rebalance,
    simulate,
    switch,
    toward,
    unit_value,
)
from mlbook.leveraged_etfs.leverage import log_growth, simulate_leveraged
from mlbook.leveraged_etfs.luck import (
    deflated_sharpe,
    expected_max_sharpe,
    grow,
    probabilistic_sharpe,
    stationary_bootstrap,
)
from mlbook.leveraged_etfs.taxes import Lots, Tax, after_tax


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


def runs(prices, seed):
    """Every strategy of the module, with costs and taxes, at random settings."""
    rng = np.random.default_rng(seed)
    cost, at = rng.choice([0.0, 0.001, 0.05]), rng.choice(["open", "close"])
    w = rng.dirichlet([1, 1]) * rng.choice([1.0, 0.7])
    weights = dict(zip(prices["close"].columns, w, strict=True))
    paid = monthly(prices.index, 500.0, 10_000.0, 0.03)
    signal = prices["close"].iloc[:, 0]
    tax = rng.choice([None, Tax(0.4, 0.2, "fifo"), Tax(0.4, 0.2, "best")])
    frequency = rng.choice(["month", "quarter", "half-year", "year", "never"])
    every, month = int(rng.integers(1, 30)), int(rng.integers(1, 13))
    yield dca(prices, rng.random(), every, 3000.0, 0, cost, at, tax), prices
    yield rebalance(prices, weights, frequency, paid, cost, at, tax, month), prices
    tail = prices.iloc[60:]
    flows = pd.Series(10_000.0, tail.index[:1])
    yield moving_average_switch(tail, signal, 50, 1, flows, cost, at, tax), tail
    yield switch(prices, signal > 100, 5000.0, cost, at, tax), prices


@pytest.mark.parametrize("seed", range(12))
def test_the_books_balance_to_the_cent(seed):
    prices = market(seed=seed)
    for run, table in runs(prices, seed):
        assert run.imbalance(table) < 0.005
        assert (run.cash > -0.005).all() and (run.units.to_numpy() >= 0).all()
        assert (run.trades.cost >= 0).all()
        assert run.trades.day.isin(table.index).all()


def test_an_entry_that_is_wrong_is_found_by_the_books():
    prices = market()
    run = dca(prices, 0.5)
    for name, factor in (("price", 1.001), ("units", 1.001), ("units", 0.999)):
        broken = run.trades.copy()
        broken.loc[7, name] *= factor
        wrong = backtest.Run(
            run.values, run.before, run.flows, run.cash, run.units, broken, run.taxes
        )
        assert wrong.imbalance(prices) > 0.1
    for change in (10.0, -10.0):
        values = run.values.copy()
        values.iloc[5] += change
        wrong = backtest.Run(
            values, run.before, run.flows, run.cash, run.units, run.trades, run.taxes
        )
        assert wrong.imbalance(prices) == pytest.approx(10.0)
    late = run.flows.shift(1, fill_value=0.0)
    wrong = backtest.Run(
        run.values, run.before, late, run.cash, run.units, run.trades, run.taxes
    )
    assert wrong.imbalance(prices) > 1000


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


@pytest.mark.parametrize("every", [1, 10, 33])
def test_the_grid_is_the_same_as_one_by_one(every):
    prices = market(300)
    targets, starts = [0.0, 0.3, 0.5, 1.0], [0, 1, 7, 10, 43, 280]
    grid = dca_grid(prices, targets, starts, every, 1000.0)
    for i, target in enumerate(targets):
        for j, start in enumerate(starts):
            run = dca(prices.iloc[start:], target, every, 1000.0)
            unit = unit_value(run.values, run.flows, run.before)
            expected = {
                "invested": run.flows.sum(),
                "final": run.values.iloc[-1],
                "growth": unit.iloc[-1],
                "drawdown": -drawdown(unit).min(),
            }
            for name, value in expected.items():
                assert grid[name][i, j] == pytest.approx(value, rel=1e-11, abs=1e-14)


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


def test_monthly_flows_grow():
    days = pd.bdate_range("2020-01-01", "2021-12-31")
    flows = monthly(days, 100.0, 1000.0, 0.05)
    assert flows.iloc[0] == 1100 and flows.iloc[12] == pytest.approx(105)
    assert len(flows) == 24 and flows.index[1] == pd.Timestamp("2020-02-03")


def test_contributions_are_invested_between_rebalancings_without_selling():
    prices = market()
    flows = monthly(prices.index, 500.0, 10_000.0)
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
    flows = monthly(prices.index, -100.0, 50_000.0)
    run = rebalance(prices, {"AAA": 0.5, "BBB": 0.5}, "never", flows, cost=0.01)
    assert run.imbalance(prices) < 0.005 and run.cash.abs().max() < 1e-6
    sold = run.trades[run.trades.day == run.trades.day.iloc[-1]]
    held = run.units.shift().loc[sold.day.iloc[0]]
    assert len(sold) == 2 and (-sold.units.to_numpy() / held.to_numpy()).std() < 1e-12
    with pytest.raises(ValueError, match="more is to be paid out than there is"):
        rebalance(
            prices, {"AAA": 1.0}, contributions=monthly(prices.index, -500.0, 900.0)
        )


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
        (lambda: dca(prices, 1.5), "between 0 and 1, got 1.5"),
        (lambda: dca(prices, math.nan), "between 0 and 1, got nan"),
        (lambda: dca(prices, 0.5, every=0), "every = 0"),
        (lambda: dca(prices, 0.5, amount=-1), "amount = -1"),
        (lambda: dca(prices, 0.5, cost=1.0), "cost is a fraction"),
        (lambda: dca(prices, 0.5, at="noon"), "'noon'"),
        (lambda: dca_grid(prices, [0.5], [30]), "starts must lie in 0 to 29"),
        (lambda: dca_grid(prices, [1.1], [0]), "between 0 and 1"),
        (lambda: rebalance(prices, {"AAA": 1.0}, "week"), "'week'"),
        (lambda: rebalance(prices, {"AAA": 1.0}, month=0), "1 to 12, got 0"),
        (lambda: rebalance(prices, {"CCC": 1.0}), "no prices of CCC"),
        (lambda: rebalance(prices, {"AAA": 0.8, "BBB": 0.3}), "sum to at most 1"),
        (lambda: rebalance(prices, {"AAA": -0.1}), "must not be negative"),
        (lambda: rebalance(prices, {"AAA": 1.0}, contributions=sunday), "2015-03-08"),
        (lambda: follow(prices, row[["AAA"]], flow), r"weights are for \['AAA'\]"),
        (
            lambda: follow(prices, row.set_axis(sunday.index), flow),
            "planned for 2015-03-08",
        ),
        (
            lambda: moving_average_switch(prices, signal, 10),
            "no 10 closes up to 1 days",
        ),
        (lambda: moving_average_switch(prices, signal, 0), "window = 0"),
        (lambda: moving_average_switch(prices, signal, 5, -1), "lag = -1"),
        (lambda: switch(three, hold), "at most two tickers"),
        (lambda: simulate(prices, lambda p, x, u, c: [c, c], flow), "spends 1.00 more"),
        (
            lambda: simulate(prices, lambda p, x, u, c: [-5, 0], flow),
            "sells more than is held",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# --- Measures ------------------------------------------------------------------------------------


def test_the_unit_does_not_feel_flows():
    prices = market(tickers=("AAA",))
    flows = monthly(prices.index, 500.0, 10.0)
    run = rebalance(prices, {"AAA": 1.0}, "never", flows)
    unit = unit_value(run.values, run.flows, run.before)
    close = prices["close"]["AAA"]
    expected = close / prices["open"]["AAA"].iloc[0]
    np.testing.assert_allclose(unit, expected, rtol=1e-12)
    whole = metrics(close)
    mine = run.metrics()
    assert mine["max_drawdown"] == pytest.approx(whole["max_drawdown"], rel=1e-12)


def test_the_money_weighted_rate_solves_its_equation():
    days = pd.to_datetime(["2020-01-01", "2021-01-01", "2022-01-01"])
    flows = pd.Series([100.0, 100.0], days[:2])
    values = pd.Series([100.0, 200.0, 231.0], days)
    rate = money_weighted(values, flows)
    years = np.array([731, 365]) / 365.25
    assert (100 * (1 + rate) ** years).sum() == pytest.approx(231, rel=1e-10)
    assert rate == pytest.approx(0.1, abs=1e-3)
    assert money_weighted(pd.Series([1.0, 0.0], days[:2]), flows[:1]) == -1.0
    with pytest.raises(ValueError, match="paid in before"):
        money_weighted(values, pd.Series([1.0], days[2:]))


def test_measures_by_hand():
    days = pd.to_datetime(
        ["2020-12-30", "2020-12-31", "2021-01-04", "2021-01-05", "2021-01-06"]
    )
    values = pd.Series([100.0, 120.0, 60.0, 90.0, 130.0], days)
    m = metrics(values, rate=0.0)
    assert m["max_drawdown"] == 0.5 and m["peak"] == days[1] and m["trough"] == days[2]
    assert m["recovered"] == days[4] and m["final"] == 130 and m["invested"] == 100
    assert (
        m["worst_year"] == pytest.approx(130 / 120 - 1) and m["worst_year_when"] == 2021
    )
    r = np.array([0.0, 0.2, -0.5, 0.5, 4 / 9])
    assert m["sharpe"] == pytest.approx(r.mean() / r.std(ddof=1) * 252**0.5)
    assert m["sortino"] == pytest.approx(r.mean() / np.sqrt(0.25 / 5) * 252**0.5)
    assert m["volatility"] == pytest.approx(r.std(ddof=1) * 252**0.5)
    assert m["cagr"] == pytest.approx(1.3 ** (365.25 / 7) - 1)
    assert metrics(values.iloc[:3])["recovered"] is None
    assert metrics(values.iloc[:2])["max_drawdown"] == 0


def test_the_riskless_rate_is_taken_off():
    days = pd.bdate_range("2020-01-01", periods=500)
    rng = np.random.default_rng(0)
    values = pd.Series(100 * np.cumprod(1 + rng.normal(0.0005, 0.01, 500)), days)
    values.iloc[0] = 100.0
    a, b = metrics(values), metrics(values, rate=0.0252)
    assert (a["sharpe"] - b["sharpe"]) * a["volatility"] == pytest.approx(
        0.0252, rel=1e-9
    )
    c = metrics(values, rate=pd.Series(0.0252, days))
    assert c["sharpe"] == pytest.approx(b["sharpe"]) and c["sortino"] < a["sortino"]


def test_borders_of_measures():
    days = pd.bdate_range("2020-01-01", periods=3)
    for values, flows, message in (
        ([1.0, np.nan, 1.0], None, "finite"),
        ([1.0, -1.0, 1.0], None, "not negative"),
        ([0.0, 1.0, 1.0], {days[1]: 1.0}, "empty on 2020-01-01"),
    ):
        with pytest.raises(ValueError, match=message):
            metrics(
                pd.Series(values, days), None if flows is None else pd.Series(flows)
            )


# --- Leverage ------------------------------------------------------------------------------------


def test_leveraged_fund():
    r = pd.Series([0.01, -0.02, -0.5])
    fund = simulate_leveraged(r, 3, rate=0.05, fee=0.0095, spread=0.005)
    assert fund[0] == pytest.approx(0.03 - (2 * 0.055 + 0.0095) / 252)
    assert fund[2] == -1.0  # not more than everything
    inverse = simulate_leveraged(r, -1, rate=0.05, spread=0.01)
    assert inverse[0] == pytest.approx(-0.01 + (2 * 0.05 - 0.01) / 252)
    half = simulate_leveraged(r, 0.5, rate=0.05, spread=0.01)
    assert half[0] == pytest.approx(0.005 + 0.5 * 0.05 / 252)  # lent, not borrowed
    assert simulate_leveraged(pd.Series([-1.0]), 1).tolist() == [-1.0]
    pd.testing.assert_series_equal(simulate_leveraged(r, 1), r)
    with pytest.raises(ValueError, match="at least −1"):
        simulate_leveraged(pd.Series([np.nan]), 2)


def test_log_growth_is_that_of_many_paths():
    rng = np.random.default_rng(0)
    mu, sigma, rate, n = 0.1, 0.3, 0.03, 252 * 4000
    r = pd.Series(np.expm1(rng.normal((mu - sigma**2 / 2) / 252, sigma / 252**0.5, n)))
    for leverage in (1, 2, 3):
        fund = simulate_leveraged(r, leverage, rate)
        growth = np.log1p(fund).mean() * 252
        error = np.log1p(fund).std() * 252 / n**0.5
        assert abs(growth - log_growth(leverage, mu, sigma, rate)) < 4 * error
    best = np.linspace(0, 3, 3001)[
        log_growth(np.linspace(0, 3, 3001), mu, sigma, rate).argmax()
    ]
    assert best == pytest.approx((mu - rate) / sigma**2, abs=1e-3)


# --- Taxes ---------------------------------------------------------------------------------------


def trades(*rows):
    frame = pd.DataFrame(rows, columns=["day", "ticker", "units", "price", "cost"])
    return frame.assign(day=pd.to_datetime(frame.day))


def test_lots_first_in_first_out_and_best():
    history = trades(
        ("2020-01-02", "A", 10, 100.0, 0.0),
        ("2020-06-01", "A", 10, 200.0, 0.0),
        ("2021-03-01", "A", -10, 220.0, 0.0),
    )
    fifo = after_tax(history, Tax(0.4, 0.2))
    assert fifo.loc[2021].tolist() == [0.0, 1200.0, 240.0]
    best = after_tax(history, Tax(0.4, 0.2, "best"))
    assert best.loc[2021].tolist() == [200.0, 0.0, 80.0]  # 0.4 · 200 < 0.2 · 1200


def test_a_year_is_not_more_than_a_year():
    for day, tax in (("2021-01-02", 0.4), ("2021-01-03", 0.2)):
        history = trades(("2020-01-02", "A", 1, 100.0, 0.0), (day, "A", -1, 200.0, 0.0))
        assert after_tax(history, Tax(0.4, 0.2)).tax.sum() == pytest.approx(100 * tax)


def test_costs_belong_to_the_basis():
    history = trades(
        ("2020-01-02", "A", 2, 100.0, 6.0), ("2020-02-03", "A", -1, 110.0, 2.0)
    )
    assert after_tax(history, Tax()).loc[2020, "short"] == pytest.approx(110 - 2 - 103)


@pytest.mark.parametrize(
    ("short", "long", "expected"),
    [
        (10, 10, (6.0, 0, 0)),
        (10, -4, (2.4, 0, 0)),
        (4, -10, (0, 0, -6)),
        (-4, 10, (1.2, 0, 0)),
        (-10, 4, (0, -6, 0)),
        (-10, -4, (0, -10, -4)),
        (-5, 5, (0, 0, 0)),
    ],
)
def test_losses_reduce_gains_of_either_kind(short, long, expected):
    assert Tax(0.4, 0.2).on(short, long) == pytest.approx(expected)


def test_losses_are_carried_on():
    history = trades(
        ("2020-01-02", "A", 1, 100.0, 0.0),
        ("2020-03-02", "A", -1, 40.0, 0.0),
        ("2021-01-04", "A", 1, 50.0, 0.0),
        ("2021-02-01", "A", -1, 100.0, 0.0),
        ("2022-01-04", "A", 1, 50.0, 0.0),
        ("2022-02-01", "A", -1, 100.0, 0.0),
    )
    assert after_tax(history, Tax(0.4, 0.2)).tax.tolist() == pytest.approx([0, 0, 16])


@pytest.mark.parametrize("seed", [4, 7, 11])
def test_taxes_are_paid_in_the_next_year_out_of_the_account(seed):
    prices = market(seed=seed)
    prices *= np.exp(np.arange(700) * 0.0015)[:, None]  # gains to tax
    tax = Tax(0.4, 0.2)
    run = rebalance(prices, {"AAA": 0.5, "BBB": 0.5}, "month", 10_000.0, tax=tax)
    by_year = after_tax(run.trades, tax)
    paid = run.taxes[run.taxes > 0]
    assert len(paid) and run.owed > 0 and run.latent > 0
    assert set(paid.index) <= set(first_days(prices.index, "year")[1:])
    for day, amount in paid.items():
        assert amount == pytest.approx(by_year.tax[day.year - 1], rel=1e-9)
    assert run.owed == pytest.approx(by_year.tax[prices.index[-1].year], rel=1e-9)
    whole = after_tax(pd.concat([run.trades, sell_all(run, prices)]), tax)
    assert run.owed + run.latent == pytest.approx(whole.tax.iloc[-1], rel=1e-9)
    untaxed = rebalance(prices, {"AAA": 0.5, "BBB": 0.5}, "month", 10_000.0)
    assert run.values.iloc[-1] < untaxed.values.iloc[-1]


def sell_all(run, prices):
    day, last = prices.index[-1], prices["close"].iloc[-1]
    return trades(*((day, t, -run.units[t].iloc[-1], last[t], 0.0) for t in run.units))


def test_tax_is_paid_from_cash_where_there_is_some():
    prices = market(400, tickers=("AAA",))
    prices *= np.exp(np.arange(400) * 0.002)[:, None]
    turn = pd.DatetimeIndex(["2015-03-02", "2015-12-01"])
    half = pd.DataFrame({"AAA": [1.0, 0.5]}, turn)
    flow = pd.Series(1000.0, prices.index[:1])
    run = follow(prices, half, flow, tax=Tax())
    new_year = first_days(prices.index, "year")[1]
    assert run.taxes[new_year] > 0 and len(run.trades) == 2
    # all invested, and as much paid in on the day as is due: nothing is sold
    trade = pd.DataFrame({"AAA": [1.0, 0.5, 1.0]}, turn.append(prices.index[215:216]))
    due = follow(prices, trade, flow, tax=Tax()).taxes[new_year]
    run = follow(
        prices, trade, pd.concat([flow, pd.Series(due + 50, [new_year])]), tax=Tax()
    )
    assert run.taxes[new_year] == pytest.approx(due)
    assert (run.trades.units[run.trades.day >= new_year] > 0).all()


def test_who_never_sells_owes_tax_at_the_end_only():
    prices = market()
    run, tax = dca(prices, 0.5, tax=Tax(0.4, 0.2)), Tax(0.4, 0.2)
    assert run.taxes.sum() == 0 and run.owed == 0
    whole = after_tax(pd.concat([run.trades, sell_all(run, prices)]), tax)
    assert run.latent == pytest.approx(whole.tax.sum())


def test_borders_of_taxes():
    for options, message in (
        (dict(short=1.0), "rates must lie"),
        (dict(long=-0.1), "rates must lie"),
        (dict(lots="lifo"), "'lifo'"),
    ):
        with pytest.raises(ValueError, match=message):
            Tax(**options)
    lots = Lots(Tax())
    lots.trade(pd.Timestamp("2020-01-02"), "A", 1.0, 5.0, 0.0)
    with pytest.raises(ValueError, match="more than held"):
        lots.trade(pd.Timestamp("2020-01-03"), "A", -2.0, 5.0, 0.0)


# --- Chance --------------------------------------------------------------------------------------


def test_bootstrap_walks_and_jumps():
    rng = np.random.default_rng(0)
    walk = stationary_bootstrap(1000, 200, 20.0, rng, length=500)
    assert walk.shape == (500, 200) and walk.min() >= 0 and walk.max() <= 999
    jumps = (np.diff(walk, axis=0) % 1000 != 1).mean()
    assert jumps == pytest.approx(1 / 20, abs=0.003)
    counts = np.bincount(walk.ravel(), minlength=1000)
    assert counts.std() / counts.mean() < 0.6  # every day is as likely
    single = stationary_bootstrap(50, 4000, 1.0, rng)
    assert abs(np.corrcoef(single[:-1].ravel(), single[1:].ravel())[0, 1]) < 0.01
    with pytest.raises(ValueError, match="at least 1"):
        stationary_bootstrap(10, 1, 0.5, rng)


def test_bootstrap_agrees_with_arch():
    bootstrap = pytest.importorskip("arch.bootstrap")
    rng = np.random.default_rng(1)
    x = np.zeros(2000)
    for t in range(1, 2000):
        x[t] = 0.6 * x[t - 1] + rng.normal()
    theirs = bootstrap.StationaryBootstrap(25, x, seed=np.random.default_rng(2))
    error = np.std([data[0][0].mean() for data in theirs.bootstrap(2000)])
    ours = x[stationary_bootstrap(2000, 2000, 25.0, rng)].mean(axis=0).std()
    assert ours == pytest.approx(error, rel=4 * 2**0.5 / (2 * 2000) ** 0.5)


def test_grow_is_rebalancing():
    prices = market()
    r = prices["close"].pct_change().fillna(0.0).to_numpy()
    values = grow(r[:, None], [0.4, 0.6], 30)[:, 0]
    rows = pd.DataFrame([[0.4, 0.6]] * 24, columns=["AAA", "BBB"])
    # bought at the close before each block begins: the last close of the block before
    rows.index = prices.index[[0, *range(29, 699, 30)]]
    run = follow(prices, rows, pd.Series(1.0, prices.index[:1]), at="close")
    np.testing.assert_allclose(values, run.values, rtol=1e-12)
    both = grow(np.stack([r, r], axis=1), [[0.4, 0.6], [0.0, 0.5]], 30)
    np.testing.assert_allclose(both[:, 0], values)
    half = 0.5 + 0.5 * np.cumprod(1 + r[:30, 1])
    np.testing.assert_allclose(both[:30, 1], half)


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
        rebalance(prices, {"AAA": 1.0}, "never", monthly(prices.index, 100.0), 0.05),
    ):
        assert run.cash.abs().max() < 1e-9


def test_a_late_start_is_a_shorter_table():
    prices = market()
    late, short = dca(prices, 0.5, start=7), dca(prices.iloc[7:], 0.5)
    assert late.values.iloc[-1] == pytest.approx(short.values.iloc[-1], rel=1e-14)


def test_a_target_of_one_always_buys_the_first():
    run = dca(market(), 1.0)
    assert set(run.trades.ticker) == {"AAA"} and len(run.trades) == 70


def test_more_borders():
    prices = market(30)
    for call, message in (
        (lambda: dca(prices, -0.5), "got -0.5"),
        (lambda: dca(prices, 0.5, amount=0.0), "amount = 0.0"),
        (lambda: dca_grid(prices, [0.5], [-1]), "got -1 to -1"),
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
    nothing = rebalance(prices, {"AAA": 0.0}, contributions=monthly(prices.index, 5.0))
    assert nothing.values.iloc[-1] == nothing.flows.sum() and nothing.trades.empty


def test_costs_are_solved_to_the_last_digit():
    worth, weights = np.array([800.0, 100.0]), np.array([0.1, 0.9])
    dollars = toward(weights, worth, 50.0, 0.2)
    left = 950 - 0.2 * np.abs(dollars).sum()
    np.testing.assert_allclose(worth + dollars, weights * left, rtol=1e-12)


def test_inflation_grows_month_by_month():
    days = pd.bdate_range("2020-01-01", "2020-12-31")
    assert monthly(days, 100.0, 0.0, 0.05).iloc[6] == pytest.approx(100 * 1.05**0.5)


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


def test_flows_come_before_the_day_unless_told_otherwise():
    days = pd.bdate_range("2020-01-01", periods=2)
    unit = unit_value(pd.Series([100.0, 210.0], days), pd.Series([100.0, 100.0], days))
    assert unit.iloc[1] == pytest.approx(1.05)


def test_withdrawals():
    days = pd.to_datetime(["2020-01-01", "2021-01-01", "2022-01-01"])
    values, flows = (
        pd.Series([100.0, 60.0, 66.0], days),
        pd.Series([100.0, -50.0], days[:2]),
    )
    assert money_weighted(values, flows) == pytest.approx(0.1, abs=1e-3)
    assert metrics(values, flows)["invested"] == 50


def test_measures_of_an_account_that_gains_on_its_first_day():
    days = pd.to_datetime(["2020-12-30", "2020-12-31", "2021-01-04", "2021-01-05"])
    values = pd.Series([100.0, 50.0, 100.0, 110.0], days)
    flows = pd.Series([80.0], days[:1])
    rate = pd.Series([0.0, 2.52, 0.0, 5.04], days)
    m = metrics(values, flows, rate=rate)
    r = np.array([0.25, -0.5, 1.0, 0.1])
    excess = r - rate.to_numpy() / 252
    assert m["sharpe"] == pytest.approx(excess.mean() / excess.std(ddof=1) * 252**0.5)
    short = np.sqrt((np.minimum(excess, 0) ** 2).mean())
    assert m["sortino"] == pytest.approx(excess.mean() / short * 252**0.5)
    assert m["volatility"] == pytest.approx(r.std(ddof=1) * 252**0.5)
    assert m["worst_year_when"] == 2020 and m["worst_year"] == pytest.approx(-0.375)
    assert m["recovered"] == days[2]  # back at the peak exactly
    assert m["money_weighted"] == money_weighted(values, flows)
    rise = metrics(pd.Series([1.0, 2.0, 0.5, 1.5], days))
    assert rise["recovered"] is None and rise["peak"] == days[1]
    flat = metrics(pd.Series([100.0, 100.0], days[:2]))
    assert flat["recovered"] is None and math.isnan(flat["sharpe"])
    assert math.isnan(flat["sortino"])
    one = market(30, tickers=("AAA",))
    run = rebalance(one, {"AAA": 1.0}, contributions=monthly(one.index, 10.0))
    assert run.metrics(0.5)["sharpe"] < run.metrics()["sharpe"]
    assert run.metrics()["money_weighted"] == money_weighted(run.values, run.flows)


def test_a_fee_slows_growth():
    assert log_growth(2, 0.1, 0.2, 0.03, 0.01) == pytest.approx(
        0.03 + 0.14 - 0.08 - 0.01
    )


def test_lots_are_of_one_ticker_and_sold_in_parts():
    history = trades(
        ("2020-01-02", "A", 10, 100.0, 0.0),
        ("2020-01-02", "B", 10, 50.0, 0.0),
        ("2020-02-03", "B", -4, 60.0, 2.0),
        ("2020-03-02", "A", -3, 110.0, 0.0),
        ("2020-03-03", "A", -3, 110.0, 0.0),
        ("2020-03-04", "A", -4, 110.0, 0.0),
    )
    assert after_tax(history, Tax()).loc[2020, "short"] == pytest.approx(40 - 2 + 100)
    with pytest.raises(ValueError, match="more than held"):
        after_tax(
            pd.concat([history, trades(("2020-03-05", "A", -1, 110.0, 0.0))]), Tax()
        )


def test_best_lots_weigh_gains_by_their_rates():
    history = trades(
        ("2020-01-02", "A", 1, 100.0, 0.0),  # long: 0.2 · 300
        ("2021-01-04", "A", 1, 200.0, 0.0),  # short: 0.4 · 200
        ("2021-03-01", "A", -1, 400.0, 0.0),
    )
    best = after_tax(history, Tax(0.4, 0.2, "best"))
    assert best.loc[2021].tolist() == [0.0, 300.0, 60.0]


def test_losses_of_both_kinds_are_carried_on_by_kind():
    rows = [
        ("2020-01-02", "A", 2, 100.0, 0.0),
        ("2021-02-01", "A", -2, 70.0, 0.0),  # long −60
        ("2021-02-02", "B", 1, 100.0, 0.0),
        ("2021-03-01", "B", -1, 90.0, 0.0),  # short −10
        ("2021-03-02", "A", 1, 10.0, 0.0),
        ("2022-01-03", "A", -1, 30.0, 0.0),  # short +20
    ]
    table = after_tax(trades(*rows), Tax(0.4, 0.2))
    assert table.loc[2021].tolist() == [-10.0, -60.0, 0.0]
    assert table.loc[2022].tolist() == [10.0, -60.0, 0.0]
    assert table.index.tolist() == [2020, 2021, 2022]
    later_first = trades(
        ("2022-01-03", "B", 1, 10.0, 0.0), ("2020-01-02", "A", 1, 10.0, 0.0)
    )
    assert after_tax(later_first, Tax()).index.tolist() == [2020, 2022]


def test_every_day_can_be_drawn():
    rng = np.random.default_rng(0)
    drawn = stationary_bootstrap(50, 400, 1.0, rng)
    assert drawn.shape == (50, 400) and len(np.unique(drawn)) == 50


def test_cash_in_grow_is_rebalanced_too():
    r = np.full((4, 1, 1), 1.0)
    # half doubles each day, rebalanced every second day: 1.5, 2.5, then 1.5 and 2.5 times that
    np.testing.assert_allclose(grow(r, [0.5], 2)[:, 0], [1.5, 2.5, 3.75, 6.25])


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
    assert run.trades.units.sum() == 0 and run.imbalance(prices) < 1e-9


def test_a_gap_in_the_signal_is_refused():
    prices = market(60)
    signal = prices["close"]["AAA"].copy()
    signal.iloc[40] = np.nan
    with pytest.raises(ValueError, match=f"before {prices.index[41]:%Y-%m-%d}"):
        moving_average_switch(prices.iloc[20:], signal, 10)


def test_best_knows_that_a_year_is_not_more_than_a_year():
    history = trades(
        ("2020-01-02", "A", 1, 100.0, 0.0),
        ("2020-06-01", "A", 1, 150.0, 0.0),
        ("2021-01-02", "A", -1, 200.0, 0.0),  # both short: 0.4 · 100 against 0.4 · 50
    )
    best = after_tax(history, Tax(0.4, 0.1, "best"))
    assert best.loc[2021].tolist() == [50.0, 0.0, 20.0]


def test_a_withdrawal_may_miss_by_half_a_cent():
    index = pd.bdate_range("2020-01-01", periods=2, name="date")
    columns = pd.MultiIndex.from_product([["open", "close"], ["AAA"]])
    flat = pd.DataFrame(50.0, index, columns)
    run = rebalance(flat, {"AAA": 1.0}, "never", pd.Series([100.0, -100.005], index))
    assert run.units["AAA"].iloc[-1] == 0 and run.values.iloc[-1] == 0
