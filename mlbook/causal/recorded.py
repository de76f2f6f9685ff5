"""What was recorded, as pictures and in lines: searches on networks, the map of
methods, proteins, pairs."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from mlbook.causal.experiments import wilson
from mlbook.figures import BLUE, GREEN, GREY, INK, ORANGE, PINK
from mlbook.leveraged_etfs.drawing import heat

PAIRS = {
    "lingam": "LiNGAM",
    "anm": "ANM",
    "igci": "IGCI",
    "quantiles": "quantiles",
    "cgnn": "CGNN",
}
GRAPHS = {
    "pc": "PC",
    "exact": "best BIC",
    "direct_lingam": "LiNGAM",
    "cam": "CAM",
    "notears": "NOTEARS",
    "notears, standardised": "NOTEARS, std.",
    "best of its class": "true CPDAG",
}
CELL = ["hidden", "shape", "noise", "rows"]


def networks(record: dict):
    """Distance to the true CPDAG of each search on each network, mean of the draws."""
    rows = [
        {k: r[k] for k in ("network", "edges")} | r["shd"] for r in record["networks"]
    ]
    mean = pd.DataFrame(rows).groupby("network").mean().sort_values("edges")
    searches = [name for name in mean if name not in ("edges", "nothing")]
    colour = {"ours": BLUE, "PC": GREY, "GES": GREEN, "hill": GREEN, "MMHC": PINK}
    colours = [next(c for key, c in colour.items() if key in name) for name in searches]
    fig, axes = plt.subplots(1, len(mean), figsize=(7.2, 2.9), sharey=True)
    for ax, (network, row) in zip(axes, mean.iterrows(), strict=True):
        ax.barh(range(len(searches)), row[searches].fillna(0), color=colours)
        for y, value in enumerate(row[searches]):
            there = np.isfinite(value)
            text = f" {value:.0f}" if there else " too slow"
            ax.text(value if there else 0, y, text, va="center", size=8)
        ax.axvline(row["edges"], color=ORANGE, lw=1.2)
        most = max(row[searches].max(), row["edges"])
        ax.set(title=f"{network}\n{row['edges']:.0f} edges", xlim=(0, 1.35 * most))
    axes[0].set(yticks=range(len(searches)))
    axes[0].set_yticklabels(searches, size=8.5)
    axes[0].invert_yaxis()
    fig.supxlabel("structural Hamming distance to the true CPDAG", size=10)
    return fig


def cells(record: dict) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of the map: the share of right directions for pairs, and the distance to the true
    DAG over its edges, one row for each kind of data and one column for each method."""
    two = [{k: r[k] for k in CELL} | r["right"] for r in record["two"]]
    six = [
        {k: r[k] for k in CELL} | {m: v / r["edges"] for m, v in r["shd"].items()}
        for r in record["graphs"]
        if r["edges"]
    ]
    return tuple(
        pd.DataFrame(rows).groupby(CELL)[list(names)].mean().rename(columns=names)
        for rows, names in ((two, PAIRS), (six, GRAPHS))
    )


def atlas(record: dict):
    """`cells` as two rows of heat maps, without and with hidden causes."""
    fig, axes = plt.subplots(2, 2, figsize=(7.4, 5.6), height_ratios=[5, 7])
    styles = ((0.0, 1.0, "{:.0%}", 0.5), (0.2, 2.0, "{:.1f}", None))
    for line, (table, style) in enumerate(zip(cells(record), styles, strict=True)):
        for ax, hidden in zip(axes[line], (False, True), strict=True):
            part = table.loc[hidden].T
            heat(ax, part, *style[:3], even=style[3], size=8)
            ax.set_title("hidden causes" if hidden else "nothing hidden", size=10)
            ax.set_yticks(range(len(part)), [] if hidden else part.index, size=9)
            kinds = [f"{s}, {n}, {r:,}" for s, n, r in part.columns] if line else []
            ax.set_xticks(range(part.shape[1]), kinds, rotation=60, ha="right", size=8)
    return fig


