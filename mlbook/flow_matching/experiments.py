"""The chapter's longer experiments: the continuity equation on a grid, and short trainings that differ in one thing."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mlbook.common.training import Ensemble, fit
from mlbook.flow_matching.paths import cosine, linear, optimal_coupling

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

# Two paths, two practices of the same loss, and a third that cares for other levels: (practice, units)
SETTINGS = [
    ("as linear", "linear"),
    ("as linear", "cosine"),
    ("as cosine", "linear"),
    ("as cosine", "cosine"),
    ("late", "cosine"),
]


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
    nets: Sequence[nn.Module],
    settings: Sequence[tuple[int, str, str]],
    data: Tensor,
    steps: int,
) -> Ensemble:
    """Train every network in its setting (seed, practice, units): on the path named by the units, drawing noise levels as
    the practice says, with errors weighted so that the loss is the same whatever the practice ("late" apart).

    Networks of one seed see the same data, noise and uniform numbers: they differ in their setting alone.
    """
    seeds = sorted({seed for seed, _, _ in settings})
    draw = _dice(data, seeds[0])

    def examples() -> tuple[Tensor, ...]:
        shape = len(seeds), 256
        s = torch.rand(shape, **draw).clamp(1e-6, 1 - 1e-6)
        z = data[torch.randint(len(data), shape, **draw)]
        eps = torch.randn(z.shape, **draw)
        rows = []
        for seed, practice, units in settings:
            i, (path, time_of) = seeds.index(seed), UNITS[units]
            r = PRACTICE[practice](s[i])
            x, v = path.sample(z[i], eps[i], t := time_of(r))
            weight = WEIGHTS.get((units, practice), torch.ones_like)(r)
            rows.append((x, t, v, weight))
        return tuple(torch.cat(column) for column in zip(*rows, strict=True))

    return _train(nets, examples, steps, average=0.998)


def effects(nlls: Tensor) -> tuple[Tensor, Tensor]:
    """What cosine units gain over linear ones, averaged over two practices, and what practising as cosine gains over
    practising as linear, averaged over the units: (seeds,) each, of a loss (seeds, settings)."""
    plain, units, practice, both, _ = nlls.T
    return (plain - units + practice - both) / 2, (plain - practice + units - both) / 2


def train_straight(
    nets: Sequence[nn.Module],
    transported: Sequence[bool],
    data: Tensor,
    steps: int,
    seed: int,
    batch: int = 128,
) -> Ensemble:
    """Train networks on straight lines to `data` from noise that is independent of it or, where `transported` says so of
    a network, paired with it by optimal transport within its batch."""
    draw = _dice(data, seed)

    def examples() -> tuple[Tensor, ...]:
        z = data[torch.randint(len(data), (len(nets) * batch,), **draw)]
        eps = torch.randn(z.shape, **draw)
        for pair, e, d in zip(
            transported, eps.split(batch), z.split(batch), strict=True
        ):
            if pair:
                e.copy_(e[optimal_coupling(e, d)])
        return _lines(eps, z, draw)

    return _train(nets, examples, steps)


def reflow(
    nets: Sequence[nn.Module],
    begin: Tensor,
    ends: Sequence[Tensor],
    steps: int,
    seed: int,
    batch: int = 128,
) -> Ensemble:
    """Train each network on the straight lines from `begin` to the ends of a flow of its own (Liu et al. 2023).

    Args:
        begin: where all flows start, (n, dim).
        ends: one tensor (n, dim) for each network.
    """
    draw = _dice(begin, seed)

    def examples() -> tuple[Tensor, ...]:
        rows = [torch.randint(len(begin), (batch,), **draw) for _ in nets]
        z = [end[row] for end, row in zip(ends, rows, strict=True)]
        return _lines(begin[torch.cat(rows)], torch.cat(z), draw)

    return _train(nets, examples, steps)


def _lines(eps: Tensor, z: Tensor, draw: dict) -> tuple[Tensor, ...]:
    x, v = linear.sample(z, eps, t := torch.rand(len(z), **draw))
    return x, t, v, torch.ones_like(t)


def _train(
    nets: Sequence[nn.Module],
    examples: Callable[[], tuple[Tensor, ...]],
    steps: int,
    **settings,
) -> Ensemble:
    """Fit every network to its part of the examples: points, times, targets and weights."""

    def loss(ensemble: Ensemble) -> Tensor:
        x, t, v, weight = examples()
        errors = weight * ((ensemble(x, t) - v) ** 2).mean(1)
        return errors.unflatten(0, (len(nets), -1)).mean(1).sum()

    return fit(Ensemble(nets), loss, steps, 6e-3, **settings)[0]


def _dice(like: Tensor, seed: int) -> dict:
    generator = torch.Generator(like.device).manual_seed(seed)
    return {"generator": generator, "device": like.device}
