"""The chessboard: the chapter's recipe against real NVP and torchcfm, same training time, same judge.

    PYTHONPATH=. python benchmarks/flow_checkerboard.py

Everyone trains with `mlbook.common.training.fit` (a rising and falling learning rate, averaged weights) on batches of its
own size, on one thread, for as many steps as the chapter's recipe takes seconds; how long a step takes is measured first,
in turn, so that a busy second falls on all. Each takes the best of three learning rates, by the mean of two seeds, and is
judged on three others. (On one seed real NVP chooses the highest, at which others of its trainings break down.)
The rows differ from the chapter's recipe in one thing or a few, so that they tell what it is good for:

- real NVP by maximum likelihood, with and without the Fourier features of the chapter's network;
- the chapter's recipe without Fourier features;
- torchcfm's matcher for straight lines (sigma 0, uniform times) with the chapter's network, and with the one of its
  tutorial notebook: three hidden layers of 64 SELU units, batch 256;
- that network with optimal transport pairs, and with the tutorial's sigma of 0.1, whose target is the board blurred by
  0.1: no model of that can have an NLL below `blurred_limit()`.

Writes results/flow-checkerboard-cpu.json.
"""

import argparse
import math
import statistics
import time
from multiprocessing import get_context
from pathlib import Path

import torch
from provenance import RESULTS, provenance, write
from torch import Tensor, nn
from torchcfm.conditional_flow_matching import (
    ConditionalFlowMatcher,
    ExactOptimalTransportConditionalFlowMatcher,
)
from torchcfm.models.models import MLP

import mlbook
from mlbook import flow_matching as flow
from mlbook.common.training import fit

RATES = (2e-3, 4e-3, 8e-3)  # of 1e-3 and 1.6e-2 nobody is better
TUNING_SEEDS, SEEDS = (100, 101), (0, 1, 2)
POINTS = (2_500, 20_000)  # that judge: for the likelihood, and samples
STEPS = 5_000  # of the chapter's recipe at scale cpu


