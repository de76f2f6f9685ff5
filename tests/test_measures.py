"""Measures agree with closed forms, with sums by hand and with other libraries."""

import inspect
import math
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import pyxirr
from test_backtest import market, paid

from mlbook.leveraged_etfs.backtest import rebalance
from mlbook.leveraged_etfs.measures import (
    drawdown,
    metrics,
    money_weighted,
    unit_value,
)

YEARS = pd.to_datetime(["2020-01-01", "2021-01-01", "2022-01-01"])


def some(values, days=YEARS):
    return pd.Series(values, days[: len(values)], dtype=float)


# --- The unit ------------------------------------------------------------------------------------


def test_the_unit_does_not_feel_flows():
    prices = market(tickers=("AAA",))
    run = rebalance(prices, {"AAA": 1.0}, "never", paid(prices.index, 500.0, 10.0))
    close = prices["close"]["AAA"]
    expected = close / prices["open"]["AAA"].iloc[0]
    np.testing.assert_allclose(run.unit, expected, rtol=1e-12)
    np.testing.assert_allclose(unit_value(run.values, run.flows, run.before), run.unit)
    assert run.metrics()["max_drawdown"] == pytest.approx(
        metrics(expected, start=1.0)["max_drawdown"], rel=1e-12
    )


def test_flows_come_before_the_day_unless_told_otherwise():
    unit = unit_value(some([100, 210]), some([100, 100]))
    assert unit.tolist() == pytest.approx([1.0, 1.05])
    unit = unit_value(some([100, 210]), some([100, 100]), some([0, 105]))
    assert unit.iloc[1] == pytest.approx(1.05 * 210 / 205)


def test_a_balance_into_which_money_flows_is_not_taken_for_growth():
    assert "flows" not in inspect.signature(metrics).parameters
    with pytest.raises(TypeError):
        unit_value(some([100, 190]))
    days = pd.bdate_range("2020-01-01", "2021-12-31", name="date")
    falling = pd.Series(0.9 ** ((days - days[0]).days / 365.25), days)
    prices = pd.concat({(f, "AAA"): falling for f in ("open", "close")}, axis=1)
    run = rebalance(prices, {"AAA": 1.0}, "never", paid(days, 100.0))
    assert run.values.iloc[-1] > 15 * run.values.iloc[0]
    assert run.metrics()["cagr"] == pytest.approx(-0.1)
    assert run.earned() == pytest.approx(-0.1)


@pytest.mark.parametrize("left", [0.0, 0.004, -0.004])
def test_an_account_that_was_closed_keeps_what_it_earned(left):
    days = pd.bdate_range("2020-01-01", periods=5, name="date")
    price = pd.Series([100.0, 120.0, 142.0, 150.0, 99.0], days)
    prices = pd.concat({(f, "AAA"): price for f in ("open", "close")}, axis=1)
    flows = pd.Series([10_000.0, left - 14_200.0], days[[0, 2]])
    run = rebalance(prices, {"AAA": 1.0}, "never", flows)
    assert run.values.iloc[-1] < 0.005
    assert run.unit.tolist() == pytest.approx([1, 1.2, 1.42, 1.42, 1.42])
    measured = run.metrics()
    assert measured["cagr"] == pytest.approx(1.42 ** (365.25 / 6) - 1)
    assert measured["max_drawdown"] == 0
    days = days + pd.to_timedelta([0, 200, 363, 400, 900], "D")
    slow = rebalance(
        prices.set_axis(days), {"AAA": 1.0}, "never", flows.set_axis(days[[0, 2]])
    )
    assert slow.unit.tolist() == run.unit.tolist()
    assert slow.earned() == pytest.approx(0.42, rel=1e-2)


