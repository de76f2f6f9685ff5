"""Prices: read from where they are, adjusted, aligned by date, and refused where they are not fit for use."""

import re

import numpy as np
import pandas as pd
import pytest

from mlbook.leveraged_etfs import prices
from mlbook.leveraged_etfs.prices import PricesUnavailable, load_prices


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


class Yahoo:
    """Stands in for yfinance: gives what it is told, in the shape Yahoo gives it."""

    def __init__(self, monkeypatch, *answers):
        import yfinance

        self.answers, self.asked, self.zone = list(answers), 0, "America/New_York"
        self.waited = []
        monkeypatch.setattr(yfinance, "Ticker", lambda ticker: self)
        monkeypatch.setattr(prices.time, "sleep", self.waited.append)

    def history(self, period, auto_adjust, actions):
        assert (period, auto_adjust, actions) == ("max", False, False)
        self.asked += 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        answer = answer.rename(columns={"AdjClose": "Adj Close"})
        return answer.tz_localize(self.zone)


def test_opens_and_closes_are_adjusted_alike(folder):
    frame = raw()
    folder(AAA=frame)
    table = load_prices("AAA")
    np.testing.assert_allclose(table["close"]["AAA"], frame.AdjClose)
    np.testing.assert_allclose(table["open"]["AAA"], frame.Open * 0.5)
    name, known = table.attrs["sources"]["AAA"].split(", sha256 ")
    assert name == "AAA.csv in MLBOOK_PRICES" and re.fullmatch("[0-9a-f]{8}", known)
    assert table.attrs["files"]["AAA"].name == "AAA.csv"


def test_the_end_is_exclusive_and_carets_are_not_in_file_names(folder):
    folder(AAA=raw())
    table = load_prices("^AAA", "2020-01-06", "2020-01-09")
    assert [f"{d:%m-%d}" for d in table.index] == ["01-06", "01-07", "01-08"]
    assert list(table.columns) == [("open", "^AAA"), ("close", "^AAA")]


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
        "AAA: on 2 days no price moved (not traded, perhaps), the last on 2020-01-14"
    ]


def test_an_identical_day_twice_is_repaired_and_a_different_one_refused(folder):
    frame = raw()
    folder(AAA=pd.concat([frame, frame.iloc[[5]]]))
    table = load_prices("AAA")
    assert len(table) == len(frame)
    assert table.attrs["repairs"] == ["AAA: 1 days stood twice, with the same prices"]
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


def test_a_split_that_was_not_adjusted_is_noticed(folder):
    for factor in (0.5, 2.0, 0.1):
        frame = raw()
        frame.iloc[12:] *= factor
        folder(AAA=frame)
        with pytest.raises(ValueError, match="AAA moves .* 2020-01-20: a split"):
            load_prices("AAA")


def test_a_crash_of_a_threefold_fund_is_not_a_split(folder):
    frame = raw()
    frame.iloc[12:] *= 0.66
    folder(AAA=frame)
    assert len(load_prices("AAA")) == len(frame)


def test_a_gap_is_noticed(folder):
    frame = raw()
    folder(AAA=frame.drop(frame.index[5:11]))
    with pytest.raises(ValueError, match="no prices in the 9 days before 2020-01-17"):
        load_prices("AAA")


def test_borders(folder):
    folder(AAA=raw(), BBB=raw("2021-01-04"), CCC=raw().drop(columns="AdjClose"))
    for tickers, options, message in (
        ("AAA", dict(start="2021", end="2020"), "2020-01-01, is not after the start"),
        ("AAA", dict(start="2020", end="2020"), "is not after the start"),
        ("AAA", dict(start="2022"), "AAA has no prices from 2022-01-01"),
        ("AAA", dict(source="web"), "source is 'web'"),
        ([], {}, "named once"),
        (["AAA", "AAA"], {}, "named once"),
        ("../AAA", {}, "'../AAA' is not a ticker"),
        (["AAA", "BBB"], {}, "no day in common"),
        ("CCC", {}, "CCC lacks the columns AdjClose"),
    ):
        with pytest.raises(ValueError, match=message):
            load_prices(tickers, **options)


