"""Where daily prices are found: a folder of files, the last download, Yahoo. Each gives what it has, as it is."""

import hashlib
import io
import logging
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

ORDER = ("folder", "cache", "yfinance")
ZONE, CLOSE = "America/New_York", "16:00"  # of the exchange, where nobody says
MIDNIGHT = "24:00"  # the close of a session elsewhere, where nobody says, or of a market that never closes
DELAY = pd.Timedelta(minutes=30)  # until the close of a session is published
COLUMNS = {  # as Yahoo, yfinance and their copies write them, without blanks and case
    "open": "Open",
    "close": "Close",
    "adjclose": "AdjClose",
    "adjustedclose": "AdjClose",
    "dividends": "Dividends",
    "stocksplits": "Splits",
}
DATES = ("%Y-%m-%d", "%Y/%m/%d", "%b %d, %Y", "%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y")
PAUSE = pd.Timedelta(minutes=2)  # before Yahoo is asked again
_failed: list[pd.Timestamp] = []  # when it did not answer, since it last did
THOUSANDS = r"-?\d{1,3}(,\d{3})+(\.\d*)?"
# Files of indices that are named without their caret; no fund may be read from them.
INDEX_FILES = ("GSPC", "IXIC", "NDX")


class PricesUnavailable(OSError):
    """No source has the prices that were asked for; the message says what each of them answered."""


@dataclass(frozen=True)
class Found:
    """A series as its source has it: Open, Close and AdjClose by day, unchecked, and when and where it was taken."""

    raw: pd.DataFrame
    source: str
    file: Path
    made: pd.Timestamp  # in UTC
    zone: str = ZONE
    close: str = CLOSE
    currency: str | None = None  # where somebody says
    new: bool = False

    def last_over(self, now: pd.Timestamp | None = None) -> pd.Timestamp:
        """The last day whose session was over, and published, at `now` (when the series was taken, unless given)."""
        local = ((now or self.made) - DELAY).tz_convert(self.zone)
        day = local.tz_localize(None).normalize()
        over = local.tz_localize(None) >= day + pd.Timedelta(f"{self.close}:00")
        return day if over else day - pd.Timedelta(days=1)


def find(ticker: str, end, source: str, folder, cache: Path) -> Found:
    """The first of the sources that has `ticker`; a download that misses a session before `end` is renewed if it can be.

    Raises:
        PricesUnavailable: none has it.
        ValueError: a file cannot be read as prices.
    """
    answers = []
    for name in ORDER if source == "auto" else (source,):
        try:
            if name == "folder":
                return from_folder(ticker, folder)
            if name == "cache":
                return from_cache(ticker, cache, source == "auto", end)
            return from_yahoo(ticker, cache)
        except PricesUnavailable as error:
            answers.append(f"{name}: {error}")
    if source == "auto":  # old prices are better than none
        try:
            return from_cache(ticker, cache)
        except PricesUnavailable:
            pass
    raise PricesUnavailable(f"no prices of {ticker}. " + "; ".join(answers))


def from_folder(ticker: str, folder) -> Found:
    """`TQQQ.csv` in `folder`; an index is "^NDX.csv", or, of the three of this chapter, also "NDX.csv"."""
    if not folder:
        raise PricesUnavailable("MLBOOK_PRICES is not set")
    names = [] if ticker in INDEX_FILES else [f"{_checked(ticker)}.csv"]
    if ticker.removeprefix("^") in INDEX_FILES and ticker.startswith("^"):
        names.append(f"{ticker[1:]}.csv")
    there = {path.name: path for path in Path(folder).glob("*.csv")}
    for name in names:
        if name in there:
            path = there[name]
            made = pd.Timestamp(path.stat().st_mtime, unit="s", tz="UTC")
            raw = tidy(read_csv(path, ticker), ticker)
            if raw.empty:
                raise ValueError(f"{path} has no rows")
            if raw.index[-1] > made.tz_localize(None) + pd.Timedelta(days=1):
                made = pd.Timestamp.now("UTC")  # an archive's time, not the download's
            return Found(raw, f"{name} in MLBOOK_PRICES", path, made)
    listed = ", ".join(sorted(there)) or "no CSV files"
    raise PricesUnavailable(f"no file of {ticker} in {folder}, which has {listed}")


