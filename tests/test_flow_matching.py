"""Flow matching against closed forms, finite differences and brute force."""

import itertools
import math

import numpy as np
import pytest
import torch

import mlbook
from mlbook import flow_matching as flow
from mlbook.common.training import Ensemble, fit
from mlbook.flow_matching import experiments, judging

PATHS = {
    "linear": flow.linear,
    "cosine": flow.cosine,
    "variance_preserving": flow.variance_preserving,
}


@pytest.fixture(autouse=True)
def seeded():
    mlbook.seed(0)


def spin(x, t):
    return torch.stack([-x[:, 1], x[:, 0]], 1)


def batch(n=7, dim=3, dtype=torch.float64):
    return (
        torch.randn(n, dim, dtype=dtype),
        torch.randn(n, dim, dtype=dtype),
        torch.rand(n, dtype=dtype) * 0.98,
    )


@pytest.mark.parametrize("name", PATHS)
def test_velocity_is_the_derivative_of_the_path(name):
    z, eps, t = batch()
    t, h = t + 0.01, 1e-6
    x, v = PATHS[name].sample(z, eps, t)
    numeric = (
        PATHS[name].sample(z, eps, t + h)[0] - PATHS[name].sample(z, eps, t - h)[0]
    ) / (2 * h)
    torch.testing.assert_close(v, numeric, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(PATHS[name].velocity(x, z, t), v)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_paths_run_from_noise_to_data(name):
    z, eps, _ = batch()
    torch.testing.assert_close(
        PATHS[name].sample(z, eps, torch.zeros(7).double())[0], eps
    )
    torch.testing.assert_close(PATHS[name].sample(z, eps, torch.ones(7).double())[0], z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PATHS)
def test_both_ends_of_a_path_are_finite_or_refused(name, dtype):
    """float32 rounds 1 − r² to 1 now and then: what happens there must be right or said."""
    z, eps, _ = batch(dtype=dtype)
    zero, one = torch.zeros(7, dtype=dtype), torch.ones(7, dtype=dtype)
    x, v = PATHS[name].sample(z, eps, zero)
    assert torch.isfinite(x).all() and torch.isfinite(v).all()
    assert torch.isfinite(PATHS[name].velocity(x, z, zero)).all()
    with pytest.raises(ValueError, match=r"where beta.* t = 1\.0"):
        PATHS[name].velocity(z, z, one)
    with pytest.raises(ValueError, match=r"where beta.* t = 1\.0"):
        flow.marginal_velocity(z, one, z, PATHS[name])
    if name == "variance_preserving":
        with pytest.raises(ValueError, match=r"no finite velocity at t = 1\.0"):
            PATHS[name].sample(z, eps, one)
    else:
        x, v = PATHS[name].sample(z, eps, one)
        assert torch.equal(x, z) and torch.isfinite(v).all()


@pytest.mark.parametrize("name", PATHS)
def test_a_velocity_tells_the_clean_point_and_the_noise(name):
    z, eps, t = batch()
    x, v = PATHS[name].sample(z, eps, t)
    clean, noise = PATHS[name].posterior_means(x, v, t)  # of a crowd of one
    torch.testing.assert_close(clean, z)
    torch.testing.assert_close(noise, eps)


def test_a_path_must_run_from_noise_to_data_and_know_its_derivative():
    p = flow.linear
    with pytest.raises(ValueError, match=r"alpha must run from 0 .* got \[1.0, 0.0\]"):
        flow.GaussianPath(p.beta, p.alpha, p.d_beta, p.d_alpha)
    with pytest.raises(ValueError, match="d_beta must be the derivative of beta"):
        flow.GaussianPath(p.alpha, p.beta, p.d_alpha, p.d_alpha)


def test_variance_preserving_keeps_the_variance():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    path = flow.variance_preserving
    torch.testing.assert_close(
        path.alpha(t) ** 2 + path.beta(t) ** 2, torch.ones(11).double()
    )


def test_images_and_expanded_times_are_taken():
    z = torch.randn(4, 1, 8, 8)
    x, v = flow.linear.sample(z, torch.randn_like(z), torch.tensor(0.5).expand(4))
    assert x.shape == v.shape == z.shape


def test_marginal_velocity_is_the_posterior_average():
    data = torch.randn(5, 2, dtype=torch.float64)
    x, t = (
        torch.randn(6, 2, dtype=torch.float64),
        torch.rand(6, dtype=torch.float64) * 0.9,
    )
    for path in PATHS.values():
        expected = torch.zeros_like(x)
        for i, (point, time) in enumerate(zip(x, t, strict=True)):
            a, b = path.alpha(time), path.beta(time)
            density = [
                math.exp(-((point - a * z) ** 2).sum() / (2 * b**2)) for z in data
            ]
            for p, z in zip(density, data, strict=True):
                expected[i] += (
                    p
                    / sum(density)
                    * path.velocity(point[None], z[None], time[None])[0]
                )
        torch.testing.assert_close(flow.marginal_velocity(x, t, data, path), expected)


def test_marginal_velocity_stays_finite_close_to_the_end():
    data = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    t = torch.full((2,), 1 - 2**-24)
    velocity = flow.marginal_velocity(
        torch.tensor([[0.4, 0.4], [1.0, 1.0]]), t, data, flow.linear
    )
    assert torch.isfinite(velocity).all() and velocity[0, 0] < 0, (
        "it points to the nearest datum"
    )
    huge = flow.marginal_velocity(
        torch.full((1, 2), 1e4), torch.zeros(1), data, flow.linear
    )
    assert torch.isfinite(huge).all()


def test_loss_is_that_of_the_formula():
    z = torch.randn(64, 2)
    t = torch.rand(64)
    mlbook.seed(1)
    value = flow.cfm_loss(lambda x, t: x, z, flow.linear, t=t)
    mlbook.seed(1)
    eps = torch.randn_like(z)
    x = t[:, None] * z + (1 - t[:, None]) * eps
    torch.testing.assert_close(value, ((x - (z - eps)) ** 2).mean())


def test_optimal_coupling_is_the_best_permutation():
    eps, z = torch.randn(6, 2), torch.randn(6, 2)
    cost = lambda p: ((eps[torch.tensor(p)] - z) ** 2).sum().item()  # noqa: E731
    best = min(cost(p) for p in itertools.permutations(range(6)))
    found = flow.optimal_coupling(eps, z)
    assert sorted(found.tolist()) == list(range(6)) and cost(
        found.tolist()
    ) == pytest.approx(best)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_pairing_does_not_change_when_the_data_is_moved(dtype):
    eps, z = torch.randn(32, 2, dtype=dtype), torch.randn(32, 2, dtype=dtype)
    first = flow.optimal_coupling(eps, z)
    for shift in (1e5, -1e6):
        moved = z.double() + shift  # exact in float64
        assert torch.equal(first, flow.optimal_coupling(eps.double(), moved))


def test_a_pairing_of_numbers_is_by_order():
    eps, z = torch.randn(9), torch.randn(9)
    order = flow.optimal_coupling(eps, z)
    assert torch.equal(eps[order].argsort(), z.argsort())


def test_optimal_coupling_lowers_the_floor_of_the_loss():
    z = torch.randn(256, 2) + 3
    eps = torch.randn(256, 2)
    assert ((z - eps[flow.optimal_coupling(eps, z)]) ** 2).mean() < (
        (z - eps) ** 2
    ).mean()


@pytest.mark.parametrize(
    ("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)]
)
def test_solvers_have_their_order(method, order):
    x0 = torch.tensor([[1.0]], dtype=torch.float64)
    exact = math.exp(1.5)  # dx/dt = (1 + t) x
    errors = [
        abs(
            flow.integrate(lambda x, t: (1 + t)[:, None] * x, x0, n, method).item()
            - exact
        )
        for n in (40, 80)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


def test_integrate_runs_backwards_and_keeps_the_trajectory():
    x0 = torch.randn(5, 2, dtype=torch.float64)
    path = flow.integrate(spin, x0, 50, "rk4", trajectory=True)
    assert path.shape == (51, 5, 2) and torch.equal(path[0], x0)
    home = flow.integrate(spin, path[-1], torch.linspace(1, 0, 51), "rk4")
    torch.testing.assert_close(home, x0, rtol=0, atol=1e-7)


@pytest.mark.parametrize("steps", [10, np.int64(10), np.int32(10)])
def test_steps_may_be_any_whole_number(steps):
    x0 = torch.randn(3, 2)
    assert torch.equal(flow.integrate(spin, x0, steps), flow.integrate(spin, x0, 10))


def test_times_may_be_given_in_any_dress():
    x0, times = torch.randn(3, 2), [0.0, 0.25, 1.0]
    ways = [times, tuple(times), np.array(times), torch.tensor(times)]
    ends = [flow.integrate(spin, x0, way) for way in ways]
    assert all(torch.equal(end, ends[0]) for end in ends)


@pytest.mark.parametrize("steps", [True, 10.0, 0, -1, "10", None])
def test_what_is_no_number_of_steps_is_refused(steps):
    with pytest.raises(ValueError, match=r"steps must be a whole number|times must"):
        flow.integrate(spin, torch.randn(3, 2), steps)


def test_times_that_crowd_towards_one_stay_apart_in_float32():
    times = flow.towards_one(6_000)
    assert (times.diff() > 0).all()
    end = flow.integrate(lambda x, t: torch.ones_like(x), torch.zeros(1, 1), times)
    assert end.item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("power", [0, -1, math.inf, math.nan])
def test_times_that_do_not_rise_are_refused(power):
    with pytest.raises(ValueError, match="power must be positive and finite"):
        flow.towards_one(10, power)


WRONG_SHAPES = [(7, 1), (7,), (1, 2), (3, 7, 2), ()]


@pytest.mark.parametrize("shape", WRONG_SHAPES)
def test_a_velocity_that_would_broadcast_is_refused(shape):
    x = torch.randn(7, 2)
    wrong = lambda x, t: torch.ones(shape)  # noqa: E731
    for call in (
        lambda: flow.integrate(wrong, x, 3),
        lambda: flow.integrate(wrong, x, 3, "rk4"),
        lambda: flow.integrate_noisily(wrong, flow.linear, x, 3),
        lambda: flow.cfm_loss(wrong, x, flow.linear),
        lambda: flow.cfm_loss(wrong, x, flow.cosine, "optimal_transport"),
    ):
        with pytest.raises(ValueError, match=r"shape of its points, \(7, 2\)"):
            call()


def test_a_solution_that_blows_up_is_said():
    with pytest.raises(FloatingPointError, match="more steps"):
        flow.integrate(lambda x, t: 1e30 * x**3, torch.ones(2, 2), 5)


def test_noise_on_the_way_keeps_the_distribution():
    """Gaussian data: mean 0, deviation 0.5; the exact velocity."""
    x0 = torch.randn(20_000, 1, dtype=torch.float64)
    times = 1 - torch.logspace(0, -3, 300).double()
    for noise in (0.0, 1.0, 3.0):
        end = flow.integrate_noisily(
            gaussian_velocity(0.5), flow.linear, x0, times, noise
        )[-1]
        assert end.std().item() == pytest.approx(
            0.5, abs=4 * 0.5 / math.sqrt(40_000) + 0.005
        )
        kept = torch.corrcoef(torch.cat([x0, end], 1).T)[0, 1].item()
        assert kept > 0.999 if noise == 0 else kept < 0.95
    calm = flow.integrate_noisily(gaussian_velocity(0.5), flow.linear, x0, 30, 0.0)
    torch.testing.assert_close(calm[-1], flow.integrate(gaussian_velocity(0.5), x0, 30))
    with pytest.raises(ValueError, match="got -1"):
        flow.integrate_noisily(spin, flow.linear, torch.randn(2, 2), 3, -1)
    with pytest.raises(ValueError, match="times must rise"):
        flow.integrate_noisily(spin, flow.linear, torch.randn(2, 2), [1.0, 0.0])


def test_straight_paths_have_straightness_zero():
    path = torch.linspace(0, 1, 5)[:, None, None] * torch.randn(3, 2)
    assert flow.straightness(path).item() == pytest.approx(0, abs=1e-10)
    assert flow.straightness(path**2) > 0.01


def gaussian_velocity(spread):
    def velocity(x, t):
        v = t**2 * spread**2 + (1 - t) ** 2
        return ((t * spread**2 - (1 - t)) / v)[:, None] * x

    return velocity


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_likelihood_of_a_gaussian(divergence):
    x = 0.5 * torch.randn(50, 3, dtype=torch.float64)
    expected = flow.standard_normal_log_density(x / 0.5) - 3 * math.log(0.5)
    found = flow.log_likelihood(
        gaussian_velocity(0.5), x, 80, divergence
    )  # here the Jacobian is a multiple of I
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_likelihood_has_its_solvers_order():
    x = 0.5 * torch.randn(50, 3, dtype=torch.float64)
    expected = flow.standard_normal_log_density(x / 0.5) - 3 * math.log(0.5)
    gaps = [
        (flow.log_likelihood(gaussian_velocity(0.5), x, n) - expected).abs().max()
        for n in (60, 120)
    ]
    assert math.log2(gaps[0] / gaps[1]) == pytest.approx(4, abs=0.4)


@pytest.mark.parametrize("times", [[1.0, 0.0], [0.2, 0.8], [0.0, 0.5], [0.5, 1.0]])
def test_a_likelihood_wants_the_whole_way(times):
    """From 1 to 0 seems natural, and would give another density than the data's."""
    with pytest.raises(ValueError, match="must run from 0 to 1"):
        flow.log_likelihood(gaussian_velocity(0.5), torch.randn(5, 2).double(), times)


def test_hutchinson_is_unbiased_where_it_varies():
    matrix = torch.randn(4, 4, dtype=torch.float64) * 0.3
    x = torch.randn(4000, 4, dtype=torch.float64)
    field = lambda x, t: x @ matrix.T  # noqa: E731
    exact = flow.log_likelihood(field, x, 10)
    gap = flow.log_likelihood(field, x, 10, "hutchinson") - exact
    assert gap.std() > 0.1 and abs(gap.mean()) < 4 * gap.std() / len(gap) ** 0.5


def test_checkerboard_covers_its_eight_squares_evenly():
    x = flow.checkerboard(80_000)
    assert flow.on_checkerboard(x).all()
    counts = torch.unique(torch.floor(x), dim=0, return_counts=True)[1]
    assert (
        len(counts) == 8
        and ((counts - 10_000).abs() < 5 * math.sqrt(80_000 * 7 / 64)).all()
    )
    assert flow.checkerboard(0).shape == (0, 2)


def test_on_checkerboard_knows_both_colours_and_the_outside():
    points = torch.tensor(
        [[-1.5, -1.5], [-0.5, -1.5], [-0.5, -0.5], [1.9, 1.9], [2.1, 2.1], [-2.1, -2.1]]
    )
    assert flow.on_checkerboard(points).tolist() == [
        True,
        False,
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("t", [0.0, 5e-5, 2e-4, 0.5, 0.95])
@pytest.mark.parametrize("name", PATHS)
def test_checkerboard_density_integrates_to_one(t, name):
    axis = torch.linspace(-6, 6, 601, dtype=torch.float64)
    density = flow.checkerboard_density(
        torch.cartesian_prod(axis, axis), t, PATHS[name]
    )
    assert density.sum().item() * 0.02**2 == pytest.approx(1, abs=1e-3)
    if t < 1e-3 and name == "linear":
        middle = flow.checkerboard_density(torch.zeros(1, 2), t, flow.linear).item()
        assert middle == pytest.approx(1 / (2 * math.pi), rel=1e-3)


def test_fourier_features_have_the_periods_they_name():
    features = flow.FourierFeatures((0.5, 2.0))
    x = torch.rand(5, 3)
    assert features(x).shape == (5, 15) and torch.equal(features(x)[:, :3], x)
    torch.testing.assert_close(
        features(x)[:, 3:], features(x + 2)[:, 3:], rtol=0, atol=1e-4
    )
    assert flow.FourierFeatures(())(x).shape == (5, 3)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("name", PATHS)
def test_the_boards_velocity_is_the_average_over_many_of_its_points(name, t):
    x = torch.tensor([[0.1, 0.4], [-1.2, 0.9], [2.4, -0.3]], dtype=torch.float64)
    times = torch.full((3,), t, dtype=torch.float64)
    side = (torch.arange(1_600, dtype=torch.float64) + 0.5) / 400 - 2
    points = torch.cartesian_prod(side[::4], side[::4])
    points = points[flow.on_checkerboard(points)]
    expected = flow.marginal_velocity(x, times, points, PATHS[name])
    found = flow.checkerboard_velocity(x, times, PATHS[name])
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_the_boards_velocity_is_finite_far_away_and_late():
    x = torch.tensor([[30.0, -40.0], [2.5, 2.5], [0.0, 0.0]])
    for t in (0.0, 0.5, 0.999):
        for path in PATHS.values():
            u = flow.checkerboard_velocity(x, torch.full((3,), t), path)
            assert torch.isfinite(u).all() and u.dtype == x.dtype
    late = flow.checkerboard_velocity(x, torch.full((3,), 0.999), flow.linear)
    assert late[1, 0] < 0 and late[1, 1] < 0, "back towards the board"


def test_guidance_is_a_straight_line_through_two_velocities():
    model = flow.CleanImageMLP(6, classes=3, width=8, depth=1)
    x, t, label = torch.randn(4, 6), torch.rand(4) * 0.9, torch.tensor([0, 1, 2, 0])
    told, untold = model(x, t, label), model(x, t, torch.full((4,), 3))
    for weight in (0.0, 1.0, 2.5):
        torch.testing.assert_close(
            flow.guided(model, label, weight)(x, t), untold + weight * (told - untold)
        )
    for wrong in (torch.tensor([3, 0]), torch.tensor([-1, 0])):
        with pytest.raises(ValueError, match=r"labels must lie in \[0, 3\)"):
            flow.guided(model, wrong, 1.0)
    with pytest.raises(ValueError, match="got 'noise'"):
        flow.CleanImageMLP(6, classes=3, answer="noise")


def test_a_clean_image_becomes_the_velocity_that_leads_to_it():
    model = flow.CleanImageMLP(6, classes=1, width=8, depth=1)
    x, t, label = torch.randn(4, 6), torch.rand(4) * 0.9, torch.zeros(4).long()
    u = model(x, t, label)
    clean, _ = flow.linear.posterior_means(x, u, t)
    model.answer = "velocity"
    torch.testing.assert_close(clean, model(x, t, label), rtol=1e-4, atol=1e-5)


def test_training_learns_a_gaussian():
    """The loss's minimiser for N(1, 0.5²) is known; a small network comes near it."""
    model = flow.VelocityMLP(1, width=32, depth=2, frequencies=())
    model, history, _ = fit(
        model,
        lambda m: flow.cfm_loss(m, 1 + 0.5 * torch.randn(256, 1), flow.linear),
        400,
        lr=1e-2,
    )
    points = flow.integrate(model, torch.randn(4000, 1), 20, "midpoint")
    assert points.mean().item() == pytest.approx(
        1, abs=0.1
    ) and points.std().item() == pytest.approx(0.5, abs=0.08)
    assert len(history) == 400 and not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("steps", [1, 2, 5, 40, 300])
@pytest.mark.parametrize("warmup", [0, 1, 200])
def test_the_peak_of_the_learning_rate_is_reached(monkeypatch, steps, warmup):
    rates, step = [], torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam,
        "step",
        lambda self: rates.append(self.param_groups[0]["lr"]) or step(self),
    )
    model = torch.nn.Linear(1, 1)
    fit(model, lambda m: (m(torch.ones(4, 1)) ** 2).mean(), steps, 0.01, warmup=warmup)
    assert max(rates) == pytest.approx(0.01)
    assert steps < 300 or rates[-1] < 3e-4, "and comes down again"


def test_the_averaged_model_keeps_its_buffers():
    model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4))
    averaged, _, _ = fit(model, lambda m: (m(3 + torch.randn(32, 2)) ** 2).mean(), 50)
    torch.testing.assert_close(averaged[1].running_mean, model[1].running_mean)
    assert averaged[1].running_mean.abs().max() > 0.1 and not averaged.training


def test_training_stops_at_a_loss_that_is_not_finite():
    model = torch.nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="at step 0"):
        fit(model, lambda m: m(torch.ones(1)).sum() * math.nan, 3)
    for steps in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match=f"at least 1, got {steps}"):
            fit(model, lambda m: m(torch.ones(1)).sum(), steps)
    with pytest.raises(ValueError, match="warmup must be .* got -1"):
        fit(model, lambda m: m(torch.ones(1)).sum(), 3, warmup=-1)
    for average in (1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match=f"average .* got {average}"):
            fit(model, lambda m: m(torch.ones(1)).sum(), 3, average=average)
    with pytest.raises(FloatingPointError, match="weights are not finite"):
        # a finite loss whose gradient is not: the root of 0 · w²
        fit(model, lambda m: (0 * m(torch.ones(1)) ** 2).sqrt().sum(), 1)


