"""Effects, sequences and real data of the chapter on causal inference: against closed forms, libraries and published
figures."""

import itertools

import networkx as nx
import numpy as np
import pandas as pd
import pytest

from mlbook.causal import effects, experiments, real, scm, series
from mlbook.causal.graphs import cpdag
from mlbook.common import packaged


def instrument(seed=0, n=5_000, weak=1.0):
    rng = np.random.default_rng(seed)
    z, u, e, v = rng.standard_normal((4, n))
    x = weak * z + u + e
    return z, x, 0.5 * x + u + v


def test_two_stages_are_the_ratio_of_covariances():
    z, x, y = instrument()
    b, error = effects.two_stage(y, x[:, None], z[:, None])
    assert b[0] == pytest.approx((z @ y) / (z @ x), rel=1e-12)
    assert abs(b[0] - 0.5) < 4 * error[0]
    plain, error = effects.two_stage(y, x[:, None], x[:, None])
    assert plain[0] > 0.5 + 10 * error[0]


def test_two_stages_are_linearmodels_on_card_s_men():
    from linearmodels.iv import IV2SLS

    men = real.card()
    controls = ["exper", "expersq", "black", "south", "smsa"]
    W = np.column_stack([np.ones(len(men)), men[controls]])
    X, Z = (np.column_stack([men[name], W]) for name in ("educ", "nearc4"))
    b, error = effects.two_stage(men["lwage"].to_numpy(), X, Z)
    fit = IV2SLS(men["lwage"], men[controls].assign(one=1.0), men[["educ"]], men[["nearc4"]]).fit(cov_type="robust")  # fmt: skip
    assert b[0] == pytest.approx(fit.params["educ"], rel=1e-8)
    assert error[0] == pytest.approx(fit.std_errors["educ"], rel=1e-8)


def test_card_s_published_figures():
    """0.075 and 0.132 with all his controls (1995, table 3)."""
    men = real.card()
    regions = [f"reg{k}" for k in range(661, 669)]
    controls = ["exper", "expersq", "black", "south", "smsa", "smsa66", *regions]
    W = np.column_stack([np.ones(len(men)), men[controls]])
    X, Z = (np.column_stack([men[name], W]) for name in ("educ", "nearc4"))
    wage = men["lwage"].to_numpy()
    assert effects.two_stage(wage, X, X)[0][0] == pytest.approx(0.075, abs=5e-4)
    assert effects.two_stage(wage, X, Z)[0][0] == pytest.approx(0.132, abs=5e-4)


def test_what_two_stages_refuse():
    z, x, y = instrument()
    with pytest.raises(ValueError, match="2 columns need as many instruments, got 1"):
        effects.two_stage(y, np.stack([x, x**2], 1), z[:, None])
    with pytest.raises(ValueError, match="do not tell the columns of x apart"):
        effects.two_stage(y, np.stack([x, 2 * x], 1), np.stack([z, z**2], 1))


def front(n, seed=0):
    """u → x → m → y ← u, all of two values; the effect of x on P(y) is 0.6 · 0.4 = 0.24."""
    rng = np.random.default_rng(seed)
    u = rng.random(n) < 0.5
    x = rng.random(n) < np.where(u, 0.8, 0.2)
    m = rng.random(n) < np.where(x, 0.7, 0.1)
    y = rng.random(n) < 0.2 + 0.4 * m + 0.1 * u
    return pd.DataFrame({"x": x, "m": m, "y": y})


def test_the_front_door_finds_the_effect():
    found = effects.front_door(front(200_000), "x", "m", "y")
    assert found.loc[True, True] - found.loc[False, True] == pytest.approx(
        0.24, abs=0.01
    )
    assert np.allclose(found.sum(axis=1), 1)


def test_the_front_door_needs_every_pair():
    table = front(1_000)
    with pytest.raises(ValueError, match="x = (True|False) never comes with m"):
        effects.front_door(table[~(table["x"] & table["m"])], "x", "m", "y")


def people(n, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, n))
    treat = rng.random(n) < 1 / (1 + np.exp(2 - a - b))
    outcome = 3 * a + b**2 + 2.0 * treat + rng.standard_normal(n)
    table = pd.DataFrame({"a": a, "b": b, "y": outcome})
    return table[treat], table[~treat]


