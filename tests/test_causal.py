"""Models, tests of independence and discovery: against closed forms, other libraries, and what must be refused."""

import itertools

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch

from mlbook.causal import (
    additive,
    borders,
    constraint,
    experiments,
    explorer,
    generative,
    independence,
    lingam,
    pairs,
    scm,
    scores,
)
from mlbook.causal.graphs import (
    cpdag,
    d_separated,
    from_causal_learn,
    shd,
    skeleton,
    undirected,
)

EXAMPLE = {
    "X1": lambda e: e,
    "X2": lambda X1, e: 0.8 * X1 + 0.6 * e,
    "X3": lambda X1, e: -0.8 * X1 + 0.6 * e,
    "X4": lambda e: e,
    "X5": lambda X3, X4, e: 0.6 * X3 + 0.6 * X4 + 0.5 * e,
}
COLLIDER = {
    "A": lambda e: e,
    "B": lambda e: e,
    "C": lambda A, B, e: A + B + e,
    "D": lambda C, e: C + e,
    "E": lambda C, e: C + e,
}


# Models


def test_a_model_s_graph_and_its_data():
    graph = scm.graph_of(EXAMPLE)
    assert set(graph.edges) == {("X1", "X2"), ("X1", "X3"), ("X3", "X5"), ("X4", "X5")}
    data = scm.simulate(EXAMPLE, 50_000)
    assert list(data) == list(EXAMPLE)
    correlation = data.corr()
    assert abs(correlation.loc["X3", "X4"]) < 0.02
    assert correlation.loc["X2", "X3"] == pytest.approx(-0.64, abs=0.02)
    pd.testing.assert_frame_equal(data, scm.simulate(EXAMPLE, 50_000, seed=0))


def test_setting_is_not_seeing():
    done = scm.simulate(EXAMPLE, 50_000, do={"X3": 2.0})
    assert (done["X3"] == 2).all()
    assert abs(done["X1"].mean()) < 0.02, "causes do not feel it"
    assert done["X5"].mean() == pytest.approx(1.2, abs=0.02)
    seen = scm.simulate(EXAMPLE, 200_000)
    assert seen["X1"][(seen["X3"] - 2).abs() < 0.1].mean() == pytest.approx(-1.6, abs=0.05)  # fmt: skip


def test_the_same_noise_gives_the_same_people():
    noise = scm.draw_noise(EXAMPLE, 100, 3)
    fact = scm.simulate(EXAMPLE, 100, noise=noise)
    other = scm.simulate(EXAMPLE, 100, do={"X3": fact["X3"] + 1}, noise=noise)
    assert np.allclose(other["X5"] - fact["X5"], 0.6)
    assert np.allclose(other["X2"], fact["X2"])


def test_noise_has_one_scale():
    for draw in scm.NOISES.values():
        x = draw(np.random.default_rng(0), 100_000)
        assert abs(x.mean()) < 0.02 and x.std() == pytest.approx(1, abs=0.02)


def test_models_with_constants_and_without_noise():
    data = scm.simulate({"T": lambda: 1.0, "X": lambda T, e: T + e}, 5)
    assert (data["T"] == 1).all() and len(data) == 5


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: scm.simulate(EXAMPLE, 10, do={"X9": 1}), "do names 'X9'"),
        (lambda: scm.simulate(EXAMPLE, 10, do={"X1": np.nan}), "do sets X1 to nan"),
        (lambda: scm.simulate(EXAMPLE, 0), "n must be a whole number, at least 1"),
        (lambda: scm.simulate({"A": lambda Q, e: e}, 5), "A depends on 'Q'"),
        (lambda: scm.graph_of({"e": lambda e: e}), "cannot be called e"),
        (lambda: scm.draw_noise(EXAMPLE, 5, kinds={"Q": "uniform"}), "noise is for 'Q'"),
        (lambda: scm.simulate(EXAMPLE, 5, noise="pink"), "noise is 'pink'"),
        (lambda: scm.simulate({"A": lambda B: B, "B": lambda A: A}, 5), "cycle: A → B → A"),
        (lambda: scm.simulate(EXAMPLE, 5, noise=scm.draw_noise(EXAMPLE, 4)), "noise of 5 rows"),
        (lambda: scm.random_dag(4, 7, np.random.default_rng(0)), "4 nodes take 0 to 6 edges, got 7"),
        (lambda: scm.random_scm(nx.DiGraph(), "round", np.random.default_rng(0)), "got 'round'"),
    ],
)  # fmt: skip
def test_what_models_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_random_models_have_their_graph():
    rng = np.random.default_rng(0)
    for shape in ("linear", "curved"):
        graph = scm.random_dag(8, 10, rng)
        model = scm.random_scm(graph, shape, rng)
        assert set(scm.graph_of(model).edges) == set(graph.edges)
        assert np.isfinite(scm.simulate(model, 100).to_numpy()).all()


