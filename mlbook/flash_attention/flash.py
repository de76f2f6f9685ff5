"""FlashAttention and Flash-Decoding for torch tensors: checks, block sizes, autograd
around the Triton kernels."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mlbook.common.launch import check_heads, check_runnable, on, power_of_two
from mlbook.flash_attention import kernels

LOG2_E = math.log2(math.e)
MERGED = 64  # states that one step of decode_merge takes


def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = False, scale: float | None = None
) -> Tensor:
    """softmax(scale · q kᵀ) v without the matrix: differentiable in q, k and v, in
    memory linear in the lengths.

    Args:
        q: (batch, heads, n_q, head_dim), float32, float16 or bfloat16, head_dim 16 to
            256.
        k, v: (batch, kv_heads, n_k, head_dim), same dtype; kv_heads divides heads
            (grouped-query attention). Any strides; a layout that the copy engine cannot
            read (rows not a multiple of 16 bytes) is copied first.
        causal: query i sees the keys j ≤ i + n_k − n_q: the last query sees them all.
        scale: positive; 1/√head_dim unless given.
    Returns:
        (batch, heads, n_q, head_dim) in the dtype of q; a query that sees no key gets
        zeros, and no gradient.
    Raises:
        ValueError: shapes, head_dim, scale or device that do not fit, named.
        TypeError: a dtype that is none of the three, or that this device does not have.
        RuntimeError: there is no Triton for this platform; or a second derivative is
            asked for; or gradients that this card has no room for (a T4, float32,
            head_dim above 128).
    Sources: Dao et al. 2022, algorithms 1 and 4; Dao 2023, algorithms 1 and 2 (the
    order of the loops).
    """
    _check(q, k, v)
    scale = _checked_scale(scale, q.shape[-1])
    _check_runnable(q)
    wants_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if wants_gradient and not _fits_backward(capability(q.device), q.shape[3], q.dtype):
        raise RuntimeError(
            f"gradients in float32 with head_dim {q.shape[3]} need more shared memory than "
            f"{torch.cuda.get_device_name(q.device)} has: use float16"
        )
    if q.dtype == torch.bfloat16 and q.device.type == "cpu":
        # The interpreter has no bfloat16 arithmetic (it multiplies bit patterns);
        # float32 holds every bfloat16 exactly.
        return _Flash.apply(q.float(), k.float(), v.float(), causal, scale).to(q.dtype)
    return _Flash.apply(q, k, v, causal, scale)


def flash_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    splits: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention of one new query a sequence to its cache, the cache cut into `splits`
    stretches that run side by side. It is for inference, and carries no gradient.

    Args:
        q: (batch, heads, head_dim).
        k_cache, v_cache: (batch, kv_heads, capacity, head_dim); what lies past a
            sequence's length is not looked at.
        lengths: (batch,), integers from 0 to capacity: how much of each cache is
            filled. On a CPU the values are checked. On a GPU, where that would wait for
            it, what is above the capacity counts as the capacity.
        splits: enough to occupy the device unless given; at most one a block of keys.
        scale: positive; 1/√head_dim unless given.
    Returns:
        (batch, heads, head_dim) in the dtype of q; zeros where the length is 0.
    Raises:
        ValueError, TypeError, RuntimeError: as `flash_attention`.
    Source: Dao, Haziza, Massa and Sizov 2023, “Flash-Decoding for long-context
    inference”.
    """
    if q.ndim != 3:
        raise ValueError(
            f"q must be (batch, heads, head_dim), got shape {tuple(q.shape)}"
        )
    _check(q[:, :, None], k_cache, v_cache)
    scale = _checked_scale(scale, q.shape[-1])
    batch, heads, head_dim = q.shape
    kv_heads, capacity = k_cache.shape[1:3]
    integers = torch.int16, torch.int32, torch.int64
    if lengths.shape != (batch,) or lengths.dtype not in integers:
        raise ValueError(
            f"lengths must be {batch} integers, got {lengths.dtype} of shape {tuple(lengths.shape)}"
        )
    if lengths.device != q.device:
        raise ValueError(f"lengths is on {lengths.device}, q on {q.device}")
    if lengths.device.type == "cpu" and batch:
        least, most = int(lengths.min()), int(lengths.max())
        if least < 0 or most > capacity:
            raise ValueError(
                f"lengths must lie between 0 and the cache's {capacity}, got {least} to {most}"
            )
    if splits is not None and splits < 1:
        raise ValueError(f"splits must be at least 1, got {splits}")
    _check_runnable(q)
    dtype = q.dtype
    if dtype == torch.bfloat16 and q.device.type == "cpu":
        q, k_cache, v_cache = q.float(), k_cache.float(), v_cache.float()

    group = heads // kv_heads
    blocks = block_sizes("decode_split", capability(q.device), head_dim, q.dtype)
    tile = max(size for size in range(1, min(32, blocks.m) + 1) if group % size == 0)
    tiles, rows, width = (
        group // tile,
        max(16, power_of_two(tile)),
        power_of_two(head_dim),
    )
    n, tma = blocks.n, blocks.tma
    if splits is None:
        splits = decode_splits(
            _processors(q.device), batch, kv_heads * tiles, capacity, n
        )
    splits = max(1, min(splits, -(-capacity // n)))
    out = torch.empty(batch, heads, head_dim, dtype=q.dtype, device=q.device)
    if batch * heads == 0 or capacity == 0:
        return out.zero_().to(dtype)
    states = batch, kv_heads * tiles, splits, rows
    m_out = torch.empty(states, dtype=torch.float32, device=q.device)
    l_out = torch.empty_like(m_out)
    o_out = torch.empty(*states, width, dtype=torch.float32, device=q.device)
    grouped = _readable(q.reshape(batch, kv_heads * tiles, tile, head_dim))
    caches = _readable(k_cache), _readable(v_cache)
    columns = min(32, width)
    with on(q.device):
        kernels.decode_split[(batch * kv_heads * tiles * splits,)](
            *_views(tma, (grouped, rows), (caches[0], n), (caches[1], n)),
            lengths.contiguous(), m_out, l_out, o_out,
            splits, kv_heads * tiles, tiles, capacity, tile, scale * LOG2_E,
            rows, n, head_dim, width, tma, **_options(blocks),
        )  # fmt: skip
        kernels.decode_merge[(batch * heads, width // columns)](
            m_out, l_out, o_out, out, splits, tile,
            rows, head_dim, width, columns, MERGED,
        )  # fmt: skip
    return out.to(dtype)


def decode_splits(
    processors: int, batch: int, kv_heads: int, capacity: int, block: int = 64
) -> int:
    """Stretches of the cache for two programs a processor and no more, since those that
    come second would run alone; at most one a block of keys, and at most 256."""
    wanted = 2 * processors // max(1, batch * kv_heads)
    return max(1, min(wanted, -(-capacity // block), 256))


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, causal, scale):
        batch, heads, n_q, head_dim = q.shape
        n_k, group = k.shape[2], heads // k.shape[1]
        q, k, v = _readable(q), _readable(k), _readable(v)
        out = _writable(q.shape, like=q)
        lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
        blocks = block_sizes("forward", capability(q.device), head_dim, q.dtype)
        m, n, tma = blocks.m, blocks.n, blocks.tma
        if out.numel() and n_k:
            with on(q.device):
                kernels.forward[(-(-n_q // m) * batch * heads,)](
                    *_views(tma, (q, m), (k, n), (v, n), (out, m)), lse,
                    n_q, n_k, heads, group, scale * LOG2_E,
                    causal, m, n, head_dim, power_of_two(head_dim), tma,
                    **_options(blocks),
                )  # fmt: skip
        else:
            out.zero_()
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.causal, ctx.scale = causal, scale
        return out

    @staticmethod
    def backward(ctx, do):
        if torch.is_grad_enabled():  # create_graph=True: a wrong zero would follow
            raise RuntimeError(
                "flash_attention can be differentiated once, its backward pass being a kernel: "
                "where create_graph=True is needed, use mlbook.flash_attention.naive_attention"
            )
        q, k, v, out, lse = ctx.saved_tensors
        batch, heads, n_q, head_dim = q.shape
        kv_heads, n_k = k.shape[1:3]
        wants_q, *wants_kv = ctx.needs_input_grad[:3]
        dq = _writable(q.shape, like=q) if wants_q else None
        dk, dv = (_writable(k.shape, like=k) if any(wants_kv) else None for _ in "kv")
        if not (out.numel() and n_k):
            zeros = (x if x is None else x.zero_() for x in (dq, dk, dv))
            return *zeros, None, None
        do, delta = _readable(do), torch.empty_like(lse)
        cc, width = capability(q.device), power_of_two(head_dim)
        numbers = n_q, n_k, heads, heads // kv_heads, ctx.scale, ctx.scale * LOG2_E
        with on(q.device):
            blocks = block_sizes("row_dots", cc, head_dim, q.dtype)
            m, tma = blocks.m, blocks.tma
            kernels.row_dots[(-(-n_q // m) * batch * heads,)](
                *_views(tma, (out, m), (do, m)), delta,
                n_q, heads, m, head_dim, width, tma, **_options(blocks),
            )  # fmt: skip
            if any(wants_kv):
                blocks = block_sizes("backward_dk_dv", cc, head_dim, q.dtype)
                m, n, tma = blocks.m, blocks.n, blocks.tma
                kernels.backward_dk_dv[(-(-n_k // n) * batch * kv_heads,)](
                    *_views(tma, (q, m), (k, n), (v, n), (do, m), (dk, n), (dv, n)),
                    lse, delta, *numbers, ctx.causal, m, n, head_dim, width,
                    tma, **_options(blocks),
                )  # fmt: skip
            if wants_q:
                blocks = block_sizes("backward_dq", cc, head_dim, q.dtype)
                m, n, tma = blocks.m, blocks.n, blocks.tma
                kernels.backward_dq[(-(-n_q // m) * batch * heads,)](
                    *_views(tma, (q, m), (k, n), (v, n), (do, m), (dq, m)),
                    lse, delta, *numbers, ctx.causal, m, n, head_dim, width,
                    tma, **_options(blocks),
                )  # fmt: skip
        return dq, dk, dv, None, None


class Blocks(NamedTuple):
    """How a kernel is launched: rows of queries and of keys in a block, warps of a
    program, stages of its software pipeline, whether blocks are copied by the card's
    copy engine (Hopper and later), and the most registers that a thread may take."""

    m: int
    n: int
    warps: int
    stages: int
    tma: bool
    registers: int | None = None


def _options(blocks: Blocks) -> dict:
    """For the compiler. Fusing a product and a sum is what the kernels are written for,
    and what not every version of Triton does unasked."""
    return {
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
        "maxnreg": blocks.registers,
        "enable_fp_fusion": True,
    }


# By kernel and architecture, for head dimensions up to 64, 128 and 256: rows of
# queries, rows of keys, warps, stages.
TABLE = {
    "forward": {
        75: [(64, 32, 8, 2), (32, 32, 8, 2), (32, 16, 8, 1)],
        80: [(128, 64, 8, 3), (128, 64, 8, 3), (64, 32, 8, 2)],
        86: [(128, 64, 8, 3), (128, 32, 8, 3), (64, 32, 8, 2)],
        90: [(128, 128, 8, 3), (128, 128, 8, 3), (128, 64, 8, 2)],
        100: [(128, 128, 8, 3), (128, 128, 8, 2), (128, 64, 8, 2)],
        120: [(128, 64, 8, 3), (128, 32, 8, 3), (32, 64, 8, 1)],
    },
    "backward_dk_dv": {
        75: [(32, 32, 8, 1), (16, 16, 8, 1), (16, 16, 8, 1)],
        80: [(32, 128, 8, 2), (32, 64, 8, 2), (32, 32, 8, 1)],
        90: [(64, 128, 8, 2), (32, 128, 8, 2), (32, 64, 8, 2)],
        100: [(64, 64, 8, 2), (64, 64, 8, 1), (64, 64, 8, 1)],
        120: [(64, 32, 8, 2), (32, 32, 8, 2), (32, 16, 8, 2)],
    },
    "backward_dq": {
        75: [(32, 32, 8, 1), (16, 16, 8, 1), (16, 16, 8, 1)],
        80: [(128, 64, 8, 2), (128, 32, 8, 2), (64, 32, 8, 1)],
        90: [(128, 128, 8, 2), (128, 64, 8, 3), (64, 64, 8, 2)],
        100: [(128, 128, 8, 2), (128, 64, 8, 2), (64, 64, 8, 1)],
        120: [(128, 64, 8, 2), (32, 64, 8, 2), (16, 64, 8, 2)],
    },
}
# float32 goes through the ordinary arithmetic units, on every card, and takes twice the
# room.
FLOAT32 = {
    "forward": [(32, 32, 8, 1), (16, 16, 8, 1), (16, 16, 8, 1)],
    "backward_dk_dv": [(32, 32, 8, 1), (16, 16, 8, 1), (16, 16, 8, 1)],
    "backward_dq": [(32, 32, 8, 1), (16, 16, 8, 1), (16, 16, 8, 1)],
}


def block_sizes(
    kernel: str, capability: tuple[int, int] | None, head_dim: int, dtype: torch.dtype
) -> Blocks:
    """What a kernel of `kernels` is launched with.

    Args:
        kernel: "forward", "row_dots", "backward_dk_dv", "backward_dq", "decode_split"
            or "decode_merge".
        capability: of the CUDA device, such as (9, 0); None in the interpreter.
    """
    if capability is None:  # few and large steps: one takes as long at any size
        return Blocks(128, 128, 4, 1, True)
    # Blocks of float32 that the copy engine brings are spilled from registers.
    tma = capability >= (9, 0) and dtype != torch.float32
    if kernel == "row_dots":
        return Blocks(64, 64, 4, 1, tma)
    if kernel.startswith("decode"):  # m: the most queries of a group in one block
        if dtype == torch.float32:
            return Blocks(16, 16 if head_dim > 128 else 32, 8, 1, tma)
        if capability < (8, 0):
            return Blocks(16, 32, 8, 1, tma)
        return Blocks(32, 32 if head_dim > 128 else 64, 4, 3, tma)
    number = 10 * capability[0] + capability[1]
    architecture = max(known for known in TABLE[kernel] if known <= max(75, number))
    rows = FLOAT32[kernel] if dtype == torch.float32 else TABLE[kernel][architecture]
    return Blocks(*rows[0 if head_dim <= 64 else 1 if head_dim <= 128 else 2], tma)


def _fits_backward(
    capability: tuple[int, int] | None, head_dim: int, dtype: torch.dtype
) -> bool:
    """Turing's 64 kB do not hold the least blocks of four float32 tensors of 256
    columns."""
    turing = capability is not None and capability < (8, 0)
    return not (turing and dtype == torch.float32 and head_dim > 128)


def capability(device: torch.device) -> tuple[int, int] | None:
    """The CUDA device's compute capability, or None for a CPU, where kernels are
    interpreted."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    check_heads(q=q, k=k, v=v)
    if k.shape != v.shape:
        raise ValueError(
            f"k and v must have one shape, got {tuple(k.shape)} and {tuple(v.shape)}"
        )
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(
            f"q {tuple(q.shape)} and k {tuple(k.shape)} must agree in batch and head_dim"
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"the {k.shape[1]} heads of k and v must divide the {q.shape[1]} of q"
        )
    if not 16 <= q.shape[3] <= 256:
        raise ValueError(f"head_dim must be 16 to 256, got {q.shape[3]}")


def _checked_scale(scale: float | None, head_dim: int) -> float:
    if scale is None:
        return head_dim**-0.5
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")
    return float(scale)


def _check_runnable(x: Tensor) -> None:
    """Raise unless the kernels can run on the device and in the dtype of `x`."""
    interpreted = check_runnable(
        kernels.forward,
        x,
        missing="this kernel is written in Triton, which this machine does not have (it is made for Linux): "
        "use mlbook.flash_attention.naive_attention, or torch's scaled_dot_product_attention",
    )
    if x.dtype == torch.bfloat16 and not interpreted and capability(x.device) < (8, 0):
        raise TypeError(
            f"{torch.cuda.get_device_name(x.device)} has no bfloat16 arithmetic: use float16"
        )


def _readable(x: Tensor) -> Tensor:
    """`x`, or a copy of it that a tensor descriptor can address: rows together, and
    apart by multiples of 16 bytes."""
    unit = 16 // x.element_size()
    fits = (
        x.stride(3) == 1
        and x.data_ptr() % 16 == 0
        and all(
            size == 1 or (stride > 0 and stride % unit == 0)
            for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True)
        )
    )
    return x if fits else _writable(x.shape, like=x).copy_(x)


def _writable(shape: torch.Size, like: Tensor) -> Tensor:
    """An empty tensor whose rows start at multiples of 16 bytes."""
    _, heads, n, d = shape
    unit = 16 // like.element_size()
    row = -(-d // unit) * unit
    strides = heads * n * row, n * row, row, 1
    return torch.empty_strided(shape, strides, dtype=like.dtype, device=like.device)


def _views(tma: bool, *blocks: tuple[Tensor, int]) -> list:
    """A kernel's first arguments: tensors, or descriptors of their blocks of so many
    rows; then the tensors' strides."""
    if not tma:
        return [x for x, _ in blocks] + [_strides(x) for x, _ in blocks]
    from triton.tools.tensor_descriptor import TensorDescriptor

    views = [
        TensorDescriptor(
            x, list(x.shape), [*_strides(x), 1], [1, 1, rows, power_of_two(x.shape[3])]
        )
        for x, rows in blocks
    ]
    return views + [(0, 0, 0)] * len(blocks)


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Of the first three dimensions. One of size 1 is never stepped over, so that its
    stride may be anything; a descriptor wants multiples of 16 bytes all the same."""
    unit = 16 // x.element_size()
    strides, beyond = [], -(-x.shape[3] // unit) * unit
    for size, stride in zip(x.shape[2::-1], x.stride()[2::-1], strict=True):
        strides.append(stride if size > 1 else beyond)
        beyond = max(beyond, strides[-1] * size)
    return tuple(strides[::-1])


def _processors(device: torch.device) -> int:
    """Streaming multiprocessors; a few for a CPU, so that the splitting is exercised
    there."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 4
