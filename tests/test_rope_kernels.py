"""The fused rotation against `rope.rotate` in float64; and compiled for GPUs that need not be here."""

import inspect
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import kept
import pytest
import torch

from mlbook.long_context import rope, rope_kernels
from mlbook.long_context.rope_kernels import fused_rope

triton = pytest.importorskip("triton", reason="no Triton on this platform")

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
EPS = torch.finfo(F32).eps
COMPILED = isinstance(rope_kernels.rope, triton.JITFunction)
DEVICE = "cuda" if COMPILED else "cpu"
LAYOUTS = pytest.mark.parametrize("interleaved", (False, True), ids=["half", "pairs"])


def inputs(batch, heads, kv_heads, length, dim, dtype=F32):
    """Queries, keys, and two tensors like them for their gradients."""
    make = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, h, length, dim, generator=make).to(DEVICE, dtype)
        for h in (heads, kv_heads) * 2
    ]


def tables(length, dim, batch=None):
    """Cosines and sines; of other positions in each batch entry where `batch` is given."""
    positions = 3.0 * torch.arange(length, device=DEVICE)
    if batch:
        positions = positions + 100 * torch.arange(batch, device=DEVICE)[:, None]
    return rope.rotation(positions, rope.inv_freq(dim))


def exact(x, cos, sin, interleaved):
    cos, sin = (t.double() if t.ndim == 2 else t.double()[:, None] for t in (cos, sin))
    return rope.rotate(x.double(), cos, sin, interleaved=interleaved)


def assert_close(ours, right, x):
    """Two products and their sum in float32, each rounded by at most EPS/2 of itself and all of them below |a| + |b|,
    then one rounding to the dtype (which in float32 is the sum's own)."""
    assert ours.shape == right.shape and ours.dtype == x.dtype
    largest = x.abs().max().item() if x.numel() else 0.0
    room = 2 * EPS * 2 * largest + torch.finfo(x.dtype).eps / 2 * right.abs()
    assert ((ours.double() - right).abs() <= room).all()


def check(q, k, dq, dk, cos, sin, interleaved):
    """Rotated and gradients."""
    q, k = (x.detach().requires_grad_() for x in (q, k))
    ours = fused_rope(q, k, cos, sin, interleaved)
    for x, out in zip((q, k), ours, strict=True):
        assert_close(out.detach(), exact(x.detach(), cos, sin, interleaved), x.detach())
    grads = torch.autograd.grad(ours, (q, k), (dq, dk))
    for dx, grad in zip((dq, dk), grads, strict=True):
        assert_close(grad, exact(dx, cos, -sin, interleaved), dx)
    return ours


@LAYOUTS
@pytest.mark.parametrize("dtype", (F32, F16, BF16), ids=str)
@pytest.mark.parametrize("dim", (2, 16, 20, 64, 96, 128))
def test_the_same_as_rotate(dim, dtype, interleaved):
    check(*inputs(2, 4, 4, 37, dim, dtype), *tables(37, dim), interleaved)


@LAYOUTS
@pytest.mark.parametrize("heads", ((8, 2), (6, 1), (2, 5)), ids=str)
@pytest.mark.parametrize("length", (1, 131))
def test_fewer_heads_of_keys(length, heads, interleaved):
    check(*inputs(2, *heads, length, 16), *tables(length, 16), interleaved)


@LAYOUTS
def test_small_blocks_and_shared_heads(interleaved, monkeypatch):
    """What a GPU is launched with: many programs, more than one to the heads of a block."""
    monkeypatch.setattr(rope_kernels, "launch_sizes", lambda *_: (4, 32, 3))
    check(*inputs(2, 7, 2, 13, 20), *tables(13, 20, batch=2), interleaved)


@LAYOUTS
def test_own_positions_in_each_batch_entry(interleaved):
    cos, sin = tables(9, 20, batch=3)
    q, k, *grads = inputs(3, 4, 2, 9, 20)
    batched, _ = check(q, k, *grads, cos, sin, interleaved)
    for i in range(3):
        one, _ = fused_rope(q[i, None], k[i, None], cos[i], sin[i], interleaved)
        assert torch.equal(one[0], batched[i])