# What tables are refused


def odd(**columns):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(50, 3)), columns=list("abc"))
    return table.assign(**columns)


REFUSED = [
    (odd(c=1.0), "column 'c' is constant"),
    (odd(c=odd()["a"]), "columns determine each other: 'a', 'c'"),
    (odd(c=odd()["a"] - 2 * odd()["b"]), "columns determine each other: 'a', 'b', 'c'"),
    (odd(c=[np.nan] + [1.0] * 49), "column 'c' has nan in row 0"),
    (odd(c=[0.0] * 49 + [np.inf]), "column 'c' has inf in row 49"),
    (odd()[:5], "at least 10 rows are needed, got 5"),
    (
        np.random.default_rng(0).normal(size=(11, 12)),
        "11 rows are too few for 12 columns",
    ),
    (odd().set_axis(list("aab"), axis=1), "two columns are called 'a'"),
    (np.zeros((20, 0)), "without columns"),
]
METHODS = [
    constraint.pc,
    lingam.direct_lingam,
    lingam.ica_lingam,
    additive.cam,
    scores.exact,
    scores.notears,
    lambda data: generative.cgnn(data, nx.Graph(["ab"])),
]


@pytest.mark.parametrize("data, message", REFUSED)
def test_tables_that_are_refused(data, message):
    for method in METHODS:
        with pytest.raises(ValueError, match=message):
            method(data)


PAIR_METHODS = [
    additive.anm_direction,
    pairs.pair_lingam,
    pairs.igci,
    pairs.quantile_score,
    generative.cgnn_pair,
]


@pytest.mark.parametrize("method", PAIR_METHODS)
def test_pairs_that_are_refused(method):
    x = np.random.default_rng(0).normal(size=50)
    for y, message in (
        (x, "determine each other"),
        (-3 * x + 1, "determine each other"),
        (np.ones(50), "column 'y' is constant"),
        (x[:49], r"one length are needed, got \(50,\) and \(49,\)"),
        (x[:, None], r"one length are needed, got \(50,\) and \(50, 1\)"),
        (np.where(np.arange(50) == 7, np.nan, x), "has nan in row 7"),
    ):
        with pytest.raises(ValueError, match=message):
            method(x, y)
    with pytest.raises(ValueError, match="at least 10 rows"):
        method(x[:9], x[:9] ** 2)


# Independence


def test_fisher_z_is_the_regression_s_p_value():
    """A vanishing partial correlation is a vanishing coefficient: t test and z test agree for many rows."""
    import statsmodels.api as sm

    data = scm.simulate(EXAMPLE, 400)
    test = independence.FisherZ(data)
    p = test(1, 4, [(), (0,), (2,), (3,)][1:])
    for given, found in zip(("X1", "X3", "X4"), p, strict=True):
        design = sm.add_constant(data[["X2", given]])
        assert found == pytest.approx(sm.OLS(data["X5"], design).fit().pvalues["X2"], abs=2e-3)  # fmt: skip


def test_fisher_z_is_causal_learn_s():
    from causallearn.utils.cit import CIT

    data = scm.simulate(EXAMPLE, 200)
    theirs = CIT(data.to_numpy(), "fisherz")
    ours = independence.FisherZ(data)
    for given in [(), (3,), (2, 3), (0, 2, 3)]:
        assert ours(1, 4, [given])[0] == pytest.approx(theirs(1, 4, given), rel=1e-9)


