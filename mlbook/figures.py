"""Figures: one style, colours that read on light and on dark, alternative text, films, and sliders without a kernel.

A still figure becomes SVG whose ink is the page's text colour and whose palette can be overridden by CSS
(`--mlbook-blue`, …), so the same output reads in the book, JupyterLab and Colab, light or dark.
A film becomes an MP4 inside the notebook, drawn dark on white; the book inverts it in dark mode.
"""

import base64
import contextlib
import hashlib
import html
import io
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from IPython.display import HTML, display
from matplotlib.animation import FFMpegWriter
from matplotlib.figure import Figure

# Okabe and Ito's colour-blind-safe palette (2008), the light ones darkened to 3:1 contrast on white.
PALETTE = {
    "blue": "#0072b2",
    "orange": "#d55e00",
    "green": "#008a65",
    "pink": "#b8578f",
    "grey": "#777777",
}
BLUE, ORANGE, GREEN, PINK, GREY = PALETTE.values()
INK = "#010203"  # stands for the text colour; no other line may use it
FILM_LIMIT = 1_200_000  # bytes

STYLE = {
    "figure.figsize": (6.4, 3.6),
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "axes.prop_cycle": matplotlib.cycler(color=[BLUE, ORANGE, GREEN, PINK, GREY]),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "mlbook",  # the same figure gives the same bytes
}

# A browser's own controls would lie over the lower part of a film; these stand beneath it.
_PARTS = "const p=this.closest('.mlbook-player'),v=p.querySelector('video'),b=p.querySelector('button'),r=p.querySelector('input');"
_TOGGLE = f'onclick="{_PARTS}v.paused?v.play():v.pause()"'
# A server that cannot send parts of a file (Python's own) lets nobody seek in one: then the
# film is fetched whole.
_SEEK = (
    "v.pause();const t=this.value,go=()=>{v.currentTime=t*v.duration};"
    "if(v.seekable.length&&v.seekable.end(0)>0)go();"
    "else fetch(v.currentSrc).then(a=>a.blob()).then(a=>{v.onloadedmetadata=go;v.src=window.URL.createObjectURL(a)})"
)
PLAYER = (
    f"{_TOGGLE} onplay=\"{_PARTS}b.textContent='❚❚';b.ariaLabel='Pause'\" "
    f"onpause=\"{_PARTS}b.textContent='▶';b.ariaLabel='Play'\" "
    f'ontimeupdate="{_PARTS}r.value=v.currentTime/v.duration"'
)
CONTROLS = (
    '<div class="mlbook-controls" style="display:flex;gap:.6em;align-items:center;max-width:800px">'
    f'<button type="button" aria-label="Play" style="min-width:3em" {_TOGGLE}>▶</button>'
    '<input type="range" min="0" max="1" step="any" value="0" aria-label="Position in the film" style="flex:1" '
    f'oninput="{_PARTS}{_SEEK}"></div>'
)


def use_style() -> None:
    """Make the book's style matplotlib's default, and leave the showing of figures to `show` and `film`."""
    matplotlib.rcParams.update(STYLE)
    plt.close("all")


def show(fig: Figure, alt: str, caption: str = "") -> None:
    """Display a figure as SVG that follows the page's light or dark mode, and close it.

    Args:
        fig: a matplotlib figure.
        alt: what a reader who cannot see it should know: the finding, not "a plot".
        caption: a line beneath it.
    Raises:
        ValueError: `alt` is empty, or nothing is drawn in `fig`.
    """
    _display(f'<div class="mlbook-scroll" tabindex="0">{_svg(fig, alt)}</div>', caption)


def slider(
    draw: Callable[[float], Figure],
    values: Sequence,
    label: str,
    alt: str,
    caption: str = "",
    start: int = 0,
) -> None:
    """Display `draw(value)` for every value behind a slider that needs no kernel: all frames are drawn now.

    Args:
        draw: makes the figure for one value.
        values: at most 40 of them, in the order of the slider.
        label: the slider's name, such as "base".
        alt: as in `show`, for the whole.
        start: index of the value shown first.
    Raises:
        ValueError: `values` is empty or longer than 40, or `alt` is empty.
    """
    if not 0 < len(values) <= 40:
        raise ValueError(f"a slider takes 1 to 40 values, got {len(values)}")
    glyphs, drawn = _share_glyphs(
        [_svg(draw(value), f"{alt} ({label} = {value})") for value in values]
    )
    frames = "".join(
        f'<div class="mlbook-frame" data-value="{html.escape(str(value))}"{"" if i == start else " hidden"}>{svg}</div>'
        for i, (value, svg) in enumerate(zip(values, drawn, strict=True))
    )
    move = (
        "const f=this.closest('figure'),s=[...f.querySelectorAll('.mlbook-frame')];"
        "s.forEach((e,i)=>e.hidden=i!=this.value);f.querySelector('output').value=s[this.value].dataset.value"
    )
    control = (
        f'<label style="display:flex;gap:.6em;align-items:center">{html.escape(label)} '
        f'<input type="range" min="0" max="{len(values) - 1}" value="{start}" step="1" style="flex:1" '
        f'aria-label="{html.escape(label)}" oninput="{move}"><output>{html.escape(str(values[start]))}</output></label>'
    )
    _display(
        f'{control}<div class="mlbook-scroll" tabindex="0">{glyphs}{frames}</div>',
        caption,
    )


