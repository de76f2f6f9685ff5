"""Attention on a GPU: is it right, how fast is it, and how far from what the card can do?

    PYTHONPATH=. python benchmarks/attention.py [--quick] [--tune] [--minutes 8]
                                                [--out DIR] [--commit HASH]

One command, one card, one run. In order: checks against float64; the card's ceilings;
forward and backward, every rival taking turns with ours on the same inputs; the post's
setting; decoding; a summary against the book's targets. attention-DEVICE.json is written
after every row, so that a run cut short keeps what it has. With --tune, candidates for the
table of `block_sizes` are timed instead, into tuning-attention-DEVICE.json. The exit status
is 1 where a check failed. Without CUDA only the checks run, in the interpreter, and nothing
is written.
"""

import argparse
import contextlib
import functools
import itertools
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from provenance import arguments, card, provenance, refusal, run, slug, write
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import mlbook
from mlbook.flash_attention import (
    SHARED_MEMORY,
    decode_splits,
    flash,
    flash_attention,
    flash_decode,
    naive_attention,
)
from mlbook.flash_attention.flash import Blocks
from mlbook.flash_attention.measure import SDPA, attention_flops

RIVALS = {"ours": flash_attention} | SDPA
SWEEP = tuple(1 << i for i in range(9))  # stretches of the cache
EPS = torch.finfo(torch.float32).eps
DECODE = {"batch": 1, "heads": 32, "kv_heads": 8, "n": 32768}  # the named case
LONGEST = {"head_dim": 128, "causal": False, "n": 16384, "dtype": "float16"}
TUTORIAL = 470  # TFLOP/s of Triton's tutorial 06 there


class Sizes(NamedTuple):
    """What is timed: at the `lengths`, `tokens` tokens are shared among sequences and
    `hidden` columns among heads, as in the FlashAttention papers; `post` are the lengths
    of the post's setting; `decode` holds (batch, heads, kv_heads)."""

    head_dims: tuple = (64, 128)
    lengths: tuple = (512, 1024, 2048, 4096, 8192, 16384)
    tokens: int = 16384
    hidden: int = 2048
    post: tuple = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
    post_heads: int = 48
    decode: tuple = ((1, 32, 8), (1, 32, 32), (16, 32, 8))
    contexts: tuple = tuple(1024 << i for i in range(8))
    rotated: int = 1 << 30  # bytes of caches that decoding goes round, far above the L2
    square: int = 8192  # of the matrices that the ceilings are measured with


FULL = Sizes()
QUICK = FULL._replace(lengths=(512, 4096, 16384), post=(1024, 16384), contexts=(32768,))


class Case(NamedTuple):
    """One check; inside: tensors are stored as (batch, length, heads, head_dim)."""

    dtype: str
    head_dim: int
    causal: bool
    heads: int
    kv_heads: int
    n_q: int
    n_k: int
    inside: bool = False


class DecodeCase(NamedTuple):
    dtype: str
    head_dim: int
    batch: int
    heads: int
    kv_heads: int
    capacity: int
    splits: int | None


