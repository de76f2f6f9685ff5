"""Chapters on a machine that has neither Triton nor a C++ compiler: macOS or Windows as they come."""

import os
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from book.builder.execute import check_outputs

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = [
    f"mlbook[{name}]"
    for name, needs in PROJECT["optional-dependencies"].items()
    if any(need.startswith("triton") for need in needs)
]
NOTEBOOKS = [
    path
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
    if any(extra in path.read_text() for extra in EXTRAS)
]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_chapter_without_triton_and_compiler(path, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['triton'] = None\n"
    )
    env = os.environ | {
        "PYTHONPATH": str(tmp_path),
        "CXX": str(tmp_path / "no-compiler"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "MLBOOK_SCALE": "smoke",
    }
    book = nbformat.read(path, as_version=4)
    client = NotebookClient(book, timeout=300, kernel_name="python3")
    client.execute(env=env, cwd=str(path.parent))
    check_outputs(path.name, book)
    words = str([cell.get("outputs") for cell in book.cells])
    assert "Triton is not installed" in words or "There is no Triton" in words
    if "can_compile" in path.read_text():
        assert "torch.compile does not work here" in words
