"""Our short discovery beside the libraries that one would use: the same answers? how fast? how far from the truth?

    PYTHONPATH=. python benchmarks/discovering_libraries.py [--lingam PYTHON]

times: PC, DirectLiNGAM and d-separation on the same data. networks: PC, greedy search and a hybrid on four networks that
experts drew. proteins: every method on Sachs's cells. PYTHON: of an environment that has the package `lingam`, whose
newest release wants an older SciPy than the book's.
"""

import itertools
import json
import multiprocessing
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
from provenance import arguments, provenance, told

from mlbook.causal import additive, constraint, lingam, real, scores
from mlbook.causal.graphs import cpdag, d_separated, from_causal_learn, shd, skeleton
from mlbook.causal.scm import random_dag, random_scm, simulate

PATIENCE = 400  # seconds for one search of a library


def least(call, *args, **how) -> tuple[float, object]:
    """The least of the seconds that five calls take, and the answer."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        answer = call(*args, **how)
        seconds.append(time.perf_counter() - start)
    return min(seconds), answer


LINGAM = """
import json, sys, time
import numpy as np, lingam
data = np.load(sys.argv[1]); seconds = []
for _ in range(5):
    start = time.perf_counter(); model = lingam.DirectLiNGAM(); model.fit(data)
    seconds.append(time.perf_counter() - start)
print(json.dumps({"seconds": min(seconds), "order": list(map(int, model.causal_order_)),
    "B": model.adjacency_matrix_.tolist(), "version": lingam.__version__}))
