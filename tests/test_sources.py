"""Where prices are found: files of any usual form, what Yahoo sends on a bad day, and what is kept of it."""

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlbook.leveraged_etfs import sources
from mlbook.leveraged_etfs.prices import (
    PricesUnavailable,
    load_prices,
    load_what_is_there,
)

NEW_YORK = "America/New_York"


def history(days, seed=0, first=100.0, dividends=0.9):
    """A series as yfinance gives it that was asked for unadjusted prices."""
    moves = np.random.default_rng(seed).normal(0, 0.01, (2, len(days)))
    close = first * np.exp(np.cumsum(moves[0]))
    opened = close * np.exp(moves[1] / 3)
    table = {
        "Open": opened,
        "High": np.maximum(opened, close) * 1.001,
        "Low": np.minimum(opened, close) * 0.999,
        "Close": close,
        "Adj Close": close * dividends,
        "Volume": 1_000_000,
    }
    return pd.DataFrame(table, days.rename("Date"))


class Yahoo:
    """Stands in for yfinance, and for the clock: gives what Yahoo has at `now`, today's unfinished row with it."""

    def __init__(self, monkeypatch, now, **series):
        import yfinance

        self.at(now)
        self.series, self.asked, self.waited = series, [], []
        self.zone, self.closes, self.currencies = NEW_YORK, "16:00", {}
        monkeypatch.setattr(yfinance, "Ticker", self._ticker)
        monkeypatch.setattr(
            pd.Timestamp, "now", lambda tz=None: self.now.tz_convert(tz)
        )
        monkeypatch.setattr(sources.time, "sleep", self.waited.append)

    def at(self, now, zone=NEW_YORK):
        self.now = pd.Timestamp(now, tz=zone)

    def _ticker(self, name):
        self.name = name
        return self

    def history(self, period, auto_adjust, actions):
        assert (period, auto_adjust, actions) == ("max", False, True)
        self.asked.append(self.name)
        answer = self.series.get(self.name, pd.DataFrame())
        if isinstance(answer, list):  # one for each time
            answer = answer.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if answer is None or answer.empty:
            return answer
        answer = answer.tz_localize(self.zone)
        answer = answer[answer.index <= self.now]
        if answer.index[-1] == self._today() and self.now < self._end():
            answer.iloc[-1, :5] *= 0.95  # the price of the moment
        return answer

    @property
    def history_metadata(self):
        start = self._today() + pd.Timedelta("9:30:00")
        regular = {"start": start, "end": self._end()}
        money = self.currencies.get(self.name)
        return {"currentTradingPeriod": {"regular": regular}, "currency": money}

    def _today(self):
        return self.now.tz_convert(self.zone).normalize()

    def _end(self):
        return self._today() + pd.Timedelta(f"{self.closes}:00")


SPRING = pd.bdate_range("2024-01-02", "2024-04-30")  # summer time began on March 10th


@pytest.fixture(autouse=True)
def answering():
    """Yahoo has not failed before a test."""
    sources._failed.clear()
    yield
    sources._failed.clear()


@pytest.fixture
def yahoo(tmp_path, monkeypatch):
    """On Thursday, March 14th 2024, at noon in New York."""
    monkeypatch.delenv("MLBOOK_PRICES", raising=False)
    monkeypatch.chdir(tmp_path)  # the cache is relative to it
    return Yahoo(monkeypatch, "2024-03-14 12:00", AAA=history(SPRING))


def cached(path="data/prices"):
    return sorted(os.listdir(path)) if os.path.exists(path) else []


# --- Downloads and their clock -------------------------------------------------------------------


def test_a_price_of_noon_is_no_close(yahoo):
    noon = load_prices("AAA", end="2024-04-01")
    assert noon.index[-1] == pd.Timestamp("2024-03-13")
    assert noon.attrs["repairs"] == [
        "AAA: 2024-03-14 left out, its session was not over when the prices were taken"
    ]
    right = yahoo.series["AAA"]["Adj Close"]
    np.testing.assert_allclose(noon["close"]["AAA"], right[:"2024-03-13"])


@pytest.mark.parametrize("end", ["2024-04-01", "2024-03-15", None])
def test_what_was_downloaded_at_noon_is_renewed_in_the_evening(yahoo, end):
    load_prices("AAA", end=end)
    yahoo.at("2024-03-14 16:29")
    assert load_prices("AAA", end=end).index[-1] == pd.Timestamp("2024-03-13")
    assert len(yahoo.asked) == 1, "the close is not published yet"
    yahoo.at("2024-03-14 16:31")
    evening = load_prices("AAA", end=end)
    assert len(yahoo.asked) == 2 and evening.index[-1] == pd.Timestamp("2024-03-14")
    right = yahoo.series["AAA"]["Adj Close"]["2024-03-14"]
    assert evening["close"]["AAA"].iloc[-1] == pytest.approx(right)
    assert evening.attrs["repairs"] == []


def test_an_end_that_lies_behind_is_not_renewed(yahoo):
    load_prices("AAA", end="2024-03-14")
    yahoo.at("2025-01-01 12:00")
    load_prices("AAA", end="2024-03-14")
    assert len(yahoo.asked) == 1
    load_prices("AAA", end="2024-03-15")
    assert len(yahoo.asked) == 2


def test_fridays_evening_is_fresh_until_mondays(yahoo):
    for now, times in (
        ("2024-03-15 18:00", 1),
        ("2024-03-17 12:00", 1),  # Sunday
        ("2024-03-18 15:00", 1),
        ("2024-03-18 16:31", 2),
        ("2024-03-19 00:10", 2),
    ):
        yahoo.at(now)
        load_prices("AAA", end="2024-04-01")
        assert len(yahoo.asked) == times, now


def test_a_session_is_over_by_the_clock_of_its_exchange(yahoo):
    yahoo.zone, yahoo.closes = "Asia/Tokyo", "15:30"
    for now, last in (
        ("2024-03-14 01:59", "2024-03-13"),  # 14:59 in Tokyo
        ("2024-03-14 03:01", "2024-03-14"),  # half an hour after the close
    ):
        yahoo.at(now)
        table = load_prices("AAA", end="2024-04-01")
        assert table.index[-1] == pd.Timestamp(last)
        assert table.index.tz is None
    assert len(yahoo.asked) == 2


def test_where_nobody_says_when_a_session_ends_today_is_not_over(yahoo, monkeypatch):
    monkeypatch.setattr(Yahoo, "history_metadata", {})
    yahoo.at("2024-03-14 17:00")
    assert load_prices("AAA").index[-1] == pd.Timestamp("2024-03-14"), "New York"
    yahoo.zone = "Europe/Berlin"
    yahoo.at("2024-03-14 23:00", "Europe/Berlin")
    table = load_prices("AAA", source="yfinance")
    assert table.index[-1] == pd.Timestamp("2024-03-13")


