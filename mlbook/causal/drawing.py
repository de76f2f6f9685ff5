"""The chapters' pictures: causal graphs, shares, residuals, imitations."""

from collections import Counter

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import torch
from matplotlib.patches import FancyArrowPatch

from mlbook import figures
from mlbook.causal import additive, independence
from mlbook.figures import BLUE, GREY, INK, ORANGE


def draw(ax, graph: nx.DiGraph, places: dict, colours=None, size=14, hidden=()):
    """Nodes as circles, edges as arrows, edges with both directions as plain lines.

    Args:
        places: node → (x, y).
        colours: edge (a, b) → its colour, where it is not the text's.
        size: radius of a node, in points.
        hidden: nodes that are not measured: grey.
    """
    colours, order = colours or {}, list(graph)
    for a, b in graph.edges:
        both = graph.has_edge(b, a)
        if both and order.index(a) > order.index(b):
            continue  # drawn as b – a
        colour = colours.get((a, b), colours.get((b, a), INK) if both else INK)
        ax.add_patch(
            FancyArrowPatch(
                places[a],
                places[b],
                arrowstyle="-" if both else "-|>",
                mutation_scale=12,
                shrinkA=size,
                shrinkB=size,
                color=colour,
                lw=1.2 if colour in (INK, GREY) else 2.4,
            )
        )
    for node in graph:
        x, y = places[node]
        ax.plot(
            x,
            y,
            "o",
            ms=2 * size,
            mfc="none",
            mec=GREY if node in hidden else INK,
            mew=1.1,
        )
        ax.text(x, y, str(node), ha="center", va="center", size=min(11, 0.8 * size))
    xs, ys = zip(*(places[node] for node in graph), strict=True)
    ax.set(xlim=(min(xs) - 0.25, max(xs) + 0.25), ylim=(min(ys) - 0.25, max(ys) + 0.25))
    ax.set_axis_off()


def graphs(these: dict[str, nx.DiGraph], places: dict, height: float = 2.2, **how):
    """A row of graphs with their names above, all in one layout."""
    fig, axes = plt.subplots(1, len(these), figsize=(7.2, height), squeeze=False)
    for ax, (name, graph) in zip(axes[0], these.items(), strict=True):
        draw(ax, graph, places, **how)
        ax.set_title(name)
    return fig


def shares(ax, these: dict[str, float], colours, text="{:.0%}", chance=None, size=9):
    """Shares as bars from above, each with its number."""
    ax.barh(range(len(these)), list(these.values()), color=colours)
    for y, share in enumerate(these.values()):
        ax.text(share + 0.02, y, text.format(share), va="center", size=size)
    if chance is not None:
        ax.axvline(chance, color=INK, lw=0.8, ls=":")
    ax.set(yticks=range(len(these)), xlim=(0, 1.15))
    ax.set_yticklabels(these, size=size)
    ax.invert_yaxis()


def steps(ax, these: dict[str, np.ndarray], colours, label: str):
    """Empirical distributions of p-values, and that of uniform ones."""
    for (name, p), colour in zip(these.items(), colours, strict=True):
        ax.step(np.sort(p), np.arange(1, len(p) + 1) / len(p), color=colour, label=name)
    ax.plot([0, 1], [0, 1], color=INK, lw=0.8, ls=":")
    ax.set(xlabel=label, ylabel="share below", xlim=(0, 1), ylim=(0, 1))
    ax.legend(fontsize=9, loc="upper left")


def film_of_pc(found: nx.DiGraph, places: dict, alt: str, caption: str) -> None:
    """PC at work: all edges, each removal with what was given, v-structures, the rest.

    Args:
        found: what `constraint.pc` answered.
    """
    left = nx.complete_graph(found, create_using=nx.DiGraph)
    frames = [("all edges", left.copy(), None, set())]
    for a, b, given, p in found.graph["removed"]:
        condition = f" | {', '.join(sorted(given))}" if given else ""
        frames.append(
            (f"{a} ⊥ {b}{condition}   p = {p:.2f}", left.copy(), (a, b), given)
        )
        left.remove_edges_from([(a, b), (b, a)])
    arrows = left.copy()
    for a, b in found.edges:
        others = {c for c in found.pred[b] if not found.has_edge(b, c)} - {a}
        near = {c for c in others if found.has_edge(a, c) or found.has_edge(c, a)}
        if not found.has_edge(b, a) and others - near:
            arrows.remove_edges_from([(b, a)])
    frames += [
        ("what is left", left, None, set()),
        ("v-structures", arrows, None, set()),
        ("Meek's rules", nx.DiGraph(found.edges), None, set()),
    ]
    fig, ax = plt.subplots(figsize=(6, 3.4))

    def update(i):
        ax.clear()
        words, graph, pair, given = frames[i]
        draw(ax, graph, places, {pair: ORANGE, pair[::-1]: ORANGE} if pair else {}, 13)
        for node in given:
            ax.plot(*places[node], "o", ms=26, color=BLUE, alpha=0.35)
        ax.set_title(words)

    order = [*range(len(frames)), len(frames) - 1]
    figures.film(fig, update, order, alt=alt, caption=caption, fps=1)


