"""The chapter's longer experiments: the continuity equation on a grid, and short trainings that differ in one thing."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mlbook.common.training import fit
from mlbook.flow_matching.paths import cfm_loss, cosine, linear

UNITS = {  # a path, and its clock: the time at which β / α is the noise level r
    "linear": (linear, lambda r: 1 / (1 + r)),
    "cosine": (cosine, lambda r: 2 / math.pi * torch.atan(1 / r)),
}
PRACTICE = {  # noise levels from a uniform number
    "as linear": lambda s: (1 - s) / s,
    "as cosine": lambda s: 1 / torch.tan(math.pi / 2 * s),
    "late": lambda s: torch.tan(math.pi / 2 * s**2),  # t = 1 − s² on the cosine path
}
# What makes the loss of every pair of units and practice the same whatever the practice, ∫ e(r) / r² dr in linear units
# and π/2 times that in cosine ones, e(r) being the squared error of the clean point. "late" is left as it is.
WEIGHTS = {
    ("linear", "as cosine"): lambda r: math.pi / 2 * (1 + r**2) / (1 + r) ** 2,
    ("cosine", "as linear"): lambda r: 2 / math.pi * (1 + r) ** 2 / (1 + r**2),
}


def both_sides(
    density: Callable[[Tensor, float], Tensor],
    velocity: Callable[[Tensor, float], Tensor],
    t: float,
    h: float,
) -> tuple[Tensor, Tensor]:
    """∂p/∂t and −div(p u) at 101 × 101 points of [−2.5, 2.5]², by central differences of spacing h, (101²,) each."""
    x = torch.cartesian_prod(*[torch.linspace(-2.5, 2.5, 101, dtype=torch.float64)] * 2)
    change = (density(x, t + h) - density(x, t - h)) / (2 * h)
    div = torch.zeros_like(change)
    for i, e in enumerate(h * torch.eye(2, dtype=torch.float64)):
        flux = [density(y, t) * velocity(y, t)[:, i] for y in (x + e, x - e)]
        div += (flux[0] - flux[1]) / (2 * h)
    return change, -div


def train_in_units(
    net: nn.Module, data: Tensor, units: str, practice: str, steps: int, seed: int
) -> nn.Module:
    """Train `net` on the path named `units`, drawing noise levels as `practice` says, with errors weighted so that the
    loss is the same whatever the practice ("late" apart).

    Draws come from a generator of its own, so that several may train side by side.
    """
    path, time_of = UNITS[units]
    draw = _dice(data, seed)

    def loss(net: nn.Module) -> Tensor:
        r = PRACTICE[practice](torch.rand(256, **draw).clamp(1e-6, 1 - 1e-6))
        z = data[torch.randint(len(data), (256,), **draw)]
        x, v = path.sample(z, torch.randn(z.shape, **draw), t := time_of(r))
        weight = WEIGHTS.get((units, practice), torch.ones_like)(r)
        return (weight * ((net(x, t) - v) ** 2).mean(1)).mean()

    return fit(net, loss, steps, 6e-3, average=0.998)[0]


def train_straight(
    net: nn.Module, data: Tensor, coupling: str, steps: int, seed: int
) -> nn.Module:
    """Train `net` on straight lines to `data`, with noise coupled as `cfm_loss` does."""
    draw = _dice(data, seed)

    def loss(net: nn.Module) -> Tensor:
        z = data[torch.randint(len(data), (256,), **draw)]
        return cfm_loss(net, z, linear, coupling, generator=draw["generator"])

    return fit(net, loss, steps, 6e-3)[0]


def reflow(
    net: nn.Module, begin: Tensor, end: Tensor, steps: int, seed: int
) -> nn.Module:
    """Train `net` on the straight lines between starts and ends of a flow (Liu et al. 2023)."""
    draw = _dice(begin, seed)

    def loss(net: nn.Module) -> Tensor:
        rows = torch.randint(len(begin), (256,), **draw)
        x, v = linear.sample(end[rows], begin[rows], t := torch.rand(256, **draw))
        return ((net(x, t) - v) ** 2).mean()

    return fit(net, loss, steps, 6e-3)[0]


def _dice(like: Tensor, seed: int) -> dict:
    generator = torch.Generator(like.device).manual_seed(seed)
    return {"generator": generator, "device": like.device}
