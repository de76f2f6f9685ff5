"""Linear models whose noise is not Gaussian: LiNGAM, by independent components and
directly."""

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import FastICA
from sklearn.linear_model import LassoLarsIC, LinearRegression

from mlbook.causal.borders import check_table


def direct_lingam(data) -> tuple[list, pd.DataFrame]:
    """Causal order and coefficients of x = B x + e with independent, not Gaussian e
    (Shimizu et al. 2011).

    The first variable of the order is the one that is most independent of the others'
    residuals after regression on it, by likelihood ratios with Hyvärinen's
    approximation of entropy (Hyvärinen & Smith 2013, equation 9); it is regressed out
    of the rest, and so on. Coefficients by an adaptive lasso on what comes before.

    Args:
        data: rows of observations, a DataFrame or an array (n, variables).
    Returns:
        (order, B): names, causes first; B.loc[i, j] is the effect of j on i.
    Raises:
        ValueError: what `borders.check_table` refuses.
    """
    table = check_table(data)
    left = list(range(table.shape[1]))
    x = standard(table.to_numpy()).T.copy()
    order = []
    while len(left) > 1:
        lead = int(np.argmin(_dependence(x)))
        others = np.arange(len(left)) != lead
        slope = x[others] @ x[lead] / len(table)
        x = standard((x[others] - slope[:, None] * x[lead]).T).T
        order.append(left.pop(lead))
    order += left
    return [table.columns[i] for i in order], coefficients(table, order)


def standard(x: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and variance 1."""
    return (x - x.mean(0)) / x.std(0)


def entropy(x: np.ndarray) -> np.ndarray:
    """Of the rows of x, of variance 1: Gaussian entropy less two squared moments that
    vanish for a Gaussian (Hyvärinen 1998)."""
    x = x.astype(np.float32)  # the mean of many rounded values is as good, and sooner
    size = np.abs(x)
    log_cosh = (size + np.log1p(np.exp(-2 * size))).mean(-1, dtype=float) - np.log(2)
    skew = (x * np.exp(-(x**2) / 2)).mean(-1, dtype=float)
    return (
        (1 + np.log(2 * np.pi)) / 2
        - 79.047 * (log_cosh - 0.37457) ** 2
        - 7.4129 * skew**2
    )


def likelihood_ratios(x: np.ndarray) -> np.ndarray:
    """How much better row i explains row j than the other way, per observation:
    positive where i → j is likelier.

    Args:
        x: (variables, n), rows of mean 0 and variance 1.
    Returns:
        (variables, variables), antisymmetric.
    """
    after = np.zeros((len(x), len(x)))  # entropy of j's residual on i
    for i, cause in enumerate(x):
        others = np.arange(len(x)) != i
        slope = x[others] @ cause / len(cause)
        rest = x[others] - slope[:, None] * cause
        after[i, others] = entropy(rest / np.sqrt(1 - slope**2)[:, None])
    of = entropy(x)
    return (of[None] + after.T) - (of[:, None] + after)


def _dependence(x: np.ndarray) -> np.ndarray:
    """Of each row: how much speaks against its being first."""
    return np.square(np.minimum(likelihood_ratios(x), 0)).sum(1)


def coefficients(table: pd.DataFrame, order: list[int]) -> pd.DataFrame:
    """B for a causal order of the columns' numbers, zeros found by an adaptive lasso
    with BIC (Zou 2006)."""
    x, names = table.to_numpy(), table.columns
    B = np.zeros((len(names), len(names)))
    for k, target in enumerate(order[1:], 1):
        before = order[:k]
        weight = np.abs(LinearRegression().fit(x[:, before], x[:, target]).coef_)
        lasso = LassoLarsIC(criterion="bic").fit(x[:, before] * weight, x[:, target])
        B[target, before] = lasso.coef_ * weight
    return pd.DataFrame(B, index=names, columns=names)


def ica_lingam(data, seed: int = 0) -> tuple[list, pd.DataFrame]:
    """The same model by independent component analysis (Shimizu et al. 2006): e = W x
    with W = I − B.

    ICA gives W up to the order and the size of its rows. The diagonal of I − B has no
    zero, which settles the order, and is 1, which settles the sizes; an order of the
    variables makes what is left lower triangular.

    Args, Returns, Raises: as `direct_lingam`; seed: of FastICA's first guess.
    """
    table = check_table(data)
    ica = FastICA(max_iter=2_000, tol=1e-6, random_state=seed, whiten="unit-variance")
    W = ica.fit(table.to_numpy()).components_
    rows, at = linear_sum_assignment(1 / np.maximum(np.abs(W), 1e-12))
    W = W[rows[np.argsort(at)]]
    B = np.eye(len(W)) - W / np.diag(W)[:, None]
    scale = table.std().to_numpy()  # which entries are small must not depend on units
    order = acyclic_order(B * scale / scale[:, None])
    return [table.columns[i] for i in order], coefficients(table, order)


def acyclic_order(B: np.ndarray) -> list[int]:
    """An order in which B is lower triangular once as few of its smallest entries as
    need be are set to 0."""
    B = np.abs(B) * (1 - np.eye(len(B)))
    for size in np.sort(B, axis=None):
        order, left = [], list(range(len(B)))
        while left:
            free = [i for i in left if not (B[i, left] > size).any()]
            if not free:
                break
            order.append(free[0])
            left.remove(free[0])
        if not left:
            return order
    raise AssertionError("no entry is larger than the largest")