def from_cache(ticker: str, cache: Path, fresh: bool = False, end=None) -> Found:
    """The last download; if it must be `fresh`, no session (before `end`, if there is one) may have closed since."""
    path = cache / f"{_checked(ticker)}.parquet"
    try:
        raw = pd.read_parquet(path)
        found = Found(
            raw,
            f"yfinance, {raw.attrs['made'][:10]}, from the cache",
            path,
            pd.Timestamp(raw.attrs["made"]),
            raw.attrs["zone"],
            raw.attrs["close"],
            raw.attrs.get("currency"),
        )
        whole = raw.attrs["digest"] == digest(raw)
    except FileNotFoundError as error:
        raise PricesUnavailable(f"nothing in {cache}") from error
    except (OSError, ImportError, KeyError, ValueError) as error:
        raise PricesUnavailable(f"{path} is damaged: {error}") from error
    if not whole:
        raise PricesUnavailable(f"{path} is damaged: not the digest it was saved with")
    if fresh:
        needed = found.last_over(pd.Timestamp.now("UTC"))
        if end is not None:
            needed = min(needed, end - pd.Timedelta(days=1))
        if not (raw.index.day_of_week > 4).any():
            needed = pd.offsets.BDay().rollback(needed)
        if found.last_over() < needed:
            raise PricesUnavailable(f"the last download is of {found.made:%Y-%m-%d}")
    return found


def from_yahoo(ticker: str, cache: Path, tries: int = 3) -> Found:
    """Everything that Yahoo has. It is not kept before it has been checked: see `keep`."""
    path = cache / f"{_checked(ticker)}.parquet"
    try:
        import yfinance
    except ModuleNotFoundError as error:
        raise PricesUnavailable("yfinance is not installed") from error
    made = pd.Timestamp.now("UTC")
    if len(_failed) > 1 and made - _failed[-1] < PAUSE:
        raise PricesUnavailable("Yahoo has just failed twice and is left alone a while")
    logging.getLogger("yfinance").setLevel(logging.CRITICAL)  # what it says is raised
    for wait in [*(2.0**i for i in range(1, tries)), None]:
        try:
            fund = yfinance.Ticker(ticker)
            raw = fund.history(period="max", auto_adjust=False, actions=True)
            break
        except Exception as error:  # of yfinance, curl or the parser: no common base
            limited = "RateLimit" in type(error).__name__
            if limited and wait:
                time.sleep(wait)
                continue
            why = (
                f"Yahoo refuses more requests just now ({tries} tries); wait some minutes"
                if limited
                else f"Yahoo does not answer, or does not know it: {type(error).__name__}: {error}"
            )
            _failed.append(made)
            raise PricesUnavailable(why) from error
    if raw is None or raw.empty:
        raise PricesUnavailable(
            "Yahoo gives nothing under this name (without a connection, too)"
        )
    _failed.clear()
    zone = str(getattr(raw.index, "tz", None) or ZONE)
    meta = getattr(fund, "history_metadata", None) or {}
    try:
        regular = meta["currentTradingPeriod"]["regular"]["end"]
        close = f"{regular.tz_convert(zone):%H:%M}".replace("00:00", MIDNIGHT)
    except (AttributeError, KeyError, TypeError):
        close = CLOSE if zone == ZONE else MIDNIGHT
    where = zone, close, meta.get("currency")
    raw = tidy(raw, ticker)
    return Found(raw, f"yfinance, {made:%Y-%m-%d}", path, made, *where, new=True)