def test_an_ensemble_trains_each_network_as_if_alone():
    nets = [flow.VelocityMLP(2, width=16, depth=2) for _ in range(3)]
    x, t, y = torch.randn(3 * 64, 2), torch.rand(3 * 64), torch.randn(3 * 64, 2)

    def train(model, rows):
        return fit(model, lambda m: ((m(x[rows], t[rows]) - y[rows]) ** 2).mean(), 30)

    together, _, _ = fit(
        Ensemble(nets), lambda m: 3 * ((m(x, t) - y) ** 2).mean(), steps=30
    )
    answers, apart = together(x, t), together.split()
    for i, net in enumerate(nets):
        rows = slice(64 * i, 64 * (i + 1))
        for one in (train(net, rows)[0], apart[i]):
            torch.testing.assert_close(
                one(x[rows], t[rows]), answers[rows], atol=1e-4, rtol=1e-3
            )
    assert (apart[0](x, t) - apart[1](x, t)).abs().max() > 1e-2, "three of them"
    assert not apart[0].training and not next(apart[0].parameters()).requires_grad
    # it is a velocity like any other
    torch.testing.assert_close(
        flow.log_likelihood(together, x, 3)[:64],
        flow.log_likelihood(apart[0], x[:64], 3),
    )
    with pytest.raises(ValueError, match="3 networks cannot share 64 rows"):
        together(x[:64], t[:64])
    for bad in ([], [flow.VelocityMLP(2), flow.VelocityMLP(2, width=16)]):
        with pytest.raises(ValueError, match="networks of one shape"):
            Ensemble(bad)


