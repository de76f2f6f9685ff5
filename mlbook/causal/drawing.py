"""Causal graphs as pictures."""

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
from matplotlib.patches import FancyArrowPatch

from mlbook import figures
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
