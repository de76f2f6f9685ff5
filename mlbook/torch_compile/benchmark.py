"""The post's benchmark, and what was measured on other machines."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from mlbook.common.timing import synchronise
from mlbook.source import recorded_on


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
