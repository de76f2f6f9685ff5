"""Preferences of the Bradley–Terry model: drawn, fitted, and how exact a fit can be."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mlbook.common.checks import check_count
from mlbook.preferences import exact


def draw(
    sampler: Tensor,
    reward: Tensor,
    n: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`n` pairs of responses, drawn independently from `sampler`, the preferred one first: p(a ≻ b) = σ(r(a) − r(b)).

    Args:
        sampler: log-probabilities (responses,), or (prompts, responses): then prompts are drawn evenly.
        reward: of the same shape.
    Returns:
        (n, 3) integers: prompt (0 where there is one), chosen, rejected.
    Raises:
        ValueError: shapes differ, `sampler` is not normalised, a reward is not finite, or `n` is no whole number of at least 1.
    """
    n = check_count("n", n)
    exact.checked(sampler, like=reward)
    sampler, reward = torch.atleast_2d(sampler), torch.atleast_2d(reward)
    prompts = torch.randint(len(sampler), (n,), generator=generator)
    two = answers(sampler, prompts, 2, generator)
    two = preferred_first(two, reward[prompts[:, None], two], generator)
    return torch.column_stack((prompts, two))


def answers(
    sampler: Tensor,
    prompts: Tensor,
    each: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`each` responses to every one of `prompts`, drawn independently from `sampler` (prompts, responses): (n, each)."""
    drawn = torch.empty(len(prompts), each, dtype=torch.long)
    for prompt in prompts.unique():
        mine = prompts == prompt
        chance, size = sampler[prompt].exp(), each * int(mine.sum())
        some = torch.multinomial(chance, size, replacement=True, generator=generator)
        drawn[mine] = some.view(-1, each)
    return drawn


def preferred_first(
    two: Tensor, reward: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Pairs (n, 2) in the order of a preference that is drawn for each, by their rewards (n, 2)."""
    chance = torch.sigmoid(reward[:, 0] - reward[:, 1])
    swap = torch.rand(len(two), generator=generator) > chance
    return torch.where(swap[:, None], two.flip(1), two)


def expected_loss(implied: Tensor, sampler: Tensor, wins: Tensor) -> Tensor:
    """The loss of infinitely many pairs: −2 Σ_ab μ(a) μ(b) p(a ≻ b) log σ(implied(a) − implied(b)).

    Args:
        implied: the implied rewards of a policy, (responses,): β log π/π_ref for DPO.
        sampler: log μ, where both responses of a pair come from, (responses,).
        wins: p(a ≻ b), (responses, responses), such as `bradley_terry(reward)`.
    Raises:
        ValueError: shapes do not fit.
    """
    if implied.ndim != 1 or not wins.shape == 2 * implied.shape == 2 * sampler.shape:
        raise ValueError(
            f"one prompt's responses: got {tuple(implied.shape)}, {tuple(sampler.shape)}, {tuple(wins.shape)}"
        )
    log_sigmoid = F.logsigmoid(implied[:, None] - implied[None])
    met = sampler.exp()[:, None] * sampler.exp()[None]
    return -2 * (met * wins * log_sigmoid).sum()


def bradley_terry(reward: Tensor) -> Tensor:
    """p(a ≻ b) = σ(r(a) − r(b)), from r (responses,): (responses, responses) (Bradley and Terry 1952).

    Raises:
        ValueError: `reward` has more dimensions: a prompt at a time.
    """
    if reward.ndim != 1:
        raise ValueError(f"reward must be (responses,), got {tuple(reward.shape)}")
    return torch.sigmoid(reward[:, None] - reward[None])


def fit(wins: Tensor, ref: Tensor, beta: float) -> Tensor:
    """The policy that minimises the DPO loss over counted pairs, one free number a response: by Newton's method.

    Args:
        wins: (responses, responses), how often the row was preferred to the column.
        ref: log-probabilities of the reference, (responses,).
    Returns:
        log-probabilities (responses,).
    Raises:
        ValueError: shapes do not fit, counts are negative or not finite, `beta` is not positive, or a group of responses never
            lost to the others: the best policy then gives the rest no probability at all, and no finite numbers do that
            (Ford 1957).
    """
    exact.checked(ref, beta)
    if not (wins.isfinite() & (wins >= 0)).all():
        raise ValueError("counts of wins are finite and not negative")
    if wins.shape != (len(ref), len(ref)):
        raise ValueError(f"wins must be {2 * (len(ref),)}, got {tuple(wins.shape)}")
    reach = (wins > 0).double() + torch.eye(len(ref), dtype=torch.float64)
    for _ in range(math.ceil(math.log2(max(2, len(ref))))):
        reach = ((reach @ reach) > 0).double()
    if not reach.all():
        raise ValueError(
            "some responses never lost to any of the others: the loss has no minimum"
        )
    wins, n = wins.double(), wins.sum().double()
    reward = torch.zeros(len(ref), dtype=torch.float64)

    def loss(r: Tensor) -> Tensor:
        return -(wins * F.logsigmoid(r[:, None] - r[None])).sum() / n

    for _ in range(200):
        p = torch.sigmoid(reward[None] - reward[:, None])  # of the other way round
        gradient = ((wins * p).sum(0) - (wins * p).sum(1)) / n
        if gradient.abs().max() < 1e-13:
            break
        step = _solve(information(wins + wins.T, reward) / n, gradient)
        size = 1.0
        while loss(reward - size * step) > loss(reward) and size > 1e-8:
            size /= 2
        reward = reward - size * step
    return (ref + reward / beta).log_softmax(-1)


def information(met: Tensor, reward: Tensor) -> Tensor:
    """Fisher's information about the rewards in pairs that met so often: (responses, responses).

    Args:
        met: (responses, responses), symmetric: how often each pair met, or with what probability.
    """
    p = torch.sigmoid(reward[:, None] - reward[None])
    weights = met * p * (1 - p)
    weights = weights - torch.diag(weights.diagonal())
    return torch.diag(weights.sum(1)) - weights


def regret_ahead(sampler: Tensor, ref: Tensor, reward: Tensor, beta: float) -> float:
    """n · E[objective(π*) − objective(π̂)] as n → ∞, for the π̂ that `fit` finds in n pairs drawn from `sampler`.

    The regret is β KL(π̂‖π*), to second order the variance under π* of the error in the rewards, over 2β; and that error has
    the inverse of Fisher's information as its covariance.

    Raises:
        ValueError: as `exact.optimal_policy`; or `sampler` never gives some response, whose reward nothing then tells.
    """
    exact.checked(ref, beta, reward)
    exact.checked(sampler, like=ref, finite=False)
    if not sampler.isfinite().all():
        raise ValueError("the sampler never gives some response")
    chance = sampler.double().exp()
    met = chance[:, None] * chance[None]
    best = (ref.double() + reward.double() / beta).softmax(-1)
    curvature = torch.diag(best) - best[:, None] * best[None]
    fisher = information(met + met.T, reward.double())
    return float(_solve(fisher, curvature).trace() / (2 * beta))


def _solve(fisher: Tensor, right: Tensor) -> Tensor:
    """fisher⁻¹ right, where a constant added to all rewards changes nothing."""
    return torch.linalg.solve(fisher + fisher.diagonal().mean(), right)