def test_g2_is_causal_learn_s_where_all_strata_are_there():
    from causallearn.utils.cit import CIT

    rng = np.random.default_rng(0)
    data = rng.integers(0, 3, (3_000, 4))
    data[:, 3] = (data[:, 0] + data[:, 1] + (rng.random(3_000) < 0.3)) % 3
    theirs, ours = CIT(data, "gsq"), independence.G2(data)
    for given in [(), (3,), (2, 3)]:
        assert ours(0, 1, [given])[0] == pytest.approx(theirs(0, 1, given), rel=1e-6)
    with pytest.raises(ValueError, match="column 0 is constant"):
        independence.G2(np.zeros((20, 2)))
    with pytest.raises(
        ValueError, match="has 50 values in 50 rows: that is not discrete"
    ):
        constraint.pc(np.random.default_rng(0).normal(size=(50, 2)), test="g2")
    with pytest.raises(ValueError, match="column 'a' has a missing value in row 1"):
        independence.G2(pd.DataFrame({"a": ["x", None, "y"], "b": [1, 2, 3]}))


def test_fisher_z_needs_rows_for_what_it_conditions_on():
    test = independence.FisherZ(np.random.default_rng(0).normal(size=(10, 9)))
    with pytest.raises(ValueError, match="10 rows are too few to condition on 7"):
        test(0, 1, [tuple(range(2, 9))])


def test_hsic_is_its_definition():
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    y = x**2 + rng.normal(size=200)
    centre = np.eye(200) - 1 / 200

    def kernel(v):
        apart = np.abs(v[:, None] - v)
        return np.exp(-(apart**2) / (2 * np.median(apart[apart > 0]) ** 2))

    exact = np.trace(kernel(x) @ centre @ kernel(y) @ centre) / 200**2
    statistic, p = independence.hsic(x, y)
    assert statistic == pytest.approx(exact, rel=1e-3)
    assert p == pytest.approx(1 / 201)
    assert independence.hsic(y, x)[0] == pytest.approx(statistic, rel=1e-9)
    assert independence.hsic(1_000 * x + 5, y)[0] == pytest.approx(statistic, rel=1e-3)


def test_hsic_is_uniform_where_nothing_depends():
    from scipy.stats import kstest

    rng = np.random.default_rng(0)
    p = [
        independence.hsic(rng.normal(size=60), rng.exponential(size=60), 99, seed)[1]
        for seed in range(300)
    ]
    # on the grid 1/100 … 1, moved to the middle of its steps
    assert kstest(np.array(p) - 0.005, "uniform").pvalue > 1e-3


def test_hsic_with_ties_and_few_values():
    rng = np.random.default_rng(0)
    coin = rng.integers(0, 2, 200)
    assert independence.hsic(coin, coin * 2 + rng.integers(0, 2, 200))[1] < 0.01
    assert independence.hsic(coin, rng.integers(0, 2, 200))[1] > 0.01
    with pytest.raises(ValueError, match="permutations must be"):
        independence.hsic(coin, rng.normal(size=200), permutations=0)


def test_hsic_of_rare_events_and_of_copies():
    rng = np.random.default_rng(0)
    p = []
    for _ in range(60):
        rare = np.zeros(2_000)
        rare[rng.choice(2_000, 3, replace=False)] = 1
        statistic, value = independence.hsic(rare, rng.normal(size=2_000), 99)
        assert np.isfinite(statistic)
        p.append(value)
    assert np.mean(np.array(p) < 0.05) < 0.2
    x = rng.normal(size=50)
    assert independence.hsic(x, x)[1] == independence.hsic(x, -x)[1] == 1 / 201
    order = rng.permutation(50)
    assert independence.hsic(x[order], x[order] ** 2)[0] == pytest.approx(independence.hsic(x, x**2)[0])  # fmt: skip


