"""Flow matching against closed forms, finite differences and brute force."""

import itertools
import math

import pytest
import torch

import mlbook
from mlbook.common.training import fit
from mlbook.flow_matching import flow

PATHS = {
    "linear": flow.linear,
    "cosine": flow.cosine,
    "variance_preserving": flow.variance_preserving,
}


@pytest.fixture(autouse=True)
def seeded():
    mlbook.seed(0)


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
    spin = lambda x, t: torch.stack([-x[:, 1], x[:, 0]], 1)  # noqa: E731
    path = flow.integrate(spin, x0, 50, "rk4", trajectory=True)
    assert path.shape == (51, 5, 2) and torch.equal(path[0], x0)
    home = flow.integrate(spin, path[-1], torch.linspace(1, 0, 51), "rk4")
    torch.testing.assert_close(home, x0, rtol=0, atol=1e-7)


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


def test_real_nvp_inverts_itself_and_knows_its_jacobian():
    model = flow.RealNVP(layers=3, width=8).double()
    z = torch.randn(4, 2, dtype=torch.float64)
    x = model(z)
    jacobian = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda z: model(z[None])[0], row)
            for row in z
        ]
    )
    expected = (
        flow.standard_normal_log_density(z) - torch.linalg.slogdet(jacobian).logabsdet
    )
    torch.testing.assert_close(model.log_prob(x), expected)


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


def test_training_stops_at_a_loss_that_is_not_finite():
    model = torch.nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="at step 0"):
        fit(model, lambda m: m(torch.ones(1)).sum() * math.nan, 3)
    with pytest.raises(ValueError, match="got 0"):
        fit(model, lambda m: m(torch.ones(1)).sum(), 0)


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
            "torch.float32 and torch.float64",
        ),
        (
            lambda: flow.linear.sample(Z.long(), EPS.long(), T),
            "floating point, got torch.int64",
        ),
        (lambda: flow.linear.sample(Z / 0, EPS, T), "z must be finite, got nan"),
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
            r"and \(0, 2\)",
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
        (lambda: flow.checkerboard_density(Z, 1.0, flow.linear), "got 1.0"),
        (
            lambda: flow.checkerboard_density(torch.zeros(2, 3), 0.5, flow.linear),
            r"got \(2, 3\)",
        ),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