def test_the_last_day_over():
    def over(now, zone=NEW_YORK, close="16:00"):
        made = pd.Timestamp(now, tz=zone).tz_convert("UTC")
        found = sources.Found(None, "", None, made, zone, close)
        return f"{found.last_over():%m-%d}"

    assert over("2024-03-14 16:29:59") == "03-13"
    assert over("2024-03-14 16:30") == over("2024-03-14 23:59") == "03-14"
    assert over("2024-03-15 00:01") == over("2024-03-15 16:00") == "03-14"
    assert over("2024-03-14 13:31", close="13:00") == "03-14"


def test_a_download_is_one_file_with_its_time_zone_and_digest(yahoo):
    table = load_prices("AAA")
    assert cached() == ["AAA.parquet"]
    kept = pd.read_parquet("data/prices/AAA.parquet")
    assert kept.attrs == {
        "made": "2024-03-14T16:00:00+00:00",
        "zone": NEW_YORK,
        "close": "16:00",
        "currency": None,
        "digest": sources.digest(kept),
    }
    source = table.attrs["sources"]["AAA"]
    assert source == f"yfinance, 2024-03-14, sha256 {kept.attrs['digest'][:8]}"
    again = load_prices("AAA")
    pd.testing.assert_frame_equal(table, again, check_freq=False)
    assert "2024-03-14, from the cache, sha256" in again.attrs["sources"]["AAA"]
    assert again.attrs["files"]["AAA"].name == "AAA.parquet"
    yahoo.at("2024-03-14 17:00")
    load_prices("AAA", source="yfinance")
    assert cached() == ["AAA.parquet"], "the new one takes the place of the old one"


def test_a_refused_download_is_not_kept(yahoo):
    good = yahoo.series["AAA"]
    split = good.copy()
    split.loc["2024-02-01":] /= 2
    yahoo.series["AAA"] = [split, good]
    with pytest.raises(ValueError, match="a split that was not adjusted"):
        load_prices("AAA")
    assert cached() == []
    assert len(load_prices("AAA")) == 52 and len(yahoo.asked) == 2
    assert cached() == ["AAA.parquet"]


def test_a_refused_download_does_not_replace_a_good_one(yahoo):
    load_prices("AAA", end="2024-04-01")
    good = pd.read_parquet("data/prices/AAA.parquet")
    broken = yahoo.series["AAA"].assign(Open=0.0)
    yahoo.series["AAA"] = broken
    yahoo.at("2024-03-15 17:00")
    with pytest.raises(ValueError, match="not positive"):
        load_prices("AAA", end="2024-04-01")
    pd.testing.assert_frame_equal(pd.read_parquet("data/prices/AAA.parquet"), good)