def film(
    fig: Figure,
    update: Callable[[int], object],
    frames: int | Iterable[int],
    alt: str,
    caption: str = "",
    fps: int = 20,
    poster: int = -1,
) -> None:
    """Draw `update(i)` for every frame and display the film as MP4 (H.264), with one frame as its poster.

    Args:
        fig: the figure that `update` changes.
        update: called with each frame's number.
        frames: how many, or which.
        alt: what happens in the film, for a reader who cannot see it.
        fps: frames a second.
        poster: which of the frames stands before the film plays (an index into `frames`).
    Raises:
        ValueError: `alt` is empty, there are no frames, or the film is larger than 1.2 MB.
    """
    import imageio_ffmpeg

    _checked(alt)
    order = list(range(frames)) if isinstance(frames, int) else list(frames)
    if not order:
        raise ValueError("a film needs at least one frame")
    update(order[poster])
    if fig.get_layout_engine() is not None:  # laid out once: axes must not move
        fig.canvas.draw()
        fig.set_layout_engine("none")
    still = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        even = "pad=ceil(iw/2)*2:ceil(ih/2)*2:color=white"  # H.264 in 4:2:0 needs even sides
        args = [
            "-crf",
            "27",
            "-preset",
            "medium",
            "-pix_fmt",
            "yuv420p",
            "-movflags",
            "+faststart",
            "-vf",
            even,
        ]
        with matplotlib.rc_context(
            {"animation.ffmpeg_path": imageio_ffmpeg.get_ffmpeg_exe()}
        ):
            writer = FFMpegWriter(fps=fps, codec="libx264", extra_args=args)
            with writer.saving(fig, str(path), dpi=110):
                for i in order:
                    update(i)
                    writer.grab_frame()
        update(order[poster])
        fig.savefig(still, format="jpg", dpi=110, pil_kwargs={"quality": 85})
        plt.close(fig)
        video = path.read_bytes()
    if len(video) > FILM_LIMIT:
        raise ValueError(
            f"the film takes {len(video):,} bytes, the limit is {FILM_LIMIT:,}: fewer frames or dots"
        )
    size = fig.get_size_inches() * 110
    video_tag = (
        f'<video class="mlbook-film" loop muted playsinline preload="metadata" width="{size[0]:.0f}" '
        f'style="max-width:100%;height:auto" {PLAYER} aria-label="{html.escape(alt)}" '
        f'poster="data:image/jpeg;base64,{base64.b64encode(still.getvalue()).decode()}" '
        f'src="data:video/mp4;base64,{base64.b64encode(video).decode()}"></video>'
    )
    _display(f'<div class="mlbook-player">{video_tag}{CONTROLS}</div>', caption)


def _svg(fig: Figure, alt: str) -> str:
    """The figure as an inline `<svg>`; its colours are CSS variables, its ids unique on the page."""
    _checked(alt)
    if not any(ax.has_data() or ax.texts for ax in fig.axes):
        raise ValueError("nothing is drawn in this figure")
    out = io.StringIO()
    fig.savefig(
        out,
        format="svg",
        transparent=True,
        bbox_inches="tight",
        metadata={"Date": None},
    )
    plt.close(fig)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(?<= d=")[^"]*|(?<= [xy]=")[^"]*', _rounded, svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    svg = svg.replace(INK, "currentColor").replace(INK.upper(), "currentColor")
    for name, colour in PALETTE.items():
        svg = re.sub(colour, f"var(--mlbook-{name},{colour})", svg, flags=re.IGNORECASE)
    unique = "f" + hashlib.md5((svg + alt).encode()).hexdigest()[:8]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{unique}-", svg)
    return svg.replace(
        "<svg ",
        f'<svg role="img" aria-label="{html.escape(alt)}" class="mlbook-svg" ',
        1,
    )


def _rounded(coordinates: re.Match) -> str:
    """To a hundredth of a point: matplotlib writes six decimals, and a page of figures is made of little else."""
    text = re.sub(
        r"-?\d+\.\d+", lambda number: f"{round(float(number[0]), 2):g}", coordinates[0]
    )
    return " ".join(text.split())


def _share_glyphs(svgs: list[str]) -> tuple[str, list[str]]:
    """The outlines of letters that the figures draw, each once and in an `<svg>` of its own, and the figures without
    them."""
    ids: dict[str, str] = {}  # of each outline
    shared: dict[str, str] = {}  # the id of every copy → the id of the one that is kept
    glyph = re.compile(
        r'<path id="([^"]+)" ((?:d="[^"]*" )?transform="scale\([\d.]+\)"/>)\s*'
    )

    def take(copy: re.Match) -> str:
        shared[copy[1]] = ids.setdefault(copy[2], copy[1])
        return ""

    bare = [glyph.sub(take, svg) for svg in svgs]
    outlines = "".join(f'<path id="{name}" {rest}' for rest, name in ids.items())
    return (
        f'<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs>{outlines}</defs></svg>',
        [
            re.sub(r'(?<=href="#)[^"]+', lambda name: shared.get(name[0], name[0]), svg)
            for svg in bare
        ],
    )


def _checked(alt: str) -> str:
    if not alt.strip():
        raise ValueError("a figure needs alternative text (alt)")
    return alt


def _display(body: str, caption: str) -> None:
    from mlbook import scale_name

    words = f"{html.escape(caption)} " if caption else ""
    foot = f'<figcaption>{words}<small class="mlbook-scale">Scale: {scale_name()}.</small></figcaption>'
    with contextlib.suppress(ValueError):  # outside IPython there is nothing to show on
        display(
            HTML(
                f'<figure class="mlbook-figure" style="margin:1em 0">{body}{foot}</figure>'
            )
        )
