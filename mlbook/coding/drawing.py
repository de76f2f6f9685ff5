"""Pictures of the chapter on compression that are drawn more than once or take more than a screen."""

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from matplotlib.axes import Axes

from mlbook.coding import arithmetic
from mlbook.figures import BLUE, GREEN, GREY, INK, ORANGE, PINK

COLOURS = (BLUE, ORANGE, GREEN, PINK, GREY)
COLUMNS = 78


def stretches(ax: Axes, rows: Mapping[str, Sequence[tuple[float, str, str]]]) -> None:
    """Rows of stretches on [0, 1), the first on top: name → (width, label, colour), one after the other."""
    for y, parts in enumerate(rows.values()):
        left = 0.0
        for width, label, colour in parts:
            ax.barh(y, width, 0.8, left, color=colour, alpha=0.35, edgecolor=INK)
            middle = left + width / 2
            ax.text(
                middle,
                y,
                label,
                ha="center",
                va="center",
                family="monospace",
                size=7 if width < 0.08 else 10,
            )
            left += width
    ax.set(xlim=(0, 1), yticks=range(len(rows)), yticklabels=rows)
    ax.invert_yaxis()


def priced(ax: Axes, words: Sequence[str], bits: np.ndarray, characters: int) -> None:
    """Text in lines of COLUMNS characters, each token on a ground as dark as it is dear; as many tokens as fit in
    `characters`."""
    x = y = drawn = 0
    for word, cost in zip(words, bits, strict=False):
        for c in word:
            if c == "\n" or x == COLUMNS:
                x, y = 0, y + 1
            if c == "\n":
                continue
            ax.barh(y, 1, 1, x, color=ORANGE, alpha=float(min(cost, 16)) / 20, lw=0)
            ax.text(x + 0.5, y, c, family="monospace", size=8, ha="center", va="center")
            x += 1
        drawn += len(word)
        if drawn >= characters:
            break
    for cost in (0, 4, 8, 12, 16):
        ax.barh(y + 2, 3, 1, 3.4 * cost, color=ORANGE, alpha=cost / 20, lw=0)
        ax.text(3.4 * cost + 3.4, y + 2, f"{cost} bits", size=8, va="center")
    ax.set(xlim=(0, COLUMNS), ylim=(y + 2.8, -0.8))
    ax.axis("off")


def zoom(ax: Axes, model: arithmetic.Model, past: Sequence[int], alphabet: str) -> None:
    """The stretch of `past`, magnified: the parts of the next symbol, or, beneath, the binary words that fit inside."""
    low, high = arithmetic.interval(past, model)
    state = model.start()
    for symbol in past:
        state.update(symbol)
    weights, left = state.predict(), float(low)
    scale = float(high - low) / sum(weights)
    for symbol, weight, colour in zip(alphabet, weights, COLOURS, strict=False):
        width = weight * scale
        ax.barh(1, width, 0.8, left, color=colour, alpha=0.35, edgecolor=INK)
        name = "".join(alphabet[k] for k in past) + symbol
        share = weight / sum(weights)
        ax.text(left + width / 2, 1, f"{name}\n{share:.2f}", ha="center", va="center")
        left += width
    code = arithmetic.shortest_word(low, high)
    for word in dyadic(low, high, len(code) + 3):
        size, start = 2.0 ** -len(word), int("0" + word, 2) * 2.0 ** -len(word)
        ax.barh(0, size, 0.5, start, color=INK, alpha=0.08, edgecolor=INK)
        if size > 0.06 * float(high - low):
            ax.text(start + size / 2, 0, word, size=8, ha="center", va="center")
    ax.set(xlim=(float(low), float(high)), yticks=[0, 1], ylim=(-0.4, 1.5))
    ax.set_yticklabels(["words", "next letter"])
    ticks = np.linspace(float(low), float(high), 5)
    ax.set_xticks(ticks, [f"{t:.4g}" for t in ticks])
    ax.set_title(
        f"width {float(high - low):.4g}; shortest word: {code or 'none needed'}"
    )


def dyadic(low: Fraction, high: Fraction, longest: int, word: str = "") -> list[str]:
    """The words of at most `longest` bits whose numbers all lie in [low, high), and those of no shorter word do."""
    size = Fraction(1, 2 ** len(word))
    start = int("0" + word, 2) * size
    if low <= start and start + size <= high:
        return [word]
    if start + size <= low or high <= start or len(word) == longest:
        return []
    halves = (dyadic(low, high, longest, word + bit) for bit in "01")
    return [w for half in halves for w in half]
