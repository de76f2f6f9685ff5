"""Attention: by the definition, by FlashAttention's kernels, and the counting of what
they move."""

from mlbook.flash_attention.compiled import SHARED_MEMORY, Job, compile_kernels
from mlbook.flash_attention.flash import (
    block_sizes,
    decode_splits,
    flash_attention,
    flash_decode,
)
from mlbook.flash_attention.reference import (
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
    "SHARED_MEMORY",
    "Job",
    "State",
    "block_sizes",
    "causal_mask",
    "compile_kernels",
    "decode_splits",
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
