"""What the functions of this room refuse."""

from collections.abc import Iterable

import networkx as nx
import numpy as np
import pandas as pd

TIED = 1e-9  # an eigenvalue of a correlation matrix below it: rounding, no variable


def check_dag(graph: nx.DiGraph) -> nx.DiGraph:
    """`graph`, if it is a directed graph without a cycle.

    Raises:
        TypeError: its edges have no direction.
        ValueError: it has a cycle; the message shows it.
    """
    if not isinstance(graph, nx.DiGraph) or graph.is_multigraph():
        raise TypeError(f"a networkx.DiGraph is needed, got {type(graph).__name__}")
    if not nx.is_directed_acyclic_graph(graph):
        cycle = [a for a, _ in nx.find_cycle(graph)]
        raise ValueError(
            f"the graph has a cycle: {' → '.join(map(str, [*cycle, cycle[0]]))}"
        )
    return graph


def check_nodes(graph: nx.DiGraph, name: str, nodes) -> set:
    """`nodes`, one node or several, as a set.

    Raises:
        ValueError: one of them is not in the graph.
    """
    if not isinstance(nodes, Iterable) or nodes in graph:
        nodes = (nodes,)
    elif isinstance(nodes, str):
        raise ValueError(f"{name}: {nodes!r} is not a node of the graph")
    unknown = [node for node in nodes if node not in graph]
    if unknown:
        raise ValueError(f"{name}: {unknown[0]!r} is not a node of the graph")
    return set(nodes)


def check_disjoint(graph: nx.DiGraph, x, y, z) -> tuple[set, set, set]:
    """x, y and z as sets of nodes that share none; z may be empty.

    Raises:
        ValueError: two of them share a node, x or y is empty, or a node is unknown.
    """
    sets = [check_nodes(graph, *named) for named in (("x", x), ("y", y), ("z", z))]
    for (a, b), names in zip(
        ((0, 1), (0, 2), (1, 2)), ("x and y", "x and z", "y and z"), strict=True
    ):
        if shared := sets[a] & sets[b]:
            raise ValueError(f"{names} share {', '.join(sorted(map(str, shared)))}")
    if not sets[0] or not sets[1]:
        raise ValueError("x and y need at least one node each")
    return tuple(sets)


def check_table(data, least: int = 10, independent: bool = True) -> pd.DataFrame:
    """`data`, rows of observations, as a table of floats.

    Args:
        data: a DataFrame, or an array (n, variables), whose columns are then 0, 1, ...
        least: how many rows are needed.
        independent: whether columns that determine each other linearly are refused.
    Raises:
        ValueError: too few rows, a name twice, a value that is not finite, a column
            that is constant, equal to another, or a linear function of others; the
            message names it.
    """
    table = pd.DataFrame(data)
    if table.columns.has_duplicates:
        raise ValueError(
            f"two columns are called {table.columns[table.columns.duplicated()][0]!r}"
        )
    table = table.astype(float)
    values = table.to_numpy()
    if len(table) < least:
        raise ValueError(f"at least {least} rows are needed, got {len(table)}")
    if not table.shape[1]:
        raise ValueError("a table without columns")
    for name, column in zip(table.columns, values.T, strict=True):
        if not np.isfinite(column).all():
            row = int(np.flatnonzero(~np.isfinite(column))[0])
            raise ValueError(f"column {name!r} has {column[row]} in row {row}")
        if np.ptp(column) <= 1e-12 * np.abs(column).max():
            raise ValueError(f"column {name!r} is constant: {column[0]}")
    if independent:
        if len(table) <= table.shape[1]:
            raise ValueError(
                f"{len(table)} rows are too few for {table.shape[1]} columns"
            )
        check_independent(table)
    return table


def check_independent(table: pd.DataFrame) -> None:
    """Raise a ValueError that names columns of which one is a linear function of the
    others."""
    if table.shape[1] < 2:
        return
    size, directions = np.linalg.eigh(np.corrcoef(table.to_numpy(), rowvar=False))
    if size[0] < TIED:
        tied = table.columns[np.abs(directions[:, 0]) > 1e-4]
        raise ValueError(f"columns determine each other: {', '.join(map(repr, tied))}")


def check_pair(
    x, y, least: int = 10, independent: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """x and y as float vectors of one length.

    Raises:
        ValueError: as `check_table`, or more than one dimension.
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(
            f"two vectors of one length are needed, got {x.shape} and {y.shape}"
        )
    table = check_table({"x": x, "y": y}, least, independent)
    return table["x"].to_numpy(), table["y"].to_numpy()


def check_level(alpha) -> float:
    """alpha, if it lies between 0 and 1, both excluded."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}")
    return float(alpha)
