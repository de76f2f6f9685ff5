"""Causal discovery where it takes hours: all pairs of Tübingen, and which method holds under which assumption.

    PYTHONPATH=. python benchmarks/discovering.py pairs
    PYTHONPATH=. python benchmarks/discovering.py map
    PYTHONPATH=. python benchmarks/discovering.py widths
    PYTHONPATH=. python benchmarks/discovering.py triples

pairs: every method for two variables on the 99 pairs of the package CDT, some of them swapped at random. map: every method
on data made for it and on data made against it: straight and curved mechanisms, Gaussian noise and other, with and without a
hidden common cause, few rows and many; pairs, then graphs of six variables. widths: CGNN on all pairs with smaller and larger
networks, since their size is what makes one direction harder than the other. triples: CGNN on three variables, a v-structure and a chain, ten tables each.
Nothing is tuned in any.
"""

import itertools
import time

import networkx as nx
import numpy as np
import pandas as pd
import torch
from provenance import arguments, provenance, told

from mlbook.causal import additive, constraint, generative, lingam, pairs, scores
from mlbook.causal.graphs import cpdag, shd
from mlbook.causal.scm import random_dag, random_scm, simulate

ROWS = {"anm": 1_000, "quantiles": 1_000, "cgnn": 500}  # at most, drawn at random


def asked(x, y, runs: int, steps: int, seed: int) -> dict:
    """What each method says of a pair: a number above 0 where x is the likelier cause, and the seconds it took."""

    def some(method):
        rows = np.random.default_rng(seed).permutation(len(x))[: ROWS[method]]
        return x[rows], y[rows]

    def anm():
        way, forward, backward = additive.anm_direction(*some("anm"), seed=seed)
        return {"p": [forward, backward], "says": 1.0 if way == "x → y" else -1.0}

    def cgnn():
        _, forward, backward = generative.cgnn_pair(
            *some("cgnn"), runs, steps, seed=seed
        )
        return {
            "mmd": [forward.tolist(), backward.tolist()],
            "says": float(backward.mean() - forward.mean()),
        }

    methods = {
        "lingam": lambda: {"says": pairs.pair_lingam(x, y)},
        "anm": anm,
        "igci": lambda: {"says": pairs.igci(x, y)},
        "quantiles": lambda: {"says": pairs.quantile_score(*some("quantiles"))},
        "cgnn": cgnn,
    }
    answers = {}
    for name, method in methods.items():
        start = time.perf_counter()
        answers[name] = method() | {"seconds": round(time.perf_counter() - start, 3)}
    return answers


def tuebingen():
    """Each pair, with x and y exchanged in a random half of them."""
    swapped = np.random.default_rng(0).random(99) < 0.5
    for number, ((cause, effect), swap) in enumerate(zip(pairs.tuebingen(), swapped, strict=True), 1):  # fmt: skip
        x, y = (effect, cause) if swap else (cause, effect)
        answers = asked(x, y, runs=8, steps=1_000, seed=number)
        yield {
            "pair": number,
            "rows": len(x),
            "swapped": bool(swap),
            "right": {m: bool((a["says"] > 0) != swap) for m, a in answers.items()},
            "answers": answers,
        }


CELLS = list(
    itertools.product(("linear", "curved"), ("Gaussian", "uniform"), (False, True))
)


def made(graph, shape, noise, n, seed):
    """n rows of a random model with this graph, all noise of one kind."""
    scm = random_scm(graph, shape, np.random.default_rng(seed))
    return simulate(scm, n, seed=seed, noise=noise)


def two_variables():
    """X → Y, and with a hidden cause of both; X and Y exchanged in a random half."""
    for seed, n, (shape, noise, hidden) in itertools.product(range(20), (100, 1_000), CELLS):  # fmt: skip
        graph = nx.DiGraph([("X", "Y"), *([("H", "X"), ("H", "Y")] if hidden else [])])
        data = made(graph, shape, noise, n, seed)
        swap = np.random.default_rng(seed).random() < 0.5
        x, y = (data[name].to_numpy() for name in ("YX" if swap else "XY"))
        answers = asked(x, y, 4, 500, seed)
        yield {
            "seed": seed,
            "rows": n,
            "shape": shape,
            "noise": noise,
            "hidden": hidden,
            "right": {m: bool((a["says"] > 0) != swap) for m, a in answers.items()},
            "seconds": {name: answer["seconds"] for name, answer in answers.items()},
        }


