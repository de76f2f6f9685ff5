"""Causal graphs as pictures."""

import matplotlib.pyplot as plt
import networkx as nx
from matplotlib.patches import FancyArrowPatch

from mlbook.figures import GREY, INK


def draw(ax, graph: nx.DiGraph, places: dict, colours=None, size=14, hidden=(), curved=()):  # fmt: skip
    """Nodes as circles, edges as arrows, edges with both directions as plain lines.

    Args:
        places: node → (x, y).
        colours: edge (a, b) → its colour, where it is not the text's.
        size: radius of a node, in points.
        hidden: nodes that are not measured: dashed.
        curved: edges drawn as arcs, where straight ones would cross a node.
    """
    colours = dict(colours or {})
    for a, b in graph.edges:
        both = graph.has_edge(b, a)
        if both and (b, a) in list(graph.edges)[: list(graph.edges).index((a, b))]:
            continue
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
                connectionstyle=f"arc3,rad={0.3 if (a, b) in curved else 0}",
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
