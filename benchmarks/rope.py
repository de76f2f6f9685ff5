"""Rotations and the small language model beside `transformers`: on a CPU, and on a GPU where there is one.

    PYTHONPATH=. python benchmarks/rope.py [--minutes 6] [--out DIR] [--commit HASH]

In order: queries and keys of (8, 32, 2048, 128) rotated by both, beside a plain copy; training steps of
`mlbook.lm.Transformer` and of the `LlamaForCausalLM` with its weights, one model at a time, and two at a time in two
threads; and on a GPU the fused kernel, forward and backward. Every way is checked before it is timed. rope-DEVICE.json
is written after every row. The exit status is 1 where a check failed.
"""

import argparse
import copy
import functools
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from provenance import RESULTS, card, provenance, run, slug, write
from torch import Tensor

import mlbook  # noqa: F401  (settles Triton's interpreter before Triton is imported)
from mlbook import lm, optional, rope, rope_kernels

optional.hide_broken("torchvision")
from transformers.models.llama.modeling_llama import (  # noqa: E402
    apply_rotary_pos_emb,
)


class Sizes(NamedTuple):
    shape: tuple = (8, 32, 2048, 128)
    model: dict = dict(dim=128, layers=5, heads=4)  # noqa: RUF012
    batch: tuple = (16, 256)
    steps: int = 8
    repeats: int = 7


def best(work: Callable, repeats: int, device: torch.device) -> float:
    """Seconds of the fastest of `repeats` calls, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def rotations(sizes: Sizes, device: torch.device) -> Iterator[dict]:
    """Queries and keys, each read and written once by an ideal way."""
    for dtype in (
        (torch.float32,) if device.type == "cpu" else (torch.float16, torch.bfloat16)
    ):
        q, k = torch.randn(2, *sizes.shape, device=device).to(dtype)
        length, dim = sizes.shape[2:]
        cos, sin = (
            t.to(device)
            for t in rope.rotation(torch.arange(length), rope.inv_freq(dim))
        )
        own = [t.to(dtype) for t in (cos, sin)]
        whole = [torch.cat((t, t), dim=-1)[None] for t in own]
        both = functools.partial(_both, q, k)
        ways = {
            "copy": both(torch.clone),
            "transformers": functools.partial(apply_rotary_pos_emb, q, k, *whole),
            "rope.rotate": both(lambda x, own=own: rope.rotate(x, *own)),
        }
        if device.type == "cuda":
            compiled = torch.compile(apply_rotary_pos_emb)
            ways["transformers, compiled"] = functools.partial(compiled, q, k, *whole)
            ways["fused"] = functools.partial(rope_kernels.fused_rope, q, k, cos, sin)
        exact = rope.rotate(q.float(), cos, sin)
        moved = 4 * q.numel() * q.element_size()
        for name, way in ways.items():
            t = best(way, sizes.repeats, device)
            error = (way()[0].float() - exact).abs().max().item()
            yield {
                "way": name,
                "dtype": str(dtype).removeprefix("torch."),
                "seconds": t,
                "gb_a_second": moved / t / 1e9,
                "passed": name == "copy" or error < 40 * torch.finfo(dtype).eps,
            }
        if device.type == "cuda":
            yield backward(q, k, cos, sin, moved, sizes, device)


def _both(q: Tensor, k: Tensor, work: Callable) -> Callable:
    return lambda: (work(q), work(k))


def backward(q, k, cos, sin, moved, sizes, device) -> dict:
    q, k = (x.detach().requires_grad_() for x in (q, k))
    out, grads = (
        rope_kernels.fused_rope(q, k, cos, sin),
        (torch.ones_like(q), torch.ones_like(k)),
    )
    work = lambda: torch.autograd.grad(out, (q, k), grads, retain_graph=True)  # noqa: E731
    t = best(work, sizes.repeats, device)
    exact = rope.rotate(grads[0].float(), cos, -sin)
    return {
        "way": "fused, backward",
        "dtype": str(q.dtype).removeprefix("torch."),
        "seconds": t,
        "gb_a_second": moved / t / 1e9,
        "passed": (work()[0].float() - exact).abs().max().item()
        < 40 * torch.finfo(q.dtype).eps,
    }


def trainer(model: torch.nn.Module, logits: Callable, x: Tensor) -> Callable:
    """One step of AdamW on `x`; the loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step() -> float:
        loss = F.cross_entropy(
            logits(model, x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def training(sizes: Sizes, device: torch.device) -> Iterator[dict]:
    """Tokens a second of both models, in turns, from the same weights; then of two copies at once."""
    torch.manual_seed(0)
    x = torch.randint(256, (sizes.batch[0], sizes.batch[1] + 1), device=device)
    ours = lm.Transformer(**sizes.model).to(device)
    kinds = {
        "mlbook.lm": (ours, lambda m, x: m(x)),
        "transformers": (
            lm.to_llama(ours).to(device).train(),
            lambda m, x: m(input_ids=x).logits,
        ),
    }
    threads = torch.get_num_threads()
    tokens = sizes.batch[0] * sizes.batch[1]
    first = {}
    for at_once in (1, 2) if device.type == "cpu" and threads > 1 else (1,):
        steps = {
            name: [trainer(copy.deepcopy(model), logits, x) for _ in range(at_once)]
            for name, (model, logits) in kinds.items()
        }
        seconds = {name: [] for name in kinds}
        with ThreadPoolExecutor(
            at_once, initializer=torch.set_num_threads, initargs=(threads // at_once,)
        ) as pool:
            for _ in range(sizes.steps):
                for name in kinds:
                    began = time.perf_counter()
                    losses = list(pool.map(lambda step: step(), steps[name]))
                    seconds[name].append(time.perf_counter() - began)
                    first.setdefault(name, losses[0])
        torch.set_num_threads(threads)
        for name, times in seconds.items():
            middle = sorted(times[1:])[len(times) // 2 - 1]
            yield {
                "way": name,
                "models_at_once": at_once,
                "parameters": sum(p.numel() for p in kinds[name][0].parameters()),
                "tokens_a_second": at_once * tokens / middle,
                "passed": abs(first[name] - first["mlbook.lm"]) < 1e-4,
            }


def measure(sizes: Sizes, options: argparse.Namespace, device: torch.device) -> dict:
    record = provenance("transformers", *(["triton"] if device.type == "cuda" else []))
    if device.type == "cuda":
        record["card"] = card()
    record["commit"] = options.commit or record.get("commit")
    name = slug(record["device"]) if device.type == "cuda" else "cpu"
    path = options.out / f"rope-{name}.json"
    parts = {
        "rotations": (0.5, lambda: rotations(sizes, device)),
        "training": (1.0, lambda: training(sizes, device)),
    }
    run(
        parts,
        record,
        lambda record: write(path, record),
        options.minutes,
        lambda part, row: print(part, row, flush=True),
    )
    print(path)
    return record


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--commit", help="for files that came without their history")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    record = measure(Sizes(), options, device)
    rows = record["rotations"] + record["training"]
    return int(not rows or not all(row["passed"] for row in rows) or "broken" in record)


if __name__ == "__main__":
    sys.exit(main())
