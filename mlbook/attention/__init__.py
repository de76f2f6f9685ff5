"""Attention: by the definition, by FlashAttention's kernels, and the counting of what they move."""

from mlbook.attention.flash import block_sizes, flash_attention, flash_decode
from mlbook.attention.reference import (
    State,
    causal_mask,
    finish,
    merge,
    naive_attention,
    one_pass_attention,
    online_softmax,
    partial_attention,
    three_pass_softmax,
)

__all__ = [
    "State",
    "block_sizes",
    "causal_mask",
    "finish",
    "flash_attention",
    "flash_decode",
    "merge",
    "naive_attention",
    "one_pass_attention",
    "online_softmax",
    "partial_attention",
    "three_pass_softmax",
]
