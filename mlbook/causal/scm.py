"""Structural causal models: a function for each variable, of its parents and its
noise."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial

import networkx as nx
import numpy as np
import pandas as pd

from mlbook.causal.borders import check_dag
from mlbook.common.checks import check_count

NOISES = {  # of mean 0 and variance 1
    "Gaussian": lambda rng, n: rng.standard_normal(n),
    "uniform": lambda rng, n: rng.uniform(-(3**0.5), 3**0.5, n),
    "Laplace": lambda rng, n: rng.laplace(scale=0.5**0.5, size=n),
}


def graph_of(scm: Mapping[str, Callable]) -> nx.DiGraph:
    """The causal graph of a model: an arrow from each argument of a variable's
    function, its noise `e` apart.

    Args:
        scm: variable → function of its parents, named as they are, and of `e`, each a
            vector of n values.
    Raises:
        ValueError: a function has an argument that is no variable, or the graph has a
            cycle.
    """
    graph = nx.DiGraph()
    graph.add_nodes_from(scm)
    if "e" in scm:
        raise ValueError("a variable cannot be called e: that is the noise")
    for name, function in scm.items():
        for parent in inspect.signature(function).parameters:
            if parent != "e" and parent not in scm:
                raise ValueError(f"{name} depends on {parent!r}, which the model lacks")
            if parent != "e":
                graph.add_edge(parent, name)
    return check_dag(graph)


def draw_noise(
    scm: Mapping, n: int, seed: int = 0, kinds: str | Mapping[str, str] = "Gaussian"
) -> pd.DataFrame:
    """n independent values of each variable's noise, as a table.

    Args:
        kinds: a name of `NOISES`, or variable → name; Gaussian where none is given.
    Raises:
        ValueError: `kinds` names an unknown variable or noise, or n is no count.
    """
    rng = np.random.default_rng(seed)
    if not isinstance(kinds, str | Mapping):
        raise ValueError(f"noise is a name, names or a table, got {type(kinds)}")
    given = dict.fromkeys(scm, kinds) if isinstance(kinds, str) else kinds
    of = dict.fromkeys(scm, "Gaussian") | dict(given)
    if unknown := of.keys() - scm.keys():
        raise ValueError(f"noise is for {unknown.pop()!r}, which the model lacks")
    if unknown := set(of.values()) - NOISES.keys():
        raise ValueError(f"noise is {unknown.pop()!r}, which is none of {list(NOISES)}")
    check_count("n", n)
    return pd.DataFrame({name: NOISES[of[name]](rng, n) for name in scm})


def simulate(
    scm: Mapping[str, Callable],
    n: int,
    do: Mapping[str, float] | None = None,
    seed: int = 0,
    noise: str | Mapping[str, str] | pd.DataFrame = "Gaussian",
) -> pd.DataFrame:
    """n rows of the model's variables, with those in `do` set from outside.

    Args:
        scm: as in `graph_of`.
        do: variable → its value, or n values: its own function is then not asked.
        noise: what `draw_noise` gives, or its `kinds`, drawn with `seed`.
    Returns:
        a table (n, variables), columns as in `scm`.
    Raises:
        ValueError: `do` names an unknown variable or gives a value that is not finite,
            the model's graph has a cycle, the noise has other rows or columns.
    """
    do, graph = dict(do or {}), graph_of(scm)
    for name, value in do.items():
        if name not in scm:
            raise ValueError(f"do names {name!r}, which the model lacks")
        if not np.isfinite(value).all():
            raise ValueError(f"do sets {name} to {value}")
    if not isinstance(noise, pd.DataFrame):
        noise = draw_noise(scm, n, seed, noise)
    if len(noise) != n or set(noise) != set(scm):
        raise ValueError(
            f"noise of {n} rows for {list(scm)} is needed, got {noise.shape} for {list(noise)}"
        )
    values: dict[str, np.ndarray] = {}
    for name in nx.topological_sort(graph):
        if name in do:
            values[name] = np.broadcast_to(np.asarray(do[name], float), n)
        else:
            given = {parent: values[parent] for parent in graph.predecessors(name)}
            if "e" in inspect.signature(scm[name]).parameters:
                given["e"] = noise[name].to_numpy()
            values[name] = np.broadcast_to(np.asarray(scm[name](**given), float), n)
    return pd.DataFrame({name: values[name] for name in scm})


def random_dag(nodes: int, edges: float, rng: np.random.Generator) -> nx.DiGraph:
    """A DAG on X1, X2, ...: each edge of a random order is there with one chance, so
    that `edges` are expected."""
    names = [f"X{i + 1}" for i in range(check_count("nodes", nodes, 2))]
    chance = edges / (nodes * (nodes - 1) / 2)
    if not 0 <= chance <= 1:
        raise ValueError(
            f"{nodes} nodes take 0 to {nodes * (nodes - 1) // 2} edges, got {edges}"
        )
    order = rng.permutation(names)
    graph = nx.DiGraph()
    graph.add_nodes_from(names)
    for j in range(nodes):
        for i in range(j):
            if rng.random() < chance:
                graph.add_edge(str(order[i]), str(order[j]))
    return graph


def random_scm(graph: nx.DiGraph, shape: str, rng: np.random.Generator) -> dict:
    """A model with this graph, whose variables have roughly one scale.

    Args:
        shape: of the functions: "linear" (coefficients of size 0.5 to 1.5) or "curved"
            (sums of waves, a sine of random length and phase for each parent).
    Raises:
        ValueError: `shape` is neither, or the graph has a cycle.
    """
    if shape not in ("linear", "curved"):
        raise ValueError(f"shape must be 'linear' or 'curved', got {shape!r}")
    scm = {}
    for name in check_dag(graph):
        parents = list(graph.predecessors(name))
        sizes = rng.uniform(0.5, 1.5, len(parents)) * rng.choice([-1, 1], len(parents))
        waves = (
            rng.uniform(0.8, 1.6, len(parents)),
            rng.uniform(-np.pi, np.pi, len(parents)),
        )
        deviation = rng.uniform(0.5, 1.0)
        scm[name] = _mechanism(
            parents, partial(_respond, shape, sizes, *waves, deviation)
        )
    return scm


def _respond(shape, sizes, length, phase, deviation, values, e):
    if shape == "linear":
        return sum((a * x for a, x in zip(sizes, values, strict=True)), deviation * e)
    parts = zip(sizes, length, phase, values, strict=True)
    return sum((1.5 * a * np.sin(w * x + p) for a, w, p, x in parts), deviation * e)


def _mechanism(parents: list[str], respond: Callable) -> Callable:
    """A function whose arguments are called as the parents are, and `e`."""

    def function(**given):
        return respond([given[parent] for parent in parents], given["e"])

    kind = inspect.Parameter.KEYWORD_ONLY
    function.__signature__ = inspect.Signature(
        [inspect.Parameter(p, kind) for p in [*parents, "e"]]
    )
    return function
