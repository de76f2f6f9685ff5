"""Daily prices: one table, aligned by date, adjusted for splits and dividends, that says where each series came from."""

import datetime
import hashlib
import importlib
import logging
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from mlbook.leveraged_etfs.leverage import simulate_leveraged

FIELDS = ["open", "close"]
SOURCES = ("folder", "cache", "yfinance")
CLOSED = 7  # the longest closure since 1990, in calendar days (September 2001)
GAPS = 0.01  # of a table's days: what may be missing in some series
STILL = 0.005  # of a series' days: how many may stand still without being told; some do by chance
SIMULATED = {  # ticker → index in `arch`, leverage, yearly fee (the prospectuses', 2010s)
    "SPY": ("sp500", 1, 0.0009),
    "SSO": ("sp500", 2, 0.0091),
    "UPRO": ("sp500", 3, 0.0093),
    "QQQ": ("nasdaq", 1, 0.0020),
    "QLD": ("nasdaq", 2, 0.0095),
    "TQQQ": ("nasdaq", 3, 0.0095),
}
SPREAD = 0.0075  # over the policy rate, a year: what TQQQ paid on what it borrowed, 2010 to 2025
# The target of the Federal Reserve for the federal funds rate, in percent, from the day of each decision on; since
# December 2008 the middle of its range. Board of Governors, "Open Market Operations" (public domain), to 2025.
POLICY = """
1998-11-17 4.75   1999-06-30 5.00   1999-08-24 5.25   1999-11-16 5.50   2000-02-02 5.75   2000-03-21 6.00
2000-05-16 6.50   2001-01-03 6.00   2001-01-31 5.50   2001-03-20 5.00   2001-04-18 4.50   2001-05-15 4.00
2001-06-27 3.75   2001-08-21 3.50   2001-09-17 3.00   2001-10-02 2.50   2001-11-06 2.00   2001-12-11 1.75
2002-11-06 1.25   2003-06-25 1.00   2004-06-30 1.25   2004-08-10 1.50   2004-09-21 1.75   2004-11-10 2.00
2004-12-14 2.25   2005-02-02 2.50   2005-03-22 2.75   2005-05-03 3.00   2005-06-30 3.25   2005-08-09 3.50
2005-09-20 3.75   2005-11-01 4.00   2005-12-13 4.25   2006-01-31 4.50   2006-03-28 4.75   2006-05-10 5.00
2006-06-29 5.25   2007-09-18 4.75   2007-10-31 4.50   2007-12-11 4.25   2008-01-22 3.50   2008-01-30 3.00
2008-03-18 2.25   2008-04-30 2.00   2008-10-08 1.50   2008-10-29 1.00   2008-12-16 0.125  2015-12-16 0.375
2016-12-14 0.625  2017-03-15 0.875  2017-06-14 1.125  2017-12-13 1.375  2018-03-21 1.625  2018-06-13 1.875
2018-09-26 2.125  2018-12-19 2.375  2019-07-31 2.125  2019-09-18 1.875  2019-10-30 1.625  2020-03-03 1.125
2020-03-15 0.125  2022-03-16 0.375  2022-05-04 0.875  2022-06-15 1.625  2022-07-27 2.375  2022-09-21 3.125
2022-11-02 3.875  2022-12-14 4.375  2023-02-01 4.625  2023-03-22 4.875  2023-05-03 5.125  2023-07-26 5.375
2024-09-18 4.875  2024-11-07 4.625  2024-12-18 4.375  2025-09-17 4.125  2025-10-29 3.875  2025-12-10 3.625
"""
POLICY_ENDS = pd.Timestamp("2025-12-31")


class PricesUnavailable(OSError):
    """No source has the prices that were asked for; the message says what each of them answered."""


