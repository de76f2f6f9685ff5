"""What staging makes of executed chapters: pictures on cards, the Claims page, folds, the measures on the Status page."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from book.builder import measures, pages
from book.builder.execute import Chapter
from mlbook import figures


def claim(id, verdict="confirmed", **more):
    return {
        "id": id,
        "statement": f"{id} < 1",
        "marked": "<strong>0</strong> &lt; 1",
        "source": "",
        "verdict": verdict,
        "asserted": True,
        "place": "here",
        **more,
    }


def chapter(name, *htmls, claims=()):
    """A chapter that displayed `htmls`."""
    cells = [
        new_code_cell(
            "x", outputs=[new_output("display_data", {"text/html": text})], id=f"c{i}"
        )
        for i, text in enumerate(htmls)
    ]
    book = new_notebook(
        cells=[new_markdown_cell(f"# {name.title()}\n\nTo do."), *cells]
    )
    record = {"seconds": 30, "claims": [*claims]}
    return Chapter(name, Path(f"{name}.ipynb"), book, record)


@pytest.fixture
def drawn(monkeypatch):
    """What the package's figures display, as HTML."""
    shown = []
    monkeypatch.setattr(figures, "display", lambda obj: shown.append(obj.data))
    figures.use_style()
    return shown


def plot(width=1.0):
    fig, ax = plt.subplots()
    ax.plot([0, 1], [1, 0], label=f"width {width}", linewidth=width)
    ax.legend()
    return fig


def test_a_card_shows_the_poster_of_the_first_film(drawn):
    figures.show(plot(), alt="a still")
    figures.film(plot(), lambda i: None, 2, alt="it moves")
    files = {}
    cards = pages._cards([chapter("one", *drawn)], files)
    assert re.search(r'<img alt="it moves" src="../_static/media/\w+\.jpg">', cards)
    assert files == {}, "the film's poster is staged with its chapter"


@pytest.mark.parametrize("moved", [False, True])
def test_a_card_without_a_film_shows_the_first_figure(drawn, moved):
    if moved:
        figures.slider(plot, [1, 2], label="width", alt='a "line"', start=1)
    figures.show(plot(), alt='a "line"')
    files = {}
    cards = pages._cards([chapter("one", *drawn)], files)
    (alt, name) = re.search(
        r'<img alt="(.*?)" src="../(_static/media/\w+\.svg)">', cards
    ).groups()
    assert alt == "a &quot;line&quot;" + (" (width = 2)" if moved else "")
    svg = files[f"book/{name}"].decode()
    assert "var(" not in svg and "currentColor" not in svg and "#222222" in svg
    root = ET.fromstring(svg)  # a file of its own: XML, and every reference in it
    ids = {e.get("id") for e in root.iter()}
    used = {
        value[1:]
        for e in root.iter()
        for key, value in e.attrib.items()
        if key.endswith("href")
    }
    assert used and used <= ids


def test_a_card_without_a_picture_has_none():
    assert "<img" not in pages._cards([chapter("one", "<p>words</p>")], {})


def test_the_claims_page_puts_what_is_wrong_elsewhere_first():
    table = pages.claims_table(
        [
            chapter("one", claims=[claim("a.x"), claim("a.y", "refuted", source="S")]),
            chapter(
                "two",
                claims=[
                    claim("b.x", "corrected", place="recorded on <A100>, today"),
                    claim(
                        "b.y",
                        "open",
                        asserted=False,
                        unasserted="not asserted at this scale",
                    ),
                ],
            ),
        ]
    )
    heads = re.findall(r"^## (.+)$", table, re.MULTILINE)
    assert heads == ["Corrected: 1", "Refuted: 1", "Open: 1", "One", "Two"]
    assert "| **All** | 1 | 1 | 1 | 1 |" in table
    link = '<a href="../notebooks/two.html#claim-b.x">b.x &lt; 1</a>'
    assert table.count(link) == 2, "by verdict, and by chapter"
    assert table.count("recorded on &lt;A100&gt;, today") == 2
    assert "| corrected |" in table and "not asserted at this scale" in table


def test_folds_say_what_is_inside():
    book = new_notebook()
    for kind in ("setup", "figure", "setup", "source", None):
        tags = [kind, "hide-input"] if kind else []
        book.cells.append(new_code_cell("# @title T\nx = 1", metadata={"tags": tags}))
    for i, cell in enumerate(book.cells):
        pages._fold(cell, first=i == 0)
    prompts = [c.metadata.get("mystnb", {}).get("code_prompt_show") for c in book.cells]
    assert prompts == ["Set-up", "How this is drawn", "Set-up", "Source", None]
    assert book.cells[0].metadata["tags"] == ["hide-cell"], (
        "with the versions it prints"
    )
    assert book.cells[2].metadata["tags"] == ["setup", "hide-input"]
    assert [c.source for c in book.cells[:4]] == ["x = 1"] * 4


def test_the_measures_stand_beside_their_aims(tmp_path):
    values = dict.fromkeys(measures.TABLE, 0.25) | {"height": 12345}
    measures.keep(tmp_path / measures.RECORD, {"one": values})
    found = measures.recorded(tmp_path)
    table = pages.measures_table([chapter("one"), chapter("two")], found).split("\n")
    assert table[0] == "| Measure | Aim | One |"
    assert "| Visible code | ≤ 20 % | 25% |" in table
    assert "| Height, px | ≤ 30,000 | 12,345 |" in table
    assert measures.recorded(tmp_path / "elsewhere") == {}


def test_lines_of_code_are_counted_without_titles_and_blanks(tmp_path):
    book = new_notebook(
        cells=[new_code_cell("# @title T\nx = 1\n\ny = 2"), new_markdown_cell("z")]
    )
    nbformat.write(book, tmp_path / "n.ipynb")

    class Page:
        def evaluate(self, script):
            return dict(nfigures=3, words=1000, height=9)

    found = measures.measures(Page(), tmp_path / "n.ipynb")
    assert found["lines"] == 2 and found["density"] == 3.0
