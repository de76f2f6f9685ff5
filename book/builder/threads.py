"""How many threads a chapter computes with, and that they sleep while they wait. Imports nothing: it is asked before torch is."""

import os


def settings(threads: int) -> dict[str, str]:
    """Environment variables for a process that is to keep `threads` cores busy, and a machine shared with others well.

    A thread of OpenMP that waits for the next loop spins by default. Where another process wants the core, it spins
    through that one's time as well, and both become several times slower.
    """
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # libgomp: torch on Linux, scikit-learn
        "GOMP_SPINCOUNT": "0",
        "KMP_BLOCKTIME": "0",  # LLVM's and Intel's: torch on macOS
    }


def share(processes: int) -> int:
    """The threads of each of `processes` that run at the same time: all cores together, at least one."""
    return max(1, (os.cpu_count() or 1) // max(1, processes))
