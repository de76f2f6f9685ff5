"""`python -m book.builder.repository URL`: point every copy of the repository's address at URL.

The address stands in `mlbook/source.py`; what cannot import it (the notebooks' first cell, _config.yml, README.md …) holds copies.
"""

import re
import subprocess
import sys
from pathlib import Path

from mlbook.source import REPOSITORY

ROOT = Path(__file__).resolve().parents[2]
FORM = r"https://[A-Za-z0-9.-]+/[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+"


def files(root: Path) -> list[Path]:
    """Every text file of the project that git knows or would add."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=root,
        capture_output=True,
        check=True,
    ).stdout.decode()
    paths = [root / name for name in names.split("\0") if name]
    return [
        p for p in paths if p.is_file() and p.suffix not in {".png", ".jpg", ".mp4"}
    ]


def set_repository(root: Path, old: str, new: str) -> list[Path]:
    """Replace the address `old` by `new` in every file of the project; return the files changed.

    Raises:
        ValueError: `new` is no address of a repository.
    """
    new = new.strip().removesuffix("/").removesuffix(".git")
    if not re.fullmatch(FORM, new):
        raise ValueError(
            f"an address reads https://github.com/account/repository, got {new!r}"
        )
    changed = []
    for path in files(root):
        text = path.read_text()
        if old in text:
            path.write_text(text.replace(old, new))
            changed.append(path)
    return changed


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Say which: make set-repository URL=https://github.com/you/your-fork")
    try:
        for path in set_repository(ROOT, REPOSITORY, sys.argv[1]):
            print(f"  {path.relative_to(ROOT)}")
    except ValueError as error:
        sys.exit(str(error))
