"""Seconds of calls, on a CPU or a GPU: a median with its spread, several calls in turn."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch


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
