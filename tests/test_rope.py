"""Rotations against complex numbers, matrices and transformers; what the frequencies imply against closed forms."""

import math
import random

import pytest
import torch

from mlbook.common import optional
from mlbook.long_context import rope

EPS32 = torch.finfo(torch.float32).eps


def complex_rotation(x, positions, freqs):
    """The definition, for interleaved pairs in float64."""
    z = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    turn = torch.exp(1j * positions.double()[..., None] * freqs)
    return torch.view_as_real(z * turn).flatten(-2)


def test_frequencies_and_periods():
    theta = rope.inv_freq(128)
    assert theta.dtype == torch.float64 and theta.shape == (64,)
    for i in (0, 1, 46, 63):
        assert theta[i].item() == pytest.approx(10_000 ** (-2 * i / 128), rel=1e-14)
    assert 4711 < rope.periods(128)[46].item() < 4712
    assert torch.equal(rope.periods(128), 2 * math.pi / theta)


@pytest.mark.parametrize(
    ("dim", "base", "length", "critical"),
    [
        (128, 1e4, 4096, 92),
        (96, 1e4, 2048, 62),
        (128, 5e5, 8192, 70),
        (128, 500, 4096, 128),
        (64, 1e4, 1, 0),
    ],
)
def test_critical_dimension(dim, base, length, critical):
    assert rope.critical_dimension(dim, base, length) == critical


def test_critical_dimension_is_the_formula():
    draw = random.Random(0)
    for _ in range(200):
        dim = 2 * draw.randint(2, 128)
        base, length = 10 ** draw.uniform(1, 7), draw.uniform(7, 1e6)
        formula = 2 * math.ceil(dim / 2 * math.log(length / (2 * math.pi), base))
        assert rope.critical_dimension(dim, base, length) == min(formula, dim)


def test_base_for_length_gives_the_critical_pair_that_period():
    base = rope.base_for_length(128, 131_072, 4096)
    assert 2 * math.pi * base ** (92 / 128) == pytest.approx(131_072)
    with pytest.raises(ValueError, match="no pair of 64"):
        rope.base_for_length(64, 100, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rope.inv_freq(7), "got 7"),
        (lambda: rope.inv_freq(0), "got 0"),
        (lambda: rope.inv_freq(8, 1.0), "got 1.0"),
        (lambda: rope.inv_freq(8, -3.0), "got -3.0"),
        (lambda: rope.inv_freq(8, math.nan), "got nan"),
        (lambda: rope.inv_freq(8, math.inf), "got inf"),
        (lambda: rope.sinusoidal(3, 5), "got 5"),
        (lambda: rope.critical_dimension(8, 10.0, -1), "got -1"),
        (lambda: rope.Linear(0.5), "got 0.5"),
        (lambda: rope.NTK(-2.0), "got -2.0"),
        (
            lambda: rope.YaRN(4.0, 0),
            "original_length must be positive and finite, got 0",
        ),
        (lambda: rope.YaRN(4.0, 64, beta_fast=1.0, beta_slow=2.0), "got 1.0 and 2.0"),
        (lambda: rope.Llama3(8.0, 64, 4.0, 1.0), "got 1.0 and 4.0"),
        (lambda: rope.inv_freq(2, scaling=rope.NTK(2.0)), "got 2"),
        (lambda: rope.alibi_slopes(0), "got 0"),
        (
            lambda: rope.apply_rope(
                torch.ones(2, 8), torch.tensor([0, -4]), rope.inv_freq(8)
            ),
            "got -4",
        ),
        (
            lambda: rope.apply_rope(
                torch.ones(2, 6), torch.arange(2), rope.inv_freq(8)
            ),
            "ends in 6",
        ),
    ],
)
def test_errors_name_the_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotation_is_complex_multiplication(interleaved):
    x = torch.randn(2, 3, 10, 16, dtype=torch.float64)
    at, freqs = torch.arange(5, 15), rope.inv_freq(16)
    expected = complex_rotation(x, at, freqs)
    if not interleaved:
        x, expected = rope.to_half_split(x), rope.to_half_split(expected)
    out = rope.apply_rope(x, at, freqs, interleaved=interleaved)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-14)


def test_a_layout_converts():
    x = torch.arange(12).view(2, 6)
    assert rope.to_half_split(x).tolist() == [[0, 2, 4, 1, 3, 5], [6, 8, 10, 7, 9, 11]]


@pytest.mark.parametrize("interleaved", [True, False])
def test_scores_depend_on_distance_alone(interleaved):
    q, k = torch.randn(2, 1, 64, dtype=torch.float64)
    freqs, at = rope.inv_freq(64), torch.arange(0, 2000, 100)
    turned = [
        rope.apply_rope(x, positions, freqs, interleaved=interleaved)
        for x, positions in ((q, at + 77), (k, at))
    ]
    scores = (turned[0] * turned[1]).sum(-1)
    # an angle of 2,000 radians is rounded to 2,000 · 1e-16
    torch.testing.assert_close(scores, scores[:1].expand(20), rtol=0, atol=1e-10)
    assert turned[0].norm(dim=-1).allclose(q.norm(), rtol=1e-13)


