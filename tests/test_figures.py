"""Figures: SVG that follows the page's colours, films that play, sliders, alternative text."""

import base64
import io
import re
import subprocess

import imageio_ffmpeg
import matplotlib.pyplot as plt
import numpy as np
import pytest

from mlbook import figures


@pytest.fixture(autouse=True)
def html(monkeypatch):
    """What the module displays, as HTML texts."""
    shown = []
    monkeypatch.setattr(figures, "display", lambda obj: shown.append(obj.data))
    figures.use_style()
    return shown


def plot():
    fig, ax = plt.subplots()
    ax.plot([0, 1], [1, 0], label="line")
    ax.legend()
    return fig


def test_a_still_uses_the_pages_ink_and_palette(html):
    figures.show(plot(), alt='it falls & is "straight"', caption="A < B")
    (text,) = html
    assert (
        "currentColor" in text
        and "var(--mlbook-blue,#0072b2)" in text
        and figures.INK not in text
    )
    assert (
        'aria-label="it falls &amp; is &quot;straight&quot;"' in text
        and "A &lt; B" in text
        and "Scale: smoke." in text
    )
    assert not plt.get_fignums(), "the figure is closed"


def test_two_figures_share_no_id(html):
    figures.show(plot(), alt="one")
    figures.show(plot(), alt="two")
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in html]
    assert ids[0] and not ids[0] & ids[1]
    for text, own in zip(html, ids, strict=True):
        assert set(re.findall(r'href="#([^"]+)"', text)) <= own, (
            "every reference resolves inside its figure"
        )


def test_the_same_figure_gives_the_same_bytes(html):
    figures.show(plot(), alt="one")
    figures.show(plot(), alt="one")
    assert html[0] == html[1]


def test_coordinates_are_rounded_to_a_hundredth_of_a_point(html):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 400))
    plain = io.StringIO()
    for out in (plain, None):
        fig, ax = plt.subplots()
        ax.plot(x, 1e3 * y, "-", lw=0.5)
        ax.scatter(x, 1e3 * y)
        if out:
            fig.savefig(out, format="svg", transparent=True, bbox_inches="tight")
    figures.show(fig, alt="scattered")
    places = [
        re.findall(r' (?:d|x|y)="([^"]*)"', text) for text in (plain.getvalue(), *html)
    ]
    assert len(places[0]) == len(places[1]) > 400
    for pair in zip(*places, strict=True):
        one, other = (
            [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", place)]
            for place in pair
        )
        assert np.allclose(one, other, rtol=0, atol=0.00501)
    before, after = (sum(map(len, texts)) for texts in places)
    assert after < 0.8 * before


@pytest.mark.parametrize("alt", ["", "  "])
def test_alternative_text_is_demanded(alt):
    with pytest.raises(ValueError, match="alternative text"):
        figures.show(plot(), alt=alt)


def test_an_empty_figure_is_refused():
    with pytest.raises(ValueError, match="nothing is drawn"):
        figures.show(plt.figure(), alt="nothing")


def test_a_film_is_small_h264_of_all_its_frames(html, tmp_path):
    fig, ax = plt.subplots(figsize=(3.01, 2.03))  # odd pixel counts
    (dot,) = ax.plot([0], [0], "o")
    ax.set_xlim(0, 12)
    figures.film(fig, lambda i: dot.set_data([i], [0]), 12, alt="a dot moves right")
    (text,) = html
    video = base64.b64decode(re.search(r'src="data:video/mp4;base64,([^"]+)"', text)[1])
    assert (
        'poster="data:image/jpeg' in text
        and 'aria-label="a dot moves right"' in text
        and len(video) < 100_000
    )
    path = tmp_path / "film.mp4"
    path.write_bytes(video)
    frames, _ = imageio_ffmpeg.count_frames_and_secs(str(path))
    about = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-i", path], capture_output=True, text=True
    ).stderr
    assert frames == 12 and "h264" in about and "yuv420p" in about


def test_a_film_over_the_limit_is_refused(monkeypatch):
    monkeypatch.setattr(figures, "FILM_LIMIT", 100)
    with pytest.raises(ValueError, match="the limit is 100"):
        figures.film(plot(), lambda i: None, 2, alt="too large")


def test_a_film_needs_frames():
    with pytest.raises(ValueError, match="at least one frame"):
        figures.film(plot(), lambda i: None, 0, alt="none")


def test_a_slider_holds_every_frame_and_shows_one(html):
    figures.slider(lambda v: plot(), [1, 2, 3], label="base", alt="lines", start=1)
    (text,) = html
    frames = re.findall(r'<div class="mlbook-frame" data-value="(\d)"( hidden)?>', text)
    assert (
        frames == [("1", " hidden"), ("2", ""), ("3", " hidden")]
        and "<output>2</output>" in text
    )
    assert 'aria-label="lines (base = 3)"' in text


def test_the_frames_of_a_slider_share_their_letters(html):
    def draw(value):
        fig = plot()
        fig.axes[0].set_title(f"title {value}")
        return fig

    figures.slider(draw, [1, 2, 34], label="base", alt="lines")
    (text,) = html
    head, *frames = text.split('<div class="mlbook-frame"')
    outlines = re.findall(r'<path id="([^"]+)" (.*?)transform="scale', head)
    assert outlines and len({d for _, d in outlines}) == len(outlines)
    for frame in frames:
        assert 'transform="scale(0.015625)"' not in frame
        own = set(re.findall(r'\bid="([^"]+)"', frame))
        used = set(re.findall(r'href="#([^"]+)"', frame))
        assert used - own and used - own <= {name for name, _ in outlines}


@pytest.mark.parametrize("values", [[], list(range(41))])
def test_a_slider_has_a_sensible_number_of_values(values):
    with pytest.raises(ValueError, match="1 to 40"):
        figures.slider(lambda v: plot(), values, label="base", alt="lines")
