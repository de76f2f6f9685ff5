"""Compiling and capturing: timing, what Inductor writes, graphs recorded and replayed,
a matmul with both fusions.

Runs without a GPU, without Triton and without a C++ compiler: what then cannot be done
says so in one sentence.
"""

import contextlib
import functools
import io
import math
import re
import statistics
import time
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mlbook.source import recorded_on

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton for this platform: kernels can be read and not run
    triton, tl = None, SimpleNamespace(constexpr=None)

NO_TRITON = "Triton is not installed (it has no build for macOS and Windows), so this kernel can be read here but not run"


# Timing


class Timing(NamedTuple):
    """Seconds of one call: the median of the samples, and their 10 % and 90 %
    quantiles."""

    median: float
    low: float
    high: float


def timed(
    function: Callable, *args, samples: int = 15, sample_seconds: float = 4e-3
) -> Timing:
    """Seconds of `function(*args)` once it is warm; as `compare`, of one call alone."""
    call = functools.partial(function, *args)
    return compare(call, samples=samples, sample_seconds=sample_seconds)[0]


def compare(
    *calls: Callable, samples: int = 15, sample_seconds: float = 4e-3
) -> list[Timing]:
    """Seconds of each call once it is warm, measured in turn: every call has its first
    sample before any has its second, and a slow second of the machine falls on all.

    A sample is as many calls as fill `sample_seconds`, at least one, and then one
    synchronisation: the GPU works behind the CPU's back, and a clock stopped without
    waiting for it has timed the launches alone.

    Args:
        calls: functions without arguments, each called five times before the clock starts
            (a graph of `torch.compile` is compiled in the first call and captured in the
            second).
        samples: how many samples each of the medians is of.
        sample_seconds: the length of a sample.
    Raises:
        ValueError: `samples` is below 3.
    """
    if samples < 3:
        raise ValueError(
            f"a median with its spread needs at least 3 samples, got {samples}"
        )
    repeats = []
    for call in calls:
        once = min(first_calls(call)[3:])
        repeats.append(max(1, min(1000, round(sample_seconds / once))))
    spans = [[] for _ in calls]
    for _ in range(samples):
        for call, repeat, seconds in zip(calls, repeats, spans, strict=True):
            start = time.perf_counter()
            for _ in range(repeat):
                call()
            synchronise()
            seconds.append((time.perf_counter() - start) / repeat)
    deciles = [statistics.quantiles(s, n=10, method="inclusive") for s in spans]
    return [
        Timing(statistics.median(s), d[0], d[-1])
        for s, d in zip(spans, deciles, strict=True)
    ]


def first_calls(function: Callable, *args, calls: int = 5) -> list[float]:
    """Seconds of each of the first calls, each with its own synchronisation."""
    spans = []
    for _ in range(calls):
        synchronise()
        start = time.perf_counter()
        function(*args)
        synchronise()
        spans.append(time.perf_counter() - start)
    return spans


