"""Positions for attention: rotations (RoPE) with their frequencies and scalings, and the encodings they replaced.

In one notation: a head has `dim` numbers, in pairs; pair i turns by the angle
position · θ_i, with θ_i = base^(−2i/dim) before any scaling.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# -- frequencies ---------------------------------------------------------------------


def inv_freq(
    dim: int, base: float = 10_000.0, scaling: "Scaling | None" = None
) -> Tensor:
    """θ_i, the angle by which pair i turns from one position to the next: (dim/2,), float64, radians.

    Args:
        dim: numbers in a head, even.
        base: β in θ_i = β^(−2i/dim), more than 1.
        scaling: one of `Linear`, `NTK`, `DynamicNTK`, `YaRN`, `Llama3`.
    Raises:
        ValueError: `dim` is odd or not positive, `base` is not a number above 1.
    Source: Su et al. 2021 (RoFormer), section 3.2.2.
    """
    _check(dim, base)
    if scaling is not None:
        return scaling.frequencies(dim, base)
    return base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def periods(
    dim: int, base: float = 10_000.0, scaling: "Scaling | None" = None
) -> Tensor:
    """2π/θ_i, the positions after which pair i is where it was: (dim/2,), float64. Raises as `inv_freq`."""
    return 2 * math.pi / inv_freq(dim, base, scaling)


def attention_factor(scaling: "Scaling | None") -> float:
    """What queries and keys are multiplied by beside being rotated: 1, except for `YaRN`."""
    return getattr(scaling, "attention_factor", 1.0)


def _check(dim: int, base: float) -> None:
    if dim <= 0 or dim % 2:
        raise ValueError(
            f"rotations need pairs: dim must be even and positive, got {dim}"
        )
    if not (base > 1 and math.isfinite(base)):
        raise ValueError(f"base must be more than 1 and finite, got {base}")


def _check_positive(scaling) -> None:
    """A scaling's fields are positive numbers, its factor stretches, and its ramp has two ends."""
    for name, value in vars(scaling).items():
        if not isinstance(value, bool) and not 0 < value < math.inf:
            raise ValueError(
                f"{type(scaling).__name__}: {name} must be positive and finite, got {value}"
            )
    if scaling.factor < 1:
        raise ValueError(
            f"{type(scaling).__name__}: factor must be at least 1, got {scaling.factor}"
        )
    match scaling:
        case (
            YaRN(beta_fast=high, beta_slow=low)
            | Llama3(high_freq_factor=high, low_freq_factor=low)
        ):
            if high <= low:
                raise ValueError(
                    f"{type(scaling).__name__}: pairs that turn more often are kept, and must turn more often "
                    f"than those that are slowed; got {high} and {low} turns"
                )


@dataclass(frozen=True)
class Linear:
    """Position interpolation: every frequency divided by `factor` (Chen et al. 2023, equation 4)."""

    factor: float

    __post_init__ = _check_positive

    def frequencies(self, dim: int, base: float) -> Tensor:
        return inv_freq(dim, base) / self.factor


@dataclass(frozen=True)
class NTK:
    """A larger base, such that the slowest pair is slowed by `factor` and the fastest not at all (bloc97 2023)."""

    factor: float

    __post_init__ = _check_positive

    def frequencies(self, dim: int, base: float) -> Tensor:
        return inv_freq(dim, self.larger_base(dim, base))

    def larger_base(self, dim: int, base: float) -> float:
        """base · factor^(dim/(dim − 2)). Raises ValueError unless dim is at least 4."""
        _check(dim, base)
        if dim < 4:
            raise ValueError(
                f"NTK scaling needs a fastest and a slowest pair: dim ≥ 4, got {dim}"
            )
        return base * self.factor ** (dim / (dim - 2))


@dataclass(frozen=True)
class DynamicNTK:
    """`NTK` with a factor that grows with the sequence (emozilla 2023): 1 up to `original_length`, and at
    `length` beyond it factor · length / original_length − (factor − 1)."""

    factor: float
    original_length: int
    length: int

    __post_init__ = _check_positive

    def frequencies(self, dim: int, base: float) -> Tensor:
        length = max(self.length, self.original_length)
        grown = self.factor * length / self.original_length - (self.factor - 1)
        return NTK(grown).frequencies(dim, base)


