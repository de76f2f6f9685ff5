"""Where a measurement was made: every file under results/ begins with this."""

import datetime
import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def provenance(*packages: str) -> dict:
    """Device, driver, versions, date and commit of this run."""
    cuda = torch.cuda.is_available()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=RESULTS,
    ).stdout.strip()
    return {
        "device": torch.cuda.get_device_name()
        if cuda
        else f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "numpy", *packages)},
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": commit,
    }


def write(name: str, record: dict) -> Path:
    """Write `record` to results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path