def load_prices(
    tickers: str | Iterable[str],
    start: str | None = None,
    end: str | None = None,
    source: str = "auto",
    folder: str | Path | None = None,
    cache: str | Path = "data/prices",
) -> pd.DataFrame:
    """Adjusted opens and closes: `table["close"]["SPY"]`, one row a trading day.

    The table begins where all series do and ends where the first of them ends. A day that some series lack is left
    out, in all. Both are told in `table.attrs["repairs"]`, and days on which no price moved, where they are many, which are kept;
    `table.attrs["sources"]` says where each series came from, with the beginning of its digest, and
    `table.attrs["files"]` from which file, if from one.

    Args:
        tickers: "SPY", or several; indices with their caret ("^IXIC").
        start, end: dates; the end is exclusive, as in `yfinance`.
        source: "folder", "cache", "yfinance", or "auto": the first of these that has a series; a download older than
            `end` (or today) is then renewed if Yahoo answers.
        folder: of CSV files with the columns of Yahoo's downloads (Date, Open, Close, AdjClose; "^IXIC" is IXIC.csv);
            the setting MLBOOK_PRICES unless given.
        cache: the folder in which downloads are kept, as Parquet, with their date and digest.
    Raises:
        ValueError: the end is not after the start, a source is unknown, or a series is not fit for use: dates twice,
            prices missing or not positive, a gap, a split that nobody adjusted. The message names ticker and date.
        PricesUnavailable: no source has one of the series.
    """
    tickers = [tickers] if isinstance(tickers, str) else list(tickers)
    if not tickers or len(set(tickers)) < len(tickers):
        raise ValueError(f"tickers must be named once each, got {tickers}")
    if source not in ("auto", *SOURCES):
        raise ValueError(
            f"source is {source!r}; it must be 'auto' or one of {', '.join(SOURCES)}"
        )
    start, end = (None if d is None else pd.Timestamp(d) for d in (start, end))
    if start is not None and end is not None and end <= start:
        raise ValueError(
            f"the end, {end:%Y-%m-%d}, is not after the start, {start:%Y-%m-%d}"
        )
    folder = folder or os.environ.get("MLBOOK_PRICES")
    series, sources, files, repairs = {}, {}, {}, []
    for ticker in tickers:
        raw, sources[ticker], files[ticker] = _find(
            ticker, end, SOURCES if source == "auto" else (source,), folder, Path(cache)
        )
        adjusted, told = adjust(raw, ticker)
        sources[ticker] += f", sha256 {digest(raw)[:8]}"
        series[ticker] = _between(adjusted, start, end)
        if series[ticker].empty:
            raise ValueError(
                f"{ticker} has no prices from {_day(start)} to {_day(end)}: "
                f"it goes from {_day(adjusted.index[0])} to {_day(adjusted.index[-1])}"
            )
        repairs += told
    table = align(series, repairs)
    table.attrs = {
        "sources": sources,
        "files": {t: f for t, f in files.items() if f},
        "repairs": repairs,
    }
    return table


