"""What an executed chapter depends on. A chapter whose dependencies are all unchanged is not executed again."""

import ast
import functools
import hashlib
import json
import os
import platform
import re
import tomllib
from importlib import metadata
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mlbook
from book.builder.kinds import untitled

EXECUTION_TAGS = {"raises-exception", "skip-execution"}  # what nbclient heeds


def content(notebook: Path, root: Path) -> dict[str, str]:
    """What the outputs of `notebook` follow from, by name, each with its digest: the same on every machine and in every fork.

    Covered: the code cells (prose may change freely), the `mlbook` modules they import, directly or through each
    other, the locked versions of the packages that these reach, and recorded measurements if they are shown. Of a cell's kind nothing counts, and of its tags
    only those that change how it is executed. The repository's own address counts as a blank.
    """
    code = code_cells(nbformat.read(notebook, as_version=4))
    sources = [
        f"{untitled(cell.source)}\n{sorted(EXECUTION_TAGS & set(cell.metadata.get('tags', [])))}"
        for cell in code
    ]
    found = {"its code": _sha("\0".join(sources))}
    source = "\n".join(
        TransformerManager().transform_cell(cell.source) for cell in code
    )
    if "recorded(" in source:
        found["benchmarks/results"] = _sha(
            "\0".join(path.read_text() for path in _results(source, root))
        )
    modules = imported_modules(source, root)
    for module, path in modules.items():
        found[module] = _sha(path.read_text())
    code = [source, *(path.read_text() for path in modules.values())]
    found["locked packages"] = _sha("\n".join(locked(code, root)))
    return found


def locked(code: list[str], root: Path) -> list[str]:
    """The lines of the lock files for what `code` imports, for the extra that it installs where `mlbook` is missing, and
    for all that these need: a package that another chapter needs changes nothing here."""
    imported = {
        name.split(".")[0]
        for text in code
        for node in ast.walk(ast.parse(text))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    queue = {dist for name in imported for dist in _owners().get(name, [])}
    for extra in re.findall(r"mlbook\[(\w+)\]", code[0]):
        project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
        asked = project["optional-dependencies"].get(extra, [])
        queue |= {Requirement(line).name for line in asked}
    reached = set()
    while queue:
        name = canonicalize_name(queue.pop())
        if name not in reached:
            reached.add(name)
            queue |= _needs(name)
    lines = [
        line
        for path in sorted(root.glob("requirements*.txt"))
        for line in path.read_text().splitlines()
    ]
    name_of = lambda line: canonicalize_name(re.split(r"[=<> ;\[]", line)[0])  # noqa: E731
    return sorted(line for line in lines if line and name_of(line) in reached)


_owners = functools.cache(metadata.packages_distributions)


@functools.cache
def _needs(name: str) -> set[str]:
    """The packages that an installed one asks for on this platform, without its extras."""
    try:
        asked = [Requirement(line) for line in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        return set()
    return {r.name for r in asked if not r.marker or r.marker.evaluate({"extra": ""})}


def dependencies(notebook: Path, root: Path) -> dict[str, str]:
    """`content`, and of this machine what shows in the outputs or can change them: Python, scale, device, the book's
    settings and its address. Data files join when the chapter has named them (`stale_data`).
    """
    return content(notebook, root) | {
        "Python": platform.python_version(),
        "scale": mlbook.scale_name(),
        "device": device_name(),
        "settings": json.dumps(
            {
                k: v
                for k, v in sorted(os.environ.items())
                if k.startswith("MLBOOK_") and k != "MLBOOK_SCALE"
            }
        ),
        "address": mlbook.REPOSITORY,
    }


def _results(source: str, root: Path) -> list[Path]:
    """The recorded measurements that `recorded("NAME")` in `source` reads; all, where a name is not written out."""
    names = re.findall(r"""\brecorded\((?:\s*["']([\w-]+)["']\s*\))?""", source)
    patterns = {f"{name}-*.json" for name in names} if all(names) else {"*.json"}
    folder = root / "benchmarks" / "results"
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})


def code_cells(book: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def device_name() -> str:
    import torch

    return (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{platform.machine()} CPU"
    )


def changes(record: dict | None, now: dict[str, str]) -> list[str]:
    """The names of what differs between an earlier execution's record and `now`; empty when it is fresh."""
    if record is None:
        return ["not executed before"]
    return differing(record["dependencies"], now) + stale_data(record)


def differing(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """The names under which two digests of dependencies differ."""
    return sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))


def stale_data(record: dict) -> list[str]:
    """The data files a chapter read that have changed, or gone, since."""
    return [
        item["path"]
        for item in record["data"]
        if "path" in item
        and not (
            Path(item["path"]).is_file()
            and hashlib.sha256(Path(item["path"]).read_bytes()).hexdigest()
            == item["sha256"]
        )
    ]


def imported_modules(
    source: str, root: Path, package: str = "mlbook"
) -> dict[str, Path]:
    """The modules of `package` that `source` imports, transitively, wherever the import stands; name → file."""
    found: dict[str, Path] = {}
    queue = _names(source, package, package)
    while queue:
        name = queue.pop()
        path = root / Path(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in found or not path.is_file():
            continue
        found[name] = path
        here = name if path.name == "__init__.py" else name.rpartition(".")[0]
        queue |= _names(path.read_text(), package, here)
    return dict(sorted(found.items()))


def _names(source: str, package: str, here: str) -> set[str]:
    """Candidates for modules of `package` in the imports of `source`, which stands in the package `here`."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = here.split(".")[: len(here.split(".")) - node.level + 1]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    names = {n for n in names if n == package or n.startswith(package + ".")}
    return names | {
        ".".join(n.split(".")[:i]) for n in names for i in range(1, n.count(".") + 1)
    }


def _sha(text: str) -> str:
    """Sixteen hexadecimal digits, enough to tell two versions of a file apart and to be read in a diff."""
    text = text.replace(mlbook.REPOSITORY, "")
    return hashlib.sha256(text.encode()).hexdigest()[:16]
