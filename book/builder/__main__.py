"""`python -m book.builder [NAME]`: execute what is stale, render, and say which page to open."""

import argparse
import sys
from pathlib import Path

import mlbook
from book.builder.execute import BuildError
from book.builder.render import FOLDERS, ROOT, build


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m book.builder", description=__doc__)
    parser.add_argument(
        "name", nargs="?", help="one chapter alone, such as flow-matching"
    )
    parser.add_argument(
        "--out", type=Path, help="where to build; the default depends on the scale"
    )
    args = parser.parse_args()
    try:
        out = args.out or ROOT / FOLDERS[mlbook.scale_name()]
        page = build(ROOT, out.resolve(), args.name)
    except (BuildError, ValueError) as error:
        print(f"\nThe book was not built.\n\n{error}", flush=True)
        return 1
    print(f"\nOpen {page}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