def synchronise() -> None:
    """Wait until the GPU, if there is one, has done all it was sent."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# torch.compile


def protocol(
    function: Callable, x: Tensor, mode: str, warm_ups: int, calls: int = 100
) -> float:
    """Seconds of `calls` calls on `x` after so many to warm up, compiled anew: how the
    post times a mode of `torch.compile`, with `warm_ups` = 1."""
    torch._dynamo.reset()
    run = torch.compile(function, mode=mode)
    for _ in range(warm_ups):
        run(x)
    synchronise()
    start = time.perf_counter()
    for _ in range(calls):
        run(x)
    synchronise()
    return time.perf_counter() - start


@functools.cache
def can_compile(device: str = "cpu") -> bool:
    """Whether `torch.compile` works here, found by trying it once; if not, one sentence
    says why."""
    try:
        torch.compile(lambda x: (x * 2 + 1).relu())(torch.ones(64, device=device))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        print(
            f"torch.compile does not work here ({reason}). On a CPU it needs a C++ compiler: "
            "g++ on Linux, Xcode's command line tools on a Mac, Visual Studio's build tools on Windows."
        )
        return False
    return True


def generated(compiled: Callable, *args) -> list[str]:
    """Compile anew for these arguments, run, and return the kernels that were written:
    C++, or Triton on a GPU.

    Everything compiled before in this process is forgotten, and compiled again when it
    is called again.

    Args:
        compiled: what `torch.compile` returned.
    Raises:
        RuntimeError: no kernel was written, since there was nothing to compute.
    """
    import torch._functorch.config
    from torch._inductor.utils import run_and_get_code

    with (
        torch._inductor.config.patch(fx_graph_cache=False),
        torch._functorch.config.patch(enable_autograd_cache=False),
    ):  # a graph that is found in a cache is not written again
        _, sources = run_and_get_code(compiled, *args)
    found = kernels("\n".join(sources))
    if not found:
        raise RuntimeError(f"torch.compile wrote no kernel for {compiled}")
    return found


def search(module: nn.Module, *args: Tensor) -> dict[str, float]:
    """What Inductor tried for the matrix products of a module, and the milliseconds each
    candidate took: the search of `max-autotune`, over its own kernels and the library's.

    Weights are frozen, which on a CPU is the condition for its own kernels to compete.

    Args:
        module: compiled anew for these arguments.
    Raises:
        RuntimeError: nothing was searched: no product, or no compiler.
    """
    import torch._inductor.config as config
    from torch._inductor import select_algorithm

    found = {}

    def keep(timings, *_):
        found.update({choice.name: float(t) for choice, t in timings.items()})

    settings = {
        "freezing": True,
        "fx_graph_cache": False,
        "max_autotune_gemm": True,
        "max_autotune_gemm_backends": "ATEN,CPP,TRITON",
    }
    select_algorithm.add_feedback_saver(keep)
    try:
        with (
            torch.no_grad(),
            config.patch(settings),
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),  # a table of the same, and more
        ):
            warnings.simplefilter("ignore")
            torch._dynamo.reset()
            torch.compile(module)(*args)
    finally:
        select_algorithm.clear_feedback_savers()
        torch._dynamo.reset()
    if not found:
        raise RuntimeError(
            f"Inductor searched for no kernel of {type(module).__name__}"
        )
    return dict(sorted(found.items(), key=lambda item: item[1]))


def kernels(source: str) -> list[str]:
    """The kernels in a module that Inductor wrote, without its imports and
    annotations."""
    bodies = re.findall(r"async_compile\.\w+\([^'].*?'''(.*?)'''", source, re.DOTALL)
    bodies += re.findall(r"async_compile\.\w+\('\w+', r?'''(.*?)'''", source, re.DOTALL)
    starts = ("@triton.jit", 'extern "C"')
    return [
        b[min((i for s in starts if (i := b.find(s)) >= 0), default=0) :].strip()
        for b in bodies
    ]


class Program(NamedTuple):
    """What Inductor makes of a function for a GPU."""

    kernels: list[str]  # their Triton source, in the order of their launch
    launches: int  # of these and of library kernels
    bytes: int  # read and written by all of them, each operand counted once a kernel


A100 = SimpleNamespace(
    name="A100",
    major=8,
    minor=0,
    multi_processor_count=108,
    regs_per_multiprocessor=65_536,
    max_threads_per_multi_processor=2_048,
    max_threads_per_block=1_024,
    shared_memory_per_block=49_152,
    shared_memory_per_block_optin=166_912,
    warp_size=32,
    L2_cache_size=40 * 2**20,
    total_memory=40 * 2**30,
    gcnArchName="",
)


def triton_source(function: Callable, *inputs: Tensor, fuse: bool = True) -> Program:
    """The Triton program that Inductor writes for a GPU. No GPU is needed: nothing is
    compiled or run.

    The function is traced with tensors that have a shape and no data, and the graph is
    lowered for an A100, so that the source is the same everywhere. What `torch.compile`
    does before that (AOTAutograd, searching the graph for patterns) is left out. Matrix
    products become Triton templates with the first block sizes on Inductor's list,
    where `max-autotune` would time the whole list and the library's product.

    Args:
        function: of tensors, to a tensor.
        inputs: looked at for shape and dtype; `device="meta"` costs no memory.
        fuse: False keeps what comes before and after a matrix product out of its
            kernel.
    Raises:
        RuntimeError: Triton is not installed, or this version of torch is put together
            differently.
    """
    if triton is None:
        raise RuntimeError("Inductor writes Triton only where Triton is installed")
    from torch._inductor import config
    from torch._inductor.debug import DebugContext
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    settings = {
        "max_autotune_gemm": True,
        "max_autotune_gemm_backends": "TRITON",
        "test_configs.max_mm_configs": 1,
        "deterministic": True,  # of several choices the first, without timing them
        "compile_threads": 1,  # others would begin to compile what is only to be read
        "prologue_fusion": fuse,
        "epilogue_fusion": fuse,
    }
    try:
        with FakeTensorMode() as fake, torch.no_grad():
            given = [torch.empty(x.shape, dtype=x.dtype, device="cuda") for x in inputs]
            graph_module = make_fx(
                lambda *xs: (function(*xs),),
                decomposition_table=select_decomp_table(),
            )(*given)
            with _pretend_gpu(), config.patch(settings):
                graph = GraphLowering(graph_module)
                with (
                    V.set_fake_mode(fake),
                    V.set_graph_handler(graph),
                    V.set_debug_handler(DebugContext()),
                ):
                    graph.run(*given)
                    code = graph.codegen()[0]
                    traffic = graph.count_bytes()[0]
    except Exception as error:
        raise RuntimeError(
            f"torch {torch.__version__} does not write Triton here: {type(error).__name__}: {error}"
        ) from error
    code = getattr(code, "value", code)
    launches = len(re.findall(r"\.run\(|extern_kernels\.\w+\(", code))
    return Program(kernels(code), launches, traffic)


@functools.cache
def can_write_triton() -> bool:
    """Whether `triton_source` works here, found by trying it once; if not, one sentence
    says why."""
    try:
        triton_source(lambda x: x + 1, torch.empty(8, device="meta"))
    except RuntimeError as error:
        print(NO_TRITON if triton is None else str(error).splitlines()[0][:200])
        return False
    return True


@contextlib.contextmanager
def _pretend_gpu():
    """Within, Inductor sees an A100, whatever is there; what it remembers of one GPU is
    forgotten before it sees the other."""
    import torch._inductor.utils
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor.runtime.hints import DeviceProperties
    from torch.utils import _triton

    def answer(value):
        return staticmethod(lambda *_, **__: value)

    def forget():
        DeviceProperties.create.cache_clear()
        torch._inductor.utils.is_big_gpu.cache_clear()
        for remembered in vars(_triton).values():
            if hasattr(remembered, "cache_clear"):
                remembered.cache_clear()

    answers = {
        torch.cuda: {
            "is_available": True,
            "device_count": 1,
            "current_device": 0,
            "get_device_properties": A100,
            "get_device_capability": (8, 0),
        },
        CudaInterface: {"get_device_properties": A100, "get_compute_capability": 80},
        CudaInterface.Worker: {"get_device_properties": A100},
        _triton: {"triton_hash_with_backend": ""},
    }
    forget()
    try:
        with contextlib.ExitStack() as stack:
            for where, values in answers.items():
                for name, value in values.items():
                    stack.enter_context(mock.patch.object(where, name, answer(value)))
            yield
    finally:
        forget()


# Prologue and epilogue


def _jit(function):
    return triton.jit(function) if triton else function


# fmt: off
@_jit
def matmul_kernel(x, w, b, y, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
                  PROLOGUE: tl.constexpr, EPILOGUE: tl.constexpr, BLOCK: tl.constexpr):
    """y = EPILOGUE(PROLOGUE(x) @ w, b): one program for each block of y."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, K, BLOCK):
        k = start + tl.arange(0, BLOCK)
        x_block = tl.load(x + rows[:, None] * K + k, (rows[:, None] < M) & (k < K), 0.0)
        w_block = tl.load(w + k[:, None] * N + columns, (k[:, None] < K) & (columns < N), 0.0)
        x_block = PROLOGUE(x_block)  # on its way from memory to the product
        acc += tl.dot(x_block, w_block, input_precision="ieee")
    bias = tl.load(b + columns, columns < N, 0.0)
    out = EPILOGUE(acc, bias)  # the sum is still in registers
    tl.store(y + rows[:, None] * N + columns, out, (rows[:, None] < M) & (columns < N))
