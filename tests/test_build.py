"""The build: what makes a chapter stale, failures, interruption, claims, staging, the repository's address."""

import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import mlbook
from book.builder import (
    ci,
    execute,
    freshness,
    install,
    kinds,
    new,
    pages,
    records,
    repository,
)
from book.builder.execute import BuildError
from book.builder.progress import EVERY, Progress
from book.builder.render import at_scale, build

ROOT = Path(__file__).resolve().parents[1]
HEAD = "# {title}\n\nWhat it is for.\n"


def write_chapter(path, *cells):
    book = nbformat.v4.new_notebook(
        metadata={
            "kernelspec": {"name": "python3", "display_name": "p", "language": "python"}
        }
    )
    book.cells = [
        nbformat.v4.new_markdown_cell(HEAD.format(title=path.stem.title()), id="head")
    ]
    book.cells += [
        nbformat.v4.new_code_cell(source, id=f"cell-{i}")
        for i, source in enumerate(cells)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)
    return path


@pytest.fixture
def root(tmp_path):
    """A book of two small chapters with its own copy of the package's shape."""
    for name, text in {
        "requirements.txt": "torch==0\n",
        "mlbook/__init__.py": "from mlbook.base import x\n",
        "mlbook/base.py": "x = 1\n",
        "mlbook/alone.py": "import mlbook.deep\n",
        "mlbook/deep.py": "y = 2\n",
        "mlbook/other.py": "z = 3\n",
        "_toc.yml": "format: jb-book\nroot: book/index\nchapters:\n- file: notebooks/one\n- file: notebooks/two\n",
        "_config.yml": "title: t\n",
        "book/index.md": "# Book\n<!-- chapters -->\n",
        "book/claims.md": "# Claims\n<!-- claims -->\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    write_chapter(
        tmp_path / "notebooks/one.ipynb",
        "def later():\n    import mlbook.alone",
        "print('first')",
    )
    write_chapter(tmp_path / "notebooks/two.ipynb", "1 + 1")
    return tmp_path


def run(root, said=None):
    stream = io.StringIO()
    try:
        return execute.chapters(
            pages.chapter_paths(root), root, root / "cache", Progress(stream)
        )
    finally:
        if said is not None:
            said += stream.getvalue().splitlines()


def test_imports_are_followed_wherever_they_stand():
    source = "def f():\n    from mlbook import flow_matching, scale\nimport numpy\n"
    found = freshness.imported_modules(source, ROOT)
    assert {
        "mlbook",
        "mlbook.flow_matching",
        "mlbook.claims",
        "mlbook.source",
    } <= found.keys() and "mlbook.long_context" not in found
    assert found["mlbook.flow_matching"] == ROOT / "mlbook/flow_matching/__init__.py"


def test_relative_imports_are_followed(root):
    (root / "mlbook/alone.py").write_text("from . import deep\nfrom .other import z\n")
    assert freshness.imported_modules("import mlbook.alone", root).keys() >= {
        "mlbook.alone",
        "mlbook.deep",
        "mlbook.other",
    }


def test_magics_do_not_disturb(root):
    path = write_chapter(
        root / "notebooks/one.ipynb", "%pip list\n!ls\nimport mlbook.other"
    )
    assert "mlbook.other" in freshness.dependencies(path, root)


def changed_names(root, change):
    path = root / "notebooks/one.ipynb"
    before = {"dependencies": freshness.dependencies(path, root), "data": []}
    change()
    return freshness.changes(before, freshness.dependencies(path, root))


def test_what_makes_a_chapter_stale(root, monkeypatch):
    def touch(name):
        return lambda: (root / name).write_text((root / name).read_text() + "# more\n")

    assert changed_names(root, lambda: None) == []
    assert changed_names(root, touch("mlbook/deep.py")) == ["mlbook.deep"]
    assert changed_names(root, touch("mlbook/base.py")) == ["mlbook.base"]
    assert changed_names(root, touch("mlbook/other.py")) == [], (
        "a module that it does not import"
    )
    lock = root / "requirements.txt"
    assert changed_names(root, lambda: lock.write_text("torch==0\nother==1\n")) == [], (
        "a package that it does not reach"
    )
    assert changed_names(root, lambda: lock.write_text("torch==1\n")) == [
        "locked packages"
    ], "mlbook needs torch"
    assert changed_names(root, lambda: monkeypatch.setenv("MLBOOK_SCALE", "cpu")) == [
        "scale"
    ]
    assert changed_names(root, lambda: monkeypatch.setenv("MLBOOK_PRICES", "/p")) == [
        "settings"
    ]
    assert changed_names(
        root, lambda: write_chapter(root / "notebooks/one.ipynb", "print('second')")
    ) == [
        "its code",
        "locked packages",
        "mlbook",
        "mlbook.alone",
        "mlbook.base",
        "mlbook.deep",
    ]


