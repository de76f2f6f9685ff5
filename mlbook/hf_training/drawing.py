"""Pictures of tokens, rows and answers that the chapter draws more than once."""

import textwrap

import numpy as np
from matplotlib.patches import Rectangle

from mlbook.figures import BLUE, GREEN, GREY, INK, ORANGE, PINK

COLOURS = (BLUE, ORANGE, GREEN, PINK)


def tokens(ax, texts: list[str], shades, columns: int = 60) -> int:
    """Tokens as boxes, from left to right and line after line, as wide as they have letters.

    Args:
        shades: for each token a colour, or None for a box without one.
    Returns:
        how many lines it took.
    """
    x, line = 0, 0
    for text, shade in zip(texts, shades, strict=True):
        text = text.replace("\n", "⏎")
        wide = max(1, len(text)) + 0.5
        if x + wide > columns:
            x, line = 0, line + 1
        box = Rectangle(
            (x, -line - 0.42), wide - 0.12, 0.84,
            facecolor=shade or "none", alpha=0.3 if shade else 1,
            edgecolor=shade or GREY, lw=0.6,
        )  # fmt: skip
        ax.add_patch(box)
        ax.text(x + wide / 2 - 0.06, -line, text.replace(" ", "·"), ha="center", va="center", fontsize=7.5, family="monospace")  # fmt: skip
        x += wide
        if text.endswith("⏎"):
            x, line = 0, line + 1
    lines = line + (x > 0)
    ax.set(xlim=(-0.3, columns), ylim=(-lines + 0.45, 0.6))
    ax.axis("off")
    return lines


def rows_of(ax, rows: list[list[tuple[int, int]]], size: int, ends=()) -> None:
    """Rows of a batch: each a list of (text, tokens), drawn as bars that change colour from text to text; the rest is padding.

    Args:
        ends: (row, token) of each <eos>, drawn as a mark.
    """
    for y, row in enumerate(rows):
        x = 0
        for text, n in row:
            ax.barh(y, n, 0.8, left=x, color=COLOURS[text % 4], alpha=0.55, lw=0)
            ax.text(x + n / 2, y, str(text), ha="center", va="center", fontsize=8)
            x += n
        ax.barh(y, size - x, 0.8, left=x, facecolor="none", edgecolor=GREY, hatch="////", lw=0)  # fmt: skip
    for y, x in ends:
        ax.plot([x, x], [y - 0.4, y + 0.4], color=INK, lw=1.6)
    ax.set(xlim=(0, size), ylim=(len(rows) - 0.4, -0.6), yticks=range(len(rows)))
    ax.spines["left"].set_visible(False)


def said(ax, rows: list[dict], width: int = 34) -> None:
    """What was asked and what the model answered, one beneath the other, with a mark where a program knows what is right."""
    ax.axis("off")
    ax.set(xlim=(0, 1), ylim=(-len(rows), 0))
    marks = {True: ("✓", GREEN), False: ("✗", ORANGE), None: ("", INK)}
    for i, row in enumerate(rows):
        asked = textwrap.shorten(f"{row['instruction']} {row['input']}", 2 * width)
        ax.text(0, -i - 0.12, textwrap.fill(asked, width), fontsize=8, va="top", color=GREY)  # fmt: skip
        mark, colour = marks[row["right"]]
        answer = textwrap.shorten(repr(row["answer"]), width, placeholder="…'")
        ax.text(0.03, -i - 0.66, f"{mark} {answer}", fontsize=9, va="center", color=colour, family="monospace")  # fmt: skip


def hull(points: np.ndarray) -> np.ndarray:
    """Corners of the convex hull of points in the plane (n, 2), in order: their indices.

    What a linear head over two features can ever find likeliest.
    """
    from scipy.spatial import ConvexHull

    return ConvexHull(points).vertices
