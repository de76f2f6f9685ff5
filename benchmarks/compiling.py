"""Launches, compiled functions and CUDA graphs on a GPU: what the chapter on torch.compile
measures where there is one, recorded for those who have none.

    PYTHONPATH=. python benchmarks/compiling.py [--minutes 8] [--out DIR] [--commit HASH]

One command, one card, one run. In order: what a launch costs; two chains of thirty
operations at growing sizes, eager, compiled, captured and both; the post's benchmark, by its
own protocol and by a better one; decoding. Every way is checked against float64 or against
eager before it is timed. compile-DEVICE.json is written after every row. The exit status is
1 where a check failed, 2 where there is no CUDA.
"""

import argparse
import functools
import itertools
import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch
from provenance import arguments, card, provenance, slug, told

import mlbook
from mlbook import torch_compile as compiling
from mlbook.common import timing


class Sizes(NamedTuple):
    lengths: tuple = tuple(1 << e for e in range(4, 27, 2))
    post: int = 1 << 20
    layers: int = 4
    tokens: int = 120


def waves(x, rounds=10):
    for _ in range(rounds):
        x = torch.sin(x) + torch.cos(x)
    return x


def chain(x, rounds=10):
    for _ in range(rounds):
        x = torch.relu(x * 0.9) + 0.1
    return x


FUNCTIONS = {"waves": waves, "chain": chain}
MODES = ("default", "max-autotune-no-cudagraphs", "max-autotune")


def launches(device: torch.device) -> Iterator[dict]:
    """What asking for an operation costs: one element."""
    x = torch.rand(1, device=device)
    operations = {
        "relu": torch.relu,
        "sin": torch.sin,
        "x + x": lambda x: x + x,
        "x * 0.9": lambda x: x * 0.9,
    }
    for name, f in operations.items():
        yield {"operation": name, "seconds": timing.timed(f, x)._asdict()}
    for name, f in {
        "a graph of one relu": torch.relu,
        "a graph of thirty": chain,
    }.items():
        replay = compiling.capture(f, x).replay
        yield {"operation": name, "seconds": timing.timed(replay)._asdict()}


def curves(sizes: Sizes, device: torch.device) -> Iterator[dict]:
    for name, f in FUNCTIONS.items():
        torch._dynamo.reset()
        compiled = torch.compile(f, dynamic=True)
        compiled(
            torch.rand(sizes.lengths[-1], device=device)
        )  # its block is chosen here
        for n in sizes.lengths:
            x = torch.rand(n, device=device)
            graphs = {
                "captured": compiling.capture(f, x),
                "both": compiling.capture(compiled, x),
            }
            for graph in graphs.values():
                graph.replay()
            exact = f(x.double())
            results = {"eager": f(x), "compiled": compiled(x)}
            results |= {how: graph.output for how, graph in graphs.items()}
            wrong = {how: (y - exact).abs().max().item() for how, y in results.items()}
            ways = {"eager": functools.partial(f, x)}
            ways["compiled"] = functools.partial(compiled, x)
            ways |= {how: graph.replay for how, graph in graphs.items()}
            times = {how: timing.timed(way)._asdict() for how, way in ways.items()}
            copy = timing.timed(torch.empty_like(x).copy_, x)._asdict()
            row = {"function": name, "n": n, "seconds": times, "copy": copy}
            yield row | {"error": wrong, "passed": max(wrong.values()) < 1e-4}


def post(sizes: Sizes, device: torch.device) -> Iterator[dict]:
    """The post's function and size: first calls apart, then medians; and its protocol, with
    garbage collected at capture as PyTorch did up to 2.8, and without."""
    x = torch.rand(sizes.post, device=device)
    for mode in ("eager", *MODES):
        torch._dynamo.reset()
        f = waves if mode == "eager" else torch.compile(waves, mode=mode)
        first = timing.first_calls(f, x)
        yield {"mode": mode, "first": first, "seconds": timing.timed(f, x)._asdict()}
    config = torch.compiler.config
    can_choose = hasattr(config, "force_cudagraph_gc")
    usual = getattr(config, "force_cudagraph_gc", None)
    choices = (True, False) if can_choose else (None,)
    try:
        for collect, mode, warm_ups in itertools.product(choices, MODES, (1, 3)):
            if can_choose:
                config.force_cudagraph_gc = collect
            total = compiling.protocol(waves, x, mode, warm_ups)
            yield {
                "mode": mode,
                "collect": collect,
                "warm_ups": warm_ups,
                "total_of_100": total,
            }
    finally:
        if can_choose:
            config.force_cudagraph_gc = usual


def decoding(sizes: Sizes, device: torch.device) -> Iterator[dict]:
    mlbook.seed(0)
    model = compiling.Decoder(layers=sizes.layers).to(device)
    plain, _ = compiling.decode(model, model, sizes.tokens)
    torch._dynamo.reset()
    ways = {
        "eager": lambda: model,
        "compiled": lambda: torch.compile(model),
        "reduce-overhead": lambda: torch.compile(model, mode="reduce-overhead"),
        "captured": lambda: compiling.captured_step(model),
    }
    for name, make in ways.items():
        steps = []

        def prepare(make=make, steps=steps):
            steps.append(make())
            compiling.decode(steps[0], model, 3)

        (prepared,) = timing.first_calls(prepare, calls=1)
        (step,) = steps
        tokens, _ = compiling.decode(step, model, sizes.tokens)
        t = timing.timed(compiling.decode, step, model, sizes.tokens, samples=5)
        yield {
            "way": name,
            "tokens_a_second": sizes.tokens / t.median,
            "prepared_in": prepared,
            "passed": torch.equal(tokens, plain),
        }


def measure(sizes: Sizes, options: argparse.Namespace, device: torch.device) -> dict:
    record = provenance("triton") | {"card": card()}
    record["commit"] = options.commit or record.get("commit")
    path = options.out / f"compile-{slug(record['device'])}.json"
    parts = {
        "launches": (0.1, lambda: launches(device)),
        "curves": (0.6, lambda: curves(sizes, device)),
        "post": (0.85, lambda: post(sizes, device)),
        "decoding": (1.0, lambda: decoding(sizes, device)),
    }
    torch.set_grad_enabled(False)
    try:
        told(parts, record, path, options.minutes)
    finally:
        torch.set_grad_enabled(True)
    return record


def main() -> int:
    options = arguments(__doc__, minutes=8).parse_args()
    if not torch.cuda.is_available():
        print(
            "This measures a CUDA GPU, and there is none: nothing was timed or written."
        )
        return 2
    record = measure(Sizes(), options, torch.device("cuda"))
    rows = [row for part in ("curves", "decoding") for row in record[part]]
    return int(not rows or not all(row["passed"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
