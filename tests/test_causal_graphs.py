"""Graphs of causes: separation, equivalence, adjustment, distance; against the definition and against networkx."""

import itertools
import random
import time

import networkx as nx
import pytest

from mlbook.causal.experiments import all_dags
from mlbook.causal.graphs import (
    adjustment_sets,
    cpdag,
    d_separated,
    from_causal_learn,
    is_open,
    markov_equivalent,
    meek,
    paths,
    shd,
    undirected,
)

NODES = "abcde"


def dags(size: int):
    """All DAGs on the first `size` letters."""
    return all_dags(NODES[:size])


def shapes(size: int):
    """One DAG of each isomorphism class."""
    pairs = list(itertools.combinations(NODES[:size], 2))
    kept: dict[tuple, list] = {}
    for edges in itertools.product((False, True), repeat=len(pairs)):
        graph = nx.DiGraph()
        graph.add_nodes_from(NODES[:size])
        graph.add_edges_from(itertools.compress(pairs, edges))
        degrees = sorted(
            (graph.in_degree(node), graph.out_degree(node)) for node in graph
        )
        alike = kept.setdefault(tuple(degrees), [])
        if not any(nx.is_isomorphic(graph, other) for other in alike):
            alike.append(graph)
    return list(itertools.chain.from_iterable(kept.values()))


def triples(nodes):
    """All disjoint (x, y, z) with x and y not empty, each pair x, y in one order."""
    for places in itertools.product("xyz-", repeat=len(nodes)):
        if "x" in places and "y" in places and places.index("x") < places.index("y"):
            yield [
                {node for node, place in zip(nodes, places, strict=True) if place == part}
                for part in "xyz"
            ]  # fmt: skip


def by_definition(graph, x, y, z) -> bool:
    return not any(
        is_open(graph, path, z) for a in x for b in y for path in paths(graph, a, b)
    )


@pytest.mark.parametrize("size, count", [(2, 3), (3, 25), (4, 543)])
def test_separation_on_all_small_graphs(size, count):
    graphs = list(dags(size))
    assert len(graphs) == count
    for graph in graphs:
        for x, y, z in triples(list(graph)):
            found = d_separated(graph, x, y, z)
            assert found == nx.is_d_separator(graph, x, y, z) == by_definition(graph, x, y, z)  # fmt: skip


def test_separation_on_all_shapes_of_five_nodes():
    graphs = shapes(5)
    assert len(graphs) == 302
    rng = random.Random(0)
    asked = 0
    for graph in graphs:
        names = rng.sample(NODES, 5)
        graph = nx.relabel_nodes(graph, dict(zip(NODES, names, strict=True)))
        for x, y, z in triples(names):
            assert d_separated(graph, x, y, z) == nx.is_d_separator(graph, x, y, z)
            asked += 1
    assert asked == 302 * (4**5 - 2 * 3**5 + 2**5) // 2


def test_separation_is_fast_on_large_graphs():
    """And right: the same answers as networkx, on random graphs of 200 nodes."""
    rng = random.Random(0)
    ours, theirs = [], []
    for _ in range(30):
        order = rng.sample(range(200), 200)
        graph = nx.DiGraph()
        graph.add_nodes_from(range(200))
        while graph.number_of_edges() < 400:
            a, b = sorted(rng.sample(range(200), 2), key=order.index)
            graph.add_edge(a, b)
        x, y, *z = rng.sample(range(200), 12)
        for function, times in ((d_separated, ours), (nx.is_d_separator, theirs)):
            start = time.perf_counter()
            answer = function(graph, {x}, {y}, set(z))
            times.append(time.perf_counter() - start)
            assert answer == nx.is_d_separator(graph, {x}, {y}, set(z))
    assert sorted(ours)[15] < sorted(theirs)[15]


def test_the_post_s_collider():
    graph = nx.DiGraph(["12", "13", "35", "45"])
    assert d_separated(graph, "3", "4") and not d_separated(graph, "3", "4", "5")
    assert d_separated(graph, "2", "5", "3") and not d_separated(graph, "2", "5")
    assert d_separated(graph, {"1", "2"}, "4", "3")
    graph.add_edge("5", "6")
    assert not d_separated(graph, "3", "4", "6"), "a descendant of the collider"