@pytest.mark.parametrize("interleaved", [True, False])
def test_gradients(interleaved):
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)

    def turned(x):
        return rope.apply_rope(
            x, torch.arange(3), rope.inv_freq(8), factor=1.3, interleaved=interleaved
        )

    assert torch.autograd.gradcheck(turned, x)
    assert torch.autograd.gradgradcheck(turned, x)


def test_positions_broadcast_both_ways():
    freqs = rope.inv_freq(8)
    x = torch.randn(2, 4, 3, 8)
    own = torch.tensor([[0, 1, 2], [5, 6, 7]])  # each batch entry its own
    out = rope.apply_rope(x, own[:, None], freqs)
    assert torch.equal(out[1], rope.apply_rope(x[1], own[1], freqs))
    many = rope.apply_rope(x[0, 0, :1], torch.arange(5), freqs)
    assert many.shape == (5, 8)
    one = torch.randn(1, 8, requires_grad=True)
    rope.apply_rope(one, torch.arange(5), freqs).sum().backward()
    assert one.grad.shape == (1, 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype(dtype):
    x, at, freqs = torch.randn(10, 16).to(dtype), torch.arange(10), rope.inv_freq(16)
    out = rope.apply_rope(x, at, freqs)
    assert out.dtype == dtype
    exact = rope.apply_rope(x.double(), at, freqs)
    # cos, sin, two products and a sum, each rounded: at most five of |x| ≤ 5
    assert (out - exact).abs().max() < 5 * 5 * torch.finfo(dtype).eps


def test_angles_are_formed_in_double_precision():
    at, freqs = torch.tensor([1_000_003]), rope.inv_freq(128)
    cos, _ = rope.rotation(at, freqs, dtype=torch.float64)
    exact = [math.cos(1_000_003 * f) for f in freqs.tolist()]
    assert (cos[0] - torch.tensor(exact, dtype=torch.float64)).abs().max() < 1e-9
    single = (at.float()[:, None] * freqs.float()).cos()
    assert (single[0] - cos[0]).abs().max() > 1e-3


def test_decay_bound_bounds():
    torch.manual_seed(0)
    freqs, distance = rope.inv_freq(32), torch.arange(0, 3000, 7)
    q, k = torch.randn(2, 50, 16, dtype=torch.complex128)
    h = torch.nn.functional.pad(q * k.conj(), (0, 1))
    scores = (h[:, :-1] @ torch.exp(1j * distance * freqs[:, None])).abs()
    bound = (
        h.diff().abs().amax(1, keepdim=True) * 16 * rope.decay_bound(distance, freqs)
    )
    assert (scores <= bound * (1 + 1e-12)).all()
    assert rope.decay_bound(torch.tensor(0), freqs).item() == pytest.approx(17 / 2)


def test_alibi():
    assert rope.alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    twelve = rope.alibi_slopes(12)
    assert twelve[:8] == rope.alibi_slopes(8)
    assert twelve[8:] == [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    bias = rope.alibi_bias(2, 3)
    assert bias[0].tolist() == [
        [0, -math.inf, -math.inf],
        [-1 / 16, 0, -math.inf],
        [-2 / 16, -1 / 16, 0],
    ]
    assert bias[1, 2, 0].item() == -2 / 256


def test_sinusoidal():
    table = rope.sinusoidal(50, 6)
    for i, t in ((0, 0), (7, 1), (49, 2)):
        angle = i / 10_000 ** (2 * t / 6)
        assert table[i, 2 * t].item() == pytest.approx(math.sin(angle), abs=1e-7)
        assert table[i, 2 * t + 1].item() == pytest.approx(math.cos(angle), abs=1e-7)


def test_ntk_keeps_the_fastest_and_slows_the_slowest():
    slowed = rope.inv_freq(64) / rope.inv_freq(64, scaling=rope.NTK(8.0))
    assert slowed[0].item() == 1
    assert slowed[-1].item() == pytest.approx(8, rel=1e-12)


SCALINGS = [
    None,
    rope.Linear(3.0),
    rope.NTK(4.0),
    rope.DynamicNTK(2.0, 1024, 5000),
    rope.DynamicNTK(2.0, 1024, 500),
    rope.YaRN(16.0, 4096),
    rope.YaRN(16.0, 4096, truncate=False),
    rope.YaRN(4.0, 2048, beta_fast=16.0, beta_slow=2.0),
    rope.Llama3(),
    rope.Llama3(32.0, 8192),
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize(("dim", "base"), [(128, 1e4), (96, 5e5), (16, 27.0)])
def test_scalings_equal_transformers(dim, base, scaling):
    optional.hide_broken("torchvision")
    pytest.importorskip("transformers")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=2 * dim,
        num_attention_heads=2,
        max_position_embeddings=getattr(scaling, "original_length", 2048),
        rope_parameters=rope.rope_parameters(dim, base, scaling),
    )
    kind = config.rope_parameters["rope_type"]
    make = ROPE_INIT_FUNCTIONS.get(kind) or (
        lambda config, **_: LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    )
    freqs, factor = make(config, seq_len=getattr(scaling, "length", None))
    # theirs is float32: a power magnifies a rounding by ln(base), a blend of 1 and
    # 1/factor by factor
    stretch = getattr(scaling, "factor", 1.0)
    tolerance = 2 * EPS32 * (stretch + math.log(base * max(stretch, 10)))
    ours = rope.inv_freq(dim, base, scaling)
    assert (freqs.double() / ours - 1).abs().max().item() < tolerance
    assert rope.attention_factor(scaling) == pytest.approx(factor, rel=1e-12)


def test_factor_multiplies_both_halves():
    x, at, freqs = torch.randn(5, 8).double(), torch.arange(5), rope.inv_freq(8)
    plain, larger = (rope.apply_rope(x, at, freqs, factor=f) for f in (1.0, 1.5))
    # |x| < 8, and three roundings in each
    torch.testing.assert_close(larger, 1.5 * plain, rtol=0, atol=1e-14)


def test_rotation_is_the_block_matrix():
    x, freqs, m = torch.randn(8, dtype=torch.float64), rope.inv_freq(8), 137
    matrix = torch.block_diag(
        *(
            torch.tensor(
                [
                    [math.cos(m * f), -math.sin(m * f)],
                    [math.sin(m * f), math.cos(m * f)],
                ],
                dtype=torch.float64,
            )
            for f in freqs.tolist()
        )
    )
    out = rope.apply_rope(x[None], torch.tensor([m]), freqs, interleaved=True)
    torch.testing.assert_close(out[0], matrix @ x, rtol=0, atol=1e-14)


def test_rotation_is_that_of_transformers():
    optional.hide_broken("torchvision")
    pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    q, k = torch.randn(2, 2, 3, 10, 16, dtype=torch.float64)
    at, freqs = torch.arange(10), rope.inv_freq(16)
    tables = (t.repeat(1, 1, 2) for t in rope.rotation(at[None], freqs, 1.0, q.dtype))
    for x, theirs in zip((q, k), apply_rotary_pos_emb(q, k, *tables), strict=True):
        torch.testing.assert_close(
            rope.apply_rope(x, at, freqs), theirs, rtol=0, atol=1e-14
        )


DRAWS = {
    "Linear": lambda u, n: rope.Linear(u(1, 64)),
    "DynamicNTK": lambda u, n: rope.DynamicNTK(u(1, 8), n(16, 9999), n(16, 99_999)),
    "YaRN": lambda u, n: rope.YaRN(
        u(1, 64), int(10 ** u(2.5, 5)), u(16, 300), u(0.5, 4), u(0, 1) < 0.5
    ),
    "Llama3": lambda u, n: rope.Llama3(u(1, 64), n(16, 99_999), u(0.5, 2), u(3, 8)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_random_scalings_equal_transformers(name):
    optional.hide_broken("torchvision")
    pytest.importorskip("transformers")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    draw = random.Random(0)
    for _ in range(100):
        dim, base = 2 * draw.randint(2, 96), 10 ** draw.uniform(3, 6)
        scaling = DRAWS[name](draw.uniform, draw.randint)
        config = LlamaConfig(
            hidden_size=dim,
            num_attention_heads=1,
            max_position_embeddings=getattr(scaling, "original_length", 2048),
            rope_parameters=rope.rope_parameters(dim, base, scaling),
        )
        make = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]]
        theirs, factor = make(config, seq_len=getattr(scaling, "length", None))
        ours = rope.inv_freq(dim, base, scaling)
        # Theirs is float32. A power magnifies a rounding of its exponent by ln(1/θ), and
        # six more operations follow; a rounding of the blend s of 1 and 1/factor is
        # magnified by (1 − 1/factor) / (s + (1 − s)/factor) < factor.
        roundings = 6 - ours.min().log().item() + math.log(scaling.factor)
        if name == "YaRN":
            # s = (i − first) / (last − first), of numbers below dim, and last − first
            # is above dim / 20: fast/slow is at least 4, length/(2π slow) at least 12
            roundings += 22 * scaling.factor
        if name == "Llama3":  # s = (turns − low) / (high − low)
            high, low = scaling.high_freq_factor, scaling.low_freq_factor
            roundings *= 1 + scaling.factor * high / (high - low)
        error = (theirs.double() / ours - 1).abs().max().item()
        assert error < roundings * EPS32, (dim, base, scaling)
        assert rope.attention_factor(scaling) == pytest.approx(factor, rel=1e-12)
