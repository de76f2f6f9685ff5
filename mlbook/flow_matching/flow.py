"""Flow matching, from the probability path to the likelihood. The chapter: notebooks/flow-matching.ipynb.

Conventions: time runs from noise (t = 0) to data (t = 1); points are (batch, …); times are (batch,); a velocity,
learned or exact, is any function `velocity(x, t)` that returns the shape of `x`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

Velocity = Callable[[Tensor, Tensor], Tensor]


# Probability paths


@dataclass(frozen=True)
class GaussianPath:
    """The conditional path p_t(x | z) = N(alpha(t) z, beta(t)² I) (Lipman et al. 2023, eq. 10).

    Args:
        alpha, beta: differentiable functions of a tensor of times, with alpha(0) = beta(1) = 0 and
            alpha(1) = beta(0) = 1. Their derivatives are taken by forward-mode differentiation.
    """

    alpha: Callable[[Tensor], Tensor]
    beta: Callable[[Tensor], Tensor]

    def coefficients(
        self, t: Tensor, like: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha, beta and their time derivatives at `t` (batch,), shaped to multiply `like` (batch, …)."""
        t = t.contiguous()  # forward mode cannot write to an expanded tensor
        one = torch.ones_like(t)
        (a, da), (b, db) = (
            torch.func.jvp(f, (t,), (one,)) for f in (self.alpha, self.beta)
        )
        return tuple(c.reshape(-1, *[1] * (like.ndim - 1)) for c in (a, b, da, db))

    def sample(self, z: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The point x_t = alpha z + beta eps and its velocity d x_t / dt, the target of the conditional loss.

        Args:
            z: data, (batch, …).
            eps: standard normal noise of the same shape.
            t: times in [0, 1], (batch,).
        Raises:
            ValueError: shapes or dtypes differ, a value is not finite, or a time lies outside [0, 1].
        """
        _check_points(z=z, eps=eps)
        _check_times(t, z)
        a, b, da, db = self.coefficients(t, z)
        return a * z + b * eps, da * z + db * eps

    def velocity(self, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """The conditional velocity u_t(x | z): that of `sample`, at the noise that leads from `z` to `x`.

        Shapes and errors are those of `sample`; and ValueError where beta(t) = 0, where every path has arrived.
        """
        _check_points(x=x, z=z)
        _check_times(t, z)
        a, b, da, db = self.coefficients(t, z)
        _check_open(b, t)
        return da * z + db * (x - a * z) / b


linear = GaussianPath(alpha=lambda t: t, beta=lambda t: 1 - t)
cosine = GaussianPath(
    alpha=lambda t: torch.sin(math.pi / 2 * t),
    beta=lambda t: torch.cos(math.pi / 2 * t),
)


def _log_alpha_vp(t: Tensor, low: float = 0.1, high: float = 20.0) -> Tensor:
    s = 1 - t
    return -0.5 * (s * low + 0.5 * s**2 * (high - low))


# The diffusion of Song et al. 2021 run backwards. alpha(0) = 0.0066, not 0: a diffusion only nearly reaches its noise.
variance_preserving = GaussianPath(
    alpha=lambda t: torch.exp(_log_alpha_vp(t)),
    beta=lambda t: torch.sqrt(-torch.expm1(2 * _log_alpha_vp(t))),
)


def marginal_velocity(x: Tensor, t: Tensor, data: Tensor, path: GaussianPath) -> Tensor:
    """The exact marginal velocity when the data distribution is a finite set: the posterior average of `path.velocity`.

    Because the conditional velocity is affine in z, averaging it is evaluating it at the posterior mean of z.

    Args:
        x: points, (batch, dim).
        t: times in [0, 1], (batch,).
        data: the set, (n, dim), each point equally likely.
    Raises:
        ValueError: as `GaussianPath.velocity`.
    """
    _check_points(x=x, data=data, shapes=False)
    if x.ndim != 2 or data.ndim != 2 or x.shape[1] != data.shape[1] or len(data) == 0:
        raise ValueError(
            f"x and data must be (batch, dim) and (n, dim), got {tuple(x.shape)} and {tuple(data.shape)}"
        )
    _check_times(t, x)
    a, b, _, _ = path.coefficients(t, x)
    _check_open(b, t)
    squares = ((x[:, None] - a[:, None] * data) ** 2).sum(-1)  # (batch, n)
    # Relative to the nearest point, and divided twice: b² may underflow as t → 1 where these do not
    logits = -(squares - squares.min(1, keepdim=True).values) / b / b / 2
    return path.velocity(x, torch.softmax(logits, 1) @ data, t)


# The loss


def cfm_loss(
    model: Velocity,
    z: Tensor,
    path: GaussianPath,
    coupling: str = "independent",
    t: Tensor | None = None,
) -> Tensor:
    """The conditional flow matching loss E‖model(x_t, t) − d x_t / dt‖² (Lipman et al. 2023, eq. 9), one draw per row.

    Args:
        model: the velocity being learned.
        z: a batch of data, (batch, …).
        coupling: "independent" pairs data and noise at random; "optimal_transport" pairs them within the batch so that
            the total squared distance is least (Tong et al. 2024; Pooladian et al. 2023).
        t: times (batch,); uniform on [0, 1] where not given. Another distribution reweights the loss over time
            and leaves its minimiser where it was.
    Returns:
        a scalar, averaged over batch and coordinates.
    Raises:
        ValueError: as `GaussianPath.sample`; or an unknown coupling.
    """
    eps = torch.randn_like(z)
    if coupling == "optimal_transport":
        eps = eps[optimal_coupling(eps, z)]
    elif coupling != "independent":
        raise ValueError(
            f"coupling must be 'independent' or 'optimal_transport', got {coupling!r}"
        )
    t = torch.rand(len(z), dtype=z.dtype, device=z.device) if t is None else t
    x, target = path.sample(z, eps, t)
    return ((model(x, t) - target) ** 2).mean()


def optimal_coupling(eps: Tensor, z: Tensor) -> Tensor:
    """The permutation p for which Σ‖eps[p[i]] − z[i]‖² is least: an assignment problem, O(batch³), solved by SciPy.

    Args:
        eps, z: (batch, …) each.
    Returns:
        indices, (batch,).
    """
    from scipy.optimize import linear_sum_assignment

    _check_points(eps=eps, z=z)
    cost = torch.cdist(z.flatten(1), eps.flatten(1)) ** 2
    return torch.as_tensor(
        linear_sum_assignment(cost.detach().cpu().numpy())[1], device=z.device
    )


# Solving the ODE


def _euler(f: Velocity, x: Tensor, t: Tensor, h: Tensor) -> Tensor:
    return x + h * f(x, t)


def _midpoint(f: Velocity, x: Tensor, t: Tensor, h: Tensor) -> Tensor:
    return x + h * f(x + h / 2 * f(x, t), t + h / 2)


def _rk4(f: Velocity, x: Tensor, t: Tensor, h: Tensor) -> Tensor:
    k1 = f(x, t)
    k2 = f(x + h / 2 * k1, t + h / 2)
    k3 = f(x + h / 2 * k2, t + h / 2)
    k4 = f(x + h * k3, t + h)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


SOLVERS = {"euler": _euler, "midpoint": _midpoint, "rk4": _rk4}
EVALUATIONS = {"euler": 1, "midpoint": 2, "rk4": 4}  # of the velocity, a step


def integrate(
    velocity: Velocity,
    x0: Tensor,
    steps: int | Tensor,
    method: str = "euler",
    trajectory: bool = False,
) -> Tensor:
    """Solve dx/dt = velocity(x, t) from t = 0 to t = 1 by a fixed-step method.

    Args:
        velocity: as in the module's conventions; it is called with times of shape (batch,).
        x0: starting points, (batch, …).
        steps: how many equal steps; or the times themselves, a monotonic 1-D tensor within [0, 1], which may run
            backwards.
        method: "euler", "midpoint" or "rk4" (1, 2, 4 evaluations a step).
        trajectory: return the points at every time, (times, batch, …), rather than at the last.
    Raises:
        ValueError: the method is unknown, the times are not monotonic or outside [0, 1], or a point is not finite.
    """
    _check_points(x0=x0)
    if method not in SOLVERS:
        raise ValueError(f"method must be one of {', '.join(SOLVERS)}, got {method!r}")
    times = _times(steps, x0)
    points, x = [x0], x0
    for t, after in pairwise(times):
        x = SOLVERS[method](lambda x, t: velocity(x, t.expand(len(x))), x, t, after - t)
        if trajectory:
            points.append(x)
    return torch.stack(points) if trajectory else x


def towards_one(steps: int, power: float = 2.0) -> Tensor:
    """Times from 0 to 1 that crowd towards 1, where data has its fine detail: 1 − (1 − i/steps)^power."""
    return 1 - (1 - torch.linspace(0, 1, steps + 1)) ** power


def straightness(trajectory: Tensor) -> Tensor:
    """How far paths are from straight lines at constant speed: E∫‖(x_1 − x_0) − dx/dt‖² dt (Liu et al. 2023).

    Args:
        trajectory: (times, batch, …) at equally spaced times.
    Returns:
        a scalar, zero exactly where every path is straight and even.
    """
    speed = (trajectory[1:] - trajectory[:-1]) * (len(trajectory) - 1)
    return ((trajectory[-1] - trajectory[0] - speed) ** 2).flatten(2).sum(-1).mean()


# Likelihood


def log_likelihood(
    velocity: Velocity,
    x: Tensor,
    steps: int | Tensor,
    divergence: str = "exact",
    method: str = "rk4",
) -> Tensor:
    """log p_1(x) in nats, by the instantaneous change of variables (Chen et al. 2018, theorem 1).

    The ODE is solved from the data back to the noise, and the divergence of the velocity is summed along the way:
    log p_1(x_1) = log N(x_0; 0, I) − ∫ div v dt.

    Args:
        velocity: differentiable by forward mode.
        x: data points, (batch, dim).
        steps, method: as `integrate`, where given times must run from 0 to 1.
        divergence: "exact" (dim directional derivatives an evaluation) or "hutchinson" (one, along random signs
            drawn once a call; unbiased; Grathwohl et al. 2019).
    Returns:
        (batch,).
    Raises:
        ValueError: as `integrate`; or an unknown divergence, or x not (batch, dim).
    """
    _check_points(x=x)
    if x.ndim != 2:
        raise ValueError(f"x must be (batch, dim), got {tuple(x.shape)}")
    if divergence == "exact":
        probes = [
            e.expand_as(x)
            for e in torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        ]
    elif divergence == "hutchinson":
        probes = [torch.randint_like(x, 2) * 2 - 1]
    else:
        raise ValueError(
            f"divergence must be 'exact' or 'hutchinson', got {divergence!r}"
        )

    def augmented(state: Tensor, t: Tensor) -> Tensor:
        div = 0
        for probe in probes:
            v, jv = torch.func.jvp(lambda x: velocity(x, t), (state[:, :-1],), (probe,))
            div = div + (probe * jv).sum(1, keepdim=True)
        return torch.cat([v, div], 1)

    start = torch.cat([x, torch.zeros_like(x[:, :1])], 1)
    with torch.no_grad():
        end = integrate(augmented, start, _times(steps, x).flip(0), method)
    noise, minus_integral = end[:, :-1], end[:, -1]
    return standard_normal_log_density(noise) + minus_integral


def standard_normal_log_density(x: Tensor) -> Tensor:
    """log N(x; 0, I) for x (batch, dim), in nats, (batch,)."""
    return -0.5 * (x**2).sum(1) - 0.5 * x.shape[1] * math.log(2 * math.pi)


# The chessboard: eight unit squares of a 4 × 4 board on [−2, 2]², each as likely. Its entropy is log 8 nats.


def checkerboard(n: int) -> Tensor:
    """`n` points drawn uniformly from the board's squares, (n, 2).

    Raises:
        ValueError: n is negative.
    """
    if n < 0:
        raise ValueError(f"n must not be negative, got {n}")
    column = torch.randint(4, (n,))
    row = 2 * torch.randint(2, (n,)) + column % 2
    return torch.stack([column, row], 1) + torch.rand(n, 2) - 2


def on_checkerboard(x: Tensor) -> Tensor:
    """Whether each point of x (batch, 2) lies on a square, (batch,) of bool."""
    square = torch.floor(x + 2)
    return ((square >= 0) & (square < 4)).all(1) & (square.sum(1) % 2 == 0)


def checkerboard_density(x: Tensor, t: float, path: GaussianPath) -> Tensor:
    """The marginal density p_t(x) of a Gaussian path to the board, in closed form: differences of normal integrals.

    Args:
        x: points, (batch, 2).
        t: one time, 0 ≤ t < 1.
    Returns:
        (batch,) in float64.
    Raises:
        ValueError: t outside [0, 1), or x not (batch, 2).
    """
    if not 0 <= t < 1:
        raise ValueError(f"t must lie in [0, 1), got {t}")
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"x must be (batch, 2), got {tuple(x.shape)}")
    x = x.double()
    a, b = (f(torch.tensor([t], dtype=torch.float64)) for f in (path.alpha, path.beta))
    edges = torch.arange(-2, 3, dtype=torch.float64)
    if a < 1e-4:  # the difference below would cancel; the midpoint is right to a²
        middles = a * (edges[:-1] + 0.5)
        columns = torch.exp(-0.5 * ((x[..., None] - middles) / b) ** 2) / (
            b * math.sqrt(2 * math.pi)
        )
    else:
        columns = (
            torch.special.ndtr((a * edges - x[..., None]) / b).diff(dim=-1) / a
        )  # (batch, 2, 4)
    i, j = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    black = ((i + j) % 2 == 0).double()
    return torch.einsum("bi,bj,ij->b", columns[:, 0], columns[:, 1], black) / 8


# Networks


class FourierFeatures(nn.Module):
    """x (batch, dim) to x, sin(2π f x), cos(2π f x) for every frequency f: (batch, dim (1 + 2 frequencies)).

    A network fed raw coordinates learns sharp edges very slowly (Tancik et al. 2020).
    """

    def __init__(self, frequencies: tuple[float, ...]):
        super().__init__()
        self.register_buffer("angular", 2 * math.pi * torch.tensor(frequencies))

    def forward(self, x: Tensor) -> Tensor:
        angles = (x[..., None] * self.angular).flatten(1)
        return torch.cat([x, angles.sin(), angles.cos()], 1)


class VelocityMLP(nn.Module):
    """A plain network for a velocity field: Fourier features of x and t, then `depth` SiLU layers.

    Args:
        dim: coordinates of a point.
        width, depth: of the hidden layers.
        frequencies: of the features of x, in cycles a unit; none for data without fine structure.
    """

    def __init__(
        self,
        dim: int,
        width: int = 128,
        depth: int = 4,
        frequencies: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0),
    ):
        super().__init__()
        self.space, self.time = (
            FourierFeatures(frequencies),
            FourierFeatures((0.5, 1.0, 2.0)),
        )
        sizes = [dim * (1 + 2 * len(frequencies)) + 7] + [width] * depth
        layers = [nn.Sequential(nn.Linear(i, o), nn.SiLU()) for i, o in pairwise(sizes)]
        self.net = nn.Sequential(*layers, nn.Linear(width, dim))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.cat([self.space(x), self.time(t[:, None])], 1))


class RealNVP(nn.Module):
    """A normalizing flow of affine coupling layers (Dinh et al. 2017), for points in the plane.

    Each layer keeps one coordinate and moves the other by a scale and a shift that
    depend on the first, so that the Jacobian is triangular and its log-determinant is
    the log-scale.
    """

    def __init__(
        self,
        layers: int = 8,
        width: int = 64,
        frequencies: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0),
    ):
        super().__init__()
        self.nets = nn.ModuleList(
            nn.Sequential(
                FourierFeatures(frequencies),
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
        return standard_normal_log_density(torch.cat([first, second], 1)) + log_det

    def forward(self, z: Tensor) -> Tensor:
        """Noise (batch, 2) to samples (batch, 2): the inverse of what `log_prob` follows."""
        first, second = z.chunk(2, 1)
        for layer in range(len(self.nets)):
            scale, shift = self._scale_shift(layer, first)
            second = second * torch.exp(scale) + shift
            first, second = second, first
        return torch.cat([first, second], 1)


# Borders


def _check_points(shapes: bool = True, **points: Tensor) -> None:
    (first_name, first), *_ = points.items()
    for name, value in points.items():
        if not value.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {value.dtype}")
        if shapes and value.shape != first.shape:
            raise ValueError(
                f"{first_name} and {name} must have the same shape, got {tuple(first.shape)} and {tuple(value.shape)}"
            )
        if value.dtype != first.dtype:
            raise ValueError(
                f"{first_name} and {name} must have the same dtype, got {first.dtype} and {value.dtype}"
            )
        if not (finite := torch.isfinite(value)).all():
            raise ValueError(
                f"{name} must be finite, got {value[~finite].flatten()[0].item()}"
            )


def _check_times(t: Tensor, like: Tensor) -> None:
    if t.shape != like.shape[:1]:
        raise ValueError(
            f"t must be ({like.shape[0]},), one time a row, got {tuple(t.shape)}"
        )
    if t.dtype != like.dtype:
        raise ValueError(f"t must have the points' dtype {like.dtype}, got {t.dtype}")
    if not (inside := (t >= 0) & (t <= 1)).all():
        raise ValueError(f"t must lie in [0, 1], got {t[~inside][0].item()}")


def _check_open(beta: Tensor, t: Tensor) -> None:
    if (shut := beta.flatten() == 0).any():
        raise ValueError(
            f"the velocity has no value where beta(t) = 0, at t = {t[shut][0].item()}"
        )


def _times(steps: int | Tensor, like: Tensor) -> Tensor:
    if isinstance(steps, int):
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        return torch.linspace(0, 1, steps + 1, dtype=like.dtype, device=like.device)
    times = steps.to(like)
    gaps = times.diff()
    if times.ndim != 1 or len(times) < 2 or not ((gaps > 0).all() or (gaps < 0).all()):
        raise ValueError(
            f"times must be a 1-D tensor that only rises or only falls, got {steps}"
        )
    if times.min() < 0 or times.max() > 1:
        raise ValueError(
            f"times must lie in [0, 1], got {times.min().item()} to {times.max().item()}"
        )
    return times
