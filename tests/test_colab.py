"""The notebooks on a machine that has only what Colab has: nothing of this repository, nothing replaced."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement

import mlbook
from book.builder.execute import check_outputs
from mlbook.source import TAG

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What Colab's image has that matters here; with what these need.
COLAB = [
    "torch",
    "torchvision",
    "triton",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "matplotlib",
    "ipykernel",
    "ipywidgets",
    "nbclient",
    "pip",
]


def closure(names):
    """The installed distributions that `names` need, themselves included."""
    found, queue = {}, [Requirement(name) for name in names]
    while queue:
        requirement = queue.pop()
        key = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if key in found or (
            requirement.marker and not requirement.marker.evaluate({"extra": ""})
        ):
            continue
        try:
            found[key] = importlib.metadata.distribution(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            continue  # torch's CUDA packages, on a machine without them
        queue += [Requirement(text) for text in found[key].requires or []]
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--wheel-dir",
            folder,
            ROOT,
        ],
        check=True,
        timeout=300,
    )
    return next(folder.glob("mlbook-*.whl"))


@pytest.fixture
def colab(tmp_path):
    """A new environment with hard links to the distributions Colab has: pip may replace a link, not what it links to."""
    home = tmp_path / "colab"
    venv.create(home, with_pip=False, symlinks=True)
    site = next((home / "lib").glob("python*/site-packages"))
    for distribution in closure(COLAB).values():
        for file in distribution.files or []:
            source, target = Path(distribution.locate_file(file)), site / file
            if (
                ".." in file.parts
                or not source.is_file()
                or "__pycache__" in file.parts
            ):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                try:
                    os.link(source, target)
                except OSError:  # another file system
                    target.write_bytes(source.read_bytes())
    return home / "bin" / "python"


def installed(python):
    listing = subprocess.run(
        [python, "-m", "pip", "list", "--format=json"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        item["name"].lower(): item["version"] for item in json.loads(listing.stdout)
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_alone_runs_on_colabs_packages(path, wheel, colab, tmp_path):
    before = installed(colab)
    assert "mlbook" not in before and {"torch", "numpy", "matplotlib"} <= before.keys()
    book = nbformat.read(path, 4)
    (bootstrap,) = [c for c in book.cells if "%pip install" in c.source]
    address = f"git+{mlbook.REPOSITORY}@{TAG}"
    assert address in bootstrap.source
    bootstrap.source = bootstrap.source.replace(address, wheel.as_uri())
    folder = tmp_path / "content"
    folder.mkdir()
    nbformat.write(book, folder / path.name)
    code = (
        "import nbformat, nbclient\n"
        f"book = nbformat.read({path.name!r}, 4)\n"
        "client = nbclient.NotebookClient(book, timeout=600)\n"
        "client.km = client.create_kernel_manager()\n"
        "client.km.kernel_spec.argv[0] = __import__('sys').executable\n"
        "client.execute()\n"
        f"nbformat.write(book, {path.name!r})\n"
    )
    env = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("PYTHON", "VIRTUAL", "JUPYTER", "MLBOOK_PRICES"))
    }
    env |= {"MLBOOK_SCALE": "smoke", "PATH": f"{colab.parent}{os.pathsep}{env['PATH']}"}
    run = subprocess.run(
        [colab, "-c", code],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    after = installed(colab)
    assert {name: after.get(name) for name in before} == before, (
        "nothing that Colab has was replaced"
    )
    assert "mlbook" in after
    check_outputs(path.name, nbformat.read(folder / path.name, 4))
    text = (folder / path.name).read_text()
    assert "application/vnd.mlbook.claim+json" in text and str(
        ROOT
    ) not in text.replace(str(wheel.parent), "")