def test_recorded_measurements_make_stale_only_who_shows_them(root):
    results = root / "benchmarks" / "results"
    results.mkdir(parents=True)

    def record(name):
        def write():
            with (results / f"{name}-card.json").open("a") as file:
                file.write("1")

        return write

    path = root / "notebooks/one.ipynb"
    assert changed_names(root, record("x")) == []
    write_chapter(path, "print(recorded('x'))")
    assert changed_names(root, record("x")) == ["benchmarks/results"]
    assert changed_names(root, record("other")) == []
    write_chapter(path, "print(recorded('x'), recorded(name))")
    assert changed_names(root, record("other")) == ["benchmarks/results"]


def test_prose_and_folding_do_not_make_a_chapter_stale(root):
    def edit():
        book = nbformat.read(root / "notebooks/one.ipynb", 4)
        book.cells[0].source += "\nMore words."
        book.cells[1].metadata["tags"] = ["check"]
        book = nbformat.from_dict(kinds.spread(book))
        nbformat.write(book, root / "notebooks/one.ipynb")

    assert changed_names(root, edit) == []


def test_data_that_changes_or_goes_makes_a_chapter_stale(root):
    import hashlib

    file = root / "prices.csv"
    file.write_text("1")
    record = {
        "data": [
            {"path": str(file), "sha256": hashlib.sha256(b"1").hexdigest()},
            {"name": "made"},
        ]
    }
    assert freshness.stale_data(record) == []
    file.write_text("2")
    assert freshness.stale_data(record) == [str(file)]
    file.unlink()
    assert freshness.stale_data(record) == [str(file)]


def test_unchanged_chapters_are_reused_and_prose_is_current(root):
    said = []
    first = run(root, said)
    assert (
        sum("executed in" in line for line in said) == 2
        and first[0].book.cells[2].outputs[0].text == "first\n"
    )
    book = nbformat.read(root / "notebooks/one.ipynb", 4)
    book.cells[0].source = HEAD.format(title="Renamed")
    nbformat.write(book, root / "notebooks/one.ipynb")
    said.clear()
    again = run(root, said)
    assert all("reused" in line for line in said) and again[0].title == "Renamed"
    assert again[0].book.cells[2].outputs[0].text == "first\n"


def test_a_failing_chapter_is_named_and_the_others_are_kept(root):
    write_chapter(
        root / "notebooks/two.ipynb", "a = 1", "raise ArithmeticError('too hot')"
    )
    said = []
    with pytest.raises(BuildError) as error:
        run(root, said)
    text = str(error.value)
    assert (
        "two.ipynb: cell 2 (id cell-1)" in text
        and "ArithmeticError: too hot" in text
        and "\x1b" not in text
    )
    write_chapter(root / "notebooks/two.ipynb", "a = 1")
    said.clear()
    run(root, said)
    assert any("one: reused" in line for line in said), (
        "what finished before the failure is resumed from"
    )
    assert any("two: executing" in line for line in said)


