"""What luck alone does: the best of many worthless strategies, and how sure one may be of a Sharpe ratio."""

import math
from collections.abc import Iterable

import numpy as np
from scipy.stats import norm


def expected_max_sharpe(trials: float, spread: float) -> float:
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
    `returns` (Bailey and López de Prado 2012, equation 11).

    Raises:
        ValueError: fewer than three returns, or returns that are missing or all the same.
    """
    r = np.asarray(returns, float)
    if len(r) < 3 or not np.isfinite(r).all() or r.std() < 1e-12 * np.abs(r).max():
        raise ValueError(
            "a Sharpe ratio needs three returns, finite and not all the same"
        )
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
        ValueError: fewer than two trials, or some that are missing.
    """
    trials = np.asarray(list(trials), float)
    if not np.isfinite(trials).all():
        raise ValueError(f"trials must be finite Sharpe ratios, got {trials}")
    spread = float(trials.std(ddof=1)) if len(trials) > 1 else 0.0
    return probabilistic_sharpe(returns, expected_max_sharpe(len(trials), spread))
