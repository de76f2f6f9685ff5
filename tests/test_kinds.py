"""Kinds of cells: one tag folds a cell in the page, in JupyterLab and in Colab."""

import json
import sys
from pathlib import Path

import pytest

from book.builder import kinds

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def book(*cells):
    return {
        "cells": [
            {
                "cell_type": "code",
                "id": f"c{i}",
                "metadata": metadata,
                "source": source.splitlines(keepends=True),
            }
            for i, (source, metadata) in enumerate(cells)
        ]
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_kinds_of_every_chapter_are_spread(path):
    before = json.loads(path.read_text())
    assert kinds.spread(before) == before, "run `make format`"


@pytest.mark.parametrize(
    "kind, title",
    [
        ("figure", "How this is drawn"),
        ("check", "How this is checked"),
        ("setup", "Set-up"),
        ("source", "Source"),
    ],
)
def test_a_kind_folds_the_cell_everywhere(kind, title):
    metadata = {"tags": [kind, "raises-exception"], "lines_to_next_cell": 1}
    (cell,) = kinds.spread(book(("x = 1\ny = 2", metadata)))["cells"]
    assert "".join(cell["source"]) == f"# @title {title}\nx = 1\ny = 2"
    fold = "remove-input" if kind == "source" else "hide-input"
    assert cell["metadata"] == {
        "tags": [kind, "raises-exception", fold],
        "lines_to_next_cell": 1,
        "jupyter": {"source_hidden": True},
        "cellView": "form",
    }


def test_spreading_twice_changes_nothing_and_a_changed_kind_replaces_the_old():
    once = kinds.spread(book(("x = 1", {"tags": ["figure"]}), ("y = 2", {})))
    assert kinds.spread(once) == once
    tags = once["cells"][0]["metadata"]["tags"]
    tags[tags.index("figure")] = "check"
    (cell, _) = kinds.spread(once)["cells"]
    assert cell["source"] == ["# @title How this is checked\n", "x = 1"]


def test_an_idea_is_visible_everywhere():
    folded = kinds.spread(book(("x = 1", {"tags": ["figure"]})))
    folded["cells"][0]["metadata"]["tags"].remove("figure")
    (cell,) = kinds.spread(folded)["cells"]
    assert cell["metadata"] == {} and cell["source"] == ["x = 1"]


@pytest.mark.parametrize(
    "tags, message",
    [
        (["figrue"], "cell c0: tag 'figrue'"),
        (["figure", "check"], "c0 .* figure and check"),
    ],
)
def test_unknown_and_double_kinds_name_the_cell(tags, message):
    with pytest.raises(ValueError, match=message):
        kinds.spread(book(("x = 1", {"tags": tags})))


def test_the_command_checks_and_writes(tmp_path, monkeypatch, capsys):
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps(book(("é = 1", {"tags": ["setup"]}))))
    before = path.read_text()

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["kinds", *options, str(path)])
        return kinds.main()

    assert run("--check") == 1 and path.read_text() == before
    assert "a.ipynb" in capsys.readouterr().out
    assert run() == 0 and "# @title Set-up\\n" in path.read_text()
    assert "é" in path.read_text() and path.read_text().endswith("}\n")
    assert run("--check") == 0
    path.write_text(json.dumps(book(("x", {"tags": ["figrue"]}))))
    assert run() == 1 and "figrue" in capsys.readouterr().out
