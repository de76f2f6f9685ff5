"""What luck alone does: resampled histories, and the best of many worthless strategies."""

import math
from collections.abc import Iterable

import numpy as np
from scipy.stats import norm


def stationary_bootstrap(
    n: int,
    paths: int,
    block: float,
    rng: np.random.Generator,
    length: int | None = None,
) -> np.ndarray:
    """Days of resampled histories: (length, paths) numbers of days in 0 … n − 1 (Politis and Romano 1994).

    A path walks through history day by day, around its end to its beginning, and jumps to a random day with
    probability 1/block.

    Raises:
        ValueError: `block` below 1.
    """
    if not block >= 1:
        raise ValueError(f"block is a mean number of days, at least 1, got {block}")
    length = length or n
    jumps = rng.random((length, paths)) < 1 / block
    jumps[0] = True
    since = np.arange(length)[:, None]
    start = np.maximum.accumulate(np.where(jumps, since, 0), axis=0)
    landed = rng.integers(n, size=(length, paths))
    return (np.take_along_axis(landed, start, axis=0) + since - start) % n


def grow(returns: np.ndarray, weights, every: int) -> np.ndarray:
    """Values of a dollar held in `weights`, brought back to them every `every` days.

    Args:
        returns: (days, paths, assets), daily.
        weights: (assets,), or (paths, assets); what is missing to 1 is cash without interest.
    Returns:
        (days, paths).
    """
    weights = np.asarray(weights)
    days, paths, _ = returns.shape
    values, level = np.empty((days, paths)), np.ones(paths)
    cash = 1 - weights.sum(axis=-1)
    for first in range(0, days, every):
        held = np.cumprod(1 + returns[first : first + every], axis=0) * weights
        values[first : first + every] = level * (held.sum(axis=-1) + cash)
        level = values[min(first + every, days) - 1]
    return values


def expected_max_sharpe(trials: int, spread: float) -> float:
    """The largest of `trials` Sharpe ratios to expect where none is better than zero and they scatter by `spread`
    (Bailey and López de Prado 2014, equation 1).

    Raises:
        ValueError: fewer than two trials.
    """
    if trials < 2:
        raise ValueError(
            f"a best of {trials} is no selection; at least 2 trials are needed"
        )
    euler = np.euler_gamma
    return spread * (
        (1 - euler) * norm.ppf(1 - 1 / trials)
        + euler * norm.ppf(1 - 1 / (trials * math.e))
    )


def probabilistic_sharpe(returns: np.ndarray, benchmark: float = 0.0) -> float:
    """Probability that the true Sharpe ratio a day exceeds `benchmark` (a day, too), given length, skew and tails of
    `returns` (Bailey and López de Prado 2012, equation 11)."""
    r = np.asarray(returns, float)
    z = (r - r.mean()) / r.std()
    skew, kurtosis = (z**3).mean(), (z**4).mean()
    sharpe = r.mean() / r.std(ddof=1)
    variance = 1 - skew * sharpe + (kurtosis - 1) / 4 * sharpe**2
    return float(norm.cdf((sharpe - benchmark) * math.sqrt((len(r) - 1) / variance)))


def deflated_sharpe(returns: np.ndarray, trials: Iterable[float]) -> float:
    """Probability that the Sharpe ratio of `returns`, the best of several strategies, exceeds what the best of as many
    worthless ones would reach (Bailey and López de Prado 2014).

    Args:
        returns: of the chosen strategy, daily, in excess of the riskless rate.
        trials: daily Sharpe ratios of all that were tried.
    Raises:
        ValueError: fewer than two trials.
    """
    trials = np.asarray(list(trials), float)
    best = expected_max_sharpe(
        len(trials), float(trials.std(ddof=1)) if len(trials) > 1 else 0.0
    )
    return probabilistic_sharpe(returns, best)
