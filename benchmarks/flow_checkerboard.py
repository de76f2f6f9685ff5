"""The chessboard: the chapter's recipe against torchcfm's example network, same wall time, same judge.

    .venv/bin/python benchmarks/flow_checkerboard.py

torchcfm's example (its Flow_matching_tutorial notebook): an MLP of three hidden layers of 64 SELU units, Adam at 1e-3,
batch 256, sigma 0.1. It is also run with sigma 0 and with optimal transport, which are its other tutorials' choices,
so that the comparison is with the best of them. Writes results/flow-checkerboard-cpu.json.
"""

import math
import time

import torch
from provenance import RESULTS, provenance, write
from torchcfm.conditional_flow_matching import (
    ConditionalFlowMatcher,
    ExactOptimalTransportConditionalFlowMatcher,
)
from torchcfm.models.models import MLP

import mlbook
from mlbook.common.training import fit
from mlbook.flow_matching import flow

SEEDS = (0, 1)
STEPS = 7_500


def ours(seed):
    """The chapter's recipe. Returns the velocity and the seconds of training."""
    mlbook.seed(seed)

    def loss(model):
        t = 1 - torch.rand(512) ** 2
        return flow.cfm_loss(model, flow.checkerboard(512), flow.linear, t=t)

    model, _, seconds = fit(flow.VelocityMLP(2), loss, STEPS, lr=6e-3)
    return model, seconds, STEPS


def theirs(seed, matcher, budget):
    """torchcfm's example, trained for `budget` seconds."""
    mlbook.seed(seed)
    model = MLP(dim=2, time_varying=True)
    optimizer = torch.optim.Adam(model.parameters())
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < budget:
        optimizer.zero_grad()
        t, x, u = matcher.sample_location_and_conditional_flow(
            torch.randn(256, 2), flow.checkerboard(256)
        )
        loss = ((model(torch.cat([x, t[:, None]], -1)) - u) ** 2).mean()
        loss.backward()
        optimizer.step()
        steps += 1
    model.requires_grad_(False)
    return (
        (lambda x, t: model(torch.cat([x, t[:, None]], 1))),
        time.perf_counter() - start,
        steps,
    )


def judge(velocity, seed):
    mlbook.seed(1_000 + seed)
    times = flow.towards_one(40)
    log_p = flow.log_likelihood(velocity, flow.checkerboard(2_500), times)
    samples = flow.integrate(velocity, torch.randn(20_000, 2), times, "rk4")
    return {
        "nll_nats": -log_p.mean().item(),
        "nll_standard_error": (log_p.std() / len(log_p) ** 0.5).item(),
        "share_on_board": flow.on_checkerboard(samples).double().mean().item(),
    }


BASELINES = {
    "torchcfm example, sigma 0.1": ConditionalFlowMatcher(sigma=0.1),
    "torchcfm example, sigma 0": ConditionalFlowMatcher(sigma=0.0),
    "torchcfm example, optimal transport, sigma 0": ExactOptimalTransportConditionalFlowMatcher(
        sigma=0.0
    ),
}


def main():
    path = RESULTS / "flow-checkerboard-cpu.json"
    record = provenance("torchcfm") | {"limit_nats": math.log(8), "rows": []}

    def keep(what, seed, velocity, seconds, steps):
        row = {"what": what, "seed": seed, "seconds": seconds, "steps": steps}
        record["rows"].append(row | judge(velocity, seed))
        print(record["rows"][-1], flush=True)
        write(path, record)  # each time: a run cut short keeps its rows

    for seed in SEEDS:
        velocity, budget, steps = ours(seed)
        keep("mlbook", seed, velocity, budget, steps)
        for what, matcher in BASELINES.items():
            keep(what, seed, *theirs(seed, matcher, budget))
    print(path)


if __name__ == "__main__":
    main()
