"""The fused rotation against the plain one, in Triton's interpreter or on a GPU."""

import os
import subprocess
import sys

import pytest
import torch

from mlbook import rope

pytest.importorskip("triton", reason="Triton is not installed")

from mlbook import rope_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def inputs(dtype=torch.float32, length=33, dim=32, heads=(4, 2), seed=0):
    """Queries and keys as a model has them: heads and length transposed in memory."""
    torch.manual_seed(seed)
    q, k = (
        torch.randn(2, length, h, dim).to(DEVICE, dtype).transpose(1, 2) for h in heads
    )
    cos, sin = rope.rotation(torch.arange(length) + 3, rope.inv_freq(dim))
    return q.requires_grad_(), k.requires_grad_(), cos.to(DEVICE), sin.to(DEVICE)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("dim", [2, 16, 20, 96])
def test_equals_the_plain_rotation_and_its_gradient(dim, interleaved):
    q, k, cos, sin = inputs(dim=dim)
    fused = rope_kernels.fused_rope(q, k, cos, sin, interleaved)
    plain = [rope.rotate(x, cos, sin, interleaved=interleaved) for x in (q, k)]
    weights = [torch.randn_like(x) for x in plain]
    grads = [torch.autograd.grad(out, (q, k), weights) for out in (fused, plain)]
    # two products and a sum of numbers up to 5
    for a, b in zip((*fused, *grads[0]), (*plain, *grads[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5 * 4 * 1.2e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    q, k, cos, sin = inputs(dtype)
    q_out, k_out = rope_kernels.fused_rope(q, k, cos, sin)
    assert q_out.dtype == k_out.dtype == dtype
    for x, out in ((q, q_out), (k, k_out)):
        exact = rope.rotate(x.float(), cos, sin)
        assert (
            (out.float() - exact).abs() <= exact.abs() * torch.finfo(dtype).eps + 1e-6
        ).all()


def test_each_batch_entry_has_its_own_positions():
    q, k, cos, sin = inputs()
    cos, sin = (torch.stack((t, t.flip(0))) for t in (cos, sin))
    fused = rope_kernels.fused_rope(q, k, cos, sin)
    plain = [rope.rotate(x, cos[:, None], sin[:, None]) for x in (q, k)]
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5 * 4 * 1.2e-7)


def test_one_gradient_alone_and_empty_inputs():
    q, k, cos, sin = inputs()
    q_out, _ = rope_kernels.fused_rope(q, k.detach(), cos, sin)
    (alone,) = torch.autograd.grad(q_out.sum(), q)
    torch.testing.assert_close(
        alone, rope.rotate(torch.ones_like(q), cos, -sin), rtol=0, atol=1e-5
    )
    out, _ = rope_kernels.fused_rope(q[:, :, :0], k[:, :, :0], cos[:0], sin[:0])
    assert out.shape == (2, 4, 0, 32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda q, k, c, s: (q[0], k, c, s), ValueError, "got shape"),
        (lambda q, k, c, s: (q, k.half(), c, s), TypeError, "float16"),
        (lambda q, k, c, s: (q.double(), k.double(), c, s), TypeError, "float64"),
        (lambda q, k, c, s: (q, k[:, :, :5], c, s), ValueError, "must agree"),
        (lambda q, k, c, s: (q[..., :31], k[..., :31], c, s), ValueError, "got 31"),
        (lambda q, k, c, s: (q, k, c[:7], s[:7]), ValueError, r"shape \(7, 16\)"),
        (lambda q, k, c, s: (q, k, c.double(), s), TypeError, "cos must be float32"),
    ],
)
def test_errors_name_the_value(change, error, message):
    with pytest.raises(error, match=message):
        rope_kernels.fused_rope(*change(*inputs()))


COMPILE = """
import itertools, re, subprocess, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mlbook import rope_kernels

kernel = rope_kernels.rope
for dim, interleaved, short in itertools.product((64, 128, 96), (False, True), ("fp16", "fp32")):
    width = 1 << (dim - 1).bit_length()
    constants = dict(BACK=False, DIM=dim, ROWS=rope_kernels.ELEMENTS // width, WIDTH=width, INTERLEAVED=interleaved)
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_strides"):
            signature[name] = ("i32",) * 3
            attributes |= {(i, j): [["tt.divisibility", 16]] for j in range(3)}
        elif name in ("q", "k", "q_out", "k_out", "cos", "sin"):
            signature[name] = "*fp32" if name in ("cos", "sin") else f"*{short}"
            attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
    source = ASTSource(fn=kernel, signature=signature, attrs=attributes,
                       constexprs={(kernel.arg_names.index(n),): v for n, v in constants.items()})
    made = triton.compile(source, target=GPUTarget("cuda", CAPABILITY, 32), options={"num_warps": 4})
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(made.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        said = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True).stdout
    registers, stack = map(int, re.search(r"REG:(\\d+) STACK:(\\d+)", said).groups())
    wide = re.findall(r"ld\\.global\\S*\\.v[248]\\.", made.asm["ptx"])
    print(dim, interleaved, short, registers, stack, len(wide))
"""


@pytest.mark.parametrize("capability", [75, 80, 90, 100])
def test_compiles_for_gpus_that_are_not_here(capability, tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", COMPILE.replace("CAPABILITY", str(capability))],
        env=os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    rows = [line.split() for line in run.stdout.splitlines() if "fp" in line]
    assert len(rows) == 12
    for row in rows:
        *_, registers, stack, wide = row
        assert int(stack) == 0, row  # nothing spilled
        assert int(registers) <= 128, row  # at least four programs of 128 threads
        assert int(wide) > 0, row  # several numbers in one load
