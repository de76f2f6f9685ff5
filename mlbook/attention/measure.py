"""Measuring attention: floating-point operations, seconds, bytes."""

import time
import weakref
from collections.abc import Callable

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


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
    """The median time of `f()`, after a first call that is not counted; on a GPU, of
    its work there."""
    if torch.cuda.is_available():
        from triton.testing import do_bench

        return do_bench(f, return_mode="median") / 1e3
    spans = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        f()
        spans.append(time.perf_counter() - start)
    return float(np.median(spans[1:]))


def peak_bytes(f: Callable[[], object]) -> int:
    """The most memory that tensors made during `f()` hold at one time.

    On a GPU the allocator's own account; on a CPU the storages of all operators'
    results, as they come and go (what an operator allocates for itself alone is not
    seen).
    """
    if torch.cuda.is_available():
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