def test_the_loss_knows_its_path_its_pairs_and_its_generator():
    z, t = torch.randn(32, 2), torch.rand(32) * 0.9
    for coupling in ("independent", "optimal_transport"):
        dice = lambda: torch.Generator().manual_seed(3)  # noqa: E731
        value = flow.cfm_loss(spin, z, flow.cosine, coupling, t, dice())
        eps = torch.randn(32, 2, generator=dice())
        if coupling == "optimal_transport":
            eps = eps[flow.optimal_coupling(eps, z)]
        x, v = flow.cosine.sample(z, eps, t)
        torch.testing.assert_close(value, ((spin(x, t) - v) ** 2).mean())
    a, b = (flow.cfm_loss(spin, z, flow.linear, generator=dice()) for _ in range(2))
    assert torch.equal(a, b)


def test_times_crowd_towards_one_and_straightness_is_the_integral():
    wanted = torch.tensor([0, 7, 12, 15, 16]).double() / 16
    torch.testing.assert_close(flow.towards_one(4), wanted)
    line = (torch.linspace(0, 1, 1001).double() ** 2)[:, None, None].expand(-1, 3, 2)
    # two coordinates, each ∫ (1 − 2t)² dt = 1/3
    assert flow.straightness(line).item() == pytest.approx(2 / 3, rel=1e-3)