@LAYOUTS
def test_tensors_that_are_not_contiguous(interleaved):
    def transposed(x):
        return x.transpose(1, 2).contiguous().transpose(1, 2)

    q, k, dq, dk = inputs(2, 4, 2, 9, 32)
    turned = tables(9, 32)
    views = {
        "heads inside": transposed,
        "last stride 2": lambda x: x.repeat_interleave(2, -1)[..., ::2],
        "with gaps": lambda x: torch.cat((x, x), -1)[..., :32],
        "one batch entry twice": lambda x: x[:1].expand_as(x),
        "windows": lambda x: x.flatten()[: x.numel()].as_strided(x.shape, (0, 7, 1, 1)),
    }
    for name, view in views.items():
        views_of = [view(x) for x in (q, k, dq, dk)]
        ours = check(*views_of, *turned, interleaved)
        plain = fused_rope(
            *(x.contiguous() for x in views_of[:2]), *turned, interleaved
        )
        assert all(map(torch.equal, ours, plain)), name
    assert fused_rope(transposed(q), k, *turned)[0].stride() == transposed(q).stride()
    columns = [t.T.contiguous().T for t in turned]
    check(q, k, dq, dk, *columns, interleaved)


@pytest.mark.parametrize("axis", (0, 1, 2))
def test_offsets_beyond_int32(axis):
    """Virtual memory, hardly any of which is touched."""
    shape, strides = [2, 2, 2, 16], [64, 32, 16, 1]
    shape[axis], strides[axis] = 3, 1 << 30
    x = torch.empty((1 << 31) + 256, dtype=F16, device=DEVICE).as_strided(
        shape, strides
    )
    make = torch.Generator().manual_seed(0)
    x.copy_(torch.randn(shape, generator=make))
    turned = tables(shape[2], 16)
    for ours, own in zip(
        fused_rope(x, x, *turned),
        fused_rope(x.contiguous(), x.contiguous(), *turned),
        strict=True,
    ):
        assert torch.equal(ours, own)


def test_gradients_of_one_alone_and_of_gradients():
    q, k, dq, dk = inputs(1, 2, 2, 5, 16)
    cos, sin = tables(5, 16)
    q.requires_grad_()
    turned, other = fused_rope(q, k, cos, sin)
    (grad,) = torch.autograd.grad(turned, q, dq, retain_graph=True)
    assert_close(grad, exact(dq, cos, -sin, False), dq)
    assert torch.autograd.grad(other, q, dk, retain_graph=True)[0].abs().max() == 0
    (sums,) = torch.autograd.grad(fused_rope(q, k, cos, sin)[0].sum(), q)
    assert_close(sums, exact(torch.ones_like(q), cos, -sin, False), torch.ones_like(q))
    # ½|Rq|² has the gradient q, whose product with v has the gradient v.
    (first,) = torch.autograd.grad(turned.square().sum() / 2, q, create_graph=True)
    (second,) = torch.autograd.grad(first, q, dq)
    assert (first - q).abs().max() < 8 * EPS * q.abs().max()
    assert (second - dq).abs().max() < 8 * EPS * dq.abs().max()


@pytest.mark.parametrize("shape", ((0, 2, 3), (2, 0, 3), (2, 2, 0)), ids=str)
def test_empty_tensors(shape):
    q, k, dq, dk = inputs(shape[0], shape[1], shape[1], shape[2], 16)
    check(q[:, :1], k, dq[:, :1], dk, *tables(shape[2], 16), False)


def test_what_does_not_fit_is_named():
    q, k, *_ = inputs(2, 4, 2, 5, 16)
    cos, sin = tables(5, 16)
    for error, words, arguments in (
        (ValueError, r"q must be .* got shape \(4, 5, 16\)", (q[0], k, cos, sin)),
        (ValueError, r"agree.*|\(2, 2, 4, 16\)", (q, k[:, :, :4], cos, sin)),
        (ValueError, r"agree.*", (q, k[:1], cos, sin)),
        (ValueError, "even and positive, got 15", (q[..., 1:], k[..., 1:], cos, sin)),
        (ValueError, "even and positive, got 0", (q[..., :0], k[..., :0], cos, sin)),
        (TypeError, "got torch.float64", (q.double(), k.double(), cos, sin)),
        (TypeError, "got torch.float32 and torch.float16", (q, k.half(), cos, sin)),
        (ValueError, r"\(5, 8\) or \(2, 5, 8\), got cos of", (q, k, cos[:4], sin)),
        (ValueError, r"got sin of shape \(5, 7\)", (q, k, cos, sin[:, :7])),
        (ValueError, r"got sin of shape \(2, 5, 8\)", (q, k, cos, sin.expand(2, 5, 8))),
        (TypeError, "sin must be float32, got torch.float16", (q, k, cos, sin.half())),
        (ValueError, "k is on meta, q on", (q, k.to("meta"), cos, sin)),
        (ValueError, "tensors are on meta", [x.to("meta") for x in (q, k, cos, sin)]),
    ):
        with pytest.raises(error, match=words):
            fused_rope(*arguments)


