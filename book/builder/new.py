"""`python -m book.builder.new NAME`: a new chapter, from the template, with its line in the table of contents."""

import re
import sys
from pathlib import Path

from book.builder.repository import ROOT

TEMPLATE = Path(__file__).with_name("template.ipynb")


def new_chapter(root: Path, name: str) -> Path:
    """Write `notebooks/NAME.ipynb` and name it in `_toc.yml`, after the last chapter there; return its path.

    Raises:
        ValueError: `name` is none for a chapter, or there is one of that name.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ValueError(
            f"a chapter's name is lower case words joined by hyphens, got {name!r}"
        )
    path, toc = root / "notebooks" / f"{name}.ipynb", root / "_toc.yml"
    if path.exists():
        raise ValueError(f"there is a chapter {name!r} already: {path}")
    text = TEMPLATE.read_text().replace("my-chapter", name)
    path.write_text(text.replace("My chapter", name.replace("-", " ").capitalize()))
    before, line, after = toc.read_text().rpartition("- file: notebooks/")
    if not line:
        raise ValueError(f"{toc} names no chapter after which to put this one")
    indent = before.rpartition("\n")[2]
    last, _, rest = after.partition("\n")
    toc.write_text(f"{before}{line}{last}\n{indent}{line}{name}\n{rest}")
    return path


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Say which: make new NAME=my-chapter")
    try:
        path = new_chapter(ROOT, sys.argv[1]).relative_to(ROOT)
    except ValueError as error:
        sys.exit(str(error))
    print(
        f"Wrote {path} and named it in _toc.yml. See it: make chapter NAME={path.stem}"
    )
