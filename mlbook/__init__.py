"""Helpers shared by the chapters of the book. Importing it settles the scale, the device and Triton's interpreter."""

import importlib.util
import os
import platform
import random

import torch

from mlbook.claims import claim
from mlbook.source import REPOSITORY, data, recorded, show

__all__ = [
    "REPOSITORY",
    "__version__",
    "claim",
    "data",
    "device",
    "recorded",
    "scale",
    "scale_name",
    "seed",
    "show",
    "versions",
]
__version__ = "0.1.0"

SCALES = ("smoke", "cpu", "gpu")

# Triton interprets where the chapters compute on a CPU. It must be told before it is first
# imported.
if os.environ.get("MLBOOK_SCALE") in ("smoke", "cpu") or not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def scale_name() -> str:
    """The scale in force: `MLBOOK_SCALE`, or else "gpu" where CUDA is there and "cpu" where it is not.

    Raises:
        ValueError: `MLBOOK_SCALE` is set to something else than "smoke", "cpu" or "gpu".
    """
    name = os.environ.get("MLBOOK_SCALE") or (
        "gpu" if torch.cuda.is_available() else "cpu"
    )
    if name not in SCALES:
        raise ValueError(
            f"MLBOOK_SCALE is {name!r}; it must be one of {', '.join(SCALES)}"
        )
    return name


def scale(*, smoke, cpu, gpu):
    """Of three values, the one for the scale in force: `steps = scale(smoke=20, cpu=2_000, gpu=20_000)`."""
    return {"smoke": smoke, "cpu": cpu, "gpu": gpu}[scale_name()]


def device() -> torch.device:
    """Where to compute: CUDA at scale "gpu", the CPU at the other scales.

    Raises:
        RuntimeError: the scale is "gpu" and there is no CUDA device.
    """
    if scale_name() != "gpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError(
            "MLBOOK_SCALE is 'gpu', but torch finds no CUDA device; set it to 'cpu' or 'smoke'"
        )
    return torch.device("cuda")


def seed(n: int = 0) -> torch.Generator:
    """Seed Python, NumPy and torch (all devices) with `n`; return torch's default CPU generator."""
    import numpy as np

    random.seed(n)
    np.random.seed(n)
    return torch.manual_seed(n)


def versions() -> None:
    """Print the versions and the device that the results below come from."""
    parts = [
        f"Python {platform.python_version()}",
        f"torch {torch.__version__}",
        f"mlbook {__version__}",
    ]
    if importlib.util.find_spec("triton"):
        import triton

        parts.insert(2, f"triton {triton.__version__}")
    print(", ".join(parts))
    where = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads"
    )
    print(f"scale {scale_name()} on {where}")
