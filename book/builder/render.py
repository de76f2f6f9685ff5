"""From chapters to pages: execute what is stale, keep the records, stage, and let Jupyter Book render."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from filelock import FileLock

import mlbook
from book.builder import execute, pages, records
from book.builder.execute import BuildError, Chapter
from book.builder.progress import Progress

ROOT = Path(__file__).resolve().parents[2]
# Where the book is built at each scale; the one of CI is a mixture.
FOLDERS = {
    "smoke": "_build/preview",
    "cpu": "_build",
    "gpu": "_build",
    "ci": "_build/ci",
}


@contextlib.contextmanager
def at_scale(name: str):
    """The scale in force is `name`, here and in the kernels started here."""
    before = os.environ.get("MLBOOK_SCALE")
    os.environ["MLBOOK_SCALE"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["MLBOOK_SCALE"]
        else:
            os.environ["MLBOOK_SCALE"] = before


def build(
    root: Path, out: Path, name: str | None = None, progress: Progress | None = None
) -> Path:
    """Build the book, or the chapter `name` alone, into `out`; return the page to open. One build at a time in a folder.

    Raises:
        BuildError: a chapter or a page cannot be made; the message says which and why.
    """
    progress = progress or Progress()
    paths = pages.chapter_paths(root)
    if name is not None:
        wanted = name.removesuffix(".ipynb").removeprefix("notebooks/")
        known = ", ".join(p.stem for p in paths)
        paths = [p for p in paths if p.stem == wanted]
        if not paths:
            raise BuildError(f"there is no chapter {name!r}; the chapters are: {known}")
    with locked(out):
        chapters = executed(paths, root, out, progress)
        if mlbook.scale_name() == records.SCALE:
            for chapter in chapters:
                if records.keep(chapter, root):
                    where = records.path_of(root, chapter.name).relative_to(root)
                    progress.say(f"  {chapter.name}: recorded in {where}; commit it")
        target = out if name is None else out / "alone" / paths[0].stem
        site = rendered(root, target, chapters, progress)
    return site / (f"notebooks/{paths[0].stem}.html" if name else "index.html")


def locked(out: Path) -> FileLock:
    """Holds `out` against other builds while it is entered."""
    out.mkdir(parents=True, exist_ok=True)
    return FileLock(out / "lock")


def executed(
    paths: list[Path], root: Path, out: Path, progress: Progress
) -> list[Chapter]:
    """`paths` with fresh outputs at the scale in force.

    Raises:
        BuildError: a cell failed.
    """
    scale = mlbook.scale_name()
    progress.say(f"Chapters ({scale} scale)")
    last = {}
    if scale == records.SCALE:
        there = {path.stem: records.read(root, path.stem) for path in paths}
        last = {name: record["seconds"] for name, record in there.items() if record}
    return execute.chapters(paths, root, out / "chapters" / scale, progress, last)


def rendered(
    root: Path, target: Path, chapters: list[Chapter], progress: Progress
) -> Path:
    """The folder of pages, rendered from `chapters` into `target` where anything changed.

    Raises:
        BuildError: Sphinx complains.
    """
    site, done = target / "html", target / "rendered"
    if pages.stage(root, target / "stage", chapters) or not done.exists():
        done.unlink(missing_ok=True)
        render(target, progress)
        pages.clean_downloads(root, site, chapters)
        done.touch()
    else:
        progress.say("Pages: nothing changed")
    return site


def render(target: Path, progress: Progress) -> None:
    """Run Jupyter Book over `target/stage`. A warning is an error.

    Raises:
        BuildError: with what Sphinx printed.
    """
    progress.say("Pages: rendering")
    start = time.perf_counter()
    tool = Path(sys.executable).with_name("jupyter-book")
    command = [
        tool,
        "build",
        target / "stage",
        "--path-output",
        target,
        "--all",  # Sphinx by itself copies no style sheet and repeats no warning where no page has changed
        "--warningiserror",
        "--keep-going",
    ]
    # What Jupyter Book makes goes to target/_build; a link gives it the shorter name.
    work = target / "_build"
    shutil.rmtree(
        work / "html" / "_static" / "media", ignore_errors=True
    )  # Sphinx would keep films of earlier runs
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        lines = (run.stdout + run.stderr).splitlines()
        wrong = [
            line for line in lines if "WARNING" in line or "ERROR" in line
        ] or lines[-40:]
        raise BuildError("Sphinx complains:\n" + "\n".join(wrong))
    shutil.rmtree(target / "html", ignore_errors=True)
    shutil.copytree(work / "html", target / "html")
    progress.say(f"Pages: rendered in {time.perf_counter() - start:.0f} s")


def built_pages(scale: str) -> Path:
    """See `book.builder.built_pages`."""
    out = ROOT / FOLDERS[scale]
    if scale != "ci":
        with at_scale(scale):
            return build(ROOT, out).parent
    if not (out / "rendered").is_file():
        raise BuildError(
            f"there are no pages in {out.relative_to(ROOT)}: run `python -m book.builder.ci` first"
        )
    return out / "html"
