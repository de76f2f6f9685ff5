"""Causal graphs: which independences they entail, and which of them entail the same.

A graph is a `networkx.DiGraph`. Where some edges have a direction and others have none
(a CPDAG), an edge without is one with both, a → b and b → a.
"""

from collections.abc import Iterator
from itertools import chain, combinations

import networkx as nx
import numpy as np

from mlbook.causal.borders import check_dag, check_disjoint, check_nodes


def is_open(graph: nx.DiGraph, path: list, z: set) -> bool:
    """Whether a path carries dependence given z: each collider on it is in z or has a
    descendant there, and no other node of it is in z (Pearl 1988).

    Args:
        path: its nodes, neighbours adjacent in the graph.
    """
    return all(
        passes(graph, *step, z) for step in zip(path, path[1:], path[2:], strict=False)
    )


def passes(graph: nx.DiGraph, before, node, after, z: set) -> bool:
    """Whether a path's step before – node – after is open given z."""
    if graph.has_edge(before, node) and graph.has_edge(after, node):
        return bool(({node} | nx.descendants(graph, node)) & z)
    return node not in z


def paths(graph: nx.DiGraph, x, y) -> Iterator[list]:
    """All paths between two nodes, whatever way their edges point."""
    return nx.all_simple_paths(graph.to_undirected(as_view=True), x, y)


def d_separated(graph: nx.DiGraph, x, y, z=()) -> bool:
    """Whether z blocks every path between x and y.

    No path is listed: a walk is followed that remembers whether it came to a node
    against its edge (from a child) or along it (from a parent); Koller & Friedman 2009,
    algorithm 3.1.

    Args:
        graph: acyclic.
        x, y, z: a node or several; disjoint; z may be empty.
    Raises:
        TypeError, ValueError: the graph has a cycle or no directions; nodes are
            unknown; the sets overlap.
    """
    x, y, z = check_disjoint(check_dag(graph), x, y, z)
    parents, children = graph.pred, graph.succ
    seen, queue = set(), [(node, True) for node in x]
    while queue:
        place = queue.pop()
        if place in seen:
            continue
        seen.add(place)
        node, from_child = place
        if node in y:
            return False
        if node not in z:
            queue += [(child, False) for child in children[node]]
        # from a parent the way back up is a collider's: open at z; and from a collider
        # above z the walk goes down to z, and comes back
        if from_child != (node in z):
            queue += [(parent, True) for parent in parents[node]]
    return True


def adjacent(graph: nx.DiGraph, a, b) -> bool:
    return graph.has_edge(a, b) or graph.has_edge(b, a)


def undirected(graph: nx.DiGraph) -> list[tuple]:
    """The edges without a direction, each in both orders."""
    return [(a, b) for a, b in graph.edges if graph.has_edge(b, a)]


def skeleton(graph: nx.DiGraph) -> set[frozenset]:
    return {frozenset(edge) for edge in graph.edges}


def v_structures(dag: nx.DiGraph) -> set[tuple[frozenset, object]]:
    """({a, b}, c) for each a → c ← b whose ends a and b are not adjacent."""
    return {
        (frozenset(pair), node)
        for node in dag
        for pair in combinations(dag.predecessors(node), 2)
        if not adjacent(dag, *pair)
    }


def markov_equivalent(a: nx.DiGraph, b: nx.DiGraph) -> bool:
    """Whether two DAGs entail the same independences: one skeleton, one set of
    v-structures (Verma & Pearl 1990).

    Raises:
        ValueError: one has a cycle, or they have not the same nodes.
    """
    check_dag(a), check_dag(b)
    check_same(a, b)
    return skeleton(a) == skeleton(b) and v_structures(a) == v_structures(b)


def check_same(a: nx.DiGraph, b: nx.DiGraph) -> None:
    if set(a) != set(b):
        odd = sorted(map(str, set(a) ^ set(b)))
        raise ValueError(f"the graphs have not the same nodes: {', '.join(odd)}")


def cpdag(dag: nx.DiGraph) -> nx.DiGraph:
    """What all DAGs that are Markov equivalent to this one have in common: an edge has
    a direction where they agree.

    Raises:
        ValueError: the graph has a cycle.
    """
    check_dag(dag)
    pattern = nx.DiGraph()
    pattern.add_nodes_from(dag)
    pattern.add_edges_from(dag.edges)
    pattern.add_edges_from((b, a) for a, b in dag.edges)
    arrows = {(end, node) for ends, node in v_structures(dag) for end in ends}
    pattern.remove_edges_from((b, a) for a, b in arrows)
    return meek(pattern)


