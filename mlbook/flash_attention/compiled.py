"""What Triton's compiler makes of the kernels for a GPU, on a machine that need not
have one.

The compiler and NVIDIA's assembler come with Triton, so registers, spills, shared
memory and instructions can be read off anywhere that Triton runs. Kernels that were
imported for the interpreter cannot be compiled in the same process: `compile_kernels`
starts another.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from mlbook.flash_attention.flash import MERGED, Blocks, _options, block_sizes

# Shared memory that one program may use, bytes: CUDA C++ programming guide, “technical
# specifications per compute capability”.
SHARED_MEMORY = {
    75: 64 << 10,
    80: 163 << 10,
    86: 99 << 10,
    89: 99 << 10,
    90: 227 << 10,
    100: 227 << 10,
    120: 99 << 10,
}
DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
INSTRUCTIONS = {  # PTX: the matrix units of Volta to Ada, of Hopper, of Blackwell; copies; plain arithmetic
    "mma": r"\bmma\.sync",
    "wgmma": r"\bwgmma\.mma_async",
    "tcgen05": r"\btcgen05\.mma",
    "cp.async": r"\bcp\.async\.c[ag]",
    "tma": r"\bcp\.async\.bulk\.tensor",
    "fma": r"\bfma\.rn\.f32",
}


@dataclass
class Job:
    """A kernel of `kernels`, for a compute capability (90 for 9.0); `blocks` unless the
    device's own are meant."""

    kernel: str
    capability: int
    head_dim: int
    dtype: str = "float16"
    causal: bool = False
    blocks: tuple | None = None


@dataclass
class Report:
    """What a kernel was compiled to: per thread, registers and bytes of stack (spilled
    registers live there); bytes of shared memory; how often each instruction of
    INSTRUCTIONS stands in its code."""

    registers: int
    spilled: int
    shared: int
    instructions: dict[str, int]


def compile_kernels(jobs: list[Job]) -> list[Report]:
    """Compile in another process, for GPUs this machine need not have.

    Raises:
        RuntimeError: there is no Triton here, or a kernel does not compile; with the
            compiler's words.
    """
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "from mlbook.flash_attention import compiled; compiled.main()",
        ],
        input=json.dumps([asdict(job) for job in jobs]),
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
    )
    if run.returncode:
        raise RuntimeError(f"the kernels were not compiled:\n{run.stderr[-3000:]}")
    return [Report(**item) for item in json.loads(run.stdout.splitlines()[-1])]


def _compile(job: Job) -> Report:
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mlbook.flash_attention import kernels

    kernel = getattr(kernels, job.kernel)
    blocks = Blocks(
        *(job.blocks or block_sizes(
            job.kernel, divmod(job.capability, 10), job.head_dim, getattr(torch, job.dtype)
        ))
    )  # fmt: skip
    short, width = DTYPES[job.dtype], triton.next_power_of_2(job.head_dim)
    constants = {
        "CAUSAL": job.causal,
        "M": blocks.m,
        "N": blocks.n,
        "DIM": job.head_dim,
        "WIDTH": width,
        "TMA": blocks.tma,
        "COLUMNS": min(32, width),
        "SPLITS": MERGED,
    }
    queries = {"q", "o", "do", "dq"}
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        aligned = [["tt.divisibility", 16]]
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_strides"):
            signature[name] = ("i32",) * 3
            attributes |= {(i, j): aligned for j in range(3)}
        elif name in queries | {"k", "v", "dk", "dv"}:
            rows = constants["M"] if name in queries else blocks.n
            signature[name] = (
                f"tensordesc<{short}[1,1,{rows},{width}]>"
                if blocks.tma
                else f"*{short}"
            )
            if not blocks.tma:
                attributes[(i,)] = aligned
        elif name in ("lse", "delta") or name.endswith(("_in", "_out")):
            signature[name], attributes[(i,)] = "*fp32", aligned
        elif name == "lengths":
            signature[name], attributes[(i,)] = "*i32", aligned
        elif name == "out":
            signature[name], attributes[(i,)] = f"*{short}", aligned
        else:
            signature[name] = "fp32" if name.startswith("scale") else "i32"
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={
            (kernel.arg_names.index(k),): v
            for k, v in constants.items()
            if k in signature
        },
        attrs=attributes,
    )
    made = triton.compile(
        source,
        target=GPUTarget("cuda", job.capability, 32),
        options=_options(blocks),
    )
    registers, stack = resources(made)
    counts = {
        name: len(re.findall(pattern, made.asm["ptx"]))
        for name, pattern in INSTRUCTIONS.items()
    }
    return Report(registers, stack, made.metadata.shared, counts)


def resources(made) -> tuple[int, int]:
    """Registers of a thread and bytes of its stack, of what `triton.compile` has made."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(made.asm["cubin"])
        tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
        usage = subprocess.run(
            [tools / "cuobjdump", "--dump-resource-usage", cubin],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    return tuple(map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()))


def main() -> None:
    """What the other process does: jobs on its input, reports on its last line."""
    print(json.dumps([asdict(_compile(Job(**job))) for job in json.load(sys.stdin)]))
