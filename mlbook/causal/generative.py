"""Causal generative neural networks (Goudet et al. 2018): a small network for each
variable, fed with its causes and with noise; of two graphs, that one is better whose
networks together imitate the data better."""

import networkx as nx
import numpy as np
import torch
from torch import Tensor, nn

from mlbook.causal.borders import check_dag, check_pair, check_table
from mlbook.causal.lingam import standard
from mlbook.common.checks import check_count

RATES = (0.005, 0.05, 0.25, 0.5, 1.0, 5.0, 50.0)  # γ of the kernels exp(−γ|x − y|²)


def mmd(x: Tensor, y: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of two samples, for the mean of the kernels of
    RATES (Gretton et al. 2012): the biased estimate, 0 for equal samples.

    Args:
        x: (..., n, d); y: (..., m, d).
    Returns:
        (...).
    """

    def kernel(a, b):
        apart = torch.cdist(a, b).square()
        return sum(torch.exp(-rate * apart).mean((-2, -1)) for rate in RATES) / len(
            RATES
        )

    return kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)


def waves(count: int, d: int, device=None) -> Tensor:
    """Directions w, (d, count), for random Fourier features of the kernel of `mmd`: a
    kernel exp(−γ|x − y|²) is the mean of cos w·(x − y) over w normal of variance 2γ
    (Rahimi & Recht 2007)."""
    rates = torch.tensor(RATES, device=device)[torch.randint(len(RATES), (count,))]
    return torch.randn(d, count, device=device) * (2 * rates).sqrt()


def features(x: Tensor, w: Tensor) -> Tensor:
    """The sample's mean of cos and sin along each wave: (..., n, d) → (..., 2 waves).

    The mean over waves of the squared differences of two samples' features is an
    unbiased estimate of their `mmd`, at a cost linear in n.
    """
    along = x @ w
    return torch.cat([along.cos().mean(-2), along.sin().mean(-2)], -1)


class Generator(nn.Module):
    """Networks of one hidden layer, x_j = f_j(causes of j, noise), for one graph;
    `runs` of them side by side."""

    def __init__(self, graph: nx.DiGraph, runs: int, hidden: int = 20):
        super().__init__()
        self.graph = check_dag(graph)
        self.layers = nn.ParameterDict()
        for j, name in enumerate(graph):
            fan = graph.in_degree(name) + 1
            for layer, rows, columns, size in (
                ("in", fan, hidden, fan),
                ("bias", 1, hidden, fan),
                ("out", hidden, 1, hidden),
                ("shift", 1, 1, hidden),
            ):  # as torch.nn.Linear begins
                start = torch.empty(runs, rows, columns)
                start.uniform_(-(size**-0.5), size**-0.5)
                self.layers[f"{layer} {j}"] = nn.Parameter(start)
        self.runs, self.place = runs, {name: j for j, name in enumerate(graph)}

    def forward(self, n: int) -> Tensor:
        """n rows of each run: (runs, n, variables), in the order of the graph's
        nodes."""
        layers, made = self.layers, {}
        for name in nx.topological_sort(self.graph):
            j = self.place[name]
            noise = torch.randn(self.runs, n, 1, device=layers["out 0"].device)
            given = torch.cat(
                [*(made[cause] for cause in self.graph.pred[name]), noise], -1
            )
            inner = torch.relu(given @ layers[f"in {j}"] + layers[f"bias {j}"])
            made[name] = inner @ layers[f"out {j}"] + layers[f"shift {j}"]
        return torch.cat([made[name] for name in self.graph], -1)


def imitate(
    data: Tensor, graph: nx.DiGraph, runs: int = 8, steps: int = 1_000, hidden: int = 20
) -> tuple[Tensor, Generator]:
    """Train generators of one graph on samples; how far each stays from its sample.

    Args:
        data: (samples, n, variables), standardised.
        graph: its nodes are the variables, in this order.
        runs: generators for each sample, from other initial weights.
        steps: of Adam at rate 0.01, each with as many new rows as the sample has and
            100 new waves.
    Returns:
        ((samples, runs), squared MMD to the sample, mean over 20 draws; the
        generators, those of one sample side by side).
    """
    samples, n, d = data.shape
    generator = Generator(graph, samples * runs, hidden).to(data.device)
    optimizer = torch.optim.Adam(generator.parameters(), lr=0.01)
    for _ in range(steps):
        w = waves(100, d, data.device)
        made = features(generator(n), w).view(samples, runs, -1)
        loss = (made - features(data, w)[:, None]).square().sum(-1) / 100
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    with torch.no_grad():
        draws = [generator(n).view(samples, runs, n, d) for _ in range(20)]
        score = sum(mmd(draw, data[:, None]) for draw in draws) / len(draws)
    return score, generator


def cgnn_pair(
    x,
    y,
    runs: int = 8,
    steps: int = 1_000,
    hidden: int = 20,
    rows: int = 500,
    seed: int = 0,
) -> tuple[str, np.ndarray, np.ndarray]:
    """Which of two variables is the cause, by which direction's networks imitate the
    pair better.

    Args:
        x, y: (n,).
        runs: networks of each direction, from other weights; their mean decides.
        rows: more are drawn from at random.
    Returns:
        ("x → y" or "y → x", (runs,) squared MMD of x → y, (runs,) of y → x).
    Raises:
        ValueError: what `borders.check_pair` refuses.
    """
    (
        check_count("rows", rows, 10),
        check_count("runs", runs),
        check_count("steps", steps),
    )
    pair = standard(np.stack(check_pair(x, y), 1))
    if len(pair) > rows:
        pair = pair[np.random.default_rng(seed).choice(len(pair), rows, replace=False)]
    one = torch.as_tensor(pair, dtype=torch.float32)
    both = torch.stack([one, one.flip(-1)])
    with torch.random.fork_rng(devices=[]):  # the caller's numbers stay the caller's
        torch.manual_seed(seed)
        score, _ = imitate(both, nx.DiGraph([("cause", "effect")]), runs, steps, hidden)
    forward, backward = score.numpy()
    return "x → y" if forward.mean() <= backward.mean() else "y → x", forward, backward


def cgnn(
    data,
    skeleton: nx.Graph,
    runs: int = 8,
    steps: int = 1_000,
    hidden: int = 20,
    seed: int = 0,
) -> nx.DiGraph:
    """Directions for the edges of a skeleton: first of each pair alone, then one edge
    is turned as long as that makes the whole graph's networks imitate the data better.

    Args:
        data: rows of observations, a DataFrame or an array (n, variables).
        skeleton: on the data's columns; directions, if it has any, are not looked at.
    Returns:
        a DAG; `graph.graph["score"]` is its squared MMD, `graph.graph["tried"]` all
        graphs with theirs.
    Raises:
        ValueError: what `borders.check_table` refuses; the skeleton has other nodes
            than the data has columns.
    """
    table = check_table(data)
    if nx.number_of_selfloops(skeleton):
        raise ValueError("the skeleton has an edge from a node to itself")
    if set(skeleton) != set(table.columns):
        raise ValueError(
            f"the skeleton is on {list(skeleton)}, the data on {list(table.columns)}"
        )
    x = torch.as_tensor(standard(table.to_numpy()), dtype=torch.float32)
    tried: dict[frozenset, float] = {}

    def score(graph: nx.DiGraph) -> float:
        key = frozenset(graph.edges)
        if key not in tried:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                score, _ = imitate(x[None], graph, runs, steps, hidden)
            tried[key] = float(score.mean())
        return tried[key]

    best = nx.DiGraph()
    best.add_nodes_from(table.columns)
    answers = []
    for a, b in {tuple(sorted(edge, key=list(table).index)) for edge in skeleton.edges}:
        direction, forward, backward = cgnn_pair(
            table[a], table[b], runs, steps, hidden, len(table), seed
        )
        edge = (a, b) if direction == "x → y" else (b, a)
        answers.append((abs(forward.mean() - backward.mean()), edge))
    for _, (a, b) in sorted(answers, key=lambda answer: -answer[0]):  # the surest first
        best.add_edge(*((b, a) if nx.has_path(best, b, a) else (a, b)))
    while True:
        turned = [_turned(best, edge) for edge in best.edges]
        turned = [graph for graph in turned if nx.is_directed_acyclic_graph(graph)]
        better = min([best, *turned], key=score)
        if better is best:
            best.graph = {"score": score(best), "tried": tried}
            return best
        best = better


def _turned(graph: nx.DiGraph, edge: tuple) -> nx.DiGraph:
    other = graph.copy()
    other.remove_edge(*edge)
    other.add_edge(*edge[::-1])
    return other