def truth_and_found(cases: dict, places: list[dict], false: list[list]):
    """Models above, grey what is not in the table, and below what was found of them.

    Args:
        cases: title → (true graph, found graph), the found one of fewer nodes perhaps.
        places: of the nodes, for each case.
        false: the edges of each found graph that are wrong.
    """
    fig, axes = plt.subplots(2, len(cases), figsize=(7.2, 3.4))
    parts = zip(axes.T, cases.items(), places, false, strict=True)
    for (upper, lower), (title, (truth, found)), at, wrong in parts:
        draw(upper, truth, at, size=11, hidden=set(truth) - set(found))
        there = {node: at[node] for node in found}
        draw(lower, found, there, dict.fromkeys(wrong, ORANGE), size=11)
        upper.set_title(title, size=10)
        lower.set(xlim=upper.get_xlim(), ylim=upper.get_ylim())
    for ax, text in zip(axes[:, 0], ("the truth", "found"), strict=True):
        where = {"transform": ax.transAxes, "va": "center", "ha": "right"}
        ax.text(-0.02, 0.5, text, rotation=90, size=10, **where)
    return fig


def answers(ax, these: dict[str, list]):
    """Of each method one bar, its shades the different answers, the commonest first."""
    for y, found in enumerate(these.values()):
        left = 0
        for k, count in enumerate(Counter(found).most_common()):
            style = {"color": BLUE, "alpha": 1 / (1 + 0.5 * k), "edgecolor": INK}
            ax.barh(y, count[1] / len(found), left=left, lw=0.5, **style)
            left += count[1] / len(found)
        kinds = len(set(found))
        ax.text(1.02, y, f"{kinds} answer{'s' * (kinds > 1)}", va="center")
    ax.set(yticks=range(len(these)), xlim=(0, 1.2), xticks=np.linspace(0, 1, 6))
    ax.set_yticklabels(these)
    ax.invert_yaxis()


def residuals(axes, pair: np.ndarray, title: str, first: bool, shown: int = 300):
    """A pair, what is left of Y after X, and of X after Y, each with HSIC's p-value.

    Args:
        axes: three; pair: (n, 2), in deviations; first: whether to label y axes.
    """
    smoother = additive.Smoother(pair)
    axes[0].plot(*pair[:shown].T, ".", color=GREY, ms=3)
    axes[0].set(title=title, xlabel="X", ylabel="Y" if first else "")
    ways = ((0, 1, BLUE), (1, 0, ORANGE))
    for ax, (cause, effect, colour) in zip(axes[1:], ways, strict=True):
        left = smoother.fit(effect, [cause]).residuals
        p = independence.hsic(pair[:, cause], left)[1]
        ax.plot(pair[:shown, cause], left[:shown], ".", color=colour, ms=3)
        ax.set(xlabel="XY"[cause], ylim=(-2.6, 2.6))
        ax.set_ylabel(f"rest of {'XY'[effect]}" if first else "")
        ax.set_title(f"independent? p = {p:.3f}", size=9)


def bars(ax, mean, error, colours):
    """Bars side by side: a group for each row, a colour for each column."""
    wide = 0.8 / mean.shape[1]
    for k, (name, colour) in enumerate(zip(mean, colours, strict=True)):
        at = np.arange(len(mean)) + wide * (k - (mean.shape[1] - 1) / 2)
        style = {"color": colour, "label": name, "capsize": 2}
        ax.bar(at, mean[name], 0.93 * wide, yerr=error[name], **style)
    ax.set_xticks(range(len(mean)), mean.index)
    ax.legend(fontsize=9, loc="upper left", ncols=mean.shape[1])


def imitations(trained: dict, runs: int = 4, shown: int = 150):
    """Pairs, what the networks of each direction make of them, and all runs' scores.

    Args:
        trained: "cause → effect" → (data, (2, runs) scores, networks), the networks of
            the first direction before those of the second.
    """
    size = (7.2, 1.8 * len(trained))
    fig, axes = plt.subplots(len(trained), 4, figsize=size, width_ratios=[1, 1, 1, 0.8])
    titles = "data", "cause → effect", "effect → cause", "1,000 MMD²"
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title)
    parts = zip(axes, trained.items(), strict=True)
    for row, (name, (data, score, generator)) in parts:
        with torch.no_grad():
            made = generator(len(data))
        clouds = (data, GREY), (made[0], BLUE), (made[runs].flip(-1), ORANGE)
        for ax, (points, colour) in zip(row, clouds, strict=False):
            ax.plot(*points[:shown].T, ".", color=colour, ms=3)
            ax.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), xticks=[], yticks=[])
        cause, effect = name.split(" → ")
        row[0].set_xlabel(cause, size=9)
        row[0].set_ylabel(effect, size=9)
        for at, colour in enumerate((BLUE, ORANGE)):
            along = at + np.linspace(-0.15, 0.15, runs)
            row[3].plot(along, 1_000 * score[at], "o", color=colour, ms=4)
            height = 1_000 * score[at].mean()
            row[3].plot([at - 0.3, at + 0.3], [height, height], color=colour)
        row[3].set(xlim=(-0.6, 1.6))
        row[3].set_xticks([0, 1], ["→", "←"])
    return fig


def intervals(ax, these: list[tuple[str, tuple[float, float], str]], size=9):
    """Estimates from above with 95 %: (name, (value, standard error), colour)."""
    for y, (_, (value, error), colour) in enumerate(these):
        style = {"fmt": "o", "color": colour, "ms": 4.5, "capsize": 2.5}
        ax.errorbar(value, y, xerr=1.96 * error, **style)
    ax.set_yticks(range(len(these)), [name for name, _, _ in these], size=size)
    ax.invert_yaxis()
