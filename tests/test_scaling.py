"""The law of scaling, fitted and used, and one training of the ladder: the same numbers wherever it runs."""

import functools
import math
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from mlbook.coding import scaling
from mlbook.coding.scaling import BATCH, LENGTH, Law, bootstrap, fit_law
from mlbook.common import corpora

some = settings(max_examples=25, deadline=None, derandomize=True)
PARAMETERS = (11e3, 35e3, 96e3, 218e3, 468e3, 1.1e6)
BYTES = (250e3, 500e3, 1e6, 2e6, 4e6)
N, D = (x.ravel() for x in np.meshgrid(PARAMETERS, BYTES))
TRUE = Law(1.2, 30.0, 0.35, 200.0, 0.4)

# --- The law -------------------------------------------------------------------------------------


def laws():
    def near(low, high):
        return st.floats(math.log(low), math.log(high)).map(math.exp)

    numbers = [near(0.1, 3), near(1, 1e4), near(0.1, 1), near(1, 1e4), near(0.1, 1)]
    numbers.append(near(0.5, 10))
    return st.builds(Law, *numbers)


def test_a_law_by_hand():
    law = Law(1.0, 4.0, 0.5, 8.0, 1 / 3)
    assert law(4.0, 8.0) == pytest.approx(1 + 2 + 4)
    assert law(np.array([4.0, 16.0]), 8.0).tolist() == pytest.approx([7, 6])
    assert law.exponent == pytest.approx(0.4)
    assert law.total(4.0, 8.0, bits=10) == pytest.approx(40 + 8 * 7)


def lowest(function, low, high):
    """Where a function of a logarithm is least, by looking."""
    grid = np.linspace(math.log(low), math.log(high), 400)
    k = int(np.argmin([function(math.exp(x)) for x in grid]))
    ends = grid[max(k - 1, 0)], grid[min(k + 1, 399)]
    found = minimize_scalar(
        lambda x: function(math.exp(x)), bounds=ends, method="bounded"
    )
    return math.exp(found.x)


@some
@given(laws(), st.floats(10, 20).map(lambda x: 10**x))
def test_the_best_model_for_a_compute(law, compute):
    n, d = law.best(compute)
    assert 6 * n * d == pytest.approx(compute)

    def loss(n):
        return law(n, compute / 6 / n)

    assert loss(n) <= loss(lowest(loss, n / 1e3, n * 1e3)) * (1 + 1e-12)
    assert loss(n) < min(loss(1.1 * n), loss(n / 1.1))


@some
@given(laws(), st.floats(12, 18).map(lambda x: 10**x))
def test_the_exponent_is_the_slope_of_the_best_size(law, compute):
    (a, c), (b, d) = law.best(compute), law.best(100 * compute)
    assert math.log(b / a, 100) == pytest.approx(law.exponent)
    assert math.log(d / c, 100) == pytest.approx(1 - law.exponent)


@some
@given(laws(), st.floats(6, 12).map(lambda x: 10**x), st.sampled_from([1, 8, 16, 32]))
def test_the_smallest_message_with_its_model(law, size, bits):
    n = law.smallest(size, bits)
    least = law.total(
        lowest(lambda n: law.total(n, size, bits), n / 1e3, n * 1e3), size, bits
    )
    assert law.total(n, size, bits) <= least * (1 + 1e-6)
    assert law.smallest(size) == law.smallest(size, 16)
    assert law.total(n, size) == law.total(n, size, 16)


# --- The fit -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "law",
    [
        TRUE,
        Law(1.69, 406.4, 0.34, 410.7, 0.28),  # Hoffmann et al.'s
        Law(0.01, 30.0, 0.35, 200.0, 0.4),
    ],
)
def test_exact_losses_give_the_law_back(law):
    assert fit_law(N, D, law(N, D)) == pytest.approx(law, rel=1e-6)


@pytest.mark.parametrize("p", [0.6, 2.5, 10.0])
def test_how_the_terms_are_joined_comes_back_too(p):
    law = TRUE._replace(p=p)
    assert fit_law(N, D, law(N, D), p=None) == pytest.approx(law, rel=1e-3)
    assert fit_law(N, D, law(N, D), p) == pytest.approx(law, rel=1e-5)
    with pytest.raises(ValueError, match="7 runs"):
        fit_law(N[:6], D[:6], law(N, D)[:6], p=None)


def test_six_runs_are_enough_and_lists_will_do():
    chosen = [0, 5, 8, 14, 24, 29]
    n, d = N[chosen], D[chosen]
    law = fit_law(n.tolist(), d.astype(int).tolist(), TRUE(n, d).tolist())
    assert law(n, d) == pytest.approx(TRUE(n, d), rel=1e-3)


def noisy(seed=0, spread=0.003):
    rng = np.random.default_rng(seed)
    return TRUE(N, D) * np.exp(rng.normal(0, spread, len(N)))


