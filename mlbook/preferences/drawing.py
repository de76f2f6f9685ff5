"""Pictures that the chapter on preference optimisation draws more than once."""

import numpy as np
import torch
from torch import Tensor

from mlbook.figures import BLUE, GREY, INK, ORANGE
from mlbook.preferences import exact, laughs


def frontier(ref: Tensor, reward: Tensor, most: float = 40.0) -> Tensor:
    """(divergence, reward) of the exact optima for a hundred strengths 1/β from 0 to `most`: (100, 2), means over prompts."""
    strengths = torch.cat((torch.zeros(1), torch.logspace(-2, np.log10(most), 99)))
    points = []
    for strength in strengths.tolist():
        best = (
            exact.optimal_policy(ref, reward, 1 / strength) if strength else ref.clone()
        )
        value = (best.exp() * reward).sum(-1).mean()
        points.append((exact.kl(best, ref).mean(), value))
    return torch.tensor(points, dtype=torch.float64)


def draw_frontier(ax, ref: Tensor, reward: Tensor, most: float = 40.0, **style):
    """The exact frontier as a line, and beyond it nothing: no policy reaches what lies above."""
    kl, value = frontier(ref, reward, most).T
    ax.plot(kl, value, **({"color": INK, "lw": 1.2, "label": "exact frontier"} | style))
    ax.fill_between(kl, value, value.max() + 1, color=GREY, alpha=0.12, lw=0)
    ax.set(
        xlabel="divergence from the reference (nats)",
        ylabel="mean reward",
        ylim=(None, float(value.max()) + 0.1),
    )


def bars(ax, policy: Tensor, ref: Tensor, best: Tensor, names=laughs.NAMES):
    """A policy as bars, the reference as grey ones behind, the optimum as marks. Returns the bars of the policy."""
    place = np.arange(len(names))
    ax.barh(place, ref.exp(), 0.8, color=GREY, alpha=0.35, label="reference")
    found = ax.barh(place, policy.exp(), 0.45, color=BLUE, label="policy")
    ax.plot(best.exp(), place, "|", color=ORANGE, ms=11, mew=2.5, label="optimum π*")
    ax.set(yticks=place, xlabel="probability")
    ax.set_yticklabels(names, fontsize=9)
    ax.invert_yaxis()
    return found


def tree(ax, values: Tensor, policy: Tensor, ref: Tensor) -> None:
    """The beginnings of a laugh, each with its soft value; lines are as thick as their probability under `policy`, grey ones
    beside them as under `ref`."""
    place = {}
    for s in [*laughs.STATES, *(r for r in laughs.RESPONSES if len(r) == 3)]:
        low, size = 0.0, 1.0
        for a in s:
            size /= 2
            low += a * size
        place[s] = (len(s), 1 - low - size / 2)
    for i, s in enumerate(laughs.STATES):
        x, y = place[s]
        for a in range(laughs.END):
            x2, y2 = place[(*s, a)]
            chance, before = policy[i, a].exp().item(), ref[i, a].exp().item()
            out = (
                1 if a == 0 else -1
            )  # the side that faces away from the other syllable
            ax.plot(
                (x, x2),
                (y - 0.022 * out, y2 - 0.022 * out),
                color=GREY,
                lw=8 * before,
                zorder=1,
            )
            ax.plot((x, x2), (y, y2), color=BLUE, lw=8 * chance, zorder=2)
            ax.annotate(
                f"{laughs.SYLLABLES[a]} {chance:.2f}",
                (0.45 * x + 0.55 * x2, 0.45 * y + 0.55 * y2),
                (0, out * (6 + 4 * chance)),
                textcoords="offset points",
                fontsize=8.5,
                ha="center",
                va="bottom" if a == 0 else "top",
                zorder=3,
            )
        ax.text(
            *(x, y, f"V = {values[i]:.2f}"),
            ha="center",
            va="center",
            fontsize=9,
            bbox={"boxstyle": "round", "fc": "white", "ec": INK, "lw": 0.8},
            color="black",
            zorder=4,
        )
    ax.set(xlim=(-0.2, 3.15), ylim=(0, 1))
    ax.axis("off")
