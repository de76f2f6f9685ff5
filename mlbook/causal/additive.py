"""Additive noise: regression that is smooth in each cause, the direction of a pair
(ANM), the graph of many (CAM)."""

from dataclasses import dataclass
from itertools import pairwise

import networkx as nx
import numpy as np
from scipy.stats import f as f_distribution

from mlbook.causal.borders import check_level, check_pair, check_table
from mlbook.causal.independence import features, hsic
from mlbook.causal.lingam import standard

WIDTH = 0.5  # of the kernels, in standard deviations of the cause
PENALTIES = np.logspace(-4, 4, 25)


@dataclass
class Fit:
    """A regression: its sum of squared residuals, how many parameters it is worth, and
    the residuals."""

    rss: float
    freedom: float
    residuals: np.ndarray


class Smoother:
    """Regressions of columns on sums of smooth functions of other columns.

    Kernel ridge regression: linear parts are free, what bends is penalised, as much as
    generalised cross-validation asks, RSS / (1 − freedom/n)² (Craven & Wahba 1979).
    All products of columns are made once, so that the cost of a fit does not depend
    on n.
    """

    def __init__(self, x: np.ndarray):
        """
        Args:
            x: (n, d), columns of mean 0 and variance 1.
        """
        self.n, self.d = x.shape
        bends = [features(column, WIDTH, 1e-3) for column in x.T]
        ends = np.cumsum([self.d, *(each.shape[1] for each in bends)])
        self.at = [range(*pair) for pair in pairwise(ends)]
        design = np.concatenate([x, *bends], 1)
        self.design = design - design.mean(0)
        self.products = self.design.T @ self.design

    def fit(self, j: int, causes: list[int]) -> Fit:
        """Column j on a sum of functions, one of each of `causes`."""
        line, products, design = list(causes), self.products, self.design
        if not line:
            return Fit(float(products[j, j]), 1.0, design[:, j])
        bend = [k for cause in line for k in self.at[cause]]
        # what the linear parts leave of the effect and of what bends
        slopes = np.linalg.solve(
            products[np.ix_(line, line)], products[np.ix_(line, [j, *bend])]
        )
        left = products[np.ix_([j, *bend], [j, *bend])]
        left = left - products[np.ix_([j, *bend], line)] @ slopes
        size, axes = np.linalg.eigh(left[1:, 1:])
        size, axes = size[size > 1e-9 * self.n], axes[:, size > 1e-9 * self.n]
        along = axes.T @ left[1:, 0]
        kept = size / (size + PENALTIES[:, None])
        freedom = 1 + len(line) + kept.sum(1)
        rss = left[0, 0] - (kept * (2 - kept) * along**2 / size).sum(1)
        best = np.argmin(rss / np.maximum(1 - freedom / self.n, 1e-9) ** 2)
        bent = axes @ (kept[best] * along / size)
        straight = slopes[:, 0] - slopes[:, 1:] @ bent
        fitted = design[:, line] @ straight + design[:, bend] @ bent
        return Fit(float(rss[best]), float(freedom[best]), design[:, j] - fitted)


def anm_direction(
    x, y, permutations: int = 200, seed: int = 0
) -> tuple[str, float, float]:
    """Which of two variables is the cause, if the effect is a function of it plus
    independent noise (Hoyer et al. 2009).

    Each is regressed on the other; the direction whose residuals are the less dependent
    on the regressor wins. Its p-values are of `hsic` between regressor and residuals:
    not uniform even where the model is true, since the residuals come from a fit to the
    same data.

    Args:
        x, y: (n,).
    Returns:
        ("x → y" or "y → x", p of x → y, p of y → x). Both small: neither is an additive
        noise model. Both large: the data cannot tell.
    Raises:
        ValueError: what `borders.check_pair` refuses.
    """
    x, y = check_pair(x, y)
    smoother = Smoother(standard(np.stack([x, y], 1)))
    forward = hsic(x, smoother.fit(1, [0]).residuals, permutations, seed)
    backward = hsic(y, smoother.fit(0, [1]).residuals, permutations, seed)
    # equal p-values (both at their least, say) are told apart by the statistic
    better = (forward[1], -forward[0]) >= (backward[1], -backward[0])
    return "x → y" if better else "y → x", forward[1], backward[1]


def cam(data, alpha: float = 0.001) -> nx.DiGraph:
    """The graph of an additive model with Gaussian noise, x_j = Σ f_jk(x_k) + e_j
    (Bühlmann, Peters & Ernest 2014).

    Greedy: the edge that adds most to the likelihood, −n/2 Σ log var(e_j), and closes
    no cycle, until none is left to add; then an F test takes away each parent whose
    function is not worth its parameters.

    Args:
        data: rows of observations, a DataFrame or an array (n, variables).
        alpha: level of that test.
    Returns:
        a DAG; `graph.graph["order"]` is the order that the search found, before the
        pruning, and "score" the sum of −½ log var(e_j) of standardised variables in it.
    Raises:
        ValueError: what `borders.check_table` refuses; alpha is not between 0 and 1.
    """
    check_level(alpha)
    table = check_table(data)
    smoother, d = Smoother(standard(table.to_numpy())), table.shape[1]

    def score(j: int, parents: list[int]) -> float:
        return -0.5 * np.log(smoother.fit(j, parents).rss / len(table))

    graph = nx.DiGraph()
    graph.add_nodes_from(range(d))
    scores = np.zeros(d)
    gain = {(k, j): score(j, [k]) for j in range(d) for k in range(d) if k != j}
    while gain:
        k, j = max(gain, key=gain.get)
        scores[j] += gain[k, j]
        graph.add_edge(k, j)
        reach = {node: nx.descendants(graph, node) for node in graph}
        gain = {
            (a, b): g
            for (a, b), g in gain.items()
            if a not in reach[b] and (a, b) != (k, j)
        }
        for a, b in gain:
            if b == j:
                gain[a, b] = score(j, [*graph.pred[j], a]) - scores[j]
    order = list(nx.topological_sort(graph))
    found = nx.DiGraph()
    found.add_nodes_from(table.columns)
    for j in graph:
        for k in prune(smoother, j, list(graph.pred[j]), alpha):
            found.add_edge(table.columns[k], table.columns[j])
    found.graph = {
        "order": [table.columns[i] for i in order],
        "score": float(scores.sum()),
    }
    return found


def prune(smoother: Smoother, j: int, parents: list[int], alpha: float) -> list[int]:
    """Those of `parents` without which the regression of column j is worse by an F test
    at level alpha; the least needed goes first, and the rest are tested again."""
    parents = list(parents)
    while parents:
        full = smoother.fit(j, parents)
        free = smoother.n - full.freedom
        p = []
        for k in parents:
            less = smoother.fit(j, [other for other in parents if other != k])
            extra = max(full.freedom - less.freedom, 1.0)
            ratio = max(less.rss - full.rss, 0) / extra / (full.rss / free)
            p.append(f_distribution.sf(ratio, extra, free))
        if max(p) <= alpha:
            break
        parents.pop(int(np.argmax(p)))
    return parents
