"""Kernels in Triton on any machine: Triton or what stands in for it, and what is checked before a launch."""

import contextlib
from collections.abc import Iterable

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton for this platform: the kernels can be read and not run
    from types import SimpleNamespace

    triton = SimpleNamespace(jit=lambda function: function)
    tl = SimpleNamespace(constexpr=None)
else:
    if triton.__version__.startswith("3.6.") and triton.knobs.runtime.interpret:
        # This interpreter turns arrays of one element into numbers in a way that
        # NumPy has refused since 2.4; Triton 3.7 mended it as here.
        from triton.runtime import interpreter

        def _patched(tensor, scope, patch=interpreter._patch_lang_tensor):
            patch(tensor, scope)
            scope.set_attr(tensor, "__index__", lambda x: int(x.handle.data.squeeze()))

        interpreter._patch_lang_tensor = _patched

HAS_TRITON = hasattr(triton, "JITFunction")
NO_TRITON = "Triton is not installed (it has no build for macOS and Windows), so this kernel can be read here but not run"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_runnable(kernel, x: Tensor, missing: str) -> bool:
    """Whether `kernel` is interpreted here; raises unless it can run on the device of `x`, with the
    words `missing` where there is no Triton."""
    if not HAS_TRITON:
        raise RuntimeError(missing)
    interpreted = not isinstance(kernel, triton.JITFunction)
    if x.device.type != ("cpu" if interpreted else "cuda"):
        raise ValueError(
            f"the tensors are on {x.device}, and Triton "
            + (
                "is interpreting (TRITON_INTERPRET=1), on the CPU only"
                if interpreted
                else "compiles for CUDA; to interpret on a CPU, set TRITON_INTERPRET=1 before Python starts"
            )
        )
    return interpreted


def check_heads(**tensors: Tensor) -> None:
    """Raise, naming the tensor, unless all are (batch, heads, length, head_dim), of one dtype of
    DTYPES and on one device."""
    names, first = listed(tensors), next(iter(tensors))
    dtypes = [x.dtype for x in tensors.values()]
    for name, x in tensors.items():
        if x.ndim != 4:
            raise ValueError(
                f"{name} must be (batch, heads, length, head_dim), got shape {tuple(x.shape)}"
            )
        if x.dtype not in DTYPES or x.dtype != dtypes[0]:
            raise TypeError(
                f"{names} must all be float32, float16 or bfloat16, got {listed(map(str, dtypes))}"
            )
        if x.device != tensors[first].device:
            raise ValueError(
                f"{name} is on {x.device}, {first} on {tensors[first].device}"
            )


def listed(words: Iterable[str]) -> str:
    """`a, b and c`."""
    *rest, last = words
    return f"{', '.join(rest)} and {last}" if rest else last


def power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def on(device: torch.device):
    return (
        torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    )
