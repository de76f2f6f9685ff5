"""What `torch.compile` writes: the kernels for this machine, the candidates it searched, and the Triton program
for a GPU that need not be there."""

import contextlib
import functools
import io
import re
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

from mlbook.common.launch import HAS_TRITON, NO_TRITON


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
    if not HAS_TRITON:
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
        print(str(error).splitlines()[0][:200] if HAS_TRITON else NO_TRITON)
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