def test_noisy_losses_give_a_law_within_the_bootstraps_interval():
    bits = noisy(1)
    law, drawn = fit_law(N, D, bits), np.array(bootstrap(N, D, bits, 30))
    assert law(N, D) == pytest.approx(TRUE(N, D), rel=0.01)
    assert drawn.shape == (30, 6) and (drawn[:, 5] == 1).all()
    assert (drawn.min(0) <= TRUE).all() and (drawn.max(0) >= TRUE).all()
    assert np.ptp(drawn[:, :5], 0).all(), "draws differ"
    a, b = np.quantile([Law(*x).exponent for x in drawn], [0.025, 0.975])
    assert a <= TRUE.exponent <= b and b - a < 0.1


def test_one_wrong_run_changes_little():
    bits = TRUE(N, D)
    bits[7] *= 1.3
    assert fit_law(N, D, bits) == pytest.approx(TRUE, rel=0.02)


def test_a_law_to_start_from_is_kept_where_it_fits():
    assert fit_law(N, D, TRUE(N, D), near=TRUE) == pytest.approx(TRUE)


def test_the_bootstrap_is_the_same_for_the_same_seed():
    bits = noisy()
    one, again, other = (bootstrap(N, D, bits, 3, seed=seed) for seed in (7, 7, 8))
    assert one == again and one != other
    assert all(isinstance(law, Law) for law in one) and len(one) == 3


@pytest.mark.parametrize("fit", [fit_law, functools.partial(bootstrap, draws=2)])
def test_what_no_law_can_be_fitted_to_is_refused(fit):
    bits = TRUE(N, D)
    for shapes in (
        (N[:5], D[:5], bits[:5]),
        (N, D, bits[:-1]),
        (N[:-1], D, bits),
        (N.reshape(6, 5), D.reshape(6, 5), bits.reshape(6, 5)),
        (N, D[:1], bits),
        (1e3, 1e6, 2.0),
        ([], [], []),
    ):
        with pytest.raises(ValueError, match="a law needs 6 runs or more in rows"):
            fit(*shapes)
    for wrong in (0, -1.0, math.nan, math.inf, -math.inf):
        for which in range(3):
            runs = [N.copy(), D.copy(), bits.copy()]
            runs[which][3] = wrong
            with pytest.raises(ValueError, match="must be positive and finite"):
                fit(*runs)
    for one in ((np.full_like(N, 1e4), D), (N, np.full_like(D, 1e6))):
        with pytest.raises(ValueError, match="several sizes and several lengths"):
            fit_law(*one, bits)
    for p in (0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="p must be positive and finite"):
            fit(N, D, bits, p=p)


@pytest.mark.parametrize("wrong", [0, -1.0, math.nan, math.inf])
def test_a_law_asked_for_nothing_or_everything_refuses(wrong):
    for ask in (TRUE.best, TRUE.smallest, lambda bits: TRUE.smallest(1e6, bits)):
        with pytest.raises(ValueError, match="must be positive and finite"):
            ask(wrong)


def test_no_draws_are_refused():
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="draws must be a whole number"):
            bootstrap(N, D, TRUE(N, D), wrong)


def test_best_keeps_the_rate_that_was_best_where_rates_are_chosen():
    def row(size, tokens, lr, choosing, bits):
        return dict(size=size, tokens=tokens, lr=lr, choosing=choosing, bits=bits)

    rows = [
        row("11k", 1, 0.1, 3.0, 1.0),
        row("11k", 1, 0.2, 2.0, 3.0),
        row("11k", 2, 0.1, 5.0, 5.0),
        row("35k", 1, 0.3, 9.0, 9.0),
        row("11k", 1, 0.4, 2.5, 0.5),
    ]
    kept = scaling.best(rows)
    assert kept == {("11k", 1): rows[1], ("11k", 2): rows[2], ("35k", 1): rows[3]}
    assert scaling.best(rows[::-1]) == kept and scaling.best([]) == {}
    diverged = row("11k", 1, 0.8, math.nan, math.nan)
    assert scaling.best([diverged, *rows]) == scaling.best([*rows, diverged]) == kept


# --- Trainings -----------------------------------------------------------------------------------

STEP = LENGTH * BATCH
SMALL = ("11k", 3 * STEP + 5, 8e-3)
SEEDS = (0, 1)
unpacked = functools.cache(corpora.wikipedia)


@pytest.fixture(scope="module")
def wikipedia():
    try:
        return unpacked()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture
def kept(wikipedia, monkeypatch):
    """Unpacked once."""
    monkeypatch.setattr(corpora, "wikipedia", lambda: wikipedia)


@pytest.fixture(scope="module")
def rows(wikipedia):
    """What other ways to run the same trainings must give."""
    return [numbers(scaling.train(*SMALL, seed, windows=4)) for seed in SEEDS]


def numbers(row):
    assert row.pop("seconds") > 0
    return row