def test_networks_listen_to_time_and_label():
    net, x = flow.CleanImageMLP(2, classes=3, width=8), torch.randn(1, 2)
    t, label = torch.tensor([0.3]), torch.tensor([1])
    assert not torch.equal(net(x, t, label), net(x, t, torch.tensor([3])))
    net.answer = "velocity"  # whose time is not in 1 / (1 − t)
    assert not torch.equal(net(x, t, label), net(x, t + 0.1, label))
    plain = flow.VelocityMLP(2)
    assert not torch.equal(plain(x, t), plain(x, t + 0.1))


def test_variance_preserving_begins_where_its_diffusion_ends():
    alpha = flow.variance_preserving.alpha(torch.zeros(1)).item()
    assert alpha == pytest.approx(math.exp(-5.025), rel=1e-5)  # −½ (0.1 + 9.95)


@pytest.mark.parametrize("units", experiments.UNITS)
def test_every_practice_of_the_same_units_has_the_same_loss(units):
    # ∫ weight · speed² · e(r) ds over the uniform s that draws r, for e(r) = r² / (1 + r²)²
    path, clock = experiments.UNITS[units]
    s = (torch.arange(200_000).double() + 0.5) / 200_000
    for practice in ("as linear", "as cosine"):
        r = experiments.PRACTICE[practice](s)
        t = clock(r)
        torch.testing.assert_close(path.beta(t) / path.alpha(t), r)
        a, b, da, db = path.coefficients(t, t)
        weight = experiments.WEIGHTS.get((units, practice), torch.ones_like)(r)
        loss = weight * (da - db * a / b) ** 2 * (r / (1 + r**2)) ** 2
        factor = {"linear": 1, "cosine": math.pi / 2}[units]  # of ∫ dr / (1 + r²)²
        assert loss.mean().item() == pytest.approx(factor * math.pi / 4, rel=1e-4)


