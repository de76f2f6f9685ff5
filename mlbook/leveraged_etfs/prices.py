"""Daily prices: one table, aligned by date, adjusted for splits and dividends, that says where each series came from."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from mlbook.leveraged_etfs import sources
from mlbook.leveraged_etfs.sources import PricesUnavailable

FIELDS = ["open", "close"]
CLOSED = 7  # the longest closure since 1990, in calendar days (September 2001)
DAY = pd.Timedelta(days=1)
GAPS = 0.01  # of a table's days: what may be missing in some series
STILL = 0.005  # of a series' days: how many may stand still without being told; some do by chance
SPLIT = 0.15  # a logarithm: smaller ones are stock dividends, and lost among the moves
ROUNDING = 5e-4  # between two rows of one day that are the same price, rounded


class Unfit(ValueError):
    """Series that do not reach over the days that were asked for, or lack too many of them."""


def load_prices(
    tickers: str | Iterable[str],
    start: str | None = None,
    end: str | None = None,
    source: str = "auto",
    folder: str | Path | None = None,
    cache: str | Path = "data/prices",
) -> pd.DataFrame:
    """Adjusted opens and closes: `table["close"]["SPY"]`, one row a trading day.

    What lies outside `start` to `end` is never looked at, but for the row before. A row counts when its session was
    over as the series was taken. The table begins where all series do, ends where the first of them ends, and has the
    days that all have. What was left out or mended is told in `table.attrs["repairs"]`; `table.attrs["sources"]` says
    where each series came from, with the beginning of its digest, `table.attrs["files"]` from which file (None if it
    could not be kept), `table.attrs["currencies"]` what it is counted in where that is known; nothing is exchanged.
    (Files do not say. Their sessions are taken to end as New York's, and they to have been written when they were taken;
    markets that close for more than a week are refused.)

    Args:
        tickers: "SPY", or several, as Yahoo writes them; indices with their caret ("^IXIC").
        start, end: dates; the end is exclusive, as in `yfinance`.
        source: "folder", "cache", "yfinance", or "auto": the first of these that has a series; a download that misses
            a session before `end` is then renewed if Yahoo answers.
        folder: of CSV files as Yahoo, yfinance or a spreadsheet write them; the setting MLBOOK_PRICES unless given.
        cache: the folder in which downloads are kept that passed the checks, as Parquet, with their time and digest.
    Raises:
        ValueError: the end is not after the start, a source is unknown, or a series is not fit for use: see `adjust`.
        PricesUnavailable: no source has one of the series.
    """
    tickers = _listed(tickers)
    if not tickers or len(set(tickers)) < len(tickers):
        raise ValueError(f"tickers must be named once each, got {tickers}")
    if source not in ("auto", *sources.ORDER):
        raise ValueError(
            f"source is {source!r}; it must be 'auto' or one of {', '.join(sources.ORDER)}"
        )
    start, end = (_date(d) for d in (start, end))
    if start is not None and end is not None and end <= start:
        raise ValueError(
            f"the end, {end:%Y-%m-%d}, is not after the start, {start:%Y-%m-%d}"
        )
    folder = folder or os.environ.get("MLBOOK_PRICES")
    series = {}
    attrs = {"sources": {}, "files": {}, "currencies": {}, "repairs": []}
    for ticker in tickers:
        found = sources.find(ticker, end, source, folder, Path(cache))
        raw, told = _asked(found, ticker, start, end)
        adjusted, mended = adjust(raw, ticker)
        series[ticker] = _between(adjusted, start, end)
        if series[ticker].empty:
            raise ValueError(
                f"{ticker} has no prices from {_day(start)} to {_day(end)}: "
                f"it goes from {_day(found.raw.index[0])} to {_day(found.raw.index[-1])}"
            )
        last, due = series[ticker].index[-1], pd.Timestamp.now()
        if end is not None and last < min(end, due) - CLOSED * DAY:
            told.append(f"{ticker} ends on {_day(last)}")
        kept = sources.keep(found) if found.new else []
        digest = sources.digest(found.raw)[:8]
        attrs["sources"][ticker] = f"{found.source}, sha256 {digest}"
        attrs["files"][ticker] = None if kept else found.file
        attrs["currencies"][ticker] = found.currency
        attrs["repairs"] += told + kept + mended
    table = align(series, attrs["repairs"])
    attrs["repairs"] += _mixed(attrs["currencies"])
    table.attrs = attrs
    return table


def _mixed(currencies: dict[str, str | None]) -> list[str]:
    """What is to be told of series that are counted in several currencies."""
    known = {money or "unknown" for money in currencies.values()}
    if len(known) < 2 or known == {"USD", "unknown"}:
        return []
    listed = ", ".join(f"{t} in {money or '?'}" for t, money in currencies.items())
    return [f"{listed}: nothing is exchanged"]


def load_what_is_there(
    tickers: Iterable[str], start: str | None = None, end: str | None = None, **options
) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """`load_prices` of each ticker by itself: tables of those that can be had, and what is to be told of all."""
    tables, told, missing, why, currencies = {}, [], [], [], {}
    for ticker in _listed(tickers):
        try:
            tables[ticker] = load_prices(ticker, start, end, **options)
            told += tables[ticker].attrs["repairs"]
            currencies |= tables[ticker].attrs["currencies"]
        except ValueError as error:
            told.append(f"{ticker} is not used: {error}")
        except PricesUnavailable as error:
            missing.append(ticker)
            why.append(error)
    if missing:
        told.append(f"missing: {', '.join(missing)}; of the first: {why[0]}")
    return tables, told + _mixed(currencies)


def _asked(found: sources.Found, ticker, start, end) -> tuple[pd.DataFrame, list[str]]:
    """The rows from `start`, and one before, to `end`, of sessions that were over."""
    raw, told = found.raw, []
    over = raw.index <= found.last_over()
    if not over.all():
        told = [
            f"{ticker}: {_day(raw.index[~over][0])} left out, its session was not over when the prices were taken"
        ]
    raw = raw[over]
    if start is not None:
        raw = raw.iloc[max(raw.index.searchsorted(start) - 1, 0) :]
    return _between(raw, None, end), told


def adjust(raw: pd.DataFrame, ticker: str) -> tuple[pd.DataFrame, list[str]]:
    """Opens and closes adjusted for splits and dividends, checked: (columns "open" and "close", what was repaired).

    Both are multiplied by AdjClose / Close, so that the move within a day stays what it was.

    Args:
        raw: columns Open, Close, AdjClose, and Dividends and Splits if they are known; one row a day, in order.
    Raises:
        ValueError: two different rows for a day, prices missing or not positive, a gap, a week for a day, a split or
            a dividend that is not in all of the prices. The message names ticker and date.
    """
    told = []

    def tell(what, days):
        if len(days):
            told.append(
                f"{ticker}: {what.format(len(days))}, the last {_day(days[-1])}"
            )

    paid = raw.filter(["Dividends", "Splits"])
    raw = raw[["Open", "Close", "AdjClose"]]
    raw = raw.where(raw != 0)
    nothing = raw[["Open", "Close"]].isna().all(axis=1)
    tell("{} days without any price left out", raw.index[nothing])
    raw = raw[~nothing]
    twice = raw.index[raw.index.duplicated()].unique()
    for day in twice:
        rows = raw.loc[day]
        if not np.allclose(rows, rows.iloc[-1], rtol=ROUNDING, atol=0, equal_nan=True):
            raise ValueError(
                f"{ticker} has two different rows for {_day(day)}: {rows.to_numpy().tolist()}"
            )
    tell("{} days stood twice, the later row is kept", twice)
    raw = raw[~raw.index.duplicated(keep="last")].copy()
    if ticker.startswith("^"):  # older indices were not computed at the open
        closed = raw.index[raw.Open.isna()]
        raw["Open"] = raw.Open.fillna(raw.Close.shift()).fillna(raw.Close)
        tell("{} days without an open, for which the close before stands", closed)
    if len(raw) and raw.iloc[-1].isna().any():
        tell("{} last day with some of its prices left out", raw.index[-1:])
        raw = raw[:-1]
    bad = ~(np.isfinite(raw) & (raw > 0)).all(axis=1)
    if bad.any():
        day = raw.index[bad][0]
        raise ValueError(
            f"{ticker} has a price that is missing or not positive on {_day(day)}: {raw.loc[day].to_dict()}"
        )
    _check_moves(raw, ticker)
    _check_actions(raw, paid[~paid.index.duplicated(keep="last")], ticker)
    still = (raw.Open == raw.Close) & (raw.Close == raw.Close.shift())
    if still.mean() > STILL:
        tell("on {} days no price moved (not traded, perhaps)", raw.index[still])
    factor = raw.AdjClose / raw.Close
    return pd.DataFrame({"open": raw.Open * factor, "close": raw.AdjClose}), told


def _check_moves(raw: pd.DataFrame, ticker: str) -> None:
    """Refuse gaps, rows of weeks, and moves that are a split's and not a market's."""

    def refuse(where, why):
        if where.any():
            day = where.index[where][0]
            row = {key: value[day] for key, value in facts.items()}
            raise ValueError(f"{ticker} on {_day(day)}: " + why.format(**row))

    factor = raw.AdjClose / raw.Close
    before = raw.Close.shift() * factor / factor.shift()
    facts = {
        "move": raw.AdjClose / raw.AdjClose.shift(),
        "night": raw.Open / before.fillna(raw.Open),
        "within": raw.Close / raw.Open,
        "days": raw.index.to_series().diff().dt.days,
    }
    move, night, within, days = facts.values()
    refuse(days > CLOSED, "there are no prices in the {days:.0f} days before")
    if len(days) > 3 and days.median() > 2:
        raise ValueError(
            f"{ticker}: rows are {days.median():.0f} days apart, not a day each"
        )
    refuse(
        (move > 1.9) | (move < 0.55),
        "the price moves by a factor of {move:.3g}: a split that was not adjusted?",
    )
    far = (within > 1.33) | (within < 0.75)
    refuse(
        (within > 1.67) | (within < 0.6) | (far & far.shift(fill_value=False)),
        "open and close are a factor of {within:.3g} apart: is one of them adjusted for splits, and not the other?",
    )
    # Overnight, by nearly a half or a third, and it stays there: no market, but a split of three for two
    size = move.where(move > 1, 1 / move)
    jump = night.where(night > 1, 1 / night)
    refuse(
        (size / 1.5 - 1).abs().lt(0.03) & (jump / 1.5 - 1).abs().lt(0.03),
        "the price moves overnight by a factor of {night:.3g}: a split that was not adjusted?",
    )


def _check_actions(raw: pd.DataFrame, paid: pd.DataFrame, ticker: str) -> None:
    """Refuse a split that is not in the prices, and a dividend that is not in the adjusted close, or in no price."""
    paid = paid.reindex(raw.index).fillna(0.0)
    move = np.log(raw.Close / raw.Close.shift()).fillna(0.0)
    factor = raw.AdjClose / raw.Close
    step = np.log(factor / factor.shift()).fillna(0.0)
    split = (
        np.log(paid.Splits.where(paid.Splits > 0, 1.0))
        if "Splits" in paid
        else 0 * move
    )
    share = paid.Dividends / raw.Close.shift() if "Dividends" in paid else 0 * move
    lost = -np.log(1 - share.fillna(0.0).clip(upper=0.99))
    for what, wrong in (
        (
            "a split that its prices do not have",
            (split.abs() > SPLIT) & ((move + split).abs() < move.abs()),
        ),
        (
            "a dividend that its adjusted close does not have",
            (lost > 0.01) & ((step - lost).abs() > lost / 2),
        ),
        ("a dividend that its price did not feel", (lost > 0.1) & (move > -lost / 2)),
    ):
        if wrong.any():
            day = wrong.index[wrong][0]
            raise ValueError(
                f"{ticker} on {_day(day)}: {what}: {paid.loc[day].to_dict()}"
            )
    owed, given = lost.sum(), step.sum()
    if owed and abs(owed - given) > max(0.003, 0.05 * owed):
        raise ValueError(
            f"{ticker}: dividends of {owed:.1%} were paid, its adjusted close has {given:.1%}"
        )


def align(series: dict[str, pd.DataFrame], repairs: list[str]) -> pd.DataFrame:
    """One table of several series, by date; what is left out is added to `repairs`.

    Raises:
        Unfit: the series do not overlap, or more than one day in a hundred is missing in some.
    """
    first = max(s.index[0] for s in series.values())
    last = min(s.index[-1] for s in series.values())
    if last < first:
        raise Unfit(f"{', '.join(series)} have no day in common")
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
        raise Unfit(
            f"{', '.join(series)}: {holes.sum()} of {len(table)} days are missing in some, "
            f"the first on {_day(table.index[holes][0])}"
        )
    if holes.any():
        repairs.append(f"{holes.sum()} days that not all have left out")
    table = table[~holes].swaplevel(axis=1)
    table.index.name = "date"
    return table[_columns(series)]


def join(tables: dict[str, pd.DataFrame], tickers: Iterable[str], start=None, end=None):
    """One table of several that have one ticker each, as `load_what_is_there` gives them, from `start` to `end`.

    Raises:
        Unfit: as `align`, or one of them begins later, or ends earlier.
    """
    start, end, tickers = _date(start), _date(end), _listed(tickers)
    apart = {t: _between(tables[t].xs(t, axis=1, level=1), start, end) for t in tickers}
    for ticker, part in apart.items():
        late = start is not None and (
            part.empty or part.index[0] > start + CLOSED * DAY
        )
        early = end is not None and (part.empty or part.index[-1] < end - CLOSED * DAY)
        if late or early:
            raise Unfit(f"{ticker} does not reach from {_day(start)} to {_day(end)}")
    return align(apart, [])


def select(table: pd.DataFrame, tickers: Iterable[str], start=None, end=None):
    """The columns of `tickers`, in that order, from `start` up to and without `end`; whatever `table.attrs` says stays.

    Raises:
        ValueError: a ticker is not in the table, or no day is left.
    """
    tickers = _listed(tickers)
    missing = [t for t in tickers if t not in table["close"]]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} are not in the table of {', '.join(table['close'])}"
        )
    part = _between(table[_columns(tickers)], start, end)
    if part.empty:
        raise ValueError(
            f"no day from {start} to {end}: the table goes from {_day(table.index[0])} to {_day(table.index[-1])}"
        )
    part.attrs = table.attrs
    return part


def _listed(tickers: str | Iterable[str]) -> list[str]:
    return [tickers] if isinstance(tickers, str) else list(tickers)


def _date(date) -> pd.Timestamp | None:
    if isinstance(date, int | float):
        raise ValueError(f"dates are written 2020-01-31, not {date}")
    return None if date is None else pd.Timestamp(date).normalize()


def _columns(tickers) -> pd.MultiIndex:
    return pd.MultiIndex.from_product(
        [FIELDS, list(tickers)], names=["price", "ticker"]
    )


def _between(table: pd.DataFrame, start, end) -> pd.DataFrame:
    """From `start` up to and without `end`, either of them None or a date."""
    table = table.loc[start:]
    return table if end is None else table[table.index < pd.Timestamp(end)]


def _day(day: pd.Timestamp | None) -> str:
    return "the beginning or end" if day is None else f"{day:%Y-%m-%d}"