def keep(found: Found) -> list[str]:
    """Save a download, with its digest and when and where it was made, in place of the one before; why not, if not.

    One that begins later than that is not saved: Yahoo has sent less than it has.

    Raises:
        ValueError: its days moved otherwise than before: Yahoo has given the name to something else.
    """
    ticker = found.file.stem
    try:
        before = from_cache(ticker, found.file.parent).raw
    except PricesUnavailable:
        before = found.raw
    closes = [x.AdjClose[~x.index.duplicated()] for x in (found.raw, before)]
    both = pd.concat(closes, axis=1, join="inner")[:-1]  # the last may be of noon
    moves = both.pct_change(fill_method=None)[1:].dropna()
    apart, usual = (moves.iloc[:, 0] - moves.iloc[:, 1]).abs(), moves.iloc[:, 1].abs()
    if len(moves) >= 20 and apart.median() > max(usual.median() / 2, 1e-4):
        raise ValueError(
            f"{ticker}: Yahoo sends something else than before under this name; delete {found.file} if you want it"
        )
    if found.raw.index[0] > before.index[0] + pd.Timedelta(days=7):
        return [f"{ticker}: Yahoo sends less than before, which stays in {found.file}"]
    raw = found.raw.copy()
    raw.attrs = {
        "digest": digest(raw),
        "made": found.made.isoformat(),
        "zone": found.zone,
        "close": found.close,
        "currency": found.currency,
    }
    try:
        found.file.parent.mkdir(parents=True, exist_ok=True)
        part = found.file.with_suffix(f".{os.getpid()}.part")
        raw.to_parquet(part)
        os.replace(part, found.file)
    except (OSError, ImportError) as error:
        return [f"{ticker}: the download is not kept: {error}"]
    return []


def digest(raw: pd.DataFrame) -> str:
    """SHA-256 of a series' dates and prices."""
    values = np.ascontiguousarray(raw[["Open", "Close", "AdjClose"]].to_numpy(float))
    days = raw.index.to_numpy().astype("datetime64[D]").astype(np.int64)
    return hashlib.sha256(days.tobytes() + values.tobytes()).hexdigest()


def read_csv(path: Path, ticker: str) -> pd.DataFrame:
    """A table as Yahoo, yfinance or a spreadsheet wrote it, the days as they stand in its first column.

    Raises:
        ValueError: it is of other tickers.
    """
    content = path.read_bytes()
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:  # an old spreadsheet
        text = content.decode("cp1252")
    first = text.partition("\n")[0]
    how = {"sep": next((mark for mark in ";\t" if mark in first), ",")}
    if how["sep"] == ";" and "," in text:
        how |= {"decimal": ",", "thousands": "."}
    read = lambda **more: pd.read_csv(io.StringIO(text), **how, **more)  # noqa: E731
    table = read(low_memory=False)
    texts = read(usecols=[0], dtype=str, keep_default_na=False)
    table.isetitem(0, texts.iloc[:, 0])  # "n/a" stays as it stands
    if list(table.iloc[:2, 0]) == ["Ticker", "Date"]:  # the three headings of yfinance
        mine = (table.iloc[0] == ticker).to_numpy()
        if not mine.any():
            raise ValueError(f"{path} is of {', '.join(table.iloc[0, 1:].unique())}")
        table = table.iloc[2:].set_index(table.columns[0]).loc[:, mine[1:]]
        return table.rename(columns=lambda name: name.split(".")[0])
    return table.set_index(table.columns[0])