def proteins(record: dict):
    """Edges that each search finds among Sachs's proteins, by what the network says."""
    table = pd.DataFrame(record["proteins"])
    table = table[table["method"] != "nothing"]
    table["astray"] = table["arrows"] - table["arrows right"] - table["arrows reversed"]
    table["plain"] = table["edges"] - table["arrows"]
    kinds = {
        "arrows right": ("arrow right", BLUE),
        "arrows reversed": ("reversed", ORANGE),
        "astray": ("not in the network", GREY),
        "plain": ("without direction", "none"),
    }
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 2.7), sharey=True, sharex=True)
    titles = {"none": "853 cells, no drug", "all": "all 7,466 cells"}
    for ax, (which, title) in zip(axes, titles.items(), strict=True):
        part = table[table["cells"] == which].reset_index()
        left = np.zeros(len(part))
        for kind, (label, colour) in kinds.items():
            style = {"color": colour, "edgecolor": INK, "lw": 0.5, "label": label}
            ax.barh(part["method"], part[kind], left=left, **style)
            left += part[kind]
        ax.axvline(18, color=INK, lw=0.8, ls=":")
        ax.set(title=title, xlabel="edges found")
    axes[0].invert_yaxis()
    axes[0].tick_params(axis="y", labelsize=9)
    axes[0].legend(
        *axes[1].get_legend_handles_labels(), fontsize=8.5, loc="center right"
    )
    return fig


def votes(record: dict) -> tuple[pd.DataFrame, pd.Series]:
    """Which pairs each method has right; and each pair's vote, if pairs from one source
    (neighbours in the file with equally many rows) have one together."""
    right = pd.DataFrame([r["right"] for r in record["pairs"]]).rename(columns=PAIRS)
    source = (pd.Series([r["rows"] for r in record["pairs"]]).diff() != 0).cumsum()
    return right, 1 / source.map(source.value_counts())


def pairs_told(record: dict, widths: list[dict]) -> list[str]:
    """What `votes` and the answers say, in lines: each method's share and interval, how
    often ANM rejects both directions, and CGNN where it is surest and by its size.

    Args:
        widths: what CGNN says of the pairs with other numbers of hidden units.
    """
    right, vote = votes(record)
    n = len(right)
    lines = []
    for name in right:
        low, high = wilson(right[name].mean(), n)
        by_source = np.average(right[name], weights=vote)
        lines.append(f"{name:9} {right[name].sum():2} of {n}, 95 % [{low:.2f}, {high:.2f}]; by source {by_source:.2f}")  # fmt: skip
    rejected = np.array([r["answers"]["anm"]["p"] for r in record["pairs"]]) < 0.05
    both, one = (rejected.sum(1) == k for k in (2, 1))
    lines.append(f"ANM rejects both directions at 5 % in {both.sum()} pairs, just one in {one.sum()};")  # fmt: skip
    lines.append(f"of those it is right on {right['ANM'][one].sum()}")
    mmd = np.array([r["answers"]["cgnn"]["mmd"] for r in record["pairs"]]).mean(2)
    surest = np.argsort(-np.abs(mmd[:, 1] - mmd[:, 0]) / mmd.mean(1))[:30]
    lines.append(f"CGNN on the 30 pairs whose directions differ most: {right['CGNN'][surest].sum()} right")  # fmt: skip
    for hidden in widths[0]["mmd"]:
        mmd = np.array([each["mmd"][hidden] for each in widths]).mean(2)
        lines.append(f"CGNN with {hidden:>3} hidden units, at most 300 rows: {(mmd[:, 0] < mmd[:, 1]).sum()} of {len(mmd)}")  # fmt: skip
    return lines


def tuebingen(record: dict, cited: dict[str, float]):
    """Shares of right directions with their intervals, beside those of a paper."""
    right, vote = votes(record)
    fig, ax = plt.subplots(figsize=(6.6, 2.7))
    for y, name in enumerate(right):
        share = right[name].mean()
        ax.plot(wilson(share, len(right)), [y, y], color=BLUE, lw=2)
        ax.plot(share, y, "o", color=BLUE, label=None if y else "share of pairs, 95 %")
        by_source = np.average(right[name], weights=vote)
        style = {"color": GREEN, "ms": 4, "label": None if y else "one vote a source"}
        ax.plot(by_source, y + 0.22, "s", **style)
        style = {"mfc": "none", "color": ORANGE, "ms": 5}
        label = None if y else "in the paper of CGNN"
        ax.plot(cited.get(name, np.nan), y - 0.22, "D", **style, label=label)
    ax.axvline(0.5, color=INK, lw=0.8, ls=":")
    ax.set(yticks=range(right.shape[1]), xlabel="right directions", xlim=(0.3, 0.95))
    ax.set_yticklabels(right.columns)
    ax.invert_yaxis()
    ax.legend(fontsize=8.5, loc="lower right")
    return fig
