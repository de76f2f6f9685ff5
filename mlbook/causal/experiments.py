"""What the chapter measures again and again: worlds to draw from, and shares of
tables."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, combinations, permutations, product

import networkx as nx
import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.proportion import proportion_confint

from mlbook.causal import (
    additive,
    constraint,
    effects,
    independence,
    lingam,
    scm,
    series,
)
from mlbook.causal.graphs import cpdag, shd


def all_dags(names) -> Iterator[nx.DiGraph]:
    """Every DAG on these nodes; 543 on four."""
    both = list(permutations(names, 2))
    most = len(names) * (len(names) - 1) // 2
    for edges in chain.from_iterable(combinations(both, k) for k in range(most + 1)):
        graph = nx.DiGraph()
        graph.add_nodes_from(names)
        graph.add_edges_from(edges)
        if nx.is_directed_acyclic_graph(graph):
            yield graph


def equivalents(dag: nx.DiGraph) -> list[nx.DiGraph]:
    """All DAGs that are Markov equivalent to this one, itself first."""
    shared = cpdag(dag)
    found = []
    for turned in product((False, True), repeat=dag.number_of_edges()):
        graph = nx.DiGraph()
        graph.add_nodes_from(dag)
        graph.add_edges_from(
            e[::-1] if turn else e for e, turn in zip(dag.edges, turned, strict=True)
        )
        if nx.is_directed_acyclic_graph(graph) and set(cpdag(graph).edges) == set(
            shared.edges
        ):
            found.append(graph)
    return found


def alike(a: pd.DataFrame, b: pd.DataFrame, bins: int = 10) -> float:
    """The p-value of a chi-square test that two tables of two columns have one
    distribution, over squares of the first's quantiles."""
    counts = []
    for table in (a, b):
        place = np.zeros(len(table), int)
        for name in a:
            edges = np.quantile(a[name], np.linspace(0, 1, bins + 1)[1:-1])
            place = bins * place + np.searchsorted(edges, table[name])
        counts.append(np.bincount(place, minlength=bins**2))
    counts = np.array(counts)
    return float(stats.chi2_contingency(counts[:, counts.sum(0) > 10]).pvalue)


def in_many_orders(seed: int, orders: int) -> dict[str, list[frozenset]]:
    """What plain PC and its stable variants answer on one table of 60 rows, its columns
    shuffled: for each variant the edges it found in each order."""
    rng = np.random.default_rng(seed)
    few = scm.simulate(scm.random_scm(scm.random_dag(7, 12, rng), "linear", rng), 60)
    variants = {
        "plain": (False, "first"),
        "stable": (True, "first"),
        "stable, surest first": (True, "max"),
    }
    answers = {name: [] for name in variants}
    for _ in range(orders):
        columns = list(rng.permutation(few.columns))
        for name, how in variants.items():
            found = constraint.pc(few[columns], 0.05, "fisher_z", *how)
            answers[name].append(frozenset(found.edges))
    return answers


def judged_dependent(total: float, sizes, repeats: int, level: float = 0.05):
    """A → B → D and A → C → D, whose effects of A on D add up to `total`: how often
    A and D are judged dependent, and how often they should be.

    Args:
        sizes: numbers of rows.
    Returns:
        (shares, those by the formula), one for each size.
    """
    beyond = stats.norm.isf(level / 2)
    shares = []
    for n in sizes:
        rng = np.random.default_rng([n, int(1_000 * total)])
        a, b, c, d = rng.standard_normal((4, repeats, n), dtype=np.float32)
        d += 0.8 * (a + b) - (0.8 - total) * (a + c)
        a, d = (v - v.mean(1, keepdims=True) for v in (a, d))
        r = (a * d).sum(1) / np.sqrt((a**2).sum(1) * (d**2).sum(1))
        shares.append((np.abs(np.arctanh(r)) * np.sqrt(n - 3) > beyond).mean())
    rho = total / np.sqrt(total**2 + 0.8**2 + (0.8 - total) ** 2 + 1)
    shift = np.arctanh(rho) * np.sqrt(np.asarray(sizes) - 3)
    return np.array(shares), stats.norm.cdf(shift - beyond) + stats.norm.cdf(
        -shift - beyond
    )


def null_p_values(seed: int, n: int = 100) -> list[float]:
    """HSIC's p-values where its null hypothesis is true: of independent variables, of
    the residuals of a true model, and of those of rows that it was not fitted to."""
    rng = np.random.default_rng(seed)
    x, e = rng.standard_normal((2, 2 * n))
    y = np.tanh(1.5 * x) + 0.5 * e
    fit = additive.Smoother(lingam.standard(np.stack([x[:n], y[:n]], 1))).fit(1, [0])
    fitted = y[:n] - fit.residuals * y[:n].std()
    order = np.argsort(x[:n])
    new = y[n:] - np.interp(x[n:], x[:n][order], fitted[order])
    pairs = (x[:n], e[:n]), (x[:n], fit.residuals), (x[n:], new)
    return [independence.hsic(a, b, 99, seed)[1] for a, b in pairs]


