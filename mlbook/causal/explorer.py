"""A causal graph to click on, with no kernel: what is conditioned on opens and closes
paths, and the correlations of simulated data say whether that is so."""

import html
import json
from itertools import combinations, pairwise

import networkx as nx
import numpy as np

from mlbook import scale_name
from mlbook.causal.borders import check_table
from mlbook.causal.graphs import is_open, passes, paths
from mlbook.causal.scm import graph_of, simulate
from mlbook.common.checks import check_count
from mlbook.figures import PALETTE

SIZE, RADIUS, CELL = 330, 19, 46  # of the graph's picture, of a node, of a cell
# how an edge looks: on no path, on one that is blocked, on one that is open
LOOKS = {"-": ("grey", 1.6, ""), "b": ("orange", 3, "5 4"), "o": ("blue", 4, "")}

# The one piece of script: it looks up what the clicked state shows and sets attributes.
SCRIPT = """
const d=JSON.parse(f.dataset.all),s=f.state=f.state||{z:0,pair:d.start};
if(what=='node')s.z^=1<<i;else s.pair=i;
const z=s.z,p=s.pair,of=q=>f.querySelectorAll(q),set=(e,o)=>{for(const k in o)e.setAttribute(k,o[k])};
of('.node').forEach((g,k)=>{const on=z>>k&1;g.setAttribute('aria-pressed',!!on);
set(g.firstChild,{rx:on?3:d.radius,'fill-opacity':on?.35:0,'stroke-width':d.pairs[p].includes(k)?3.5:1.5})});
of('.edge').forEach((e,k)=>{const [c,w,h]=d.looks[d.edges[z][p][k]];
set(e,{stroke:`var(--mlbook-${c},${d.colours[c]})`,'stroke-width':w,'stroke-dasharray':h})});
of('.pair').forEach((g,k)=>{const r=d.r[z][k],b=g.firstChild,t=g.lastChild;
t.textContent=r==null?'':(r<-.005?'−':'')+Math.abs(r).toFixed(2);
set(b,{'fill-opacity':r==null?0:Math.min(1,Math.abs(r))*.75,'stroke-width':k==p?3:.6,
fill:`var(--mlbook-${r<0?'orange':'blue'},${d.colours[r<0?'orange':'blue']})`})});
of('output')[0].textContent=d.words[z][p];
""".replace("\n", "")


def _given(names: list, z: int) -> list[int]:
    return [k for k in range(len(names)) if z >> k & 1]


def correlations(data, z: list[int]) -> np.ndarray:
    """Partial correlations of all pairs given columns z; NaN where one of a pair is in
    z."""
    whole = np.corrcoef(np.asarray(data), rowvar=False)
    d = len(whole)
    rest = [k for k in range(d) if k not in z]
    left = whole[np.ix_(rest, rest)]
    if z:
        cross = whole[np.ix_(rest, z)]
        left = left - cross @ np.linalg.solve(whole[np.ix_(z, z)], cross.T)
    size = np.sqrt(np.diag(left))
    found = np.full((d, d), np.nan)
    found[np.ix_(rest, rest)] = left / np.outer(size, size)
    return found


def states(scm: dict, n: int, seed: int = 0) -> dict:
    """What each choice of a pair and of what is conditioned on shows.

    Returns:
        "pairs"; "edges": for each z (bits: nodes) and pair, how each edge looks;
        "r": for each z the correlation of each pair; "words".
    """
    graph, names = graph_of(scm), list(scm)
    data = check_table(simulate(scm, n, seed=seed))
    pairs = list(combinations(range(len(names)), 2))
    edges, r, words = [], [], []
    for z in range(2 ** len(names)):
        given = _given(names, z)
        partial = correlations(data, given)
        r.append(
            [None if np.isnan(partial[p]) else round(partial[p], 3) for p in pairs]
        )
        chance = 1.96 / (n - len(given) - 3) ** 0.5
        seen = [_explain(graph, names, p, given, partial[p], chance) for p in pairs]
        edges.append([look for look, _ in seen])
        words.append([text for _, text in seen])
    return {"pairs": pairs, "edges": edges, "r": r, "words": words}


