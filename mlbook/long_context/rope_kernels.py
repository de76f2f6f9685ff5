"""RoPE in one Triton kernel, forward and backward: queries and keys are read once and
written once, and each block of the tables of cosines and sines serves the heads of both.

A rotation computes next to nothing, so that it takes the time of what it reads and
writes. `rope.rotate` reads three times as much and writes twice as much, and `transformers`
more than that (benchmarks/rope.py).
"""

import torch
from torch import Tensor

from mlbook.common.launch import (
    check_heads,
    check_runnable,
    on,
    power_of_two,
    tl,
    triton,
)

HEADS = 4  # of queries that one program rotates: they share what it read of the tables
ELEMENTS = 2048  # of a head that it holds at a time: 16 a thread
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}

# fmt: off


@triton.jit
def _turn(x, out, x_strides, out_strides, batch, row, inside, cos, sin, heads, share,
          shares, DIM: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
          INTERLEAVED: tl.constexpr):
    """Rotate the heads share, share + shares, … in some rows of one batch entry."""
    # A row in one piece, or the first numbers of its pairs: threads that are neighbours
    # read neighbours.
    NUMBERS: tl.constexpr = WIDTH if INTERLEAVED else WIDTH // 2
    column = tl.arange(0, NUMBERS)
    inside = inside & (column < (DIM if INTERLEAVED else DIM // 2))[None, :]
    x += batch * x_strides[0] + row * x_strides[2] + column[None, :]
    out += batch * out_strides[0] + row * out_strides[2] + column[None, :]
    for head in tl.range(share, heads, shares):
        source = x + tl.cast(head, tl.int64) * x_strides[1]
        target = out + tl.cast(head, tl.int64) * out_strides[1]
        if INTERLEAVED:
            pairs = tl.load(source, inside).to(tl.float32)
            a, b = tl.split(pairs.reshape(ROWS, WIDTH // 2, 2))
            turned = tl.join(a * cos - b * sin, b * cos + a * sin)
            tl.store(target, turned.reshape(ROWS, WIDTH), inside)
        else:
            a = tl.load(source, inside).to(tl.float32)
            b = tl.load(source + DIM // 2, inside).to(tl.float32)
            tl.store(target, a * cos - b * sin, inside)
            tl.store(target + DIM // 2, b * cos + a * sin, inside)


@triton.jit
def rope(q, k, q_out, k_out, q_strides, k_strides, q_out_strides, k_out_strides,
         cos, sin, apart, length, q_heads, k_heads, shares, BACK: tl.constexpr,
         DIM: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
         INTERLEAVED: tl.constexpr):
    """One program: ROWS positions of one batch entry, in every `shares`-th head of q
    and of k. Row i of entry b has row b · apart + i of the tables; BACK turns back."""
    program = tl.program_id(0).to(tl.int64)  # a tensor may have more than 2³¹ numbers
    share, block = program % shares, program // shares
    blocks = tl.cdiv(length, ROWS)
    batch = block // blocks
    row = block % blocks * ROWS + tl.arange(0, ROWS)[:, None]
    pair = tl.arange(0, WIDTH // 2)[None, :]
    at, inside = (batch * apart + row) * (DIM // 2) + pair, row < length
    cos = tl.load(cos + at, inside & (pair < DIM // 2))
    sin = tl.load(sin + at, inside & (pair < DIM // 2))
    if BACK:
        sin = -sin
    _turn(q, q_out, q_strides, q_out_strides, batch, row, inside, cos, sin, q_heads,
          share, shares, DIM, ROWS, WIDTH, INTERLEAVED)
    _turn(k, k_out, k_strides, k_out_strides, batch, row, inside, cos, sin, k_heads,
          share, shares, DIM, ROWS, WIDTH, INTERLEAVED)


# fmt: on


def fused_rope(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """`rope.rotate` of queries and of keys in one launch; differentiable in both, as often
    as wanted, since the gradient of a rotation is the rotation back.

    Args:
        q: (batch, heads, length, dim), float32, float16 or bfloat16; any strides (where
            the last is not 1, it is copied first).
        k: (batch, kv_heads, length, dim), in the dtype of q; any number of heads.
        cos, sin: (length, dim/2), or (batch, length, dim/2) where every batch entry has
            its own positions: float32, from `rope.rotation`. They are constants: no
            gradient reaches them.
        interleaved: pairs are (0, 1), (2, 3), …; otherwise (0, dim/2), (1, dim/2 + 1), …
    Returns:
        q and k rotated, in new tensors of their dtype and, where they have no gaps,
        strides; computed in float32.
    Raises:
        ValueError: shapes or a device that do not fit, named.
        TypeError: a dtype that is not among these.
        RuntimeError: there is no Triton for this platform.
    Source: Su et al. 2021 (RoFormer), section 3.4.2, equation 34; one launch for
    queries, keys and both directions as in Hsu et al. 2024 (Liger Kernel), section 3.2.
    """
    _check(q, k, cos, sin)
    check_runnable(
        rope,
        q,
        missing="Triton is not installed (it has no build for macOS and Windows), and this kernel is written in it: "
        "use mlbook.long_context.rope.rotate",
    )
    dtype = q.dtype
    if dtype == torch.bfloat16 and q.device.type == "cpu":
        # The interpreter truncates to bfloat16 where a GPU rounds to nearest.
        q, k = q.float(), k.float()
    q, k = _Rope.apply(q, k, cos.contiguous(), sin.contiguous(), interleaved, False)
    return q.to(dtype), k.to(dtype)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, cos, sin, interleaved, back):
        ctx.save_for_backward(cos, sin)
        ctx.interleaved, ctx.back = interleaved, back
        q, k = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k))
        q_out, k_out = _empty(like=q), _empty(like=k)
        batch, q_heads, length, dim = q.shape
        k_heads = k.shape[1]
        rows, width, shares = launch_sizes(dim, max(q_heads, k_heads), q.device)
        programs = batch * -(-length // rows) * shares
        if programs:
            with on(q.device):
                rope[(programs,)](
                    q, k, q_out, k_out,
                    *(x.stride()[:3] for x in (q, k, q_out, k_out)),
                    cos, sin, length if cos.ndim == 3 else 0,
                    length, q_heads, k_heads, shares,
                    back, dim, rows, width, interleaved,
                    **OPTIONS,
                )  # fmt: skip
        return q_out, k_out

    @staticmethod
    def backward(ctx, dq, dk):
        # What nobody asked for is left without heads, and so without work.
        wanted = ctx.needs_input_grad[:2]
        dq, dk = (x if w else x[:, :0] for x, w in zip((dq, dk), wanted, strict=True))
        back = _Rope.apply(dq, dk, *ctx.saved_tensors, ctx.interleaved, not ctx.back)
        dq, dk = (x if w else None for x, w in zip(back, wanted, strict=True))
        return dq, dk, None, None, None, None


def launch_sizes(dim: int, heads: int, device: torch.device) -> tuple[int, int, int]:
    """What `rope` is launched with: positions and numbers of a head in a block, each a
    power of two, and how many programs share the heads of a block of positions."""
    width = max(16, power_of_two(dim))
    if device.type == "cpu":  # few and large steps: one takes as long at any size
        return 128, width, min(1, heads)
    return max(1, ELEMENTS // width), width, -(-heads // HEADS)


def _empty(like: Tensor) -> Tensor:
    """In the layout of `like`, unless that overlaps itself such that dim would not be the
    innermost dimension of the copy."""
    out = torch.empty_like(like)
    return out if out.stride(3) == 1 else like.new_empty(like.shape)


def _check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    check_heads(q=q, k=k)
    batch, _, length, dim = q.shape
    if (k.shape[0], *k.shape[2:]) != (batch, length, dim):
        raise ValueError(
            f"q {tuple(q.shape)} and k {tuple(k.shape)} must agree in batch, length and dim"
        )
    if dim == 0 or dim % 2:
        raise ValueError(
            f"rotations need pairs: dim must be even and positive, got {dim}"
        )
    for name, x in (("cos", cos), ("sin", sin)):
        table = length, dim // 2
        if x.shape not in (table, (batch, *table)) or x.shape != cos.shape:
            raise ValueError(
                f"cos and sin must both be {table} or {(batch, *table)}, got {name} of shape {tuple(x.shape)}"
            )
        if x.dtype != torch.float32:
            raise TypeError(f"{name} must be float32, got {x.dtype}")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device}, q on {q.device}")