def test_any_cleaner_has_the_same_flow_and_the_same_loss_on_every_path():
    cleaner = lambda y, r: torch.tanh(y / (1 + r**2)) + 1  # noqa: E731
    begin, ends = torch.randn(20, 2).double(), []
    for path, clock in experiments.UNITS.values():

        def field(x, t, path=path):
            a, b, _, _ = path.coefficients(t, x)
            return path.velocity(x, cleaner(x / a.clamp(min=1e-9), b / a), t)

        end = clock(torch.tensor(0.05).double()).item()
        x = flow.integrate(field, begin, np.linspace(0, end, 400), "rk4")
        ends.append(x / path.alpha(torch.tensor(end).double()))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-4)
    # and at the same noise level an error e of the cleaner costs π/2 (1 + r²) / (1 + r)² times as much per unit of t,
    # which is (19) by dt = dr / (1 + r)² and (2/π) dr / (1 + r²)
    r = torch.logspace(-2, 2, 9).double()
    cost = []
    for path, clock in experiments.UNITS.values():
        a, b, da, db = path.coefficients(clock(r), r)
        cost.append((da - db * a / b) ** 2)
    measure = (math.pi / 2) * (1 + r**2) / (1 + r) ** 2  # dt linear over dt cosine
    torch.testing.assert_close(
        cost[1] / cost[0] / measure, torch.full_like(r, math.pi / 2)
    )


