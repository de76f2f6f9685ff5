"""The chessboard: eight unit squares of a 4 × 4 board on [−2, 2]², each as likely. Its entropy is log 8 nats.

Along a Gaussian path its density and its marginal velocity have closed forms, made of normal integrals over the squares.
"""

import math

import torch
from torch import Tensor

from mlbook.common.checks import check_count
from mlbook.flow_matching.borders import check_points, check_times
from mlbook.flow_matching.paths import GaussianPath

EDGES = torch.arange(-2.0, 3.0, dtype=torch.float64)  # of the four columns and rows
DARK = (
    torch.arange(4)[:, None] + torch.arange(4)
) % 2 == 0  # the eight squares, (4, 4)


def checkerboard(n: int, generator: torch.Generator | None = None) -> Tensor:
    """`n` points drawn uniformly from the board's squares, (n, 2).

    Raises:
        ValueError: n is not a whole number, or negative.
    """
    n = check_count("n", n, least=0)
    column = torch.randint(4, (n,), generator=generator)
    row = 2 * torch.randint(2, (n,), generator=generator) + column % 2
    # below 1 by more than float32 rounds away next to 3: else one point in five million leaves its square
    inside = torch.rand(n, 2, generator=generator).clamp(max=1 - 2**-22)
    return torch.stack([column, row], 1) + inside - 2


def on_checkerboard(x: Tensor) -> Tensor:
    """Whether each point of x (batch, 2) lies on a square, (batch,) of bool."""
    check_points(dims=2, x=x)
    square = torch.floor(x) + 2  # x + 2 would round next to an edge
    return ((square >= 0) & (square < 4)).all(1) & (square.sum(1) % 2 == 0)


def square_of(x: Tensor) -> Tensor:
    """The number of the square on which each point of x (batch, 2) lies, 0 to 7, or 8 off the board: (batch,)."""
    column, row = (torch.floor(x) + 2).clamp(0, 3).long().T
    return (2 * column + row // 2).masked_fill(~on_checkerboard(x), 8)


def even_share(x: Tensor) -> float:
    """The share of points (batch, 2) on the board, each square counted up to its eighth: 1 less the total variation
    between the shares of the nine places and those of the data. All points on one square have 1/8."""
    shares = torch.bincount(square_of(x), minlength=9)[:8] / len(x)
    return shares.clamp(max=1 / 8).sum().item()


def checkerboard_density(x: Tensor, t: float, path: GaussianPath) -> Tensor:
    """The marginal density p_t(x) of a Gaussian path to the board, in closed form.

    Args:
        x: points, (batch, 2).
        t: one time, 0 ≤ t < 1.
    Returns:
        (batch,) in float64.
    Raises:
        ValueError: t outside [0, 1), or x not (batch, 2).
    """
    check_points(dims=2, x=x)
    if (isinstance(t, Tensor) and t.ndim) or not 0 <= t < 1:
        raise ValueError(f"t must be one time in [0, 1), got {t}")
    times = torch.full((len(x),), t, dtype=torch.float64, device=x.device)
    return torch.exp(_squares(x.double(), times, path)[0].logsumexp((1, 2)))


def checkerboard_velocity(x: Tensor, t: Tensor, path: GaussianPath) -> Tensor:
    """The exact marginal velocity of a Gaussian path to the board: `path.velocity` at the posterior mean of z.

    The posterior is a mixture: one square with the probability that the density gives it, and in it a normal
    distribution cut off at the square's edges.

    Args:
        x: points, (batch, 2).
        t: times, (batch,), 0 ≤ t < 1.
    Raises:
        ValueError: as `GaussianPath.velocity`.
    """
    check_points(dims=2, x=x)
    check_times(t, x)
    log_density, mean = _squares(x.double(), t.double(), path)
    weight = torch.softmax(log_density.flatten(1), 1).reshape(-1, 4, 4)
    columns, rows = weight.sum(2), weight.sum(1)  # (batch, 4) each
    z = (torch.stack([columns, rows], 1) * mean).sum(-1)
    return path.velocity(x.double(), z, t.double()).to(x.dtype)


def _squares(x: Tensor, t: Tensor, path: GaussianPath) -> tuple[Tensor, Tensor]:
    """log of (1/8) p_t(x | z in the square) for each square, (batch, 4, 4), −∞ for the light ones; and the mean of each
    coordinate of z, given x and its column or row, (batch, 2, 4)."""
    edges, dark = EDGES.to(x.device), DARK.to(x.device)
    a, b, _, _ = path.coefficients(t, x[:, :, None])
    # Given x, a coordinate of z is normal with mean x / a and deviation b / a, cut to [edge, edge + 1]. As a → 0 that is
    # uniform; a floor under a leaves it so and keeps the digits.
    a = a.clamp(min=1e-5)
    lower, upper = (
        (a * edges[:-1] - x[..., None]) / b,
        (a * edges[1:] - x[..., None]) / b,
    )
    flip = lower + upper > 0  # compute in the lower tail, where nothing cancels
    lo, hi = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    log_hi, log_lo = torch.special.log_ndtr(hi), torch.special.log_ndtr(lo)
    log_mass = log_hi + torch.log(-torch.expm1((log_lo - log_hi).clamp(max=-1e-300)))
    log_phi = lambda y: -0.5 * y**2 - 0.5 * math.log(2 * math.pi)  # noqa: E731
    tilt = torch.exp(log_phi(lower) - log_mass) - torch.exp(log_phi(upper) - log_mass)
    mean = (x[..., None] + b * tilt) / a
    mean = torch.minimum(torch.maximum(mean, edges[:-1]), edges[1:])
    one = log_mass - torch.log(
        a
    )  # the density of a coordinate, times its column's width
    both = one[:, 0, :, None] + one[:, 1, None, :] - math.log(8)
    return both.masked_fill(~dark, -math.inf), mean
