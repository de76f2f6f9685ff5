"""FlashAttention and Flash-Decoding against float64, by the rule of flash-attention's own tests."""

import math
import os
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from mlbook import flash_attention as attention
from mlbook.flash_attention import (
    flash,
    flash_attention,
    flash_decode,
    kernels,
    naive_attention,
)
from mlbook.flash_attention.flash import Blocks

pytest.importorskip("triton", reason="no Triton on this platform")
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
EPS = torch.finfo(F32).eps


@pytest.fixture(params=[(16, 32, True), (32, 16, False)], ids=["tma", "pointers"])
def small_blocks(request, monkeypatch):
    """Blocks so small that short inputs have many, through both ways of addressing them."""
    m, n, tma = request.param
    monkeypatch.setattr(flash, "block_sizes", lambda *_: Blocks(m, n, 4, 1, tma))


@pytest.fixture
def poisoned(monkeypatch):
    """New tensors of the module hold NaN until they are written."""
    empty, like, strided = torch.empty, torch.empty_like, torch.empty_strided
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(math.nan))
    monkeypatch.setattr(
        torch, "empty_like", lambda *a, **k: like(*a, **k).fill_(math.nan)
    )
    monkeypatch.setattr(
        torch, "empty_strided", lambda *a, **k: strided(*a, **k).fill_(math.nan)
    )


def inputs(case, seed=0):
    dtype, (batch, heads, kv_heads), n_q, n_k, head_dim = case
    make = torch.Generator().manual_seed(seed)
    shapes = [(heads, n_q), (kv_heads, n_k), (kv_heads, n_k), (heads, n_q)]
    return [
        torch.randn(batch, h, n, head_dim, generator=make).to(dtype) for h, n in shapes
    ]