def adjust(raw: pd.DataFrame, ticker: str) -> tuple[pd.DataFrame, list[str]]:
    """Opens and closes adjusted for splits and dividends, checked: (columns "open" and "close", what was repaired).

    Both are multiplied by AdjClose / Close, so that the move within a day stays what it was.

    Args:
        raw: columns Open, Close, AdjClose, one row a day.
    Raises:
        ValueError: see `load_prices`.
    """
    missing = {"Open", "Close", "AdjClose"} - set(raw.columns)
    if missing:
        raise ValueError(f"{ticker} lacks the columns {', '.join(sorted(missing))}")
    raw, told = raw[["Open", "Close", "AdjClose"]].astype(float).sort_index(), []
    twice = raw.index[raw.index.duplicated()].unique()
    for day in twice:
        rows = raw.loc[day]
        if (rows != rows.iloc[0]).any(axis=None):
            raise ValueError(
                f"{ticker} has two different rows for {day:%Y-%m-%d}: {rows.to_numpy().tolist()}"
            )
    if len(twice):
        told.append(f"{ticker}: {len(twice)} days stood twice, with the same prices")
        raw = raw[~raw.index.duplicated()]
    bad = ~(np.isfinite(raw) & (raw > 0))
    if bad.any(axis=None):
        day = raw.index[bad.any(axis=1)][0]
        raise ValueError(
            f"{ticker} has a price that is missing or not positive on {day:%Y-%m-%d}: "
            f"{raw.loc[day].to_dict()}"
        )
    ratio = (raw.AdjClose / raw.AdjClose.shift()).dropna()
    jumps = ratio[(ratio > 1.9) | (ratio < 0.55)]
    if len(jumps):
        raise ValueError(
            f"{ticker} moves by a factor of {jumps.iloc[0]:.3g} on {jumps.index[0]:%Y-%m-%d}: "
            "a split that was not adjusted?"
        )
    days = raw.index.to_series().diff().dt.days
    if (days > CLOSED).any():
        day = days.index[days > CLOSED][0]
        raise ValueError(
            f"{ticker} has no prices in the {days[day]:.0f} days before {day:%Y-%m-%d}"
        )
    still = (raw.Open == raw.Close) & (raw.Close == raw.Close.shift())
    if still.mean() > STILL:
        last = raw.index[still][-1]
        told.append(
            f"{ticker}: on {still.sum()} days no price moved (not traded, perhaps), the last on {last:%Y-%m-%d}"
        )
    factor = raw.AdjClose / raw.Close
    return pd.DataFrame({"open": raw.Open * factor, "close": raw.AdjClose}), told


def align(series: dict[str, pd.DataFrame], repairs: list[str]) -> pd.DataFrame:
    """One table of several series, by date; what is left out is added to `repairs`.

    Raises:
        ValueError: the series do not overlap, or more than one day in a hundred is missing in some.
    """
    first = max(s.index[0] for s in series.values())
    last = min(s.index[-1] for s in series.values())
    if last < first:
        raise ValueError(f"{', '.join(series)} have no day in common")
    for name, s in series.items():
        cut = (s.index < first).sum() + (s.index > last).sum()
        if cut:
            repairs.append(
                f"{name}: {cut} days outside {_day(first)} to {_day(last)}, where all are there, left out"
            )
    table = pd.concat(
        {name: s.loc[first:last] for name, s in series.items()}, axis=1, sort=True
    )
    holes = table.isna().any(axis=1)
    if holes.mean() > GAPS:
        raise ValueError(
            f"{', '.join(series)}: {holes.sum()} of {len(table)} days are missing in some, "
            f"the first on {table.index[holes][0]:%Y-%m-%d}"
        )
    if holes.any():
        repairs.append(f"{holes.sum()} days that not all have left out")
    table = table[~holes].swaplevel(axis=1)
    table.index.name = "date"
    columns = pd.MultiIndex.from_product([FIELDS, series], names=["price", "ticker"])
    return table[columns].set_axis(columns, axis=1)


def select(table: pd.DataFrame, tickers: Iterable[str], start=None, end=None):
    """The columns of `tickers`, in that order, from `start` up to and without `end`; whatever `table.attrs` says stays.

    Raises:
        ValueError: a ticker is not in the table, or no day is left.
    """
    tickers = [tickers] if isinstance(tickers, str) else list(tickers)
    missing = [t for t in tickers if t not in table["close"]]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} are not in the table of {', '.join(table['close'])}"
        )
    part = _between(table[pd.MultiIndex.from_product([FIELDS, tickers])], start, end)
    if part.empty:
        raise ValueError(
            f"no day from {start} to {end}: the table goes from {_day(table.index[0])} to {_day(table.index[-1])}"
        )
    part.attrs = table.attrs
    return part


