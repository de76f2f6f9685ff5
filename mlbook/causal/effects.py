"""How large an effect is, where the graph, an instrument, an experiment or several
environments say which comparison to make."""

from itertools import combinations

import numpy as np
import pandas as pd
from scipy import special

from mlbook.causal.borders import check_level


def two_stage(
    y: np.ndarray, x: np.ndarray, z: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Two-stage least squares: x is regressed on z, then y on what that predicts.

    Args:
        y: (n,); x: (n, k), causes and controls; z: (n, l ≥ k), instruments and
            controls. With z = x it is ordinary least squares.
    Returns:
        ((k,) coefficients, (k,) White's standard errors: of residuals with x itself).
    Raises:
        ValueError: fewer instruments than causes, or columns that determine each other.
    """
    if z.shape[1] < x.shape[1]:
        raise ValueError(
            f"{x.shape[1]} columns need as many instruments, got {z.shape[1]}"
        )
    predicted = z @ np.linalg.lstsq(z, x, rcond=None)[0]
    if np.linalg.matrix_rank(predicted) < x.shape[1]:
        raise ValueError("the instruments do not tell the columns of x apart")
    b = np.linalg.lstsq(predicted, y, rcond=None)[0]
    bread = np.linalg.inv(predicted.T @ predicted)
    meat = predicted * (y - x @ b)[:, None]
    return b, np.sqrt(np.diag(bread @ (meat.T @ meat) @ bread))


def front_door(table: pd.DataFrame, x: str, m: str, y: str) -> pd.DataFrame:
    """P(y | do(x)) = Σ_m P(m | x) Σ_x' P(x') P(y | x', m), from frequencies.

    Args:
        table: discrete columns; m carries the whole effect of x on y.
    Returns:
        a table, x downwards, y across.
    Raises:
        ValueError: a value of x and one of m never come together.
    """
    p_x = table[x].value_counts(normalize=True)
    p_m = pd.crosstab(table[x], table[m], normalize="index")
    p_y = pd.crosstab([table[x], table[m]], table[y], normalize="index")
    if (p_m == 0).to_numpy().any():
        value, other = p_m.stack().idxmin()
        raise ValueError(f"{x} = {value} never comes with {m} = {other}")
    return p_m @ sum(p_x[value] * p_y.loc[value] for value in p_x.index)


def match(
    treated: pd.DataFrame,
    others: pd.DataFrame,
    outcome: str,
    on: list[str],
    neighbours: int = 1,
):
    """The mean effect on the treated: each is compared with the others most like him,
    in Mahalanobis's distance; who is equally near counts equally.

    Args:
        treated, others: tables with the columns `on` and `outcome`.
    Returns:
        (effect, Abadie & Imbens's (2006) standard error).
    Raises:
        ValueError: fewer others than neighbours, or columns that determine each other.
    """
    if len(others) < max(neighbours, 5):
        raise ValueError(
            f"{len(others)} others are too few for {neighbours} neighbours"
        )
    a, b = treated[on].to_numpy(float), others[on].to_numpy(float)
    spread = np.cov(np.concatenate([a, b]), rowvar=False).reshape(len(on), len(on))
    if np.linalg.cond(spread) > 1e12:
        raise ValueError(f"columns determine each other, or are constant: {on}")
    root = np.linalg.cholesky(np.linalg.inv(spread))

    def weights(a, b, k):
        size = (a @ root) ** 2 @ np.ones(len(on)), (b @ root) ** 2 @ np.ones(len(on))
        apart = size[0][:, None] + size[1] - 2 * (a @ root) @ (b @ root).T
        near = apart <= np.partition(apart, k - 1, 1)[:, k - 1, None] + 1e-9
        return near / near.sum(1, keepdims=True)

    y1, y0 = treated[outcome].to_numpy(), others[outcome].to_numpy()
    w = weights(a, b, neighbours)
    gaps = y1 - w @ y0
    used, squares = w.sum(0), (w**2).sum(0)
    at = np.flatnonzero(used > 0)
    alike = weights(b[at], b, 5)  # each among them itself
    noise = 1.25 * (y0[at] - alike @ y0) ** 2
    variance = ((gaps - gaps.mean()) ** 2).sum() + (
        (used**2 - squares)[at] * noise
    ).sum()
    return float(gaps.mean()), float(np.sqrt(max(variance, 0)) / len(y1))


def invariant(x: np.ndarray, y: np.ndarray, environment: np.ndarray) -> float:
    """A p-value for: the regression of y on x leaves the same mean and the same
    variance in each environment (Bonferroni over Welch's t and F tests of each against
    the rest)."""
    design = np.column_stack([np.ones(len(y)), x])
    left = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    p = []
    for each in pd.unique(environment):
        a, b = left[environment == each], left[environment != each]
        va, vb = a.var(ddof=1), b.var(ddof=1)
        wa, wb = va / len(a), vb / len(b)
        t = (a.mean() - b.mean()) / np.sqrt(wa + wb)
        free = (wa + wb) ** 2 / (wa**2 / (len(a) - 1) + wb**2 / (len(b) - 1))
        sizes = len(a) - 1, len(b) - 1
        f = min(special.fdtr(*sizes, va / vb), special.fdtrc(*sizes, va / vb))
        p += [2 * special.stdtr(free, -abs(t)), 2 * f]
    return float(min(1, min(p) * len(p)))


def icp(table: pd.DataFrame, target: str, environment, alpha: float = 0.05):
    """Invariant causal prediction (Peters, Bühlmann & Meinshausen 2016): what all sets
    of columns have in common whose regression is the same in every environment.

    With a chance of 1 − alpha it holds causes of the target only, if no environment
    acts on the target itself, the model is linear and nothing is hidden.

    Args:
        environment: (n,), the label of each row's; at least two.
    Returns:
        (the causes, the sets that passed); no causes where no set passed.
    Raises:
        ValueError: one environment only, alpha not between 0 and 1, or an unknown
            target.
    """
    check_level(alpha)
    environment = np.asarray(environment)
    if target not in table or len(environment) != len(table):
        raise ValueError(
            f"{target!r} is no column, or {len(environment)} labels for {len(table)} rows"
        )
    if len(pd.unique(environment)) < 2:
        raise ValueError(f"at least two environments are needed, got {environment[:1]}")
    others = [name for name in table if name != target]
    sets = [
        set(s) for size in range(len(others) + 1) for s in combinations(others, size)
    ]
    y = table[target].to_numpy()
    passed = [
        s
        for s in sets
        if invariant(table[sorted(s)].to_numpy(), y, environment) > alpha
    ]
    return (set.intersection(*passed) if passed else set()), passed