def tidy(table: pd.DataFrame, ticker: str) -> pd.DataFrame:
    """Open, Close and AdjClose, and Dividends and Splits if they are there, as numbers by day, in order, with days that stand twice; nothing else is judged here.

    Raises:
        ValueError: a column is missing, or a date cannot be read.
    """
    flat = table.columns.get_level_values(0).astype(str)
    names = [COLUMNS.get(re.sub(r"[\s_*]|\.\d+$", "", name).lower()) for name in flat]
    known = [name for name in names if name]
    if len(set(known)) < len(known):
        raise ValueError(f"{ticker} has a column twice: {', '.join(flat)}")
    columns = {n: table.iloc[:, i] for i, n in enumerate(names) if n}
    if "AdjClose" not in columns and "Close" in columns and ticker.startswith("^"):
        columns["AdjClose"] = columns["Close"]  # an index pays no dividends
    missing = {"Open", "Close", "AdjClose"} - set(columns)
    if missing:
        raise ValueError(
            f"{ticker} lacks the columns {', '.join(sorted(missing))}; it has {', '.join(flat)} "
            "(yfinance gives the adjusted close if asked with auto_adjust=False)"
        )
    raw = pd.DataFrame(
        {n: columns[n] for n in dict.fromkeys(COLUMNS.values()) if n in columns}
    )
    try:
        raw = raw.apply(_numbers).astype(float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{ticker}: a price is no number: {error}") from error
    raw.index = _days(table.index, ticker)
    return raw.sort_index(kind="stable")


def _numbers(column: pd.Series) -> pd.Series:
    """Numbers, of which some may be written as texts: "1,234.5", but not "100,35"."""

    def bare(value):
        whole = isinstance(value, str) and re.fullmatch(THOUSANDS, value.strip())
        return value.replace(",", "") if whole else value

    return pd.to_numeric(column.map(bare))


def _days(index: pd.Index, ticker: str) -> pd.DatetimeIndex:
    """Dates of any of the usual forms, as days without zone.

    Raises:
        ValueError: one cannot be read, or day and month cannot be told apart.
    """
    if isinstance(index, pd.DatetimeIndex):
        days = index.tz_localize(None).normalize()
        if days.hasnans:
            raise ValueError(
                f"{ticker}: the date of row {days.isna().argmax()} is missing"
            )
        return days.rename("Date")
    texts = pd.Index(index).astype(str).str.strip()
    iso = texts.str.match(r"\d{4}-\d\d-\d\d(\D|$)")
    late = texts[texts.str.match(r".*[T ](1[2-9]|2\d):\S*(\+00:?00|Z)$")]
    if len(late):  # midnight, east of Greenwich, of the next day
        raise ValueError(
            f"{ticker}: {late[0]!r} is in another zone than the exchange's"
        )
    texts = texts.where(~iso, texts.str[:10])  # without its hour and zone
    if texts.str.fullmatch(r"\d{5}(\.0)?").all():  # a spreadsheet's count of days
        serial = texts.astype(float)
        days = pd.to_datetime(serial, unit="D", origin="1899-12-30").rename("Date")
        seen = set(days.day_of_week)
        if len(days) > 20 and seen & {5, 6} and len(seen) < 7:  # counted from 1904
            raise ValueError(f"{ticker}: its days, as {texts[0]}, fall on weekends")
        return days
    read = {form: pd.to_datetime(texts, format=form, errors="coerce") for form in DATES}
    whole = [days for days in read.values() if not days.hasnans]
    if not whole:
        best = min(read.values(), key=lambda days: days.isna().sum())
        raise ValueError(
            f"{ticker}: {texts[best.isna()][0]!r} is not a date that can be read"
        )
    if (
        len(whole) > 1
    ):  # day and month can change places: markets are closed at weekends
        whole = [days for days in whole if (days.day_of_week < 5).all()]
    if len(whole) != 1:
        raise ValueError(
            f"{ticker}: day and month cannot be told apart in {texts[0]!r}; write year-month-day"
        )
    return whole[0].rename("Date")


def _checked(ticker: str) -> str:
    if not re.fullmatch(r"\^?[A-Z0-9][A-Z0-9.=&-]*", ticker):
        raise ValueError(f"{ticker!r} is not a ticker as Yahoo writes it, in capitals")
    return ticker
