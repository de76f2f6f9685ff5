"""Prices: adjusted, aligned by date, checked, and refused where they are not fit for use."""

import re

import numpy as np
import pandas as pd
import pytest
from pandas.tseries.holiday import USFederalHolidayCalendar
from test_sources import answering  # noqa: F401 (an autouse fixture)

from mlbook.leveraged_etfs import prices
from mlbook.leveraged_etfs.prices import (
    PricesUnavailable,
    adjust,
    load_prices,
)


def raw(start="2020-01-02", days=30, first=100.0, seed=0):
    index = pd.bdate_range(start, periods=days, name="Date")
    moves = np.random.default_rng(seed).normal(0, 0.01, days)
    close = first * np.exp(np.cumsum(moves))
    return pd.DataFrame(
        {"Open": close * 0.99, "Close": close, "AdjClose": close * 0.5}, index
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MLBOOK_PRICES", str(tmp_path))
    monkeypatch.chdir(tmp_path)  # the cache is relative to it

    def write(**frames):
        for ticker, frame in frames.items():
            frame.to_csv(tmp_path / f"{ticker}.csv")
        return tmp_path

    return write


def test_opens_and_closes_are_adjusted_alike(folder):
    frame = raw()
    folder(AAA=frame)
    table = load_prices("AAA")
    np.testing.assert_allclose(table["close"]["AAA"], frame.AdjClose)
    np.testing.assert_allclose(table["open"]["AAA"], frame.Open * 0.5)
    name, known = table.attrs["sources"]["AAA"].split(", sha256 ")
    assert name == "AAA.csv in MLBOOK_PRICES" and re.fullmatch("[0-9a-f]{8}", known)
    assert table.attrs["files"]["AAA"].name == "AAA.csv"
    assert table.attrs["repairs"] == []


def test_the_end_is_exclusive_and_indices_need_no_caret_in_file_names(folder):
    folder(NDX=raw())
    table = load_prices("^NDX", "2020-01-06", "2020-01-09")
    assert [f"{d:%m-%d}" for d in table.index] == ["01-06", "01-07", "01-08"]
    assert list(table.columns) == [("open", "^NDX"), ("close", "^NDX")]


def test_series_are_aligned_by_date_not_by_row(folder):
    a, b = raw(), raw("2020-01-10", seed=1)
    folder(AAA=a.drop(a.index[20]), BBB=b.drop(b.index[10:11]))
    with pytest.raises(ValueError, match="2 of 24 days are missing in some"):
        load_prices(["AAA", "BBB"])
    a, b = raw(days=300), raw("2020-01-10", days=290, seed=1)
    folder(AAA=a.drop(a.index[20]), BBB=b)
    table = load_prices(["AAA", "BBB"])
    for ticker, frame in (("AAA", a), ("BBB", b)):
        expected = frame.AdjClose.reindex(table.index)
        np.testing.assert_allclose(table["close"][ticker], expected)
    told = " ".join(table.attrs["repairs"])
    assert "1 days that not all have left out" in told
    assert "AAA: 10 days outside 2020-01-10" in told


def test_days_without_a_move_are_told_and_kept(folder):
    frame = raw()
    for day in (7, 8):
        frame.iloc[day] = [*frame[["Close", "Close", "AdjClose"]].iloc[6]]
    folder(AAA=frame)
    table = load_prices("AAA")
    assert len(table) == len(frame)
    assert table.attrs["repairs"] == [
        "AAA: on 2 days no price moved (not traded, perhaps), the last 2020-01-14"
    ]


def test_a_day_that_does_not_move_by_chance_is_not_told(folder):
    frame = raw(days=300)
    frame.iloc[7] = [*frame[["Close", "Close", "AdjClose"]].iloc[6]]
    folder(AAA=frame)
    assert load_prices("AAA").attrs["repairs"] == []


def test_an_identical_day_twice_is_repaired_and_a_different_one_refused(folder):
    frame = raw()
    folder(AAA=pd.concat([frame, frame.iloc[[5]]]))
    table = load_prices("AAA")
    assert len(table) == len(frame)
    assert table.attrs["repairs"] == [
        "AAA: 1 days stood twice, the later row is kept, the last 2020-01-09"
    ]
    folder(AAA=pd.concat([frame, frame.iloc[[5]] * 1.01]))
    with pytest.raises(ValueError, match="AAA has two different rows for 2020-01-09"):
        load_prices("AAA")


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("column", ["Open", "Close", "AdjClose"])
def test_a_price_that_cannot_be_is_named(folder, bad, column):
    frame = raw()
    frame.loc["2020-01-10", column] = bad
    folder(AAA=frame)
    with pytest.raises(ValueError, match="AAA .* not positive on 2020-01-10"):
        load_prices("AAA")


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_what_lies_outside_the_interval_is_not_looked_at(folder, bad):
    frame = raw()
    frame.iloc[5, :2] = bad
    frame.iloc[20, 0] = bad
    folder(AAA=frame)
    inside = load_prices("AAA", frame.index[7], frame.index[20])
    assert list(inside.index) == list(frame.index[7:20])


def test_the_row_before_the_interval_shows_a_split_on_its_first_day(folder):
    frame = raw()
    frame.iloc[12:] /= 2
    folder(AAA=frame)
    assert len(load_prices("AAA", frame.index[13])) == 17
    with pytest.raises(ValueError, match="AAA on 2020-01-20: .* a split"):
        load_prices("AAA", frame.index[12])
    folder(AAA=raw().drop(frame.index[5:11]))
    with pytest.raises(
        ValueError, match="2020-01-17: there are no prices in the 9 days"
    ):
        load_prices("AAA", frame.index[11])


@pytest.mark.parametrize("factor", [0.5, 2.0, 0.1, 10.0, 1 / 3, 2 / 3, 1.5])
def test_a_split_that_was_not_adjusted_is_noticed(folder, factor):
    frame = raw()
    frame.iloc[5:] *= factor  # on a day that moves by half a percent
    folder(AAA=frame)
    with pytest.raises(ValueError, match="AAA on 2020-01-09: the price moves .* split"):
        load_prices("AAA")


@pytest.mark.parametrize("factor", [2.0, 3.0, 10.0, 1.5, 2 / 3, 0.5])
def test_an_open_that_was_not_adjusted_for_a_split_is_noticed(folder, factor):
    frame = raw()
    frame.iloc[:12, 0] *= factor
    folder(AAA=frame)
    with pytest.raises(ValueError, match="open and close are a factor of"):
        load_prices("AAA")
    once = raw()
    once.iloc[12, 0] *= 10
    folder(AAA=once)
    with pytest.raises(ValueError, match="AAA on 2020-01-20: open and close"):
        load_prices("AAA")


def test_a_crash_of_a_threefold_fund_is_not_a_split(folder):
    frame = raw()
    frame.iloc[12:] *= 0.66
    frame.iloc[12, 0] = frame.iloc[11, 1] * 0.9  # it fell during the day
    folder(AAA=frame)
    assert len(load_prices("AAA")) == len(frame)


def test_a_rise_that_no_fund_has_had_is_no_split(folder):
    frame = raw()
    frame.iloc[12:] *= 1.7
    folder(AAA=frame)
    assert len(load_prices("AAA")) == 30


def test_a_dividend_and_an_adjusted_split_are_no_moves(folder):
    frame = raw()
    later = frame.index >= "2020-01-20"
    frame.loc[later, ["Open", "Close"]] /= 2  # a split, adjusted for
    frame.loc[later, "AdjClose"] *= 1.01  # and a dividend
    folder(AAA=frame)
    table = load_prices("AAA")
    np.testing.assert_allclose(table["close"]["AAA"], frame.AdjClose)
    np.testing.assert_allclose(table["open"]["AAA"] / table["close"]["AAA"], 0.99)


@pytest.mark.parametrize("rows", [4, 10, 30, 100])
def test_a_file_of_weeks_is_refused(folder, rows):
    frame = raw(days=rows)
    frame.index = pd.date_range("2018-01-05", periods=rows, freq="W-FRI", name="Date")
    folder(AAA=frame)
    with pytest.raises(ValueError, match="AAA: rows are 7 days apart"):
        load_prices("AAA")


def test_a_few_days_are_no_weeks():
    """Wherever an interval begins and ends, weekends and holidays in it are no reason to refuse it."""
    frame = raw("2015-01-01", days=130)
    frame = frame.drop(USFederalHolidayCalendar().holidays(), errors="ignore")
    for length in (1, 3, 4, 5):
        for first in range(len(frame) - length):
            part = frame.iloc[first : first + length]
            assert len(adjust(part, "AAA")[0]) == length


def test_a_file_of_months_is_refused(folder):
    frame = raw(days=30)
    frame.index = pd.date_range("2018-01-01", periods=30, freq="MS", name="Date")
    folder(AAA=frame)
    with pytest.raises(ValueError, match="no prices in the 31 days before"):
        load_prices("AAA")


def test_a_gap_is_noticed(folder):
    frame = raw()
    folder(AAA=frame.drop(frame.index[5:11]))
    with pytest.raises(
        ValueError, match="AAA on 2020-01-17: there are no prices in the 9 days before"
    ):
        load_prices("AAA")


def test_the_longest_closure_is_no_gap(folder):
    frame = raw("2001-08-01", days=60)
    closed = frame.drop(
        frame.loc["2001-09-11":"2001-09-14"].index
    )  # to Monday the 17th
    folder(AAA=closed)
    assert len(load_prices("AAA")) == 56
    folder(AAA=closed.drop(pd.Timestamp("2001-09-17")).drop(closed.index[40:48]))
    with pytest.raises(ValueError, match="2001-09-18: .* in the 8 days before"):
        load_prices("AAA")


def test_how_many_days_may_be_missing(folder):
    a, b = raw(days=150), raw(days=150, seed=1)
    folder(AAA=a, BBB=b.drop(b.index[70]))
    assert len(load_prices(["AAA", "BBB"])) == 149
    folder(AAA=a, BBB=b.drop(b.index[[20, 70]]))
    with pytest.raises(ValueError, match="2 of 150 days"):
        load_prices(["AAA", "BBB"])
    folder(AAA=raw(days=30), BBB=raw(days=1, seed=1))
    assert len(load_prices(["AAA", "BBB"])) == 1  # one day in common is enough


def test_rows_are_sorted_and_every_field_counts_in_a_twin(folder):
    frame = raw()
    folder(AAA=frame.iloc[::-1])
    table = load_prices("AAA")
    np.testing.assert_allclose(table["close"]["AAA"], frame.AdjClose)
    assert table.index.is_monotonic_increasing
    for column in ("Open", "Close", "AdjClose"):
        twin = frame.iloc[[5]].assign(**{column: frame[column].iloc[5] * 1.001})
        folder(AAA=pd.concat([frame, twin]))
        with pytest.raises(ValueError, match="two different rows"):
            load_prices("AAA")


def test_borders(folder):
    folder(AAA=raw(), BBB=raw("2021-01-04"), CCC=raw().drop(columns="AdjClose"))
    for tickers, options, message in (
        ("AAA", dict(start="2021", end="2020"), "2020-01-01, is not after the start"),
        ("AAA", dict(start="2020", end="2020"), "is not after the start"),
        ("AAA", dict(start="2022"), "AAA has no prices from 2022-01-01"),
        ("AAA", dict(end="2019"), "AAA has no prices from .* to 2019-01-01"),
        ("AAA", dict(source="web"), "source is 'web'"),
        ([], {}, "named once"),
        (["AAA", "AAA"], {}, "named once"),
        ("../AAA", {}, "'../AAA' is not a ticker"),
        (["AAA", "BBB"], {}, "no day in common"),
        ("CCC", {}, "CCC lacks the columns AdjClose"),
    ):
        with pytest.raises(ValueError, match=message):
            load_prices(tickers, **options)


def test_the_folder_that_is_named_comes_before_the_setting(folder, tmp_path):
    folder(AAA=raw(days=20), AAAB=raw(days=10))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    raw(days=25).to_csv(elsewhere / "AAA.csv")
    assert len(load_prices("AAA")) == 20
    assert len(load_prices("AAA", folder=elsewhere)) == 25
    with pytest.raises(PricesUnavailable, match="no file of CCC"):
        load_prices("CCC", source="folder")


def test_an_index_that_was_not_computed_at_the_open_opens_at_the_close_before():
    frame = raw()
    frame.loc[frame.index[3:6], "Open"] = [0.0, np.nan, 0.0]
    for ticker in ("^AAA", "AAA"):
        if ticker == "AAA":
            with pytest.raises(ValueError, match="not positive on 2020-01-07"):
                adjust(frame, ticker)
            continue
        table, told = adjust(frame, ticker)
        np.testing.assert_allclose(table.open.iloc[3:6], frame.Close.iloc[2:5] / 2)
        assert "3 days without an open" in told[0] and "2020-01-09" in told[0]


def sample():
    columns = ["A", "B"]
    both = {
        f: raw()[["Open", "Close"]].set_axis(columns, axis=1) for f in prices.FIELDS
    }
    table = pd.concat(both, axis=1)
    table.attrs = {"sources": {"A": "here"}}
    return table


def test_select_keeps_order_and_sources():
    table = sample()
    part = prices.select(table, ["B", "A"], "2020-01-06", "2020-01-09")
    assert list(part["close"].columns) == ["B", "A"] and len(part) == 3
    assert part.attrs == table.attrs
    with pytest.raises(ValueError, match="C are not in the table of A, B"):
        prices.select(table, ["C"])
    with pytest.raises(ValueError, match="no day from 2030"):
        prices.select(table, "A", "2030-01-01")


def test_tables_of_one_ticker_each_are_joined_by_date(folder):
    folder(AAA=raw(), BBB=raw("2020-01-10", seed=1), CCC=raw(seed=2))
    tables, told = prices.load_what_is_there(["AAA", "BBB", "CCC"])
    assert told == []
    both = prices.join(tables, ["BBB", "AAA"], "2020-01-14", "2020-01-20")
    whole = prices.select(load_prices(["AAA", "BBB"]), ["BBB", "AAA"])
    assert list(both.columns) == list(whole.columns)
    expected = whole.loc["2020-01-14":"2020-01-17"]
    pd.testing.assert_frame_equal(both, expected, check_freq=False)


def test_what_is_joined_reaches_from_start_to_end(folder):
    """A closure of a week is granted at both."""
    folder(AAA=raw(days=60), BBB=raw("2020-01-10", days=20, seed=1))  # to February 6th
    tables, _ = prices.load_what_is_there(["AAA", "BBB"])
    for start, end, first, last in (
        ("2020-01-03", None, "2020-01-10", "2020-02-06"),
        (None, "2020-02-13", "2020-01-10", "2020-02-06"),
        ("2020-01-05", "2020-02-06", "2020-01-10", "2020-02-05"),
        (None, None, "2020-01-10", "2020-02-06"),
        (pd.Timestamp("2020-01-20"), "2020-01-21", "2020-01-20", "2020-01-20"),
    ):
        both = prices.join(tables, iter(["AAA", "BBB"]), start, end)
        assert [f"{d:%Y-%m-%d}" for d in both.index[[0, -1]]] == [first, last]
        assert (both.index.to_series().diff().dt.days.dropna() <= 3).all()
    for start, end, told in (
        ("2020-01-02", None, "BBB does not reach from 2020-01-02 to the beginning or"),
        (None, "2020-02-14", "BBB does not reach from the beginning or end to 2020-02"),
        ("2020-01-02", "2020-02-01", "BBB does not reach from 2020-01-02 to 2020-02-0"),
        ("2020-02-10", "2020-02-20", "BBB does not reach"),  # it has nothing there
        ("2020-02-10", None, "BBB does not reach"),
        (None, "2020-01-02", "AAA does not reach"),
        ("2019-12-01", "2020-02-01", "AAA does not reach"),
    ):
        with pytest.raises(ValueError, match=told):
            prices.join(tables, ["AAA", "BBB"], start, end)
    alone = prices.join(tables, ["AAA"], "2020-01-02", "2020-02-14")
    assert len(alone) == 31, "of the others nothing is asked"


def test_what_lies_outside_is_cut_before_days_are_missed(folder):
    a, b = raw(days=150), raw(days=150, seed=1)
    folder(AAA=a, BBB=b.drop(b.index[[20, 22, 24, 26]]))
    tables, _ = prices.load_what_is_there(["AAA", "BBB"])
    assert len(prices.join(tables, ["AAA", "BBB"], a.index[27])) == 123
    assert len(prices.join(tables, ["AAA", "BBB"], None, a.index[20])) == 20
    for start, end in ((None, None), (a.index[10], a.index[40])):
        with pytest.raises(ValueError, match=r"4 of (150|30) days are missing in some"):
            prices.join(tables, ["AAA", "BBB"], start, end)


@pytest.mark.parametrize("bad", [0.0, np.nan])
@pytest.mark.parametrize(
    "lacks", [["Open"], ["Close"], ["AdjClose"], ["Open", "AdjClose"]]
)
def test_a_last_row_that_lacks_prices_is_left_out_and_told(folder, bad, lacks):
    frame = raw()
    frame.loc[frame.index[-1], lacks] = bad
    folder(AAA=frame)
    table = load_prices("AAA")
    np.testing.assert_allclose(table["close"]["AAA"], frame.AdjClose[:-1])
    assert table.attrs["repairs"] == [
        "AAA: 1 last day with some of its prices left out, the last 2020-02-12"
    ]
    frame.loc[frame.index[-2], lacks] = bad  # two of them are no accident
    folder(AAA=frame)
    with pytest.raises(ValueError, match="missing or not positive on 2020-02-11"):
        load_prices("AAA")


def test_only_the_last_row_may_lack_prices_and_none_be_wrong(folder):
    frame = raw()
    frame.loc[frame.index[-2], "Close"] = np.nan
    folder(AAA=frame)
    with pytest.raises(ValueError, match="missing or not positive on 2020-02-11"):
        load_prices("AAA")
    for bad in (-1.0, np.inf):
        frame = raw()
        frame.loc[frame.index[-1], "Close"] = bad
        folder(AAA=frame)
        with pytest.raises(ValueError, match="missing or not positive on 2020-02-12"):
            load_prices("AAA")
    folder(AAA=raw(days=1).assign(Close=np.nan))
    with pytest.raises(ValueError, match="AAA has no prices"):
        load_prices("AAA")


def test_the_last_row_is_the_last_that_has_any_price(folder):
    frame = raw()
    frame.iloc[-1] = np.nan
    frame.loc[frame.index[-2], "AdjClose"] = np.nan
    folder(AAA=frame)
    table = load_prices("AAA")
    assert len(table) == 28 and len(table.attrs["repairs"]) == 2


def test_an_index_without_its_last_open_keeps_the_row():
    frame = raw()
    frame.loc[frame.index[-1], "Open"] = 0.0
    table, told = adjust(frame, "^AAA")
    assert len(table) == 30
    assert table.open.iloc[-1] == pytest.approx(frame.Close.iloc[-2] / 2)
    assert told == [
        "^AAA: 1 days without an open, for which the close before stands, the last 2020-02-12"
    ]
    table, told = adjust(frame, "AAA")
    assert len(table) == 29 and "1 last day with some" in told[0]
    frame = raw()
    frame.loc[frame.index[-1], "Close"] = np.nan  # no open makes up for a close
    table, told = adjust(frame, "^AAA")
    assert len(table) == 29 and told == [
        "^AAA: 1 last day with some of its prices left out, the last 2020-02-12"
    ]


def test_what_is_not_used_is_told_by_its_name(folder):
    frame = raw()
    frame.iloc[9:] *= 3
    folder(BAD=frame, AAA=raw(), LATE=raw("2021-01-04"))
    names = ["BAD", "LATE", "AAA", "a/b"]
    tables, told = prices.load_what_is_there(names, "2020-01-02", "2020-02-10")
    assert list(tables) == ["AAA"]
    assert [t.split(": ")[0] for t in told] == [
        "BAD is not used",
        "LATE is not used",
        "a/b is not used",
    ]


def with_actions(day, **actions):
    """A history in which every price is adjusted, and what was paid or split on `day`."""
    frame = raw(days=60).assign(AdjClose=lambda x: x.Close, Dividends=0.0, Splits=0.0)
    for name, value in actions.items():
        frame.loc[frame.index[day], name] = value
    return frame


@pytest.mark.parametrize("ratio", [4 / 3, 1.25, 0.8, 0.6])
def test_a_split_is_known_by_its_day(ratio):
    frame = with_actions(30, Splits=ratio)
    assert len(adjust(frame, "AAA")[0]) == 60, "adjusted for"
    frame.iloc[:30, :3] *= ratio
    with pytest.raises(
        ValueError, match="AAA on .*: a split that its prices do not have"
    ):
        adjust(frame, "AAA")


def test_a_date_is_no_number(tmp_path):
    for day in (20200101, 2020.0):
        with pytest.raises(ValueError, match="dates are written 2020-01-31"):
            load_prices("AAA", day, folder=tmp_path)


def test_one_ticker_is_not_its_letters(tmp_path):
    assert prices.load_what_is_there("AAA", source="folder", folder=tmp_path)[1][
        0
    ].startswith("missing: AAA;")


def test_small_dividends_are_added_up():
    frame = with_actions(30)
    frame.loc[frame.index[5::10], "Dividends"] = 0.5  # six, of half a percent
    with pytest.raises(ValueError, match="dividends of .* were paid, .* has 0.0%"):
        adjust(frame, "AAA")
    share = (frame.Dividends / frame.Close.shift()).fillna(0.0)
    right = frame.assign(
        AdjClose=frame.Close / (1 - share).cumprod() * (1 - share).prod()
    )
    assert len(adjust(right, "AAA")[0]) == 60
    twice = frame.assign(AdjClose=right.AdjClose**2 / frame.Close)
    with pytest.raises(ValueError, match="were paid, its adjusted close has"):
        adjust(twice, "AAA")


def test_a_stock_dividend_is_lost_among_the_moves():
    frame = with_actions(30, Splits=1.05)
    frame.iloc[30:, :3] *= 0.97  # a fall of that day
    assert len(adjust(frame, "AAA")[0]) == 60


def test_a_dividend_is_in_the_adjusted_close_and_was_felt():
    frame = with_actions(30, Dividends=3.0)
    with pytest.raises(ValueError, match="adjusted close does not have"):
        adjust(frame, "AAA")
    before = frame.Close.iloc[29]
    frame.iloc[:30, 2] *= 1 - 3.0 / before
    assert len(adjust(frame, "AAA")[0]) == 60
    frame = with_actions(30, Dividends=40.0)
    frame.iloc[:30, 2] *= 1 - 40.0 / before
    with pytest.raises(ValueError, match="its price did not feel"):
        adjust(frame, "AAA")
