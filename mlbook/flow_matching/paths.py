"""Gaussian probability paths: their velocities, what a velocity says about noise and data, and the loss that learns it.

Conventions of this room: time runs from noise (t = 0) to data (t = 1); points are (batch, …); times are (batch,); a
velocity, learned or exact, is any function `velocity(x, t)` that returns the shape of `x`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mlbook.flow_matching.borders import check_output, check_points, check_times

Velocity = Callable[[Tensor, Tensor], Tensor]
Schedule = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class GaussianPath:
    """The conditional path p_t(x | z) = N(alpha(t) z, beta(t)² I) (Lipman et al. 2023, eq. 10).

    Args:
        alpha, beta: functions of a tensor of times that run from 0 to 1 and from 1 to 0 (to a hundredth: a diffusion only
            nearly reaches its noise).
        d_alpha, d_beta: their derivatives.
    Raises:
        ValueError: the functions do not run so (a path from data to noise, say), are not positive on the way, or a
            derivative is not theirs.
    """

    alpha: Schedule
    beta: Schedule
    d_alpha: Schedule
    d_beta: Schedule

    def __post_init__(self):
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        t, h = torch.linspace(0.001, 0.999, 25, dtype=torch.float64), 1e-7
        for name, wanted in (("alpha", ends), ("beta", ends.flip(0))):
            f, df = getattr(self, name), getattr(self, f"d_{name}")
            if not torch.allclose(f(ends), wanted, rtol=0, atol=0.01):
                raise ValueError(
                    f"{name} must run from {wanted[0]:.0f} at t = 0 to {wanted[1]:.0f} at t = 1, got {f(ends).tolist()}"
                )
            if not (f(t) > 0).all():
                raise ValueError(
                    f"{name} must be positive between the ends, got {f(t).min().item()}"
                )
            slope = (f(t + h) - f(t - h)) / (2 * h)
            if not torch.allclose(df(t), slope, rtol=1e-4, atol=1e-4):
                raise ValueError(
                    f"d_{name} must be the derivative of {name}, {slope.tolist()} at t = 0.001 … 0.999, got {df(t).tolist()}"
                )

    def coefficients(
        self, t: Tensor, like: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha, beta and their time derivatives at `t` (batch,), shaped to multiply `like` (batch, …)."""
        functions = (self.alpha, self.beta, self.d_alpha, self.d_beta)
        return tuple(f(t).reshape(-1, *[1] * (like.ndim - 1)) for f in functions)

    def sample(self, z: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The point x_t = alpha z + beta eps and its velocity d x_t / dt, the target of the conditional loss.

        Args:
            z: data, (batch, …).
            eps: standard normal noise of the same shape.
            t: times in [0, 1], (batch,).
        Raises:
            ValueError: shapes or dtypes differ, a time lies outside [0, 1], or the path has no finite velocity there.
        """
        check_points(z=z, eps=eps)
        check_times(t, z)
        a, b, da, db = self.coefficients(t, z)
        _check_speed(da, db, t)
        return a * z + b * eps, da * z + db * eps

    def velocity(self, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """The conditional velocity u_t(x | z): that of `sample`, at the noise that leads from `z` to `x`.

        Shapes and errors are those of `sample`; and ValueError where beta(t) = 0, where every path has arrived.
        """
        check_points(x=x, z=z)
        check_times(t, z)
        a, b, da, db = self.coefficients(t, z)
        _check_open(b, t)
        return da * z + db * (x - a * z) / b

    def posterior_means(self, x: Tensor, u: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """E[z | x_t = x] and E[eps | x_t = x], as the marginal velocity `u` at `x` tells them.

        They solve x = alpha E[z] + beta E[eps], u = alpha' E[z] + beta' E[eps]. The score is ∇ log p_t(x) = −E[eps] / beta.
        Shapes and errors are those of `sample`; and ValueError where the path stands still.
        """
        check_points(x=x, u=u)
        check_times(t, x)
        a, b, da, db = self.coefficients(t, x)
        _check_speed(da, db, t)
        det = da * b - a * db
        if (still := det.flatten() == 0).any():
            raise ValueError(
                f"the path stands still at t = {t[still][0].item()}: its velocity tells nothing"
            )
        return (b * u - db * x) / det, (da * x - a * u) / det


linear = GaussianPath(
    alpha=lambda t: t,
    beta=lambda t: 1 - t,
    d_alpha=torch.ones_like,
    d_beta=lambda t: -torch.ones_like(t),
)
_TURN = math.pi / 2
cosine = GaussianPath(  # cos(πt/2) as a sine, which is exactly 0 at t = 1
    alpha=lambda t: torch.sin(_TURN * t),
    beta=lambda t: torch.sin(_TURN * (1 - t)),
    d_alpha=lambda t: _TURN * torch.sin(_TURN * (1 - t)),
    d_beta=lambda t: -_TURN * torch.sin(_TURN * t),
)


def _alpha(t: Tensor) -> Tensor:
    s = 1 - t
    return torch.exp(-0.5 * (0.1 * s + 9.95 * s**2))


def _d_alpha(t: Tensor) -> Tensor:
    return _alpha(t) * (0.05 + 9.95 * (1 - t))


def _beta(t: Tensor) -> Tensor:
    s = 1 - t
    return torch.sqrt(-torch.expm1(-(0.1 * s + 9.95 * s**2)))


# The diffusion of Song et al. 2021 run backwards. alpha(0) = 0.0066, not 0, and beta' has no finite value at t = 1.
variance_preserving = GaussianPath(
    alpha=_alpha,
    beta=_beta,
    d_alpha=_d_alpha,
    d_beta=lambda t: -_alpha(t) * _d_alpha(t) / _beta(t),
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
    check_points(x=x, data=data, same=False)
    if x.ndim != 2 or data.ndim != 2 or x.shape[1] != data.shape[1]:
        raise ValueError(
            f"x and data must be (batch, dim) and (n, dim), got {tuple(x.shape)} and {tuple(data.shape)}"
        )
    check_times(t, x)
    a, b, _, _ = path.coefficients(t, x)
    _check_open(b, t)
    rows = max(1, 2**24 // data.numel())  # at once: what is made is (rows, n, dim)
    mean = []
    for x_, a_, b_ in zip(x.split(rows), a.split(rows), b.split(rows), strict=True):
        squares = ((x_[:, None] - a_[:, None] * data) ** 2).sum(-1)
        # Relative to the nearest point, and divided twice: b² may underflow as t → 1 where these do not
        nearest = squares.min(1, keepdim=True).values
        mean.append((torch.softmax((nearest - squares) / b_ / b_ / 2, 1) @ data).to(x))
    return path.velocity(x, torch.cat(mean), t)


def cfm_loss(
    model: Velocity,
    z: Tensor,
    path: GaussianPath,
    coupling: str = "independent",
    t: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The conditional flow matching loss E‖model(x_t, t) − d x_t / dt‖² (Lipman et al. 2023, eq. 9), one draw per row.

    Args:
        model: the velocity being learned.
        z: a batch of data, (batch, …).
        coupling: "independent" pairs data and noise at random; "optimal_transport" pairs them within the batch so that
            the total squared distance is least (Tong et al. 2024; Pooladian et al. 2023).
        t: times (batch,); uniform on [0, 1) where not given. Another distribution reweights the loss over time
            and leaves its minimiser where it was.
        generator: where the draws come from; torch's own where not given.
    Returns:
        a scalar, averaged over batch and coordinates.
    Raises:
        ValueError: as `GaussianPath.sample`; an unknown coupling; or the model returns another shape than its points'.
    """
    check_points(z=z)
    draw = {"generator": generator, "dtype": z.dtype, "device": z.device}
    eps = torch.randn(z.shape, **draw)
    if coupling == "optimal_transport":
        eps = eps[optimal_coupling(eps, z)]
    elif coupling != "independent":
        raise ValueError(
            f"coupling must be 'independent' or 'optimal_transport', got {coupling!r}"
        )
    t = torch.rand(len(z), **draw) if t is None else t
    x, target = path.sample(z, eps, t)
    return ((check_output(model(x, t), x) - target) ** 2).mean()


def optimal_coupling(eps: Tensor, z: Tensor) -> Tensor:
    """The permutation p for which Σ‖eps[p[i]] − z[i]‖² is least: an assignment problem, O(batch³), solved by SciPy.

    Args:
        eps, z: (batch, …) each.
    Returns:
        indices, (batch,).
    """
    from scipy.optimize import linear_sum_assignment

    check_points(eps=eps, z=z)
    # ‖eps − z‖² = ‖eps‖² + ‖z‖² − 2⟨eps, z⟩, and only the last depends on the pairing. Centred: far from the origin the
    # products would lose the digits that decide.
    e, d = (points.detach().double().reshape(len(z), -1) for points in (eps, z))
    gain = (d - d.mean(0)) @ (e - e.mean(0)).T
    return torch.as_tensor(
        linear_sum_assignment(gain.cpu().numpy(), maximize=True)[1], device=z.device
    )


def _check_open(beta: Tensor, t: Tensor) -> None:
    if (shut := beta.flatten() <= 0).any():
        raise ValueError(
            f"the velocity has no value where beta(t) = 0, at t = {t[shut][0].item()}"
        )


def _check_speed(da: Tensor, db: Tensor, t: Tensor) -> None:
    if not (finite := torch.isfinite(da + db).flatten()).all():
        raise ValueError(
            f"the path has no finite velocity at t = {t[~finite][0].item()}"
        )