def test_what_is_earned_in_a_few_days_is_a_rate_too():
    """In two days, in four: by the year these are huge numbers, and still the rates."""
    days = pd.bdate_range("2020-01-01", periods=5)
    for gain in (1.1, 1.42):
        values = some([100, 100, 0, 0, 0], days)
        rate = money_weighted(values, some([100, 0, -100 * gain], days))
        assert rate == pytest.approx(gain ** (365.25 / 2) - 1, rel=1e-6)
        with_rest = some([100, 110, 60, 70, 60 * gain], days)
        rate = money_weighted(with_rest, some([100, -10, -30], days))
        years = np.array([6, 5, 4]) / 365.25
        become = np.array([100, -10, -30]) @ (1 + rate) ** years
        assert become == pytest.approx(60 * gain, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_the_unit_does_not_depend_on_the_size_of_an_account(scale):
    days = pd.bdate_range("2020-01-01", periods=5)
    values, flows = some([100, 120, 60, 90, 10], days), some([90, 0, -60, 20, 0], days)
    unit = unit_value(values, flows)
    expected = np.cumprod([100 / 90, 1.2, 1, 90 / 80, 1 / 9])
    assert unit.tolist() == pytest.approx(expected)
    assert unit_value(values * scale, flows * scale).tolist() == pytest.approx(expected)


def test_a_later_payment_changes_no_unit_before_it():
    days = pd.bdate_range("2020-01-01", periods=4)
    values = some([1, 2, 4, 5e6], days)
    before = unit_value(values.iloc[:3], some([1, 0, 0], days))
    assert before.tolist() == [1, 2, 4]
    assert unit_value(values, some([1, 0, 0, 5e6], days)).tolist()[:3] == [1, 2, 4]


def test_a_closed_account_that_opens_again_goes_on_from_there():
    days = pd.bdate_range("2020-01-01", periods=5)
    flows, values = some([100, -150, 0, 10, 0], days), some([100, 0, 0, 10, 20], days)
    unit = unit_value(values, flows, some([0, 150, 0, 0, 20], days))
    assert unit.tolist() == pytest.approx([1, 1.5, 1.5, 1.5, 3])


def test_more_than_there_was_is_not_taken_out_without_the_value_before():
    flows = some([100, 0, -142])
    with pytest.raises(ValueError, match="on 2022-01-01 more was taken out than there"):
        unit_value(some([100, 120, 0]), flows)
    with pytest.raises(ValueError, match="on 2022-01-01 more was taken out than there"):
        unit_value(some([100, 120, 0]), flows, some([0, 120, 141.9]))
    unit = unit_value(some([100, 120, 0]), flows, some([0, 120, 142]))
    assert unit.tolist() == pytest.approx([1, 1.2, 1.42])
    for rounding in (0.005, -0.005):
        unit = unit_value(some([100, 120, 0]), some([100, 0, rounding - 120]))
        assert unit.iloc[1] == pytest.approx(1.2)


def test_what_was_lost_stays_lost():
    days = pd.bdate_range("2020-01-01", periods=4)
    unit = unit_value(some([100, 0, 50, 60], days), some([100, 0, 50, 0], days))
    assert unit.tolist() == [1, 0, 0, 0]


def test_borders_of_the_unit():
    sunday = pd.Series([1.0], pd.DatetimeIndex(["2020-01-05"]))
    good, flow = some([1, 1, 1]), some([1])
    for values, flows, message in (
        (some([1, np.nan, 1]), flow, "a value on 2021-01-01 is nan"),
        (some([1, -1, 1]), flow, "must not be negative, got -1"),
        (good, some([np.nan]), "a flow on 2020-01-01 is nan"),
        (good, some([1, np.inf]), "a flow on 2021-01-01 is inf"),
        (good, sunday, "2020-01-05, a day without prices"),
        (good, some([0, 1]), "nothing is paid in on the first day, 2020-01-01"),
        (good, some([-1]), "nothing is paid in on the first day"),
        (good, pd.concat([flow, flow]), "a flow: a day stands twice: 2020-01-01"),
        (good.iloc[[0, 0, 1]], flow, "a value: a day stands twice"),
        (good.iloc[::-1], flow, "a value: the days are not in order"),
        (good.tz_localize("UTC"), flow, "dates without a zone"),
        (good.reset_index(drop=True), flow, "indexed by dates"),
    ):
        with pytest.raises(ValueError, match=message):
            unit_value(values, flows)


# --- Money-weighted ------------------------------------------------------------------------------


def bisected(flows, end, last):
    """The rate at which the flows become `last`: the balance grows with the rate, if all are payments in."""
    years = (end - flows.index).days.to_numpy() / 365.25
    low, high = -30.0, 30.0  # logarithms
    for _ in range(200):
        middle = (low + high) / 2
        if flows.to_numpy() @ np.exp(middle * years) < last:
            low = middle
        else:
            high = middle
    return math.expm1(low)


def payments(seed):
    """Random payments in, over half a year to 30 years, and what became of them."""
    rng = np.random.default_rng(seed)
    days = pd.date_range("1995-01-02", periods=int(rng.integers(180, 11_000)))
    number = int(rng.integers(1, 100))
    at = np.sort(rng.choice(len(days) - 1, number, replace=False))
    flows = pd.Series(rng.exponential(1000, number), days[at])
    last = flows.sum() * np.exp(rng.normal(0, 1))
    return flows, days, last


@pytest.mark.parametrize("seed", range(40))
def test_the_rate_is_that_of_a_bisection_and_of_pyxirr(seed):
    flows, days, last = payments(seed)
    rate = money_weighted(pd.Series(last, days), flows)
    assert rate == pytest.approx(bisected(flows, days[-1], last), rel=1e-7, abs=1e-9)
    dates, amounts = [*flows.index.date, days[-1].date()], [*-flows, last]
    theirs = pyxirr.xirr(dates, amounts, day_count="ACT/365.25")
    assert rate == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("kept", [0.2, 0.09, 0.05, 0.01])
def test_a_rate_is_found_for_an_account_that_lost_nearly_everything(kept):
    days = pd.bdate_range("2000-01-03", "2007-12-31")
    flows = pd.Series(1000.0, days[:-1:20])
    last = kept * flows.sum()
    rate = money_weighted(pd.Series(last, days), flows)
    assert rate == pytest.approx(bisected(flows, days[-1], last), rel=1e-7)


def test_the_money_weighted_rate_solves_its_equation():
    flows, values = some([100, 100]), some([100, 200, 231])
    rate = money_weighted(values, flows)
    years = np.array([731, 365]) / 365.25
    assert (100 * (1 + rate) ** years).sum() == pytest.approx(231, rel=1e-10)
    assert rate == pytest.approx(0.1, abs=1e-3)


def test_withdrawals_count():
    values, flows = some([100, 60, 66]), some([100, -50])
    assert money_weighted(values, flows) == pytest.approx(0.1, abs=1e-3)


def test_payments_on_the_last_day_change_nothing():
    rate = money_weighted(some([100, 110, 121]), some([100]))
    later = money_weighted(some([100, 110, 171]), some([100, 0, 50]))
    assert later == pytest.approx(rate, rel=1e-9)


def test_who_loses_everything_loses_all_of_it():
    assert money_weighted(some([1, 0]), some([1])) == -1.0
    assert money_weighted(some([1, 2, 0]), some([1, 1])) == -1.0


def test_what_was_taken_out_before_the_end_is_not_lost():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rate = money_weighted(some([100, 0, 0]), some([100, -120]))
    assert rate == pytest.approx(1.2 ** (365.25 / 366) - 1)


def test_two_rates_are_both_named():
    """100 in, 230 out a year later, 132 in again: at 10 and at 20 per cent nothing is left."""
    days = pd.to_datetime(["2021-01-01", "2022-01-01", "2023-01-01"])
    with pytest.warns(UserWarning, match="more than one rate") as told:
        rate = money_weighted(some([100, 1, 0], days), some([100, -230, 132], days))
    # years of 365 days
    first, second = (x ** (365.25 / 365) - 1 for x in (1.1, 1.2))
    assert named(told) == pytest.approx([100 * first, 100 * second], abs=0.005)
    assert rate == pytest.approx(first, rel=1e-9)


def named(told):
    """The rates, in per cent, that a warning names."""
    (one,) = told
    return [float(x) for x in re.findall(r"(-?[\d.]+)%", str(one.message))]


@pytest.mark.parametrize(
    ("rates", "nearest"),
    [
        ((-0.05, 0.2), -0.05),
        ((-0.2, 0.05), 0.05),
        ((-0.4, -0.1), -0.1),
        ((0.5, 3.0), 0.5),
        ((-0.3, 0.1, 0.6), 0.1),
    ],
)
def test_the_rate_nearest_to_nothing_is_given(rates, nearest):
    years = pd.date_range("2000-12-31", periods=len(rates) + 1, freq="4YE")  # 1461 days
    growth = [(1 + rate) ** 4 for rate in rates]
    flows = some(100 * np.poly(growth), years)
    with pytest.warns(
        UserWarning, match="more than one rate solves these flows"
    ) as told:
        rate = money_weighted(some([1, *[1] * (len(rates) - 1), 0], years), flows)
    assert named(told) == pytest.approx([100 * r for r in rates], abs=0.005)
    assert rate == pytest.approx(nearest, rel=1e-8)


@pytest.mark.parametrize("seed", range(20))
def test_the_rate_of_an_account_that_was_also_drawn_on_solves_its_equation(seed):
    """First payments in, then out: there is one rate."""
    rng = np.random.default_rng(seed)
    days = pd.bdate_range("2000-01-03", periods=int(rng.integers(500, 5000)))
    half = len(days) // 2
    into = np.sort(rng.choice(half, 10, replace=False))
    out = half + np.sort(rng.choice(half - 1, 10, replace=False))
    amounts = np.r_[rng.exponential(1000, 10), -rng.exponential(300, 10)]
    flows = pd.Series(amounts, days[np.r_[into, out]])
    last = rng.choice([0.0, 100.0, 20_000.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rate = money_weighted(pd.Series(last, days), flows)
    years = (days[-1] - flows.index).days.to_numpy() / 365.25
    become = flows.to_numpy() * (1 + rate) ** years
    assert abs(become.sum() - last) < 1e-8 * np.abs(become).sum()
    dates, paid_out = [*flows.index.date, days[-1].date()], [*-flows, last]
    theirs = pyxirr.xirr(dates, paid_out, day_count="ACT/365.25", silent=True)
    if theirs is not None:
        assert rate == pytest.approx(theirs, rel=1e-6, abs=1e-8)


def test_no_rate_explains_what_cannot_be():
    values = some([100, 0, -50])
    with pytest.raises(ValueError, match="no yearly rate explains"):
        money_weighted(values, some([100, 10, -5]))


def test_one_rate_is_not_warned_of():
    days = pd.to_datetime(["2020-01-01", "2020-06-01", "2020-10-01", "2021-01-01"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for last in (69.0, 70.0, 71.0):  # 70: as much as was paid in, a rate of 0
            values, flows = some([1, 1, 1, last], days), some([100, -50, 20], days)
            rate = money_weighted(values, flows)
            assert abs(rate - (last - 70) / 70) < 0.01


def test_borders_of_the_rate():
    values = some([100, 200, 231])
    for flows, message in (
        (pd.Series([1.0], YEARS[2:]), "paid in before the last day"),
        (some([-1]), "paid in before the last day"),
        (some([0, 0]), "paid in before the last day"),
        (some([np.nan]), "a flow on 2020-01-01 is nan"),
        (pd.Series([1.0], YEARS[:1] - pd.Timedelta(days=1)), "a day without prices"),
        (some([1, 1]).iloc[::-1], "not in order"),
        (some([1, 1]).iloc[[0, 0]], "a day stands twice"),
    ):
        with pytest.raises(ValueError, match=message):
            money_weighted(values, flows)


# --- The measures of a unit ----------------------------------------------------------------------

DAYS = pd.to_datetime(
    ["2020-12-30", "2020-12-31", "2021-01-04", "2021-01-05", "2021-01-06"]
)


def test_measures_of_a_price_by_hand():
    values = some([100, 120, 60, 90, 130], DAYS)
    m = metrics(values)
    assert m["max_drawdown"] == 0.5 and m["peak"] == DAYS[1] and m["trough"] == DAYS[2]
    assert m["recovered"] == DAYS[4]
    assert m["worst_year"] == pytest.approx(130 / 120 - 1)
    assert m["worst_year_when"] == 2021
    r, year = np.array([0.2, -0.5, 0.5, 4 / 9]), 4 / 7 * 365.25
    assert m["sharpe"] == pytest.approx(r.mean() / r.std(ddof=1) * year**0.5)
    assert m["sortino"] == pytest.approx(r.mean() / np.sqrt(0.25 / 4) * year**0.5)
    assert m["volatility"] == pytest.approx(r.std(ddof=1) * year**0.5)
    assert m["cagr"] == pytest.approx(1.3 ** (365.25 / 7) - 1)
    assert m["ulcer"] == pytest.approx(((0.5**2 + 0.25**2) / 5) ** 0.5)
    assert m["calmar"] == pytest.approx(m["cagr"] / 0.5)
    assert metrics(values.iloc[:3])["recovered"] is None
    rising = metrics(values.iloc[:2])
    assert rising["max_drawdown"] == 0 and rising["recovered"] is None
    assert math.isnan(rising["calmar"])


def test_a_start_makes_the_first_day_count():
    unit = some([1.25, 0.625, 1.25, 1.375], DAYS)
    rate = pd.Series([0.0, 2.52, 0.0, 5.04], DAYS[:4])
    m = metrics(unit, rate, start=1.0)
    r, year = np.array([0.25, -0.5, 1.0, 0.1]), 3 / 6 * 365.25
    excess = r - rate.to_numpy() / year
    assert m["sharpe"] == pytest.approx(excess.mean() / excess.std(ddof=1) * year**0.5)
    short = np.sqrt((np.minimum(excess, 0) ** 2).mean())
    assert m["sortino"] == pytest.approx(excess.mean() / short * year**0.5)
    assert m["volatility"] == pytest.approx(r.std(ddof=1) * year**0.5)
    assert m["worst_year_when"] == 2020 and m["worst_year"] == pytest.approx(-0.375)
    assert m["recovered"] == DAYS[2]  # back at the peak exactly
    assert m["cagr"] == pytest.approx(1.375 ** (365.25 / 6) - 1)


def test_a_start_counts_the_first_day_that_does_not_move_as_well():
    """The unit of who buys at the close is 1 on its first day, which is a return like any other: 0."""
    unit = some([1.0, 0.5, 1.0, 1.1], DAYS)
    m, year = metrics(unit, 0.02, start=1.0), 3 / 6 * 365.25
    r = np.array([0.0, -0.5, 1.0, 0.1])
    assert m["volatility"] == pytest.approx(r.std(ddof=1) * year**0.5)
    excess = r - 0.02 / year
    assert m["sharpe"] == pytest.approx(excess.mean() / excess.std(ddof=1) * year**0.5)
    price = metrics(unit, 0.02)
    assert price["volatility"] == pytest.approx(r[1:].std(ddof=1) * year**0.5)
    for name in ("cagr", "max_drawdown", "ulcer", "calmar", "worst_year"):
        assert m[name] == price[name]
    near = metrics(unit.where(unit.index != DAYS[0], 1 + 1e-12), 0.02, start=1.0)
    assert near["sharpe"] == pytest.approx(m["sharpe"]), "no jump at exactly 1"
    with pytest.raises(ValueError, match="the riskless rate is missing"):
        metrics(unit, pd.Series(0.02, DAYS[1:4]), start=1.0)
    assert math.isfinite(metrics(unit, pd.Series(0.02, DAYS[1:4]))["sharpe"])


def test_a_loss_on_the_first_day_is_a_loss():
    unit = some([0.5, 0.6, 0.9], DAYS)
    m = metrics(unit, start=1.0)
    assert m["max_drawdown"] == 0.5 and m["trough"] == m["peak"] == DAYS[0]
    assert m["recovered"] is None and m["worst_year"] == pytest.approx(-0.4)
    assert m["ulcer"] == pytest.approx(((0.25 + 0.16 + 0.01) / 3) ** 0.5)
    assert metrics(unit)["max_drawdown"] == 0, "a price has no day before its first"
    assert drawdown(unit).tolist() == [0, 0, 0]
    back = metrics(some([0.5, 0.6, 1.0], DAYS), start=1.0)
    assert back["recovered"] == DAYS[2]


def test_a_fund_that_dies_has_lost_everything():
    m = metrics(some([1.0, 1.2, 0.0, 0.0], DAYS))
    assert m["cagr"] == -1 and m["max_drawdown"] == 1 and m["recovered"] is None
    assert m["worst_year"] == -1 and m["calmar"] == -1
    assert math.isfinite(m["sharpe"]) and math.isfinite(m["volatility"])
    days = pd.bdate_range("2019-12-02", "2022-03-01")
    dead = pd.Series(1.0, days).where(days < "2020-06-01", 0.0)
    m = metrics(dead)
    assert (m["worst_year"], m["worst_year_when"]) == (-1, 2020)
    at_once = metrics(some([0.0, 0.0], DAYS), start=1.0)
    assert at_once["cagr"] == -1 and at_once["max_drawdown"] == 1


@pytest.mark.parametrize(
    ("frequency", "periods"), [("B", 252), ("W-FRI", 52), ("ME", 12), ("QE", 4)]
)
def test_the_volatility_does_not_depend_on_the_calendar(frequency, periods):
    """A fifth a year, whether a move is of a day, a week or a month."""
    days = pd.date_range("2000-01-01", "2019-12-31", freq=frequency)
    move = 0.2 / periods**0.5
    unit = pd.Series(np.cumprod(1 + move * (-1.0) ** np.arange(len(days))), days)
    m = metrics(unit, rate=0.03)
    assert m["volatility"] == pytest.approx(0.2, rel=0.025)
    r = unit.pct_change().dropna()
    by_hand = (r.mean() * periods - 0.03) / (r.std() * periods**0.5)
    assert m["sharpe"] == pytest.approx(by_hand, rel=0.05, abs=0.01)


def test_the_riskless_rate_is_taken_off():
    days = pd.bdate_range("2020-01-01", periods=500)
    rng = np.random.default_rng(0)
    values = pd.Series(100 * np.cumprod(1 + rng.normal(0.0005, 0.01, 500)), days)
    a, b = metrics(values), metrics(values, rate=0.0252)
    lost = (a["sharpe"] - b["sharpe"]) * a["volatility"]
    assert lost == pytest.approx(0.0252, rel=1e-9)
    c = metrics(values, rate=pd.Series(0.0252, days))
    assert c["sharpe"] == pytest.approx(b["sharpe"]) and c["sortino"] < a["sortino"]
    run = rebalance(market(30), {"AAA": 1.0})
    assert run.metrics(0.5)["sharpe"] < run.metrics()["sharpe"]


def test_a_rate_that_lacks_days_is_refused():
    days = pd.bdate_range("2020-01-01", periods=100)
    values = pd.Series(np.linspace(1, 2, 100), days)
    half = pd.Series(0.03, days[::2])
    with pytest.raises(ValueError, match="the riskless rate is missing"):
        metrics(values, half)
    with pytest.raises(ValueError, match="the riskless rate is missing"):
        metrics(values, pd.Series(0.03, days).where(days != days[50]))
    longer = pd.Series(0.03, pd.bdate_range("2019-01-01", "2021-01-01"))
    assert metrics(values, longer)["sharpe"] == metrics(values, half.iloc[0])["sharpe"]


def test_what_cannot_be_said_is_nan():
    one = metrics(some([100]))
    assert one["max_drawdown"] == 0 and math.isnan(one["cagr"])
    two = metrics(some([100, 100]))
    assert two["cagr"] == 0 and two["recovered"] is None
    for m, names in (
        (one, ("volatility", "sharpe", "sortino", "calmar")),
        (two, ("volatility", "sharpe", "sortino", "calmar")),
        (metrics(some([100, 100, 100])), ("sharpe", "sortino", "calmar")),
        (metrics(some([100, 110, 130])), ("sortino", "calmar")),
    ):
        assert all(math.isnan(m[name]) for name in names)


def test_a_drawdown_is_the_way_from_the_peak_before_it():
    values = some([100, 50, 200, 120, 150], DAYS)
    assert drawdown(values).tolist() == pytest.approx([0, -0.5, 0, -0.4, -0.25])
    m = metrics(values)
    assert (m["peak"], m["trough"], m["recovered"]) == (DAYS[0], DAYS[1], DAYS[2])
    still_down = metrics(some([100, 200, 50, 150], DAYS))
    assert still_down["recovered"] is None and still_down["peak"] == DAYS[1]


def test_measures_agree_with_ffn():
    ffn = pytest.importorskip("ffn.core")
    prices = market(seed=5)["close"]["AAA"]
    m, r = metrics(prices), prices.pct_change().dropna()
    assert m["cagr"] == pytest.approx(ffn.calc_cagr(prices), rel=1e-12)
    assert m["max_drawdown"] == pytest.approx(-ffn.calc_max_drawdown(prices))
    assert m["ulcer"] == pytest.approx(ffn.to_ulcer_index(prices) / 100)
    assert m["calmar"] == pytest.approx(float(ffn.calc_calmar_ratio(prices)))
    year = len(r) / ((prices.index[-1] - prices.index[0]).days / 365.25)
    theirs = ffn.calc_sharpe(r, nperiods=year)
    assert m["sharpe"] == pytest.approx(theirs, rel=1e-9)
    # days without a drawdown there are ours as well
    falls = ffn.drawdown_details(ffn.to_drawdown_series(prices))
    worst = falls.loc[falls.drawdown.astype(float).idxmin()]
    assert -worst.drawdown == pytest.approx(m["max_drawdown"])
    assert m["peak"] <= worst.Start <= m["trough"]


@pytest.mark.parametrize("values", [[1, -1], [1, np.nan], [0, 1], [np.nan, 1]])
def test_values_that_have_no_drawdown_are_refused(values):
    with pytest.raises(ValueError, match="must not be negative, nor missing"):
        drawdown(pd.Series(values, dtype=float))


def test_only_daily_values_have_a_value_before_the_first():
    months = pd.date_range("2020-01-31", periods=12, freq="ME")
    unit = pd.Series(1.01 ** np.arange(1, 13), months)
    with pytest.raises(ValueError, match="`start` is for daily values"):
        metrics(unit, start=1.0)
    year = (months[-1] - months[0]).days / 365.25
    assert metrics(unit)["cagr"] == pytest.approx(1.01 ** (11 / year) - 1)


def test_a_rate_needs_values_in_order():
    days = pd.DatetimeIndex(["2021-01-01", "2020-01-01"])
    with pytest.raises(ValueError, match="not in order"):
        money_weighted(pd.Series([1.0, 2.0], days), pd.Series([1.0], days[1:]))


def test_borders_of_measures():
    good = some([1, 2, 3])
    for unit, options, message in (
        (some([1, np.nan, 1]), {}, "a value on 2021-01-01 is nan"),
        (some([1, -1, 1]), {}, "must not be negative"),
        (some([0, 1, 1]), {}, "nor the first be 0"),
        (good, dict(start=0.0), "nor the first be 0"),
        (good.iloc[::-1], {}, "not in order"),
        (good.iloc[[0, 1, 1]], {}, "a day stands twice: 2021-01-01"),
        (good.iloc[:0], {}, "there are no days"),
        (good.set_axis(good.index + pd.Timedelta(hours=16)), {}, "a time of day"),
    ):
        with pytest.raises(ValueError, match=message):
            metrics(unit, **options)


def test_a_loss_of_nearly_everything_is_followed_further():
    """Only who takes everything out holds nothing; who has lost it may see it come back."""
    days = pd.bdate_range("2020-01-01", periods=3)
    values = pd.Series([10_000.0, 1e-3, 10.0], days)
    unit = unit_value(values, pd.Series(10_000.0, days[:1]))
    np.testing.assert_allclose(unit, [1, 1e-7, 1e-3])
    values = pd.Series([1e7, 5.0, 10.0], days)
    unit = unit_value(values, pd.Series([1e7, -(1e7 - 5)], days[:2]))
    np.testing.assert_allclose(unit, [1, 1, 2])


def test_values_before_flows_are_on_the_same_days():
    days = pd.bdate_range("2020-01-01", periods=3)
    values, flows = pd.Series([1.0, 2.0, 3.0], days), pd.Series(1.0, days[:1])
    for before in (values[::-1], values[:2], values.where(values > 1)):
        with pytest.raises(ValueError, match="a value before a flow"):
            unit_value(values, flows, before)


def test_a_rounding_is_no_deviation():
    steady = pd.Series(
        np.geomspace(1e6, 1, 30), pd.bdate_range("2020-01-01", periods=30)
    )
    assert math.isnan(metrics(steady)["sharpe"])
