"""Compiling and capturing: what Inductor writes, a matmul with both fusions, graphs recorded and replayed, a decoder.

Runs without a GPU, without Triton and without a C++ compiler: what then cannot be done says so in one sentence.
"""

from mlbook.torch_compile.benchmark import protocol, report
from mlbook.torch_compile.decoder import Decoder, captured_step, decode
from mlbook.torch_compile.fusion import bias_gelu, matmul, matmul_kernel, relu
from mlbook.torch_compile.graphs import Capture, Tape, capture
from mlbook.torch_compile.inductor import (
    Program,
    can_compile,
    can_write_triton,
    generated,
    kernels,
    search,
    triton_source,
)

__all__ = [
    "Capture",
    "Decoder",
    "Program",
    "Tape",
    "bias_gelu",
    "can_compile",
    "can_write_triton",
    "capture",
    "captured_step",
    "decode",
    "generated",
    "kernels",
    "matmul",
    "matmul_kernel",
    "protocol",
    "relu",
    "report",
    "search",
    "triton_source",
]
