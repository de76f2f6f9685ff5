"""Chapters on a machine that has neither Triton nor a C++ compiler: macOS or Windows as they come."""

import os
import tomllib
from pathlib import Path

import nbformat
import pytest
from cells import imports
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

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
WHOLE = "torch-compile"  # the chapter that runs to its end: it wants both
KERNELS = {  # one a chapter, and a call that runs it
    "flash-attention": (
        "kernels.forward",
        "attention.flash_attention(*torch.randn(3, 1, 1, 4, 16))",
    ),
    "long-context": (
        "rope_kernels.rope",
        "rope_kernels.fused_rope(*torch.randn(2, 1, 1, 4, 16), *torch.randn(2, 4, 8))",
    ),
    "torch-compile": (
        "compiling.matmul_kernel",
        "compiling.matmul(*torch.randn(2, 4, 4), torch.randn(4))",
    ),
}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['triton'] = None\n"
    )
    paths = filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "CXX": str(tmp_path / "no-compiler"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "MLBOOK_SCALE": "smoke",
    }

    def run(book):
        client = NotebookClient(book, timeout=300, kernel_name="python3")
        client.execute(env=env, cwd=str(ROOT / "notebooks"))
        return [str(cell.get("outputs")) for cell in book.cells]

    return run


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_kernels_can_be_read_and_say_why_they_do_not_run(path, run):
    book = nbformat.read(path, as_version=4)
    (setup,) = [c for c in book.cells if "!{sys.executable} -m pip" in c.source]
    kernel, call = KERNELS[path.stem]
    tried = f"try:\n    {call}\nexcept RuntimeError as error:\n    print(error)"
    added = [new_code_cell(code) for code in (f"show({kernel})", tried)]
    book.cells = [setup, imports(book), *added]
    *_, shown, said = run(book)
    assert "@triton.jit" in shown
    assert "Triton" in said


def test_a_chapter_without_triton_and_compiler(run):
    book = nbformat.read(ROOT / f"notebooks/{WHOLE}.ipynb", as_version=4)
    words = "".join(run(book))
    check_outputs(WHOLE, book)
    assert "Triton is not installed" in words
    assert "torch.compile does not work here" in words
