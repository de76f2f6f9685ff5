"""The machine that counts: its algorithms are right, and its counts are the formulas'."""

import numpy as np
import pytest
import torch

from mlbook.common.gpus import GPUS
from mlbook.flash_attention import traffic
from mlbook.flash_attention.traffic import Chip, io_count, io_formula


def numbers(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((4, n, d)) / d**0.25


def expected(q, k, v, do):
    """Output and gradients by torch, without a scale."""
    leaves = [torch.tensor(x, requires_grad=True) for x in (q, k, v)]
    out = (leaves[0] @ leaves[1].T).softmax(-1) @ leaves[2]
    gradients = torch.autograd.grad(out, leaves, torch.tensor(do))
    return out.detach().numpy(), [g.numpy() for g in gradients]


SIZES = [(1, 16, 3_000), (40, 8, 2_000), (100, 33, 5_000), (130, 64, 9_000)]


@pytest.mark.parametrize("n, d, sram", SIZES)
def test_the_algorithms_are_right(n, d, sram):
    q, k, v, do = numbers(n, d)
    out, gradients = expected(q, k, v, do)
    for f in (
        traffic.standard_forward,
        traffic.two_pass_forward,
        traffic.flash_forward_2022,
        traffic.flash_forward,
    ):
        found, kept = f(Chip(sram), q, k, v)
        assert np.allclose(found, out, atol=1e-12, rtol=0), f.__name__
        back = None
        if f is traffic.standard_forward:
            back = traffic.standard_backward(Chip(sram), q, k, v, do, kept)
        if f is traffic.flash_forward:
            back = traffic.flash_backward(Chip(sram), q, k, v, do, found, kept)
        for a, b in zip(back or (), gradients, strict=back is not None):
            assert np.allclose(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("n, d, sram", [*SIZES, (257, 16, 2_500), (64, 300, 40_000)])
@pytest.mark.parametrize(
    "algorithm, backward",
    [(a, False) for a in traffic.ALGORITHMS] + [(a, True) for a in traffic.BOTH_WAYS],
)
def test_counts_are_the_formulas(algorithm, n, d, sram, backward):
    counted = sum(io_count(algorithm, n, d, sram, backward))
    assert counted == io_formula(algorithm, n, d, sram, backward)


def test_a_count_by_hand():
    # n = 16 queries and keys in one block each: q, k, v in, o and 16 log-sums out
    assert io_count("flash", 16, 8, 2_000) == (3 * 16 * 8, 16 * 8 + 16)


def test_a_product_moves_what_its_tiles_say():
    a, b = np.arange(12.0).reshape(4, 3), np.arange(15.0).reshape(3, 5)
    chip = Chip(11)  # two rows of a and a column of b, and the two results
    assert np.array_equal(traffic.matmul(chip, a, b), a @ b)
    assert traffic.matmul_tile(4, 3, 5, 11) == ("a", (2, 5))
    assert (chip.loads, chip.stores) == (4 * 3 + 2 * 3 * 5, 4 * 5)
    roomy = Chip(1_000)
    traffic.matmul(roomy, a, b)
    assert roomy.total == 12 + 15 + 20


def test_what_does_not_fit_is_refused():
    with pytest.raises(MemoryError, match="do not fit a fast memory of 100"):
        Chip(100).hold(101)
    with pytest.raises(MemoryError, match="blocks of 16 rows and head dimension 64"):
        io_count("flash", 100, 64, 2_000)
    with pytest.raises(MemoryError, match="a row of the matrix must fit"):
        io_formula("standard", 2_000, 16, 3_000)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("flesh", 8, 8, 9_999), "got 'flesh'"),
        (
            ("flash-2022", 8, 8, 9_999, True),
            "standard, flash .backward., got 'flash-2022'",
        ),
        (("flash", 0, 8, 9_999), "n must be at least 1, got 0"),
        (("flash", 8, -1, 9_999), "d must be at least 1, got -1"),
        (("flash", 8, 8, 0), "sram must be at least 1, got 0"),
    ],
)
def test_wrong_arguments(arguments, words):
    for f in (io_count, io_formula):
        with pytest.raises(ValueError, match=words):
            f(*arguments)


def test_data_sheets_are_in_their_units():
    t4, a100, h100 = GPUS
    assert [g.name for g in GPUS] == ["T4", "A100", "H100"]
    assert t4.flops < a100.flops < h100.flops < 2e15
    assert t4.bandwidth < a100.bandwidth < h100.bandwidth < 1e13
    # a processor's matrix units do 1024, 2048 and 4096 operations a clock
    for gpu, each in zip(GPUS, (1024, 2048, 4096), strict=True):
        assert gpu.processors * gpu.clock * each == pytest.approx(gpu.flops, rel=3e-3)
    assert h100.exponentials == pytest.approx(3.9e12, rel=0.01)  # Shah et al. 2024
