"""One computation on several processes: four ways to split it. The chapter:
notebooks/flash-attention.ipynb.

Conventions: a *rank* is one process. Every rank is given the whole tensors and keeps
its own part in the first lines of a worker (a real system would never hold the whole).
What a worker sends goes through `send` and `all_reduce`, which count.
"""

import contextlib
import math
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from functools import cache, reduce
from multiprocessing.connection import Connection, wait

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import gelu

from mlbook.flash_attention.reference import State, finish, merge, partial_attention

# Sequence parallelism


def ring_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """This rank's rows of attention: queries stay, keys and values go once round the
    ring.

    A rank holds 1/p of q, k and v, and room for the block of k and v that arrives. It
    sends p − 1 blocks of 2 · batch · heads · n/p · head_dim numbers each, to the next
    rank.

    Args:
        q, k, v: (batch, heads, n, head_dim); n need not be a multiple of the number of
            ranks p.
        causal: query i sees key j where j ≤ i, both counted in the whole sequence.
    Returns:
        (batch, heads, about n/p, head_dim); the ranks' results, one after the other,
        are the whole attention.
    Raises:
        ValueError: the shapes differ, or there are fewer positions than ranks.
    Source: Liu et al. 2023, arXiv 2310.01889.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    _check_sequence(q, k, v)
    positions = torch.arange(q.shape[2]).tensor_split(size)
    q, k, v = (x.tensor_split(size, dim=2)[rank] for x in (q, k, v))
    state = _nothing_seen(q)
    for step in range(size):
        owner = (rank - step) % size  # of the keys and values that are here now
        if step < size - 1:
            going = send(torch.stack([k, v]), (rank + 1) % size)
            length = len(positions[owner - 1])  # of the block to come
            coming = q.new_empty(2, *k.shape[:2], length, k.shape[3])
            arrival = dist.irecv(coming, (rank - 1) % size)
        visible = positions[rank][:, None] >= positions[owner] if causal else None
        if visible is None or visible.any():  # computed while the next block travels
            state = merge(state, partial_attention(q, k, v, visible))
        if step < size - 1:
            going.wait(), arrival.wait()
            k, v = coming
    return finish(state)


# The model of the other three: a multilayer perceptron without biases


def mlp(weights: list[Tensor], x: Tensor) -> Tensor:
    """x W₁ → GELU → · W₂ → GELU → … → · W_L.

    Args:
        weights: W_i, (d_{i−1}, d_i).
        x: (batch, d_0).
    """
    for w in weights[:-1]:
        x = gelu(x @ w)
    return x @ weights[-1]


def loss(output: Tensor, y: Tensor) -> Tensor:
    """The mean square error, over the batch and the outputs."""
    return ((output - y) ** 2).mean()


def gradients(weights: list[Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    """∂ loss / ∂ W_i for every i, on one process: what the workers below must give."""
    weights = [_leaf(w) for w in weights]
    loss(mlp(weights, x), y).backward()
    return [w.grad for w in weights]


# Data, tensor and pipeline parallelism


def data_parallel_gradients(
    weights: list[Tensor], x: Tensor, y: Tensor
) -> list[Tensor]:
    """The gradient of the whole batch, each rank having seen a p-th of it.

    A rank holds all weights and 1/p of the batch. It gives every gradient, as many
    numbers as there are weights, to an all-reduce, once a step.

    Args:
        weights: of `mlp`.
        x, y: inputs and targets, (batch, d_0) and (batch, d_L).
    Returns:
        as `gradients`, the same on each rank.
    Raises:
        ValueError: the batch does not split evenly: the mean of the ranks' means would
            not be the mean.
    Source: Li et al. 2020, arXiv 2006.15704.
    """
    local = gradients(weights, part(x, dim=0), part(y, dim=0))
    return [all_reduce(g) / dist.get_world_size() for g in local]


def tensor_parallel_mlp(
    weights: list[Tensor], x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """A multilayer perceptron of two matrices, the first split by columns, the second
    by rows: forward and backward.

    A rank holds 1/p of each matrix and of the hidden layer, and the whole of x and of
    the output. It gives the output (batch · d_2 numbers) to an all-reduce on the way
    forward, and the gradient of x (batch · d_0) on the way back.

    Args:
        weights: W₁ (d_0, d_1) and W₂ (d_1, d_2).
        x, y: inputs and targets, (batch, d_0) and (batch, d_2).
    Returns:
        the whole output; the whole ∂ loss / ∂ x; the gradients of this rank's columns
        of W₁ and rows of W₂.
    Raises:
        ValueError: there are not two matrices, or d_1 does not split evenly.
    Source: Shoeybi et al. 2019, arXiv 1909.08053, section 3.
    """
    if len(weights) != 2:
        raise ValueError(f"tensor_parallel_mlp splits two matrices, got {len(weights)}")
    w1, w2 = _leaf(part(weights[0], dim=1)), _leaf(part(weights[1], dim=0))
    x = _leaf(x)
    summand = mlp([w1, w2], x)  # GELU acts on each hidden unit alone: nothing to send
    output = _leaf(all_reduce(summand.detach().clone()))
    loss(output, y).backward()  # the same on each rank
    summand.backward(output.grad)  # output = Σ summands: their gradients are equal
    return output.detach(), all_reduce(x.grad), [w1.grad, w2.grad]


def pipeline_parallel_gradients(
    weights: list[Tensor], x: Tensor, y: Tensor, microbatches: int
) -> tuple[Tensor, list[tuple[int, str]]]:
    """The gradient of this rank's layer: all microbatches go forward from rank to rank,
    and then back.

    A rank holds one layer, and that layer's input for the whole batch. It sends batch ·
    width numbers forward (all but the last rank) and as many as it was given back (all
    but the first), a microbatch at a time.

    Args:
        weights: of `mlp`, one a rank.
        x, y: inputs and targets, (batch, d_0) and (batch, d_L).
        microbatches: how many equal parts the batch is cut into.
    Returns:
        ∂ loss / ∂ W_rank over the whole batch; what this rank did, in order:
        (microbatch, "F" or "B").
    Raises:
        ValueError: there are not as many layers as ranks, or the batch does not split
            evenly.
    Source: Huang et al. 2019 (GPipe), arXiv 1811.06965.
    """
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    _check_pipeline(weights, x, microbatches)
    w, held, done = _leaf(weights[rank]), [], []
    pairs = zip(x.chunk(microbatches), y.chunk(microbatches), strict=True)
    for i, (a, target) in enumerate(pairs):
        if rank > 0:
            a = receive(a.new_empty(len(a), len(w)), rank - 1)
        a = _leaf(a)
        out = gelu(a @ w) if rank < last else loss(a @ w, target) / microbatches
        if rank < last:
            send(out.detach(), rank + 1).wait()
        held.append((i, a, out))
        done.append((i, "F"))
    for i, a, out in reversed(held):
        out.backward(receive(torch.empty_like(out), rank + 1) if rank < last else None)
        if rank > 0:
            send(a.grad, rank - 1).wait()
        done.append((i, "B"))
    return w.grad, done


def pipeline_schedule(
    done: list[list[tuple[int, str]]],
) -> list[tuple[int, int, int, str]]:
    """When each piece of work of a pipeline can be done at the earliest, if every piece
    takes one step.

    A piece waits for the one before it on its own rank; forward also for the rank
    before, backward for the rank after.

    Args:
        done: what each rank did, in its order, as `pipeline_parallel_gradients` returns
            it.
    Returns:
        (rank, step, microbatch, "F" or "B"), steps counted from 0.
    Raises:
        ValueError: a piece waits for one that is never done.
    """

    @cache
    def step(rank: int, piece: tuple[int, str]) -> int:
        place = done[rank].index(piece)
        needed = [(rank, done[rank][place - 1])] if place else []
        neighbour = rank - 1 if piece[1] == "F" else rank + 1
        if 0 <= neighbour < len(done):
            needed.append((neighbour, piece))
        return max((step(*other) for other in needed), default=-1) + 1

    return [
        (rank, step(rank, piece), *piece)
        for rank, order in enumerate(done)
        for piece in order
    ]


# What crosses from process to process

_sent = Counter()  # numbers sent by this process in this run, by the operation's name


def part(x: Tensor, dim: int) -> Tensor:
    """This rank's part of `x` along `dim`. Raises ValueError where it does not split
    evenly."""
    size = dist.get_world_size()
    if x.shape[dim] % size:
        raise ValueError(
            f"{x.shape[dim]} entries along dimension {dim} do not split evenly over {size} ranks"
        )
    return x.chunk(size, dim)[dist.get_rank()]


def send(x: Tensor, to: int) -> dist.Work:
    """Begin to send `x` to a rank; `.wait()` on what is returned ends it."""
    _sent["send"] += x.numel()
    return dist.isend(x.contiguous(), to)


def receive(x: Tensor, source: int) -> Tensor:
    """Fill `x` with what a rank sends, and return it."""
    dist.recv(x, source)
    return x


def all_reduce(x: Tensor) -> Tensor:
    """Replace `x` by its sum over all ranks, and return it.

    Counted once, as the numbers handed over. A ring all-reduce sends 2(p − 1)/p times
    as many from each rank; which algorithm gloo takes is its own affair.
    """
    _sent["all_reduce"] += x.numel()
    dist.all_reduce(x)
    return x


# The processes


class World:
    """Processes of this machine, joined by torch.distributed with gloo; started once,
    they take one task after another.

        with World(2) as world:
            rows = world.run(ring_attention, q, k, v)

    They are spawned, and share nothing: a function travels by its name, arguments and
    results as pickled bytes. Where one fails, all are stopped. A script makes its World
    under `if __name__ == "__main__":`; a notebook needs no care.

    Args:
        size: how many processes, one thread each.
        timeout: seconds after which starting, or a run, is given up.
    Attributes:
        sent: of the last run, for each rank, how many numbers it handed to each
            operation: {"send": 4096}.
    Raises:
        ValueError: size is less than 1, or timeout not positive.
        RuntimeError: a process could not start.
        TimeoutError: they did not find each other in time.
    """

    def __init__(self, size: int, timeout: float = 60.0):
        if size < 1 or not timeout > 0:
            raise ValueError(
                f"size must be at least 1 and timeout positive, got {size} and {timeout}"
            )
        self.size, self.timeout, self.sent = size, timeout, []
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._lines, self._processes = [], []
        context = multiprocessing.get_context("spawn")
        store = os.path.join(self._folder.name, "store")
        try:
            for rank in range(size):
                line, far_end = context.Pipe()
                process = context.Process(
                    target=_serve,
                    args=(far_end, rank, size, store, timeout),
                    daemon=True,
                    name=f"rank {rank} of {size}",
                )
                process.start()
                far_end.close()  # so that the line ends when the process does
                self._lines.append(line)
                self._processes.append(process)
            self._answers("starting")
        except BaseException:
            self.close()
            raise

    def run(self, worker: Callable, *args) -> list:
        """Call `worker(*args)` on every rank at once and return the results, rank by
        rank.

        Args:
            worker: a function at the top of a module: the processes import it.
            args: the same for all ranks; anything that pickles.
        Raises:
            ValueError: the function cannot be imported (made in a notebook, a lambda,
                inside another function).
            RuntimeError: it raised on a rank, whose traceback is quoted; or a process
                ended; or the World is closed.
            TimeoutError: a rank did not answer in time.
        """
        _check_importable(worker)
        if not self._processes:
            raise RuntimeError("this World is closed; make a new one")
        task = pickle.dumps((worker, args))
        try:
            for line in self._lines:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    line.send_bytes(task)  # a process that has ended shows below
            answers = self._answers(worker.__qualname__)
        except (
            BaseException
        ):  # Ctrl-C as well: a late answer must not be taken for the next
            self.close()
            raise
        results, self.sent = (list(column) for column in zip(*answers, strict=True))
        return results

    def _answers(self, task: str) -> list:
        """What each rank sends back, or the first failure."""
        answers, deadline = {}, time.monotonic() + self.timeout
        while len(answers) < self.size:
            waiting = [r for r in range(self.size) if r not in answers]
            ready = wait([self._lines[r] for r in waiting], deadline - time.monotonic())
            if not ready:
                raise TimeoutError(
                    f"{task}: no answer from rank {', '.join(map(str, waiting))} within {self.timeout:g} s"
                )
            for rank in (r for r in waiting if self._lines[r] in ready):
                try:
                    failed, *answers[rank] = pickle.loads(
                        self._lines[rank].recv_bytes()
                    )
                except (EOFError, ConnectionResetError):
                    self._processes[rank].join(5)
                    code = self._processes[rank].exitcode
                    raise RuntimeError(
                        f"{task}: the process of rank {rank} ended, exit code {code}"
                    ) from None
                if failed:
                    raise RuntimeError(f"{task} failed on rank {rank}:\n{failed}")
        return [answers[rank] for rank in range(self.size)]

    def close(self) -> None:
        """End the processes. A second call does nothing."""
        for line in self._lines:
            line.close()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._lines, self._processes = [], []
        self._folder.cleanup()

    def __enter__(self) -> "World":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _serve(line: Connection, rank: int, size: int, store: str, timeout: float) -> None:
    """What a process does: join the others, then answer one task after another until
    the line ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the notebook's to handle
    torch.set_num_threads(1)
    # By itself, gloo looks up the machine's name, which not every machine can resolve.
    loopback = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
    if loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    try:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(store, size),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout + 10),  # the notebook gives up first
        )
        answer = pickle.dumps((None, None, None))
    except Exception:
        answer = pickle.dumps((traceback.format_exc(), None, None))
    with contextlib.suppress(EOFError, OSError):  # the notebook has ended, and so do we
        while True:
            line.send_bytes(answer)
            answer = _answer(line.recv_bytes())