def test_an_unknown_ticker_says_what_each_source_answered(folder, monkeypatch):
    folder(AAA=raw())
    Yahoo(monkeypatch, raw().iloc[:0])
    with pytest.raises(PricesUnavailable) as error:
        load_prices("XXX")
    text = str(error.value)
    assert "the folder has AAA" in text and "Yahoo gives nothing" in text
    monkeypatch.delenv("MLBOOK_PRICES")
    with pytest.raises(PricesUnavailable, match="MLBOOK_PRICES is not set"):
        load_prices("AAA", source="folder")


def test_downloads_are_kept_with_date_and_digest(folder, monkeypatch):
    yahoo = Yahoo(monkeypatch, raw())
    first = load_prices("AAA", end="2020-02-01")
    again = load_prices("AAA", end="2020-02-01")
    assert yahoo.asked == 1
    pd.testing.assert_frame_equal(first, again, check_freq=False)
    assert first.attrs["sources"]["AAA"].startswith("yfinance, 20")
    assert "from the cache, sha256 " in again.attrs["sources"]["AAA"]
    fingerprints = {t.attrs["sources"]["AAA"][-8:] for t in (first, again)}
    assert len(fingerprints) == 1, "the same prices have the same digest"
    path = again.attrs["files"]["AAA"]
    damaged = pd.read_parquet(path)
    damaged.iloc[3, 1] += 0.01
    damaged.to_parquet(path)
    with pytest.raises(ValueError, match="damaged"):
        load_prices("AAA", end="2020-02-01")


def test_an_old_download_is_renewed_or_used_when_that_fails(folder, monkeypatch):
    yahoo = Yahoo(monkeypatch, raw(), OSError("no route to host"), raw(days=40))
    load_prices("AAA")
    (kept,) = (folder() / "data" / "prices").iterdir()
    kept.rename(kept.with_name("AAA_2020-02-20.parquet"))
    assert len(load_prices("AAA", end="2020-02-19")) == 30  # old enough for that end
    assert yahoo.asked == 1
    assert len(load_prices("AAA", end="2020-12-01")) == 30  # asked, in vain
    assert yahoo.asked == 2
    assert len(load_prices("AAA", end="2020-12-01")) == 40


def test_a_rate_limit_is_tried_again_and_then_told(folder, monkeypatch):
    from yfinance.exceptions import YFRateLimitError

    limit = YFRateLimitError()
    yahoo = Yahoo(monkeypatch, limit, raw())
    assert len(load_prices("AAA")) == 30 and yahoo.asked == 2
    yahoo = Yahoo(monkeypatch, *[limit] * 3)
    with pytest.raises(PricesUnavailable, match="refuses more requests"):
        load_prices("BBB")
    assert yahoo.asked == 3 and yahoo.waited == [2.0, 4.0]


def test_policy_rate():
    days = pd.DatetimeIndex(["2000-06-01", "2008-12-15", "2008-12-16", "2023-08-01"])
    assert prices.policy_rate(days).tolist() == [0.065, 0.01, 0.00125, 0.05375]
    for day in ("1998-01-05", "2026-03-02"):
        with pytest.raises(ValueError, match=f"was asked for {day}"):
            prices.policy_rate(pd.DatetimeIndex([day]))


def test_policy_rate_is_near_the_treasury_bill_of_the_french_library():
    arch = pytest.importorskip("arch.data.frenchdata")
    french = arch.load()["RF"]
    months = pd.to_datetime(french.index.as_unit("ns").asi8.astype(str), format="%Y%m")
    bill = pd.Series(french.to_numpy() * 12 / 100, months)["1999":]
    days = pd.bdate_range("1999-01-01", "2018-11-30")
    policy = prices.policy_rate(days).resample("MS").mean()
    gap = policy - bill
    assert len(gap) == 239 and gap.abs().mean() < 0.005 and abs(gap.mean()) < 0.004