def meek(pattern: nx.DiGraph) -> nx.DiGraph:
    """Direct every edge whose other direction would make a cycle or a new v-structure
    (Meek 1995, rules 1 to 4).

    Args:
        pattern: its v-structures directed already; other directions may be known, too
            (rule 4 is for those). Where they contradict each other, so that both
            directions of an edge are called for, it stays without one.
    """
    graph = pattern.copy()
    while True:
        forced = {edge for edge in undirected(graph) if is_forced(graph, *edge)}
        clear = [(a, b) for a, b in forced if (b, a) not in forced]
        if not clear:
            return graph
        graph.remove_edges_from((b, a) for a, b in clear)


def is_forced(graph: nx.DiGraph, a, b) -> bool:
    """Whether a – b must be a → b."""

    def arrow(x, y) -> bool:
        return graph.has_edge(x, y) and not graph.has_edge(y, x)

    beside = {c for c in graph.succ[a] if graph.has_edge(c, a)}
    into = {c for c in graph.pred[b] if arrow(c, b)}
    # 1: c → a – b, and a is no collider
    if any(arrow(c, a) and not adjacent(graph, c, b) for c in graph.pred[a]):
        return True
    # 2: a → c → b
    if any(arrow(a, c) for c in into):
        return True
    # 3: a – c → b and a – d → b, c and d not adjacent
    if any(not adjacent(graph, *pair) for pair in combinations(beside & into, 2)):
        return True
    # 4: a – d → c → b, a and c adjacent, d and b not
    return any(
        arrow(d, c) and not adjacent(graph, d, b)
        for c in into
        if adjacent(graph, a, c)
        for d in beside
    )


def from_causal_learn(matrix: np.ndarray, names) -> nx.DiGraph:
    """A graph from causal-learn's matrix: −1 at [i, j] and 1 at [j, i] for i → j; −1 at
    both for an edge without direction.

    Raises:
        ValueError: other marks (hidden causes, circles), another shape, a name twice.
    """
    matrix, names = np.asarray(matrix), list(names)
    if matrix.shape != (len(names), len(names)) or len(set(names)) < len(names):
        raise ValueError(f"a matrix {matrix.shape} for the names {names}")
    marks = {(int(matrix[i, j]), int(matrix[j, i])) for i, j in np.argwhere(matrix)}
    if unknown := marks - {(-1, 1), (1, -1), (-1, -1)} or np.diag(matrix).any():
        raise ValueError(f"marks that are no arrow and no plain edge: {unknown}")
    graph = nx.DiGraph()
    graph.add_nodes_from(names)
    graph.add_edges_from((names[i], names[j]) for i, j in np.argwhere(matrix == -1))
    return graph


def shd(a: nx.DiGraph, b: nx.DiGraph) -> int:
    """Structural Hamming distance: pairs of nodes whose edge is not the same in both
    (there, not there, this way, that way, without direction).

    Raises:
        ValueError: they have not the same nodes.
    """
    check_same(a, b)

    def edge(graph, x, y):
        return graph.has_edge(x, y), graph.has_edge(y, x)

    return sum(edge(a, *pair) != edge(b, *pair) for pair in combinations(a, 2))


def adjustment_sets(graph: nx.DiGraph, x, y, among=None) -> list[set]:
    """All sets to adjust for that give the total effect of x on y: the smallest first.

    A set is valid if it has no descendant of a node on a causal path from x to y (x
    itself apart), and separates x and y in the graph without the first edges of those
    paths (Shpitser et al. 2010; Perković et al. 2018).

    Args:
        graph: acyclic.
        among: the nodes that may be measured; all if None. At most 16 can be tried.
    Raises:
        ValueError: the graph has a cycle, a node is unknown, x is y or either is more
            than one node, or more than 16 nodes would be tried.
    """
    (x,), (y,) = (
        side if len(side) == 1 else _refuse(side)
        for side in check_disjoint(check_dag(graph), x, y, ())[:2]
    )
    causal = nx.descendants(graph, x) & (nx.ancestors(graph, y) | {y})
    barred = {x, y}.union(causal, *(nx.descendants(graph, node) for node in causal))
    allowed = check_nodes(graph, "among", graph if among is None else among) - barred
    if len(allowed) > 16:
        raise ValueError(
            f"{len(allowed)} nodes have too many subsets: name at most 16 in among"
        )
    bare = graph.copy()
    bare.remove_edges_from([(x, node) for node in causal])
    ordered = [node for node in graph if node in allowed]
    subsets = chain.from_iterable(
        combinations(ordered, size) for size in range(len(ordered) + 1)
    )
    return [set(z) for z in subsets if d_separated(bare, x, y, z)]


def _refuse(side: set):
    raise ValueError(f"one node is needed, got {', '.join(sorted(map(str, side)))}")
