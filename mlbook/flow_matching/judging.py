"""Judges of generated images with labels: a classifier, and distances between sets."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mlbook.common.training import fit
from mlbook.flow_matching.borders import check_finite


def fit_classifier(images: Tensor, labels: Tensor, steps: int) -> nn.Sequential:
    """A network of one hidden layer of 64 units that tells the ten labels of images (n, pixels)."""
    net = nn.Sequential(nn.Linear(images.shape[1], 64), nn.ReLU(), nn.Linear(64, 10))

    def loss(net: nn.Module) -> Tensor:
        rows = torch.randint(len(images), (128,), device=images.device)
        return cross_entropy(net(images[rows]), labels[rows])

    return fit(net.to(images.device), loss, steps)[0]


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """The Fréchet distance between Gaussians fitted to two sets of features (n, d) and (m, d) (Heusel et al. 2017).

    Raises:
        ValueError: a set has fewer than two rows, they have other widths, or a feature is not finite.
    """
    check_finite("features", torch.cat([x.flatten(), y.flatten()]))
    if x.ndim != 2 or min(len(x), len(y)) < 2 or x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"features must be (n, d) and (m, d) with n, m > 1, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    (m, a), (n, b) = (
        (f.mean(0), torch.atleast_2d(f.T.cov()))
        for f in (x.double().cpu(), y.double().cpu())
    )
    roots = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    return (((m - n) ** 2).sum() + a.trace() + b.trace() - 2 * roots).item()


def variety(x: Tensor, labels: Tensor, most: int = 90) -> float:
    """The mean distance between two images of one label, over at most `most` images of each.

    Raises:
        ValueError: a label has one image only.
    """
    if (counts := labels.unique(return_counts=True)[1]).min() < 2:
        raise ValueError(
            f"every label needs two images at least, got {counts.tolist()} of each"
        )
    spreads = [torch.pdist(x[labels == d][:most]).mean() for d in labels.unique()]
    return torch.stack(spreads).mean().item()


def gaussian_samples(images: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
    """For each label in `wanted`, a sample of the Gaussian with the mean and covariance of that label's images, cut to
    their range: what any generator should beat.

    Raises:
        ValueError: a wanted label has fewer than two images.
    """
    out = torch.empty(len(wanted), images.shape[1], device=images.device)
    for label in wanted.unique():
        mine = images[labels == label]
        if len(mine) < 2:
            raise ValueError(
                f"a Gaussian needs two images at least, label {label} has {len(mine)}"
            )
        cov = mine.T.cov() + 1e-4 * torch.eye(images.shape[1], device=images.device)
        fitted = torch.distributions.MultivariateNormal(mine.mean(0), cov)
        rows = wanted == label
        out[rows] = fitted.sample((int(rows.sum()),)).clamp(images.min(), images.max())
    return out