def test_kernel_columns_make_the_kernel():
    x = np.random.default_rng(0).standard_t(2, 300)
    G = independence.features(x, 0.7, 1e-8)
    assert np.abs(G @ G.T - np.exp(-((x[:, None] - x) ** 2) / 0.98)).max() < 1e-7
    assert independence.features(np.zeros(5), 1.0).shape == (5, 1)


# PC


def test_pc_with_the_truth_finds_the_class():
    rng = np.random.default_rng(0)
    for _ in range(40):
        dag = scm.random_dag(7, 9, rng)
        for stable, colliders in itertools.product((True, False), ("first", "max")):
            found = constraint.search(constraint.Oracle(dag), 0.05, stable, colliders)
            assert set(found.edges) == set(cpdag(dag).edges)
        for pair, given in found.graph["separating"].items():
            assert d_separated(dag, *pair, given)


def test_one_answer_in_all_column_orders():
    data = scm.simulate(COLLIDER, 10_000)
    edges = {("A", "C"), ("B", "C"), ("C", "D"), ("C", "E")}
    for order in itertools.permutations(data):
        assert set(constraint.pc(data[list(order)]).edges) == edges


def test_the_order_of_columns_does_not_matter():
    """On small samples, where tests err: the stable skeleton and the surest colliders; the plain ones differ."""
    rng = np.random.default_rng(1)
    plain, stable = set(), set()
    data = scm.simulate(scm.random_scm(scm.random_dag(7, 12, rng), "linear", rng), 60)
    for _ in range(60):
        order = list(rng.permutation(data.columns))
        found = constraint.pc(data[order], stable=False, colliders="first")
        plain.add(frozenset(found.edges))
        stable.add(frozenset(constraint.pc(data[order]).edges))
    assert len(stable) == 1 < len(plain)


def test_pc_is_causal_learn_s():
    from causallearn.search.ConstraintBased.PC import pc

    for seed in range(12):
        rng = np.random.default_rng(seed)
        data = scm.simulate(scm.random_scm(scm.random_dag(10, 13, rng), "linear", rng), 2_000, seed=seed)  # fmt: skip
        ours = constraint.pc(data, 0.01, colliders="first")
        theirs = pc(data.to_numpy(), 0.01, "fisherz", show_progress=False).G.graph
        assert skeleton(ours) == skeleton(from_causal_learn(theirs, list(data)))


def test_what_pc_says_of_its_work():
    data = scm.simulate(EXAMPLE, 5_000, seed=1)
    found = constraint.pc(data, alpha=0.001)
    assert len(found.graph["removed"]) == 10 - 4
    assert "X5" not in found.graph["separating"][frozenset(("X3", "X4"))]
    first = constraint.pc(data, alpha=0.001, colliders="first")
    assert first.graph["separating"][frozenset(("X3", "X4"))] == set()
    assert found.graph["tests"] > 10
    assert set(undirected(found)) == {("X1", "X2"), ("X2", "X1"), ("X1", "X3"), ("X3", "X1")}  # fmt: skip


