"""Funds with leverage, what money cost and bought, and funds made of an index."""

import numpy as np
import pandas as pd
import pytest

from mlbook.leveraged_etfs.leverage import (
    CPI,
    FUNDS,
    log_growth,
    policy_rate,
    price_level,
    simulate_leveraged,
    simulated_funds,
    with_cash,
)


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


def test_each_day_pays_the_rate_of_its_own_day():
    days = pd.bdate_range("2020-01-01", periods=3)
    rate = pd.Series([0.252, 0.0, 0.504], days)
    fund = simulate_leveraged(pd.Series(0.0, days), 2, rate.iloc[::-1])
    np.testing.assert_allclose(fund, [-0.001, 0.0, -0.002])
    with pytest.raises(ValueError, match="the rate is missing"):
        simulate_leveraged(pd.Series(0.0, days), 2, rate.iloc[:2])


def test_borders_of_leverage():
    for returns in ([np.nan], [-1.01]):
        with pytest.raises(ValueError, match="at least −1"):
            simulate_leveraged(pd.Series(returns), 2)
    with pytest.raises(ValueError, match="the rate is missing"):
        simulate_leveraged(pd.Series([0.01]), 2, np.nan)


def test_cash_needs_prices_in_order():
    table = simulated_funds({"SPY": ("sp500", 1, 0.0)})
    for fault in (table[::-1], table.iloc[[0, 1, 1]]):
        with pytest.raises(ValueError, match=r"not in order|stands twice"):
            with_cash(fault)


@pytest.mark.parametrize("days", [[], [None], ["2020-01-01", None]])
def test_the_rate_is_of_days(days):
    with pytest.raises(ValueError, match="days must be dates"):
        policy_rate(pd.DatetimeIndex(days))


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


def test_a_fee_slows_growth():
    assert log_growth(2, 0.1, 0.2, 0.03, 0.01) == pytest.approx(
        0.03 + 0.14 - 0.08 - 0.01
    )


# --- The rate ------------------------------------------------------------------------------------


def test_policy_rate():
    days = pd.DatetimeIndex(["2000-06-01", "2008-12-15", "2008-12-16", "2023-08-01"])
    assert policy_rate(days).tolist() == [0.065, 0.01, 0.00125, 0.05375]
    ends = pd.DatetimeIndex(["2025-12-31", "2015-12-16", "1998-11-17"])  # in no order
    assert policy_rate(ends).tolist() == [0.03625, 0.00375, 0.0475]
    with pytest.raises(ValueError, match="was asked for 1998-11-16"):
        policy_rate(pd.DatetimeIndex(["2000-06-01", "1998-11-16"]))


def test_past_its_table_the_last_rate_stands_with_a_warning(recwarn):
    days = pd.DatetimeIndex(["2025-12-31"])
    policy_rate(days)
    assert not recwarn
    with pytest.warns(UserWarning, match="tabulated to 2025-12-31; .* 2026-03-02"):
        late = policy_rate(days.append(pd.DatetimeIndex(["2026-01-02", "2026-03-02"])))
    assert late.tolist() == [0.03625] * 3


def test_policy_rate_is_near_the_treasury_bill_of_the_french_library():
    arch = pytest.importorskip("arch.data.frenchdata")
    french = arch.load()["RF"]
    months = pd.to_datetime(french.index.as_unit("ns").asi8.astype(str), format="%Y%m")
    bill = pd.Series(french.to_numpy() * 12 / 100, months)["1999":]
    days = pd.bdate_range("1999-01-01", "2018-11-30")
    policy = policy_rate(days).resample("MS").mean()
    gap = policy - bill
    assert len(gap) == 239 and gap.abs().mean() < 0.005 and abs(gap.mean()) < 0.004


# --- Consumer prices -----------------------------------------------------------------------------


def test_the_price_level_has_the_decembers_of_its_table():
    table = np.float64(CPI.split())
    days = pd.DatetimeIndex([f"{y}-12-16" for y in range(1998, 1998 + len(table))])
    np.testing.assert_allclose(price_level(days), table / table[0], rtol=1e-4)
    later = price_level(days[5:])
    np.testing.assert_allclose(later, table[5:] / table[5], rtol=1e-4)
    assert later.iloc[0] == 1.0


def test_the_price_level_grows_evenly_between_and_goes_on_at_last():
    days = pd.date_range("2021-12-17", "2022-12-15")
    steps = np.diff(np.log(price_level(days)))
    np.testing.assert_allclose(steps, np.log(296.797 / 278.802) / 365, rtol=1e-3)
    days = pd.DatetimeIndex(["2023-12-16", "2024-12-16", "2025-12-16", "2027-12-16"])
    with pytest.warns(UserWarning, match="tabulated to December 2024") as told:
        grown = price_level(days).to_numpy()
    assert len(told) == 1 and told[0].filename == __file__
    year = 315.605 / 306.746
    np.testing.assert_allclose(grown, [1, year, year**2, year**4], rtol=2e-4)


def test_the_price_level_warns_a_year_beyond_its_table(recwarn):
    """The rate of the last year is a good guess of the next, and of no later one."""
    first = pd.Timestamp("2024-01-02")
    for last in ("2024-12-16", "2024-12-31", "2025-08-29", "2025-12-15"):
        price_level(pd.DatetimeIndex([first, last]))
    assert not recwarn
    for last in ("2025-12-18", "2026-01-02", "2030-01-02"):
        with pytest.warns(UserWarning, match="tabulated to December 2024"):
            price_level(pd.DatetimeIndex([first, last]))


