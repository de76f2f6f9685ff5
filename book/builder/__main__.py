"""`python -m book.builder [NAME]`: execute what is stale, render, and say which page to open."""

import argparse
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import mlbook
from book.builder import execute, pages
from book.builder.execute import BuildError

ROOT = Path(__file__).resolve().parents[2]
say = partial(print, flush=True)


def build(root: Path, out: Path, name: str | None = None) -> Path:
    """Build the book, or the chapter `name` alone, into `out`; return the page to open.

    Raises:
        BuildError: a chapter or a page cannot be made; the message says which and why.
    """
    paths = pages.chapter_paths(root)
    if name is not None:
        paths = [
            p
            for p in paths
            if p.stem == name.removesuffix(".ipynb").removeprefix("notebooks/")
        ]
        if not paths:
            known = ", ".join(p.stem for p in pages.chapter_paths(root))
            raise BuildError(f"there is no chapter {name!r}; the chapters are: {known}")
    say(f"Chapters ({mlbook.scale_name()} scale)")
    chapters = execute.chapters(
        paths, root, out / "chapters" / mlbook.scale_name(), say
    )
    target = out if name is None else out / "alone" / paths[0].stem
    site, done = target / "html", target / "rendered"
    if pages.stage(root, target / "stage", chapters) or not done.exists():
        done.unlink(missing_ok=True)
        render(target)
        pages.clean_downloads(root, site, chapters)
        done.touch()
    else:
        say("Pages: nothing changed")
    return site / (f"notebooks/{paths[0].stem}.html" if name else "index.html")


def render(target: Path) -> None:
    """Run Jupyter Book over `target/stage`. A warning is an error.

    Raises:
        BuildError: with what Sphinx printed.
    """
    say("Pages: rendering")
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
    say(f"Pages: rendered in {time.perf_counter() - start:.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m book.builder", description=__doc__)
    parser.add_argument(
        "name", nargs="?", help="one chapter alone, such as flow-matching"
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "_build", help="where to build"
    )
    args = parser.parse_args()
    try:
        page = build(ROOT, args.out.resolve(), args.name)
    except (BuildError, ValueError) as error:
        say(f"\nThe book was not built.\n\n{error}")
        return 1
    say(f"\nOpen {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