def found(data: pd.DataFrame) -> dict:
    """Each method's graph."""
    units = pd.DataFrame(lingam.standard(data.to_numpy()), columns=data.columns)
    return {
        "pc": lambda: constraint.pc(data, alpha=0.01),
        "exact": lambda: scores.exact(data),
        "direct_lingam": lambda: scores.graph_of_weights(lingam.direct_lingam(data)[1]),
        "cam": lambda: additive.cam(data),
        "notears": lambda: scores.graph_of_weights(scores.notears(data)),
        "notears, standardised": lambda: scores.graph_of_weights(scores.notears(units)),
        "nothing": lambda: nx.empty_graph(data.columns, create_using=nx.DiGraph),
    }


def six_variables():
    """Graphs of six variables that are seen, with seven edges expected; hidden: two more variables, each a cause of two
    of them."""
    for seed, n, (shape, noise, hidden) in itertools.product(range(30), (100, 1_000), CELLS):  # fmt: skip
        rng = np.random.default_rng(seed)
        truth = random_dag(6, 7, rng)
        whole = truth.copy()
        if hidden:
            for name in ("H1", "H2"):
                whole.add_edges_from((name, str(c)) for c in rng.choice(list(truth), 2, False))  # fmt: skip
        data = made(whole, shape, noise, n, seed)[list(truth)]
        row = {
            "seed": seed,
            "rows": n,
            "shape": shape,
            "noise": noise,
            "hidden": hidden,
            "edges": truth.number_of_edges(),
            "shd": {"best of its class": shd(cpdag(truth), truth)},
            "seconds": {},
        }
        for name, method in found(data).items():
            start = time.perf_counter()
            row["shd"][name] = shd(method(), truth)
            row["seconds"][name] = round(time.perf_counter() - start, 3)
        yield row


def widths():
    """CGNN on each pair, at most 300 rows, with networks of three sizes."""
    for number, (cause, effect) in enumerate(pairs.tuebingen(), 1):
        row = {"pair": number, "mmd": {}}
        for hidden in (3, 20, 100):
            _, forward, backward = generative.cgnn_pair(
                *(cause, effect), 8, 600, hidden, rows=300, seed=number
            )
            row["mmd"][str(hidden)] = [forward.tolist(), backward.tolist()]
        yield row


def triples():
    """Squared MMD of all orientations of A – B – C, for tables of A → B ← C and of A → B → C."""
    models = {
        "collider": {
            "A": lambda e: e,
            "B": lambda A, C, e: np.tanh(A + C) + 0.3 * e,
            "C": lambda e: e,
        },
        "chain": {
            "A": lambda e: e,
            "B": lambda A, e: np.tanh(2 * A) + 0.3 * e,
            "C": lambda B, e: np.tanh(2 * B) + 0.3 * e,
        },
    }
    ways = [("AB", "BC"), ("AB", "CB"), ("BA", "BC"), ("BA", "CB")]
    for seed, (name, scm) in itertools.product(range(10), models.items()):
        data = lingam.standard(simulate(scm, 250, seed=seed).to_numpy())
        table = torch.as_tensor(data, dtype=torch.float32)[None]
        row = {"seed": seed, "model": name, "mmd": {}}
        for way in ways:
            graph = nx.DiGraph()
            graph.add_nodes_from("ABC")
            graph.add_edges_from(way)
            torch.manual_seed(seed)
            score, _ = generative.imitate(table, graph, 8, 600)
            row["mmd"][" ".join(way)] = float(score.mean())
        yield row


def main():
    parser = arguments(__doc__, minutes=240)
    parser.add_argument("part", choices=("pairs", "map", "widths", "triples"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = {
        "pairs": {"pairs": (1, tuebingen)},
        "widths": {"widths": (1, widths)},
        "triples": {"triples": (1, triples)},
        "map": {"graphs": (0.5, six_variables), "two": (1, two_variables)},
    }[options.part]
    record = provenance("scipy", "scikit-learn", "networkx", "statsmodels")
    told(parts, record, options.out / f"causal-{options.part}-cpu.json", options.minutes)  # fmt: skip


if __name__ == "__main__":
    main()
