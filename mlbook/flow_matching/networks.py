"""Networks for a velocity field: one for the plane, one for small images with labels, and guidance by the labels."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from mlbook.common.checks import check_count
from mlbook.flow_matching.borders import check_labels, check_rows
from mlbook.flow_matching.paths import Velocity


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
        depth = check_count("depth", depth)
        self.space = FourierFeatures(frequencies)
        self.time = FourierFeatures((0.5, 1.0, 2.0))
        sizes = [dim * (1 + 2 * len(frequencies)) + 7] + [width] * depth
        layers = [nn.Sequential(nn.Linear(i, o), nn.SiLU()) for i, o in pairwise(sizes)]
        self.net = nn.Sequential(*layers, nn.Linear(width, dim))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.cat([self.space(x), self.time(t[:, None])], 1))


class CleanImageMLP(nn.Module):
    """A velocity for small images that may know a label. It answers with the clean image E[z | x], of which the
    velocity of the linear path is (E[z | x] − x) / (1 − t).

    Args:
        dim: pixels.
        classes: how many labels; label `classes` means "not told".
        width, depth: of the residual layers, each of which is told the time and the label.
        answer: "clean image"; or "velocity", which must also bring all of the noise through the layers.
    Raises:
        ValueError: another answer.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        width: int = 384,
        depth: int = 3,
        answer: str = "clean image",
    ):
        super().__init__()
        if answer not in ("clean image", "velocity"):
            raise ValueError(
                f"answer must be 'clean image' or 'velocity', got {answer!r}"
            )
        self.classes, self.answer = classes, answer
        self.time = nn.Sequential(
            FourierFeatures((0.5, 1.0, 2.0, 4.0)), nn.Linear(9, width)
        )
        self.label = nn.Embedding(classes + 1, width)
        self.enter = nn.Linear(dim, width)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, width),
                nn.SiLU(),
                nn.Linear(width, width),
            )
            for _ in range(depth)
        )
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim))

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """The velocity at x (batch, dim), t (batch,) for labels (batch,)."""
        told = self.time(t[:, None]) + self.label(label)
        h = self.enter(x) + told
        for layer in self.layers:
            h = h + layer(h + told)
        answer = self.leave(h)
        if self.answer == "velocity":
            return answer
        left = (1 - t).clamp(min=0.05)[:, None]  # 1 / (1 − t) has no bound
        return (answer - x) / left


def guided(model: CleanImageMLP, label: Tensor, weight: float) -> Velocity:
    """Classifier-free guidance: v(x, t, none) + weight · (v(x, t, label) − v(x, t, none)) (Ho and Salimans 2022).

    Args:
        label: (batch,), one a point.
        weight: 0 ignores the labels, 1 is the conditional velocity, more exaggerates what the label changes. (The paper
            writes w for this weight less 1; `guidance_scale` of diffusers is this weight.)
    Raises:
        ValueError: labels are not (batch,) of whole numbers, a label is none of the model's classes, there are more or
            fewer points than labels, or the weight is not finite.
    """
    check_labels(label, model.classes)
    if not math.isfinite(weight):
        raise ValueError(f"weight must be finite, got {weight}")
    none = torch.full_like(label, model.classes)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        check_rows(label, x)
        twice = model(x.repeat(2, 1), t.repeat(2), torch.cat([none, label]))
        without, with_ = twice.chunk(2)
        return without + weight * (with_ - without)

    return velocity