def share_right(shape: str, noise: str, method: Callable, tables: int, n: int = 300):
    """The share of random pairs X → Y whose direction a method finds.

    Args:
        shape: as `scm.random_scm`; noise: a name of `scm.NOISES`.
        method: (x, y, seed) → whether x is the cause.
    """
    right = 0
    for seed in range(tables):
        rng = np.random.default_rng(10_000 + seed)
        model = scm.random_scm(nx.DiGraph([("X", "Y")]), shape, rng)
        rows = scm.simulate(model, n, seed=seed, noise=noise)
        right += bool(method(rows["X"].to_numpy(), rows["Y"].to_numpy(), seed))
    return right / tables


def straight(seed: int, spread: float = 1.0, n: int = 1_000):
    """A random linear model of six variables, and n rows of it.

    Args:
        spread: deviations of the noises lie between 1/spread and spread: equal at 1.
    Returns:
        (graph, table).
    """
    rng = np.random.default_rng(seed)
    graph = scm.random_dag(6, 7, rng)
    names = list(graph)
    B = np.zeros((6, 6))
    for a, b in graph.edges:
        B[names.index(b), names.index(a)] = rng.choice([-1, 1]) * rng.uniform(0.5, 1.5)
    noise = rng.standard_normal((n, 6)) * spread ** rng.uniform(-1, 1, 6)
    return graph, pd.DataFrame(noise @ np.linalg.inv(np.eye(6) - B).T, columns=names)


def units_tried(searches: dict[str, Callable], tables: int) -> pd.DataFrame:
    """How far searches end from the true CPDAG where all noises are equal, on the same
    tables standardised, and where noises are unequal.

    Args:
        searches: name → function of a table that gives a CPDAG.
    Returns:
        columns "units", "method", "shd" and "edges", of the true graph.
    """
    rows = []
    for seed in range(tables):
        graph, equal = straight(seed)
        _, unequal = straight(seed, spread=3)
        units = {
            "equal noises": equal,
            "equal noises,\nstandardised": equal / equal.std(),
            "unequal noises": unequal,
        }
        for (kind, table), (name, search) in product(units.items(), searches.items()):
            far = shd(search(table), cpdag(graph))
            rows.append((kind, name, far, graph.number_of_edges()))
    return pd.DataFrame(rows, columns=["units", "method", "shd", "edges"])


def total_effect(model: dict, x: str, y: str) -> float:
    """By how much y rises when x is set one higher, in a linear model.

    Raises:
        ValueError: it is not linear.
    """
    noise = scm.draw_noise(model, 2)
    at = [scm.simulate(model, 2, {x: v}, noise=noise)[y] for v in (0.0, 1.0, 2.0)]
    rises = np.diff(at, axis=0)
    if not np.allclose(rises, rises[0, 0]):
        raise ValueError(f"{y} is no linear function of {x}")
    return float(rises[0, 0])


def exactly(model: dict, seed: int = 0, n: int = 50) -> pd.DataFrame:
    """Rows of a linear model whose means, variances and covariances are those of its
    distribution, so that a regression gives the coefficient in the limit."""
    draws = np.random.default_rng(seed).standard_normal((n, len(model) + 1))
    draws[:, 0] = 1
    noise = n**0.5 * np.linalg.qr(draws)[0][:, 1:]
    return scm.simulate(model, n, noise=pd.DataFrame(noise, columns=list(model)))


def possible_tried(seed: int, rows: Iterable[int]) -> dict[str, np.ndarray]:
    """Of a random linear model of eight variables: for how many ordered pairs the true
    effect is the only one possible, is one of several, or is none, by the true CPDAG
    and by those that PC finds in tables of `rows` rows. Regressions are exact, so that
    the graph alone can err.

    Returns:
        graph → (2, 3) counts: of pairs of which the first does not act on the second,
        and of pairs of which it does.
    """
    rng = np.random.default_rng(seed)
    truth = scm.random_dag(8, 10, rng)
    model = scm.random_scm(truth, "linear", rng)
    table = exactly(model, seed)
    graphs = {"true CPDAG": cpdag(truth)}
    for n in rows:
        data = scm.simulate(model, n, seed=seed)
        graphs[f"PC's, {n:,} rows"] = constraint.pc(data, 0.01)
    counts = {name: np.zeros((2, 3), int) for name in graphs}
    for x, y in permutations(truth, 2):
        effect, acts = total_effect(model, x, y), int(nx.has_path(truth, x, y))
        for name, graph in graphs.items():
            found = effects.possible_effects(graph, table, x, y).values()
            found = np.array([value for value, _ in found])
            there = np.isclose(found, effect, atol=1e-6)
            counts[name][acts, (1 - there.all()) if there.any() else 2] += 1
    return counts


def stages_tried(seed: int, strength=1.0, direct=0.0, n: int = 1_000) -> list[float]:
    """The effect 0.5 by least squares, by two stages with Z, and by two stages with a
    variable that the confounder causes.

    Args:
        strength: of Z → X, direct: of Z → Y; an instrument has none of the second.
    """
    rng = np.random.default_rng(seed)
    z, u, e, v, w = rng.standard_normal((5, n))
    x, proxy = strength * z + u + e, u + w
    y = 0.5 * x + direct * z + u + v
    sources = (x, z, proxy)
    return [effects.two_stage(y, x[:, None], s[:, None])[0][0] for s in sources]


