"""Attention and softmax by the definition, pass by pass, and the state that lets
partial results be merged."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


def naive_attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = False, scale: float | None = None
) -> Tensor:
    """softmax(scale · q kᵀ) v, by forming the whole matrix, in the dtype of the inputs.

    Args:
        q: (batch, heads, n_q, head_dim).
        k, v: (batch, kv_heads, n_k, head_dim); kv_heads divides heads, and each serves
            heads // kv_heads queries' heads.
        causal: the last query sees every key, the one before it all but the last key,
            and so on.
        scale: 1/√head_dim unless given.
    Returns:
        (batch, heads, n_q, head_dim); a query that sees no key gets zeros.
    Source: Vaswani et al. 2017, equation 1.
    """
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    s = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        hidden = ~causal_mask(*s.shape[-2:], device=q.device)
        s = s.masked_fill(hidden, -math.inf)
        return (
            s.softmax(-1).masked_fill(hidden, 0) @ v
        )  # an empty row is NaN until here
    return s.softmax(-1) @ v


def causal_mask(n_q: int, n_k: int, device=None) -> Tensor:
    """(n_q, n_k), true where query i may see key j: j ≤ i + n_k − n_q, so that the last
    query sees everything."""
    return torch.ones(n_q, n_k, dtype=torch.bool, device=device).tril(n_k - n_q)


def three_pass_softmax(x: list[float]) -> list[float]:
    """Softmax that cannot overflow: one pass for the maximum, one for the denominator,
    one for the result."""
    m = -math.inf
    for value in x:
        m = max(m, value)
    l = 0.0
    for value in x:
        l += math.exp(value - m)
    return [math.exp(value - m) / l for value in x]


def online_softmax(x: list[float]) -> list[float]:
    """Softmax in two passes: maximum and denominator together, then the result.

    Source: Milakov and Gimelshein 2018, algorithm 3.
    """
    m, l = -math.inf, 0.0
    for value in x:
        m_new = max(m, value)
        l = l * math.exp(m - m_new) + math.exp(value - m_new)
        m = m_new
    return [math.exp(value - m) / l for value in x]


def one_pass_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of one query in one pass over the keys; no score is ever needed twice.

    Args:
        q: (d,), scaled already; k, v: (n, d).
    Source: Dao et al. 2022; the recurrence for one row.
    """
    m, l, o = -math.inf, 0.0, torch.zeros_like(v[0])
    for key, value in zip(k, v, strict=True):
        s = float(q @ key)
        m_new = max(m, s)
        old, new = math.exp(m - m_new), math.exp(s - m_new)
        l = l * old + new
        o = o * old + new * value
        m = m_new
    return o / l


class State(NamedTuple):
    """What attention to some of the keys leaves behind: enough to go on with, or to
    merge.

    m: largest score so far; l: Σ exp(score − m), both (..., n_q, 1); o: Σ exp(score −
    m) · v, (..., n_q, head_dim).
    """

    m: Tensor
    l: Tensor
    o: Tensor


def partial_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> State:
    """The state after attending to the keys `k` only.

    Args:
        q: (..., n_q, head_dim); k, v: (..., n_k, head_dim).
        mask: (n_q, n_k), true where the query may see the key.
        scale: 1/√head_dim unless given.
    """
    s = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        s = s.masked_fill(~mask, -math.inf)
    m = s.amax(-1, keepdim=True)
    p = torch.exp(s - _finite(m))
    return State(m, p.sum(-1, keepdim=True), p @ v)


def merge(a: State, b: State) -> State:
    """The state after attending to the keys of both: associative and commutative, with
    m = −∞, l = 0, o = 0 neutral."""
    m = torch.maximum(a.m, b.m)
    wa, wb = torch.exp(a.m - _finite(m)), torch.exp(b.m - _finite(m))
    return State(m, wa * a.l + wb * b.l, wa * a.o + wb * b.o)


def finish(state: State) -> Tensor:
    """o / l: the attention's output, zeros where no key was seen."""
    return state.o / state.l.masked_fill(state.l == 0, 1)


def _finite(m: Tensor) -> Tensor:
    """−∞ (no key seen) as 0, so that −∞ − m is −∞ and not NaN."""
    return m.masked_fill(m == -math.inf, 0)