# fmt: on


@_jit
def relu(x):
    return tl.maximum(x, 0.0)


@_jit
def bias_gelu(acc, bias):
    """GELU by its sigmoid form, x σ(1.702 x): Hendrycks and Gimpel 2016."""
    z = acc + bias
    return z / (1.0 + tl.exp(-1.702 * z))


def matmul(
    x: Tensor, w: Tensor, b: Tensor, prologue=relu, epilogue=bias_gelu, block=32
) -> Tensor:
    """`epilogue(prologue(x) @ w, b)` in one kernel: (M, K) times (K, N) plus (N,), all
    float32.

    Args:
        prologue: of a block of `x`, 0 to 0 (blocks are padded with zeros).
        epilogue: of a block of the product and of the bias.
        block: side of the square blocks, a power of two of at least 16.
    Raises:
        RuntimeError: Triton is not installed.
        ValueError: shapes do not fit, or a tensor is not contiguous float32.
    """
    if triton is None:
        raise RuntimeError(NO_TRITON)
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[0] or b.shape != w.shape[1:]:
        raise ValueError(
            f"shapes {tuple(x.shape)}, {tuple(w.shape)}, {tuple(b.shape)} do not fit (M, K), (K, N), (N,)"
        )
    for t in (x, w, b):
        if t.dtype != torch.float32 or not t.is_contiguous():
            raise ValueError(
                f"matmul takes contiguous float32 tensors, got {t.dtype} with strides {t.stride()}"
            )
    (M, K), N = x.shape, w.shape[1]
    y = x.new_empty(M, N)
    grid = (triton.cdiv(M, block), triton.cdiv(N, block))
    matmul_kernel[grid](x, w, b, y, M, N, K, prologue, epilogue, BLOCK=block)
    return y