def test_two_chapters_do_not_share_two_cores(root, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setenv("MLBOOK_SCALE", "cpu")
    write_chapter(root / "notebooks/one.ipynb", "raise ArithmeticError('too hot')")
    said = []
    with pytest.raises(BuildError):
        run(root, said)
    assert not any("two: executing" in line for line in said)


@pytest.mark.parametrize("scale, cores", [("cpu", 4), ("smoke", 2)])
def test_two_chapters_run_at_once(root, monkeypatch, scale, cores):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setenv("MLBOOK_SCALE", scale)
    wait = """from pathlib import Path
import time
Path("../{0}.began").touch()
while not Path("../{1}.began").exists():
    time.sleep(0.05)"""
    write_chapter(root / "notebooks/one.ipynb", wait.format("one", "two"))
    write_chapter(root / "notebooks/two.ipynb", wait.format("two", "one"))
    monkeypatch.setattr(execute, "CELL_TIMEOUT", 60)
    done = run(root)
    assert [chapter.record["threads"] for chapter in done] == [cores // 2] * 2


def test_waiting_threads_sleep(root):
    names = "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "OMP_NUM_THREADS"
    write_chapter(
        root / "notebooks/one.ipynb",
        f"import os\nprint(*(os.environ[name] for name in {names}))",
    )
    chapter = run(root)[0]
    said = chapter.book.cells[1].outputs[0].text.split()
    assert said == ["PASSIVE", "0", str(chapter.record["threads"])]


def test_a_killed_kernel_is_reported(root):
    write_chapter(root / "notebooks/one.ipynb", "import os; os._exit(1)")
    with pytest.raises(BuildError, match=r"one\.ipynb: DeadKernelError"):
        run(root)


def test_half_a_record_counts_as_none(root):
    run(root)
    (root / "cache/one.json").write_text('{"dependencies": ')
    said = []
    run(root, said)
    assert any("one: executing" in line for line in said) and any(
        "two: reused" in line for line in said
    )


def test_a_figure_without_output_fails(root):
    write_chapter(
        root / "notebooks/one.ipynb",
        "import matplotlib.pyplot as plt\nfig, ax = plt.subplots()\nplt.close()",
    )
    with pytest.raises(BuildError, match=r"cell 1 .*nothing is visible"):
        run(root)


def test_a_figure_under_a_condition_is_shown_or_its_absence_explained(root):
    path = root / "notebooks/one.ipynb"
    for condition in ("for _ in []:", "if False:"):
        cell = f"import matplotlib.pyplot as plt\n{condition}\n    plt.subplots()"
        write_chapter(path, cell)
        with pytest.raises(BuildError, match=r"cell 1 .*no line that says why not"):
            run(root)
    write_chapter(path, f"{cell}\nelse:\n    print('The figure needs a GPU.')")
    run(root)


def test_a_picture_without_alternative_text_fails(root):
    write_chapter(
        root / "notebooks/one.ipynb",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()",
    )
    with pytest.raises(BuildError, match="without alternative text"):
        run(root)


def test_a_definition_that_would_draw_is_no_figure(root):
    write_chapter(root / "notebooks/one.ipynb", "def f():\n    plt.plot([1])")
    run(root)


def test_stderr_on_a_page_fails(root):
    write_chapter(root / "notebooks/one.ipynb", "import warnings; warnings.warn('old')")
    with pytest.raises(BuildError, match="stderr"):
        run(root)


CLAIM = "from IPython.display import display\ndisplay({{'{mime}': {record}, 'text/plain': ''}}, raw=True)"


def claim_cell(id, measured=1.0, verdict="confirmed"):
    record = {
        "id": id,
        "statement": "1 < 2",
        "measured": measured,
        "shown": "1",
        "marked": "<strong>1</strong>",
        "verdict": verdict,
        "asserted": True,
        "unasserted": "",
        "place": "here",
        "source": "",
    }
    return CLAIM.format(mime="application/vnd.mlbook.claim+json", record=record)


def test_a_claim_id_used_twice_fails(root):
    write_chapter(root / "notebooks/one.ipynb", claim_cell("a.b"))
    write_chapter(root / "notebooks/two.ipynb", claim_cell("a.b"))
    with pytest.raises(BuildError, match=r"a\.b is used twice: one and two"):
        pages.stage(root, root / "stage", run(root))


def test_staged_claims_link_to_their_cells(root):
    write_chapter(root / "notebooks/one.ipynb", claim_cell("a.b"))
    assert pages.stage(root, root / "stage", run(root))
    text = (root / "stage/book/claims.md").read_text()
    assert '<a href="../notebooks/one.html#claim-a.b">1 &lt; 2</a>' in text
    assert not pages.stage(root, root / "stage", run(root)), (
        "nothing changed, nothing is written"
    )


def test_films_leave_the_notebook_when_staged(root):
    uri = "data:video/mp4;base64,AAAA"
    cell = (
        "from IPython.display import HTML\n"
        f"HTML('<video aria-label=\"x\" src=\"{uri[:15]}' '{uri[15:]}\"></video>')"
    )
    write_chapter(root / "notebooks/one.ipynb", cell)
    pages.stage(root, root / "stage", run(root))
    assert uri not in (root / "stage/notebooks/one.ipynb").read_text()
    assert [
        p.read_bytes() for p in (root / "stage/book/_static/media").glob("*.mp4")
    ] == [b"\0\0\0"]


def test_every_notebook_is_in_the_table_of_contents(root):
    write_chapter(root / "notebooks/three.ipynb", "1")
    with pytest.raises(BuildError, match="leaves out: three"):
        pages.chapter_paths(root)
    (root / "notebooks/three.ipynb").unlink()
    (root / "notebooks/two.ipynb").unlink()
    with pytest.raises(BuildError, match="do not exist: notebooks/two"):
        pages.chapter_paths(root)


def test_a_dangling_link_fails_every_time_until_it_is_mended(root, capsys):
    (root / "_config.yml").write_text(
        "title: t\nonly_build_toc_files: true\nexecute:\n  execute_notebooks: 'off'\n"
        "sphinx:\n  config:\n    html_static_path: [book/_static]\n"
    )
    style = root / "book/_static/mlbook.css"
    style.parent.mkdir()
    style.write_text("p { color: green }")
    (root / "book/index.md").write_text("# Book\n\n[gone](nowhere.md)\n")
    for _ in range(2):
        with pytest.raises(BuildError, match="nowhere"):
            build(root, root / "out")
    (root / "book/index.md").write_text("# Book\n\n<!-- chapters -->\n")
    page = build(root, root / "out")
    assert page.is_file() and (root / "out/html/notebooks/one.html").is_file()
    capsys.readouterr()
    assert build(root, root / "out") == page
    assert "Pages: nothing changed" in capsys.readouterr().out
    for text in ("p { color: red }", "p { color: blue }"):  # no page changes with it
        style.write_text(text)
        build(root, root / "out")
        assert (root / "out/html/_static/mlbook.css").read_text() == text
    assert build(root, root / "out", "two").name == "two.html"
    with pytest.raises(BuildError, match="the chapters are: one, two"):
        build(root, root / "out", "three")


def test_a_chapter_says_how_far_it_is():
    for terminal in (False, True):
        now, stream = [0.0], io.StringIO()
        stream.isatty = lambda answer=terminal: answer
        progress = Progress(stream, lambda now=now: now[0])
        progress.start("one", cells=61, last=380)
        for cell, second in ((1, 0.0), (23, 118.0), (24, 119.0), (25, 400.0)):
            now[0] = second
            progress.cell("one", cell)
        progress.end("one")
        progress.say("done")
        text = stream.getvalue()
        first = "one: cell 23 of 61, 118 s so far, about 262 s to go (last time 380 s)"
        assert first in text and text.endswith("done\n")
        assert "one: cell 25 of 61, 400 s so far (last time 380 s)" in text
        if terminal:
            assert text.count("\n") == 1 and text.count("\r") == 4
        else:
            assert text.count("\n") == 3 and "\r" not in text


def test_a_long_cell_is_told_in_a_log(root, monkeypatch):
    monkeypatch.setattr("book.builder.progress.EVERY", EVERY / 100)
    write_chapter(root / "notebooks/one.ipynb", "1", "import time; time.sleep(1)")
    said = []
    run(root, said)
    assert any(line.startswith("  one: cell 2 of 2, ") for line in said)


# Records


def recorded(root, name="one"):
    return json.loads((root / f"book/records/{name}.json").read_text())


@pytest.fixture
def kept(root):
    """A book whose first chapter makes a claim from a file of data; and what executes it at cpu and keeps its records."""
    (root / "prices.csv").write_text("1")

    def write(measured=0.5, verdict="confirmed", id="a.b"):
        data = (
            "import hashlib, pathlib\nfile = pathlib.Path('../prices.csv')\n"
            "if file.exists():\n    display({'application/vnd.mlbook.data+json': {'name': 'prices', 'source': 's',"
            " 'path': str(file.resolve()), 'sha256': hashlib.sha256(file.read_bytes()).hexdigest()}}, raw=True)"
        )
        claim = claim_cell(id, measured=measured, verdict=verdict)
        write_chapter(root / "notebooks/one.ipynb", data, claim)

    def execute_and_keep():
        with at_scale("cpu"):
            return [records.keep(chapter, root) for chapter in run(root)]

    write()
    assert execute_and_keep() == [True, True]
    return write, execute_and_keep


def test_a_record_is_the_same_on_every_machine(root, kept, monkeypatch):
    text = (root / "book/records/one.json").read_text()
    assert str(root) not in text and platform.node() not in text
    assert '  "a.b": [0.5, "confirmed"]' in text
    monkeypatch.setattr(platform, "python_version", lambda: "3.0.0")
    monkeypatch.setattr(freshness, "device_name", lambda: "another")
    monkeypatch.setenv("MLBOOK_PRICES", "/elsewhere")
    assert records.stale(pages.chapter_paths(root), root) == {}
    for path in (root / "mlbook/base.py", root / "notebooks/one.ipynb"):
        text = path.read_text()
        path.write_text(text.replace("a.b", "a.c") + "\n" * path.name.endswith("py"))
    paths = pages.chapter_paths(root)
    assert records.stale(paths, root) == {"one": ["its code"]}
    (root / "book/records/two.json").unlink()
    assert records.stale(paths, root)["two"] == ["no record"]


def test_an_address_makes_no_record_stale(root, kept, monkeypatch):
    module = root / "mlbook/base.py"
    write_chapter(root / "notebooks/two.ipynb", "def f():\n    import mlbook.base")
    module.write_text(f"url = '{mlbook.REPOSITORY}'\n")
    kept[1]()
    fork = "https://github.com/somebody/their-book"
    module.write_text(f"url = '{fork}'\n")
    monkeypatch.setattr(mlbook, "REPOSITORY", fork)
    paths = pages.chapter_paths(root)
    assert records.stale(paths, root) == {}
    before = {"dependencies": freshness.dependencies(paths[1], root), "data": []}
    monkeypatch.setattr(mlbook, "REPOSITORY", "another")
    now = freshness.dependencies(paths[1], root)
    assert "address" in freshness.changes(before, now), "its pages show the address"


def test_a_record_that_holds_is_left_alone(root, kept):
    write, execute_and_keep = kept
    before = recorded(root)
    shutil.rmtree(root / "cache")
    assert execute_and_keep() == [False, False] and recorded(root) == before
    (root / "prices.csv").write_text("2")
    assert execute_and_keep() == [True, False]
    assert recorded(root)["data"] != before["data"]
    (root / "prices.csv").unlink()
    assert execute_and_keep() == [False, False], "a machine without the data"
    write(measured=0.25)
    assert execute_and_keep() == [True, False]
    assert recorded(root)["claims"] == {"a.b": [0.25, "confirmed"]}


def test_half_a_record_is_named(root, kept):
    (root / "book/records/one.json").write_text("<<<<<<< HEAD")
    with pytest.raises(ValueError, match=r"book/records/one\.json is no JSON"):
        records.stale(pages.chapter_paths(root), root)


def test_what_differs_from_a_record():
    old = {"claims": {"a": [1.0, "confirmed"], "b": [True, "refuted"]}, "data": {}}
    assert records.differences(old, old) == ([], [])
    new = {"claims": {"a": [1.5, "confirmed"], "c": [1, "confirmed"]}, "data": {}}
    wrong, moved = records.differences(old, new)
    assert wrong == ["b is no longer claimed", "c is not in the record"]
    assert moved == ["a: 1.0 in the record, 1.5 now"]
    new = {"claims": {"b": [True, "confirmed"]}, "data": {"prices": "1"}}
    wrong, moved = records.differences(old, new)
    assert wrong == ["b: refuted in the record, confirmed now"]
    assert len(moved) == 1 and "other data" in moved[0]
    new = {"claims": {"a": [0.5, "open"], "b": [True, "refuted"]}, "data": {}}
    assert records.differences(old, new)[0] == records.differences(new, old)[0] == []


# What CI executes

MINUTES = dict(zip("abcd", (120, 240, 360, 480), strict=True))


def test_each_fresh_chapter_has_its_turn():
    plans = [ci.plan(list("abcd"), {"b": ["its code"]}, MINUTES, i) for i in range(4)]
    assert [plan.repeated for plan in plans] == ["a", "c", "d", "a"]
    assert plans[1].smoke == ["a", "d"]


def test_nothing_is_repeated_beyond_the_budget():
    stale = {"b": ["its code"], "c": ["its code"]}
    assert ci.plan(list("abcd"), stale, MINUTES, 1).repeated == "a"
    assert ci.plan(list("bcd"), stale, MINUTES, 0).repeated is None
    everything = ci.plan(["b", "c"], stale, MINUTES, 0)
    assert everything.repeated is None and everything.smoke == []


def test_too_many_stale_chapters_fail_with_the_first_to_run():
    stale = {name: ["requirements.txt"] for name in "abcd"}
    with pytest.raises(BuildError, match=r"take 20 min\D+12") as error:
        ci.plan(list("abcd"), stale, MINUTES, 0)
    assert str(error.value).endswith("\n  make chapter NAME=d")


def test_ci_executes_each_chapter_where_it_is_needed(root, kept, monkeypatch):
    write, execute_and_keep = kept
    shown = []
    monkeypatch.setattr(
        ci, "rendered", lambda root, out, chapters, _: shown.extend(chapters) or out
    )
    stream = io.StringIO()

    def scales(turn):
        monkeypatch.setattr(ci, "commits", lambda root: turn)
        shown.clear()
        ci.build(root, root / "ci", Progress(stream))
        return [(c.name, c.record["scale"]) for c in shown]

    assert scales(0) == [("one", "cpu"), ("two", "smoke")]
    assert (root / "ci/left").read_text() == "notebooks/one.ipynb\n"
    assert scales(1) == [("one", "smoke"), ("two", "cpu")]
    write(measured=0.25)
    assert scales(1) == [("one", "cpu"), ("two", "cpu")]
    assert "one: its record is stale (its code)" in stream.getvalue()
    assert recorded(root)["claims"]["a.b"][0] == 0.5, "CI changes no record"
    execute_and_keep()
    text = (root / "book/records/one.json").read_text()
    (root / "book/records/one.json").write_text(text.replace("confirmed", "refuted"))
    with pytest.raises(BuildError, match="a.b: refuted in the record, confirmed now"):
        scales(0)
    (root / "book/records/one.json").write_text(text.replace("0.25", "0.75"))
    assert scales(0) == [("one", "cpu"), ("two", "smoke")]
    assert "a.b: 0.75 in the record, 0.25 now" in stream.getvalue()


# The installation


def test_an_installation_shows_that_it_moves(tmp_path, monkeypatch):
    wanted = tmp_path / "requirements.txt"
    wanted.write_text("one==1\ntwo==2 ; sys_platform == 'win32'\n# no package\n")
    pip = tmp_path / "pip.py"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for status in (0, 3):
        pip.write_text(
            "import sys, time\nprint('Collecting one', sys.argv[-2:], flush=True)\n"
            f"time.sleep(.5)\nsys.exit({status})"
        )
        said = []
        assert install.main(["-r", str(wanted)], 0.1, said.append) == status
        assert said[0].startswith("Installing 2 packages into ")
        assert any("1 of 2 found" in line for line in said[1:-1])
        assert ("Collecting one ['-r', " in said[-1]) == bool(status)


# A new chapter


def copy_of_the_tree(target):
    for path in repository.files(ROOT):
        to = target / path.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)
    return target


def test_the_template_has_its_kinds_spread():
    template = json.loads(new.TEMPLATE.read_text())
    assert kinds.spread(template) == template
    found = {kinds.kind(c) for c in template["cells"] if c["cell_type"] == "code"}
    assert found == {"setup", "figure", "check", None}


def test_a_new_chapter_builds_and_passes_at_once(tmp_path):
    copy = copy_of_the_tree(tmp_path)
    path = new.new_chapter(copy, "random-walks")
    assert pages.chapter_paths(copy)[-1] == path
    assert build(copy, copy / "out", "random-walks").is_file()
    book = nbformat.read(copy / "out/chapters/smoke/random-walks.ipynb", 4)
    (claim,) = execute.collect(book, execute.CLAIM_MIME)
    assert claim["id"] == "random-walks.variance-grows"
    assert nbformat.read(path, 4).cells[0].source.startswith("# Random walks\n")
    tests = "tests/test_build.py", "tests/test_kinds.py", "-k", path.stem
    for command in (
        ("pytest", *tests),
        ("ruff", "check", path),
        ("ruff", "format", "--check", path),
    ):
        run = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=copy,
            env=os.environ | {"PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stdout + run.stderr
    for name in ("random-walks", "Random walks", ""):
        with pytest.raises(ValueError, match="lower case words|already"):
            new.new_chapter(copy, name)


# The real book


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Chapters of the first edition, whose cells are longer than what a reader would type.
TO_BE_REWRITTEN = {"flash-attention", "torch-compile", "long-context"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_committed_as_they_should_be(path):
    book = nbformat.read(path, 4)
    nbformat.validate(book)
    code = freshness.code_cells(book)
    assert not any(cell.outputs or cell.execution_count for cell in code), (
        "outputs are never committed"
    )
    assert len({cell.id for cell in book.cells}) == len(book.cells)
    assert any("claim(" in cell.source for cell in code)
    seen = [cell for cell in code if not kinds.kind(cell)]
    longest = max(seen, key=lambda cell: cell.source.count("\n"))
    limit = 65 if path.stem in TO_BE_REWRITTEN else 30
    assert longest.source.count("\n") < limit, (
        f"a visible cell of {limit} lines or more: {longest.source[:80]}"
    )
    assert not re.search(r"[*`$\[]", book.cells[0].source.split("\n\n")[1]), (
        "the first paragraph stands on the front page, as plain text"
    )
    prose = "\n".join(
        cell.source for cell in book.cells if cell.cell_type == "markdown"
    )
    assert not re.search(r"^(```\{|:::|\{\w+\}`)", prose, re.MULTILINE), (
        "no MyST directives inside chapters"
    )
    assert r"\begin{align" not in prose.replace(r"\begin{aligned}", ""), (
        "displays use aligned"
    )


def test_every_copy_of_the_address_is_the_same():
    address = mlbook.REPOSITORY
    form = re.compile(
        r"https://github\.com/[\w.-]+/"
        + re.escape(address.rsplit("/", 1)[1])
        + r"(?![\w-])"
    )
    found = {
        p: set(form.findall(p.read_text()))
        for p in repository.files(ROOT)
        if p.parent != ROOT / "tests"
    }
    assert {a for addresses in found.values() for a in addresses} == {address}
    holders = {str(p.relative_to(ROOT)) for p, addresses in found.items() if addresses}
    assert {
        "_config.yml",
        "README.md",
        "pyproject.toml",
        "mlbook/source.py",
        "book/how-to-run.md",
    } <= holders
    assert {f"notebooks/{p.name}" for p in NOTEBOOKS} <= holders


def test_set_repository_changes_all_copies(tmp_path):
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    copy_of_the_tree(tmp_path)
    new = "https://github.com/somebody/their-book"
    changed = repository.set_repository(tmp_path, mlbook.REPOSITORY, new + ".git")
    assert (
        tmp_path / "mlbook/source.py" in changed
        and tmp_path / "notebooks/flow-matching.ipynb" in changed
    )
    assert not [
        p for p in repository.files(tmp_path) if mlbook.REPOSITORY in p.read_text()
    ]
    assert json.loads((tmp_path / "notebooks/flow-matching.ipynb").read_text())["cells"]
    with pytest.raises(ValueError, match="'not an address'"):
        repository.set_repository(tmp_path, new, "not an address")


def test_one_version():
    from mlbook.source import TAG

    pyproject = (ROOT / "pyproject.toml").read_text()
    assert (
        TAG == f"v{mlbook.__version__}"
        and f'version = "{mlbook.__version__}"' in pyproject
    )
    assert f"branch: {TAG}\n" in (ROOT / "_config.yml").read_text()
    for path in [*NOTEBOOKS, new.TEMPLATE]:
        assert f"{mlbook.REPOSITORY}@{TAG}" in path.read_text()


def test_the_readme_leads_from_chapters_to_files_that_exist():
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| .+ \| `(.+)` \| `(.+)` \| (.+) \| `(.+)` \|$", text, re.M)
    assert len(rows) >= 5
    for notebook, room, tests, benchmark in rows:
        for path in (
            f"notebooks/{notebook}.ipynb",
            f"mlbook/{room}/__init__.py",
            *(f"tests/{name}.py" for name in re.findall(r"`(\w+)`", tests)),
            f"benchmarks/{benchmark}",
        ):
            assert (ROOT / path).is_file(), path


def test_the_lock_is_complete_and_free_of_cuda():
    names = {
        re.split(r"[=<> ;\[]", line)[0]
        for line in (ROOT / "requirements.txt").read_text().splitlines()
    }
    assert {"torch", "triton", "jupyter-book", "torchdiffeq"} <= names
    assert not [n for n in names if n.startswith(("nvidia-", "cuda-"))]
    assert all(
        "==" in line for line in (ROOT / "requirements.txt").read_text().splitlines()
    )