def test_simulated_funds():
    pytest.importorskip("arch")
    table = prices.simulated_funds(["QQQ", "TQQQ"])
    assert list(table["close"].columns) == ["QQQ", "TQQQ"]
    assert "Nasdaq composite" in table.attrs["sources"]["TQQQ"]
    one, three = (table["close"][t].pct_change() for t in ("QQQ", "TQQQ"))
    assert np.polyfit(one[1:], three[1:], 1)[0] == pytest.approx(3, abs=1e-3)
    with pytest.raises(ValueError, match="BTAL"):
        prices.simulated_funds(["BTAL"])


def test_select_keeps_order_and_sources():
    table = pd.concat(
        {
            f: raw()[["Open", "Close"]].set_axis(["A", "B"], axis=1)
            for f in ("open", "close")
        },
        axis=1,
    )
    table.attrs = {"sources": {"A": "here"}}
    part = prices.select(table, ["B", "A"], "2020-01-06", "2020-01-09")
    assert list(part["close"].columns) == ["B", "A"] and len(part) == 3
    assert part.attrs == table.attrs
    with pytest.raises(ValueError, match="C are not in the table of A, B"):
        prices.select(table, ["C"])
    with pytest.raises(ValueError, match="no day from 2030"):
        prices.select(table, "A", "2030-01-01")


def test_cash_earns_the_policy_rate():
    days = pd.bdate_range("2023-08-01", "2024-07-31", name="date")
    table = pd.DataFrame(
        1.0, days, pd.MultiIndex.from_product([["open", "close"], ["A"]])
    )
    cash = prices.with_cash(table)
    assert list(cash["close"].columns) == ["A", "CASH"]
    grown = cash["close"]["CASH"].iloc[-1] - 1
    assert grown == pytest.approx(np.expm1(0.05375 * 365 / 360), rel=2e-3)
    assert (cash["open"]["CASH"] == cash["close"]["CASH"]).all()


def test_the_longest_closure_is_no_gap(folder):
    frame = raw("2001-08-01", days=60)
    closed = frame.drop(
        frame.loc["2001-09-11":"2001-09-14"].index
    )  # to Monday the 17th
    folder(AAA=closed)
    assert len(load_prices("AAA")) == 56
    folder(AAA=closed.drop(pd.Timestamp("2001-09-17")).drop(closed.index[40:48]))
    with pytest.raises(ValueError, match="8 days before 2001-09-18"):
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
    np.testing.assert_allclose(load_prices("AAA")["close"]["AAA"], frame.AdjClose)
    twin = frame.iloc[[5]].assign(Open=1.0)
    folder(AAA=pd.concat([frame, twin]))
    with pytest.raises(ValueError, match="two different rows"):
        load_prices("AAA")


def test_each_day_is_adjusted_by_its_own_factor(folder):
    frame = raw()
    frame.loc[frame.index >= "2020-01-20", ["Open", "Close"]] /= (
        2  # a split, adjusted for
    )
    frame.loc[frame.index >= "2020-01-20", "AdjClose"] *= 1.01  # and a dividend
    folder(AAA=frame)
    table = load_prices("AAA")
    np.testing.assert_allclose(table["close"]["AAA"], frame.AdjClose)
    np.testing.assert_allclose(table["open"]["AAA"] / table["close"]["AAA"], 0.99)
    frame.iloc[12:] *= 1.7  # a day that no fund has had, and no split
    folder(AAA=frame)
    assert len(load_prices("AAA")) == 30


def test_the_order_of_sources(folder, monkeypatch, tmp_path):
    yahoo = Yahoo(monkeypatch, raw(days=40), OSError("down"), OSError("down"))
    with pytest.raises(PricesUnavailable, match="nothing in data"):
        load_prices("AAA", source="cache")
    assert yahoo.asked == 0
    load_prices("AAA", source="yfinance")
    folder(AAA=raw(days=20), AAAB=raw(days=10))
    assert len(load_prices("AAA")) == 20  # the folder comes before the cache
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    raw(days=25).to_csv(elsewhere / "AAA.csv")
    assert (
        len(load_prices("AAA", folder=elsewhere)) == 25
    )  # and its argument before the setting
    assert len(load_prices("AAA", source="cache")) == 40
    with pytest.raises(PricesUnavailable, match="OSError: down"):
        load_prices(
            "AAA", source="yfinance"
        )  # who asks for fresh ones gets no old ones
    with pytest.raises(PricesUnavailable, match="MLBOOK_PRICES|there is no"):
        load_prices("CCC", source="folder")