def test_squares_have_numbers_and_collapse_has_an_eighth():
    x = torch.tensor([[-1.5, -1.5], [-1.5, 0.5], [-0.5, -0.5], [0.5, 0.5], [1.5, 1.5]])
    assert flow.square_of(x).tolist() == [0, 1, 2, 5, 7]
    off = torch.tensor([[5.0, 0.5], [-1.5, -0.5], [-1e-8, 0.5]])
    assert flow.square_of(off).tolist() == [8, 8, 8]
    assert flow.on_checkerboard(torch.tensor([[-1e-8, -0.5]])).item()
    assert flow.even_share(x[:1].expand(80, 2)) == pytest.approx(1 / 8)
    assert flow.even_share(flow.checkerboard(100_000)) > 0.99


def test_both_sides_see_a_wrong_field():
    density = lambda x, t: flow.checkerboard_density(x, t, flow.linear)  # noqa: E731
    right = lambda x, t: flow.checkerboard_velocity(  # noqa: E731
        x, torch.full((len(x),), t).double(), flow.linear
    )
    for factor, least, most in ((1, 0, 0.01), (1.1, 0.01, 1)):
        sides = experiments.both_sides(
            density, lambda x, t, f=factor: f * right(x, t), 0.5, 0.01
        )
        assert least <= (sides[0] - sides[1]).abs().max() < most


