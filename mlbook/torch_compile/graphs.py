"""Graphs: recorded once, replayed."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """A CUDA graph without CUDA: the operations that ran, with the very tensors they
    ran on.

    A replay runs them again, and nothing else: no Python of the function, no new
    results. It has the semantics of a CUDA graph and not the speed, since the
    dispatcher is still asked for every operation. Unlike a CUDA graph it keeps its
    inputs alive, and every intermediate result apart.
    """

    def __init__(self):
        super().__init__()
        self.steps = []
        self.output = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if {
            torch.Tag.data_dependent_output,
            torch.Tag.dynamic_output_shape,
        } & set(func.tags):
            raise RuntimeError(
                f"{func} cannot be recorded: Python would wait for its value, and a replay runs no Python"
            )
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        aliases = [r.alias_info for r in func._schema.returns]
        if all(a is None or a.is_write for a in aliases):  # a view needs no replay
            self.steps.append((func, args, kwargs, result))
        return result

    def replay(self) -> None:
        """Run the recorded operations again, each into the memory it wrote when
        recorded."""
        for func, args, kwargs, result in self.steps:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if new is not old:  # not in place already
                    old.copy_(new)


class Capture(NamedTuple):
    """A recorded function: `replay()` runs it on the inputs' memory and leaves its
    result in `output`."""

    replay: Callable[[], None]
    output: object


def capture(function: Callable, *inputs: Tensor) -> Capture:
    """Record `function(*inputs)`: as a CUDA graph where the inputs are on a GPU, else
    on a `Tape`.

    On a GPU the function runs three times first, on a stream of its own (libraries
    choose algorithms and allocate workspace in their first calls, which must not be
    recorded), and not at all while it is recorded: `output` holds its result only after
    the first replay.

    Args:
        function: of tensors; its Python runs now and never again.
        inputs: static from now on: new data is copied into them.
    Raises:
        RuntimeError: the function needs a value on the CPU (`.item()`, a shape that
            depends on data).
    Source: PyTorch's notes on CUDA semantics, "CUDA Graphs".
    """
    if not any(x.is_cuda for x in inputs):
        with torch.no_grad(), Tape() as tape:
            tape.output = function(*inputs)
        return Capture(tape.replay, tape.output)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside), torch.no_grad():
        for _ in range(3):
            function(*inputs)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        output = function(*inputs)
    return Capture(graph.replay, output)
