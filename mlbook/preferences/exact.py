"""What preference optimisation aims at, computed exactly: every sum runs over all responses.

A policy is a tensor of log-probabilities (..., responses): leading dimensions are prompts, the last one the responses to
each. Log-probabilities, since responses are products of many small numbers.
"""

import math

import torch
from torch import Tensor


def optimal_policy(ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    """π*(y|x) = π_ref(y|x) exp(r(x, y)/β) / Z(x), the policy that maximises `objective` (Rafailov et al. 2023, equation 4).

    Args:
        ref: log-probabilities of the reference (..., responses); −inf where it never answers so.
        reward: r(x, y), of the same shape.
        beta: the price of a nat of divergence, in units of reward; positive.
    Returns:
        its log-probabilities, of the same shape.
    Raises:
        ValueError: shapes differ, `ref` is not normalised, a reward is not finite or too large for its type once it is divided
            by `beta`, or `beta` is not positive.
    """
    return _tilted(ref, reward, beta).log_softmax(-1)


def log_partition(ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    """log Z(x) = log Σ_y π_ref(y|x) exp(r(x, y)/β): (...); β log Z is what the best policy achieves.

    Raises:
        ValueError: as `optimal_policy`.
    """
    return _tilted(ref, reward, beta).logsumexp(-1)


def implied_reward(policy: Tensor, ref: Tensor, beta: float) -> Tensor:
    """β log π(y|x)/π_ref(y|x): the reward, up to a term of the prompt alone, for which `policy` would be optimal; NaN for a
    response that neither ever gives, since any reward would do.

    Raises:
        ValueError: shapes differ, a policy is not normalised, or `beta` is not positive.
    """
    checked(policy, beta)
    return beta * (policy - checked(ref, beta, policy, finite=False))


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p‖q) = Σ p log p/q in nats: (...); infinite where p has mass that q has not.

    Raises:
        ValueError: shapes differ, or one is not normalised.
    """
    p, q = checked(p, 1.0), checked(q, 1.0, p, finite=False)
    never = p.isneginf()  # left out before the difference: its gradient would be NaN
    return (p.exp() * (p.masked_fill(never, 0.0) - q.masked_fill(never, 0.0))).sum(-1)


def objective(policy: Tensor, ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    """E_{y∼π} r(x, y) − β KL(π‖π_ref): (...), in units of reward (Rafailov et al. 2023, equation 3).

    Raises:
        ValueError: as `optimal_policy`.
    """
    checked(ref, beta, reward)
    return (policy.exp() * reward).sum(-1) - beta * kl(policy, ref)


def regularised(ref: Tensor, reward: Tensor, beta: float, penalty: str) -> Tensor:
    """The policy that maximises E_π r − β D(π, π_ref) for another D, as log-probabilities.

    Every one is π = π_ref g((r − λ)/β), where g inverts the derivative of the penalty and λ(x) makes the sum one; it is found by
    bisection. With D = Σ π_ref f(π/π_ref), g = (f′)⁻¹ (Wang et al. 2023, theorem 1).

    Args:
        penalty: "kl" (reverse, the usual one: g = exp), "forward-kl" (f = −log u), "chi2" (f = ½(u − 1)²), or
            "l2" (D = ½ Σ (π − π_ref)²); the last two put no mass at all on what is bad enough.
    Raises:
        ValueError: as `optimal_policy`; or the penalty is unknown.
    """
    prob = checked(ref, beta, reward).exp()
    shares = {
        "kl": lambda s: prob * s.clamp(max=700).exp(),
        "forward-kl": lambda s: torch.where(
            s < 0, prob / -s, torch.where(prob > 0, torch.inf, 0.0)
        ),
        "chi2": lambda s: prob * (1 + s).clamp(min=0),
        "l2": lambda s: (prob + s).clamp(min=0),
    }
    if penalty not in shares:
        raise ValueError(f"penalty is {penalty!r}, not one of {', '.join(shares)}")
    score = reward / beta
    low = score.amin(-1, keepdim=True) - 2  # the sum is at least one there,
    high = score.amax(-1, keepdim=True) + 2  # and at most one here
    for _ in range(100):
        middle = (low + high) / 2
        over = shares[penalty](score - middle).sum(-1, keepdim=True) > 1
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    policy = shares[penalty](score - high)
    total = policy.sum(-1, keepdim=True)
    if not (total - 1).abs().max() < 1e-3:
        raise ValueError(f"the {penalty} policy sums to {total.min()}: use float64")
    return (policy / total).log()


def soft_value_iteration(
    reward: Tensor,
    ref: Tensor,
    transitions: Tensor,
    beta: float,
    discount: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Soft values of a token-level decision process, and its optimal policy (Haarnoja et al. 2017, theorem 1; Rafailov et al.
    2024, section 4).

        Q(s, a) = r(s, a) + β log π_ref(a|s) + γ Σ_s′ P(s′|s, a) V(s′),    V(s) = β log Σ_a exp Q(s, a)/β

    Args:
        reward: r(s, a), (states, actions).
        ref: log π_ref(a|s), of the same shape; −inf where an action is not there.
        transitions: P(s′|s, a), (states, actions, states); what a row lacks to one is the chance that all ends, with value 0.
        beta: as in `optimal_policy`.
        discount: γ, in (0, 1].
    Returns:
        Q (states, actions), V (states,), and log π*(a|s) = (Q − V)/β.
    Raises:
        ValueError: shapes, an unnormalised `ref`, rows that are no probabilities, a `discount` outside (0, 1].
        RuntimeError: values do not settle: without a discount, nothing forces an end. (All is computed in float64.)
    """
    dtype = checked(ref, beta, reward).dtype
    # narrow types settle, on something else
    ref, reward, transitions = ref.double(), reward.double(), transitions.double()
    states, actions = ref.shape
    if transitions.shape != (states, actions, states):
        raise ValueError(
            f"transitions must be {(states, actions, states)}, got {tuple(transitions.shape)}"
        )
    if (transitions < 0).any() or (transitions.sum(-1) > 1 + 1e-6).any():
        raise ValueError("a row of transitions is negative, or sums to more than one")
    if not 0 < discount <= 1:
        raise ValueError(f"discount must lie in (0, 1], got {discount}")
    V = torch.zeros_like(ref[:, 0])
    for _ in range(100_000):
        Q = reward + beta * ref + discount * transitions @ V
        new = beta * (Q / beta).logsumexp(-1)
        if torch.equal(new, V) or (new - V).abs().max() < 1e-14 * new.abs().max():
            return tuple(x.to(dtype) for x in (Q, new, (Q - new[:, None]) / beta))
        V = new
    raise RuntimeError(
        "values do not settle in 100,000 sweeps: with discount 1 every path must end, and with one close to 1 it takes long"
    )


def _tilted(ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    checked(ref, beta, reward)
    tilt = reward / beta
    if not tilt.isfinite().all():
        raise ValueError(f"a reward over beta = {beta} is too large for {tilt.dtype}")
    return ref + tilt


def check_beta(beta: float) -> float:
    """`beta`, if it is positive and finite; else a ValueError."""
    if not (beta > 0 and math.isfinite(beta)):
        raise ValueError(f"beta must be positive and finite, got {beta}")
    return beta


def checked(
    ref: Tensor, beta: float = 1.0, like: Tensor | None = None, finite: bool = True
) -> Tensor:
    """`ref`, if it holds log-probabilities that sum to one, `beta` is a price, and `like` of the same shape (and finite).

    Raises:
        ValueError: naming what is wrong.
    """
    check_beta(beta)
    if not ref.is_floating_point():
        raise ValueError(f"log-probabilities are floating-point, got {ref.dtype}")
    off = (ref.logsumexp(-1).exp() - 1).abs().max() if ref.numel() else math.nan
    if not off < 1e-3:
        raise ValueError(
            f"log-probabilities must sum to one over the last dimension; they miss it by {off}"
        )
    if like is not None and like.shape != ref.shape:
        raise ValueError(f"shapes differ: {tuple(like.shape)} and {tuple(ref.shape)}")
    if like is not None and finite and not like.isfinite().all():
        raise ValueError("a reward is not finite")
    return ref