def outputs(f, q, k, v, do, dtype, **options):
    """Output and gradients."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
    out = f(*leaves, **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, do.to(dtype))]


def largest(a, b):
    return (a.double() - b.double()).abs().max().item() if a.numel() else 0.0


def assert_close(q, k, v, do, scores=1.0, **options):
    """Error at most 2 times (output) and 3 times (gradients) that of plain PyTorch in the same dtype, beside a few
    roundings of float32, the kernels' own arithmetic, relative to the largest value. Rounding a score s, or the
    logarithm of a denominator of that size, puts a relative error of EPS · |s| on e^s: `scores` is the largest |s|."""
    ours = outputs(flash_attention, q, k, v, do, q.dtype, **options)
    plain = outputs(naive_attention, q, k, v, do, q.dtype, **options)
    exact = outputs(naive_attention, q, k, v, do, torch.float64, **options)
    for factor, mine, theirs, right in zip(
        (2, 3, 3, 3), ours, plain, exact, strict=True
    ):
        assert mine.shape == right.shape and mine.dtype == q.dtype
        room = 8 * EPS * scores * max(1.0, right.abs().max().item())
        assert largest(mine, right) <= factor * largest(theirs, right) + room


CASES = [
    (F32, (1, 1, 1), 1, 1, 16),
    (F32, (2, 2, 2), 33, 33, 20),
    (F32, (1, 4, 2), 17, 65, 33),
    (F32, (1, 2, 1), 70, 40, 64),
    (F16, (1, 3, 1), 64, 64, 64),
    (F16, (2, 2, 1), 45, 90, 80),
    (F16, (1, 2, 2), 50, 31, 128),
    (F16, (1, 1, 1), 20, 37, 256),
    (BF16, (1, 4, 2), 40, 56, 48),
    (BF16, (1, 2, 1), 57, 33, 128),
]


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_gradients(case, causal, small_blocks):
    assert_close(*inputs(case), causal=causal)


@pytest.mark.parametrize("case", CASES[3:8:2], ids=str)
def test_the_blocks_of_the_interpreter(case):
    assert_close(*inputs(case), causal=True)


def test_every_element_is_written(poisoned, small_blocks):
    q, k, v, do = inputs((F32, (2, 4, 2), 37, 50, 40))
    assert_close(q, k, v, do, causal=True)
    assert_close(q, k[:, :, :20], v[:, :, :20], do, causal=True)


def test_rows_that_see_nothing(small_blocks):
    q, k, v, do = inputs((F16, (1, 2, 2), 50, 21, 32))
    out, dq, dk, dv = outputs(flash_attention, q, k, v, do, F16, causal=True)
    assert out[:, :, :29].eq(0).all() and dq[:, :, :29].eq(0).all()
    assert all(x.isfinite().all() for x in (out, dq, dk, dv))
    _, _, dk_seen, dv_seen = outputs(
        flash_attention, q[:, :, 29:], k, v, do[:, :, 29:], F16, causal=True
    )
    assert largest(dk, dk_seen) < 2e-3 and largest(dv, dv_seen) < 2e-3


def layouts():
    x = torch.randn(2, 48, 3, 40)
    wide = torch.randn(2, 3, 48, 43)
    return {
        "heads inside": x.transpose(1, 2),
        "rows not together": torch.randn(2, 3, 40, 48).transpose(2, 3),
        "misaligned": wide[..., 1:41],
        "odd stride": wide[..., :40],
        "expanded": torch.randn(2, 1, 48, 40).expand(2, 3, 48, 40),
        "every other row": torch.randn(2, 3, 96, 40)[:, :, ::2],
        "reversed batch": torch.randn(2, 3, 48, 40).flip(0),
    }


@pytest.mark.parametrize("name", layouts())
def test_strides(name, small_blocks):
    torch.manual_seed(1)
    x = layouts()[name]
    before = x.clone()
    expected = naive_attention(x.contiguous(), x.contiguous(), x.contiguous(), True)
    assert largest(flash_attention(x, x, x, True), expected) < 2e-6
    assert torch.equal(x, before)
    lengths = torch.tensor([48, 31])
    whole = flash_decode(x[:, :, 0].contiguous(), *[x.contiguous()] * 2, lengths)
    assert torch.equal(flash_decode(x[:, :, 0], x, x, lengths), whole)


def test_gradient_of_a_layout_arrives(small_blocks):
    q, k, v, do = inputs((F32, (2, 3, 3), 20, 20, 24))
    leaf = q.transpose(1, 2).contiguous().requires_grad_()
    (got,) = torch.autograd.grad(
        flash_attention(leaf.transpose(1, 2), k, v),
        leaf,
        do.transpose(2, 3).contiguous().transpose(2, 3),
    )
    right = outputs(naive_attention, q, k, v, do, torch.float64)[1]
    assert got.shape == leaf.shape and largest(got.transpose(1, 2), right) < 2e-6


def test_scale_and_large_scores(small_blocks):
    case = (F32, (1, 2, 2), 40, 50, 32)
    q, k, v, do = inputs(case)
    assert_close(q, k, v, do, scores=0.7 * (q @ k.mT).abs().max().item(), scale=0.7)
    # Scores of ±10⁵: one key takes all, with a weight of exactly 1. The backward pass recomputes it as e^(s − L), good to
    # EPS · |s|, which dV = Pᵀ dO shows; in dS = P (dP − δ) the bracket is a difference of equal numbers of size 8.
    q, k = q * 100, k * 100
    out, dq, dk, dv = outputs(flash_attention, q, k, v, do, F32)
    assert largest(out, naive_attention(q.double(), k.double(), v.double())) < 1e-5
    p = (q.double() @ k.double().mT / 32**0.5).softmax(-1)
    exact = outputs(naive_attention, q, k, v, do, torch.float64)[1:]
    scores = (q @ k.mT).abs().max().item() / 32**0.5
    assert largest(dv, exact[2]) < 8 * EPS * scores * (p.mT @ do.abs().double()).max()
    assert max(map(largest, (dq, dk), exact[:2])) < 400 * 32 * EPS
    # All scores near −300, and a last block that is mostly past the end: a padded score of 0 would be e³⁰⁰ times as large.
    q, k = torch.ones_like(q), -torch.ones_like(k) * 53 / 32**0.5 + 0.01 * k
    assert_close(q, k[:, :, :33], v[:, :, :33], do, scores=300.0, scale=1.0)


def test_gradcheck_in_float32(small_blocks):
    """Central differences along random directions, in float32.

    With step h the quotient of an O(1) function errs by about 1e-7·√n/h from rounding and by h² from curvature: h = 1e-2
    makes both about 1e-4 for sums of a hundred terms.
    """
    q, k, v, do = inputs((F32, (1, 2, 1), 7, 19, 16))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    gradients = torch.autograd.grad(flash_attention(*leaves, True), leaves, do)
    value = lambda *x: (flash_attention(*x, True).double() * do).sum().item()  # noqa: E731
    for i, gradient in enumerate(gradients):
        step = torch.randn_like(leaves[i])
        step = step / step.norm()
        ends = []
        for sign in (1, -1):
            moved = [q, k, v]
            moved[i] = moved[i] + sign * 1e-2 * step
            ends.append(value(*moved))
        assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(
            (gradient * step).sum().item(), abs=1e-3
        )


def test_only_some_gradients():
    q, k, v, _ = inputs((F32, (1, 2, 1), 8, 8, 16))
    v.requires_grad_()
    flash_attention(q, k, v).sum().backward()
    # Σ over outputs of a value's weight: each query gives 1 in all, to 2 heads of 16
    assert v.grad.sum().item() == pytest.approx(2 * 8 * 16, rel=1e-5)


def test_only_what_is_asked_for_is_computed(monkeypatch):
    launched = []
    for name in ("backward_dk_dv", "backward_dq"):

        class Kernel:
            def __init__(self, name):
                self.name, self.kernel = name, getattr(kernels, name)

            def __getitem__(self, grid):
                launched.append(self.name)
                return self.kernel[grid]

        monkeypatch.setattr(kernels, name, Kernel(name))
    q, k, v, do = inputs((F32, (1, 2, 1), 8, 8, 16))
    for asked, names in ((q, ["backward_dq"]), (k, ["backward_dk_dv"])):
        launched.clear()
        leaves = [x.clone().requires_grad_(x is asked) for x in (q, k, v)]
        flash_attention(*leaves).backward(do)
        assert launched == names
        assert [x.grad is not None for x in leaves] == [x is asked for x in (q, k, v)]


def test_the_output_may_be_changed_in_place_where_no_gradient_is_wanted():
    q, k, v, _ = inputs((F32, (1, 2, 1), 8, 8, 20))
    assert flash_attention(q, k, v).mul_(2).isfinite().all()


def test_strides_that_a_descriptor_accepts():
    for x in (
        torch.empty(1, 1, 1, 40),
        torch.empty(2, 4, 40, 1).transpose(2, 3),
        torch.empty(3, 1, 7, 33)[:, :, :, :32].contiguous(),
    ):
        x = flash._readable(x.half())
        batch, heads, rows = flash._strides(x)
        assert all(stride % 8 == 0 and stride > 0 for stride in (batch, heads, rows))
        assert batch >= heads * x.shape[1] and heads >= rows * x.shape[2] >= x.shape[3]


@pytest.mark.parametrize("capability", [(7, 5), (8, 0)])
def test_a_t4_has_no_room_for_wide_gradients_in_float32(capability, monkeypatch):
    monkeypatch.setattr(flash, "capability", lambda _: capability)
    monkeypatch.setattr(flash, "block_sizes", lambda *_: Blocks(16, 16, 4, 1, True))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla T4")
    x = torch.randn(1, 1, 8, 160, requires_grad=True)
    assert flash_attention(x.detach(), x.detach(), x.detach()).shape == x.shape
    if capability == (7, 5):
        with pytest.raises(RuntimeError, match="head_dim 160 .* Tesla T4 .* float16"):
            flash_attention(x, x, x)
    else:
        flash_attention(x, x, x).sum().backward()


def test_second_derivatives_are_refused():
    q, k, v, _ = inputs((F32, (1, 1, 1), 4, 4, 16))
    q.requires_grad_()
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(flash_attention(q, k, v).sum(), q, create_graph=True)


@pytest.mark.parametrize(
    "shape", [(0, 2, 4), (1, 2, 0)], ids=["no batch", "no queries"]
)
def test_nothing_to_do(shape):
    batch, heads, n = shape
    q = torch.randn(batch, heads, n, 16, requires_grad=True)
    k = torch.randn(batch, heads, 5, 16)
    out = flash_attention(q, k, k)
    out.sum().backward()
    assert out.shape == q.shape and q.grad.shape == q.shape


def test_no_keys_give_zeros():
    q = torch.randn(1, 2, 4, 16, requires_grad=True)
    empty = torch.randn(1, 2, 0, 16)
    out = flash_attention(q, empty, empty)
    out.sum().backward()
    assert out.eq(0).all() and q.grad.eq(0).all()


X = torch.randn(2, 4, 8, 32)
WRONG = {
    "three dimensions": ((X[0], X, X), ValueError, "q must be .*got shape"),
    "float64": ((X.double(),) * 3, TypeError, "float64"),
    "mixed dtypes": ((X, X.half(), X), TypeError, "float16"),
    "head_dim 8": ((X[..., :8],) * 3, ValueError, "16 to 256, got 8"),
    "head_dim 300": ((torch.randn(1, 1, 2, 300),) * 3, ValueError, "got 300"),
    "heads do not divide": ((X, X[:, :3], X[:, :3]), ValueError, "3 heads .* the 4"),
    "batches differ": ((X, X[:1], X[:1]), ValueError, "batch and head_dim"),
    "k and v differ": ((X, X, X[:, :, :4]), ValueError, "one shape"),
    "devices differ": ((X, X.to("meta"), X), ValueError, "k is on meta"),
    "another device": ((X.to("meta"),) * 3, ValueError, "on meta"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs(name):
    arguments, error, words = WRONG[name]
    with pytest.raises(error, match=words):
        flash_attention(*arguments)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_wrong_scale(scale):
    with pytest.raises(ValueError, match="scale must be positive"):
        flash_attention(X, X, X, scale=scale)


@pytest.mark.parametrize("dtype", [F32, F16])
def test_the_barest_kernel(dtype):
    q, k, v, _ = (x[0, 0] for x in inputs((dtype, (1, 1, 1), 64, 64, 32)))
    out = torch.full_like(q, math.nan)
    kernels.barest[(2,)](q, k, v, out, 64, 32**-0.5 * flash.LOG2_E, 32, 16, 32)
    exact, plain = (
        naive_attention(*(x.to(t)[None, None] for x in (q, k, v)))[0, 0]
        for t in (torch.float64, dtype)
    )
    assert largest(out, exact) <= 2 * largest(plain, exact) + 8 * EPS


# Decoding


@pytest.mark.parametrize("splits", [None, 1, 2, 5, 40])
@pytest.mark.parametrize(
    "heads, kv_heads, head_dim, dtype",
    [(4, 4, 64, F32), (6, 2, 40, F16), (8, 1, 128, BF16), (32, 1, 16, F32)],
)
def test_decode(heads, kv_heads, head_dim, dtype, splits, small_blocks, poisoned):
    make = torch.Generator().manual_seed(2)
    lengths = torch.tensor([90, 1, 0, 33])
    q = torch.randn(4, heads, head_dim, generator=make).to(dtype)
    k, v = torch.randn(2, 4, kv_heads, 90, head_dim, generator=make).to(dtype)
    for b, length in enumerate(lengths.tolist()):
        k[b, :, length:] = math.nan
        v[b, :, length:] = math.nan
    out = flash_decode(q, k, v, lengths, splits)
    assert out.shape == q.shape and out.dtype == dtype
    for b, length in enumerate(lengths.tolist()):
        row = [
            x[b : b + 1] for x in (q[:, :, None], k[:, :, :length], v[:, :, :length])
        ]
        if length == 0:
            assert out[b].eq(0).all()
            continue
        exact = naive_attention(*[x.double() for x in row])[0, :, 0]
        plain = naive_attention(*row)[0, :, 0]
        assert largest(out[b], exact) <= 2 * largest(plain, exact) + 8 * EPS


@pytest.mark.parametrize("group, tile", [(37, 1), (64, 32), (48, 24)])
def test_decode_with_large_groups(group, tile, small_blocks, monkeypatch):
    m, n, tma = (32, 16, True)
    monkeypatch.setattr(flash, "block_sizes", lambda *_: Blocks(m, n, 4, 1, tma))
    monkeypatch.setattr(flash, "MERGED", 2)  # so that merging takes several steps
    torch.manual_seed(3)
    q, cache = torch.randn(2, 2 * group, 16), torch.randn(2, 2, 100, 16)
    lengths = torch.tensor([100, 70])
    out = flash_decode(q, cache, cache, lengths, splits=5)
    for b, length in enumerate(lengths.tolist()):
        seen = cache[b : b + 1, :, :length].double()
        exact = naive_attention(q[b : b + 1, :, None].double(), seen, seen)[0, :, 0]
        assert largest(out[b], exact) < 8 * EPS


def test_more_splits_than_blocks_are_as_many_as_blocks(monkeypatch):
    monkeypatch.setattr(flash, "block_sizes", lambda *_: Blocks(16, 32, 4, 1, True))
    torch.manual_seed(4)
    q, cache, length = (
        torch.randn(1, 2, 16),
        torch.randn(1, 2, 90, 16),
        torch.tensor([90]),
    )
    three, many = (flash_decode(q, cache, cache, length, splits=s) for s in (3, 10**6))
    assert torch.equal(three, many)


def test_decode_checks_its_input():
    q, cache = torch.randn(2, 4, 32), torch.randn(2, 2, 10, 32)
    for lengths, words in (
        (torch.tensor([3]), "2 integers"),
        (torch.tensor([3.0, 4.0]), "2 integers"),
        (torch.tensor([True, True]), "2 integers"),
        (torch.tensor([3, 11]), "between 0 and the cache's 10, got 3 to 11"),
        (torch.tensor([-1, 4]), "got -1 to 4"),
        (torch.tensor([1, 1], device="meta"), "lengths is on meta"),
    ):
        with pytest.raises(ValueError, match=words):
            flash_decode(q, cache, cache, lengths)
    good = torch.tensor([1, 1])
    with pytest.raises(ValueError, match="splits must be at least 1, got 0"):
        flash_decode(q, cache, cache, good, splits=0)
    with pytest.raises(ValueError, match=r"q must be \(batch, heads, head_dim\)"):
        flash_decode(q[0], cache, cache, good)
    assert flash_decode(q[:0], cache[:0], cache[:0], good[:0]).shape == (0, 4, 32)


def test_splits_occupy_the_card_and_no_more():
    assert attention.decode_splits(132, 1, 8, 32_768) * 8 == 2 * 132
    assert attention.decode_splits(132, 1, 32, 32_768) * 32 <= 2 * 132  # one wave
    assert attention.decode_splits(132, 64, 8, 32_768) == 1
    assert attention.decode_splits(132, 1, 1, 100, block=64) == 2
    assert attention.decode_splits(132, 1, 1, 0) == 1


# The references


def test_naive_is_torchs():
    q, k, v, _ = inputs((F32, (2, 6, 2), 9, 9, 16))
    expected = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    assert largest(naive_attention(q, k, v, True), expected) < 1e-6


@pytest.mark.parametrize("shift", [0.0, 900.0, -900.0])
def test_softmax_in_passes(shift):
    x = torch.randn(50, dtype=torch.float64) * 3 + shift
    for f in (attention.three_pass_softmax, attention.online_softmax):
        assert largest(x.new_tensor(f(x.tolist())), x.softmax(0)) < 1e-14


def test_one_pass():
    q, k, v = torch.randn(3, 30, 8, dtype=torch.float64)
    expected = (q @ k.T).softmax(-1) @ v
    assert largest(attention.one_pass_attention(q[0], k, v), expected[0]) < 1e-13


@pytest.mark.parametrize("seed", range(5))
def test_merging(seed):
    torch.manual_seed(seed)
    q, k, v = torch.randn(3, 2, 24, 8, dtype=torch.float64) * 4
    mask = torch.rand(24, 24) > 0.5
    mask[0] = False
    a, b, c = (
        attention.partial_attention(q, k[:, s], v[:, s], mask[:, s])
        for s in (slice(0, 5), slice(5, 6), slice(6, 24))
    )
    merge, finish = attention.merge, attention.finish
    whole = finish(attention.partial_attention(q, k, v, mask))
    assert whole[:, 0].eq(0).all() and whole.isfinite().all()
    for state in (merge(merge(a, b), c), merge(a, merge(b, c)), merge(c, merge(b, a))):
        assert largest(finish(state), whole) < 1e-13
    nothing = attention.State(torch.full_like(a.m, -math.inf), 0 * a.l, 0 * a.o)
    for x, y in zip(merge(a, nothing), a, strict=True):
        assert torch.equal(x, y)


# Other machines


def python(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_without_triton_the_rest_works():
    run = python(
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from mlbook import flash_attention as attention, show\n"
        "from mlbook.flash_attention import kernels\n"
        "x = torch.randn(1, 1, 4, 16)\n"
        "assert attention.naive_attention(x, x, x).shape == x.shape\n"
        "show(kernels.forward)\n"
        "for call in (lambda: attention.flash_attention(x, x, x),\n"
        "             lambda: attention.flash_decode(x[:, :, 0], x, x, torch.tensor([4]))):\n"
        "    try: call()\n"
        "    except RuntimeError as error: print('said:', error)\n"
    )
    assert run.returncode == 0, run.stderr
    assert (
        run.stdout.count(
            "said: this kernel is written in Triton, which this machine does not have"
        )
        == 2
    )


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="this machine compiles for its GPU"
)
def test_compiling_for_a_gpu_that_is_not_there():
    run = python(
        "import torch\n"
        "from mlbook import flash_attention as attention\n"
        "x = torch.randn(1, 1, 4, 16)\n"
        "attention.flash_attention(x, x, x)\n",
        TRITON_INTERPRET="0",
    )
    assert (
        "ValueError: the tensors are on cpu" in run.stderr
        and "TRITON_INTERPRET=1" in run.stderr
    )
