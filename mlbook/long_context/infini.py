"""Infini-attention: causal attention within segments, and a memory of fixed size for all that came before them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlbook.common import lm
from mlbook.long_context import rope


@dataclass
class Memory:
    """What is left of the past: `matrix` (…, d_key, d_value), the sum of σ(k) vᵀ, and `norm` (…, d_key), the sum of σ(k)."""

    matrix: Tensor
    norm: Tensor

    @classmethod
    def empty(cls, like_k: Tensor, like_v: Tensor) -> "Memory":
        shape = like_k.shape[:-2]
        return cls(
            like_v.new_zeros(*shape, like_k.shape[-1], like_v.shape[-1]),
            like_k.new_zeros(*shape, like_k.shape[-1]),
        )

    def read(self, q: Tensor) -> Tensor:
        """σ(q) M / σ(q) z for queries (…, n, d_key): (…, n, d_value); zero while nothing has been written.

        Source: Munkhdalai et al. 2024, equation 7.
        """
        weights = sigma(q)
        total = weights @ self.norm[..., None]
        return weights @ self.matrix / total.where(total > 0, 1)

    def write(self, k: Tensor, v: Tensor, delta: bool = False) -> "Memory":
        """The memory after a segment's keys (…, n, d_key) and values (…, n, d_value); `self` stays as it is.

        Args:
            delta: write what the memory does not already say at these keys (equation 9), instead of all (equation 8).
        """
        if delta:
            v = v - self.read(k)
        keys = sigma(k)
        return Memory(
            self.matrix + keys.transpose(-1, -2) @ v, self.norm + keys.sum(dim=-2)
        )


def sigma(x: Tensor) -> Tensor:
    """ELU(x) + 1, positive, so that weights in a memory cannot cancel: x + 1 above zero, e^x below.

    Written as ELU plus one it would be 0 in float32 for x below −17.
    """
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


class InfiniAttention(lm.Attention):
    """For `lm.Transformer(attention=…)`. Positions turn queries and keys within a segment and start anew in each; the
    memory sees them unturned. A gate for each head mixes the two.

    Args:
        dim, heads: width, and into how many heads it is split.
        segment: tokens that are attended to exactly.
        delta: how the memory is written.
    Raises:
        ValueError: `segment` is not positive; in use, the model does not rotate or has a cache.
    """

    def __init__(self, dim: int, heads: int, segment: int, delta: bool = False):
        super().__init__(dim, heads)
        if segment < 1:
            raise ValueError(f"segment must be at least one token, got {segment}")
        self.segment, self.delta = segment, delta
        self.gate = nn.Parameter(torch.zeros(heads, 1, 1))

    def forward(self, x, rotation, mask, cache):
        if rotation is None or cache is not None:
            raise ValueError(
                'InfiniAttention is for models with position "rope", on whole texts without a cache'
            )
        q, k, v = self.project(x)
        memory = Memory.empty(k, v)
        cos, sin = (t[: self.segment] for t in rotation)
        outputs = []
        gate = self.gate.sigmoid()
        for q_s, k_s, v_s in zip(
            *(t.split(self.segment, dim=2) for t in (q, k, v)), strict=True
        ):
            n = q_s.shape[2]
            local = F.scaled_dot_product_attention(
                rope.rotate(q_s, cos[:n], sin[:n]),
                rope.rotate(k_s, cos[:n], sin[:n]),
                v_s,
                is_causal=True,
            )
            outputs.append(torch.lerp(local, memory.read(q_s), gate))
            memory = memory.write(k_s, v_s, self.delta)
        return self.join(torch.cat(outputs, dim=2))
