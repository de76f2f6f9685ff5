"""Compiling: kernels as source, the fused product, tapes, the decoder."""

import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from mlbook import torch_compile as compiling
from mlbook.common.launch import HAS_TRITON
from mlbook.torch_compile import fusion, inductor

TRITON = pytest.mark.skipif(
    not HAS_TRITON, reason="Triton has no build for this platform"
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where Triton's kernels run


def like(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def layer(x, w, b):
    return F.gelu(torch.relu(x) @ w + b)


# torch.compile


def test_a_machine_without_a_compiler_says_so_once(monkeypatch, capsys):
    def broken(function):
        raise RuntimeError("No working C++ compiler found in /nowhere\nlong trace")

    compiling.can_compile.cache_clear()
    monkeypatch.setattr(torch, "compile", broken)
    assert not compiling.can_compile() and not compiling.can_compile()
    compiling.can_compile.cache_clear()
    said = capsys.readouterr().out
    assert said.count("No working C++ compiler found in /nowhere)") == 1
    assert "g++ on Linux" in said and "trace" not in said


def test_kernels_are_cut_out_of_a_module():
    cpp = "k = async_compile.cpp_pybinding(['float*'], r'''\n#include <a>\nextern \"C\" void k() {}\n''')\n"
    triton = "t = async_compile.triton('t', '''\nimport triton\n@triton.jit\ndef t(x): pass\n''', device_str='cuda')\n"
    assert compiling.kernels(cpp) == ['extern "C" void k() {}']
    assert compiling.kernels(triton) == ["@triton.jit\ndef t(x): pass"]
    assert compiling.kernels("nothing = 1") == []


def test_generated_shows_one_fused_loop():
    if not compiling.can_compile():
        pytest.skip("no C++ compiler")
    (kernel,) = compiling.generated(
        torch.compile(lambda x: torch.sin(x) + torch.cos(x)), torch.rand(64)
    )
    assert kernel.startswith('extern "C"') and "sin" in kernel and "cos" in kernel
    with pytest.raises(RuntimeError, match="wrote no kernel"):
        compiling.generated(torch.compile(lambda x: x), torch.rand(64))


def test_search_tells_who_was_timed():
    if not compiling.can_compile():
        pytest.skip("no C++ compiler")
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(64, 64)).eval()
    found = compiling.search(module, torch.rand(32, 64))
    assert len(found) >= 1 and all(0 < ms < 1e3 for ms in found.values())
    assert list(found.values()) == sorted(found.values())
    with pytest.raises(RuntimeError, match="searched for no kernel of ReLU"):
        compiling.search(torch.nn.ReLU(), torch.rand(8))


# Triton without a GPU


@TRITON
def test_triton_source_fuses_elementwise_operations():
    program = compiling.triton_source(
        lambda x: torch.sin(x) + torch.cos(x), like(64, 32)
    )
    assert program.launches == len(program.kernels) == 1
    assert program.bytes == 2 * 4 * 64 * 32
    assert program.kernels[0].startswith("@triton.jit")


@TRITON
def test_triton_source_fuses_around_a_product():
    arguments = like(256, 128), like(128, 512), like(512)
    fused = compiling.triton_source(layer, *arguments)
    apart = compiling.triton_source(layer, *arguments, fuse=False)
    assert (fused.launches, apart.launches) == (1, 3)
    assert fused.bytes == 4 * (256 * 128 + 128 * 512 + 512 + 256 * 512)
    assert apart.bytes == 4 * (3 * 256 * 128 + 128 * 512 + 3 * 256 * 512 + 512)
    loop, after = fused.kernels[0].split("for k_idx")[1].split("# inductor generates")
    assert "maximum" in loop and "erf" in after and "erf" not in loop


@TRITON
def test_triton_source_is_the_same_whatever_gpu_was_seen_before(monkeypatch):
    sixteen = like(64, 64), like(64, 64), like(64)
    with monkeypatch.context() as small:
        small.setattr(inductor.A100, "multi_processor_count", 40)  # a T4's
        with pytest.raises(RuntimeError, match="does not write Triton here"):
            compiling.triton_source(layer, *sixteen)
    assert compiling.triton_source(layer, *sixteen).launches == 1


@TRITON
def test_triton_source_leaves_no_trace():
    compiling.triton_source(layer, like(64, 64), like(64, 64), like(64))
    assert torch.cuda.is_available() == (DEVICE == "cuda")
    if DEVICE == "cpu":
        assert not torch.utils._triton.has_triton()
    if compiling.can_compile():  # Inductor still compiles for the CPU
        torch._dynamo.reset()
        x = torch.rand(32)
        assert torch.allclose(torch.compile(lambda x: x.cos() * 2)(x), x.cos() * 2)


@TRITON
def test_triton_source_compiles_nothing_when_compilers_are_waiting(monkeypatch):
    from torch._inductor.async_compile import AsyncCompile

    ready = SimpleNamespace(done=lambda: True)
    monkeypatch.setattr(AsyncCompile, "_ready_future", ready)
    with torch._inductor.config.patch(compile_threads=2):
        assert compiling.triton_source(torch.sin, like(32)).launches == 1


@TRITON
def test_triton_source_names_what_failed():
    with pytest.raises(RuntimeError, match=r"torch .* does not write Triton here"):
        compiling.triton_source(lambda x: x @ x, like(3, 4))


def test_without_triton_there_is_a_sentence(monkeypatch):
    for module in (inductor, fusion):
        monkeypatch.setattr(module, "HAS_TRITON", False)
    with pytest.raises(RuntimeError, match="where Triton is installed"):
        compiling.triton_source(torch.sin, like(4))
    with pytest.raises(RuntimeError, match="no build for macOS and Windows"):
        compiling.matmul(torch.rand(2, 2), torch.rand(2, 2), torch.rand(2))


# The product with a prologue and an epilogue


@TRITON
@pytest.mark.parametrize("shape", [(32, 32, 32), (17, 50, 70), (1, 3, 1)])
def test_matmul_is_the_layer(shape):
    torch.manual_seed(0)
    m, k, n = shape
    x, w, b = (
        torch.randn(s, device=DEVICE, dtype=torch.float32) for s in ((m, k), (k, n), n)
    )
    z = x.double().relu() @ w.double() + b
    y = compiling.matmul(x, w, b, block=16)
    assert torch.allclose(y.double(), z * torch.sigmoid(1.702 * z), atol=1e-4)


@TRITON
@pytest.mark.skipif(DEVICE == "cuda", reason="only the interpreter runs Python")
def test_a_prologue_is_applied_once_for_each_column_of_blocks():
    calls = []

    def counting(x):
        calls.append(1)
        return x

    x, w, b = torch.randn(32, 48), torch.randn(48, 80), torch.zeros(80)
    compiling.matmul(x, w, b, prologue=counting, block=16)
    assert len(calls) == (32 // 16) * (48 // 16) * (80 // 16)


AHEAD_OF_TIME = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mlbook import torch_compile as compiling

names = compiling.matmul_kernel.arg_names
fixed = dict(M=100, N=200, K=80, PROLOGUE=compiling.relu, EPILOGUE=compiling.bias_gelu, BLOCK=32)
source = ASTSource(
    fn=compiling.matmul_kernel,
    signature={n: "constexpr" if n in fixed else "*fp32" for n in names},
    constexprs={(names.index(n),): value for n, value in fixed.items()},
)
for capability in (75, 80, 90, 100):
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    print(capability, binary.metadata.shared)
"""


@TRITON
def test_the_kernel_compiles_for_every_gpu_within_its_shared_memory():
    done = subprocess.run(
        [sys.executable, "-c", AHEAD_OF_TIME],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    shared = dict(map(int, line.split()) for line in done.stdout.splitlines())
    assert shared.keys() == {75, 80, 90, 100} and max(shared.values()) <= 48 * 1024


@TRITON
@pytest.mark.parametrize(
    "x, w, b, message",
    [
        (torch.rand(2, 3), torch.rand(4, 5), torch.rand(5), r"\(2, 3\), \(4, 5\)"),
        (torch.rand(2, 3), torch.rand(3, 5), torch.rand(4), r"\(4,\) do not fit"),
        (torch.rand(2, 3).double(), torch.rand(3, 5), torch.rand(5), "float64"),
        (torch.rand(3, 2).T, torch.rand(3, 5), torch.rand(5), r"strides \(1, 2\)"),
    ],
)
def test_matmul_refuses_what_does_not_fit(x, w, b, message):
    with pytest.raises(ValueError, match=message):
        compiling.matmul(x, w, b)


# Tapes


def test_a_replay_reads_and_writes_the_recorded_memory():
    x = torch.tensor([1.0, 2.0])
    graph = compiling.capture(lambda x: (x + 1).mul_(3)[:1], x)
    assert graph.output.tolist() == [6.0]
    kept = graph.output
    x.copy_(torch.tensor([9.0, 0.0]))
    graph.replay()
    assert kept.tolist() == [30.0]


def test_a_tape_replays_updates_in_place():
    counter = torch.zeros(1)
    graph = compiling.capture(lambda c: c.add_(1), counter)
    for _ in range(3):
        graph.replay()
    assert counter.item() == 4 and graph.output is counter


def test_a_tape_replays_operations_with_several_results():
    x = torch.tensor([3.0, 1.0, 2.0])
    graph = compiling.capture(torch.sort, x)
    x.copy_(torch.tensor([1.0, 3.0, 2.0]))
    graph.replay()
    assert graph.output[0].tolist() == [1.0, 2.0, 3.0]
    assert graph.output[1].tolist() == [0, 2, 1]


def test_random_numbers_advance():
    x = torch.zeros(4)
    graph = compiling.capture(torch.rand_like, x)
    before = graph.output.clone()
    graph.replay()
    assert not torch.equal(graph.output, before)


@pytest.mark.parametrize(
    "function",
    [lambda x: x / x.max().item(), lambda x: x[x > 0], lambda x: x if x.sum() else -x],
)
def test_a_tape_refuses_what_python_would_wait_for(function):
    with pytest.raises(RuntimeError, match="cannot be recorded"):
        compiling.capture(function, torch.ones(3))


@pytest.mark.skipif(DEVICE == "cpu", reason="no GPU")
def test_capture_makes_a_cuda_graph():
    x = torch.ones(8, device="cuda")
    graph = compiling.capture(lambda x: x.sin() + 1, x)
    x.fill_(2.0)
    graph.replay()
    assert torch.allclose(graph.output, torch.full_like(x, math.sin(2.0) + 1))


# The decoder


@pytest.fixture
def model():
    torch.manual_seed(0)
    return compiling.Decoder(vocab=11, width=16, heads=2, layers=2, length=9)


@torch.no_grad()
def full_forward(model, tokens):
    """The same transformer on a whole sequence at once, with a causal mask: its logits at every place."""
    n, width = len(tokens), model.embed.embedding_dim
    x = model.embed(tokens) + model.place(torch.arange(n))
    for qkv, mix, up, down in zip(
        model.qkv, model.mix, model.up, model.down, strict=True
    ):
        q, k, v = (
            qkv(F.layer_norm(x, (width,))).view(n, 3, model.heads, -1).permute(1, 2, 0, 3)
        )  # fmt: skip
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + mix(a.transpose(0, 1).reshape(n, width))
        x = x + down(F.gelu(up(F.layer_norm(x, (width,)))))
    return model.head(F.layer_norm(x, (width,)))


def test_the_cache_gives_what_a_whole_pass_gives(model):
    tokens, logits = compiling.decode(model, model, 9)
    read = torch.cat([torch.zeros(1, dtype=torch.long), tokens[:-1]])
    assert torch.allclose(logits, full_forward(model, read), atol=1e-5)
    assert torch.equal(tokens, logits.argmax(-1))


def test_decoding_starts_anew_each_time(model):
    first, second = (compiling.decode(model, model, 6)[1] for _ in range(2))
    assert torch.equal(first, second)


def test_decoding_stops_at_the_end_of_the_cache(model):
    with pytest.raises(ValueError, match="room for 9 tokens, asked for 10"):
        compiling.decode(model, model, 10)


def test_a_captured_decoder_gives_the_same_tokens(model):
    token, position = torch.zeros(2, 1, dtype=torch.long)
    graph = compiling.capture(model, token, position)

    def step(new_token, new_position):
        token.copy_(new_token)
        position.copy_(new_position)
        graph.replay()
        return graph.output

    assert torch.equal(
        compiling.decode(step, model, 9)[0], compiling.decode(model, model, 9)[0]
    )