def with_cash(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with one more ticker, CASH: a dollar that earns `policy_rate` from close to close.

    Raises:
        ValueError: as `policy_rate`.
    """
    nights = table.index.to_series().diff().dt.days.fillna(0) / 360  # money market days
    close = (1 + policy_rate(table.index) * nights).cumprod()
    cash = pd.concat({"open": close, "close": close}, axis=1)
    cash.columns = pd.MultiIndex.from_product([FIELDS, ["CASH"]])
    both = pd.concat([table, cash], axis=1)
    tickers = [*table["close"].columns, "CASH"]
    both = both[
        pd.MultiIndex.from_product([FIELDS, tickers], names=["price", "ticker"])
    ]
    both.attrs = table.attrs
    return both


def _between(table: pd.DataFrame, start, end) -> pd.DataFrame:
    """From `start` up to and without `end`, either of them None or a date."""
    table = table.loc[start:]
    return table if end is None else table[table.index < pd.Timestamp(end)]


def _day(day: pd.Timestamp | None) -> str:
    return "the beginning or end" if day is None else f"{day:%Y-%m-%d}"


def _find(ticker, end, sources, folder, cache) -> tuple[pd.DataFrame, str, Path | None]:
    """The raw series, where it came from, and the file it was read from."""
    today = pd.Timestamp.now().normalize()
    renewable = "yfinance" in sources
    needed = min(end or today, today) if renewable else None
    answers = []
    for source in sources:
        try:
            if source == "folder":
                return _from_folder(ticker, folder)
            if source == "cache":
                return _from_cache(ticker, needed, cache)
            return _from_yfinance(ticker, cache)
        except PricesUnavailable as error:
            answers.append(f"{source}: {error}")
    if renewable and "cache" in sources:  # old prices are better than none
        try:
            return _from_cache(ticker, None, cache)
        except PricesUnavailable:
            pass
    raise PricesUnavailable(f"no prices of {ticker}. " + "; ".join(answers))


def _from_folder(ticker: str, folder) -> tuple[pd.DataFrame, str, Path]:
    if not folder:
        raise PricesUnavailable("MLBOOK_PRICES is not set")
    path = Path(folder) / f"{_file(ticker)}.csv"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in Path(folder).glob("*.csv")))
        raise PricesUnavailable(
            f"there is no {path}; the folder has {there or 'no CSV files'}"
        )
    raw = pd.read_csv(path, index_col="Date", parse_dates=True)
    return raw, f"{path.name} in MLBOOK_PRICES", path


def _file(ticker: str) -> str:
    if not re.fullmatch(r"\^?[A-Za-z0-9.=-]+", ticker):
        raise ValueError(f"{ticker!r} is not a ticker")
    return ticker.removeprefix("^")


def _from_cache(ticker: str, needed, cache: Path) -> tuple[pd.DataFrame, str, Path]:
    """The last download; it must have been made on the day `needed` or later, if that is given."""
    kept = sorted(cache.glob(f"{_file(ticker)}_????-??-??.parquet"))
    if not kept:
        raise PricesUnavailable(f"nothing in {cache}")
    path = kept[-1]
    when = path.stem[-10:]
    if needed is not None and pd.Timestamp(when) < needed:
        raise PricesUnavailable(f"the last download is of {when}")
    raw = pd.read_parquet(path)
    if raw.attrs.get("digest") != digest(raw):
        raise ValueError(
            f"{path} is damaged: its digest is not the one it was saved with"
        )
    return raw, f"yfinance, {when}, from the cache", path


def digest(raw: pd.DataFrame) -> str:
    """SHA-256 of a series' dates and prices."""
    values = np.ascontiguousarray(raw[["Open", "Close", "AdjClose"]].to_numpy(float))
    days = raw.index.to_numpy().astype("datetime64[D]").astype(np.int64)
    return hashlib.sha256(days.tobytes() + values.tobytes()).hexdigest()


def _from_yfinance(
    ticker: str, cache: Path, tries: int = 3
) -> tuple[pd.DataFrame, str, Path]:
    """Everything that Yahoo has, saved to the cache."""
    try:
        import yfinance
    except ModuleNotFoundError as error:
        raise PricesUnavailable("yfinance is not installed") from error

    logging.getLogger("yfinance").setLevel(logging.CRITICAL)  # what it says is raised
    for wait in [*(2.0**i for i in range(1, tries)), None]:
        try:
            raw = yfinance.Ticker(ticker).history(
                period="max", auto_adjust=False, actions=False
            )
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
            raise PricesUnavailable(why) from error
    if raw is None or raw.empty:
        raise PricesUnavailable(
            "Yahoo gives nothing under this name (without a connection, too)"
        )
    raw = raw.rename(columns={"Adj Close": "AdjClose"})[["Open", "Close", "AdjClose"]]
    raw.index = pd.DatetimeIndex(raw.index.tz_localize(None).normalize(), name="Date")
    raw.attrs = {"digest": digest(raw)}
    today = datetime.date.today().isoformat()
    path = cache / f"{_file(ticker)}_{today}.parquet"
    cache.mkdir(parents=True, exist_ok=True)
    raw.to_parquet(path)
    return raw, f"yfinance, {today}", path


def policy_rate(days: pd.DatetimeIndex) -> pd.Series:
    """The Federal Reserve's target for overnight money on each of `days`, a yearly fraction (0.05, not 5).

    Raises:
        ValueError: a day lies before the table, from 1998-11-17 on, or after it, the end of 2025.
    """
    words = POLICY.split()
    decided = pd.Series(np.float64(words[1::2]) / 100, pd.DatetimeIndex(words[::2]))
    for day in (min(days), max(days)):
        if not decided.index[0] <= day <= POLICY_ENDS:
            raise ValueError(
                f"the policy rate is tabulated from {_day(decided.index[0])} to {_day(POLICY_ENDS)}, "
                f"and was asked for {_day(day)}"
            )
    return decided.reindex(days, method="ffill")


def simulated_funds(
    tickers: Iterable[str] = tuple(SIMULATED), spread: float = SPREAD
) -> pd.DataFrame:
    """Funds as they might have been, 1999 to 2018, in the shape of `load_prices`, from data that ship with `arch`.

    Each is the S&P 500 or the Nasdaq composite with daily leverage, financed at the policy rate plus `spread`, less
    the fee of the fund. The indices leave dividends out (some 1.9 and 0.8 % a year), the composite is not the
    Nasdaq-100, and the S&P 500's opens in these data are often the closes before.

    Args:
        tickers: any of SPY, SSO, UPRO, QQQ, QLD, TQQQ.
    Raises:
        ValueError: another ticker.
    """
    tickers = list(tickers)
    unknown = set(tickers) - set(SIMULATED)
    if unknown:
        raise ValueError(
            f"only {', '.join(SIMULATED)} can be simulated, not {', '.join(sorted(unknown))}"
        )
    indices = {
        index: importlib.import_module(f"arch.data.{index}").load()
        for index in {SIMULATED[t][0] for t in tickers}
    }
    series = {}
    for ticker in tickers:
        index, leverage, fee = SIMULATED[ticker]
        raw = indices[index]
        before = raw["Close"].shift().fillna(raw["Open"].iloc[0])
        daily = raw["Close"] / before - 1
        rate = policy_rate(raw.index)
        returns = simulate_leveraged(daily, leverage, rate, fee, spread)
        close = 100 * (1 + returns).cumprod()
        overnight = 1 + leverage * (raw["Open"] / before - 1)
        series[ticker] = pd.DataFrame(
            {"open": close.shift(fill_value=100.0) * overnight, "close": close}
        )
    table = align(series, [])
    names = {"sp500": "S&P 500", "nasdaq": "Nasdaq composite"}
    table.attrs = {
        "sources": {
            t: f"simulated: {SIMULATED[t][1]} times the {names[SIMULATED[t][0]]} in arch"
            for t in tickers
        },
        "files": {},
        "repairs": [],
    }
    return table
