"""Measuring attention: floating-point operations, seconds, bytes."""

import importlib.util
import time
import weakref
from collections.abc import Callable

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mlbook import device
from mlbook.source import recorded_on


def attention_flops(
    batch: int,
    heads: int,
    n: int,
    head_dim: int,
    causal: bool = False,
    passes: str = "forward",
) -> float:
    """Floating-point operations of exact attention, counted as its papers do.

    Two products of 2·n²·head_dim each forward; five backward; half of that with a
    causal mask.

    Args:
        passes: "forward", "backward" or "both".
    """
    products = {"forward": 2, "backward": 5, "both": 7}
    if passes not in products:
        raise ValueError(f"passes must be one of {', '.join(products)}, got {passes!r}")
    return products[passes] * 2 * batch * heads * n * n * head_dim / (1 + causal)


def sdpa(backend: SDPBackend) -> Callable:
    """`scaled_dot_product_attention` held to one of its backends: f(q, k, v,
    causal)."""

    def attention(q, k, v, causal=False):
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, is_causal=causal)

    return attention


SDPA = {
    "SDPA, math": sdpa(SDPBackend.MATH),
    "SDPA, memory-efficient": sdpa(SDPBackend.EFFICIENT_ATTENTION),
    "SDPA, flash": sdpa(SDPBackend.FLASH_ATTENTION),
    "SDPA, cuDNN": sdpa(SDPBackend.CUDNN_ATTENTION),
}


def seconds(f: Callable[[], object], repeats: int = 5) -> float:
    """The median time of `f()`, after a first call that is not counted; at scale "gpu", of
    its work on the GPU."""
    on_gpu = device().type == "cuda"
    if on_gpu and importlib.util.find_spec("triton"):
        from triton.testing import do_bench

        return do_bench(f, return_mode="median") / 1e3
    spans = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        f()
        if on_gpu:
            torch.cuda.synchronize()
        spans.append(time.perf_counter() - start)
    return float(np.median(spans[1:]))


def report(record: dict) -> str:
    """What `benchmarks/attention.py` recorded on one card, as text: every rival's rates,
    in TFLOP/s or, when decoding, as a share of the card's own copying; and the targets.

    Args:
        record: one of those that `mlbook.recorded("attention")` returns.
    """
    parts = [recorded_on(record)]
    for title, part, unit in (
        ("Forward, TFLOP/s", "forward", "tflops"),
        ("Backward, TFLOP/s", "backward", "tflops"),
        ("The post's setting, both passes, TFLOP/s", "post", "tflops"),
        ("Decoding, share of the copy's bandwidth", "decode", "share_of_copy"),
    ):
        settings = {}  # rows that differ in their length alone
        for row in record.get(part, []):
            if "sweep" not in row:
                what = ("dtype", "head_dim", "causal", "batch", "heads", "kv_heads")
                key = ", ".join(f"{k} {row[k]}" for k in what if k in row)
                settings.setdefault(key, []).append(row)
        for setting, rows in settings.items():
            names = list(dict.fromkeys(name for row in rows for name in row["times"]))
            parts.append(f"\n{title}: {setting}")
            parts.append(f"{'n':24}" + "".join(f"{row['n']:>8}" for row in rows))
            for name in names:
                rates = [_rate(row["times"].get(name), unit) for row in rows]
                parts.append(f"{name:24}" + "".join(f"{rate:>8}" for rate in rates))
    if record.get("summary"):
        parts.append(
            f"\n{'Target':48}{'wanted':>8}{'worst':>8}{'best':>8}{'met in':>10}"
        )
    for row in record.get("summary", []):
        found = [
            f"{row[key]:8.2f}" if key in row else "       –"
            for key in ("worst", "best")
        ]
        parts.append(
            f"{row['target']:48}{row['wanted']:8}{''.join(found)}"
            f"{row['met_in']:>4} of {row['cases']}"
        )
    return "\n".join(parts)


def _rate(timed: dict | int | str | None, unit: str) -> str:
    """A cell of `report`: −1 where memory did not suffice, – where it was not run."""
    if isinstance(timed, dict):
        return f"{timed[unit]:.2f}" if unit == "share_of_copy" else f"{timed[unit]:.0f}"
    return "-1" if timed == -1 else "–"


def peak_bytes(f: Callable[[], object]) -> int:
    """The most memory that tensors made during `f()` hold at one time.

    At scale "gpu" the allocator's own account; else the storages of all operators'
    results, as they come and go (what an operator allocates for itself alone is not
    seen).
    """
    if device().type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        f()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _Storages() as storages:
        f()
    return storages.peak


class _Storages(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.live, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        known = self.live.keys() | {s._cdata for s in _storages((args, kwargs))}
        out = function(*args, **(kwargs or {}))
        for storage in _storages(out):
            if storage._cdata not in known:
                known = known | {storage._cdata}
                self.live[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage._cdata)
        return out

    def _freed(self, key: int) -> None:
        self.now -= self.live.pop(key, 0)


def _storages(tree) -> list[torch.UntypedStorage]:
    """The memory behind the tensors of nested arguments or results."""
    return [
        x.untyped_storage() if isinstance(x, torch.Tensor) else x
        for x in tree_leaves(tree)
        if isinstance(x, torch.Tensor | torch.UntypedStorage)
    ]
