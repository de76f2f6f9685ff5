"""Where a measurement was made: every file under results/ begins with this."""

import datetime
import json
import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def provenance(*packages: str) -> dict:
    """Device, versions, date and commit of this run."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name()
        if cuda
        else f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "numpy", *packages)},
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": _says(
            ["git", "-C", str(RESULTS.parent), "rev-parse", "--short", "HEAD"]
        ),
    }


def card() -> dict:
    """What the driver says of the GPU; nothing of it is changed."""
    properties = torch.cuda.get_device_properties(0)
    fields = "driver_version,clocks.sm,clocks.mem,power.limit,temperature.gpu"
    said = _says(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"])
    values = re.findall("[^,]+", said.split("\n")[0].replace(", ", ","))
    return dict(zip(fields.split(","), values, strict=False)) | {
        "capability": list(torch.cuda.get_device_capability(0)),
        "processors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "cudnn": torch.backends.cudnn.version(),
    }


def slug(device: str) -> str:
    """A device's name as part of a file's."""
    return re.sub("[^a-z0-9]+", "-", device.lower()).strip("-")


def write(path: Path, record: dict) -> None:
    """Write `record` as JSON, by way of a second file: a run that is cut off leaves the
    last whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(path)


def _says(command: list[str]) -> str:
    """What a command prints; nothing where it is not there or fails."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip()