def _answer(task: bytes) -> bytes:
    """Pickled: the traceback or None, the result, the numbers sent."""
    _sent.clear()
    try:
        worker, args = pickle.loads(task)
        return pickle.dumps((None, worker(*args), dict(_sent)))
    except Exception:
        return pickle.dumps((traceback.format_exc(), None, None))


# Small things


def _leaf(x: Tensor) -> Tensor:
    """A copy of `x` that gathers its own gradient."""
    return x.detach().clone().requires_grad_()


def _nothing_seen(q: Tensor) -> State:
    """The neutral element of `merge`."""
    column = torch.zeros_like(q[..., :1])
    return State(column - math.inf, column, torch.zeros_like(q))


def _check_sequence(q: Tensor, k: Tensor, v: Tensor) -> None:
    if not (q.shape == k.shape == v.shape and q.ndim == 4):
        raise ValueError(
            "q, k and v must all be (batch, heads, n, head_dim), got "
            + ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        )
    if q.shape[2] < dist.get_world_size():
        raise ValueError(
            f"{q.shape[2]} positions are too few for {dist.get_world_size()} ranks"
        )


def _check_pipeline(weights: list[Tensor], x: Tensor, microbatches: int) -> None:
    size = dist.get_world_size()
    if len(weights) != size:
        raise ValueError(f"{len(weights)} layers are not one for each of {size} ranks")
    if microbatches < 1 or len(x) % microbatches:
        raise ValueError(
            f"a batch of {len(x)} does not split evenly into {microbatches} microbatches"
        )


def _check_importable(function: Callable) -> None:
    """Raise ValueError unless another process finds this very function by its module
    and name."""
    module, name = (getattr(function, a, "") for a in ("__module__", "__qualname__"))
    try:
        found = reduce(getattr, name.split("."), sys.modules.get(module))
    except AttributeError:
        found = None
    if found is not function or module == "__main__":
        raise ValueError(
            f"{name or function!r} cannot be sent to other processes: they import a function by its name, and this "
            "one is not at the top of a module (it was made in a notebook, as a lambda, or inside another function)"
        )