def test_matching_finds_the_effect_on_the_treated():
    answers = np.array([effects.match(*people(2_000, seed), "y", ["a", "b"]) for seed in range(20)])  # fmt: skip
    # nearest is not equal: what is left of the difference is the bias that matching has
    assert answers[:, 0].mean() == pytest.approx(2, abs=0.2)
    # its errors are those that repetition shows
    assert answers[:, 1].mean() == pytest.approx(answers[:, 0].std(), rel=0.5)


def test_matching_does_not_look_at_units_or_at_the_order_of_rows():
    treated, others = people(500, 1)
    once = effects.match(treated, others, "y", ["a", "b"], 3)
    scaled = [t.assign(a=1_000 * t["a"]) for t in (treated, others)]
    assert effects.match(*scaled, "y", ["a", "b"], 3) == pytest.approx(once)
    assert effects.match(treated, others.sample(frac=1, random_state=0), "y", ["a", "b"], 3) == pytest.approx(once)  # fmt: skip


def test_those_equally_near_count_equally():
    treated = pd.DataFrame({"a": [0.0, 1.0], "b": [0.0, 1.0], "y": [10.0, 10.0]})
    others = pd.DataFrame({"a": [0.0, 0, 1, 1, 5, 9], "b": [0.0, 0, 1, 1, 3, 1], "y": [1.0, 3, 2, 4, 0, 0]})  # fmt: skip
    assert effects.match(treated, others, "y", ["a", "b"])[0] == pytest.approx(7.5)


def test_what_matching_refuses():
    treated, others = people(300, 0)
    with pytest.raises(ValueError, match="4 others are too few"):
        effects.match(treated, others[:4], "y", ["a"])
    doubled = [t.assign(c=t["a"]) for t in (treated, others)]
    with pytest.raises(ValueError, match="determine each other"):
        effects.match(*doubled, "y", ["a", "c"])


def test_matching_does_not_look_at_offsets():
    treated, others = people(300, 2)
    far = [t.assign(a=1e-3 * t["a"] + 1e3) for t in (treated, others)]
    expected = effects.match(treated, others, "y", ["a", "b"])
    assert effects.match(*far, "y", ["a", "b"]) == pytest.approx(expected, rel=1e-6)
    for bad, message in (
        ((treated, others, "y", ["a"], 0), "neighbours must be"),
        ((treated[:1], others, "y", ["a"]), "at least two treated"),
        ((treated.assign(y=np.nan), others, "y", ["a"]), "column 'y' has nan"),
    ):
        with pytest.raises(ValueError, match=message):
            effects.match(*bad)


def test_lalonde_s_experiment():
    nsw, survey = real.lalonde()
    assert len(nsw) == 445 and len(survey) == 15_992
    mean = nsw.groupby("treat")["re78"].mean()
    assert mean[1] - mean[0] == pytest.approx(1_794, abs=1)
    assert mean[1] - survey["re78"].mean() == pytest.approx(-8_498, abs=1)


def worlds(seed, moved=0.0, n=300):
    rng = np.random.default_rng(seed)
    tables = []
    for a, b, c in ((0, 0, 0), (2, 0, 0), (0, 2, moved)):
        x1, x2, e, v = rng.standard_normal((4, n))
        x1, x2 = x1 + a, x2 + b
        y = x1 + x2 + e + c
        tables.append(pd.DataFrame({"x1": x1, "x2": x2, "y": y, "x3": y - x2 + v}))
    return pd.concat(tables, ignore_index=True), np.repeat(range(3), n)


def test_invariance_finds_causes_and_keeps_its_level():
    answers = [effects.icp(table, "y", label)[0] for table, label in map(worlds, range(60))]  # fmt: skip
    assert np.mean([found == {"x1", "x2"} for found in answers]) > 0.7
    assert np.mean([not found <= {"x1", "x2"} for found in answers]) < 0.15


