"""Pictures of tokens, rows and answers that the chapter draws more than once."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from mlbook.figures import BLUE, GREEN, GREY, INK, ORANGE, PINK
from mlbook.hf_training import packing

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


def packings(lengths: list[int], size: int):
    """The same texts three times: padded to the longest, wrapped, and each whole where it fits best."""
    fig, axes = plt.subplots(
        3, 1, figsize=(7.2, 6.2), height_ratios=(12, 5, 5), sharex=True
    )
    cut = packing.wrapped(lengths, size)
    best = packing.best_fit(lengths, size)
    rows = {
        "padded to the longest": [[(i, n)] for i, n in enumerate(lengths)],
        f"wrapped, rows of {size}": [[(i, b - a) for i, a, b in row] for row in cut],
        f"best fit, rows of {size}": [[(i, lengths[i]) for i in row] for row in best],
    }
    last = [[b == lengths[i] for i, _, b in row] for row in cut]
    whole = [last if "wrapped" in title else None for title in rows]
    for ax, (title, found), ended in zip(axes, rows.items(), whole, strict=True):
        ends = [
            (y, sum(n for _, n in row[: k + 1]))
            for y, row in enumerate(found)
            for k in range(len(row))
            if ended is None or ended[y][k]
        ]
        rows_of(ax, found, max(lengths) if len(found) == len(lengths) else size, ends)
        ax.set_title(title, loc="left", fontsize=10)
        ax.set(xlim=(0, size), ylabel="rows")
    axes[2].set_xlabel("tokens")
    return fig


def labelled(ax, words: list[str], counts: list[bool], guesses: list[str]) -> None:
    """Tokens of a text, the label of each, and the model's guess at each, with arrows from guesses that count to the labels
    that they are compared with."""
    style = {"ha": "center", "family": "monospace", "fontsize": 9}
    for x, (word, count, guess) in enumerate(zip(words, counts, guesses, strict=True)):
        ax.text(x, 2, word, **style)
        ax.text(x, 1, word if count else "−100", color=ORANGE if count else GREY, **style)  # fmt: skip
        if x + 1 == len(words):
            continue
        right = GREEN if guess == words[x + 1] else ORANGE
        ax.text(x, 0, guess, color=right if counts[x + 1] else GREY, **style)
        if counts[x + 1]:
            arrow = {"arrowstyle": "->", "color": INK, "lw": 0.8}
            ax.annotate("", (x + 0.85, 0.92), (x + 0.15, 0.32), arrowprops=arrow)
    ax.set(xlim=(-0.7, len(words) - 0.3), ylim=(-0.4, 2.6), xticks=[])
    ax.set(yticks=(0, 1, 2), yticklabels=("guesses", "labels", "tokens"))
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)


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
