"""Rotations and the small language model beside `transformers`: on a CPU, and on a GPU where there is one.

    PYTHONPATH=. python benchmarks/rope.py [--minutes 6] [--out DIR] [--commit HASH]

In order: queries and keys of (8, 32, 2048, 128) rotated by both, beside a plain copy (on a CPU into new memory, as all
ways do there: to get it takes most of the time), and on a GPU by the fused kernel, forward and backward; training steps
of `mlbook.common.lm.Transformer` and of the `LlamaForCausalLM` with its weights, one model at a time, and on a CPU two at a
time in two threads. Every way is checked. rope-DEVICE.json is written after every row. The exit status is 1 where a
check failed.
"""

import argparse
import copy
import functools
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
import torch.nn.functional as F
from provenance import arguments, card, provenance, slug, told
from torch import Tensor

import mlbook  # noqa: F401  (settles Triton's interpreter before Triton is imported)
from mlbook import torch_compile as compiling
from mlbook.common import lm, optional, timing
from mlbook.long_context import rope, rope_kernels

optional.hide_broken("torchvision")
from transformers.models.llama.modeling_llama import (  # noqa: E402
    apply_rotary_pos_emb,
)


class Sizes(NamedTuple):
    shape: tuple = (8, 32, 2048, 128)
    model: dict = dict(dim=128, layers=5, heads=4)  # noqa: RUF012
    batch: tuple = (16, 256)
    steps: int = 8
    samples: int = 7


def rotations(sizes: Sizes, device: torch.device) -> Iterator[dict]:
    """Queries and keys, each read and written once by an ideal way: the copy. On a GPU with fewer heads of keys too."""
    heads = sizes.shape[1]
    if device.type == "cpu":
        yield from rotated(sizes, heads, torch.float32, device)
    else:
        for dtype in (torch.float16, torch.bfloat16):
            for kv_heads in (heads, heads // 4):
                yield from rotated(sizes, kv_heads, dtype, device)


def rotated(
    sizes: Sizes, kv_heads: int, dtype: torch.dtype, device: torch.device
) -> Iterator[dict]:
    batch, heads, length, dim = sizes.shape
    q, k = (
        torch.randn(batch, h, length, dim, device=device, dtype=dtype)
        for h in (heads, kv_heads)
    )
    positions, freqs = torch.arange(length, device=device), rope.inv_freq(dim)
    cos, sin = rope.rotation(positions, freqs)
    own = [t.to(dtype) for t in (cos, sin)]
    whole = [torch.cat((t, t), dim=-1)[None] for t in own]
    ways = {
        "copy": lambda: [x.clone() for x in (q, k)],
        "transformers": functools.partial(apply_rotary_pos_emb, q, k, *whole),
        "rope.rotate": lambda: [rope.rotate(x, *own) for x in (q, k)],
        "apply_rope": lambda: [rope.apply_rope(x, positions, freqs) for x in (q, k)],
    }
    if device.type == "cuda":
        into = torch.empty_like(q), torch.empty_like(k)
        ways["copy"] = lambda: [to.copy_(x) for to, x in zip(into, (q, k), strict=True)]
        leaves = [x.detach().requires_grad_() for x in (q, k)]
        out = rope_kernels.fused_rope(*leaves, cos, sin)
        torch._dynamo.reset()
        compiled = torch.compile(apply_rotary_pos_emb)
        ways["transformers, compiled"] = functools.partial(compiled, q, k, *whole)
        ways["fused"] = functools.partial(rope_kernels.fused_rope, q, k, cos, sin)
        ways["fused, backward"] = lambda: torch.autograd.grad(
            out, leaves, (q, k), retain_graph=True
        )
    bytes_moved = 2 * q.element_size() * (q.numel() + k.numel())
    copying = None
    for name, way in ways.items():
        seconds = timing.timed(way, samples=sizes.samples).median
        copying = copying or seconds  # the copy comes first
        if name == "copy":
            passed = all(map(torch.equal, way(), (q, k)))
        else:
            passed = rotates(way(), (q, k), cos, -sin if "backward" in name else sin)
        yield {
            "way": name,
            "dtype": str(dtype).removeprefix("torch."),
            "kv_heads": kv_heads,
            "seconds": seconds,
            "gb_a_second": bytes_moved / seconds / 1e9,
            "share_of_copy": copying / seconds,
            "passed": passed,
        }


def rotates(outs, xs, cos: Tensor, sin: Tensor) -> bool:
    """Whether `outs` are `xs` rotated, to roundings of their dtype: of the tables, the products and the sum, four of
    half an eps of numbers that are below |a| + |b|."""
    for out, x in zip(outs, xs, strict=True):
        eps, largest = torch.finfo(x.dtype).eps, x.abs().max().item()
        for i in range(len(x)):  # one at a time: the exact ones are large
            exact = rope.rotate(x[i].float(), cos, sin)
            if not (out[i].float() - exact).abs().max() <= 2 * eps * 2 * largest:
                return False
    return True


def trainer(
    model: torch.nn.Module, logits: Callable, x: Tensor, compiled: bool
) -> Callable:
    """One step of AdamW on `x`; the loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    if compiled:
        model = torch.compile(model)

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
        "mlbook.common.lm": (ours, lambda m, x: m(x)),
        "transformers": (
            lm.to_llama(ours).to(device).train(),
            lambda m, x: m(input_ids=x, use_cache=False).logits,
        ),
    }
    threads = torch.get_num_threads()
    tokens = sizes.batch[0] * sizes.batch[1]
    first, can_compile = {}, compiling.can_compile(device.type)
    for at_once in (1, 2) if device.type == "cpu" and threads > 1 else (1,):
        steps = {
            name + ", compiled" * compiled: [
                trainer(copy.deepcopy(model), logits, x, compiled)
                for _ in range(at_once)
            ]
            for compiled in (False, True)
            if not compiled or (can_compile and at_once == 1)
            for name, (model, logits) in kinds.items()
        }
        seconds = {name: [] for name in steps}
        with ThreadPoolExecutor(
            at_once, initializer=torch.set_num_threads, initargs=(threads // at_once,)
        ) as pool:
            for _ in range(sizes.steps):
                for name in steps:
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
                "parameters": sum(p.numel() for p in ours.parameters()),
                "tokens_a_second": at_once * tokens / middle,
                "passed": abs(first[name] - first["mlbook.common.lm"]) < 1e-4,
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
    told(parts, record, path, options.minutes)
    return record


def main() -> int:
    options = arguments(__doc__, minutes=6).parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    record = measure(Sizes(), options, device)
    rows = record["rotations"] + record["training"]
    return int(not rows or not all(row["passed"] for row in rows) or "broken" in record)


if __name__ == "__main__":
    sys.exit(main())