def test_invariance_is_that_of_scipy_s_tests():
    from scipy import stats

    table, label = worlds(0)
    x, y = table[["x1"]].to_numpy(), table["y"].to_numpy()
    design = np.column_stack([np.ones(len(y)), x])
    left = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    p = []
    for each in range(3):
        a, b = left[label == each], left[label != each]
        p.append(stats.ttest_ind(a, b, equal_var=False).pvalue)
        ratio = stats.f(len(a) - 1, len(b) - 1)
        p.append(2 * min(ratio.cdf(a.var(ddof=1) / b.var(ddof=1)), ratio.sf(a.var(ddof=1) / b.var(ddof=1))))  # fmt: skip
    found = effects.Environments(table, label).p_value(["x1"], "y")
    assert found == pytest.approx(min(1, 6 * min(p)), rel=1e-9)


def test_invariance_does_not_look_at_units():
    table, label = worlds(0)
    expected = effects.icp(table, "y", label)
    far = table.assign(x1=1e3 * table["x1"] + 1e8)
    assert effects.icp(far, "y", label) == expected


def test_two_stages_refuse_what_is_not_finite():
    z, x, y = instrument(n=50)
    with pytest.raises(ValueError, match="z has values that are not finite"):
        effects.two_stage(y, x[:, None], np.full((50, 1), np.nan))
    with pytest.raises(ValueError, match=r"needed, got \(50, 1\)"):
        effects.two_stage(y[:, None], x[:, None], z[:, None])


def test_the_front_door_refuses_gaps():
    table = front(1_000).astype(object)
    table.loc[3, "y"] = None
    with pytest.raises(ValueError, match="missing values"):
        effects.front_door(table, "x", "m", "y")
    whole = front(1_000)
    wide = whole.assign(x=pd.Categorical(whole["x"], categories=[False, True, "z"]))
    assert effects.front_door(wide, "x", "m", "y").to_numpy() == pytest.approx(effects.front_door(whole, "x", "m", "y").to_numpy())  # fmt: skip


@pytest.mark.parametrize(
    "target, label, message",
    [
        ("y", np.zeros(900), "at least two environments of"),
        ("q", np.arange(900) % 2, "'q' is no column"),
        ("y", np.arange(899) % 2, "899 labels for 900 rows"),
        ("y", np.arange(900) < 1, "of at least two rows"),
    ],
)
def test_what_invariance_refuses(target, label, message):
    with pytest.raises(ValueError, match=message):
        effects.icp(worlds(0)[0], target, label)


# Sequences


def walk(seed, n=300, link=0.5):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 3))
    for t in range(1, n):
        x[t] += 0.8 * x[t - 1]
        x[t, 1] += link * x[t - 1, 0]
    return x


def test_granger_is_statsmodels():
    from statsmodels.tsa.stattools import grangercausalitytests

    x = walk(0, link=0.1)
    for lags in (1, 3):
        p = grangercausalitytests(x[:, [1, 0]], [lags])[lags][0]["ssr_ftest"][1]
        assert series.granger(x[:, 0], x[:, 1], lags) == pytest.approx(p, rel=1e-8)


def test_granger_s_level_and_what_it_is_given():
    p = [series.granger(*np.random.default_rng(s).standard_normal((2, 100))) for s in range(300)]  # fmt: skip
    assert np.mean(np.array(p) < 0.05) < 0.09
    rng = np.random.default_rng(0)
    d = rng.standard_normal(500)
    x, y = np.roll(d, 1) + 0.1 * rng.standard_normal(500), np.roll(d, 2) + rng.standard_normal(500)  # fmt: skip
    assert series.granger(x, y) < 1e-6 < 0.01 < series.granger(x, y, 2, given=d)


@pytest.mark.parametrize("scale, offset", [(1, 1e7), (1e-14, 0), (1e14, 1e20)])
def test_granger_does_not_look_at_units(scale, offset):
    x = walk(0, link=0.2)
    expected = series.granger(x[:, 0], x[:, 1], 2)
    assert series.granger(scale * x[:, 0] + offset, x[:, 1], 2) == pytest.approx(expected, rel=1e-3)  # fmt: skip
    assert series.granger(x[:, 0], scale * x[:, 1] + offset, 2) == pytest.approx(expected, rel=1e-3)  # fmt: skip