def test_small_tables_have_one_answer_in_all_orders():
    """Where tests contradict each other, too; and arrows in a circle are told."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        d = int(rng.integers(5, 8))
        model = scm.random_scm(scm.random_dag(d, 1.5 * d, rng), "linear", rng)
        data = scm.simulate(model, 80, seed=seed)
        found = {frozenset(constraint.pc(data[list(rng.permutation(data.columns))]).edges) for _ in range(8)}  # fmt: skip
        assert len(found) == 1
        graph = constraint.pc(data)
        arrows = nx.DiGraph(constraint.directed(graph))
        assert graph.graph["acyclic"] == nx.is_directed_acyclic_graph(arrows)
    rng = np.random.default_rng(1)
    model = scm.random_scm(scm.random_dag(7, 12, rng), "linear", rng)
    assert not constraint.pc(scm.simulate(model, 300, seed=1)).graph["acyclic"]


@pytest.mark.parametrize(
    "how, message",
    [
        ({"alpha": 0}, "alpha must lie between 0 and 1, got 0"),
        ({"alpha": 1.5}, "got 1.5"),
        ({"test": "kci"}, "test must be one of fisher_z, g2"),
        ({"colliders": "all"}, "got 'all'"),
    ],
)
def test_what_pc_refuses(how, message):
    with pytest.raises(ValueError, match=message):
        constraint.pc(scm.simulate(EXAMPLE, 50), **how)


def test_pc_on_one_or_two_columns():
    data = scm.simulate(EXAMPLE, 50)
    assert list(constraint.pc(data[["X1"]])) == ["X1"]
    assert constraint.pc(data[["X1", "X2"]]).number_of_edges() == 2


# LiNGAM


def uniform_model(seed, d=5, edges=6, n=2_000):
    rng = np.random.default_rng(seed)
    graph = scm.random_dag(d, edges, rng)
    model = scm.random_scm(graph, "linear", rng)
    return graph, scm.simulate(model, n, seed=seed, noise="uniform")


def test_direct_lingam_is_causal_learn_s():
    from causallearn.search.FCMBased.lingam import DirectLiNGAM

    for seed in range(6):
        _, data = uniform_model(seed)
        order, B = lingam.direct_lingam(data)
        theirs = DirectLiNGAM()
        theirs.fit(data.to_numpy())
        assert order == [data.columns[i] for i in theirs.causal_order_]
        assert np.allclose(B, theirs.adjacency_matrix_, atol=1e-8)


@pytest.mark.parametrize("method", [lingam.direct_lingam, lingam.ica_lingam])
def test_lingam_finds_graph_and_coefficients(method):
    for seed in range(6):
        graph, data = uniform_model(seed, n=5_000)
        order, B = method(data)
        assert all(order.index(a) < order.index(b) for a, b in graph.edges)
        assert shd(scores.graph_of_weights(B), graph) == 0


@pytest.mark.parametrize("scale", [1, 1_000, -0.01])
def test_lingam_does_not_look_at_units(scale):
    rng = np.random.default_rng(0)
    x = rng.normal(5, 1.5, 5_000)
    y = scale * (x + rng.uniform(-2, 2, 5_000))
    for method in (lingam.direct_lingam, lingam.ica_lingam):
        order, B = method(pd.DataFrame({"x": x, "y": y}))
        assert order == ["x", "y"]
        assert B.loc["y", "x"] == pytest.approx(scale, rel=0.03)
    assert pairs.pair_lingam(x, y) > 0 > pairs.pair_lingam(y, x)


def test_entropy_is_largest_for_the_gaussian():
    rng = np.random.default_rng(0)
    kinds = [draw(rng, 100_000) for draw in scm.NOISES.values()]
    gaussian, uniform, laplace = lingam.entropy(np.stack(kinds))
    assert gaussian == pytest.approx((1 + np.log(2 * np.pi)) / 2, abs=1e-3)
    assert uniform < gaussian > laplace


def test_orders_of_matrices_that_are_nearly_triangular():
    B = np.array([[0, 0.01, 0], [2.0, 0, 0], [0.5, -1, 0]])
    assert lingam.acyclic_order(B) == [0, 1, 2]
    assert lingam.acyclic_order(np.zeros((3, 3))) == [0, 1, 2]


# Additive noise


def test_the_smoother_finds_functions():
    rng = np.random.default_rng(0)
    x = lingam.standard(rng.normal(size=(1_000, 2)))
    y = np.sin(2 * x[:, 0]) + x[:, 1] ** 2
    noisy = y + 0.3 * rng.normal(size=1_000)
    scale = noisy.std()
    table = lingam.standard(np.column_stack([x, noisy]))
    fit = additive.Smoother(table).fit(2, [0, 1])
    fitted = (table[:, 2] - fit.residuals) * scale + noisy.mean()
    assert np.sqrt(np.mean((fitted - y) ** 2)) < 0.08
    assert fit.rss == pytest.approx(float(fit.residuals @ fit.residuals), rel=1e-6)
    assert 6 < fit.freedom < 60
    straight = additive.Smoother(lingam.standard(np.column_stack([x, x[:, 0] + 0.5 * rng.normal(size=1_000)]))).fit(2, [0])  # fmt: skip
    assert straight.freedom < 6


@pytest.mark.parametrize("f", [np.tanh, lambda x: x**3, lambda x: np.sin(2 * x)])
def test_additive_noise_finds_the_direction(f):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=400)
        y = f(1.5 * x) + 0.2 * rng.normal(size=400)
        for scale in (1, 1_000):
            way, p, q = additive.anm_direction(x, scale * y)
            assert way == "x → y" and p > q
            assert additive.anm_direction(scale * y, x)[0] == "y → x"


def test_cam_finds_graphs_of_curves():
    wrong = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        graph = scm.random_dag(6, 8, rng)
        found = additive.cam(scm.simulate(scm.random_scm(graph, "curved", rng), 800))
        wrong += shd(found, graph)
        order = found.graph["order"]
        assert all(order.index(a) < order.index(b) for a, b in found.edges)
    assert wrong <= 4


def test_cam_of_unrelated_columns_is_empty():
    data = np.random.default_rng(0).normal(size=(300, 4))
    assert additive.cam(data).number_of_edges() == 0
    with pytest.raises(ValueError, match="alpha must lie"):
        additive.cam(data, alpha=1)


# Scores


def test_the_exact_search_is_the_best_of_all():
    """Of all 543 DAGs on four variables, by brute force."""
    rng = np.random.default_rng(0)
    data = scm.simulate(scm.random_scm(scm.random_dag(4, 4, rng), "linear", rng), 100)
    found = scores.exact(data)
    covariance = np.cov(data.to_numpy(), rowvar=False)
    pairs_ = list(itertools.permutations(range(4), 2))
    best = np.inf
    for edges in itertools.chain.from_iterable(itertools.combinations(pairs_, k) for k in range(7)):  # fmt: skip
        graph = nx.DiGraph(edges)
        if nx.is_directed_acyclic_graph(graph):
            parents = [tuple(a for a, b in edges if b == j) for j in range(4)]
            best = min(best, sum(scores.bic(covariance, 100, j, p) for j, p in enumerate(parents)))  # fmt: skip
    assert found.graph["score"] == pytest.approx(best)


def test_the_exact_search_finds_the_class():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        graph = scm.random_dag(8, 9, rng)
        data = scm.simulate(scm.random_scm(graph, "linear", rng), 5_000)
        assert shd(scores.exact(data), cpdag(graph)) <= 1
    with pytest.raises(ValueError, match="15 variables have too many DAGs"):
        scores.exact(rng.normal(size=(50, 15)))


def test_notears_says_when_it_fails():
    data = scm.simulate(COLLIDER, 200)
    with pytest.raises(ValueError, match="no acyclic weights were found"):
        scores.notears(data * 1e7)
    for how in ({"penalty": -1}, {"penalty": np.nan}, {"threshold": -0.1}):
        with pytest.raises(ValueError, match="must be at least 0"):
            scores.notears(data, **how)


def test_notears_gradient_and_graph():
    data = scm.simulate(COLLIDER, 2_000)
    B = scores.notears(data)
    assert set(scores.graph_of_weights(B).edges) == {("A", "C"), ("B", "C"), ("C", "D"), ("C", "E")}  # fmt: skip
    assert B.loc["C", "A"] == pytest.approx(1, abs=0.15)


# Pairs


def test_entropy_by_spacings():
    x = np.random.default_rng(0).uniform(0, 2, 20_000)
    assert pairs.entropy_by_spacings(x) == pytest.approx(np.log(2), abs=0.03)
    assert np.isfinite(pairs.entropy_by_spacings(np.repeat(x[:50], 3)))


def test_methods_for_pairs_change_sign():
    x, y = np.random.default_rng(0).normal(size=(2, 300))
    y = np.tanh(2 * x) + 0.2 * y
    for method in (pairs.pair_lingam, pairs.igci, pairs.quantile_score):
        assert method(x, y) == pytest.approx(-method(y, x), abs=1e-9)


def test_igci_without_noise():
    x = np.random.default_rng(0).uniform(0, 1, 1_000)
    assert pairs.igci(x, x**3 + 0.05 * x) > 0.1


def test_tuebingen_s_pairs():
    found = pairs.tuebingen()
    assert len(found) == 99
    assert all(len(x) == len(y) >= 94 for x, y in found)
    assert found[0][0][:3].tolist() == [205, 46, 794], "altitude, the cause, first"


# CGNN


def test_waves_estimate_the_discrepancy():
    torch.manual_seed(0)
    x, y = torch.randn(2, 100, 2), 0.5 * torch.randn(2, 80, 2) + 0.3
    exact = generative.mmd(x, y)
    w = generative.waves(200_000, 2)
    apart = generative.features(x, w) - generative.features(y, w)
    assert torch.allclose(apart.square().sum(-1) / 200_000, exact, rtol=0.02)
    assert torch.allclose(generative.mmd(x, x), torch.zeros(2), atol=1e-6)


def test_generators_follow_their_graph():
    torch.manual_seed(0)
    graph = nx.DiGraph([("b", "a"), ("b", "c")])
    made = generative.Generator(graph, 3)(500)
    assert made.shape == (3, 500, 3)
    assert len({float(run.detach().mean()) for run in made}) == 3, (
        "other weights in each run"
    )
    with pytest.raises(ValueError, match="cycle"):
        generative.Generator(nx.DiGraph(["ab", "ba"]), 2)


def test_cgnn_leaves_the_caller_s_random_numbers():
    x, y = np.random.default_rng(0).normal(size=(2, 40))
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    generative.cgnn_pair(x, y, runs=1, steps=2)
    assert torch.equal(torch.rand(3), expected)
    with pytest.raises(ValueError, match="rows must be"):
        generative.cgnn_pair(x, y, rows=0)


def test_cgnn_of_a_pair_and_of_a_graph():
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    y = x**2 + 0.3 * rng.normal(size=200)
    way, forward, backward = generative.cgnn_pair(x, y, runs=3, steps=150)
    assert way == "x → y" and forward.shape == backward.shape == (3,)
    table = pd.DataFrame({"x": x, "y": y, "z": np.tanh(2 * y) + 0.2 * rng.normal(size=200)})  # fmt: skip
    skeleton = nx.Graph([("x", "y"), ("y", "z")])
    found = generative.cgnn(table, skeleton, runs=2, steps=30)
    assert {frozenset(e) for e in found.edges} == {frozenset(e) for e in skeleton.edges}
    assert nx.is_directed_acyclic_graph(found)
    assert found.graph["score"] == min(found.graph["tried"].values())
    with pytest.raises(ValueError, match="the skeleton is on"):
        generative.cgnn(table, nx.Graph(["ab"]))


# The graph to click on


def test_the_explorer_s_correlations_are_partial():
    data = scm.simulate(EXAMPLE, 500)
    test = independence.FisherZ(data)
    partial = explorer.correlations(data, [2, 3])
    z = np.arctanh(partial[1, 4]) * (500 - 2 - 3) ** 0.5
    from scipy.stats import norm

    assert 2 * norm.sf(abs(z)) == pytest.approx(test(1, 4, [(2, 3)])[0], rel=1e-6)
    assert np.isnan(partial[2]).all()


def test_the_explorer_says_what_separation_says():
    found = explorer.states(EXAMPLE, 500)
    graph, names = scm.graph_of(EXAMPLE), list(EXAMPLE)
    for z, words in enumerate(found["words"]):
        given = {names[k] for k in range(5) if z >> k & 1}
        for (i, j), text in zip(found["pairs"], words, strict=True):
            if not {names[i], names[j]} & given:
                apart = d_separated(graph, names[i], names[j], given)
                assert ("d-separated" if apart else "d-connected") in text
    with pytest.raises(ValueError, match="two to six variables"):
        explorer.page(dict.fromkeys("abcdefg", lambda e: e), {}, ("a", "b"), "a", "c")
    two = {"<b>": lambda e: e, "c": lambda e: e}
    with pytest.raises(ValueError, match="a place of its own"):
        explorer.page(two, dict.fromkeys(two, (0, 0)), ("<b>", "c"), "a", "c")
    shown = explorer.page(two, {"<b>": (0, 0), "c": (1, 1)}, ("<b>", "c"), "a", "c")
    assert "<b>" not in shown


def test_levels():
    assert borders.check_level(0.05) == 0.05
    with pytest.raises(ValueError):
        borders.check_level(float("nan"))


# What the chapter repeats


def test_equivalents_are_the_class():
    found = experiments.equivalents(scm.graph_of(EXAMPLE))
    assert len(found) == 3 and set(found[0].edges) == set(scm.graph_of(EXAMPLE).edges)
    whole = experiments.equivalents(nx.DiGraph(["ab", "bc", "ac"]))
    assert len({frozenset(graph.edges) for graph in whole}) == 6


def test_tables_that_are_alike_and_not():
    rng = np.random.default_rng(0)
    one, other = (pd.DataFrame(rng.normal(size=(5_000, 2))) for _ in range(2))
    assert experiments.alike(one, other) > 0.01
    assert experiments.alike(one, other * 1.15) < 1e-3
    # the margins are the same, and not the pair
    turned = pd.DataFrame(
        {0: other[0], 1: 0.3 * other[0] + (1 - 0.09) ** 0.5 * other[1]}
    )
    assert experiments.alike(one, turned) < 1e-6


def test_shares_follow_their_formula():
    shares, expected = experiments.judged_dependent(0.1, [100, 1_000], 400)
    assert np.abs(shares - expected).max() < 0.1
    assert experiments.judged_dependent(0.0, [500], 10)[1] == pytest.approx(0.05)


def test_wilson_s_interval():
    from statsmodels.stats.proportion import proportion_confint

    assert experiments.wilson(0.3, 40) == pytest.approx(proportion_confint(12, 40, method="wilson"), abs=1e-4)  # fmt: skip
    assert experiments.wilson(0.0, 40)[0] == pytest.approx(0, abs=1e-12)


def test_changes_are_where_they_are():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(1_000, 3)))
    table.iloc[400:, 1] += 1
    places, change = experiments.changes(table, width=100, step=1)
    assert abs(places[change.argmax()] - 400) < 15


def test_the_right_share_of_a_method_that_knows():
    assert experiments.share_right("curved", "Laplace", lambda x, y, seed: True, 3) == 1
    assert (
        experiments.share_right("linear", "uniform", lambda x, y, seed: False, 3) == 0
    )


def test_series_that_remember():
    x, links = experiments.remembering(0, 0.9)
    assert x.shape == (100, 10) and links.sum() == 9 and np.isfinite(x).all()
    judged = experiments.links_judged(0.0, 0.0, 2)
    assert list(judged["method"].unique()) == ["pairs", "all at once", "MCI"]
    assert judged[["false", "found"]].to_numpy().max() <= 1


def test_straight_models():
    graph, equal = experiments.straight(0)
    same, unequal = experiments.straight(0, spread=3)
    assert set(graph.edges) == set(same.edges) and equal.shape == (1_000, 6)
    roots = [node for node in graph if not graph.in_degree(node)]
    assert np.allclose(equal[roots].std(), 1, atol=0.1)
    assert np.ptp(unequal[roots].std()) > 0.1 or len(roots) == 1


def test_null_p_values_lie_on_their_grid():
    p = np.array(experiments.null_p_values(3, n=40))
    assert np.allclose(100 * p, np.round(100 * p)) and (p > 0).all()


def test_the_benchmark_asks_every_method(monkeypatch):
    import importlib
    from pathlib import Path

    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    discovering = importlib.import_module("discovering")
    x, y = np.random.default_rng(0).normal(size=(2, 60))
    answers = discovering.asked(x, x**3 + y, runs=2, steps=5, seed=0)
    assert set(answers) == {"lingam", "anm", "igci", "quantiles", "cgnn"}
    assert all(np.isfinite(answer["says"]) for answer in answers.values())
    data = discovering.made(nx.DiGraph(["ab", "bc"]), "linear", "uniform", 80, 0)
    for method in discovering.found(data).values():
        assert set(method()) == set("abc")
