"""The chessboard: the chapter's recipe against real NVP and torchcfm's example network, same wall time, same judge.

    PYTHONPATH=. python benchmarks/flow_checkerboard.py

Everyone trains with `mlbook.common.training.fit` (a rising and falling learning rate, averaged weights) on batches of its
own size, for as many steps as the chapter's recipe takes seconds; how long a step takes is measured first, in turn, so
that a busy second falls on all. Each takes the best of four learning rates, chosen on one seed and judged on others.
torchcfm's example (its Flow_matching_tutorial notebook): an MLP of three hidden layers of 64 SELU units, batch 256, sigma
0.1; and with sigma 0 and optimal transport, its other tutorials' choice. Writes results/flow-checkerboard-cpu.json.
"""

import argparse
import math
import time
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

RATES = (1e-3, 2e-3, 4e-3, 8e-3)
TUNING_SEED, SEEDS = 100, (0, 1, 2)
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

    network = staticmethod(lambda: flow.VelocityMLP(2))

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
    """torchcfm's example network and matcher."""

    network = staticmethod(lambda: MLP(dim=2, time_varying=True))

    def __init__(self, matcher):
        self.matcher = matcher

    def loss(self, net):
        t, x, u = self.matcher.sample_location_and_conditional_flow(
            torch.randn(256, 2), flow.checkerboard(256)
        )
        return ((net(torch.cat([x, t[:, None]], 1)) - u) ** 2).mean()

    @staticmethod
    def judge(net, points, noise):
        velocity = lambda x, t: net(torch.cat([x, t[:, None]], 1))  # noqa: E731
        return Chapter.judge(velocity, points, noise)


CONTESTANTS = {
    "mlbook": Chapter,
    "real NVP": NVP((0.25, 0.5, 1.0, 2.0)),
    "real NVP, no Fourier features": NVP(()),
    "torchcfm's example": TorchCFM(ConditionalFlowMatcher(sigma=0.1)),
    "torchcfm's example, optimal transport": TorchCFM(
        ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
    ),
}


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


def run(name: str, seed: int, rate: float, steps: int) -> tuple[float, float, float]:
    """NLL, its standard error, and the share of samples on the board, after one training."""
    one = CONTESTANTS[name]
    mlbook.seed(seed)
    net, _, _ = fit(one.network(), one.loss, steps, lr=rate)
    mlbook.seed(10_000)
    points, noise = flow.checkerboard(POINTS[0]), torch.randn(POINTS[1], 2)
    with torch.no_grad():
        log_p, samples = one.judge(net, points, noise)
    on_board = flow.on_checkerboard(samples).double().mean().item()
    return -log_p.mean().item(), (log_p.std() / len(log_p) ** 0.5).item(), on_board


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--steps", type=int, default=STEPS, help="of the chapter's recipe"
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "flow-checkerboard-cpu.json"
    )
    options = parser.parse_args()
    cost = step_seconds()
    budget = options.steps * cost["mlbook"]
    record = provenance("torchcfm") | {
        "limit_nats": math.log(8),
        "budget_seconds": budget,
        "step_seconds": cost,
        "rates_tried": RATES,
        "rows": [],
    }
    for name in CONTESTANTS:
        steps = max(1, round(budget / cost[name]))
        rates = {rate: run(name, TUNING_SEED, rate, steps)[0] for rate in RATES}
        best = min(
            rates,
            key=lambda rate: rates[rate] if rates[rate] == rates[rate] else math.inf,
        )
        print(name, f"{steps} steps, tuning", rates, flush=True)
        for seed in SEEDS:
            nll, error, on_board = run(name, seed, best, steps)
            row = {"what": name, "seed": seed, "lr": best, "steps": steps}
            row |= {
                "nll_nats": nll,
                "nll_standard_error": error,
                "share_on_board": on_board,
            }
            record["rows"].append(row)
            print(row, flush=True)
            write(options.out, record)  # each time: a run cut short keeps its rows
    print(options.out)


if __name__ == "__main__":
    main()