# Graphs: recorded once, replayed


class Tape(TorchDispatchMode):
    """A CUDA graph without CUDA: the operations that ran, with the very tensors they
    ran on.

    A replay runs them again, and nothing else: no Python of the function, no new
    results. It has the semantics of a CUDA graph and not the speed, since the
    dispatcher is still asked for every operation. Unlike a CUDA graph it keeps its
    inputs alive, and every intermediate result apart.
    """

    def __init__(self):
        super().__init__()
        self.steps = []
        self.output = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if {
            torch.Tag.data_dependent_output,
            torch.Tag.dynamic_output_shape,
        } & set(func.tags):
            raise RuntimeError(
                f"{func} cannot be recorded: Python would wait for its value, and a replay runs no Python"
            )
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        aliases = [r.alias_info for r in func._schema.returns]
        if all(a is None or a.is_write for a in aliases):  # a view needs no replay
            self.steps.append((func, args, kwargs, result))
        return result

    def replay(self) -> None:
        """Run the recorded operations again, each into the memory it wrote when
        recorded."""
        for func, args, kwargs, result in self.steps:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if new is not old:  # not in place already
                    old.copy_(new)


class Capture(NamedTuple):
    """A recorded function: `replay()` runs it on the inputs' memory and leaves its
    result in `output`."""

    replay: Callable[[], None]
    output: object


def capture(function: Callable, *inputs: Tensor) -> Capture:
    """Record `function(*inputs)`: as a CUDA graph where the inputs are on a GPU, else
    on a `Tape`.

    On a GPU the function runs three times first, on a stream of its own (libraries
    choose algorithms and allocate workspace in their first calls, which must not be
    recorded), and not at all while it is recorded: `output` holds its result only after
    the first replay.

    Args:
        function: of tensors; its Python runs now and never again.
        inputs: static from now on: new data is copied into them.
    Raises:
        RuntimeError: the function needs a value on the CPU (`.item()`, a shape that
            depends on data).
    Source: PyTorch's notes on CUDA semantics, "CUDA Graphs".
    """
    if not any(x.is_cuda for x in inputs):
        with torch.no_grad(), Tape() as tape:
            tape.output = function(*inputs)
        return Capture(tape.replay, tape.output)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside), torch.no_grad():
        for _ in range(3):
            function(*inputs)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        output = function(*inputs)
    return Capture(graph.replay, output)


# A decoder


