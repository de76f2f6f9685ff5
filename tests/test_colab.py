"""Notebooks on a machine that has what Colab has: no extra replaces any of it, and chapters begin there."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path

import nbclient
import nbformat
import pytest
from cells import imports
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mlbook
from book.builder.execute import check_outputs
from mlbook.source import TAG

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# The chapters that run to their end: the last two on other versions of the libraries that they are about.
WHOLE = (
    "flow-matching",
    "compression",
    "dpo",
    "huggingface-training",
    "causal-inference",
    "causal-effects",
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
FREEZE = ROOT.parent / "shared/colab/pip-freeze.gpu.txt"
UV = [sys.executable, "-m", "uv", "--no-config", "--quiet"]


def pins(path: Path) -> dict[str, str]:
    """Versions by name, of lines such as `torch==2.11.0+cu128`, without what follows the plus."""
    found = re.findall(r"^([\w.-]+)==([^\s+]+)", path.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


COLAB = pins(ROOT / "tests/colab.txt")
# Without torchvision, as on a plain machine: what would bring it in would bring its own torch.
THERE = {name: version for name, version in COLAB.items() if name != "torchvision"}


def unpack(packages: dict[str, str], site: Path) -> None:
    subprocess.run(
        [
            *(*UV, "pip", "install", "--no-deps", "--python", sys.executable),
            *("--target", site, *(f"{n}=={v}" for n, v in packages.items())),
        ],
        check=True,
        timeout=600,
    )


def environment(home: Path, packages: Path) -> tuple[Path, Path]:
    """The python and the folder of packages of a new environment, which finds `packages` beside its own: its pip sees
    those and cannot change them."""
    venv.create(home, with_pip=False, symlinks=True)
    site = next((home / "lib").glob("python*/site-packages"))
    (site / "there.pth").write_text(f"{packages}\n")
    return home / "bin" / "python", site


def versions(site: Path) -> dict[str, str]:
    return {canonicalize_name(d.name): d.version for d in distributions(path=[site])}


@pytest.fixture(scope="session")
def colabs_pip(tmp_path_factory):
    """The command of Colab's pip, where names and versions are all there is of the other packages."""
    folder = tmp_path_factory.mktemp("names")
    unpack({"pip": THERE["pip"]}, folder / "site")
    for name, version in THERE.items() - {("pip", THERE["pip"])}:
        about = folder / f"site/{name.replace('-', '_')}-{version}.dist-info/METADATA"
        about.parent.mkdir()
        about.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    assert versions(folder / "site") == THERE
    return [environment(folder / "env", folder / "site")[0], "-I", "-m", "pip"]


def chosen(needs: list[str], pip: list) -> set[str]:
    """What pip would install on Python 3.13 for `needs`."""
    report = subprocess.run(
        [
            *(*pip, "install", "--quiet", "--dry-run", "--report", "-"),
            *("--python-version", "3.13", "--only-binary=:all:", *needs),
        ],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    plan = json.loads(report.stdout)["install"]
    return {canonicalize_name(item["metadata"]["name"]) for item in plan}


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_replaces_nothing(extra, colabs_pip):
    new = chosen(PROJECT["dependencies"] + EXTRAS[extra], colabs_pip)
    assert new & THERE.keys() == set()
    if FREEZE.exists():
        assert new & pins(FREEZE).keys() == set(), "missing in tests/colab.txt"


def test_what_would_replace_something_is_seen(colabs_pip):
    assert "decorator" in chosen(["bt"], colabs_pip)


def test_versions_are_colabs():
    if not FREEZE.exists():
        pytest.skip("no list of what Colab has lies beside the repository")
    assert COLAB.items() - pins(FREEZE).items() == set()


def closure(name: str, known: dict) -> set[str]:
    """The installed distributions that `name` needs beyond `known`, itself included."""
    found, queue = set(), [Requirement(name)]
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        if name in found or name in known:
            continue
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # torch's CUDA packages, on a machine without them
        found.add(name)
        queue += map(Requirement, needs)
    return found


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A folder of packages in Colab's versions; links to ours instead of torch and Triton, which are large, and of
    setuptools, which our torch wants newer."""
    site = tmp_path_factory.mktemp("colab") / "site"
    ours = ("torch", "triton", "setuptools")
    wanted = {name: v for name, v in THERE.items() if name not in ours}
    unpack(wanted, site)
    for name in set().union(*(closure(name, wanted) for name in ours)):
        installed = distribution(name)
        for top in {file.parts[0] for file in installed.files or []}:
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(installed.locate_file(top))
    return site


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # A build leaves files in its folder and takes up those that earlier ones left.
    source = folder / "source"
    compiled = shutil.ignore_patterns("__pycache__")
    for part in ("mlbook", "benchmarks/results"):
        shutil.copytree(ROOT / part, source / part, ignore=compiled)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [
            *(*UV, "build", "--wheel", "--python", sys.executable),
            *("--out-dir", folder, source),
        ],
        check=True,
        capture_output=True,
        timeout=300,
    )
    return next(folder.glob("mlbook-*.whl"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_chapter_begins_on_colab(path, wheel, base, tmp_path):
    before = versions(base)
    assert THERE.keys() <= before.keys() and "mlbook" not in before
    python, site = environment(tmp_path / "env", base)
    book = nbformat.read(path, 4)
    (setup,) = [c for c in book.cells if "!{sys.executable} -m pip" in c.source]
    address = f"git+{mlbook.REPOSITORY}@{TAG}"
    assert address in setup.source
    setup.source = setup.source.replace(address, wheel.as_uri())
    if path.stem not in WHOLE:
        book.cells = [setup, imports(book)]
    folder = tmp_path / "content"
    folder.mkdir()
    client = nbclient.NotebookClient(
        book, timeout=600, resources={"metadata": {"path": str(folder)}}
    )
    client.km = client.create_kernel_manager()
    client.km.kernel_spec.argv[0] = str(python)
    ours = ("PYTHON", "VIRTUAL", "JUPYTER", "MLBOOK_PRICES")
    env = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    env["PATH"] = f"{python.parent}{os.pathsep}{env['PATH']}"
    client.execute(env=env)
    assert "mlbook" in versions(site)
    assert versions(site).keys() & before.keys() == set() and versions(base) == before
    check_outputs(path.name, book)
    text = json.dumps(book)
    assert str(ROOT) not in text, "nothing came from the repository"
    if path.stem in WHOLE:
        assert "application/vnd.mlbook.claim+json" in text
