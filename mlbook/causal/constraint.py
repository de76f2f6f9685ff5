"""Causal discovery from conditional independences: the PC algorithm."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, combinations, islice, permutations

import networkx as nx
import numpy as np

from mlbook.causal.borders import check_dag, check_level
from mlbook.causal.graphs import d_separated, meek
from mlbook.causal.independence import TESTS

AT_ONCE = 256  # sets that are tested together, unless a test says otherwise


class Oracle:
    """The answers of a known graph in place of tests: a p-value of 1 where it
    separates, of 0 where it does not."""

    at_once = 1  # the next one only if it is needed

    def __init__(self, dag: nx.DiGraph):
        self.dag, self.names = check_dag(dag), list(dag)

    def __call__(self, i: int, j: int, sets: Iterable[tuple[int, ...]]) -> np.ndarray:
        names = self.names
        return np.array(
            [
                float(
                    d_separated(self.dag, names[i], names[j], {names[k] for k in given})
                )
                for given in sets
            ]
        )


def pc(
    data, alpha: float = 0.05, test="fisher_z", stable: bool = True, colliders="max"
) -> nx.DiGraph:
    """The CPDAG of the data's independences (Spirtes, Glymour & Scheines 2000).

    Args:
        data: rows of observations, a DataFrame or an array (n, variables).
        alpha: two variables stay adjacent where no set separates them with p > alpha.
        test: "fisher_z" (linear), "g2" (discrete), or a function of the data that makes
            a test as they do: an object with `names`, called with the numbers of two
            columns and with sets, and answering with p-values.
        stable: whether the neighbours that sets are made of are those of the level's
            begin, so that the skeleton does not depend on the order of the columns
            (Colombo & Maathuis 2014).
        colliders: "first": a – c – b becomes a → c ← b if c is not in the first set
            that was found to separate a and b, which depends on the order; "max": if it
            is not in the set of the largest p-value, the surest first (Ramsey 2016),
            which does not.
    Returns:
        a graph in which an edge without a direction has both; its attributes
        `graph.graph[...]`: "separating" (pair → set), "removed" (pair, set, p-value, in
        that order of removal), "tests" (how many were made), "acyclic" (False where
        tests contradict each other so much that the arrows run in a circle).
    Raises:
        ValueError: alpha is not between 0 and 1, `test` or `colliders` is unknown, or
            what the test refuses in the data.
    """
    if isinstance(test, str) and test not in TESTS:
        raise ValueError(
            f"test must be one of {', '.join(TESTS)} or a function, got {test!r}"
        )
    make = TESTS[test] if isinstance(test, str) else test
    return search(make(data), alpha, stable, colliders)


def search(
    test: Callable, alpha: float = 0.05, stable=True, colliders="max"
) -> nx.DiGraph:
    """`pc` with a test that is made already, such as an `Oracle`."""
    check_level(alpha)
    if colliders not in ("first", "max"):
        raise ValueError(f"colliders must be 'first' or 'max', got {colliders!r}")
    near, separating, removed, count = adjacencies(test, alpha, stable)
    names = test.names
    pattern = nx.DiGraph()
    pattern.add_nodes_from(names)
    pattern.add_edges_from((names[i], names[j]) for i in near for j in near[i])
    triples = [
        (a, c, b)
        for c in near
        for a, b in combinations(sorted(near[c]), 2)
        if b not in near[a]
    ]
    if colliders == "max":
        largest = max((len(given) for given in separating.values()), default=0)
        separating, sure = _surest(test, near, triples, largest)
        triples.sort(key=lambda triple: -sure[frozenset(triple[::2])])
    for a, c, b in triples:
        # what an earlier collider has directed stays
        arrows = [(names[end], names[c]) for end in (a, b)]
        if c not in separating[frozenset((a, b))] and all(
            pattern.has_edge(*arrow) for arrow in arrows
        ):
            pattern.remove_edges_from([(c, end) for end, c in arrows])
    graph = meek(pattern)
    graph.graph = {
        "separating": {
            frozenset(names[i] for i in pair): {names[k] for k in given}
            for pair, given in separating.items()
        },
        "removed": [
            (names[i], names[j], {names[k] for k in given}, p)
            for i, j, given, p in removed
        ],
        "tests": count,
        "acyclic": nx.is_directed_acyclic_graph(nx.DiGraph(directed(graph))),
    }
    return graph


def adjacencies(test, alpha: float, stable: bool) -> tuple[dict, dict, list, int]:
    """Which columns no set separates; the first set that separates each other pair; the
    pairs as they went; tests made."""
    columns = range(len(test.names))
    near = {i: set(columns) - {i} for i in columns}
    separating, removed, count, size = {}, [], 0, 0
    while any(len(beside) > size for beside in near.values()):
        before = {i: set(beside) for i, beside in near.items()} if stable else near
        for i, j in permutations(columns, 2):
            if j not in near[i] or (size == 0 and j < i):
                continue
            sets = combinations(sorted(before[i] - {j}), size)
            for some in batched(sets, getattr(test, "at_once", AT_ONCE)):
                p = test(i, j, some)
                apart = np.flatnonzero(p > alpha)
                count += int(apart[0]) + 1 if len(apart) else len(some)
                if len(apart):
                    near[i].discard(j), near[j].discard(i)
                    separating[frozenset((i, j))] = some[apart[0]]
                    removed.append((i, j, some[apart[0]], float(p[apart[0]])))
                    break
        size += 1
    return near, separating, removed, count


def _surest(test, near: dict, triples: list, largest: int) -> tuple[dict, dict]:
    """For the ends of each triple the set, of at most `largest` neighbours of one of
    them, with the largest p-value; and that p-value."""
    sets, sure = {}, {}
    for a, _, b in triples:
        pair = frozenset((a, b))
        if pair in sure:
            continue
        sure[pair] = -1.0
        for size in range(largest + 1):
            choices = chain(
                combinations(sorted(near[a]), size), combinations(sorted(near[b]), size)
            )
            for some in batched(dict.fromkeys(choices), AT_ONCE):
                p = test(*sorted(pair), some)
                if p.max() > sure[pair]:
                    sets[pair], sure[pair] = some[int(p.argmax())], float(p.max())
    return sets, sure


def batched(sets: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` of them, the last perhaps shorter."""
    sets = iter(sets)
    while some := list(islice(sets, size)):
        yield some


def directed(graph: nx.DiGraph) -> list[tuple]:
    """The edges with a direction."""
    return [(a, b) for a, b in graph.edges if not graph.has_edge(b, a)]
