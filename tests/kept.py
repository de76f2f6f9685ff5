"""What kernels compile to for GPUs that are not here, kept by git in tests/compiled, since compiling all takes minutes.

What is kept counts as long as kernels, jobs and compiler are the same; of one generation of GPUs, from commit to commit
another, it is compiled anew all the same, and must be what was kept. `pytest --keep-compiled` writes it.
"""

import hashlib
import json
import warnings
from importlib.metadata import version
from pathlib import Path

from book.builder import ci, freshness

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "compiled"


def sources(*modules: str) -> list[str]:
    """The source of `modules` and of what they import, but for what every chapter uses."""
    imports = "\n".join(f"import {name}" for name in modules)
    return [
        path.read_text()
        for name, path in freshness.imported_modules(imports, ROOT).items()
        if name.count(".") > 1  # mlbook.common.… and the rooms'
    ]


def reports(name, capability, generations, made_of, jobs, compiling, config):
    """The reports of `jobs`: those that are kept, or else `compiling(jobs)`.

    Args:
        name: of the kernels, in the file's name.
        capability: the generation of GPUs; one of `generations`.
        made_of: the texts that the reports follow from, jobs and compiler aside.
        jobs, and what `compiling` returns: JSON.
        config: pytest's.
    """
    everything = [version("triton"), json.dumps(jobs), *made_of]
    now = hashlib.sha256("\0".join(everything).encode()).hexdigest()
    path = FOLDER / f"{name}-{capability}.json"
    kept = json.loads(path.read_text()) if path.is_file() else {"digest": None}
    fresh = kept["digest"] == now
    turn = generations[ci.commits(ROOT) % len(generations)]
    if fresh and turn != capability:
        return kept["reports"]
    found = json.loads(json.dumps(compiling(jobs)))
    if fresh:
        assert found == kept["reports"], f"{path} is not what the kernels compile to"
    elif config.getoption("keep_compiled"):
        FOLDER.mkdir(exist_ok=True)
        lines = ",\n".join(map(json.dumps, found))
        path.write_text(f'{{"digest": "{now}", "reports": [\n{lines}\n]}}\n')
    else:
        warnings.warn(
            f"{path.relative_to(ROOT)} is stale: run `pytest --keep-compiled` and commit it",
            stacklevel=2,
        )
    return found
