"""`python -m book.builder.kinds [--check] [NOTEBOOK …]`: what a cell's kind means to each of its readers.

A code cell is of the kind that its tag names, and an *idea*, visible whole, where it has no such tag. The page folds by
`hide-input` and `remove-input`, JupyterLab by `source_hidden`, Colab by `cellView` and a title in the first line.
"""

import argparse
import copy
import json
import re
import sys
from pathlib import Path

TITLES = {
    "figure": "How this is drawn",
    "check": "How this is checked",
    "setup": "Set-up",
    "source": "Source",
}
FOLDS = {"hide-input", "remove-input"}
OTHER_TAGS = {"hide-output", "raises-exception", "skip-execution"}  # of other tools
TITLE = re.compile(r"# ?@title\b[^\n]*\n?")
ROOT = Path(__file__).resolve().parents[2]


def kind(cell: dict) -> str | None:
    """The kind of a code cell; None for an idea.

    Raises:
        ValueError: a tag that nothing knows, or two kinds in one cell.
    """
    tags = cell["metadata"].get("tags", [])
    unknown = [t for t in tags if t not in TITLES.keys() | FOLDS | OTHER_TAGS]
    if unknown:
        raise ValueError(
            f"cell {cell['id']}: tag {unknown[0]!r} is no kind; the kinds are {', '.join(TITLES)}"
        )
    kinds = [tag for tag in tags if tag in TITLES]
    if len(kinds) > 1:
        raise ValueError(
            f"cell {cell['id']} is of one kind, not of {' and '.join(kinds)}"
        )
    return kinds[0] if kinds else None


def untitled(source: str) -> str:
    """The code of a cell without the title that is meant for Colab."""
    return TITLE.sub("", source, count=1) if TITLE.match(source) else source


def spread(book: dict) -> dict:
    """A notebook (as JSON) like `book` whose code cells fold, or show, everywhere as their kinds say.

    Raises:
        ValueError: naming the cell whose tags are not right.
    """
    book = copy.deepcopy(book)
    for cell in book["cells"]:
        if cell["cell_type"] != "code":
            continue
        of, meta = kind(cell), cell["metadata"]
        tags = [tag for tag in meta.pop("tags", []) if tag not in FOLDS]
        jupyter = meta.pop("jupyter", {})
        meta.pop("cellView", None)
        jupyter.pop("source_hidden", None)
        source = untitled("".join(cell["source"]))
        if of:
            tags.append("remove-input" if of == "source" else "hide-input")
            jupyter["source_hidden"] = True
            meta["cellView"] = "form"
            source = f"# @title {TITLES[of]}\n{source}"
        meta |= {"jupyter": jupyter} if jupyter else {}
        meta |= {"tags": tags} if tags else {}
        cell["source"] = source.splitlines(keepends=True)
    return book


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m book.builder.kinds", description=__doc__
    )
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument(
        "--check", action="store_true", help="write nothing, fail where it is needed"
    )
    args = parser.parse_args()
    changed = []
    for path in args.notebooks or sorted((ROOT / "notebooks").glob("*.ipynb")):
        before = json.loads(path.read_text())
        try:
            after = spread(before)
        except ValueError as error:
            print(f"{path}: {error}")
            return 1
        if after != before:
            changed.append(path)
            if not args.check:
                text = json.dumps(after, indent=1, ensure_ascii=False)
                path.write_text(text + "\n")
    for path in changed:
        print(f"{path}: kinds of cells {'to be ' if args.check else ''}spread")
    return int(args.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