@dataclass(frozen=True)
class YaRN:
    """Pairs that turn more than `beta_fast` times in the original length are kept, those that turn less than
    `beta_slow` times interpolated, those between blended (Peng et al. 2023, section 3.2, and the authors' code: the
    ramp is linear in the pair's index).

    `truncate` rounds the ends of the ramp to whole pairs, outwards.
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    __post_init__ = _check_positive

    @property
    def attention_factor(self) -> float:
        """√(1/t) = 0.1 ln(factor) + 1, for queries and keys both (equation 22)."""
        return 0.1 * math.log(self.factor) + 1

    def frequencies(self, dim: int, base: float) -> Tensor:
        first, last = (
            _pair_that_turns(turns, dim, base, self.original_length)
            for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, dim - 1)
        if last < first:
            raise ValueError(
                f"YaRN: over {self.original_length} positions at base {base} no pair of {dim} numbers lies between "
                f"{self.beta_fast} and {self.beta_slow} turns"
            )
        index = torch.arange(dim // 2, dtype=torch.float64)
        slowed = ((index - first) / max(last - first, 0.001)).clamp(0, 1)
        return inv_freq(dim, base) * (1 - slowed + slowed / self.factor)


def _pair_that_turns(turns: float, dim: int, base: float, length: int) -> float:
    """The (fractional) pair i whose angle over `length` positions is `turns` times 2π."""
    return dim * math.log(length / (2 * math.pi * turns)) / (2 * math.log(base))


@dataclass(frozen=True)
class Llama3:
    """As `YaRN`, with the blend linear in the number of turns, from `low_freq_factor` to `high_freq_factor`, and no
    attention factor (Meta's released code of Llama 3.1; the defaults are the 8B model's)."""

    factor: float = 8.0
    original_length: int = 8192
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    __post_init__ = _check_positive

    def frequencies(self, dim: int, base: float) -> Tensor:
        freqs = inv_freq(dim, base)
        turns = self.original_length * freqs / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        kept = kept.clamp(0, 1)
        return freqs * (kept + (1 - kept) / self.factor)


Scaling = Linear | NTK | DynamicNTK | YaRN | Llama3


def rope_parameters(dim: int, base: float, scaling: Scaling | None = None) -> dict:
    """What a config of `transformers` 5 calls `rope_parameters`, for the same frequencies.

    `DynamicNTK`'s `length` is left out: `transformers` takes the length of what it is given. Raises as `inv_freq`.
    """
    match scaling:
        case None:
            return {"rope_type": "default", "rope_theta": base}
        case NTK():  # has no name there
            larger = scaling.larger_base(dim, base)
            return {"rope_type": "default", "rope_theta": larger}
        case Linear(factor):
            own = {"rope_type": "linear", "factor": factor}
        case DynamicNTK(factor):
            own = {"rope_type": "dynamic", "factor": factor}
        case YaRN():
            own = {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                "truncate": scaling.truncate,
                "original_max_position_embeddings": scaling.original_length,
            }
        case Llama3():
            own = {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_length,
            }
    return own | {"rope_theta": base}


def longest(scaling: Scaling | None) -> int:
    """What the same config calls `max_position_embeddings`: for "dynamic" where it begins to scale, for YaRN and
    Llama 3 what it scales to (`transformers` warns of anything else)."""
    original = getattr(scaling, "original_length", 2048)
    scales_to = isinstance(scaling, YaRN | Llama3)
    return int(original * scaling.factor) if scales_to else original


# -- rotation ------------------------------------------------------------------------


def rotation(
    positions: Tensor,
    freqs: Tensor,
    factor: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of position · θ_i, times `factor`: two tensors (…, length, dim/2) of `dtype`.

    The angles are formed in float64: in float32 the angle of position 10⁶ is off by up to 0.03 radians.

    Args:
        positions: (…, length), not negative; integers or not.
        freqs: (dim/2,), from `inv_freq`.
        factor: from `attention_factor`.
    Raises:
        ValueError: a position is negative.
    """
    if positions.numel() and not positions.min() >= 0:  # NaN too
        raise ValueError(
            f"positions must not be negative, got {positions.min().item()}"
        )
    angles = positions.double()[..., None] * freqs.to(positions.device)
    return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


def apply_rope(
    x: Tensor,
    positions: Tensor,
    freqs: Tensor,
    *,
    factor: float = 1.0,
    interleaved: bool = False,
) -> Tensor:
    """Rotate each pair of `x` by position · θ_i.

    Args:
        x: (…, length, dim), queries or keys.
        positions: (length,), or any shape that broadcasts with x.shape[:-1]; not negative.
        freqs: (dim/2,), from `inv_freq`.
        factor: multiplies the result; from `attention_factor`.
        interleaved: pairs are (0, 1), (2, 3), … as in RoFormer and Meta's Llama; otherwise (0, dim/2), (1, dim/2 + 1), …
            as in `transformers`.
    Returns:
        a new tensor like `x`; one vector and many positions give many vectors.
    Raises:
        ValueError: `x` does not end in twice as many numbers as there are frequencies; a position is negative.
    """
    return rotate(
        x, *rotation(positions, freqs, factor, x.dtype), interleaved=interleaved
    )


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """`apply_rope` with the cosines and sines of `rotation` at hand: a model makes them once for all its layers."""
    if x.shape[-1] != 2 * cos.shape[-1]:
        raise ValueError(
            f"x ends in {x.shape[-1]} numbers, and {cos.shape[-1]} frequencies rotate {2 * cos.shape[-1]}"
        )
    shape = torch.broadcast_shapes(x.shape[:-1], cos.shape[:-1])
    return _Rotate.apply(x.expand(*shape, -1), cos, sin, interleaved)