def test_without_triton():
    """The module is imported, and says what is missing when it is used."""
    program = """if True:
        import sys
        sys.modules["triton"] = None
        import torch
        from mlbook.long_context import rope
        from mlbook.long_context.rope_kernels import fused_rope
        x = torch.ones(1, 1, 3, 4)
        fused_rope(x, x, *rope.rotation(torch.arange(3), rope.inv_freq(4)))
    """
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert "RuntimeError: Triton is not installed" in run.stderr


# -- compiled ahead of time ----------------------------------------------------------

JOBS = [
    {"dim": dim, "dtype": dtype, "interleaved": interleaved, "back": back}
    for dim, dtype, interleaved in itertools.product(
        (20, 96, 128, 256), ("fp16", "bf16", "fp32"), (False, True)
    )
    for back in ((False, True) if dim == 128 else (False,))
]
LARGE = [JOBS[-1] | {"strides": "i64", "dim": 128}]


def compile_rope(capability, dim, dtype, interleaved, back, strides="i32"):
    """Registers of a thread, bytes of its stack, and the kinds of its instructions that read or write memory."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mlbook.flash_attention.compiled import resources

    kernel, cuda = rope_kernels.rope, torch.device("cuda")
    rows, width, _ = rope_kernels.launch_sizes(dim, 32, cuda)
    values = {"DIM": dim, "ROWS": rows, "WIDTH": width}
    values |= {"INTERLEAVED": interleaved, "BACK": back}
    signature, attributes, constants = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        aligned = [["tt.divisibility", 16]]
        if name in values:
            signature[name], constants[(i,)] = "constexpr", values[name]
        elif name.endswith("_strides"):
            signature[name] = (strides,) * 3
            if dim % 16 == 0:
                attributes |= {(i, j): aligned for j in range(3)}
        elif name in ("q", "k", "q_out", "k_out", "cos", "sin"):
            signature[name] = "*fp32" if name in ("cos", "sin") else f"*{dtype}"
            attributes[(i,)] = aligned
        else:
            signature[name] = "i32"
    made = triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", capability, 32),
        options=rope_kernels.OPTIONS,
    )
    memory = re.findall(r"\b(?:ld|st)\.global[\w.:]*", made.asm["ptx"])
    return *resources(made), sorted(set(memory))


GENERATIONS = [75, 80, 90, 100]


@pytest.mark.parametrize("capability", GENERATIONS)
def test_nothing_spilled_and_sixteen_bytes_at_a_time(capability, tmp_path, request):
    def compiled_anew(jobs):
        run = subprocess.run(
            [sys.executable, __file__],
            input=json.dumps(jobs),
            env=os.environ
            | {
                "TRITON_INTERPRET": "0",
                "TRITON_CACHE_DIR": str(tmp_path),
                "PYTHONPATH": str(Path(__file__).parents[1]),
            },
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr[-3000:]
        return json.loads(run.stdout.splitlines()[-1])

    jobs = [job | {"capability": capability} for job in JOBS + LARGE]
    made_of = [
        *kept.sources(
            "mlbook.flash_attention.compiled", "mlbook.long_context.rope_kernels"
        ),
        inspect.getsource(compile_rope),
    ]
    reports = kept.reports(
        "rope", capability, GENERATIONS, made_of, jobs, compiled_anew, request.config
    )
    for job, (registers, stack, memory) in zip(jobs, reports, strict=True):
        assert stack == 0, job
        if (
            job["dim"] > 20
        ):  # halves of rows of 20 do not begin at multiples of 16 bytes
            assert registers <= 80, job  # 24 warps of an SM's 64 Ki registers
            assert {re.search(r"\.v\d\.b\d+$", name)[0] for name in memory} == {
                ".v4.b32"
            }, job


if __name__ == "__main__":  # what the other process does
    print(json.dumps([compile_rope(**job) for job in json.load(sys.stdin)]))