def _explain(graph: nx.DiGraph, names: list, pair, given: list[int], r: float, chance: float):  # fmt: skip
    """How the edges look between a pair, given those nodes, and a sentence."""
    x, y = (names[k] for k in pair)
    z = {names[k] for k in given}
    if {x, y} & z:
        held = " and ".join(sorted({x, y} & z))
        return "-" * graph.number_of_edges(), f"{held} is conditioned on: choose another pair."  # fmt: skip
    looks, texts = dict.fromkeys(graph.edges, "-"), []
    found = sorted(paths(graph, x, y), key=lambda path: is_open(graph, path, z))
    for path in found:
        opened = is_open(graph, path, z)
        text = path[0]
        for a, b in pairwise(path):
            looks[(a, b) if graph.has_edge(a, b) else (b, a)] = "o" if opened else "b"
            text += f" {'→' if graph.has_edge(a, b) else '←'} {b}"
        steps = zip(path, path[1:], path[2:], strict=False)
        shut = [node for a, node, b in steps if not passes(graph, a, node, b, z)]
        texts.append(f"{text} is {'open' if opened else 'blocked at ' + ', '.join(shut)}")  # fmt: skip
    condition = f" given {', '.join(sorted(z))}" if z else ""
    apart = not any(is_open(graph, path, z) for path in found)
    verdict = "d-separated" if apart else "d-connected"
    told = "; ".join(texts) or "no path"
    beyond = "within" if abs(r) <= chance else "beyond"
    return "".join(looks.values()), (
        f"{x} and {y}{condition}: {told}: {verdict}. Correlation {_signed(r)}, {beyond} "
        f"the ±{chance:.3f} of chance."
    )


def _signed(r: float, digits: int = 3) -> str:
    return f"{r:+.{digits}f}".replace("-", "−")


def page(scm: dict, places: dict, pair: tuple, alt: str, caption: str, n: int = 2_000) -> str:  # fmt: skip
    """The whole as HTML.

    Args:
        scm: as `scm.simulate` takes it, two to six variables.
        places: variable → (x, y), each from 0 to 1, y upwards.
        pair: the two variables that are looked at first.
        n: rows of simulated data.
    Raises:
        ValueError: fewer or more variables, two in one place, fewer than 20 rows, or
            variables that determine each other.
    """
    names = list(scm)
    if not 2 <= len(names) <= 6:
        raise ValueError(f"two to six variables can be explored, got {len(names)}")
    if len({*places.values()}) < len(names):
        raise ValueError(f"each variable needs a place of its own, got {places}")
    check_count("n", n, 20)
    all_states = states(scm, n)
    start = all_states["pairs"].index(tuple(sorted(names.index(node) for node in pair)))
    everything = all_states | {
        "start": start,
        "radius": RADIUS,
        "looks": LOOKS,
        "colours": PALETTE,
    }
    graph = graph_of(scm)
    at = {
        name: (30 + x * (SIZE - 60), 30 + (1 - y) * (SIZE - 110))
        for name, (x, y) in places.items()
    }
    first = all_states["edges"][0][start]
    drawn = _edges(graph, at, first) + "".join(
        f'<g class="node" role="button" tabindex="0" aria-pressed="false" '
        f'aria-label="condition on {html.escape(name)}" style="cursor:pointer" {_handlers("node", k)}>'
        f'<rect x="{at[name][0] - RADIUS}" y="{at[name][1] - RADIUS}" width="{2 * RADIUS}" '
        f'height="{2 * RADIUS}" rx="{RADIUS}" fill="currentColor" fill-opacity="0" '
        f'stroke="currentColor" stroke-width="{3.5 if k in all_states["pairs"][start] else 1.5}"/>'
        f'<text x="{at[name][0]}" y="{at[name][1] + 5}" text-anchor="middle" '
        f'fill="currentColor">{html.escape(name)}</text></g>'
        for k, name in enumerate(names)
    )
    cells = _cells(names, all_states, start)
    wide = CELL * len(names) + 10
    data = html.escape(
        json.dumps(everything, separators=(",", ":"), ensure_ascii=False)
    )
    style = 'font-family="sans-serif" font-size="13" style="max-width:100%;height:auto"'
    return (
        f'<figure class="mlbook-figure" style="margin:1em 0" data-all="{data}" '
        f'data-script="{html.escape(SCRIPT)}"><div '
        'style="display:flex;flex-wrap:wrap;gap:1em;justify-content:center;align-items:center">'
        f'<svg role="group" aria-label="{html.escape(alt)}" width="{SIZE}" viewBox="0 0 {SIZE} {SIZE - 50}" {style}>{drawn}</svg>'
        f'<svg role="group" aria-label="correlation of each pair" width="{wide}" viewBox="0 0 {wide} {wide}" {style}>{cells}</svg></div>'
        f'<output style="display:block;min-height:4.5em">{html.escape(all_states["words"][0][start])}</output>'
        f"<figcaption>{html.escape(caption)} "
        f'<small class="mlbook-scale">Scale: {scale_name()}.</small></figcaption></figure>'
    )