def test_the_price_level_is_near_that_of_statsmodels():
    data = pytest.importorskip("statsmodels.datasets").macrodata.load_pandas().data
    data = data[data.year + data.quarter / 4 >= 1999]  # from the last of 1998 on
    months = pd.PeriodIndex.from_fields(
        year=data.year.astype(int), quarter=data.quarter.astype(int), freq="Q"
    )
    theirs = data.cpi.to_numpy() / data.cpi.iloc[0]
    ours = price_level(months.end_time.normalize() - pd.Timedelta(days=15))
    gap = theirs / ours - 1
    assert gap[months.quarter == 4].abs().max() < 0.01  # seasons are taken out there
    assert gap.abs().max() < 0.05  # oil made prices of the summer of 2008 bulge


def test_the_price_level_is_near_core_prices():
    """Food and energy rose a little faster than the rest."""
    core = pytest.importorskip("arch.data.core_cpi").load()["CPILFESL"]["1999":]
    growth = price_level(core.index).iloc[-1]
    assert 0.9 * growth < core.iloc[-1] / core.iloc[0] < growth


def test_borders_of_the_price_level():
    for days, message in (
        (["1998-11-30", "2000-01-03"], "from December 1998, got 1998-11-30"),
        (["2000-01-04", "2000-01-03"], "not in order"),
        (["2000-01-03", "2000-01-03"], "a day stands twice"),
    ):
        with pytest.raises(ValueError, match=message):
            price_level(pd.DatetimeIndex(days))


# --- Funds made of an index ----------------------------------------------------------------------


def test_simulated_funds_by_hand():
    nasdaq = pytest.importorskip("arch.data.nasdaq").load()
    from arch.data import sp500

    table = simulated_funds()
    assert list(table["close"].columns) == list(FUNDS)
    rate = policy_rate(nasdaq.index)
    for index, fund, lev, fee in (
        (nasdaq, "TQQQ", 3, 0.0095),
        (nasdaq, "QLD", 2, 0.0095),
        (sp500.load(), "SSO", 2, 0.0091),
        (sp500.load(), "UPRO", 3, 0.0093),
    ):
        move = index.Close.pct_change()
        expected = lev * move - ((lev - 1) * (rate + 0.0075) + fee) / 252
        got = table["close"][fund].pct_change()
        np.testing.assert_allclose(got[1:], expected[1:], atol=1e-12)
        night = table["open"][fund] / table["close"][fund].shift() - 1
        expected = lev * (index.Open / index.Close.shift() - 1)
        np.testing.assert_allclose(night[1:], expected[1:], atol=1e-12)


def test_any_fund_can_be_made():
    pytest.importorskip("arch")
    mine = {"ONE": ("nasdaq", 1, 0.0), "FIVE": ("nasdaq", 5, 0.01)}
    table = simulated_funds(mine, spread=0.0)
    assert list(table["close"].columns) == ["ONE", "FIVE"]
    one, five = (table["close"][t].pct_change()[1:] for t in mine)
    paid = 5 * one - five
    assert np.allclose(paid, (4 * policy_rate(one.index) + 0.01) / 252, atol=1e-12)
    with pytest.raises(ValueError, match="got 'dax'"):
        simulated_funds({"X": ("dax", 2, 0.0)})


def flat(days):
    columns = pd.MultiIndex.from_product([["open", "close"], ["A"]])
    table = pd.DataFrame(1.0, days, columns)
    table.attrs = {"sources": {"A": "here"}}
    return table


def test_cash_earns_the_policy_rate():
    days = pd.bdate_range("2023-08-01", "2024-07-31", name="date")
    cash = with_cash(flat(days))
    assert list(cash["close"].columns) == ["A", "CASH"]
    grown = cash["close"]["CASH"].iloc[-1] - 1
    assert grown == pytest.approx(np.expm1(0.05375 * 365 / 360), rel=2e-3)
    assert (cash["open"]["CASH"] == cash["close"]["CASH"]).all()


def test_cash_earns_the_rate_of_its_day_and_keeps_the_sources():
    days = pd.DatetimeIndex(["2023-07-24", "2023-07-25", "2023-07-26"])
    cash = with_cash(flat(days))
    assert cash.attrs == {"sources": {"A": "here"}}
    grown = cash["close"]["CASH"].pct_change().iloc[1:] * 360
    np.testing.assert_allclose(grown, [0.05125, 0.05375])


def test_cash_is_added_once_and_a_fund_opens_at_no_less_than_nothing():
    days = pd.bdate_range("2023-08-01", periods=3)
    columns = pd.MultiIndex.from_product([["open", "close"], ["A"]])
    table = with_cash(pd.DataFrame(1.0, days, columns))
    with pytest.raises(ValueError, match="CASH already"):
        with_cash(table)
    wild = simulated_funds({"wild": ("nasdaq", 25, 0.0)})
    assert wild.min(axis=None) >= 0


def test_decisions_that_a_reader_can_look_up():
    """Board of Governors, "Open Market Operations"."""
    days = pd.DatetimeIndex(["2003-07-01", "2017-06-14", "2022-06-15", "2023-08-01"])
    assert policy_rate(days).tolist() == [0.01, 0.01125, 0.01625, 0.05375]