class Decoder(nn.Module):
    """A transformer that reads one token and predicts the next, with a key–value cache
    of fixed size.

    Nothing in a step depends on Python numbers: the position is a tensor, and attention
    runs over the whole cache with what is not yet written masked out. So every step is
    the same graph.
    """

    def __init__(self, vocab=256, width=64, heads=4, layers=2, length=128):
        super().__init__()
        self.heads, self.length = heads, length
        self.embed = nn.Embedding(vocab, width)
        self.place = nn.Embedding(length, width)
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.mix = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(layers))
        self.head = nn.Linear(width, vocab)
        shape = (layers, 2, heads, length, width // heads)
        self.register_buffer("cache", torch.zeros(shape))

    def forward(self, token: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """(1,) token and (1,) position to the next token (1,) and its logits (1,
        vocab); writes the cache."""
        x = self.embed(token) + self.place(position)
        norm = functools.partial(F.layer_norm, normalized_shape=x.shape[-1:])
        hidden = torch.arange(self.length, device=x.device) > position
        for i in range(len(self.qkv)):
            q, k, v = self.qkv[i](norm(x)).view(3, self.heads, 1, -1)
            keys, values = self.cache[i]
            keys.index_copy_(1, position, k)
            values.index_copy_(1, position, v)
            scores = q @ keys.mT / math.sqrt(q.shape[-1])  # (heads, 1, length)
            attention = scores.masked_fill(hidden, float("-inf")).softmax(-1)
            x = x + self.mix[i]((attention @ values).view(1, -1))
            x = x + self.down[i](F.gelu(self.up[i](norm(x))))
        logits = self.head(norm(x))
        return logits.argmax(-1), logits


def decode(step: Callable, model: Decoder, tokens: int) -> tuple[Tensor, Tensor]:
    """Decode greedily from token 0 and an empty cache: the tokens (n,) and their logits
    (n, vocab).

    Args:
        step: `model`, or what was made of it.
        tokens: how many, at most the length of the model's cache.
    Raises:
        ValueError: the cache has no room for `tokens`.
    """
    if tokens > model.length:
        raise ValueError(
            f"the cache has room for {model.length} tokens, asked for {tokens}"
        )
    model.cache.zero_()
    token = torch.zeros(1, dtype=torch.long, device=model.cache.device)
    position, out = torch.zeros_like(token), []
    with torch.no_grad():
        for _ in range(tokens):
            token, logits = step(token, position)
            token = token.clone()  # a graph's output is overwritten by its next replay
            out.append((token, logits.clone()))
            position += 1
    return torch.cat([t for t, _ in out]), torch.cat([lg for _, lg in out])


def captured_step(model: Decoder) -> Callable:
    """A step of `model` as a graph: copy in, replay, hand out the static outputs."""
    token = torch.zeros(1, dtype=torch.long, device=model.cache.device)
    position = torch.zeros_like(token)
    graph = capture(model, token, position)

    def step(new_token: Tensor, new_position: Tensor) -> tuple[Tensor, Tensor]:
        token.copy_(new_token)
        position.copy_(new_position)
        graph.replay()
        return graph.output

    return step


# What was recorded elsewhere


def report(record: dict) -> str:
    """What `benchmarks/compiling.py` recorded on one card, as text.

    Args:
        record: one of those that `mlbook.recorded("compile")` returns.
    """
    parts = [recorded_on(record), "\nMicroseconds of an operation on one element"]
    for row in record.get("launches", []):
        parts.append(f"{row['operation']:28}{row['seconds']['median'] * 1e6:10.1f}")
    for name in dict.fromkeys(row["function"] for row in record.get("curves", [])):
        rows = [row for row in record["curves"] if row["function"] == name]
        parts.append(f"\n{name}, microseconds of a call")
        parts.append(f"{'n':>12}" + "".join(f"{how:>12}" for how in rows[0]["seconds"]))
        for row in rows:
            times = [t["median"] * 1e6 for t in row["seconds"].values()]
            parts.append(f"{row['n']:12,}" + "".join(f"{t:12.1f}" for t in times))
    timed_rows = [row for row in record.get("post", []) if "seconds" in row]
    if timed_rows:
        parts.append(
            "\nThe post's function, milliseconds: first, second, third call; then"
        )
    for row in timed_rows:
        times = [*row["first"][:3], row["seconds"]["median"]]
        parts.append(f"{row['mode']:28}" + "".join(f"{t * 1e3:10.3f}" for t in times))
    for row in record.get("post", []):
        if "total_of_100" in row:
            parts.append(
                f"{row['mode']:28}100 calls after {row['warm_ups']}, collecting "
                f"{row['collect']}: {row['total_of_100']:.4f} s"
            )
    for row in record.get("decoding", []):
        parts.append(
            f"decoding, {row['way']:17}{row['tokens_a_second']:10,.0f} tokens/s, "
            f"prepared in {row['prepared_in']:.1f} s"
        )
    return "\n".join(parts)
