"""A matmul with both fusions: what comes before it and what comes after, in its one kernel."""

import torch
from torch import Tensor

from mlbook.common.launch import HAS_TRITON, NO_TRITON, tl, triton


# fmt: off
@triton.jit
def matmul_kernel(x, w, b, y, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
                  PROLOGUE: tl.constexpr, EPILOGUE: tl.constexpr, BLOCK: tl.constexpr):
    """y = EPILOGUE(PROLOGUE(x) @ w, b): one program for each block of y."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, K, BLOCK):
        k = start + tl.arange(0, BLOCK)
        x_block = tl.load(x + rows[:, None] * K + k, (rows[:, None] < M) & (k < K), 0.0)
        w_block = tl.load(w + k[:, None] * N + columns, (k[:, None] < K) & (columns < N), 0.0)
        x_block = PROLOGUE(x_block)  # on its way from memory to the product
        acc += tl.dot(x_block, w_block, input_precision="ieee")
    bias = tl.load(b + columns, columns < N, 0.0)
    out = EPILOGUE(acc, bias)  # the sum is still in registers
    tl.store(y + rows[:, None] * N + columns, out, (rows[:, None] < M) & (columns < N))
# fmt: on


@triton.jit
def relu(x):
    return tl.maximum(x, 0.0)


@triton.jit
def bias_gelu(acc, bias):
    """GELU by its sigmoid form, x σ(1.702 x): Hendrycks and Gimpel 2016."""
    z = acc + bias
    return z / (1.0 + tl.exp(-1.702 * z))


def matmul(
    x: Tensor, w: Tensor, b: Tensor, prologue=relu, epilogue=bias_gelu, block=32
) -> Tensor:
    """`epilogue(prologue(x) @ w, b)` in one kernel: (M, K) times (K, N) plus (N,), all
    float32.

    Args:
        prologue: of a block of `x`, 0 to 0 (blocks are padded with zeros).
        epilogue: of a block of the product and of the bias.
        block: side of the square blocks, a power of two of at least 16.
    Raises:
        RuntimeError: Triton is not installed.
        ValueError: shapes do not fit, or a tensor is not contiguous float32.
    """
    if not HAS_TRITON:
        raise RuntimeError(NO_TRITON)
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[0] or b.shape != w.shape[1:]:
        raise ValueError(
            f"shapes {tuple(x.shape)}, {tuple(w.shape)}, {tuple(b.shape)} do not fit (M, K), (K, N), (N,)"
        )
    for t in (x, w, b):
        if t.dtype != torch.float32 or not t.is_contiguous():
            raise ValueError(
                f"matmul takes contiguous float32 tensors, got {t.dtype} with strides {t.stride()}"
            )
    (M, K), N = x.shape, w.shape[1]
    y = x.new_empty(M, N)
    grid = (triton.cdiv(M, block), triton.cdiv(N, block))
    matmul_kernel[grid](x, w, b, y, M, N, K, prologue, epilogue, BLOCK=block)
    return y