def side_by_side():
    import joblib

    train = joblib.delayed(scaling.train)
    return map(numbers, joblib.Parallel(2)(train(*SMALL, s, windows=4) for s in SEEDS))


def test_a_training_gives_the_same_numbers_again(kept, rows):
    assert numbers(scaling.train(*SMALL, windows=4)) == rows[0]
    assert rows[0]["bits"] != rows[1]["bits"]
    assert rows[0].keys() == {
        *("size", "tokens", "lr", "seed", "parameters", "bits", "choosing", "online")
    }
    assert (rows[1]["size"], rows[1]["tokens"], rows[1]["lr"]) == SMALL
    assert rows[1]["seed"] == 1 and rows[0]["parameters"] == 10_832
    assert all(0 < r[k] < 9 for r in rows for k in ("bits", "choosing", "online"))


def test_two_processes_give_the_same_numbers(rows):
    pytest.importorskip("joblib", reason="no joblib here")
    assert list(side_by_side()) == rows


def test_workers_of_a_cluster_give_the_same_numbers(rows):
    joblib = pytest.importorskip("joblib", reason="no joblib here")
    distributed = pytest.importorskip("distributed", reason="no distributed here")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
    )
    with cluster, distributed.Client(cluster), joblib.parallel_config("dask"):
        assert list(side_by_side()) == rows


def test_trainings_in_threads_do_not_take_each_others_random_numbers(
    kept, rows, monkeypatch
):
    def slow(*shape):
        time.sleep(0.2)  # long enough for the other to begin
        return transformer(*shape)

    transformer = scaling.Transformer
    monkeypatch.setattr(scaling, "Transformer", slow)
    found = {}

    def train(seed):
        found[seed] = numbers(scaling.train(*SMALL, seed, windows=4))

    threads = [threading.Thread(target=train, args=(seed,)) for seed in SEEDS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in SEEDS] == rows


def test_online_is_the_mean_loss_before_each_step(kept, rows):
    model, losses = scaling.trained(*SMALL)
    assert len(losses) == 3 and not model.training
    nats = math.log(2) * (rows[0]["online"] - 8 / LENGTH)
    assert nats == pytest.approx(sum(losses) / 3, rel=1e-12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = scaling.Transformer(256, *scaling.SIZES["11k"])
        text = scaling.stretches(corpora.wikipedia()[0])
        first = text[torch.randperm(len(text))[:BATCH]]
    assert losses[0] == pytest.approx(fresh.nll(first).mean().item(), rel=1e-5)


def test_bits_are_measured_on_other_stretches_than_rates_are_chosen_on(kept, rows):
    model, _ = scaling.trained(*SMALL)
    held_out = scaling.stretches(corpora.wikipedia()[1])
    last = len(held_out) - 2
    at = [last * i // 3 for i in range(4)]
    for name, shift in (("bits", 0), ("choosing", 1)):
        nll = model.nll(held_out[[i + shift for i in at]]).mean().item()
        assert rows[0][name] == pytest.approx(nll / math.log(2), rel=1e-5)


def test_other_stretches_and_batches(kept):
    _, losses = scaling.trained("11k", 1000, 4e-3, length=50, batch=5)
    assert len(losses) == 4


def test_more_training_is_better(kept):
    few, more = (scaling.train("11k", n * STEP, 8e-3, windows=16) for n in (1, 12))
    assert more["bits"] < few["bits"] < 8.5


def test_stretches_share_one_byte_with_the_one_before():
    text = bytes(range(11))
    found = scaling.stretches(text, 3)
    assert found.tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    assert scaling.stretches(text, 5).shape == (2, 6)


def test_what_cannot_be_trained_is_refused(kept):
    with pytest.raises(ValueError, match="size is '2m'; it must be one of 11k, 35k"):
        scaling.trained("2m", STEP, 1e-3)
    stretches = (len(corpora.wikipedia()[0]) - 1) // LENGTH
    most = stretches // BATCH
    for tokens in (1, STEP - 1, (most + 1) * STEP, 10**9):
        with pytest.raises(ValueError, match=f"{tokens} tokens are .* 1 to {most}$"):
            scaling.train("11k", tokens, 1e-3)
    for tokens in (0, -STEP, 1e6, True):
        with pytest.raises(ValueError, match="tokens must be a whole number"):
            scaling.trained("11k", tokens, 1e-3)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_threads_and_random_numbers_are_what_they_were(kept, two_threads, monkeypatch):
    state = torch.random.get_rng_state()
    scaling.trained(*SMALL)
    assert torch.get_num_threads() == 2

    def broken(*_, **__):
        assert torch.get_num_threads() == 1
        raise FloatingPointError("the loss is nan")

    monkeypatch.setattr(scaling, "fit", broken)
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        scaling.trained(*SMALL)
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_number_of_threads_changes_no_number(kept, two_threads, rows):
    assert numbers(scaling.train(*SMALL, windows=4)) == rows[0]
