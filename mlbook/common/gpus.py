"""Data sheets of the cards that the chapters reckon with."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """A card's data sheet.

    flops: dense float16 products with float32 sums, a second; bandwidth: bytes a
    second to and from its memory; processors: streaming multiprocessors, at `clock`
    Hz; sram: bytes of L1 and shared memory of one processor, registers: bytes of those;
    l2, memory: bytes.
    """

    name: str
    flops: float
    bandwidth: float
    processors: int
    clock: float
    sram: int
    l2: int
    memory: float
    registers: int = 256 << 10

    @property
    def exponentials(self) -> float:
        """A second: 16 a clock and processor (CUDA C++ programming guide, “arithmetic
        instructions”, compute capabilities 7.5 to 9.0)."""
        return 16 * self.processors * self.clock


# Turing white paper (2018); A100 data sheet (80 GB SXM) and white paper; H100 data
# sheet (SXM) and white paper. Rates are at the boost clock and without sparsity.
GPUS = (
    GPU("T4", 65e12, 320e9, 40, 1.59e9, 96 << 10, 4 << 20, 16e9),
    GPU("A100", 312e12, 2039e9, 108, 1.41e9, 192 << 10, 40 << 20, 80e9),
    GPU("H100", 989.4e12, 3.35e12, 132, 1.83e9, 256 << 10, 50 << 20, 80e9),
)