def cases(sizes: Sizes, quick: bool, device: torch.device) -> list[list]:
    """What to check, in groups that share their kernels: one process compiles a group."""
    dtypes, causal = ("float16", "bfloat16", "float32"), (False, True)
    before_ampere = device.type == "cuda" and flash.capability(device) < (8, 0)
    if before_ampere:  # no bfloat16, and no room for wide float32
        dtypes = ("float16", "float32")
    lengths = [(257, 257), (130, 387), (387, 130)]
    if device.type == "cpu":
        dims, lengths = (16, 40), [(33, 33), (20, 50), (50, 20)]
    else:
        dims = (64, 128) if quick else (16, 33, 40, 64, 80, 128, 192, 256)
    groups = [
        [Case(dtype, d, c, *heads, *n, i % 2 == 1) for i, n in enumerate(lengths)]
        for heads in ((4, 2), (3, 3))
        for dtype, d, c in itertools.product(dtypes, dims, causal)
        if heads == (4, 2) or d in (64, 128)
        if not (before_ampere and dtype == "float32" and d > 128)
    ]
    groups += [
        [DecodeCase(dtype, d, 4, heads, 2, 331, splits) for splits in (None, 1, 5)]
        for dtype, d, heads in itertools.product(dtypes, dims[1:], (2, 16))
    ]
    if device.type == "cpu":
        return groups[:: 3 if quick else 1]
    # What will be timed is checked, and so compiled, ahead.
    timed = [
        [Case(dtype, d, c, sizes.hidden // d, sizes.hidden // d, 8192, 8192)]
        for dtype, d, c in itertools.product(dtypes[:-1], sizes.head_dims, causal)
    ]
    timed += [[Case("float16", 64, c, 4, 2, 1, 300)] for c in causal]
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    n = flash.block_sizes("decode_split", flash.capability(device), 128, torch.half).n
    for batch, heads, kv_heads in sizes.decode:
        for splits in {
            *SWEEP,
            *(decode_splits(processors, batch, kv_heads, c, n) for c in sizes.contexts),
        }:
            case = DecodeCase("float16", 128, batch, heads, kv_heads, 1024, splits)
            timed.append([case])
    return timed + groups


def checks(sizes: Sizes, quick: bool, device, seconds: float = 600) -> Iterator[dict]:
    """Errors as shares of what is allowed: over 1, or NaN, fails."""
    groups = cases(sizes, quick, device)
    every = in_processes(check, groups, device, seconds)
    for group, found in zip(groups, every, strict=True):
        if isinstance(found, Exception):
            reason = refusal(found)
            late = isinstance(found, TimeoutError)  # which says nothing of the kernel
            passed = None if late else False
            found = [{"case": repr(group), "passed": passed, "reason": reason}]
        yield from found


def check(group: list, device: torch.device) -> list[dict]:
    rows = []
    for case in group:
        f = decode_errors if isinstance(case, DecodeCase) else attention_errors
        shares = f(case, device)
        passed = all(share <= 1 for share in shares)
        rows.append({"case": case._asdict(), "shares": shares, "passed": passed})
    return rows


def attention_errors(case: Case, device: torch.device) -> list[float]:
    """Of the output, dq, dk and dv. Allowed: 2 times (gradients: 3 times) the error of
    plain PyTorch in the same dtype, and a few roundings of float32."""
    shapes = [(case.heads, case.n_q)] + 2 * [(case.kv_heads, case.n_k)]
    q, k, v, do = (
        tensor((2, n, h, case.head_dim), case.dtype, device).transpose(1, 2)
        if case.inside
        else tensor((2, h, n, case.head_dim), case.dtype, device)
        for h, n in [*shapes, shapes[0]]
    )
    with poisoned():
        ours = with_gradients(flash_attention, (q, k, v), do, case.causal)
    if case.n_q > 1000:  # heads do not mix: one will do, which float64 has room for
        group = case.heads // case.kv_heads
        q, do, k, v = q[-1:, -group:], do[-1:, -group:], k[-1:, -1:], v[-1:, -1:]
        last = group, group, 1, 1
        ours = [x[-1:, -heads:] for x, heads in zip(ours, last, strict=True)]
    plain = with_gradients(naive_attention, (q, k, v), do, case.causal)
    exact = [x.double() for x in (q, k, v)]
    exact = with_gradients(naive_attention, exact, do.double(), case.causal)
    triples = zip((2, 3, 3, 3), ours, plain, exact, strict=True)
    return [share(*triple) for triple in triples]


def decode_errors(case: DecodeCase, device: torch.device) -> list[float]:
    """Of each sequence's output, the cache being NaN past its length."""
    full, d = case.capacity, case.head_dim
    q = tensor((case.batch, case.heads, d), case.dtype, device)
    k, v = tensor((2, case.batch, case.kv_heads, full, d), case.dtype, device)
    lengths = [(full, 1, 0, 2 * full // 3)[i % 4] for i in range(case.batch)]
    for b, length in enumerate(lengths):
        k[b, :, length:], v[b, :, length:] = math.nan, math.nan
    filled = torch.tensor(lengths, device=device, dtype=torch.int32)
    with poisoned():
        ours = flash_decode(q, k, v, filled, case.splits)
    shares = []
    for b, length in enumerate(lengths):
        seen = [q[b, :, None], k[b, :, :length], v[b, :, :length]]
        plain = naive_attention(*(x[None] for x in seen))[0, :, 0]
        exact = naive_attention(*(x[None].double() for x in seen))[0, :, 0]
        shares.append(share(2, ours[b], plain, exact))
    return shares


def share(factor: float, ours, plain, exact) -> float:
    mine, other = ((x.double() - exact).abs().max().item() for x in (ours, plain))
    return mine / (factor * other + 8 * EPS * max(1.0, exact.abs().max().item()))


def with_gradients(f: Callable, inputs, do, causal: bool) -> list:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = f(*leaves, causal)
    return [out.detach(), *torch.autograd.grad(out, leaves, do)]


def tensor(shape: tuple, dtype: str, device: torch.device) -> torch.Tensor:
    return torch.randn(shape, dtype=getattr(torch, dtype), device=device)


@contextlib.contextmanager
def poisoned():
    """New tensors hold NaN until they are written."""

    def filled(make):
        return lambda *args, **options: make(*args, **options).fill_(math.nan)

    with (
        mock.patch.object(torch, "empty", filled(torch.empty)),
        mock.patch.object(torch, "empty_like", filled(torch.empty_like)),
        mock.patch.object(torch, "empty_strided", filled(torch.empty_strided)),
    ):
        yield


def in_processes(f: Callable, jobs: list, device, seconds=600, workers=0) -> list:
    """f(job, device) of every job: the result, or the exception it raised, a TimeoutError
    where it is not there after so many `seconds`.

    To compile is work for processors, so many processes do it. They leave what they
    compiled in Triton's cache, and are gone before anything is timed. What was under way
    when one of them died is done again, each in a process of its own.
    """
    if device.type == "cpu" and not workers:
        return [f(job, device) for job in jobs]
    end = time.monotonic() + seconds
    workers = workers or min(14, os.cpu_count() or 1, len(jobs))
    found = _together(f, jobs, device, end, workers)
    return [
        _together(f, [job], device, end, 1)[0]
        if isinstance(result, BrokenProcessPool)
        else result
        for job, result in zip(jobs, found, strict=True)
    ]


def _together(f: Callable, jobs: list, device, end: float, workers: int) -> list:
    spawn = multiprocessing.get_context("spawn")
    found = []
    pool = ProcessPoolExecutor(workers, spawn)
    try:
        for future in [pool.submit(_unharmed, f, job, device) for job in jobs]:
            try:
                found.append(future.result(max(0.01, end - time.monotonic())))
            except Exception as error:
                found.append(error)
    finally:
        for process in list((pool._processes or {}).values()):
            process.kill()  # one that is past its time would be waited for
        pool.shutdown(cancel_futures=True)
    return found


def _unharmed(f: Callable, job, device):
    """f(job, device); after an error of the GPU's, which spoils all that the process does
    later, the process ends."""
    try:
        return f(job, device)
    except RuntimeError as error:
        if "CUDA error" in str(error):
            print(f"{job}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        raise


def span(f: Callable, device: torch.device) -> float:
    """Seconds of one call, by the device's own clock.

    On a GPU 2 GB are written first, and a quarter read. That empties the L2 cache, and
    lets the host, which is slower to launch short kernels than they are to run, get ahead.
    """
    if device.type != "cuda":
        start = time.perf_counter()
        f()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(8):
        scratch(device).zero_()
    clean(device).sum()  # so that no zeros wait in the L2 to be written
    start.record()
    f()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


@functools.cache
def clean(device: torch.device) -> torch.Tensor:
    return torch.zeros(32 << 20, dtype=torch.int64, device=device)


@functools.cache
def scratch(device: torch.device) -> torch.Tensor:
    return torch.empty(256 << 20, dtype=torch.int8, device=device)


def race(work: dict[str, Callable], device, budget=0.3, most=40, calls=1) -> dict:
    """Rivals take turns, so that heat and clock are the same for all: 3 to `most` turns
    each, in about `budget` seconds.

    Returns:
        for each, milliseconds for one of the `calls` that its work consists of (median,
        quartiles, turns); −1 where memory did not suffice; or why it does not run.
    """
    spans, refused, turns = {name: [] for name in work}, {}, dict.fromkeys(work, 1)
    for turn in range(most):
        for name, f in work.items():
            if name in refused or turn >= turns[name]:
                continue
            try:
                if turn == 0:
                    f()  # not counted: it may compile
                spans[name].append(span(f, device))
                if turn == 0:
                    turns[name] = max(3, int(budget / max(spans[name][0], 1e-6)))
            except Exception as error:
                refused[name] = refusal(error)
    return {name: refused.get(name) or spread(spans[name], calls) for name in work}


def spread(spans: list[float], calls: int = 1) -> dict:
    low, median, high = (np.quantile(spans, (0.25, 0.5, 0.75)) * 1e3 / calls).tolist()
    return {"ms": median, "quartiles_ms": [low, high], "turns": len(spans)}


def a_second(amount: float, timed: dict) -> float:
    return amount / timed["ms"] * 1e3


def attention_bytes(batch, heads, n, head_dim, passes="forward", size=2) -> int:
    """The fewest: q, k, v read and o written; backward, these four and do read, dq, dk, dv
    written; each time a float32 for every row."""
    tensors, rows = {"forward": (4, 1), "backward": (8, 1), "both": (12, 2)}[passes]
    return batch * heads * n * (tensors * head_dim * size + 4 * rows)


def decode_bytes(batch, kv_heads, n, head_dim, size=2) -> int:
    """Every key and value, read once; the queries are nothing beside them."""
    return 2 * batch * kv_heads * n * head_dim * size


def ceilings(sizes: Sizes, device: torch.device, best: dict) -> Iterator[dict]:
    """What the card does at best, a second: operations of a matrix product, and bytes
    copied (read and written). They are put in `best`."""
    n = sizes.square
    a, b = tensor((2, n, n), "float16", device)
    source = tensor((16 * n * n,), "float16", device)  # 2 GB
    target, bf16 = torch.empty_like(source), (a.bfloat16(), b.bfloat16())
    work = {
        "float16": lambda: a @ b,
        "bfloat16": lambda: bf16[0] @ bf16[1],
        "copy": lambda: target.copy_(source),
    }
    for name, timed in race(work, device).items():
        amount = 2 * source.numel() * 2 if name == "copy" else 2 * n**3
        if isinstance(timed, dict):
            best[name] = a_second(amount, timed)
        yield {"ceiling": name, "a_second": best.get(name), "timed": timed}


def row(what: dict, times: dict, flops: float, moved: float, best: dict) -> dict:
    """A row of the record: what was timed; the two numbers, and the least time each of
    them takes at the ceilings `best`, NaN where one is not known; everybody's time and
    rate."""
    compute, copy = best.get(what["dtype"], math.nan), best.get("copy", math.nan)
    for timed in times.values():
        if isinstance(timed, dict):
            timed["tflops"] = a_second(flops, timed) / 1e12
            timed["share_of_copy"] = a_second(moved, timed) / copy
    least = {"flops": flops / compute * 1e3, "bytes": moved / copy * 1e3}
    return what | {"flops": flops, "bytes": moved, "least_ms": least, "times": times}


def settings(
    passes: str, sizes: Sizes, bfloat16: bool = True
) -> Iterator[tuple[dict, tuple]]:
    """What to time, and the shape of q."""
    for d in sizes.head_dims:
        if passes == "both":  # the post's setting
            for n in sizes.post:
                what = {"dtype": "float16", "head_dim": d, "causal": False, "n": n}
                yield what, (1, sizes.post_heads, n, d)
            continue
        for causal, n in itertools.product((False, True), sizes.lengths):
            shape = sizes.tokens // n, sizes.hidden // d, n, d
            what = {"head_dim": d, "causal": causal, "n": n}
            yield {"dtype": "float16"} | what, shape
            if passes == "forward" and n == sizes.lengths[-1] and bfloat16:
                yield {"dtype": "bfloat16"} | what, shape


def speed(passes: str, sizes: Sizes, device: torch.device, best) -> Iterator[dict]:
    """Forward, backward (the forward pass being kept) or both, at growing lengths. Who is
    out of memory once is not asked again at a greater one."""
    rivals = ({"naive": naive_attention} if passes == "both" else {}) | RIVALS
    out, before = {}, 0
    bfloat16 = device.type == "cpu" or flash.capability(device) >= (8, 0)
    for what, shape in settings(passes, sizes, bfloat16):
        if what["n"] < before:
            out = {}
        before = what["n"]
        if passes == "backward" and what["n"] > 2048:  # kept matrices of many GB
            out["SDPA, math"] = "not tried: what it keeps would leave others no room"
        leaves = [tensor(shape, what["dtype"], device).requires_grad_() for _ in "qkv"]
        do = tensor(shape, what["dtype"], device)
        work = {
            name: one_pass(passes, f, leaves, do, what["causal"])
            for name, f in rivals.items()
            if name not in out
        }
        times = race(work, device) | out
        out |= {name: -1 for name, timed in times.items() if timed == -1}
        flops = attention_flops(*shape, what["causal"], passes)
        yield row(what, times, flops, attention_bytes(*shape, passes), best)


def one_pass(passes: str, f: Callable, leaves: list, do, causal: bool) -> Callable:
    if passes == "forward":
        return torch.no_grad()(lambda: f(*leaves, causal))
    if passes == "both":
        return lambda: torch.autograd.grad(f(*leaves, causal), leaves, do)
    output = functools.cache(lambda: f(*leaves, causal))
    return lambda: torch.autograd.grad(output(), leaves, do, retain_graph=True)


def decoders(lengths, splits: int | None = None) -> dict[str, Callable]:
    """f(q, k, v), q being (batch, heads, head_dim)."""

    def sdpa(backend):
        def f(q, k, v):
            with sdpa_kernel(backend):
                q = q[:, :, None]
                return scaled_dot_product_attention(q, k, v, enable_gqa=True)

        return f

    def products(q, k, v):  # the queries of a head together: no key is copied
        q = q.reshape(*k.shape[:2], -1, q.shape[-1]) * q.shape[-1] ** -0.5
        return (q @ k.mT).softmax(-1) @ v

    return {
        "ours": lambda q, k, v: flash_decode(q, k, v, lengths, splits),
        "SDPA, flash": sdpa(SDPBackend.FLASH_ATTENTION),
        "SDPA, cuDNN": sdpa(SDPBackend.CUDNN_ATTENTION),
        "two products": products,
    }


def decode(sizes: Sizes, device: torch.device, best) -> Iterator[dict]:
    """One new query a sequence; then ours with the cache cut into more and more."""

    def sweep(lengths):
        return {str(splits): decoders(lengths, splits)["ours"] for splits in SWEEP}

    for setting, n in itertools.product(sizes.decode, sizes.contexts):
        yield decode_row(sizes, setting, n, decoders, device, best)
    for setting in sizes.decode[:2]:
        found = decode_row(sizes, setting, named(sizes), sweep, device, best)
        yield found | {"sweep": "splits"}


def named(sizes: Sizes) -> int:
    return DECODE["n"] if DECODE["n"] in sizes.contexts else sizes.contexts[-1]


@torch.no_grad()
def decode_row(sizes, setting, n, rivals: Callable, device, best, d=128) -> dict:
    """`times` are those of a replayed CUDA graph, `launched` those of one call after the
    other, in which the host may be what is waited for."""
    batch, heads, kv_heads = setting
    moved = decode_bytes(batch, kv_heads, n, d)
    around, caches = go_round(setting, n, sizes.rotated, device, d)
    lengths = torch.full((batch,), n, dtype=torch.int32, device=device)
    work = {name: around(f) for name, f in rivals(lengths).items()}
    launched, graphs = race(work, device, 0.1, calls=caches), {}
    times = {}
    for name, timed in launched.items():
        try:
            if isinstance(timed, dict):
                graphs[name] = captured(work[name], device)
            else:
                times[name] = timed
        except Exception as error:
            times[name] = refusal(error)
    times |= race(graphs, device, 0.1, calls=caches)
    what = {"dtype": "float16", "head_dim": d, "batch": batch, "heads": heads}
    what |= {"kv_heads": kv_heads, "n": n, "caches": caches, "launched": launched}
    return row(what, times, 4 * batch * heads * n * d, moved, best)


def go_round(setting, n: int, size: int, device, d: int = 128) -> tuple[Callable, int]:
    """A function that turns f(q, k, v) into a round of as many caches as make up `size`
    bytes, so that none is still in the L2 when its turn comes; and their number."""
    batch, heads, kv_heads = setting
    count = max(1, min(256, size // decode_bytes(batch, kv_heads, n, d)))
    q = tensor((batch, heads, d), "float16", device)
    caches = list(tensor((count, 2, batch, kv_heads, n, d), "float16", device).unbind())
    return lambda f: lambda: [f(q, *cache) for cache in caches], count


def captured(f: Callable, device: torch.device) -> Callable:
    """The same work, replayed from a CUDA graph."""
    if device.type != "cuda":
        return f
    f()  # nothing may be compiled or loaded while it is recorded
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        f()
    return graph.replay


KERNELS = ("forward", "backward_dk_dv", "backward_dq")
TUNED = [(kernel, d) for d in (128, 64) for kernel in KERNELS]
TUNED += [("decode_split", 128)] + [(kernel, 256) for kernel in KERNELS]


def candidates(kernel: str, head_dim: int) -> list[Blocks]:
    """For Hopper: what fits 227 kB of shared memory and leaves a thread, which has 255
    registers, at most 192 of sums."""
    rows, columns = {
        "backward_dk_dv": ((32, 64, 128), (64, 128)),
        "decode_split": ((16,), (32, 64, 128)),
    }.get(kernel, ((64, 128), (32, 64, 128)))
    found = []
    shapes = itertools.product(rows, columns, (4, 8), (1, 2, 3, 4), (None, 128))
    for m, n, warps, stages, registers in shapes:
        if registers and warps == 4:  # 128 a thread let two programs of 8 warps run
            continue
        kept, passing, sums = {
            "backward_dk_dv": (2 * n, 2 * m, 2 * n * (head_dim + m)),
            "backward_dq": (2 * m, 2 * n, m * (head_dim + 2 * n)),
        }.get(kernel, (m, 2 * n, m * (head_dim + n)))
        fits = (kept + stages * passing) * head_dim * 2 <= SHARED_MEMORY[90]
        if fits and sums <= 192 * 32 * warps:
            found.append(Blocks(m, n, warps, stages, True, registers))
    return found


@contextlib.contextmanager
def launched_with(kernel: str, blocks: Blocks):
    """`block_sizes` says `blocks` for one kernel, and what it did for the others."""
    usual = flash.block_sizes

    def chosen(name, *where):
        return blocks if name == kernel else usual(name, *where)

    with mock.patch.object(flash, "block_sizes", chosen):
        yield


def try_blocks(job: tuple, device: torch.device) -> float:
    """Compile and check a candidate: its largest error as a share of what is allowed."""
    kernel, d, blocks = job
    h = FULL.hidden // d
    tried = [Case("float16", d, causal, h, h, 512, 512) for causal in (False, True)]
    if kernel == "decode_split":
        tried = [DecodeCase("float16", d, 4, 32, 8, 1024, 33)]
    with launched_with(kernel, blocks):
        rows = check(tried, device)
    if not all(found["passed"] for found in rows):
        return math.inf
    return max(share for found in rows for share in found["shares"])


def tuning(sizes: Sizes, device: torch.device, seconds: float) -> Iterator[dict]:
    """All candidates are compiled and checked side by side, in so many `seconds`; those
    that are right are then timed."""
    jobs = []
    for kernel, d in TUNED:
        usual = flash.block_sizes(kernel, flash.capability(device), d, torch.half)
        for blocks in dict.fromkeys([usual, *candidates(kernel, d)]):
            jobs.append((kernel, d, blocks))
    results = in_processes(try_blocks, jobs, device, seconds)
    for (kernel, d), group in itertools.groupby(
        zip(jobs, results, strict=True), key=lambda pair: pair[0][:2]
    ):
        tried = {str(tuple(job[2])): (job[2], result) for job, result in group}
        make = passes_of(kernel, d, sizes, device)
        work, refused = {}, {}
        for name, (blocks, result) in tried.items():
            if isinstance(result, float) and result <= 1:
                work[name] = make(blocks)
            else:
                refused[name] = repr(result)[:200]
        times = race(work, device, 0.05, most=15)
        timed = {name: t["ms"] for name, t in times.items() if isinstance(t, dict)}
        found = {"kernel": kernel, "head_dim": d, "usual": next(iter(tried))}
        found["best"] = sorted(timed, key=timed.get)[:5]
        yield found | {"times": times, "refused": refused}


def passes_of(kernel: str, d: int, sizes: Sizes, device) -> Callable:
    """What is timed of a candidate: a round of caches, or a full and a causal pass."""
    if kernel == "decode_split":
        setting, n = sizes.decode[0], named(sizes)
        around, _ = go_round(setting, n, sizes.rotated, device, d)
        lengths = torch.full(setting[:1], n, dtype=torch.int32, device=device)
        work = [around(decoders(lengths)["ours"])]
    else:
        n = min(4096, sizes.tokens)
        shape = sizes.tokens // n, sizes.hidden // d, n, d
        *leaves, do = (
            tensor(shape, "float16", device).requires_grad_() for _ in range(4)
        )
        which = "forward" if kernel == "forward" else "backward"
        work = [
            one_pass(which, flash_attention, leaves, do.detach(), causal)
            for causal in (False, True)
        ]

    def make(blocks):
        def run():
            with launched_with(kernel, blocks):
                for f in work:
                    f()

        return captured(run, device) if kernel == "decode_split" else run

    return make


def summary(record: dict) -> list[dict]:
    """The book's targets: what was measured for each (of several cases the worst counts;
    None where nothing was measured) and whether that is enough."""

    def ours(part, **wanted):
        for found in record.get(part, []):
            wrong = [key for key in wanted if found.get(key) != wanted[key]]
            if isinstance(found["times"].get("ours"), dict) and not wrong:
                yield found["times"]["ours"], found["times"]

    def ratios(part, rival):
        for mine, times in ours(part, dtype="float16"):
            if isinstance(times.get(rival), dict):
                yield times[rival]["ms"] / mine["ms"]

    passed = [found["passed"] for found in record.get("checks", [])]
    passed = [one for one in passed if one is not None]  # those that came in time
    longest = [mine["tflops"] for mine, _ in ours("forward", **LONGEST)]
    decoded = [mine["share_of_copy"] for mine, _ in ours("decode", **DECODE)]
    targets = [
        ("checks passed, share", 1, [sum(passed) / len(passed)] if passed else []),
        ("forward, times SDPA flash", 1.15, ratios("forward", "SDPA, flash")),
        ("forward, TFLOP/s at head dim 128, 16k", TUTORIAL, longest),
        ("forward, times SDPA cuDNN", 1, ratios("forward", "SDPA, cuDNN")),
        ("backward, times SDPA flash", 1, ratios("backward", "SDPA, flash")),
        ("decode at 32k, share of the copy's bandwidth", 0.8, decoded),
    ]
    rows = []
    for target, wanted, found in targets:
        found = sorted(found)
        row = {"target": target, "wanted": wanted, "cases": len(found), "met": None}
        if found:
            row |= {"worst": found[0], "best": found[-1], "met": found[0] >= wanted}
        rows.append(row | {"met_in": sum(x >= wanted for x in found)})
    return rows


def line(part: str, found: dict) -> str:
    """A row on the screen: rates in TFLOP/s; when decoding, shares of the bandwidth; of
    candidates, the best, in milliseconds."""
    if "times" not in found:
        return f"{part}: {json.dumps(found)}"
    unit = {"decode": "share_of_copy", "tuning": "ms"}.get(part, "tflops")
    told = {
        name: f"{time[unit]:.3g}" if isinstance(time, dict) else str(time)[:24]
        for name, time in found["times"].items()
        if name in found.get("best", found["times"]) or name == found.get("usual")
    }
    named = ("kernel", "dtype", "head_dim", "causal", "batch", "heads", "kv_heads", "n")
    what = [str(found[key]) for key in named if key in found]
    return f"{part} {' '.join(what)}: {told}"


def measure(sizes: Sizes, options: argparse.Namespace, device: torch.device) -> dict:
    """Every part on one device: the record, which is written as it grows."""
    record = provenance("triton") | {"card": card(), "arguments": sys.argv[1:]}
    record["commit"] = options.commit or record.get("commit")
    path = options.out / f"attention-{slug(record['device'])}.json"
    path = path.with_name("tuning-" + path.name) if options.tune else path

    def save(record):
        write(path, record)

    best, minutes = {}, options.minutes
    parts = {
        "checks": (0.4, lambda: checks(sizes, options.quick, device, 24 * minutes)),
        "ceilings": (0.45, lambda: ceilings(sizes, device, best)),
        "forward": (0.6, lambda: speed("forward", sizes, device, best)),
        "backward": (0.75, lambda: speed("backward", sizes, device, best)),
        "post": (0.85, lambda: speed("both", sizes, device, best)),
        "decode": (1.0, lambda: decode(sizes, device, best)),
    }
    if options.tune:
        parts = {"tuning": (1.0, lambda: tuning(sizes, device, 36 * minutes))}

    def say(part, found):
        if part != "checks" or not found["passed"]:
            print(line(part, found), flush=True)

    run(parts, record, save, minutes, say)
    record |= {"card_after": card(), "summary": [] if options.tune else summary(record)}
    save(record)
    print(*record["summary"], path, sep="\n")
    return record


def main() -> int:
    parser = arguments(__doc__, minutes=8)
    parser.add_argument("--quick", action="store_true", help="fewer cases and lengths")
    parser.add_argument("--tune", action="store_true", help="time other block_sizes")
    options = parser.parse_args()
    mlbook.seed(0)
    if torch.cuda.is_available():
        sizes = QUICK if options.quick else FULL
        record = measure(sizes, options, torch.device("cuda"))
        passed = [found["passed"] for found in record.get("checks", [])]
        wrong = not passed or False in passed
        return int(wrong or "checks" in record.get("broken", {}))
    rows = checks(FULL, options.quick, torch.device("cpu"))
    passed = [found["passed"] for found in rows]
    print(f"{sum(passed)} of {len(passed)} checks passed, in the interpreter.")
    print("Timing needs a CUDA GPU: nothing was timed and nothing written.")
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
