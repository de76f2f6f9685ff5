"""The build: what makes a chapter stale, failures, interruption, claims, staging, the repository's address."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest

import mlbook
from book.builder import execute, freshness, pages, repository
from book.builder.__main__ import build
from book.builder.execute import BuildError

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
    say = said.append if said is not None else lambda line: None
    return execute.chapters(pages.chapter_paths(root), root, root / "cache", say)


def test_imports_are_followed_wherever_they_stand():
    source = "def f():\n    from mlbook import flow, scale\nimport numpy\n"
    found = freshness.imported_modules(source, ROOT)
    assert {
        "mlbook",
        "mlbook.flow_matching.flow",
        "mlbook.claims",
        "mlbook.source",
    } <= found.keys() and "mlbook.figures" not in found
    assert found["mlbook.flow_matching.flow"] == ROOT / "mlbook/flow_matching/flow.py"


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
    assert changed_names(root, touch("requirements.txt")) == ["requirements.txt"]
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
        "mlbook",
        "mlbook.alone",
        "mlbook.base",
        "mlbook.deep",
    ]


def test_recorded_measurements_make_stale_only_who_shows_them(root):
    results = root / "benchmarks" / "results"
    results.mkdir(parents=True)

    def record():
        (results / "x-card.json").write_text(str(len(list(results.iterdir()))))

    assert changed_names(root, record) == []
    write_chapter(root / "notebooks/one.ipynb", "print(recorded('x'))")
    (results / "x-card.json").unlink()
    assert changed_names(root, record) == ["benchmarks/results"]


def test_prose_does_not_make_a_chapter_stale(root):
    def edit():
        book = nbformat.read(root / "notebooks/one.ipynb", 4)
        book.cells[0].source += "\nMore words."
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
    write_chapter(root / "notebooks/one.ipynb", "raise ArithmeticError('too hot')")
    said = []
    with pytest.raises(BuildError):
        run(root, said)
    assert not any("two: executing" in line for line in said)


def test_four_cores_run_two_chapters_at_once(root, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    wait = """from pathlib import Path
import time
Path("../{0}.began").touch()
while not Path("../{1}.began").exists():
    time.sleep(0.05)"""
    write_chapter(root / "notebooks/one.ipynb", wait.format("one", "two"))
    write_chapter(root / "notebooks/two.ipynb", wait.format("two", "one"))
    monkeypatch.setattr(execute, "CELL_TIMEOUT", 60)
    done = run(root)
    assert [chapter.record["threads"] for chapter in done] == [2, 2]


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
    cell = "import matplotlib.pyplot as plt\nif False:\n    plt.subplots()"
    path = write_chapter(root / "notebooks/one.ipynb", cell)
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


def claim_cell(id):
    record = {
        "id": id,
        "statement": "1 < 2",
        "shown": "1",
        "marked": "<strong>1</strong>",
        "verdict": "confirmed",
        "asserted": True,
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


# The real book


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


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
    longest = max(code, key=lambda cell: cell.source.count("\n"))
    assert longest.source.count("\n") < 65, (
        f"a cell of more than a screen: {longest.source[:80]}"
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
    for path in repository.files(ROOT):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
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
    for path in NOTEBOOKS:
        assert f"{mlbook.REPOSITORY}@{TAG}" in path.read_text()


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
