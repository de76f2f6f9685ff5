"""What was recorded of the chapter, where the repository is not at hand: the package carries it."""

import json

from mlbook.common import packaged


def carried(name: str) -> dict:
    """The record benchmarks/results/`name`.json as the installed package has it.

    Raises:
        FileNotFoundError: it is not there.
    """
    return json.loads(packaged.file(f"results/{name}.json", "mlbook").read_text())
