"""Where a measurement was made: every file under results/ begins with this."""

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import time
import traceback
import types
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

if not importlib.util.find_spec("IPython"):  # mlbook shows claims with it; none here
    page = types.ModuleType("IPython.display")
    page.display = page.Markdown = page.HTML = print
    sys.modules |= {"IPython": types.ModuleType("IPython"), "IPython.display": page}

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


def arguments(doc: str, minutes: float) -> argparse.ArgumentParser:
    """What every benchmark takes: for how long, where to, and which commit it is."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=minutes)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--commit", help="for files that came without their history")
    return parser


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


def told(parts: dict, record: dict, path: Path, minutes: float) -> None:
    """`run`, with every row written to `path` and printed."""
    run(
        parts,
        record,
        lambda record: write(path, record),
        minutes,
        lambda part, row: print(part, row, flush=True),
    )
    print(path)


def run(parts: dict, record: dict, save: Callable, minutes: float, say: Callable):
    """Each part until its share of the time is used: every row is saved when it is there,
    and a part that breaks leaves the next ones alone.

    Args:
        parts: by name, (share of the time at which it ends, function that yields rows).
        save: called with the record, after each row.
        say: called with the part's name and the row.
    """
    start = time.monotonic()
    for name, (until, rows) in parts.items():
        record[name] = []
        try:
            with contextlib.closing(rows()) as found:
                for row in found:
                    record[name].append(row)
                    save(record)
                    say(name, row)
                    if time.monotonic() - start > until * minutes * 60:
                        record.setdefault("stopped_for_time", []).append(name)
                        break
        except Exception as error:
            record.setdefault("broken", {})[name] = refusal(error)
            print(f"{name} broke:\n{traceback.format_exc()}", flush=True)
        record.setdefault("seconds", {})[name] = round(time.monotonic() - start)
        save(record)


def refusal(error: Exception) -> int | str:
    """−1 for want of memory, else what the exception says."""
    words = str(error).strip()
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in words.lower():
        return -1
    return f"{type(error).__name__}: {words[:200]}"
