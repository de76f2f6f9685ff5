"""How the chapter draws points of the plane, values over it, and small images."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from mlbook.figures import BLUE, GREY
from mlbook.flow_matching.board import DARK


def plane(ax: Axes, limit: float = 2.6, title: str = "", board: bool = False) -> Axes:
    """Make `ax` a square of the plane around the origin; with `board`, outline the eight squares."""
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", title=title)
    ax.set(xticks=[-2, 0, 2], yticks=[-2, 0, 2])
    if board:
        for i, j in torch.nonzero(DARK).tolist():
            square = plt.Rectangle((i - 2, j - 2), 1, 1, fill=False, ec=GREY, lw=0.8)
            ax.add_patch(square)
    return ax


def panels(
    *titles: str, limit: float = 2.6, board: bool = False, size: float = 3.1
) -> tuple[Figure, list[Axes]]:
    """A figure of squares of the plane side by side, one a title, each `size` inches wide."""
    fig, axes = plt.subplots(
        1,
        len(titles),
        figsize=(size * len(titles), size + 0.3),
        sharey=True,
        squeeze=False,
    )
    return fig, [
        plane(ax, limit, title, board)
        for ax, title in zip(axes[0], titles, strict=True)
    ]


def scatter(ax: Axes, points: Tensor, most: int = 4_000) -> None:
    """Draw the first `most` points (n, 2) as small dots, as an image: thousands of shapes would slow a page."""
    x, y = points[:most].detach().cpu().T
    ax.plot(x, y, ".", ms=1.6, color=BLUE, alpha=0.6, rasterized=True)


def heat(ax: Axes, values: Tensor, limit: float, **style) -> AxesImage:
    """Draw values at the points of a square grid, first coordinate slowest, (side²,)."""
    side = round(len(values) ** 0.5)
    return ax.imshow(
        values.reshape(side, side).T,
        origin="lower",
        extent=(-limit, limit) * 2,
        **style,
    )


def mosaic(
    rows: Sequence[Tensor], names: Sequence = (), columns: Sequence = ()
) -> Figure:
    """A figure of square images of the range [−1, 1], dark on white: one (n, pixels) a row, `names` beside the rows and
    `columns` under the columns."""
    side = round(rows[0].shape[1] ** 0.5)
    tiles = torch.cat([torch.cat([*x.reshape(-1, side, side)], 1) for x in rows])
    fig, ax = plt.subplots(figsize=(7, 0.4 + 0.65 * len(rows)))
    # as they are: resampled to the figure's points they would weigh seven times as much
    style = {"cmap": "gray_r", "vmin": -1, "vmax": 1, "interpolation": "none"}
    ax.imshow(tiles.cpu(), **style)
    ax.set_yticks([side * (i + 0.5) for i in range(len(names))], names)
    ax.set_xticks([side * (i + 0.5) for i in range(len(columns))], columns)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return fig