class RealNVP(nn.Module):
    """A normalizing flow of affine coupling layers (Dinh et al. 2017), for points in the plane.

    Each layer keeps one coordinate and moves the other by a scale and a shift that depend on the first, so that the
    Jacobian is triangular and its log-determinant is the log-scale.
    """

    def __init__(
        self,
        frequencies: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0),
        layers: int = 8,
        width: int = 64,
    ):
        super().__init__()
        self.nets = nn.ModuleList(
            nn.Sequential(
                flow.FourierFeatures(frequencies),
                nn.Linear(1 + 2 * len(frequencies), width),
                nn.SiLU(),
                nn.Linear(width, width),
                nn.SiLU(),
                nn.Linear(width, 2),
            )
            for _ in range(layers)
        )

    def _scale_shift(self, layer: int, kept: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.nets[layer](kept).chunk(2, 1)
        return 3 * torch.tanh(scale / 3), shift

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats for x (batch, 2), (batch,)."""
        first, second = x.chunk(2, 1)
        log_det = torch.zeros_like(x[:, 0])
        for layer in reversed(range(len(self.nets))):
            first, second = second, first
            scale, shift = self._scale_shift(layer, first)
            second = (second - shift) * torch.exp(-scale)
            log_det = log_det - scale[:, 0]
        return flow.standard_normal_log_density(torch.cat([first, second], 1)) + log_det

    def forward(self, z: Tensor) -> Tensor:
        """Noise (batch, 2) to samples (batch, 2): the inverse of what `log_prob` follows."""
        first, second = z.chunk(2, 1)
        for layer in range(len(self.nets)):
            scale, shift = self._scale_shift(layer, first)
            second = second * torch.exp(scale) + shift
            first, second = second, first
        return torch.cat([first, second], 1)


class Chapter:
    """The recipe of the chapter: the cosine path, late times."""

    def __init__(self, **network):
        self.network = lambda: flow.VelocityMLP(2, **network)

    @staticmethod
    def loss(net):
        t = 1 - torch.rand(512) ** 2
        return flow.cfm_loss(net, flow.checkerboard(512), flow.cosine, t=t)

    @staticmethod
    def judge(net, points, noise):
        times = flow.towards_one(36)
        log_p = flow.log_likelihood(net, points, times)
        return log_p, flow.integrate(net, noise, times, "rk4")


class NVP:
    """Real NVP by maximum likelihood."""

    def __init__(self, frequencies):
        self.network = lambda: RealNVP(frequencies)

    @staticmethod
    def loss(net):
        return -net.log_prob(flow.checkerboard(512)).mean()

    @staticmethod
    def judge(net, points, noise):
        return net.log_prob(points), net(noise)


class TorchCFM:
    """torchcfm's matchers, with the network of its tutorial or another that takes (x, t)."""

    def __init__(self, matcher, network=None):
        self.matcher = matcher
        self.network = network or Tutorial

    def loss(self, net):
        t, x, u = self.matcher.sample_location_and_conditional_flow(
            torch.randn(256, 2), flow.checkerboard(256)
        )
        return ((net(x, t) - u) ** 2).mean()

    judge = staticmethod(Chapter.judge)


class Tutorial(nn.Module):
    """The network of torchcfm's tutorial, called as the chapter calls its own."""

    def __init__(self):
        super().__init__()
        self.net = MLP(dim=2, time_varying=True)

    def forward(self, x, t):
        return self.net(torch.cat([x, t[:, None]], 1))


OURS = "mlbook"
CONTESTANTS = {
    OURS: Chapter(),
    "mlbook, no Fourier features": Chapter(frequencies=()),
    "real NVP": NVP((0.25, 0.5, 1.0, 2.0)),
    "real NVP, no Fourier features": NVP(()),
    "torchcfm, our network": TorchCFM(
        ConditionalFlowMatcher(sigma=0.0), lambda: flow.VelocityMLP(2)
    ),
    "torchcfm, its network": TorchCFM(ConditionalFlowMatcher(sigma=0.0)),
    "torchcfm, its network, optimal transport": TorchCFM(
        ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
    ),
    "torchcfm's tutorial (sigma 0.1)": TorchCFM(ConditionalFlowMatcher(sigma=0.1)),
}


def blurred_limit(sigma: float = 0.1, n: int = 200_000) -> float:
    """What a perfect model of the board blurred by `sigma` has for NLL on the board itself, in nats, by Monte Carlo.

    The board plus noise is the path's x_t / alpha at the noise level r = sigma, so its density has a closed form.
    """
    t = 1 / (1 + sigma)
    z = flow.checkerboard(n, torch.Generator().manual_seed(0)).double()
    density = flow.checkerboard_density(t * z, t, flow.linear) * t**2
    return -density.log().mean().item()


def step_seconds(rounds: int = 5, steps: int = 60) -> dict[str, float]:
    """How long a step of each contestant takes: the least of several timings, taken in turn."""
    times = {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        for name, one in CONTESTANTS.items():
            net = one.network()
            start = time.perf_counter()
            fit(net, one.loss, steps)
            times[name].append((time.perf_counter() - start) / steps)
    return {name: min(all_) for name, all_ in times.items()}


def run(job: tuple[str, int, float, int]) -> dict:
    """One training of a contestant (name, seed, learning rate, steps), and how it was judged."""
    name, seed, rate, steps = job
    torch.set_num_threads(1)
    one = CONTESTANTS[name]
    mlbook.seed(seed)
    row = {"what": name, "seed": seed, "lr": rate, "steps": steps}
    try:
        net, _, row["seconds"] = fit(one.network(), one.loss, steps, lr=rate)
    except FloatingPointError:  # too high a learning rate
        return row | {"nll_nats": math.inf}
    mlbook.seed(10_000)
    points, noise = flow.checkerboard(POINTS[0]), torch.randn(POINTS[1], 2)
    with torch.no_grad():
        log_p, samples = one.judge(net, points, noise)
    return row | {
        "nll_nats": -log_p.mean().item(),
        "nll_standard_error": (log_p.std() / len(log_p) ** 0.5).item(),
        "share_on_board": flow.on_checkerboard(samples).double().mean().item(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--steps", type=int, default=STEPS, help="of the chapter's recipe"
    )
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "flow-checkerboard-cpu.json"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    cost = step_seconds()
    budget = options.steps * cost[OURS]
    steps = {name: max(1, round(budget / cost[name])) for name in CONTESTANTS}
    record = provenance("torchcfm") | {
        "limit_nats": math.log(8),
        "blurred_limit_nats": blurred_limit(),
        "budget_seconds": budget,
        "step_seconds": cost,
        "rates_tried": RATES,
        "tuning": {},
        "rows": [],
    }
    with get_context("fork").Pool(options.jobs) as pool:
        tuning = [
            (n, seed, rate, steps[n])
            for n in CONTESTANTS
            for rate in RATES
            for seed in TUNING_SEEDS
        ]
        best = {}  # name → the learning rate with the least mean NLL
        for row in pool.imap(run, tuning):
            tried = record["tuning"].setdefault(row["what"], {})
            tried.setdefault(row["lr"], []).append(row["nll_nats"])
            best[row["what"]] = min(tried, key=lambda lr: statistics.mean(tried[lr]))
            print("tuning", row, flush=True)
        for row in pool.imap(
            run, [(n, seed, best[n], steps[n]) for n in CONTESTANTS for seed in SEEDS]
        ):
            record["rows"].append(row)
            print(row, flush=True)
            write(options.out, record)  # each time: a run cut short keeps its rows
    print(options.out)


if __name__ == "__main__":
    main()