@pytest.mark.parametrize(
    "x, y, z, message",
    [
        ("a", "b", "a", "x and z share a"),
        ("a", "a", (), "x and y share a"),
        ({"a", "b"}, "c", {"b"}, "x and z share b"),
        ("q", "b", (), "x: 'q' is not a node"),
        ("a", "b", {"q"}, "z: 'q' is not a node"),
        ("a", "b", "xy", "z: 'xy' is not a node"),
        ("a", 3, (), "y: 3 is not a node"),
        (set(), "b", (), "x and y need"),
    ],
)
def test_what_separation_refuses(x, y, z, message):
    graph = nx.DiGraph(["ab", "bc"])
    with pytest.raises(ValueError, match=message):
        d_separated(graph, x, y, z)


def test_graphs_with_cycles_or_without_directions_are_refused():
    cyclic = nx.DiGraph(["ab", "bc", "ca"])
    for call in (
        lambda: d_separated(cyclic, "a", "b"),
        lambda: cpdag(cyclic),
        lambda: markov_equivalent(cyclic, cyclic),
        lambda: adjustment_sets(cyclic, "a", "b"),
    ):
        with pytest.raises(ValueError, match="cycle: (a → b|b → c|c → a)"):
            call()
    with pytest.raises(TypeError, match="DiGraph is needed, got Graph"):
        d_separated(nx.Graph(["ab"]), "a", "b")
    with pytest.raises(ValueError, match="cycle: a → a"):
        cpdag(nx.DiGraph([("a", "a")]))


def classes(size: int):
    """All DAGs of that size by the independences that they entail."""
    found: dict[frozenset, list] = {}
    for graph in dags(size):
        entailed = frozenset(
            (*map(frozenset, (x, y, z)),)
            for x, y, z in triples(list(graph))
            if d_separated(graph, x, y, z)
        )
        found.setdefault(entailed, []).append(graph)
    return list(found.values())


@pytest.mark.parametrize("size, count", [(3, 11), (4, 185)])
def test_cpdag_is_what_equivalent_graphs_share(size, count):
    """Of the definition: graphs with the same independences; 11 and 185 classes (OEIS A007984)."""
    groups = classes(size)
    assert len(groups) == count
    for group in groups:
        union = nx.DiGraph()
        union.add_nodes_from(NODES[:size])
        union.add_edges_from(edge for graph in group for edge in graph.edges)
        for graph in group:
            assert set(cpdag(graph).edges) == set(union.edges)
    for one, other in itertools.pairwise(group[0] for group in groups):
        assert not markov_equivalent(one, other)
    assert all(markov_equivalent(group[0], group[-1]) for group in groups)


def test_cpdag_of_colliders_and_what_follows():
    dag = nx.DiGraph(["ac", "bc", "cd", "ce"])
    assert set(cpdag(dag).edges) == set(dag.edges)
    chain = cpdag(nx.DiGraph(["ab", "bc"]))
    assert len(undirected(chain)) == 4
    assert set(cpdag(nx.DiGraph()).edges) == set()


def test_meek_s_fourth_rule():
    """It needs a direction that is known from elsewhere: d – a – b, a – c, d → c → b."""
    graph = nx.DiGraph(["dc", "cb", "ab", "ba", "ad", "da", "ac", "ca"])
    done = meek(graph)
    assert done.has_edge("a", "b") and not done.has_edge("b", "a")
    assert len(undirected(graph)) == 6, "the argument stays as it was"


def test_meek_leaves_open_what_is_contradicted():
    """In whatever order the edges stand."""
    edges = ["ab", "bc", "cb", "dc"]
    for order in (edges, edges[::-1]):
        assert set(meek(nx.DiGraph(order)).edges) == set(map(tuple, edges))


def test_graphs_with_parallel_edges_are_refused():
    with pytest.raises(TypeError, match="got MultiDiGraph"):
        adjustment_sets(nx.MultiDiGraph(["ab", "ab"]), "a", "b")