def _handlers(what: str, i: int) -> str:
    call = (
        "const f=this.closest('figure');f.ask=f.ask||new Function('f','what','i',f.dataset.script);"
        f"f.ask(f,'{what}',{i})"
    )
    return f"onclick=\"{call}\" onkeydown=\"if(event.key=='Enter'||event.key==' '){{event.preventDefault();{call}}}\""


def _edges(graph: nx.DiGraph, at: dict, looks: str) -> str:
    """Arrows, line and head together, so that both take one colour."""
    drawn = ""
    for (a, b), look in zip(graph.edges, looks, strict=True):
        (x0, y0), (x1, y1) = at[a], at[b]
        size = np.hypot(x1 - x0, y1 - y0)
        u, v = (x1 - x0) / size, (y1 - y0) / size
        x0, y0 = x0 + u * (RADIUS + 3), y0 + v * (RADIUS + 3)
        x1, y1 = x1 - u * (RADIUS + 4), y1 - v * (RADIUS + 4)
        left = f"{x1 - 9 * u - 5 * v:.1f} {y1 - 9 * v + 5 * u:.1f}"
        right = f"{x1 - 9 * u + 5 * v:.1f} {y1 - 9 * v - 5 * u:.1f}"
        colour, width, dash = LOOKS[look]
        drawn += (
            f'<g class="edge" fill="none" stroke="var(--mlbook-{colour},{PALETTE[colour]})" '
            f'stroke-width="{width}" stroke-dasharray="{dash}"><path d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"/>'
            f'<path stroke-dasharray="none" d="M{left}L{x1:.1f} {y1:.1f}L{right}"/></g>'
        )
    return drawn


def _cells(names: list, all_states: dict, start: int) -> str:
    """The lower triangle of the correlations, a button for each pair."""
    drawn = "".join(
        f'<text x="{(k + 0.5) * CELL}" y="{(k + 0.5) * CELL + 5}" text-anchor="middle" '
        f'fill="currentColor" font-weight="bold">{html.escape(name)}</text>'
        for k, name in enumerate(names)
    )
    for k, ((i, j), r) in enumerate(zip(all_states["pairs"], all_states["r"][0], strict=True)):  # fmt: skip
        colour = "orange" if r < 0 else "blue"
        drawn += (
            f'<g class="pair" role="button" tabindex="0" aria-label="{html.escape(names[i])} and {html.escape(names[j])}" style="cursor:pointer" {_handlers("pair", k)}>'
            f'<rect x="{i * CELL + 2}" y="{j * CELL + 2}" width="{CELL - 4}" height="{CELL - 4}" stroke="currentColor" '
            f'stroke-width="{3 if k == start else 0.6}" fill="var(--mlbook-{colour},{PALETTE[colour]})" fill-opacity="{min(1, abs(r)) * 0.75:.2f}"/>'
            f'<text x="{(i + 0.5) * CELL}" y="{(j + 0.5) * CELL + 5}" text-anchor="middle" fill="currentColor">'
            f"{'−' if r < -0.005 else ''}{abs(r):.2f}</text></g>"
        )
    return drawn