def test_what_is_given_must_fit():
    x = walk(0)
    for given, message in (
        (x[:, 2:].T, r"given needs 300 rows, got \(1, 300\)"),
        (np.zeros((300, 200)), "too few for what is given"),
        (np.full(300, np.nan), "has nan in row 0"),
    ):
        with pytest.raises(ValueError, match=message):
            series.granger(x[:, 0], x[:, 1], given=given)
    wave = np.sin(np.arange(200))
    with pytest.raises(ValueError, match="determine each other"):
        series.mci(np.stack([wave, np.random.default_rng(0).normal(size=200)], 1))
    with pytest.raises(ValueError, match="alpha must lie"):
        series.mci(x, alpha=2)


def test_mci_finds_links_and_no_others():
    p = np.array([series.mci(walk(seed), 2)[:, 0] for seed in range(40)])
    assert np.mean(p[:, 0, 1] < 0.05) > 0.95
    for i, j in ((1, 0), (2, 0), (0, 2), (2, 1), (1, 2)):
        assert np.mean(p[:, i, j] < 0.05) < 0.2


@pytest.mark.parametrize("lags", [0, 1.5, True])
def test_what_sequences_refuse(lags):
    x = walk(0)
    with pytest.raises(ValueError, match="lags must be"):
        series.granger(x[:, 0], x[:, 1], lags)
    with pytest.raises(ValueError, match="lags must be"):
        series.mci(x, lags)
    with pytest.raises(ValueError, match="at least 14 rows"):
        series.granger(x[:12, 0], x[:12, 1])


# Real data


def test_the_titanic():
    table = real.titanic()
    assert len(table) == 2_201 and (table["survived"] == "yes").sum() == 711
    assert (table["class"] == "crew").sum() == 885


def test_sachs_s_cells():
    table, condition, graph = real.sachs()
    assert table.shape == (7_466, 11) and len(condition) == 7_466
    assert graph.number_of_edges() == 18 and set(graph) == set(table)
    assert condition.nunique() == 9


def test_logs_of_recommendations():
    for campaign, items in {"all": 80, "men": 34, "women": 46}.items():
        log = real.bandit("random", campaign)
        assert len(log) == 10_000 and log["item_id"].nunique() == items
        assert np.allclose(log["propensity_score"], 1 / items)
    with pytest.raises(ValueError, match="no log of policy 'greedy'"):
        real.bandit("greedy")


def test_networks_of_experts():
    for name, nodes, edges in (("asia", 8, 8), ("child", 20, 25)):
        graph = real.network_graph(real.network(name))
        assert (graph.number_of_nodes(), graph.number_of_edges()) == (nodes, edges)
    with pytest.raises(FileNotFoundError):
        real.network("nowhere")


def test_files_of_another_version_are_refused(monkeypatch):
    monkeypatch.setitem(real.DIGESTS, "titanic.dta", "0" * 64)
    with pytest.raises(ValueError, match="is damaged or of another version"):
        real.titanic()
    monkeypatch.setattr(real, "CAUSALDATA", "no-such-package==1.0")
    with pytest.raises(
        FileNotFoundError, match="pip install --no-deps no-such-package"
    ):
        real.lalonde()


def test_packages_that_are_pinned_are_those_that_are_asked_for():
    from pathlib import Path

    pinned = (Path(__file__).parents[1] / "requirements-nodeps.txt").read_text()
    for package in (real.CAUSALDATA, real.CDT, real.OBP):
        assert package in pinned
    assert packaged.file("card.csv.bz2", "linearmodels").exists()


def test_adjusting_is_a_regression():
    rng = np.random.default_rng(0)
    z, e, v = rng.standard_normal((3, 2_000))
    table = pd.DataFrame({"z": z, "x": z + e, "y": 0.5 * (z + e) + z + v})
    b, error = effects.adjust(table, "x", "y", ["z"])
    from statsmodels.api import OLS

    fit = OLS(table["y"], table[["x", "z"]].assign(one=1.0)).fit(cov_type="HC0")
    assert (b, error) == pytest.approx((fit.params["x"], fit.bse["x"]), rel=1e-9)
    assert effects.adjust(table, "x", "y")[0] > 0.9
    with pytest.raises(ValueError, match="'q' is no column"):
        effects.adjust(table, "x", "y", ["q"])