def test_equivalence_needs_the_same_nodes():
    a, b = nx.DiGraph(["ab"]), nx.DiGraph(["ac"])
    for function in (markov_equivalent, shd):
        with pytest.raises(ValueError, match="not the same nodes: b, c"):
            function(a, b)
    assert markov_equivalent(nx.DiGraph(["ab"]), nx.DiGraph(["ba"]))


def test_distance_counts_pairs():
    a = nx.DiGraph(["ab", "bc"])
    assert shd(a, a) == 0
    assert shd(a, nx.DiGraph(["ba", "bc"])) == 1
    assert shd(a, nx.DiGraph(["ab", "ba", "bc"])) == 1
    assert shd(a, nx.DiGraph(["ac", "ba"])) == 3


def m_bias():
    return nx.DiGraph(["AX", "AM", "BM", "BY", "XY"])


def test_adjustment_in_an_m():
    found = adjustment_sets(m_bias(), "X", "Y")
    assert found[0] == set()
    for valid in ({"A"}, {"B"}, {"A", "M"}, {"B", "M"}, {"A", "B"}, {"A", "B", "M"}):
        assert valid in found
    assert {"M"} not in found and len(found) == 7


def test_mediators_are_no_adjustment():
    graph = nx.DiGraph([("X", "M"), ("M", "Y"), ("M", "D"), ("U", "X"), ("U", "Y")])
    found = adjustment_sets(graph, "X", "Y")
    assert found == [{"U"}]
    assert adjustment_sets(graph, "X", "Y", among={"M", "D"}) == []
    assert adjustment_sets(graph, "Y", "X") == [{"M", "U"}, {"M", "D", "U"}]


def test_adjustment_sets_give_the_effect():
    """In linear models the coefficient of x, adjusted, is the sum over causal paths: for the valid sets and, coefficients
    being generic, for no others that contain no mediator and no descendant of y."""
    import numpy as np

    rng = np.random.default_rng(0)
    checked = 0
    for graph in random.Random(1).sample(shapes(5), 60):
        order = list(nx.topological_sort(graph))
        B = np.array([[rng.uniform(0.5, 1.5) * graph.has_edge(b, a) for b in order] for a in order])  # fmt: skip
        total = np.linalg.inv(np.eye(5) - B)
        covariance = total @ total.T
        for i, j in itertools.combinations(range(5), 2):
            valid = adjustment_sets(graph, order[i], order[j])
            others = [k for k in range(5) if k not in (i, j)]
            for z in itertools.chain.from_iterable(itertools.combinations(others, k) for k in range(4)):  # fmt: skip
                given = [i, *z]
                slope = np.linalg.solve(covariance[np.ix_(given, given)], covariance[given, j])[0]  # fmt: skip
                right = abs(slope - total[j, i]) < 1e-9
                if {order[k] for k in z} in valid:
                    assert right
                    checked += 1
                elif total[j, i] and not any(order[k] in nx.descendants(graph, order[i]) for k in z):  # fmt: skip
                    assert not right
    assert checked > 300


def test_what_adjustment_refuses():
    graph = nx.DiGraph([("X", "Y")])
    with pytest.raises(ValueError, match="x and y share X"):
        adjustment_sets(graph, "X", "X")
    with pytest.raises(ValueError, match="among: 'Q' is not a node"):
        adjustment_sets(graph, "X", "Y", among={"Q"})
    with pytest.raises(ValueError, match="one node is needed, got X, Y"):
        adjustment_sets(nx.DiGraph(["XZ", "YZ"]), {"X", "Y"}, "Z")
    graph.add_nodes_from(range(17))
    with pytest.raises(ValueError, match="17 nodes have too many subsets"):
        adjustment_sets(graph, "X", "Y")
    assert adjustment_sets(graph, "X", "Y", among=[]) == [set()]


@pytest.mark.parametrize(
    "wrong", [[[0, 2], [1, 0]], [[0, 1], [1, 0]], [[-1, 0], [0, 0]], [[0, -1]]]
)
def test_marks_of_causal_learn_that_are_no_edge(wrong):
    with pytest.raises(ValueError):
        from_causal_learn(wrong, ["a", "b"])
    assert set(from_causal_learn([[0, -1], [1, 0]], ["a", "b"]).edges) == {("a", "b")}