@pytest.mark.parametrize("how", ["a byte", "half", "a price", "no attrs", "columns"])
def test_a_damaged_cache_is_downloaded_again(yahoo, how):
    path = load_prices("AAA").attrs["files"]["AAA"]
    whole, table = path.read_bytes(), pd.read_parquet(path)
    if how == "a byte":
        path.write_bytes(b"X" + whole[1:-1])
    elif how == "half":
        path.write_bytes(whole[: len(whole) // 2])
    else:
        if how == "a price":
            table.iloc[3, 1] += 0.01
        elif how == "no attrs":
            table.attrs = {}
        else:
            table = table.drop(columns="Open")
        table.to_parquet(path)
    with pytest.raises(PricesUnavailable, match="damaged"):
        load_prices("AAA", source="cache")
    assert len(load_prices("AAA")) == 52 and len(yahoo.asked) == 2
    assert len(load_prices("AAA", source="cache")) == 52


def test_old_prices_are_better_than_none_but_not_for_who_asks_for_new_ones(yahoo):
    load_prices("AAA", end="2024-04-01")
    yahoo.series["AAA"] = OSError("no route to host")
    yahoo.at("2024-03-20 17:00")
    old = load_prices("AAA", end="2024-04-01")
    assert old.index[-1] == pd.Timestamp("2024-03-13") and len(yahoo.asked) == 2
    assert len(load_prices("AAA", source="cache")) == len(old)
    assert len(yahoo.asked) == 2
    with pytest.raises(PricesUnavailable, match="OSError: no route to host"):
        load_prices("AAA", source="yfinance")


def test_a_rate_limit_is_tried_again_and_then_told(yahoo):
    from yfinance.exceptions import YFRateLimitError

    limit = YFRateLimitError()
    yahoo.series["AAA"] = [limit, yahoo.series["AAA"]]
    yahoo.series["BBB"] = limit
    assert len(load_prices("AAA")) == 52 and yahoo.waited == [2.0]
    with pytest.raises(PricesUnavailable, match="refuses more requests"):
        load_prices("BBB")
    assert yahoo.asked == ["AAA"] * 2 + ["BBB"] * 3 and yahoo.waited == [2.0, 2.0, 4.0]


# --- What Yahoo sends ----------------------------------------------------------------------------


def test_the_old_rows_of_an_index_do_not_matter_to_who_asks_for_new_ones(yahoo):
    days = pd.bdate_range("1927-12-30", "2024-04-30")
    holiday = (days >= "1933-03-04") & (days <= "1933-03-14")
    table = history(days[~holiday], dividends=1.0)
    table.loc["1962-01-02":"1982-04-19", "Open"] = 0.0
    yahoo.series["^GSPC"] = table
    since = load_prices("^GSPC", start="1999-01-04")
    assert since.index[0] == pd.Timestamp("1999-01-04")
    assert since.index[-1] == pd.Timestamp("2024-03-13")
    np.testing.assert_allclose(
        since["open"]["^GSPC"], table.Open["1999-01-04":"2024-03-13"]
    )
    with pytest.raises(ValueError, match=r"\^GSPC on 1933-03-15: .* 12 days before"):
        load_prices("^GSPC")
    sixties = load_prices("^GSPC", "1961-12-01", "1965-01-01")
    closed = sixties.loc["1962-01-02":]
    before = sixties["close"]["^GSPC"].shift()[closed.index]
    np.testing.assert_allclose(closed["open"]["^GSPC"], before)
    (told,) = sixties.attrs["repairs"][-1:]
    assert "783 days without an open" in told and "the last 1964-12-31" in told
    assert len(yahoo.asked) == 1, "one download has all of them"


def test_empty_rows_and_a_day_twice_are_mended_and_told(yahoo):
    yahoo.at("2024-03-14 17:00")
    good = yahoo.series["AAA"][:"2024-03-14"]
    prices = list(good.columns[:5])
    sent = good.copy()
    sent.loc[pd.to_datetime(["2024-01-15", "2024-02-19"]), prices] = np.nan
    again = good.iloc[[-1]].round(2)  # a closing price, and the same again, rounded
    sent = pd.concat([sent, again])
    yahoo.series["AAA"] = sent
    table = load_prices("AAA")
    assert table.attrs["repairs"] == [
        "AAA: 2 days without any price left out, the last 2024-02-19",
        "AAA: 1 days stood twice, the later row is kept, the last 2024-03-14",
    ]
    assert len(table) == len(good) - 2
    assert table["close"]["AAA"].iloc[-1] == again["Adj Close"].iloc[0]
    nothing = good.iloc[[-1]].assign(**dict.fromkeys(prices, np.nan), Volume=0)
    nothing.index += pd.Timedelta(days=1)
    yahoo.series["AAA"] = pd.concat([good, nothing])
    yahoo.at("2024-03-15 17:00")
    table = load_prices("AAA", source="yfinance")
    assert table.index[-1] == good.index[-1]
    assert "1 days without any price left out" in table.attrs["repairs"][0]


def test_an_unknown_ticker_says_what_each_source_answered(yahoo, tmp_path):
    yahoo.series["AAA"].to_csv(tmp_path / "AAA.csv")
    with pytest.raises(PricesUnavailable) as error:
        load_prices("XXX", folder=tmp_path)
    text = str(error.value)
    assert "which has AAA.csv" in text and "Yahoo gives nothing" in text
    with pytest.raises(PricesUnavailable, match="MLBOOK_PRICES is not set"):
        load_prices("AAA", source="folder")
    with pytest.raises(PricesUnavailable, match="has no CSV files"):
        load_prices("AAA", source="folder", folder=tmp_path / "nowhere")


def test_the_order_of_sources(yahoo, tmp_path):
    with pytest.raises(PricesUnavailable, match="nothing in data"):
        load_prices("AAA", source="cache")
    assert yahoo.asked == []
    load_prices("AAA")
    yahoo.series["AAA"].iloc[:20].to_csv(tmp_path / "AAA.csv")
    assert len(load_prices("AAA", folder=tmp_path)) == 20  # before the cache
    assert len(load_prices("AAA", source="cache", folder=tmp_path)) == 52
    assert len(load_prices("AAA", source="yfinance", folder=tmp_path)) == 52
    assert len(yahoo.asked) == 2


def test_what_is_there_is_loaded_and_the_rest_told(yahoo):
    bad = history(SPRING, 1)
    bad.loc["2024-02-01":] *= 3
    yahoo.series |= {"BAD": bad, "CCC": history(SPRING, 2)}
    tables, told = load_what_is_there(["AAA", "BAD", "NONE", "CCC"], end="2024-03-14")
    assert list(tables) == ["AAA", "CCC"]
    assert list(tables["CCC"]["close"].columns) == ["CCC"]
    refused, missing = (t for t in told if "left out" not in t)
    assert refused.startswith("BAD is not used: BAD on 2024-02-01: the price")
    assert missing.startswith("missing: NONE; of the first: no prices of NONE. ")
    assert missing.endswith(
        "Yahoo gives nothing under this name (without a connection, too)"
    )
    assert yahoo.asked == ["AAA", "BAD", "NONE", "CCC"]


def test_all_that_are_missing_are_told_in_one_line(yahoo):
    tables, told = load_what_is_there(["X1", "AAA", "X2", "X3"], end="2024-03-14")
    assert list(tables) == ["AAA"]
    (line,) = (t for t in told if "missing" in t)
    assert line.startswith("missing: X1, X2, X3; of the first: no prices of X1. ")
    assert line == told[-1] and sum("no prices of" in t for t in told) == 1


def down(*names):
    """What Yahoo has of them while it cannot be reached."""
    return {name: OSError(f"{name} is down") for name in names}


def test_after_two_failures_in_a_row_yahoo_is_left_alone(yahoo, tmp_path):
    load_prices("AAA")  # into the cache
    history(SPRING, 3)[:"2024-03-13"].to_csv(tmp_path / "DDD.csv")
    yahoo.asked.clear()
    names = ["X1", "X2", "X3", "AAA", "DDD", "X4", "X5"]
    yahoo.series |= down(*names)
    tables, told = load_what_is_there(names, end="2024-03-14", folder=tmp_path)
    assert list(tables) == ["AAA", "DDD"]
    assert told[-1].startswith("missing: X1, X2, X3, X4, X5; of the first: no prices")
    assert told[-1].endswith("OSError: X1 is down"), "what happened, not the pause"
    assert yahoo.asked == ["X1", "X2"]


def test_yahoo_is_left_alone_by_whoever_asks(yahoo):
    yahoo.series |= down("X1", "X2")
    for name in ("X1", "X2"):
        with pytest.raises(PricesUnavailable):
            load_prices(name)
    for ask in (
        lambda: load_prices("AAA"),
        lambda: load_prices("AAA", source="yfinance"),
        lambda: sources.from_yahoo("AAA", Path("data/prices")),
    ):
        with pytest.raises(PricesUnavailable, match="failed twice and is left alone"):
            ask()
    assert load_what_is_there(["AAA"])[0] == {}
    assert yahoo.asked == ["X1", "X2"]


def test_yahoo_is_asked_again_after_a_pause(yahoo):
    yahoo.series |= down("X1", "X2")
    for _ in range(3):
        load_what_is_there(["X1", "X2", "AAA"])
    assert yahoo.asked == ["X1", "X2"]
    yahoo.at("2024-03-14 12:01:59")
    assert load_what_is_there(["AAA"])[0] == {}
    yahoo.at("2024-03-14 12:02:00")
    assert pd.Timedelta(minutes=2) == sources.PAUSE
    assert len(load_prices("AAA")) == 52
    assert yahoo.asked == ["X1", "X2", "AAA"]
    assert sources._failed == [], "an answer counts, not what was before it"


def test_the_pause_begins_with_the_second_failure(yahoo):
    """A connection that hangs for a minute has not been left alone after two of them."""
    yahoo.series |= down("X1")
    for minute, asked in (("12:00", 1), ("12:01", 2), ("12:02", 2), ("12:03", 3)):
        yahoo.at(f"2024-03-14 {minute}")
        load_what_is_there(["X1"])
        assert len(yahoo.asked) == asked, minute


def test_names_that_yahoo_does_not_know_are_no_failures(yahoo):
    names = ["X1", "X2", "X3", "X4", "AAA"]
    yahoo.series["X4"] = None  # as some releases of yfinance answer
    tables, told = load_what_is_there(names, end="2024-03-14")
    assert list(tables) == ["AAA"] and yahoo.asked == names
    assert told[-1].endswith("under this name (without a connection, too)")
    assert sources._failed == []
    with pytest.raises(PricesUnavailable, match="gives nothing under this name"):
        load_prices("X1")


def test_an_empty_answer_is_neither_failure_nor_success(yahoo):
    """It comes without a connection, too."""
    yahoo.series |= down("X1", "X2")
    load_what_is_there(["X1", "NONE", "X2", "NONE", "AAA"])
    assert yahoo.asked == ["X1", "NONE", "X2"]


def test_a_rate_limit_counts_once(yahoo):
    from yfinance.exceptions import YFRateLimitError

    yahoo.series |= dict.fromkeys(["X1", "X2"], YFRateLimitError())
    tables, told = load_what_is_there(["X1", "X2", "AAA"])
    assert tables == {} and yahoo.asked == ["X1"] * 3 + ["X2"] * 3
    assert "(3 tries); wait some minutes" in told[-1]


def test_an_answer_between_two_failures_counts(yahoo):
    yahoo.series |= {"BBB": history(SPRING, 1), "CCC": history(SPRING, 2)}
    yahoo.series |= down("X1", "X2", "X3")
    tables, _ = load_what_is_there(["X1", "AAA", "X2", "BBB", "X3", "CCC"])
    assert list(tables) == ["AAA", "BBB", "CCC"] and len(yahoo.asked) == 6


def test_prices_that_are_refused_are_an_answer(yahoo):
    bad = history(SPRING, 1)
    bad.loc["2024-02-01":] *= 3
    yahoo.series |= {"BAD": bad} | down("X1", "X2")
    tables, _ = load_what_is_there(["X1", "BAD", "X2", "AAA"])
    assert list(tables) == ["AAA"]
    assert yahoo.asked == ["X1", "BAD", "X2", "AAA"]


def test_a_rate_limit_is_a_failure_once(yahoo):
    from yfinance.exceptions import YFRateLimitError

    yahoo.series["X1"] = YFRateLimitError()
    tables, _ = load_what_is_there(["X1", "AAA"])
    assert list(tables) == ["AAA"] and yahoo.asked == ["X1"] * 3 + ["AAA"]


def test_old_prices_of_a_cache_are_no_answer_of_yahoo(yahoo):
    names = ["AAA", "BBB", "CCC", "DDD"]
    yahoo.series |= {n: history(SPRING, 1) for n in names}
    load_what_is_there(names, end="2024-04-01")
    yahoo.series = dict.fromkeys(names, OSError("down"))
    yahoo.at("2024-03-14 17:00")
    yahoo.asked.clear()
    tables, _ = load_what_is_there(names, end="2024-04-01")
    assert list(tables) == names
    assert yahoo.asked == ["AAA", "BBB"]


# --- What is kept, and what is told --------------------------------------------------------------


def test_a_download_that_begins_later_than_the_kept_one_is_told_and_not_kept(yahoo):
    whole = yahoo.series["AAA"]
    load_prices("AAA", end="2024-04-01")
    before = Path("data/prices/AAA.parquet").read_bytes()
    yahoo.at("2024-03-15 17:00")
    yahoo.series["AAA"] = whole["2024-01-10":]  # eight days after January 2nd
    table = load_prices("AAA", end="2024-04-01")
    assert table.index[[0, -1]].tolist() == [
        pd.Timestamp("2024-01-10"),
        pd.Timestamp("2024-03-15"),
    ]
    path = Path("data/prices/AAA.parquet")
    told = f"AAA: Yahoo sends less than before, which stays in {path}"
    assert table.attrs["repairs"] == [told]
    assert table.attrs["files"] == {"AAA": None}, "it is not the one in the table"
    assert Path("data/prices/AAA.parquet").read_bytes() == before
    load_prices("AAA", end="2024-04-01")
    assert len(yahoo.asked) == 3, "it is asked again, as long as nothing new is kept"
    yahoo.series["AAA"] = whole
    assert load_prices("AAA", end="2024-04-01").attrs["repairs"] == []
    assert len(load_prices("AAA", source="cache")) == len(whole[:"2024-03-15"])


@pytest.mark.parametrize("first", ["2023-12-28", "2024-01-02", "2024-01-09"])
def test_a_download_may_begin_a_week_later_or_earlier(yahoo, first):
    whole = history(pd.bdate_range("2023-12-28", "2024-04-30"))
    yahoo.series["AAA"] = whole["2024-01-02":]
    load_prices("AAA")
    yahoo.at("2024-03-15 17:00")
    yahoo.series["AAA"] = whole[first:]
    table = load_prices("AAA", source="yfinance")
    assert table.attrs["repairs"] == []
    assert load_prices("AAA", source="cache").index[0] == pd.Timestamp(first)


def test_a_name_that_was_given_to_another_instrument_does_not_replace_the_first(yahoo):
    first = load_prices("AAA").attrs["files"]["AAA"].read_bytes()
    yahoo.at("2024-03-15 17:00")
    yahoo.series["AAA"] = history(SPRING, seed=1)
    for other in (history(SPRING, seed=1), history(SPRING, seed=1)[15:]):
        yahoo.series["AAA"] = other
        with pytest.raises(
            ValueError, match="AAA: Yahoo sends something else .* delete"
        ):
            load_prices("AAA")
    assert Path("data/prices/AAA.parquet").read_bytes() == first
    mended = history(SPRING, dividends=0.8)  # a dividend since, and some days corrected
    mended.iloc[10:14, :5] *= 1.02
    yahoo.series["AAA"] = mended
    assert load_prices("AAA").attrs["repairs"] == []


def test_a_short_history_may_be_corrected(yahoo):
    yahoo.series["AAA"] = young = history(SPRING[-40:])
    yahoo.at("2024-03-08 12:00")
    load_prices("AAA")
    yahoo.series["AAA"] = young * np.linspace(1, 1.1, 40)[:, None]
    yahoo.at("2024-03-14 17:00")
    assert load_prices("AAA").attrs["repairs"] == []


def test_series_in_several_currencies_are_told(yahoo):
    yahoo.series["BBB"] = history(SPRING, seed=1)
    yahoo.currencies = {"AAA": "USD", "BBB": "EUR"}
    yahoo.at("2024-03-14 17:00")
    told = "AAA in USD, BBB in EUR: nothing is exchanged"
    for _ in range(2):  # from Yahoo, and from the cache
        table = load_prices(["AAA", "BBB"], end="2024-03-15")
        assert table.attrs["currencies"] == yahoo.currencies
        assert table.attrs["repairs"] == [told]
        assert load_what_is_there(["AAA", "BBB"], end="2024-03-14")[1] == [told]
    assert load_prices("BBB", end="2024-03-14").attrs["repairs"] == []
    yahoo.currencies["AAA"] = None
    (told,) = load_prices(["AAA", "BBB"], source="yfinance").attrs["repairs"]
    assert told == "AAA in ?, BBB in EUR: nothing is exchanged"


def test_a_damaged_file_is_replaced_whatever_it_began_with(yahoo):
    path = load_prices("AAA").attrs["files"]["AAA"]
    path.write_bytes(b"PAR1")
    yahoo.series["AAA"] = yahoo.series["AAA"]["2024-02-01":]
    assert load_prices("AAA").attrs["repairs"] == [
        "AAA: 2024-03-14 left out, its session was not over when the prices were taken"
    ]
    assert load_prices("AAA", source="cache").index[0] == pd.Timestamp("2024-02-01")


def test_a_ticker_with_a_point_keeps_its_name_in_what_is_told(yahoo):
    yahoo.series["BRK.B"] = history(SPRING)
    load_prices("BRK.B")
    assert cached() == ["BRK.B.parquet"]
    yahoo.series["BRK.B"] = history(SPRING)[20:]
    (_, told) = load_prices("BRK.B", source="yfinance").attrs["repairs"]
    assert told.startswith("BRK.B: Yahoo sends less than before, which stays in data")


def test_a_download_that_cannot_be_written_is_told_and_used(yahoo, monkeypatch):
    yahoo.at("2024-03-14 17:00")
    Path("data").write_text("a file, and no folder")
    table = load_prices("AAA")
    (told,) = table.attrs["repairs"]
    assert told.startswith("AAA: the download is not kept: ")
    assert table.attrs["files"] == {"AAA": None}
    Path("data").unlink()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(sources.os, "replace", full)
        tables, told = load_what_is_there(["AAA"])
    assert len(tables["AAA"]) == 53
    assert told == ["AAA: the download is not kept: [Errno 28] No space left on device"]
    assert len(yahoo.asked) == 2 and "AAA.parquet" not in cached()
    assert load_prices("AAA").attrs["repairs"] == [] and "AAA.parquet" in cached()


@pytest.mark.parametrize("source", ["auto", "yfinance"])
def test_without_a_package_for_parquet_a_download_is_told_and_used(
    yahoo, monkeypatch, source
):
    def missing(*_):
        raise ImportError("Unable to find a usable engine")

    yahoo.at("2024-03-14 17:00")
    monkeypatch.setattr("pandas.io.parquet.get_engine", missing)
    (told,) = load_prices("AAA", source=source).attrs["repairs"]
    assert told == "AAA: the download is not kept: Unable to find a usable engine"


def test_a_series_with_weekends_is_stale_over_the_weekend(yahoo):
    daily = pd.date_range("2024-01-01", "2024-04-30")
    yahoo.zone, yahoo.closes = "UTC", "23:59"
    yahoo.series["COIN-USD"] = history(daily)
    for now, last, times in (
        ("2024-03-16 12:00", "2024-03-15", 1),  # Saturday
        ("2024-03-17 00:28", "2024-03-15", 1),
        ("2024-03-17 00:30", "2024-03-16", 2),  # half an hour after its close
        ("2024-03-18 00:10", "2024-03-16", 2),
        ("2024-03-18 01:00", "2024-03-17", 3),  # Monday, for the row of Sunday
    ):
        yahoo.at(now, "UTC")
        table = load_prices("COIN-USD", end="2024-04-01")
        assert table.index[-1] == pd.Timestamp(last), now
        assert len(yahoo.asked) == times, now


def test_the_end_of_a_series_with_weekends_may_be_a_weekend(yahoo):
    yahoo.zone, yahoo.closes = "UTC", "23:59"
    yahoo.series["COIN-USD"] = history(pd.date_range("2024-01-01", "2024-04-30"))
    yahoo.at("2024-03-16 12:00", "UTC")
    load_prices("COIN-USD")
    yahoo.at("2024-03-20 12:00", "UTC")
    for end, last, times in (
        ("2024-03-16", "2024-03-15", 1),
        ("2024-03-17", "2024-03-16", 2),  # of Saturday, which was not over
        ("2024-03-18", "2024-03-17", 2),
    ):
        table = load_prices("COIN-USD", end=end)
        assert table.index[-1] == pd.Timestamp(last)
        assert len(yahoo.asked) == times, end


def test_a_series_without_weekends_is_fresh_if_it_lacks_only_them(yahoo):
    yahoo.at("2024-03-15 18:00")  # Friday
    load_prices("AAA")
    yahoo.at("2024-03-25 12:00")
    load_prices("AAA", end="2024-03-18")
    assert len(yahoo.asked) == 1
    load_prices("AAA", end="2024-03-19")
    assert len(yahoo.asked) == 2


@pytest.mark.parametrize(
    ("now", "end", "told"),
    [
        ("2024-03-06 23:00", "2024-04-01", 0),  # less than a week after February 29th
        ("2024-03-07 12:00", "2024-04-01", 1),
        ("2024-04-20 12:00", "2024-03-07", 0),
        ("2024-04-20 12:00", "2024-03-08", 1),
        ("2024-04-20 12:00", "2024-02-20", 0),
        ("2024-04-20 12:00", "2030-01-01", 1),
        ("2024-04-20 12:00", None, 0),  # all that there is
    ],
)
def test_a_series_that_has_ended_is_told(yahoo, now, end, told):
    yahoo.series["AAA"] = yahoo.series["AAA"][:"2024-02-29"]
    yahoo.at("2024-03-06 17:00")
    load_prices("AAA")  # the cache has it from then on
    yahoo.at(now, "UTC")
    for source in ("cache", "auto"):
        table = load_prices("AAA", end=end, source=source)
        expected = ["AAA ends on 2024-02-29"] * told
        assert table.attrs["repairs"] == expected
    _, said = load_what_is_there(["AAA"], end=end)
    assert said == expected


# --- Files ---------------------------------------------------------------------------------------


@pytest.fixture
def read(tmp_path):
    """Reads a text, or a table, as a file of prices of AAA."""

    def read(text, ticker="AAA", encoding="utf-8"):
        path = tmp_path / "AAA.csv"
        path.write_text(text, encoding=encoding)
        return sources.tidy(sources.read_csv(path, ticker), ticker)

    return read


def lines(*dates, heading="Date,Open,Close,Adj Close"):
    """A price a day: its number, 1 to n."""
    rows = [f"{date},{n}.5,{n},{n}" for n, date in enumerate(dates, 1)]
    return "\n".join([heading, *rows, ""])


THREE = pd.DatetimeIndex(["2020-03-06", "2020-03-09", "2020-03-13"])


@pytest.mark.parametrize(
    ("form", "quoted"),
    [
        ("%Y-%m-%d", False),
        ("%Y/%m/%d", False),
        ("%b %d, %Y", True),
        ("%d/%m/%Y", False),
        ("%m/%d/%Y", False),
        ("%d.%m.%Y", False),
        ("%Y-%m-%d 00:00:00", False),
        ("%Y-%m-%dT09:30:00Z", False),
    ],
)
def test_dates_of_any_usual_form_are_read(read, form, quoted):
    dates = [f'"{d}"' if quoted else d for d in THREE.strftime(form)]
    raw = read(lines(*dates))
    assert list(raw.index) == list(THREE) and raw.Close.tolist() == [1, 2, 3]


def test_hours_and_offsets_that_change_with_daylight_saving_are_cut_off(read):
    raw = read(
        lines(
            "2020-03-06 00:00:00-05:00",
            "2020-03-09 00:00:00-04:00",
            "2020-03-13 00:00:00-04:00",
        )
    )
    assert list(raw.index) == list(THREE) and raw.index.tz is None


def test_days_are_written_without_a_leading_zero(read):
    raw = read(lines('"Mar 6, 2020"', '"Mar 9, 2020"', '"Mar 13, 2020"'))
    assert list(raw.index) == list(THREE)


def test_day_and_month_are_told_apart_by_weekends(read):
    days = pd.to_datetime(["2020-03-02", "2020-03-03", "2020-03-04", "2020-03-05"])
    for form in ("%d/%m/%Y", "%m/%d/%Y"):  # the 3rd of May 2020 was a Sunday
        assert list(read(lines(*days.strftime(form))).index) == list(days)
    both = pd.to_datetime(["2020-01-02", "2020-01-03"])  # 1 February: a Saturday
    assert list(read(lines(*both.strftime("%m/%d/%Y"))).index) == list(both)
    with pytest.raises(ValueError, match="day and month cannot be told apart"):
        read(lines("03/04/2020", "06/05/2020"))


def test_the_days_of_a_spreadsheet_are_counted_from_1899(read):
    for texts in (("43896", "43899", "43903"), ("43896.0", "43899.0", "43903.0")):
        assert list(read(lines(*texts)).index) == list(THREE)


@pytest.mark.parametrize("text", ["n/a", "soon", "2020-02-30", "20200306"])
def test_a_date_that_cannot_be_read_is_named(read, text):
    with pytest.raises(ValueError, match=f"AAA: '{text}' is not a date"):
        read(lines("2020-03-06", text, "2020-03-13"))


def test_a_missing_date_is_refused(read):
    with pytest.raises(ValueError, match="AAA: .*date"):
        read(lines("2020-03-06", "", "2020-03-13"))
    days = pd.DatetimeIndex(["2020-03-06", None])
    table = history(days)
    with pytest.raises(ValueError, match="the date of row 1 is missing"):
        sources.tidy(table, "AAA")


@pytest.mark.parametrize(
    "name",
    [
        "Adj Close",
        "AdjClose",
        "Adj Close**",
        "adj_close",
        "Adjusted Close",
        "ADJ CLOSE",
    ],
)
def test_the_adjusted_close_has_many_names(read, name):
    text = f"Date,Open,High,Low,Close*,{name},Volume\n2020-03-06,1,4,0,2,1.5,9\n"
    assert read(text).iloc[0].to_dict() == {"Open": 1, "Close": 2, "AdjClose": 1.5}


def test_only_an_index_may_lack_the_adjusted_close(read):
    text = "Date,Open,Close\n2020-03-06,1,2\n"
    assert read(text, "^AAA").iloc[0].tolist() == [1, 2, 2]
    with pytest.raises(ValueError, match="AAA lacks the columns AdjClose; it has Open"):
        read(text)


def test_semicolons_go_with_decimal_commas(read):
    text = "Date;Open;Close;Adj Close\n06.03.2020;1,25;2,5;2,25\n13.03.2020;1;2;3\n"
    raw = read(text)
    assert raw.to_numpy().tolist() == [[1.25, 2.5, 2.25], [1, 2, 3]]
    assert list(raw.index) == list(pd.to_datetime(["2020-03-06", "2020-03-13"]))


@pytest.mark.parametrize("form", [None, "%.2f", "%.6f"])
def test_points_after_semicolons_change_no_return(yahoo, tmp_path, form):
    """There, they are separators of thousands: two digits after each make all prices a hundredfold, and no harm."""
    table = history(SPRING[:40]).drop(columns=["High", "Low", "Volume"]).round(6)
    table.round(2 if form is None else 6).to_csv(
        tmp_path / "AAA.csv", sep=";", float_format=form
    )
    try:
        got = load_prices("AAA", folder=tmp_path)["close"]["AAA"].pct_change()
    except ValueError:
        return  # refused, which is as good
    expected = table["Adj Close"].pct_change()
    np.testing.assert_allclose(got[1:], expected[1:], atol=3e-4)


def test_thousands_have_separators(read):
    heading = "Date,Open,Close,Adj Close\n"
    raw = read(heading + '2020-03-06,"1,234.5","12,345.25","1,234,567"\n')
    assert raw.iloc[0].tolist() == [1234.5, 12345.25, 1234567]
    heading = heading.replace(",", ";")
    raw = read(heading + "06.03.2020;1.234,5;12.345,25;1.234.567,0\n")
    assert raw.iloc[0].tolist() == [1234.5, 12345.25, 1234567]


@pytest.mark.parametrize(
    "text", ["100,35", "1,2345", "1,23,456.7", ",123", "1,", "1.234,5", "1.234,567"]
)
def test_a_comma_that_separates_no_thousands_is_refused(read, text):
    heading = "Date,Open,Close,Adj Close\n"
    for row in (f'"{text}",1,1', f'1,"{text}",1', f'1,1,"{text}"'):
        with pytest.raises(ValueError, match="AAA: a price is no number"):
            read(f"{heading}2020-03-05,1,1,1\n2020-03-06,{row}\n")


def test_thousands_may_be_separated_in_some_rows_only(read):
    heading = "Date,Open,Close,Adj Close\n"
    rows = '2020-03-06,999.5,"1,000.25",1000\n2020-03-09,,"-1,234,567.125",null\n'
    raw = read(heading + rows)
    assert raw.iloc[0].tolist() == [999.5, 1000.25, 1000]
    assert raw.iloc[1].tolist()[1] == -1234567.125
    assert raw.isna().sum().tolist() == [1, 0, 1]


def test_columns_of_numbers_and_texts_lose_neither():
    """A table may hold both: pandas reads long files in parts, each by itself."""
    table = pd.DataFrame(
        {
            "Open": [1.5, "2.5", 3],
            "Close": ["1,001.5", 2.5, np.nan],
            "Adj Close": [1, 2, 3],
        },
        THREE,
    ).astype({"Open": object, "Close": object})
    raw = sources.tidy(table, "AAA")
    assert raw.Open.tolist() == [1.5, 2.5, 3.0]
    assert raw.Close.tolist()[:2] == [1001.5, 2.5] and np.isnan(raw.Close.iloc[2])


@pytest.mark.filterwarnings("ignore::pandas.errors.DtypeWarning")
def test_a_long_download_of_many_tickers_loses_no_rows(tmp_path):
    """From 22 tickers on, pandas reads 4096 rows at a time, and only the first have texts above them."""
    days = pd.bdate_range("2004-01-01", periods=4200)
    table = history(days).round(2)
    names = ["AAA", *(f"B{i}" for i in range(24))]
    downloaded(**dict.fromkeys(names, table)).to_csv(tmp_path / "AAA.csv")
    got = load_prices("AAA", folder=tmp_path, source="folder")
    assert got.attrs["repairs"] == []
    np.testing.assert_allclose(got["close"]["AAA"], table["Adj Close"])


def test_a_byte_order_mark_and_the_newest_first(read):
    dates = list(THREE.strftime("%Y-%m-%d"))[::-1]
    raw = read(lines(*dates), encoding="utf-8-sig")
    assert raw.index.is_monotonic_increasing and raw.Close.tolist() == [3, 2, 1]


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252", "utf-8-sig"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_the_encodings_of_spreadsheets_are_read(read, encoding, mark):
    text = lines(*THREE.strftime("%Y-%m-%d"), heading="Gültig,Open,Close,Adj Close")
    raw = read(text.replace(",", mark), encoding=encoding)
    assert list(raw.index) == list(THREE) and raw.Open.tolist() == [1.5, 2.5, 3.5]


@pytest.mark.parametrize(
    "heading", ["Open,Close,Adj Close,Close", "Open,Close,Adj Close,AdjClose"]
)
def test_a_column_that_stands_twice_is_refused(read, heading):
    with pytest.raises(ValueError, match="AAA has a column twice: Open"):
        read(f"Date,{heading}\n2020-03-06,1,2,3,4\n")


@pytest.mark.parametrize("hour", ["22:00:00+00:00", "15:00:00Z"])
def test_hours_of_another_zone_are_refused(read, hour):
    with pytest.raises(ValueError, match="is in another zone"):
        read(lines("2020-03-05 " + hour, "2020-03-08 " + hour))
    assert len(read(lines("2020-03-06 16:00:00", "2020-03-09 16:00:00"))) == 2


def test_days_that_are_counted_from_1904_are_refused(read):
    days = pd.bdate_range("2023-01-03", "2023-03-31") - pd.Timestamp("1904-01-01")
    with pytest.raises(ValueError, match="fall on weekends"):
        read(lines(*days.days))


def test_words_for_nothing_are_no_prices(read):
    raw = read("Date,Open,Close,Adj Close\n2020-03-06,null,NaN,\n2020-03-09,1,2,3\n")
    assert raw.iloc[0].isna().all() and raw.iloc[1].tolist() == [1, 2, 3]


@pytest.mark.parametrize("text", ["-", "$2.00", "2.0O", "Dividend", "1.2.3", "2 %"])
@pytest.mark.parametrize("column", ["Open", "Close", "Adj Close"])
def test_what_is_no_number_is_refused(read, text, column):
    row = {"Date": "2020-03-09", "Open": "1", "Close": "2", "Adj Close": "3"}
    rows = ["2020-03-06,1,2,3", ",".join((row | {column: text}).values())]
    with pytest.raises(ValueError, match="AAA: a price is no number"):
        read("\n".join([",".join(row), *rows, ""]))


def test_other_columns_need_be_no_numbers(read):
    text = "Date,Open,Close,Adj Close,Volume,Remark\n2020-03-06,1,2,3,-,holiday\n"
    assert read(text).iloc[0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("text", ["", "\n", "Date,Open,Close,Adj Close\n"])
def test_a_file_without_rows_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "AAA.csv").write_text(text)
    with pytest.raises(ValueError):
        load_prices("AAA", source="folder", folder=tmp_path)


def test_what_yfinance_writes_is_read(tmp_path):
    table = history(SPRING[:50])
    expected = table[["Open", "Close", "Adj Close"]].to_numpy()
    table.tz_localize(NEW_YORK).to_csv(tmp_path / "AAA.csv")
    raw = sources.tidy(sources.read_csv(tmp_path / "AAA.csv", "AAA"), "AAA")
    assert list(raw.index) == list(table.index)
    np.testing.assert_allclose(raw, expected, rtol=1e-12)
    downloaded(AAA=table).to_csv(tmp_path / "AAA.csv")
    assert (tmp_path / "AAA.csv").read_text().startswith("Price,Adj Close,Close,")
    raw = sources.tidy(sources.read_csv(tmp_path / "AAA.csv", "AAA"), "AAA")
    assert list(raw.index) == list(table.index)
    np.testing.assert_allclose(raw, expected, rtol=1e-12)


def downloaded(**tables):
    """As `yfinance.download` gives them: columns of price and ticker."""
    both = pd.concat(tables, axis=1, names=["Ticker", "Price"])
    return both.swaplevel(axis=1).sort_index(axis=1)


def test_a_file_of_several_tickers_is_not_read_as_its_first(tmp_path):
    tables = {"AAA": history(SPRING), "BBB": history(SPRING, 1)}
    tables |= {"^CCC": history(SPRING, 2), "BBB-B": history(SPRING, 3)}
    for ticker, table in tables.items():
        downloaded(**tables).to_csv(tmp_path / f"{ticker}.csv")
        raw = sources.from_folder(ticker, tmp_path).raw
        assert list(raw.columns) == ["Open", "Close", "AdjClose"]
        expected = table[["Open", "Close", "Adj Close"]]
        np.testing.assert_allclose(raw, expected, rtol=1e-12)
        assert list(raw.index) == list(SPRING)


def test_a_ticker_that_others_lack_days_of_has_no_prices_there(tmp_path):
    tables = {"AAA": history(SPRING), "BBB": history(SPRING[20:], 1)}
    downloaded(**tables).to_csv(tmp_path / "BBB.csv")
    table = load_prices("BBB", source="folder", folder=tmp_path)
    np.testing.assert_allclose(
        table["close"]["BBB"], tables["BBB"]["Adj Close"], rtol=1e-12
    )
    assert "20 days without any price left out" in table.attrs["repairs"][0]


def test_a_file_of_other_tickers_is_refused(tmp_path):
    tables = {"AAA": history(SPRING), "^NDX": history(SPRING, 1)}
    for ticker, held, named in (
        ("BBB", ["AAA", "^NDX"], r"is of AAA, \^NDX"),
        ("BBB", ["AAA"], "is of AAA"),
        ("AA", ["AAA"], "is of AAA"),
        ("^AAA", ["AAA"], "is of AAA"),
    ):
        chosen = {name: tables[name] for name in held}
        downloaded(**chosen).to_csv(tmp_path / f"{ticker}.csv")
        with pytest.raises(ValueError, match=rf"{re.escape(ticker)}.csv {named}$"):
            load_prices(ticker, source="folder", folder=tmp_path)
    downloaded(**{"^NDX": tables["^NDX"]}).to_csv(tmp_path / "NDX.csv")
    assert len(load_prices("^NDX", source="folder", folder=tmp_path)) == len(SPRING)


def test_a_download_that_is_grouped_by_ticker_is_not_read_wrongly(tmp_path):
    tables = {"AAA": history(SPRING), "BBB": history(SPRING, 1)}
    both = pd.concat(tables, axis=1, names=["Ticker", "Price"])
    both.to_csv(tmp_path / "BBB.csv")
    with pytest.raises(ValueError, match="BBB lacks the columns"):
        load_prices("BBB", source="folder", folder=tmp_path)


def test_an_index_and_a_fund_never_share_a_file(yahoo, tmp_path):
    index, fund = history(SPRING, 1)[:"2024-03-13"], history(SPRING, 2)
    index.to_csv(tmp_path / "IXIC.csv")
    assert len(load_prices("^IXIC", folder=tmp_path)) == len(index)
    with pytest.raises(PricesUnavailable, match="no file of IXIC"):
        load_prices("IXIC", source="folder", folder=tmp_path)
    index.to_csv(tmp_path / "AAA.csv")
    with pytest.raises(PricesUnavailable, match=r"no file of \^AAA"):
        load_prices("^AAA", source="folder", folder=tmp_path)
    (index * 2).to_csv(tmp_path / "^IXIC.csv")  # its own name comes first
    got = load_prices("^IXIC", folder=tmp_path)["close"]["^IXIC"]
    np.testing.assert_allclose(got, index["Adj Close"] * 2)
    yahoo.series |= {"^IXIC": history(SPRING, 1), "IXIC": fund}
    both = {t: load_prices(t)["close"][t] for t in ("^IXIC", "IXIC")}
    assert cached() == ["IXIC.parquet", "^IXIC.parquet"]
    assert yahoo.asked == ["^IXIC", "IXIC"]
    np.testing.assert_allclose(both["IXIC"], fund["Adj Close"][:"2024-03-13"])


def test_the_cache_of_a_longer_name_is_not_this_one(yahoo):
    yahoo.series["AAAB"] = yahoo.series["AAA"]
    load_prices("AAAB")
    with pytest.raises(PricesUnavailable, match="nothing in"):
        load_prices("AAA", source="cache")


@pytest.mark.parametrize("ticker", ["spy", "Spy", "^ixic", "../AAA", "", " SPY", "A/B"])
def test_tickers_are_written_as_yahoo_writes_them(yahoo, tmp_path, ticker):
    yahoo.series["M&M.NS"] = history(SPRING)
    assert len(load_prices("M&M.NS", end="2024-03-14")) == 52
    yahoo.asked.clear()
    for source in ("auto", "folder", "cache", "yfinance"):
        with pytest.raises(ValueError, match="is not a ticker"):
            load_prices(ticker, source=source, folder=tmp_path)
    assert yahoo.asked == []


def test_a_file_that_was_written_at_noon_has_no_close_of_that_day(yahoo, tmp_path):
    path = tmp_path / "AAA.csv"
    yahoo.series["AAA"][:"2024-03-14"].to_csv(path)
    for minute, last in (("12:00", "2024-03-13"), ("16:31", "2024-03-14")):
        written = pd.Timestamp(f"2024-03-14 {minute}", tz=NEW_YORK).timestamp()
        os.utime(path, (written, written))
        table = load_prices("AAA", folder=tmp_path)
        assert table.index[-1] == pd.Timestamp(last)


@pytest.mark.parametrize("written", ["1980-01-01 00:00", "2024-03-12 12:00"])
def test_a_file_older_than_its_last_row_was_taken_now(yahoo, tmp_path, written):
    """Archives give files the time of their making, or none."""
    path = tmp_path / "AAA.csv"
    yahoo.series["AAA"][:"2024-03-14"].to_csv(path)
    time = pd.Timestamp(written, tz=NEW_YORK).timestamp()
    for minute, last in (("16:29", "2024-03-13"), ("16:30", "2024-03-14")):
        os.utime(path, (time, time))
        yahoo.at(f"2024-03-14 {minute}")
        table = load_prices("AAA", folder=tmp_path)
        assert table.index[-1] == pd.Timestamp(last)
        assert len(table.attrs["repairs"]) == (minute == "16:29")
    assert yahoo.asked == []


def test_a_file_of_an_older_time_than_now_keeps_it(yahoo, tmp_path):
    """Its last row may be of a session that was not over then."""
    path = tmp_path / "AAA.csv"
    yahoo.series["AAA"][:"2024-03-12"].to_csv(path)
    for hour, last in (("12:00", "2024-03-11"), ("17:00", "2024-03-12")):
        time = pd.Timestamp(f"2024-03-12 {hour}", tz=NEW_YORK)
        os.utime(path, (time.timestamp(), time.timestamp()))
        assert sources.from_folder("AAA", tmp_path).made == time
        table = load_prices("AAA", folder=tmp_path)
        assert table.index[-1] == pd.Timestamp(last)


def test_what_a_fresh_download_is(yahoo):
    load_prices("AAA")  # on Thursday at noon
    folder = Path("data/prices")
    yahoo.at("2024-03-15 09:00")
    for end in (None, pd.Timestamp("2024-03-15"), pd.Timestamp("2025-01-01")):
        assert len(sources.from_cache("AAA", folder, end=end).raw) == 53
        with pytest.raises(PricesUnavailable, match="the last download is of 2024-03-"):
            sources.from_cache("AAA", folder, True, end)
    behind = sources.from_cache(
        "AAA", folder, fresh=True, end=pd.Timestamp("2024-03-14")
    )
    assert behind.made == pd.Timestamp("2024-03-14 16:00", tz="UTC") and not behind.new
    yahoo.at("2024-03-14 16:00")
    for end in (None, pd.Timestamp("2024-03-15")):
        assert len(sources.from_cache("AAA", folder, fresh=True, end=end).raw) == 53


def test_what_the_digest_covers():
    frame = sources.tidy(history(SPRING), "AAA")
    base = sources.digest(frame)
    for other in (
        frame.assign(AdjClose=frame.AdjClose * 1.01),
        frame.assign(Close=frame.Close * 1.01),
        frame.assign(Open=frame.Open * 1.01),
        frame.set_axis(frame.index + pd.Timedelta(days=1)),
        frame.iloc[1:],
    ):
        assert sources.digest(other) != base
    assert sources.digest(frame.set_axis(frame.index.as_unit("s"))) == base
