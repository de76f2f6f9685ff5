"""Following a velocity: fixed-step solvers, the same samples with noise added on the way, and the likelihood."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from mlbook.common.checks import check_count
from mlbook.flow_matching.borders import check_output, check_points, check_start
from mlbook.flow_matching.paths import GaussianPath, Velocity


def euler(f: Velocity, x: Tensor, t: float, h: float) -> Tensor:
    return x + h * f(x, t)


def midpoint(f: Velocity, x: Tensor, t: float, h: float) -> Tensor:
    return x + h * f(x + h / 2 * f(x, t), t + h / 2)


def rk4(f: Velocity, x: Tensor, t: float, h: float) -> Tensor:
    k1 = f(x, t)
    k2 = f(x + h / 2 * k1, t + h / 2)
    k3 = f(x + h / 2 * k2, t + h / 2)
    k4 = f(x + h * k3, t + h)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


SOLVERS = {"euler": euler, "midpoint": midpoint, "rk4": rk4}
EVALUATIONS = {"euler": 1, "midpoint": 2, "rk4": 4}  # of the velocity, a step


def integrate(
    velocity: Velocity,
    x0: Tensor,
    steps: int | Tensor | Sequence[float],
    method: str = "euler",
    trajectory: bool = False,
) -> Tensor:
    """Solve dx/dt = velocity(x, t) from t = 0 to t = 1 by a fixed-step method.

    Args:
        velocity: takes points (batch, …), which it must not change in place, and times (batch,); returns the points'
            shape.
        x0: starting points, (batch, …), float32 or float64.
        steps: how many equal steps; or the times themselves, monotonic within [0, 1]; they may run backwards.
        method: "euler", "midpoint" or "rk4" (1, 2, 4 evaluations a step).
        trajectory: return the points at every time, (times, batch, …), rather than at the last.
    Raises:
        ValueError: the method is unknown, the times are not monotonic or outside [0, 1], x0 is not finite, or the
            velocity returns another shape.
        FloatingPointError: the solution is not finite at the end.
    """
    check_start(x0)
    if method not in SOLVERS:
        raise ValueError(f"method must be one of {', '.join(SOLVERS)}, got {method!r}")

    def f(x: Tensor, t: float) -> Tensor:
        return check_output(velocity(x, x.new_full(x.shape[:1], t)), x)

    points, x = [x0], x0
    for t, after in pairwise(_times(steps)):
        x = SOLVERS[method](f, x, t, after - t)
        if trajectory:
            points.append(x)
    return _finished(torch.stack(points) if trajectory else x)


def towards_one(steps: int, power: float = 2.0) -> Tensor:
    """Times from 0 to 1 that crowd towards 1, where data has its fine detail: 1 − (1 − i/steps)^power, in float64.

    Raises:
        ValueError: steps is no count, the power is not positive and finite, or both are so large that times merge.
    """
    steps = check_count("steps", steps)
    if not 0 < power < math.inf:
        raise ValueError(f"power must be positive and finite, got {power}")
    times = 1 - (1 - torch.linspace(0, 1, steps + 1, dtype=torch.float64)) ** power
    if not (times.diff() > 0).all():
        raise ValueError(f"{steps} steps to the power {power} merge: take fewer")
    return times


def straightness(trajectory: Tensor) -> Tensor:
    """How far paths are from straight lines at constant speed: E∫‖(x_1 − x_0) − dx/dt‖² dt (Liu et al. 2023), summed
    over coordinates (code that averages them differs by the factor dim).

    Args:
        trajectory: (times, batch, …) at equally spaced times, two at least.
    Returns:
        a scalar, zero exactly where every path is straight and even.
    """
    check_points(trajectory=trajectory)
    if trajectory.ndim < 2 or len(trajectory) < 2 or trajectory.numel() == 0:
        raise ValueError(
            f"a trajectory must be (times, batch, …) with two times at least, got {tuple(trajectory.shape)}"
        )
    speed = (trajectory[1:] - trajectory[:-1]) * (len(trajectory) - 1)
    gap = trajectory[-1] - trajectory[0] - speed
    return (gap**2).reshape(*gap.shape[:2], -1).sum(-1).mean()


def integrate_noisily(
    velocity: Velocity,
    path: GaussianPath,
    x0: Tensor,
    steps: int | Tensor | Sequence[float],
    noise: float = 1.0,
) -> Tensor:
    """Sample by a stochastic equation that has the same densities p_t as the flow, by Euler–Maruyama steps.

    dX = (u + (σ²/2) ∇log p_t) dt + σ dW with σ² = 2 · noise · beta(t), so that the drift stays finite:
    (σ²/2) ∇log p_t = −noise · E[eps | x] (Song et al. 2021; Albergo et al. 2023).

    Args:
        velocity, x0, steps: as `integrate`, and times must rise.
        path: the one that the velocity belongs to.
        noise: how much; 0 is Euler's method.
    Returns:
        the trajectory, (times, batch, …).
    Raises:
        ValueError, FloatingPointError: as `integrate`; or noise is negative.
    """
    check_start(x0)
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise must be at least 0 and finite, got {noise}")
    times = _times(steps)
    if times[0] > times[-1]:
        raise ValueError(
            f"times must rise from noise to data, got {times[0]} to {times[-1]}"
        )
    points = [x0]
    for t, after in pairwise(times):
        x, h = points[-1], after - t
        now = x.new_full(x.shape[:1], t)
        u = check_output(velocity(x, now), x)
        _, eps = path.posterior_means(x, u, now)
        spread = (2 * noise * path.coefficients(now, x)[1] * h).sqrt()
        points.append(x + h * (u - noise * eps) + spread * torch.randn_like(x))
    return _finished(torch.stack(points))


def with_divergence(velocity: Velocity, probes: Tensor) -> Velocity:
    """The velocity of (x, ∫ div v dt), (batch, dim + 1): the divergence rides along as one more coordinate.

    It is Σ⟨ξ, J ξ⟩ over the probes ξ, with J the Jacobian: exact with one probe for each coordinate's direction, right on
    average with one of random signs.

    Args:
        velocity: differentiable by forward mode, each row by itself.
        probes: (probes, batch, dim).
    """

    def augmented(state: Tensor, t: Tensor) -> Tensor:
        x = state[:, :-1]

        def along(probe: Tensor) -> tuple[Tensor, Tensor]:
            return torch.func.jvp(lambda x: velocity(x, t), (x,), (probe,))

        v, jv = torch.func.vmap(along, out_dims=(None, 0))(probes)
        div = (probes * jv).sum((0, 2))
        return torch.cat([check_output(v, x), div[:, None]], 1)

    return augmented


def log_likelihood(
    velocity: Velocity,
    x: Tensor,
    steps: int | Tensor | Sequence[float],
    divergence: str = "exact",
    method: str = "rk4",
) -> Tensor:
    """log p_1(x) in nats, by the instantaneous change of variables (Chen et al. 2018, theorem 1).

    The ODE is solved from the data back to the noise, and the divergence of the velocity is summed along the way:
    log p_1(x_1) = log N(x_0; 0, I) − ∫ div v dt. No gradient is kept.

    Args:
        velocity: differentiable by forward mode, each row by itself; what it computes under `torch.no_grad()` counts as constant.
        x: data points, (batch, dim).
        steps, method: as `integrate`; times that are given must run from 0 to 1.
        divergence: "exact" (dim directional derivatives an evaluation) or "hutchinson" (one, along random signs
            drawn once a call; unbiased; Grathwohl et al. 2019).
    Returns:
        (batch,).
    Raises:
        ValueError: as `integrate`; an unknown divergence, x not (batch, dim), or times that do not run from 0 to 1.
    """
    check_points(x=x)
    if x.ndim != 2:
        raise ValueError(f"x must be (batch, dim), got {tuple(x.shape)}")
    times = _times(steps)
    if times[0] != 0 or times[-1] != 1:
        raise ValueError(
            f"times of a likelihood must run from 0 to 1, got {times[0]} to {times[-1]}"
        )
    if divergence == "exact":
        units = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        probes = units[:, None].expand(-1, *x.shape)
    elif divergence == "hutchinson":
        probes = torch.randint_like(x, 2)[None] * 2 - 1
    else:
        raise ValueError(
            f"divergence must be 'exact' or 'hutchinson', got {divergence!r}"
        )

    start = torch.cat([x, torch.zeros_like(x[:, :1])], 1)
    with torch.no_grad():
        end = integrate(with_divergence(velocity, probes), start, times[::-1], method)
    return standard_normal_log_density(end[:, :-1]) + end[:, -1]


def standard_normal_log_density(x: Tensor) -> Tensor:
    """log N(x; 0, I) for x (batch, dim), in nats, (batch,)."""
    check_points(dims=x.shape[-1] if x.ndim else 1, x=x)
    return -0.5 * (x**2).sum(1) - 0.5 * x.shape[1] * math.log(2 * math.pi)


def _finished(x: Tensor) -> Tensor:
    if not torch.isfinite(x).all():
        raise FloatingPointError(
            "the solution is not finite at the end: take more steps"
        )
    return x


def _times(steps: int | Tensor | Sequence[float]) -> list[float]:
    """The times of a solution, as Python's floats: float32 would merge those that crowd towards 1."""
    if isinstance(steps, str) or not hasattr(steps, "__len__"):
        n = check_count("steps", steps)
        return torch.linspace(0, 1, n + 1, dtype=torch.float64).tolist()
    times = torch.as_tensor(steps, dtype=torch.float64)
    one_row = times.ndim == 1 and len(times) > 1
    if not one_row or not ((times.diff() > 0).all() or (times.diff() < 0).all()):
        raise ValueError(
            f"times must be one row that only rises or only falls, got {steps}"
        )
    if times.min() < 0 or times.max() > 1:
        raise ValueError(
            f"times must lie in [0, 1], got {times.min().item()} to {times.max().item()}"
        )
    return times.tolist()