@pytest.mark.parametrize("seed", range(20))
def test_possible_effects_are_those_of_the_members(seed):
    """Found at x alone; the same sets of parents as among all members of the class."""
    rng = np.random.default_rng(seed)
    dag = scm.random_dag(5, 5, rng)
    table = scm.simulate(scm.random_scm(dag, "linear", rng), 50, seed=seed)
    members = experiments.equivalents(dag)
    for x, y in itertools.permutations(dag, 2):
        found = effects.possible_effects(cpdag(dag), table, x, y)
        assert set(found) == {frozenset(member.pred[x]) for member in members}
        for parents, (value, _) in found.items():
            by_hand = 0.0 if y in parents else effects.adjust(table, x, y, parents)[0]
            assert value == pytest.approx(by_hand, abs=1e-12)


def test_possible_effects_refuse():
    dag = nx.DiGraph(["AB"])
    table = pd.DataFrame({"A": [1.0, 2.0, 4.0], "B": [0.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match="Q"):
        effects.possible_effects(dag, table, "A", "Q")


@pytest.mark.parametrize(
    "outcome, choice", [(False, False), (True, False), (False, True)]
)
def test_doubly_robust_where_one_model_is_right(outcome, choice):
    found = [effects.doubly_robust(*experiments.treated_by_choice(seed, outcome, choice), "y", ["a", "b"]) for seed in range(40)]  # fmt: skip
    far = [(value - 1) / error for value, error in found]
    assert abs(np.mean(far)) < 4 / 40**0.5
    assert 0.6 < np.std(far) < 1.4


def test_doubly_robust_where_both_are_wrong():
    found = [effects.doubly_robust(*experiments.treated_by_choice(seed, True, True), "y", ["a", "b"])[0] for seed in range(10)]  # fmt: skip
    assert np.mean(found) > 1.2


def test_doubly_robust_refuses():
    treated, others = experiments.treated_by_choice(0, False, False, 200)
    with pytest.raises(ValueError, match="hardly an error"):
        effects.doubly_robust(treated.assign(a=treated["a"] + 100), others, "y", ["a", "b"])  # fmt: skip
    with pytest.raises(ValueError):
        effects.doubly_robust(treated.assign(a=np.nan), others, "y", ["a", "b"])
    with pytest.raises(ValueError):
        effects.doubly_robust(treated.assign(b=treated["a"]), others.assign(b=others["a"]), "y", ["a", "b"])  # fmt: skip


def test_what_adjusting_refuses():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.standard_normal((20, 3)), columns=list("xyz"))
    for call, match in (
        (lambda: effects.adjust(table, "x", "y", ["y"]), "'y' is named twice"),
        (lambda: effects.adjust(table, "x", "x"), "'x' is named twice"),
        (lambda: effects.adjust(table[:2], "x", "y"), "at least 3 rows"),
        (lambda: effects.adjust(table.assign(w=table["x"] * 2), "x", "y", ["w"]), "determine each other"),
        (lambda: effects.adjust(table.assign(z=1.0), "x", "y", ["z"]), "'z' is constant"),
        (lambda: effects.adjust(table.assign(z=np.nan), "x", "y", ["z"]), "'z' has nan"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            call()
    assert effects.adjust(table, "x", "y", "z") == effects.adjust(
        table, "x", "y", ["z"]
    )


def test_adjusting_far_from_zero():
    """Offsets and scales change nothing but the units."""
    rng = np.random.default_rng(1)
    table = pd.DataFrame(rng.standard_normal((500, 3)), columns=list("xyz"))
    table["z"] += table["x"]
    b, error = effects.adjust(table, "x", "y", ["z"])
    moved = effects.adjust(table * [1e-4, 1, 1e6] + [1e3, 1e8, 1e12], "x", "y", ["z"])
    assert np.allclose(moved, [b * 1e4, error * 1e4], rtol=1e-5)


def test_a_confounder_as_strong_as_the_robustness_value_leaves_nothing():
    rng = np.random.default_rng(2)
    table = pd.DataFrame(rng.standard_normal((400, 3)), columns=list("xyz"))
    table["y"] += 0.5 * table["x"] + table["z"]
    value = effects.robustness(table, "x", "y", ["z"])
    assert 0.3 < value < 0.5

    def left(of, given):
        design = np.column_stack([table[given], np.ones(len(table))])
        return of - design @ np.linalg.lstsq(design, of, rcond=None)[0]

    # u explains that share of x given z, and of y given x and z
    x, y = left(table["x"].to_numpy(), ["z"]), left(table["y"].to_numpy(), ["z", "x"])
    e = left(rng.standard_normal(400), ["z", "x", "y"])
    x, y, e = (v / np.linalg.norm(v) for v in (x, y, e))
    a, b = value**0.5, (value * (1 - value)) ** 0.5
    table["u"] = a * x + b * y + (1 - a * a - b * b) ** 0.5 * e
    assert effects.adjust(table, "x", "y", ["z", "u"])[0] == pytest.approx(0, abs=1e-9)


def test_possible_effects_of_no_graph():
    table = pd.DataFrame(np.random.default_rng(0).standard_normal((20, 3)), columns=list("abc"))  # fmt: skip
    with pytest.raises(TypeError, match="DiGraph is needed"):
        effects.possible_effects(nx.Graph(["ab", "bc"]), table, "a", "b")


def test_total_effects_are_of_linear_models():
    model = {
        "a": lambda e: e,
        "b": lambda a, e: 2 * a + e,
        "c": lambda a, b, e: b - a + e,
    }
    assert experiments.total_effect(model, "a", "c") == pytest.approx(1)
    with pytest.raises(ValueError, match="b is no linear function of a"):
        experiments.total_effect({"a": lambda e: e, "b": lambda a, e: a**2}, "a", "b")


def test_exact_rows_have_the_moments_of_the_model():
    model = {"a": lambda e: 2 * e, "b": lambda a, e: 3 * a + e}
    table = experiments.exactly(model)
    assert np.allclose(np.cov(table.T, bias=True), [[4, 12], [12, 37]])
    assert np.allclose(table.mean(), 0)


def test_either_alone_is_off_where_its_model_is_wrong():
    def off(*curves):
        found = pd.DataFrame([experiments.three_ways(*experiments.treated_by_choice(seed, *curves)) for seed in range(20)]) - 1  # fmt: skip
        return (found.mean() / found.sem()).abs()

    assert off(True, False)["regression"] > 6 > 4 > off(True, False)["weights"]
    assert off(False, True)["weights"] > 6 > 4 > off(False, True)["regression"]


def test_series_with_a_common_driver():
    x, links = experiments.remembering(0, 0.5, driver=1.0)
    assert x.shape == (100, 11) and links.sum() == 9
    after_two = [j for j in range(10) if j % 3 == 1]
    assert min(np.corrcoef(x[:-2, 10], x[2:, j])[0, 1] for j in after_two) > 0.3
    assert experiments.remembering(0, 0.5)[0].shape == (100, 10)


def test_residuals_are_alike_where_nothing_moves():
    rng = np.random.default_rng(3)
    label = np.repeat(range(4), 100)
    p = []
    for _ in range(200):
        table = pd.DataFrame({"x": rng.exponential(size=400)})
        table["y"] = table["x"] + rng.exponential(size=400)
        p.append(effects.residuals_alike(table, "y", ["x"], label))
    assert np.mean(np.array(p) < 0.05) < 0.1
    table["y"] += label
    assert effects.residuals_alike(table, "y", ["x"], label) < 1e-10


def test_what_a_network_says_of_doing():
    """X ← U → Y ← X, by hand: Σ_u P(u) P(y | x, u)."""
    from pgmpy.factors.discrete import TabularCPD
    from pgmpy.models import DiscreteBayesianNetwork

    model = DiscreteBayesianNetwork([("U", "X"), ("U", "Y"), ("X", "Y")])
    of = {"state_names": {"U": ["a", "b"], "X": ["a", "b"], "Y": ["a", "b"]}}
    model.add_cpds(
        TabularCPD("U", 2, [[0.3], [0.7]], state_names={"U": ["a", "b"]}),
        TabularCPD("X", 2, [[0.9, 0.2], [0.1, 0.8]], ["U"], [2], state_names={k: of["state_names"][k] for k in "UX"}),
        TabularCPD("Y", 2, [[0.1, 0.2, 0.3, 0.4], [0.9, 0.8, 0.7, 0.6]], ["X", "U"], [2, 2], **of),
    )  # fmt: skip
    found = real.chance_if_done(model, {"X": "b"}, {"Y": "a"}, "U")
    assert found == pytest.approx(0.3 * 0.3 + 0.7 * 0.4)