def treated_by_choice(seed: int, curved_outcome: bool, curved_choice: bool, n=4_000):
    """People who take a treatment with an effect of 1, and others; what they would have
    without it, and their choice, may curve in a.

    Returns:
        (treated, others), tables with a, b and y.
    """
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, n))
    choice = (1.5 * np.abs(a) + 0.75 * a - 1.2 if curved_choice else a) + b - 1
    treat = rng.random(n) < 1 / (1 + np.exp(-choice))
    outcome = (a**2 if curved_outcome else a) + b + treat + rng.standard_normal(n)
    table = pd.DataFrame({"a": a, "b": b, "y": outcome})
    return table[treat], table[~treat]


def three_ways(treated: pd.DataFrame, others: pd.DataFrame) -> dict[str, float]:
    """The effect in `treated_by_choice` by a regression among the others alone, by
    weights alone, and by both (`effects.doubly_robust`)."""
    on = ["a", "b"]
    x, z = (np.column_stack([t[on], np.ones(len(t))]) for t in (treated, others))
    b = np.linalg.lstsq(z, others["y"], rcond=None)[0]
    odds = effects.odds(treated, others, on)[1]
    return {
        "regression": float((treated["y"] - x @ b).mean()),
        "weights": float(treated["y"].mean() - np.average(others["y"], weights=odds)),
        "both, (2)": effects.doubly_robust(treated, others, "y", on)[0],
    }


def wilson(share: float, n: int) -> tuple[float, float]:
    """A 95 % interval for a share of n (Wilson 1927)."""
    return proportion_confint(share * n, n, method="wilson")


def changes(table: pd.DataFrame, width: int = 150, step: int = 5):
    """How much the rows after each place differ from those before it, all columns
    together, in ranks and in their distance from the middle.

    Returns:
        (places, changes).
    """
    ranks = table.rank() / len(table) - 0.5
    places = np.arange(width, len(table) - width, step)
    total = np.zeros(len(places))
    for part in (ranks, ranks.abs() - ranks.abs().mean()):
        sums = np.vstack([np.zeros(part.shape[1]), part.to_numpy().cumsum(0)])
        after = sums[places + width] - sums[places]
        before = sums[places] - sums[places - width]
        total += ((after - before) ** 2).sum(1) / width**2
    return places, total


def remembering(
    seed: int, memory: float, driver: float = 0.0, d: int = 10, n: int = 100
):
    """Series that remember `memory` of their last value, with d − 1 links of 0.3 and one
    step; and one more series, if `driver` is not 0, which acts on all others with this
    strength after one, two or three steps.

    Returns:
        ((n, d or d + 1), (d, d) whether the first acts on the second).
    """
    rng = np.random.default_rng(seed)
    links = np.zeros((d, d), bool)
    while links.sum() < d - 1:
        links[tuple(sorted(rng.choice(d, 2, replace=False)))] = True
    x = rng.standard_normal((n + 100, d))
    of_all, after = rng.standard_normal(n + 100), 1 + np.arange(d) % 3
    for t in range(3, n + 100):
        of_all[t] += memory * of_all[t - 1]
        x[t] += memory * x[t - 1] + 0.3 * x[t - 1] @ links + driver * of_all[t - after]
    return np.column_stack([x, of_all][: 1 + bool(driver)])[100:], links


def first_lag(x: np.ndarray, effect: int, lags: int) -> np.ndarray:
    """p-values that the last value of each series tells nothing of `effect`, given all other
    lags of all series: t tests of a regression on them."""
    past = series.lagged(x, range(1, lags + 1), lags)
    fit = OLS(x[lags:, effect], np.column_stack([np.ones(len(past)), past])).fit()
    return fit.pvalues[1 : x.shape[1] + 1]


def links_judged(memory: float, driver: float, tables: int, lags=5, level=0.05):
    """Of `remembering`'s links of one step: how many that are not there, and that are,
    are judged causal: in pairs (given all other lags of the two), all at once (given all
    other lags of all series), and by MCI.

    Returns:
        one row for each method and table, columns "method", "false" and "found".
    """
    rows = []
    for seed in range(tables):
        x, links = remembering(seed, memory, driver)
        d = len(links)
        none = ~links & ~np.eye(d, dtype=bool)
        p = {name: np.ones((d, d)) for name in ("pairs", "all at once")}
        for j in range(d):
            p["all at once"][:, j] = first_lag(x, j, lags)[:d]
            for i in set(range(d)) - {j}:
                p["pairs"][i, j] = first_lag(x[:, [i, j]], 1, lags)[0]
        p["MCI"] = series.mci(x, lags)[:d, 0, :d]
        for name, values in p.items():
            judged = values < level
            rows.append((name, judged[none].mean(), judged[links].mean()))
    return pd.DataFrame(rows, columns=["method", "false", "found"])