class _Rotate(torch.autograd.Function):
    """Four passes over halves of `x` and one new tensor; the gradient is the rotation back."""

    @staticmethod
    def forward(ctx, x, cos, sin, interleaved):
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _rotated(x, cos, sin, interleaved)

    @staticmethod
    def backward(ctx, grad):
        cos, sin = ctx.saved_tensors
        return _Rotate.apply(grad, cos, -sin, ctx.interleaved), None, None, None


def _pairs(x: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Views of the first and of the second number of each pair."""
    return (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    out = torch.empty_like(x)
    (a, b), (c, d) = _pairs(x, interleaved), _pairs(out, interleaved)
    torch.mul(a, cos, out=c).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=d).addcmul_(a, sin)
    return out


def to_half_split(x: Tensor) -> Tensor:
    """Reorder the last dimension from pairs (0, 1), (2, 3), … to pairs (0, dim/2), (1, dim/2 + 1), …"""
    return torch.cat((x[..., ::2], x[..., 1::2]), dim=-1)


# -- what the frequencies imply ------------------------------------------------------


def decay_bound(distance: Tensor, freqs: Tensor) -> Tensor:
    """Mean over j of |S_j|, S_j = Σ_{i<j} e^{i·distance·θ_i}, j = 1 … dim/2: the factor of RoFormer's bound on a score
    that depends on the distance.

    Args:
        distance: any shape.
        freqs: (dim/2,).
    Returns:
        like `distance`, float64.
    Source: Su et al. 2021, section 3.4.3.
    """
    angles = distance.double()[..., None] * freqs
    partial = torch.polar(torch.ones_like(angles), angles).cumsum(dim=-1)
    return partial.abs().mean(dim=-1)


def critical_dimension(dim: int, base: float, train_length: float) -> int:
    """How many of `dim` numbers belong to pairs whose period fits into `train_length`:
    2⌈(dim/2) log_base(train_length/2π)⌉, between 0 and `dim`.

    Source: Liu et al. 2023 (2310.05209), theorem 2.
    """
    _check(dim, base)
    if not train_length > 0:
        raise ValueError(f"train_length must be positive, got {train_length}")
    return 2 * int((periods(dim, base) <= train_length).sum())


def base_for_length(
    dim: int, length: float, train_length: float, base: float = 10_000.0
) -> float:
    """The base whose critical pair, the last one that training at `base` and `train_length` has seen turn once, has
    the period `length`: (length/2π)^(dim/critical_dimension).

    Raises:
        ValueError: no pair turned once in training, or `length` is not positive.
    Source: Liu et al. 2023, theorem 4, solved for the base.
    """
    if not length > 0:
        raise ValueError(f"length must be positive, got {length}")
    critical = critical_dimension(dim, base, train_length)
    if critical == 0:
        raise ValueError(
            f"no pair of {dim} numbers at base {base} turns once in {train_length} positions"
        )
    return (length / (2 * math.pi)) ** (dim / critical)


# -- the other encodings -------------------------------------------------------------


def sinusoidal(n: int, dim: int, base: float = 10_000.0) -> Tensor:
    """p[i, 2t] = sin(i θ_t), p[i, 2t+1] = cos(i θ_t): (n, dim), float32. Raises as `inv_freq`.

    Source: Vaswani et al. 2017, section 3.5.
    """
    cos, sin = rotation(torch.arange(n), inv_freq(dim, base))
    return torch.stack((sin, cos), dim=-1).flatten(-2)


def alibi_slopes(heads: int) -> Sequence[float]:
    """The slope of each head: 2^(−8(h+1)/heads) for a power of two; for another number, those of the next lower power and
    every other one of the next higher (Press et al. 2021, and their code).

    Raises:
        ValueError: `heads` is not positive.
    """
    if heads < 1:
        raise ValueError(f"heads must be at least 1, got {heads}")
    whole = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * (h + 1) / whole) for h in range(whole)]
    return (
        slopes
        + [2 ** (-4 * (h + 1) / whole) for h in range(0, 2 * whole, 2)][: heads - whole]
    )


def alibi_bias(heads: int, n: int) -> Tensor:
    """What ALiBi adds to the scores: −slope · (i − j) for key j ≤ i, −∞ beyond: (heads, n, n), float32."""
    slopes = torch.tensor(alibi_slopes(heads))[:, None, None]
    distance = torch.arange(n)[:, None] - torch.arange(n)
    return torch.where(distance >= 0, -slopes * distance, -math.inf)
