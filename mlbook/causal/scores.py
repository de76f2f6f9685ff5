"""Causal discovery by a score: the best of all DAGs, and NOTEARS, which makes the
search smooth."""

from functools import cache

import networkx as nx
import numpy as np
import pandas as pd
from scipy.linalg import expm
from scipy.optimize import minimize

from mlbook.causal.borders import check_table
from mlbook.causal.graphs import cpdag

MOST = 14  # variables that `exact` takes: it looks at 2¹⁴ sets of them


def bic(covariance: np.ndarray, n: int, j: int, parents: tuple[int, ...]) -> float:
    """n log of what is left of variable j's variance, plus log n for each parent: the
    smaller the better."""
    left = covariance[j, j]
    if parents:
        cross = covariance[j, parents]
        left -= cross @ np.linalg.solve(covariance[np.ix_(parents, parents)], cross)
    return n * np.log(left) + np.log(n) * len(parents)


def exact(data) -> nx.DiGraph:
    """The CPDAG of the DAGs whose linear Gaussian model has the best BIC, of all there
    are.

    The best DAG on a set of variables has a last one, with its best parents among the
    rest, and is on the rest a best DAG (Silander & Myllymäki 2006): 2^d sets are looked
    at instead of all DAGs.

    Args:
        data: rows of observations, a DataFrame or an array (n, variables), at most 14
            variables.
    Returns:
        a graph in which an edge without a direction has both; `graph.graph["score"]` is
        the BIC.
    Raises:
        ValueError: what `borders.check_table` refuses, or more than 14 variables.
    """
    table = check_table(data)
    n, d = table.shape
    if d > MOST:
        raise ValueError(f"{d} variables have too many DAGs: at most {MOST}")
    covariance = np.cov(table.to_numpy(), rowvar=False).reshape(d, d)

    @cache
    def parents(j: int, allowed: frozenset) -> tuple[float, frozenset]:
        """The best parents of j among `allowed`."""
        own = bic(covariance, n, j, tuple(sorted(allowed))), allowed
        return min(
            [own, *(parents(j, allowed - {k}) for k in allowed)],
            key=lambda found: found[0],
        )

    @cache
    def order(nodes: frozenset) -> tuple[float, tuple]:
        """The best DAG on these nodes: its score and its edges."""
        if not nodes:
            return 0.0, ()
        found = []
        for j in nodes:
            before, edges = order(nodes - {j})
            own, chosen = parents(j, nodes - {j})
            found.append((before + own, edges + tuple((k, j) for k in chosen)))
        return min(found, key=lambda each: each[0])

    best, edges = order(frozenset(range(d)))
    dag = nx.DiGraph()
    dag.add_nodes_from(table.columns)
    dag.add_edges_from((table.columns[k], table.columns[j]) for k, j in edges)
    graph = cpdag(dag)
    graph.graph["score"] = best
    return graph


def notears(data, penalty: float = 0.1, threshold: float = 0.3) -> pd.DataFrame:
    """The weights of a linear model whose graph is kept acyclic by a smooth constraint
    (Zheng et al. 2018).

    ‖X − XA‖² / 2n + penalty ‖A‖₁ is made small while h(A) = tr exp(A ∘ A) − d, which is
    0 for acyclic A alone, is pushed to 0 by an augmented Lagrangian. The data are taken
    in the units they come in: that is the method, and its weakness.

    Args:
        data: rows of observations, a DataFrame or an array (n, variables).
        threshold: smaller weights are set to 0.
    Returns:
        B, as `direct_lingam`: B.loc[i, j] is the effect of j on i.
    Raises:
        ValueError: what `borders.check_table` refuses; a negative penalty or threshold;
            or h does not come to 0, as for units of millions.
    """
    if not 0 <= penalty < np.inf or not 0 <= threshold < np.inf:
        raise ValueError(
            f"penalty and threshold must be at least 0, got {penalty}, {threshold}"
        )
    table = check_table(data)
    x = table.to_numpy() - table.to_numpy().mean(0)
    n, d = x.shape
    covariance = x.T @ x / n

    def objective(both, rho, multiplier):
        """The augmented Lagrangian and its gradient in the positive and the negative
        part of A."""
        positive, negative = both.reshape(2, d, d)
        A = positive - negative
        rest = np.eye(d) - A
        power = expm(A * A)
        h = np.trace(power) - d
        value = (
            0.5 * np.trace(rest.T @ covariance @ rest)
            + penalty * both.sum()
            + 0.5 * rho * h * h
            + multiplier * h
        )
        slope = -covariance @ rest + (rho * h + multiplier) * power.T * 2 * A
        return value, np.concatenate(
            [(slope + penalty).ravel(), (penalty - slope).ravel()]
        )

    own = np.eye(d, dtype=bool).ravel()
    bounds = [(0, 0) if own[k % (d * d)] else (0, None) for k in range(2 * d * d)]
    both, rho, multiplier, before = np.zeros(2 * d * d), 1.0, 0.0, np.inf
    while rho < 1e16:
        # steps that are too long overflow, and the line search takes them back
        with np.errstate(over="ignore", invalid="ignore"):
            both = minimize(
                objective, both, (rho, multiplier), "L-BFGS-B", jac=True, bounds=bounds
            ).x
        A = np.subtract(*both.reshape(2, d, d))
        h = np.trace(expm(A * A)) - d
        if h < 1e-8:
            break
        multiplier += rho * h
        rho *= 10 if h > 0.25 * before else 1
        before = h
    if not h < 1e-8:
        raise ValueError(
            f"no acyclic weights were found (h = {h:.1e}): are the units too large?"
        )
    A = np.where(np.abs(A) < threshold, 0, A)
    return pd.DataFrame(A.T, index=table.columns, columns=table.columns)


def graph_of_weights(B: pd.DataFrame) -> nx.DiGraph:
    """The graph of the entries of B that are not 0: j → i where B.loc[i, j] ≠ 0."""
    graph = nx.DiGraph()
    graph.add_nodes_from(B.columns)
    graph.add_edges_from((j, i) for i in B.index for j in B.columns if B.loc[i, j])
    return graph
