"""What the functions of this room refuse, each kind of fault once."""

import torch
from torch import Tensor


def check_points(
    *, dims: int | None = None, same: bool = True, **points: Tensor
) -> None:
    """Refuse what is no batch of points: (batch, …), floating, not empty; of the same dtype and, with `same`, shape.

    Args:
        dims: coordinates a point must have; then each must be (batch, dims).
    Raises:
        ValueError: naming the argument and what it is.
    """
    (first_name, first), *_ = points.items()
    for name, value in points.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name} must be a floating point tensor, got {kind}")
        if value.ndim == 0 or value.numel() == 0:
            raise ValueError(
                f"{name} must be (batch, …) and not empty, got {tuple(value.shape)}"
            )
        if dims is not None and (value.ndim != 2 or value.shape[1] != dims):
            raise ValueError(
                f"{name} must be (batch, {dims}), got {tuple(value.shape)}"
            )
        if same and value.shape != first.shape:
            raise ValueError(
                f"{first_name} and {name} must have the same shape, "
                f"got {tuple(first.shape)} and {tuple(value.shape)}"
            )
        if value.dtype != first.dtype or value.device != first.device:
            raise ValueError(
                f"{first_name} and {name} must have the same dtype and device, "
                f"got {first.dtype} on {first.device} and {value.dtype} on {value.device}"
            )


def check_finite(name: str, value: Tensor) -> None:
    """Refuse values that are not finite. Waits for a GPU, so it stands where a computation begins or ends."""
    if not (finite := torch.isfinite(value)).all():
        raise ValueError(f"{name} must be finite, got {value[~finite][0].item()}")


def check_start(x0: Tensor) -> None:
    """Refuse what no solver can start from: no batch of points, values that are not finite, or half precision, in which
    many small steps add up to nothing."""
    check_points(x0=x0)
    check_finite("x0", x0)
    if x0.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x0 must be float32 or float64, got {x0.dtype}")


def check_times(t: Tensor, like: Tensor) -> None:
    """Refuse what is not one time in [0, 1] for each row of `like`, in its dtype."""
    if not isinstance(t, Tensor):
        raise ValueError(f"t must be a tensor, one time a row, got {t!r}")
    if t.shape != like.shape[:1]:
        raise ValueError(
            f"t must be ({like.shape[0]},), one time a row, got {tuple(t.shape)}"
        )
    if t.dtype != like.dtype:
        raise ValueError(f"t must have the points' dtype {like.dtype}, got {t.dtype}")
    if not (inside := (t >= 0) & (t <= 1)).all():
        raise ValueError(f"t must lie in [0, 1], got {t[~inside][0].item()}")


def check_labels(label: Tensor, classes: int) -> None:
    """Refuse labels that are not (batch,) of 0 … classes − 1."""
    if label.ndim != 1 or label.numel() == 0 or label.dtype != torch.long:
        raise ValueError(
            f"labels must be (batch,) of int64 and not empty, got {tuple(label.shape)} of {label.dtype}"
        )
    if label.min() < 0 or label.max() >= classes:
        raise ValueError(
            f"labels must lie in [0, {classes}), got {label.min().item()} to {label.max().item()}"
        )


def check_rows(label: Tensor, x: Tensor) -> None:
    """Refuse more or fewer labels than points."""
    if x.shape[:1] != label.shape:
        raise ValueError(f"{len(label)} labels cannot guide {len(x)} points")


def check_output(value: Tensor, like: Tensor, name: str = "the velocity") -> Tensor:
    """`value`, if it is real and has the shape of `like`: one that only broadcasts gives a wrong answer silently."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} must return a floating point tensor, got {kind}")
    if value.shape != like.shape:
        raise ValueError(
            f"{name} must return the shape of its points, {tuple(like.shape)}, got {tuple(value.shape)}"
        )
    return value
