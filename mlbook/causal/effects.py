"""How large an effect is, where the graph, an instrument, an experiment or several
environments say which comparison to make."""

import warnings
from collections.abc import Iterable
from itertools import chain, combinations, product

import networkx as nx
import numpy as np
import pandas as pd
from scipy import special, stats
from scipy.linalg import orth
from statsmodels.discrete.discrete_model import Logit
from statsmodels.tools.sm_exceptions import (
    ConvergenceWarning,
    PerfectSeparationError,
    PerfectSeparationWarning,
)

from mlbook.causal.borders import (
    TIED,
    check_disjoint,
    check_independent,
    check_level,
    check_table,
)
from mlbook.causal.graphs import adjacent
from mlbook.causal.lingam import standard
from mlbook.common.checks import check_count


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
        ValueError: other shapes, values that are not finite, fewer instruments than
            causes, or instruments that do not tell the causes apart.
    """
    y, x, z = (np.asarray(each, float) for each in (y, x, z))
    if y.ndim != 1 or x.ndim != 2 or z.ndim != 2 or not len(y) == len(x) == len(z):
        raise ValueError(
            f"y (n,), x (n, k) and z (n, l) are needed, got {y.shape}, {x.shape}, {z.shape}"
        )
    for name, each in (("y", y), ("x", x), ("z", z)):
        if not np.isfinite(each).all():
            raise ValueError(f"{name} has values that are not finite")
    if z.shape[1] < x.shape[1]:
        raise ValueError(
            f"{x.shape[1]} columns need as many instruments, got {z.shape[1]}"
        )
    size = np.linalg.norm(x, axis=0)  # columns of one length, for the arithmetic
    scaled = np.divide(x, size, where=size > 0, out=np.zeros_like(x))
    space = orth(np.divide(z, np.linalg.norm(z, axis=0) + (z == 0).all(0)))
    predicted = space @ (space.T @ scaled)
    if np.linalg.svd(predicted, compute_uv=False).min() < TIED**0.5:
        raise ValueError("the instruments do not tell the columns of x apart")
    pull = np.linalg.pinv(predicted)
    b = pull @ y
    left = y - scaled @ b
    return b / size, np.sqrt((pull**2) @ left**2) / size


def adjust(table: pd.DataFrame, x: str, y: str, given=()) -> tuple[float, float]:
    """The effect of x on y in a linear model, adjusting for `given`: the coefficient of
    a regression, and White's standard error.

    Raises:
        ValueError: a name that is no column or is there twice, no more rows than
            coefficients, or what `borders.check_table` refuses.
    """
    table = _columns(table, x, y, given)
    design = table.drop(columns=y).to_numpy()
    b, error = two_stage(table[y].to_numpy(), design, design)
    return float(b[0]), float(error[0])


def _columns(table: pd.DataFrame, x, y, given) -> pd.DataFrame:
    """x, `given` and y less their means, if a regression of y on the others can be had."""
    names = [x, *([given] if isinstance(given, str) else given)]
    for name in (*names, y):
        if name not in table:
            raise ValueError(f"{name!r} is no column")
        if [*names, y].count(name) > 1:
            raise ValueError(f"{name!r} is named twice among x, y and given")
    table = check_table(table[[*names, y]], len(names) + 2, independent=False)
    check_independent(table[names])
    return table - table.mean()


def robustness(table: pd.DataFrame, x: str, y: str, given=()) -> float:
    """How strong a hidden confounder would have to be to bring `adjust`'s estimate to 0,
    if it explains equal shares of what `given` leaves of x and of what `given` and x
    leave of y: that share (Cinelli & Hazlett 2020, "robustness value").

    Raises:
        ValueError: as `adjust`.
    """
    share = explained(table, x, y, given)
    f2 = share / (1 - share)
    return float((np.sqrt(f2**2 + 4 * f2) - f2) / 2)


def explained(table: pd.DataFrame, x: str, y: str, given=()) -> float:
    """The share of what `given` leaves of y that x explains: the square of the partial
    correlation, and the same with x and y exchanged.

    Raises:
        ValueError: as `adjust`.
    """
    table = _columns(table, x, y, given)
    sides, others = table[[x, y]].to_numpy(), table.drop(columns=[x, y]).to_numpy()
    left = sides - others @ np.linalg.lstsq(others, sides, rcond=None)[0]
    return float(np.corrcoef(left, rowvar=False)[0, 1] ** 2)


def possible_effects(
    graph: nx.DiGraph, table: pd.DataFrame, x: str, y: str
) -> dict[frozenset, tuple[float, float]]:
    """The linear effects of x on y that the members of a Markov class imply (IDA;
    Maathuis, Kalisch & Bühlmann 2009).

    In a member the effect is had by adjusting for the parents of x. A set of x's
    neighbours without direction can be parents if no new v-structure arises at x.

    Args:
        graph: a CPDAG, edges without direction as both arrows.
        table: columns as the nodes.
    Returns:
        parents of x → (effect, standard error); (0, 0) where y is a parent.
    Raises:
        TypeError: no networkx.DiGraph.
        ValueError: an unknown node, x is y, or as `adjust`. A cycle elsewhere is none
            of its business: what tests find may contradict itself.
    """
    if type(graph) is not nx.DiGraph:
        raise TypeError(f"a networkx.DiGraph is needed, got {type(graph).__name__}")
    (x,), (y,) = check_disjoint(graph, x, y, ())[:2]
    sure = {a for a in graph.pred[x] if not graph.has_edge(x, a)}
    open_ends = [a for a in graph.pred[x] if graph.has_edge(x, a)]
    found = {}
    for size in range(len(open_ends) + 1):
        for turned in combinations(open_ends, size):
            pairs = product(turned, sure), combinations(turned, 2)
            if all(adjacent(graph, *pair) for pair in chain(*pairs)):
                parents = frozenset(sure.union(turned))
                zero = y in parents
                found[parents] = (0.0, 0.0) if zero else adjust(table, x, y, parents)
    return found


def front_door(table: pd.DataFrame, x: str, m: str, y: str) -> pd.DataFrame:
    """P(y | do(x)) = Σ_m P(m | x) Σ_x' P(x') P(y | x', m), from frequencies.

    Args:
        table: discrete columns; m carries the whole effect of x on y.
    Returns:
        a table, x downwards, y across.
    Raises:
        ValueError: a value is missing, or a value of x and one of m never come together.
    """
    if table[[x, m, y]].isna().any(axis=None):
        raise ValueError(f"{x}, {m} or {y} has missing values")
    table = table[[x, m, y]].astype(object)  # categories that do not occur do not count
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
        ValueError: fewer than two treated, fewer others than neighbours or than five,
            values that are not finite, or columns of `on` that determine each other.
    """
    check_count("neighbours", neighbours)
    if len(treated) < 2:
        raise ValueError(f"at least two treated are needed, got {len(treated)}")
    if len(others) < max(neighbours, 5):
        raise ValueError(
            f"{len(others)} others are too few for {neighbours} neighbours"
        )
    both = pd.concat(
        [treated[[*on, outcome]], others[[*on, outcome]]], ignore_index=True
    )
    check_independent(check_table(both, 7, independent=False)[on])
    both = standard(both[on].to_numpy(float))
    a, b = both[: len(treated)], both[len(treated) :]
    spread = np.cov(both, rowvar=False).reshape(len(on), len(on))
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


def doubly_robust(
    treated: pd.DataFrame, others: pd.DataFrame, outcome: str, on: list[str]
) -> tuple[float, float]:
    """The mean effect on the treated, by a regression of the outcome among the others
    and by weighting them with the odds of treatment; right if either model is
    (Scharfstein, Rotnitzky & Robins 1999; for the treated, Mercatanti & Li 2014).

    Args:
        treated, others: tables with the columns `on` and `outcome`.
    Returns:
        (effect, standard error, as if both models were known).
    Raises:
        ValueError: too few people, values that are not finite, columns of `on` that
            determine each other, or that tell the treated from the others without error.
    """
    if len(treated) < 2 or len(others) < max(5, len(on) + 2):
        raise ValueError(
            f"{len(treated)} treated and {len(others)} others are too few for {len(on)} columns"
        )
    both = pd.concat([treated, others], ignore_index=True)[[*on, outcome]]
    check_table(both, 7, independent=False)
    weight = odds(treated, others, on)[1]
    weight = weight / weight.sum()
    design = np.column_stack([standard(both[on].to_numpy(float)), np.ones(len(both))])
    y, n = both[outcome].to_numpy(float), len(treated)
    left = y - design @ np.linalg.lstsq(design[n:], y[n:], rcond=None)[0]
    of_treated, of_others = left[:n], left[n:]
    correction = weight @ of_others
    variance = of_treated.var() / n
    variance += (weight**2) @ (of_others - correction) ** 2
    return float(of_treated.mean() - correction), float(variance**0.5)


def odds(
    treated: pd.DataFrame, others: pd.DataFrame, on: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The odds of being treated, by a logistic regression on the columns `on`.

    Returns:
        (those of the treated, those of the others).
    Raises:
        ValueError: as `doubly_robust`.
    """
    if not len(treated) or not len(others):
        raise ValueError(f"{len(treated)} treated and {len(others)} others")
    both = check_table(pd.concat([treated[on], others[on]], ignore_index=True), 7)
    design = np.column_stack([standard(both.to_numpy(float)), np.ones(len(both))])
    is_treated = np.arange(len(both)) < len(treated)
    refused = (
        PerfectSeparationError,
        PerfectSeparationWarning,
        ConvergenceWarning,
        np.linalg.LinAlgError,
    )
    with warnings.catch_warnings():
        for kind in refused[1:3]:
            warnings.simplefilter("error", kind)
        try:
            fit = Logit(is_treated.astype(float), design).fit(disp=0)
        except refused as problem:
            raise ValueError(
                "the columns tell treated and others apart with hardly an error"
            ) from problem
    found = np.exp(design @ fit.params)
    return found[is_treated], found[~is_treated]


class Environments:
    """Sums of products of columns in each environment: all that regressions need, so that
    the cost of one does not depend on the number of rows."""

    def __init__(self, table: pd.DataFrame, environment):
        """
        Args:
            table: floats; environment: (n,), the label of each row's.
        Raises:
            ValueError: as many labels as rows are needed, of at least two kinds, each
                twice or oftener.
        """
        label, kinds = pd.factorize(np.asarray(environment))
        if len(label) != len(table):
            raise ValueError(f"{len(label)} labels for {len(table)} rows")
        if (label < 0).any():
            raise ValueError(f"row {int(np.argmin(label))} has no environment")
        if len(kinds) < 2 or np.bincount(label).min() < 2:
            raise ValueError(
                f"at least two environments of at least two rows are needed, got {list(kinds[:3])}"
            )
        x = np.column_stack([np.ones(len(table)), standard(table.to_numpy())])
        self.at = {name: k for k, name in enumerate(table, 1)}
        self.products = np.stack(
            [x[label == k].T @ x[label == k] for k in range(len(kinds))]
        )

    def p_value(self, causes, target) -> float:
        """For: the regression of `target` on `causes` leaves the same mean and the same
        variance everywhere (Bonferroni over Welch's t and F tests of each environment
        against the rest)."""
        used = [0, *(self.at[name] for name in causes)]
        y = self.at[target]
        whole = self.products.sum(0)
        b = np.zeros(len(whole))
        b[used] = -np.linalg.lstsq(
            whole[np.ix_(used, used)], whole[used, y], rcond=None
        )[0]
        b[y] = 1
        n, total = self.products[:, 0, 0], self.products[:, 0] @ b
        square = (self.products @ b) @ b
        sides = [
            (n, total, square),
            (n.sum() - n, total.sum() - total, square.sum() - square),
        ]
        (na, ma, va), (nb, mb, vb) = (
            (k, t / k, (q - t * t / k) / (k - 1)) for k, t, q in sides
        )
        wa, wb = va / na, vb / nb
        t = np.abs(ma - mb) / np.sqrt(wa + wb)
        free = (wa + wb) ** 2 / (wa**2 / (na - 1) + wb**2 / (nb - 1))
        f = [tail(na - 1, nb - 1, va / vb) for tail in (special.fdtr, special.fdtrc)]
        p = np.concatenate([2 * special.stdtr(free, -t), 2 * np.minimum(*f)])
        return float(min(1, p.min() * len(p)))


def invariances(
    table: pd.DataFrame, target: str, environment, most: int | None = None
) -> dict:
    """`Environments.p_value` of every set of other columns, of at most `most`.

    Raises:
        ValueError: an unknown target, or what `borders.check_table` or `Environments`
            refuse.
    """
    if target not in table:
        raise ValueError(f"{target!r} is no column")
    if most is None and table.shape[1] > 16:
        raise ValueError(f"{table.shape[1]} columns have too many subsets: give `most`")
    sums = Environments(check_table(table), environment)
    others = [name for name in table if name != target]
    sizes = range(min(len(others), len(others) if most is None else most) + 1)
    sets = chain.from_iterable(combinations(others, size) for size in sizes)
    return {causes: sums.p_value(causes, target) for causes in sets}


def residuals_alike(
    table: pd.DataFrame, target: str, causes: Iterable[str], environment
) -> float:
    """As `Environments.p_value`, for noise of any kind: the smaller p-value, doubled, of
    Kruskal and Wallis's test for place and Brown and Forsythe's for spread."""
    design = np.column_stack([table[list(causes)], np.ones(len(table))])
    y = table[target].to_numpy(float)
    left = pd.Series(y - design @ np.linalg.lstsq(design, y, rcond=None)[0])
    groups = [part for _, part in left.groupby(np.asarray(environment))]
    p = stats.kruskal(*groups).pvalue, stats.levene(*groups, center="median").pvalue
    return float(min(1, 2 * min(p)))


def icp(table: pd.DataFrame, target: str, environment, alpha: float = 0.05):
    """Invariant causal prediction (Peters, Bühlmann & Meinshausen 2016): what all sets
    of columns have in common whose regression is the same in every environment.

    With a chance of 1 − alpha it holds causes of the target only, if no environment
    acts on the target itself, the model is linear with Gaussian noise, and nothing is
    hidden.

    Args:
        environment: (n,), the label of each row's; at least two.
    Returns:
        (the causes, the sets that passed); no causes where no set passed.
    Raises:
        ValueError: one environment only, alpha not between 0 and 1, or an unknown
            target.
    """
    check_level(alpha)
    p = invariances(table, target, environment)
    passed = [set(causes) for causes, value in p.items() if value > alpha]
    return (set.intersection(*passed) if passed else set()), passed
