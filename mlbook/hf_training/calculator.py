"""How much memory a training needs, by the formulas of `memory`: sliders over size, precision and devices, with no kernel."""

import html
import json

from mlbook import scale_name
from mlbook.figures import PALETTE
from mlbook.hf_training import memory

MATRICES = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
PRECISIONS = {  # of weights and gradients; the rank of adapters; whether what is frozen has four bits
    "float32": ("float32", 0, False),
    "mixed, 2-byte weights": ("bfloat16", 0, False),
    "adapters on bfloat16": ("bfloat16", 16, False),
    "adapters on 4 bits": ("bfloat16", 16, True),
}
DEVICES = (1, 2, 4, 8, 16, 64)
STAGES = {
    "nothing": "nothing shared out",
    "optimizer": "optimizer",
    "gradients": "… and gradients",
    "everything": "… and weights (FSDP)",
}
PARTS = {
    "weights": "blue",
    "gradients": "orange",
    "moments": "green",
    "float32 copy": "pink",
    "activations": "grey",
}
CARDS = {"T4": 16, "H100": 80}
LEFT, WIDE = 150, 560  # of the picture's 720 units


def needed(config, precision: str, devices: int, sharded: str, length: int) -> dict:
    """Bytes on each device, by part, for one text of `length` tokens each, with checkpoints."""
    of, rank, packed = PRECISIONS[precision]
    total = memory.parameters(config)
    added = memory.lora_parameters(config, rank, MATRICES) if rank else 0
    found = memory.training(
        total + added,
        added or total,
        of,
        devices,
        sharded,
        memory.matrices(config) if packed else 0,
    )
    kept = memory.activations(config, 1, length, checkpointed=True)
    return found | {"activations": memory.BYTES[of] * kept}


def frame(config, precision: str, devices: int, length: int) -> list:
    """Four bars and two marks as the picture has them: for each bar the widths of its parts and its text; where the marks stand."""
    bars = [
        [value / 1e9 for value in needed(config, precision, devices, stage, length).values()]
        for stage in STAGES
    ]  # fmt: skip
    unit = WIDE / (1.2 * max(CARDS["H100"], *map(sum, bars)))
    return [
        [[[round(unit * x, 1) for x in bar], f"{sum(bar):,.1f} GB"] for bar in bars],
        [round(unit * size, 1) for size in CARDS.values()],
    ]


def page(configs: dict, alt: str, caption: str, start=(0, 0, 0), length=2_048) -> str:
    """The whole as HTML: three sliders and the picture, which follow each other.

    Args:
        configs: name → `transformers.LlamaConfig`.
        start: which model, precision and number of devices are shown first.
    """
    names = list(configs)
    frames = [
        [[frame(c, p, d, length) for d in DEVICES] for p in PRECISIONS]
        for c in configs.values()
    ]
    steps = {"model": names, "precision": list(PRECISIONS), "GPUs": [str(d) for d in DEVICES]}  # fmt: skip
    # one line of script for all sliders: it looks up a frame and moves what is drawn
    move = (
        "const f=this.closest('figure'),d=JSON.parse(f.dataset.all),i=[...f.querySelectorAll('input')].map(e=>+e.value),"
        "o=[...f.querySelectorAll('output')],k=Object.keys(d.steps);i.forEach((v,j)=>o[j].value=d.steps[k[j]][v]);"
        "const [b,m]=d.frames[i[0]][i[1]][i[2]];[...f.querySelectorAll('g.bar')].forEach((g,y)=>{let x=d.left;"
        "[...g.querySelectorAll('rect')].forEach((r,j)=>{r.setAttribute('x',x);r.setAttribute('width',b[y][0][j]);x+=b[y][0][j]});"
        "const t=g.querySelector('text.sum');t.setAttribute('x',x+6);t.textContent=b[y][1]});"
        "[...f.querySelectorAll('g.limit')].forEach((g,j)=>g.setAttribute('transform',`translate(${d.left+m[j]} 0)`))"
    )
    controls = "".join(
        f'<label style="display:flex;gap:.6em;align-items:center"><span style="min-width:5em">{what}</span>'
        f'<input type="range" min="0" max="{len(values) - 1}" value="{at}" step="1" style="flex:1" '
        f'aria-label="{what}" oninput="{html.escape(move)}"><output style="width:11em;font-size:.9em;white-space:nowrap">{html.escape(values[at])}</output></label>'
        for (what, values), at in zip(steps.items(), start, strict=True)
    )
    bars, marks = frames[start[0]][start[1]][start[2]]
    drawn = "".join(
        f'<g class="limit" transform="translate({LEFT + x} 0)"><path d="M0 34V196" stroke="currentColor" stroke-dasharray="4 3" opacity=".6"/>'
        f'<text x="{-4 if card == "T4" else 4}" y="42" text-anchor="{"end" if card == "T4" else "start"}" font-size="12" fill="currentColor">{card}: {size} GB</text></g>'
        for (card, size), x in zip(CARDS.items(), marks, strict=True)
    )
    for y, ((widths, text), stage) in enumerate(zip(bars, STAGES.values(), strict=True)):  # fmt: skip
        top, x, rects = 52 + 36 * y, LEFT, ""
        for width, (name, colour) in zip(widths, PARTS.items(), strict=True):
            rects += (
                f'<rect x="{x:.1f}" y="{top}" width="{width}" height="26" '
                f'fill="var(--mlbook-{colour},{PALETTE[colour]})"><title>{name}</title></rect>'
            )
            x += width
        drawn += (
            f'<g class="bar"><text x="{LEFT - 8}" y="{top + 18}" text-anchor="end" font-size="13" fill="currentColor">{stage}</text>'
            f'{rects}<text class="sum" x="{x + 6:.1f}" y="{top + 18}" font-size="13" fill="currentColor">{text}</text></g>'
        )
    legend, x = "", LEFT
    for name, colour in PARTS.items():
        legend += (
            f'<rect x="{x}" y="4" width="12" height="12" fill="var(--mlbook-{colour},{PALETTE[colour]})"/>'
            f'<text x="{x + 17}" y="15" font-size="12.5" fill="currentColor">{name}</text>'
        )
        x += 34 + 7 * len(name)
    everything = json.dumps(
        {"steps": steps, "frames": frames, "left": LEFT}, separators=(",", ":"), ensure_ascii=False
    )  # fmt: skip
    return (
        f'<figure class="mlbook-figure" style="margin:1em 0" data-all="{html.escape(everything)}">{controls}'
        f'<div class="mlbook-scroll" tabindex="0"><svg role="img" aria-label="{html.escape(alt)}" class="mlbook-svg" width="720" '
        f'viewBox="0 0 720 204" font-family="sans-serif">{legend}{drawn}</svg></div><figcaption>{html.escape(caption)} '
        f'<small class="mlbook-scale">Scale: {scale_name()}.</small></figcaption></figure>'
    )
