"""Several processes against one: every scheme gives the single-process result, and failures end in an error."""

import contextlib
import os
import subprocess
import sys
import time

import psutil
import pytest
import torch
import torch.distributed as dist

from mlbook.flash_attention import parallel
from mlbook.flash_attention.reference import naive_attention

SAME = dict(rtol=1e-12, atol=1e-13)  # float64 rounding


@pytest.fixture(scope="module")
def two():
    with parallel.World(2) as world:
        yield world


@pytest.fixture(scope="module")
def three():
    with parallel.World(3) as world:
        yield world


@pytest.fixture(params=["two", "three"])
def world(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def problem(layers, batch=12, width=6):
    weights = [normal(width, width) / 2 for _ in range(layers)]
    return weights, normal(batch, width), normal(batch, width)


# The schemes


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n", [12, 17])  # 17 splits over neither 2 nor 3
def test_ring_attention_is_attention(world, n, causal):
    q, k, v = (3 * normal(2, 3, n, 4) for _ in range(3))
    rows = world.run(parallel.ring_attention, q, k, v, causal)
    torch.testing.assert_close(
        torch.cat(rows, 2), naive_attention(q, k, v, causal), **SAME
    )


def test_ring_attention_survives_scores_that_overflow(two):
    q, k, v = (100 * normal(1, 1, 8, 4) for _ in range(3))
    rows = two.run(parallel.ring_attention, q, k, v)
    torch.testing.assert_close(torch.cat(rows, 2), naive_attention(q, k, v), **SAME)


def test_ring_attention_sends_keys_and_values_round_the_ring(world):
    q, k, v = (normal(2, 3, 12, 4) for _ in range(3))
    world.run(parallel.ring_attention, q, k, v, True)
    p = world.size
    assert world.sent == [{"send": (p - 1) * 2 * q.numel() // p}] * p


def test_data_parallel_gradients_are_those_of_the_whole_batch(world):
    weights, x, y = problem(layers=3)
    expected = parallel.gradients(weights, x, y)
    for found in world.run(parallel.data_parallel_gradients, weights, x, y):
        torch.testing.assert_close(found, expected, **SAME)
    assert world.sent == [{"all_reduce": 3 * 6 * 6}] * world.size


def test_tensor_parallel_is_the_whole_forward_and_backward(world):
    weights, y = [normal(5, 12), normal(12, 7)], normal(4, 7)
    x = normal(4, 5).requires_grad_()
    output = parallel.mlp(weights, x)
    parallel.loss(output, y).backward()
    results = world.run(parallel.tensor_parallel_mlp, weights, x, y)
    for found, grad_x, _ in results:
        torch.testing.assert_close(found, output.detach(), **SAME)
        torch.testing.assert_close(grad_x, x.grad, **SAME)
    w1, w2 = parallel.gradients(weights, x, y)
    shards = [grads for _, _, grads in results]
    torch.testing.assert_close(torch.cat([a for a, _ in shards], 1), w1, **SAME)
    torch.testing.assert_close(torch.cat([b for _, b in shards], 0), w2, **SAME)
    assert world.sent == [{"all_reduce": 4 * 7 + 4 * 5}] * world.size


@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_pipeline_gradients_are_those_of_the_whole_batch(world, microbatches):
    p = world.size
    weights, x, y = problem(layers=p)
    results = world.run(
        parallel.pipeline_parallel_gradients, weights, x, y, microbatches
    )
    found = [grad for grad, _ in results]
    torch.testing.assert_close(found, parallel.gradients(weights, x, y), **SAME)
    ends, middle = {"send": x.numel()}, {"send": 2 * x.numel()}
    assert world.sent == [ends, *[middle] * (p - 2), ends]

    schedule = parallel.pipeline_schedule([done for _, done in results])
    steps = max(step for _, step, _, _ in schedule) + 1
    assert steps == 2 * (microbatches + p - 1)
    idle = 1 - len(schedule) / (p * steps)
    assert idle == pytest.approx((p - 1) / (microbatches + p - 1))
    assert len({(rank, step) for rank, step, _, _ in schedule}) == len(schedule)


def test_pipeline_of_unequal_widths(two):
    weights = [normal(3, 8), normal(8, 2)]
    x, y = normal(6, 3), normal(6, 2)
    results = two.run(parallel.pipeline_parallel_gradients, weights, x, y, 3)
    expected = parallel.gradients(weights, x, y)
    torch.testing.assert_close([grad for grad, _ in results], expected, **SAME)
    assert two.sent == [{"send": 6 * 8}] * 2


def test_schedule_waits_for_the_neighbour():
    order = [(0, "F"), (1, "F"), (1, "B"), (0, "B")]
    first, second = (
        [
            step
            for rank, step, _, _ in parallel.pipeline_schedule([order] * 2)
            if rank == r
        ]
        for r in (0, 1)
    )
    assert first == [0, 1, 4, 5] and second == [1, 2, 3, 4]
    with pytest.raises(ValueError):
        parallel.pipeline_schedule([[(0, "F")], [(0, "F"), (1, "F")]])


def test_one_process_is_a_world_too():
    q, k, v = (normal(1, 2, 5, 4) for _ in range(3))
    with parallel.World(1) as world:
        (rows,) = world.run(parallel.ring_attention, q, k, v, True)
    torch.testing.assert_close(rows, naive_attention(q, k, v, True), **SAME)
    assert world.sent == [{}]


# The processes


def whoami():
    return os.getpid(), dist.get_rank(), torch.get_num_threads()


def fail_on_rank_one():
    if dist.get_rank() == 1:
        raise ZeroDivisionError("seven over nought")
    dist.barrier()


def leave_on_rank_one():
    if dist.get_rank() == 1:
        os._exit(3)
    time.sleep(60)


def wait_for_nobody():
    if dist.get_rank() == 0:
        parallel.receive(torch.zeros(1), 1)


def gone(pids, seconds=5.0):
    """Whether the processes end in time."""
    deadline = time.monotonic() + seconds
    while alive := [pid for pid in pids if running(pid)]:
        if time.monotonic() > deadline:
            return f"still there: {alive}"
        time.sleep(0.05)
    return True


def running(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_processes_are_kept_and_ended():
    world = parallel.World(2)
    first, second = world.run(whoami), world.run(whoami)
    assert first == second
    assert [(rank, threads) for _, rank, threads in first] == [(0, 1), (1, 1)]
    pids = [pid for pid, _, _ in first]
    assert len({*pids, os.getpid()}) == 3
    world.close()
    world.close()
    assert not [pid for pid in pids if psutil.pid_exists(pid)], "no zombies either"
    with pytest.raises(RuntimeError, match="closed"):
        world.run(whoami)


@pytest.mark.parametrize(
    "worker, error, message",
    [
        (fail_on_rank_one, RuntimeError, r"rank 1(.|\n)*seven over nought"),
        (leave_on_rank_one, RuntimeError, "rank 1 ended, exit code 3"),
        (wait_for_nobody, TimeoutError, "wait_for_nobody: no answer from rank 0 with"),
    ],
)
def test_a_failure_stops_all(worker, error, message):
    world = parallel.World(2)
    pids = [pid for pid, _, _ in world.run(whoami)]
    if error is TimeoutError:
        world.timeout = 0.5
    with pytest.raises(error, match=message):
        world.run(worker)
    assert gone(pids, seconds=0) is True
    with pytest.raises(RuntimeError, match="closed"):
        world.run(whoami)


def test_functions_that_cannot_be_imported_are_refused(two, monkeypatch):
    def inner():
        pass

    for function in (lambda: 0, inner):
        with pytest.raises(ValueError, match="not at the top of a module"):
            two.run(function)
    monkeypatch.setattr(inner, "__module__", "__main__")
    monkeypatch.setattr(inner, "__qualname__", "cell")
    monkeypatch.setattr(sys.modules["__main__"], "cell", inner, raising=False)
    with pytest.raises(ValueError, match="'cell' cannot be sent .* in a notebook"):
        two.run(inner)
    assert len(two.run(whoami)) == 2, "and the World goes on"


@pytest.fixture
def ranks(monkeypatch):
    """Pretend to be rank 0 of 2, for what is refused before anything is sent."""
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)


def test_wrong_inputs_are_refused(ranks):
    q = normal(1, 1, 4, 2)
    weights, x, y = problem(layers=2, batch=5)
    with pytest.raises(ValueError, match=r"got .*\(1, 1, 3, 2\)"):
        parallel.ring_attention(q, q[:, :, 1:], q)
    with pytest.raises(ValueError, match="1 positions are too few for 2 ranks"):
        parallel.ring_attention(q[:, :, :1], q[:, :, :1], q[:, :, :1])
    with pytest.raises(ValueError, match="5 entries along dimension 0"):
        parallel.data_parallel_gradients(weights, x, y)
    with pytest.raises(ValueError, match="two matrices, got 3"):
        parallel.tensor_parallel_mlp([*weights, weights[0]], x, y)
    with pytest.raises(ValueError, match="5 entries along dimension 1"):
        parallel.tensor_parallel_mlp([normal(6, 5), normal(5, 6)], x, y)
    with pytest.raises(ValueError, match="1 layers are not one for each of 2 ranks"):
        parallel.pipeline_parallel_gradients(weights[:1], x, y, 1)
    with pytest.raises(ValueError, match="a batch of 5 .* into 2 microbatches"):
        parallel.pipeline_parallel_gradients(weights, x, y, 2)
    for size, timeout in ((0, 1.0), (2, 0.0)):
        with pytest.raises(ValueError, match="size must be at least 1"):
            parallel.World(size, timeout)


PARENT = """
import os, signal, sys
sys.path.insert(0, {folder!r})
from test_parallel import parallel, whoami
if __name__ == "__main__":
    world = parallel.World(2)
    print(*[pid for pid, _, _ in world.run(whoami)], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_processes_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(folder=os.path.dirname(__file__)))
    out = subprocess.run(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, timeout=60
    )
    pids = [int(pid) for pid in out.stdout.split()]
    assert len(pids) == 2 and gone(pids) is True