"""


def times(other_python: str | None):
    from causallearn.search.ConstraintBased.PC import pc
    from causallearn.search.FCMBased.lingam import DirectLiNGAM

    for seed, degree in itertools.product(range(3), (2, 3)):
        rng = np.random.default_rng(seed)
        truth = random_dag(30, 15 * degree, rng)
        data = simulate(random_scm(truth, "linear", rng), 10_000, seed=seed)
        ours, found = least(constraint.pc, data, 0.01, colliders="first")
        theirs, there = least(pc, data.to_numpy(), 0.01, "fisherz", show_progress=False)
        other = from_causal_learn(there.G.graph, list(data))
        yield {
            "what": "pc",
            "seed": seed,
            "degree": degree,
            "seconds": {"ours": ours, "causal-learn": theirs},
            "same skeleton": skeleton(found) == skeleton(other),
            "pairs that differ": shd(found, other),
            "shd": {"ours": shd(found, cpdag(truth)), "causal-learn": shd(other, cpdag(truth))},
        }  # fmt: skip
    for seed in range(3):
        rng = np.random.default_rng(seed)
        truth = random_dag(20, 30, rng)
        model = random_scm(truth, "linear", rng)
        data = simulate(model, 10_000, seed=seed, noise="uniform")
        ours, (order, B) = least(lingam.direct_lingam, data)
        theirs, there = least(DirectLiNGAM().fit, data.to_numpy())
        row = {
            "what": "direct_lingam",
            "seed": seed,
            "seconds": {"ours": ours, "causal-learn": theirs},
            "same order": order == [data.columns[i] for i in there.causal_order_],
            "largest difference": float(np.abs(B.to_numpy() - there.adjacency_matrix_).max()),
            "shd": shd(scores.graph_of_weights(B), truth),
        }  # fmt: skip
        if other_python:
            with tempfile.TemporaryDirectory() as folder:
                np.save(Path(folder) / "data.npy", data.to_numpy())
                command = [other_python, "-c", LINGAM, f"{folder}/data.npy"]
                said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # fmt: skip
            row["seconds"]["lingam"] = said["seconds"]
            row["lingam"] = {
                "version": said["version"],
                "same order": order == [data.columns[i] for i in said["order"]],
                "largest difference": float(np.abs(B.to_numpy() - said["B"]).max()),
            }
        yield row
    rng = np.random.default_rng(0)
    ours, theirs, same = [], [], True
    for _ in range(200):
        graph = nx.relabel_nodes(random_dag(200, 400, rng), {f"X{i + 1}": i for i in range(200)})  # fmt: skip
        x, y, *z = map(int, rng.permutation(200)[:12])
        a, one = least(d_separated, graph, {x}, {y}, set(z))
        b, other = least(nx.is_d_separator, graph, {x}, {y}, set(z))
        ours.append(a), theirs.append(b)
        same &= one == other
    yield {
        "what": "d_separated",
        "queries": 200,
        "same answers": same,
        "seconds": {"ours": float(np.median(ours)), "networkx": float(np.median(theirs))},
    }  # fmt: skip


def searches(data: pd.DataFrame) -> dict:
    """Searches on discrete data: each gives a graph in which an edge without a direction has both."""
    from causallearn.search.ConstraintBased.PC import pc
    from causallearn.search.ScoreBased.GES import ges
    from pgmpy import causal_discovery, estimators

    names = list(data)
    codes = np.stack([pd.factorize(data[name])[0] for name in names], 1)

    def of_pgmpy(found):
        graph = nx.DiGraph()
        graph.add_nodes_from(names)
        graph.add_edges_from(getattr(found, "directed_edges", found.edges))
        for a, b in getattr(found, "undirected_edges", ()):
            graph.add_edges_from([(a, b), (b, a)])
        return graph if hasattr(found, "directed_edges") else cpdag(graph)

    def fitted(method, **how):
        return of_pgmpy(getattr(causal_discovery, method)(**how).fit(data).causal_graph_)  # fmt: skip

    return {
        "PC, ours": lambda: constraint.pc(data, 0.01, "g2"),
        "PC, causal-learn": lambda: from_causal_learn(pc(codes, 0.01, "gsq", show_progress=False).G.graph, names),
        "PC, pgmpy": lambda: fitted("PC", ci_test="chi_square", significance_level=0.01, variant="stable", n_jobs=1, show_progress=False),
        "GES, causal-learn": lambda: from_causal_learn(ges(codes, "local_score_BDeu")["G"].graph, names),
        "GES, pgmpy": lambda: fitted("GES", scoring_method="bic-d"),
        "hill climbing, pgmpy": lambda: fitted("HillClimbSearch", scoring_method="bic-d", show_progress=False),
        "MMHC, pgmpy": lambda: of_pgmpy(estimators.MmhcEstimator(data).estimate()),
        "nothing": lambda: nx.empty_graph(names, create_using=nx.DiGraph),
    }  # fmt: skip


def _search(queue, data, name):
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    try:
        graph = searches(data)[name]()
        queue.put((list(graph.edges), time.perf_counter() - start))
    except Exception as error:
        queue.put((f"{type(error).__name__}: {error}"[:200], time.perf_counter() - start))  # fmt: skip


def networks():
    """5,000 rows of each network, three draws; a search that takes too long is ended, and not tried on the next draw."""
    slow = set()
    for name, seed in itertools.product(("asia", "child", "insurance", "alarm"), range(3)):  # fmt: skip
        model = real.network(name)
        truth = cpdag(real.network_graph(model))
        data = model.simulate(5_000, seed=seed, show_progress=False)
        data = data[sorted(data)]  # pgmpy's order of columns changes with its hashes
        row = {"network": name, "nodes": len(truth), "edges": len(skeleton(truth)), "seed": seed}  # fmt: skip
        row |= {"shd": {}, "skeleton": {}, "seconds": {}, "failed": {}}
        for search in searches(data[list(data)[:2]]):
            if (name, search) in slow:
                continue
            queue = multiprocessing.Queue()
            process = multiprocessing.Process(target=_search, args=(queue, data, search))  # fmt: skip
            process.start()
            try:
                edges, seconds = queue.get(timeout=PATIENCE)
            except Exception:
                slow.add((name, search))
                edges, seconds = f"more than {PATIENCE} s", PATIENCE
            process.kill()
            if isinstance(edges, str):
                row["failed"][search] = edges
                continue
            found = nx.DiGraph()
            found.add_nodes_from(truth)
            found.add_edges_from(edges)
            row["shd"][search] = shd(found, truth)
            row["skeleton"][search] = len(skeleton(found) ^ skeleton(truth))
            row["seconds"][search] = round(seconds, 3)
        yield row


def methods(data: pd.DataFrame) -> dict:
    """Searches on continuous data."""
    from causallearn.search.ScoreBased.GES import ges

    names = list(data)
    units = pd.DataFrame(lingam.standard(data.to_numpy()), columns=names)
    return {
        "PC": lambda: constraint.pc(data, 0.01),
        "exact": lambda: scores.exact(data),
        "GES, causal-learn": lambda: from_causal_learn(ges(data.to_numpy(), "local_score_BIC")["G"].graph, names),
        "DirectLiNGAM": lambda: scores.graph_of_weights(lingam.direct_lingam(data)[1]),
        "CAM": lambda: additive.cam(data),
        "NOTEARS": lambda: scores.graph_of_weights(scores.notears(data)),
        "NOTEARS, standardised": lambda: scores.graph_of_weights(scores.notears(units)),
        "nothing": lambda: nx.empty_graph(names, create_using=nx.DiGraph),
    }  # fmt: skip


def proteins():
    """All cells, and those of the condition without a drug, in logarithms: each method's graph beside the published one."""
    table, condition, truth = real.sachs()
    logs = np.log(table)
    for which in ("all", "none"):
        data = logs if which == "all" else logs[condition == which]
        data = data.reset_index(drop=True)
        for name, method in methods(data).items():
            start = time.perf_counter()
            found = method()
            arrows = constraint.directed(found)
            yield {
                "cells": which,
                "rows": len(data),
                "method": name,
                "seconds": round(time.perf_counter() - start, 3),
                "shd": shd(found, truth),
                "edges": len(skeleton(found)),
                "adjacent in both": len(skeleton(found) & skeleton(truth)),
                "arrows": len(arrows),
                "arrows right": sum(truth.has_edge(*e) for e in arrows),
                "arrows reversed": sum(truth.has_edge(*e[::-1]) for e in arrows),
            }


def main():
    parser = arguments(__doc__, minutes=120)
    parser.add_argument("--lingam", help="a python with the package lingam")
    options = parser.parse_args()
    parts = {
        "times": (1, lambda: times(options.lingam)),
        "proteins": (1, proteins),
        "networks": (1, networks),
    }
    record = provenance("causal-learn", "pgmpy", "networkx", "scipy", "scikit-learn")
    told(parts, record, options.out / "causal-libraries-cpu.json", options.minutes)


if __name__ == "__main__":
    main()
