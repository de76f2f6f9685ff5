"""Discovery in sequences: causes come before their effects, and what else that
takes."""

import numpy as np
from scipy import stats

from mlbook.causal.borders import TIED, check_level, check_table
from mlbook.causal.lingam import standard
from mlbook.common.checks import check_count


def lagged(x: np.ndarray, lags: range, longest: int) -> np.ndarray:
    """Columns of x, each `lags` steps back, for the times from `longest` on."""
    return np.column_stack([x[longest - lag : len(x) - lag] for lag in lags])


def granger(cause, effect, lags: int = 1, given=None) -> float:
    """The p-value of an F test that the past of `cause` adds nothing to that of
    `effect`, and of `given`, in predicting `effect` (Granger 1969).

    Args:
        cause, effect: (n,); given: (n,) or (n, k), or None.
    Raises:
        ValueError: lags is no whole number of at least 1, or the series are too short,
            constant, or not finite.
    """
    check_count("lags", lags)
    columns = {"cause": cause, "effect": effect}
    columns = {name: np.asarray(each) for name, each in columns.items()}
    table = check_table(columns, 4 * lags + 10, independent=False)
    table = standard(table.to_numpy())
    past = [table[:, 1:]]
    if given is not None:
        given = np.asarray(given, float)
        given = given[:, None] if given.ndim == 1 else given
        if given.ndim != 2 or len(given) != len(table):
            raise ValueError(f"given needs {len(table)} rows, got {given.shape}")
        if len(table) < (lags + 1) * (given.shape[1] + 3):
            raise ValueError(f"{len(table)} rows are too few for what is given")
        past.append(standard(check_table(given, independent=False).to_numpy()))
    few = np.column_stack([lagged(each, range(1, lags + 1), lags) for each in past])
    few = np.column_stack([np.ones(len(few)), few])
    full = np.column_stack([few, lagged(table[:, 0], range(1, lags + 1), lags)])
    y = table[lags:, 1]
    rss = [
        ((y - d @ np.linalg.lstsq(d, y, rcond=None)[0]) ** 2).sum() for d in (few, full)
    ]
    free = len(y) - full.shape[1]
    return float(stats.f.sf((rss[0] - rss[1]) / lags / (rss[1] / free), lags, free))


def mci(data, lags: int = 3, alpha: float = 0.2) -> np.ndarray:
    """Momentary conditional independence (PCMCI, Runge et al. 2019): p-values of each
    lagged link, given the parents of its effect and, one lag further back, of its
    cause.

    First PC picks, for each series, lags that might be its parents: at a level so high
    that few are lost. Then each link is tested given both sides' parents.

    Args:
        data: (n, d), equally spaced times downwards.
    Returns:
        (d, lags, d): [cause, lag − 1, effect].
    Raises:
        ValueError: as `borders.check_table`.
    """
    check_level(alpha)
    x = check_table(data, 4 * check_count("lags", lags) + 10).to_numpy()
    d = x.shape[1]
    # column v + d k: series v, k steps back
    past = lagged(x, range(2 * lags + 1), 2 * lags)
    correlation, n = np.corrcoef(past, rowvar=False), len(past)

    def test(i, j, given):
        keep = [i, j, *given]
        among = correlation[np.ix_(keep, keep)]
        if np.linalg.eigvalsh(among)[0] < TIED:
            raise ValueError(
                "lags determine each other: a series that repeats itself, or another's past"
            )
        inverse = np.linalg.inv(among)
        r = -inverse[0, 1] / np.sqrt(inverse[0, 0] * inverse[1, 1])
        free = n - len(keep)
        return 2 * stats.t.sf(abs(r) * np.sqrt(free / (1 - r * r)), free), abs(r)

    def parents(j):
        left = list(range(d, d * (lags + 1)))
        strength = {i: abs(correlation[i, j]) for i in left}
        size = 0
        while size < len(left):
            left.sort(key=lambda i: -strength[i])
            lost = set()
            for i in left:
                p, r = test(i, j, [k for k in left if k != i][:size])
                strength[i] = min(strength[i], r)
                if p > alpha:
                    lost.add(i)
            left = [i for i in left if i not in lost]
            size += 1
        return left

    of = [parents(j) for j in range(d)]
    p = np.ones((d, lags, d))
    for j in range(d):
        for i in range(d, d * (lags + 1)):
            cause, lag = i % d, i // d
            back = [k + d * lag for k in of[cause]]
            p[cause, lag - 1, j] = test(i, j, sorted({*of[j], *back} - {i}))[0]
    return p
