"""Tables of results as pictures."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm, Normalize, TwoSlopeNorm


def heat(ax, table: pd.DataFrame, low, high, form="{:.2f}", even=None, size=8):
    """Draw `table` as a map of coloured numbers, rows downwards.

    Args:
        low, high: of the colours.
        even: the value that neither side has earned, in white: blue above it, red below; no such value if None. If it is
            1, factors count, so that a half and a two are equally far from it.
        form: of a number.
    Returns:
        the image, for a colour bar.
    """
    values = table.to_numpy(float)
    if even == 1:
        high = max(high, 1 / low)
        low = 1 / high
    if even is None:
        norm, colours = Normalize(low, high), "Purples"
    else:
        norm = LogNorm if even == 1 else TwoSlopeNorm
        norm = norm(low, high) if even == 1 else norm(even, low, high)
        colours = "RdBu"
    image = ax.imshow(
        np.clip(values, low, high), aspect="auto", cmap=colours, norm=norm
    )
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(norm(np.clip(value, low, high)))
            dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
            colour = "#ffffff" if dark else "#111111"
            ax.text(
                j,
                i,
                form.format(value),
                ha="center",
                va="center",
                color=colour,
                size=size,
            )
    ax.set_xticks(range(table.shape[1]), table.columns)
    ax.set_yticks(range(len(table)), table.index)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return image


def maps(tables: dict[str, pd.DataFrame], *colours, below="", across=1, **how):
    """A figure of the `heat` of each table, with its name as its title, and `below` beneath the last.

    Raises:
        ValueError: the tables have not the same rows.
    """
    names = [list(table.index) for table in tables.values()]
    if any(rows != names[0] for rows in names):
        raise ValueError(f"the tables have other rows: {names}")
    rows = -(-len(tables) // across)
    height = 0.5 + rows * (0.45 + 0.3 * max(map(len, tables.values())))
    fig, axes = plt.subplots(
        rows, across, figsize=(7.2, height), sharex=True, sharey=True, squeeze=False
    )
    for ax in axes.flat[len(tables) :]:
        ax.set_axis_off()
    for ax, (name, table) in zip(axes.flat, tables.items(), strict=False):
        heat(ax, table, *colours, **how)
        ax.set_title(name)
    fig.supxlabel(below, size=11)
    return fig