def test_a_noisy_solution_that_blows_up_is_said():
    with pytest.raises(FloatingPointError, match="more steps"):
        flow.integrate_noisily(
            lambda x, t: 1e30 * x**3, flow.linear, torch.ones(2, 2), 5, 300.0
        )


def test_frechet_distance_of_gaussians_and_of_one_feature():
    x = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
    assert judging.frechet_distance(x, x + 3) == pytest.approx(18)
    assert judging.frechet_distance(x[:, :1], 2 * x[:, :1] + 3) == pytest.approx(
        9 + 2 / 3  # means 3 apart, variances 2/3 and 8/3
    )
    with pytest.raises(ValueError, match="must be finite, got nan"):
        judging.frechet_distance(x, x * math.nan)


PAINTER, LABELS = flow.CleanImageMLP(2, classes=10, width=4), torch.tensor([3, 7])
Z, EPS, T = torch.zeros(2, 2), torch.zeros(2, 2), torch.full((2,), 0.5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: flow.linear.sample(Z, EPS, torch.tensor([0.5, 1.5])),
            r"\[0, 1\], got 1.5",
        ),
        (lambda: flow.linear.sample(Z, EPS, torch.tensor([0.5, math.nan])), "got nan"),
        (
            lambda: flow.linear.sample(Z, EPS, torch.tensor([0.5])),
            r"one time a row, got \(1,\)",
        ),
        (
            lambda: flow.linear.sample(Z, EPS, T.double()),
            "dtype torch.float32, got torch.float64",
        ),
        (lambda: flow.linear.sample(Z, EPS[:1], T), r"\(2, 2\) and \(1, 2\)"),
        (
            lambda: flow.linear.sample(Z, EPS.double(), T),
            "same dtype and device, got torch.float32",
        ),
        (
            lambda: flow.linear.sample(Z.long(), EPS.long(), T),
            "floating point tensor, got torch.int64",
        ),
        (
            lambda: flow.linear.velocity(Z, Z, torch.ones(2)),
            "no value where beta.* t = 1.0",
        ),
        (
            lambda: flow.marginal_velocity(Z, torch.ones(2), Z, flow.linear),
            "no value where beta",
        ),
        (
            lambda: flow.marginal_velocity(Z, T, torch.zeros(3, 5), flow.linear),
            r"got \(2, 2\) and \(3, 5\)",
        ),
        (
            lambda: flow.marginal_velocity(Z, T, torch.zeros(0, 2), flow.linear),
            r"not empty, got \(0, 2\)",
        ),
        (
            lambda: flow.cfm_loss(lambda x, t: x, Z, flow.linear, coupling="best"),
            "got 'best'",
        ),
        (
            lambda: flow.integrate(lambda x, t: x, Z, 3, "rk45"),
            "euler, midpoint, rk4, got 'rk45'",
        ),
        (lambda: flow.integrate(lambda x, t: x, Z, 0), "at least 1, got 0"),
        (
            lambda: flow.integrate(lambda x, t: x, Z, torch.tensor([0.0, 0.5, 0.2])),
            "only rises or only falls",
        ),
        (
            lambda: flow.integrate(lambda x, t: x, Z, torch.tensor([0.0, 1.2])),
            "got 0.0 to 1.2",
        ),
        (lambda: flow.integrate(lambda x, t: x, Z * math.inf, 3), "x0 must be finite"),
        (lambda: flow.log_likelihood(lambda x, t: x, Z, 3, "guess"), "got 'guess'"),
        (
            lambda: flow.log_likelihood(lambda x, t: x, torch.zeros(2, 3, 3), 3),
            r"got \(2, 3, 3\)",
        ),
        (lambda: flow.checkerboard(-1), "got -1"),
        (lambda: flow.checkerboard(2.0), "whole number, at least 0, got 2.0"),
        (
            lambda: flow.on_checkerboard(torch.zeros(4, 3)),
            r"\(batch, 2\), got \(4, 3\)",
        ),
        (lambda: flow.cfm_loss(spin, torch.zeros(0, 2), flow.linear), "not empty"),
        (lambda: flow.optimal_coupling(Z[:0], Z[:0]), "not empty"),
        (lambda: flow.integrate(spin, Z[:0], 3), "not empty"),
        (lambda: flow.integrate(spin, torch.tensor(1.0), 3), r"not empty, got \(\)"),
        (lambda: flow.integrate(spin, [1.0], 3), "tensor, got list"),
        (lambda: flow.log_likelihood(spin, Z[:, :0], 3), "not empty"),
        (lambda: flow.straightness(torch.zeros(1, 2, 2)), "two times at least"),
        (lambda: flow.integrate(spin, Z, [0.0, 0.5, 0.5, 1.0]), "only rises"),
        (lambda: flow.integrate(spin, Z, [0.0, math.nan, 1.0]), "only rises"),
        (
            lambda: flow.checkerboard_velocity(Z, torch.ones(2), flow.linear),
            "where beta",
        ),
        (lambda: flow.checkerboard_density(Z, 1.0, flow.linear), "got 1.0"),
        (lambda: flow.checkerboard_density(Z, T, flow.linear), "must be one time"),
        (lambda: flow.linear.sample(Z, EPS, 0.5), "must be a tensor, .* got 0.5"),
        (lambda: flow.integrate(lambda x, t: (x,), Z, 3), "got tuple"),
        (lambda: flow.integrate(spin, Z.bfloat16(), 3), "got torch.bfloat16"),
        (lambda: flow.towards_one(10, 200.0), "10 steps to the power 200.0 merge"),
        (lambda: flow.integrate(lambda x, t: x > 0, Z, 3), "got torch.bool"),
        (lambda: flow.integrate(lambda x, t: x * 1j, Z, 3), "got torch.complex64"),
        (lambda: flow.straightness(torch.zeros(3, 2, 2).long()), "got torch.int64"),
        (lambda: flow.standard_normal_log_density(torch.zeros(3)), r"got \(3,\)"),
        (
            lambda: flow.standard_normal_log_density(torch.zeros(2, 3, 4)),
            r"got \(2, 3, 4\)",
        ),
        (lambda: flow.VelocityMLP(2, depth=0), "depth must be .* got 0"),
        (lambda: flow.guided(PAINTER, LABELS.float(), 1.0), "int64 .* torch.float32"),
        (lambda: flow.guided(PAINTER, LABELS[:0], 1.0), r"not empty, got \(0,\)"),
        (lambda: flow.guided(PAINTER, LABELS[0], 1.0), r"got \(\)"),
        (lambda: flow.guided(PAINTER, LABELS, math.nan), "weight .* got nan"),
        (lambda: flow.guided(PAINTER, LABELS, 1.0)(Z[:1], T[:1]), "2 labels .* 1 poi"),
        (lambda: judging.variety(torch.zeros(3, 4), torch.tensor([0, 0, 1])), "2, 1"),
        (
            lambda: judging.gaussian_samples(
                torch.zeros(3, 4), torch.tensor([0, 0, 1]), torch.tensor([1])
            ),
            "label 1 has 1",
        ),
        (
            lambda: flow.GaussianPath(  # from 0 to 1, by way of −0.2
                alpha=lambda t: t - 2 * t * (1 - t),
                beta=flow.linear.beta,
                d_alpha=lambda t: 4 * t - 1,
                d_beta=flow.linear.d_beta,
            ),
            "alpha must be positive",
        ),
        (
            lambda: flow.checkerboard_density(torch.zeros(2, 3), 0.5, flow.linear),
            r"got \(2, 3\)",
        ),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_short_trainings_leave_each_network_its_own():
    data = flow.checkerboard(1_000)
    nets = lambda: [flow.VelocityMLP(2, width=8, depth=1) for _ in range(2)]  # noqa: E731
    begin = torch.randn(50, 2)
    ends = begin + 1, begin - 1  # two flows: so do their networks move at 1 and at −1
    for net, wanted in zip(
        experiments.reflow(nets(), begin, ends, 400, seed=0).split(),
        (1, -1),
        strict=True,
    ):
        there = flow.integrate(net, begin, 5)
        assert (there - begin).mean().item() == pytest.approx(wanted, abs=0.1)
    settings = [(0, "as linear", "linear"), (0, "late", "cosine")]
    in_units = experiments.train_in_units(nets(), settings, data, 3)
    straight = experiments.train_straight(nets(), (False, True), data, 3, seed=0)
    for ensemble in (in_units, straight):
        assert len(ensemble) == 2 and ensemble(data[:8], torch.rand(8)).isfinite().all()


def test_effects_of_units_and_practice_are_told_apart():
    loss = {"linear": 1.0, "cosine": 0.7}
    practised = {"as linear": 0.05, "as cosine": 0.0, "late": -9.0}
    row = [
        loss[units] + practised[practice] for practice, units in experiments.SETTINGS
    ]
    by_units, by_practice = experiments.effects(torch.tensor([row, row]).double())
    assert by_units.tolist() == pytest.approx([0.3, 0.3])
    assert by_practice.tolist() == pytest.approx([0.05, 0.05])