def test_which_download_is_fresh_enough(folder, monkeypatch):
    yahoo = Yahoo(monkeypatch, raw(), raw(days=31), raw(days=32), raw(days=33))
    load_prices("AAA")
    cache = folder() / "data" / "prices"
    (kept,) = cache.iterdir()
    kept.rename(cache / "AAA_2020-02-20.parquet")
    assert len(load_prices("AAA", end="2020-02-20")) == 30  # made on the day of the end
    assert yahoo.asked == 1
    assert len(load_prices("AAA", end="2020-02-21")) == 31  # a day older than the end
    assert (
        len(load_prices("AAA", end="2200-01-01")) == 31
    )  # today's, for an end to come
    assert yahoo.asked == 2
    assert len(load_prices("AAA", end="2020-02-14")) == 31  # the newest of two
    Yahoo(monkeypatch, raw(days=12))
    assert len(load_prices("AAAB", end="2020-02-14")) == 12
    assert len(load_prices("AAA", end="2020-02-14")) == 31


def test_what_the_digest_covers(folder, monkeypatch):
    frame = raw()
    base = prices.digest(frame)
    for other in (
        frame.assign(AdjClose=frame.AdjClose * 1.01),
        frame.assign(Open=frame.Open * 1.01),
        frame.set_axis(frame.index + pd.Timedelta(days=1)),
    ):
        assert prices.digest(other) != base
    Yahoo(monkeypatch, frame)
    path = load_prices("AAA").attrs["files"]["AAA"]
    bare = pd.read_parquet(path)
    bare.attrs = {}
    bare.to_parquet(path)
    with pytest.raises(ValueError, match="damaged"):
        load_prices("AAA", source="cache")


def test_days_are_those_of_the_exchange(folder, monkeypatch):
    frame = raw()
    for name, hours, zone in (("AAA", 0, "Asia/Tokyo"), ("BBB", 9, "America/New_York")):
        moved = frame.set_axis(frame.index + pd.Timedelta(hours=hours))
        Yahoo(monkeypatch, moved).zone = zone
        assert list(load_prices(name).index) == list(frame.index)


def test_borders_of_the_policy_rate():
    ends = pd.DatetimeIndex(["2025-12-31", "2015-12-16", "1998-11-17"])  # in no order
    assert prices.policy_rate(ends).tolist() == [0.03625, 0.00375, 0.0475]
    with pytest.raises(ValueError, match="2026-01-01"):
        prices.policy_rate(pd.DatetimeIndex(["2025-06-02", "2026-01-01", "2025-07-01"]))


def test_cash_earns_the_rate_of_its_day_and_keeps_the_sources():
    days = pd.DatetimeIndex(["2023-07-24", "2023-07-25", "2023-07-26"])
    table = pd.DataFrame(
        1.0, days, pd.MultiIndex.from_product([["open", "close"], ["A"]])
    )
    table.attrs = {"sources": {"A": "here"}}
    cash = prices.with_cash(table)
    assert cash.attrs == table.attrs
    grown = cash["close"]["CASH"].pct_change().iloc[1:] * 360
    np.testing.assert_allclose(grown, [0.05125, 0.05375])


def test_simulated_funds_by_hand():
    nasdaq = pytest.importorskip("arch.data.nasdaq").load()
    from arch.data import sp500

    table = prices.simulated_funds()
    rate = prices.policy_rate(nasdaq.index)
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


def test_the_cache_of_a_longer_name_is_not_this_one(folder, monkeypatch):
    Yahoo(monkeypatch, raw())
    load_prices("AAAB")
    with pytest.raises(PricesUnavailable, match="nothing in"):
        load_prices("AAA", source="cache")


def test_a_cache_asked_for_by_name_may_be_old(folder, monkeypatch):
    Yahoo(monkeypatch, raw())
    load_prices("AAA")
    (kept,) = (folder() / "data" / "prices").iterdir()
    kept.rename(kept.with_name("AAA_2020-02-20.parquet"))
    assert len(load_prices("AAA", source="cache")) == 30
