"""Taxes: lot by lot, by year, and paid out of the account."""

import math

import numpy as np
import pandas as pd
import pytest
from test_backtest import market

from mlbook.leveraged_etfs.backtest import dca, first_days, follow, rebalance
from mlbook.leveraged_etfs.taxes import Lots, Tax


def trades(*rows):
    frame = pd.DataFrame(rows, columns=["day", "ticker", "units", "price", "cost"])
    return frame.assign(day=pd.to_datetime(frame.day))


def after_tax(trades, tax):
    """Net gains realised by `trades`, with losses carried in, and the tax on them, by calendar year."""
    lots, rows = Lots(tax), {}
    for year, group in trades.groupby(trades.day.dt.year):
        for row in group.itertuples(index=False):
            lots.trade(row.day, row.ticker, row.units, row.price, row.cost)
        short, long = lots.short, lots.long
        rows[year] = {"short": short, "long": long, "tax": lots.settle()}
    return pd.DataFrame.from_dict(rows, orient="index")


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


def test_best_knows_that_a_year_is_not_more_than_a_year():
    history = trades(
        ("2020-01-02", "A", 1, 100.0, 0.0),
        ("2020-06-01", "A", 1, 150.0, 0.0),
        ("2021-01-02", "A", -1, 200.0, 0.0),  # both short: 0.4 · 100 against 0.4 · 50
    )
    best = after_tax(history, Tax(0.4, 0.1, "best"))
    assert best.loc[2021].tolist() == [50.0, 0.0, 20.0]


def test_best_lots_weigh_gains_by_their_rates():
    history = trades(
        ("2020-01-02", "A", 1, 100.0, 0.0),  # long: 0.2 · 300
        ("2021-01-04", "A", 1, 200.0, 0.0),  # short: 0.4 · 200
        ("2021-03-01", "A", -1, 400.0, 0.0),
    )
    best = after_tax(history, Tax(0.4, 0.2, "best"))
    assert best.loc[2021].tolist() == [0.0, 300.0, 60.0]


def test_costs_belong_to_the_basis():
    history = trades(
        ("2020-01-02", "A", 2, 100.0, 6.0), ("2020-02-03", "A", -1, 110.0, 2.0)
    )
    assert after_tax(history, Tax()).loc[2020, "short"] == pytest.approx(110 - 2 - 103)


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


def test_a_leap_day_is_more_than_a_year_before_the_first_of_march():
    for day, tax in (("2021-02-28", 0.4), ("2021-03-01", 0.2)):
        history = trades(("2020-02-29", "A", 1, 100.0, 0.0), (day, "A", -1, 200.0, 0.0))
        assert after_tax(history, Tax(0.4, 0.2)).tax.sum() == pytest.approx(100 * tax)


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


def test_a_lot_has_a_number_of_units_and_a_day_without_hours():
    lots = Lots(Tax(0.35, 0.15))
    for units, price in ((0.0, 1.0), (math.nan, 1.0), (1.0, math.inf)):
        with pytest.raises(ValueError, match="no trade"):
            lots.trade(pd.Timestamp("2020-01-02"), "A", units, price, 0.0)
    lots.trade(pd.Timestamp("2020-01-02 15:00"), "A", 1.0, 100.0, 0.0)
    lots.trade(pd.Timestamp("2021-01-02 16:00"), "A", -1.0, 200.0, 0.0)
    assert lots.due() == pytest.approx(35)


def test_nearly_all_is_not_more_than_all():
    lots = Lots(Tax())
    lots.trade(pd.Timestamp("2020-01-02"), "A", 10.0, 100.0, 0.0)
    with pytest.raises(ValueError, match="more than held"):
        lots.trade(pd.Timestamp("2020-02-03"), "A", -10.1, 100.0, 0.0)
