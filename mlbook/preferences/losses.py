"""Losses of preference optimisation, on the log-probabilities of whole responses."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mlbook.preferences.exact import check_beta


def sequence_logps(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """log π(y|x) of each row: the sum over its completion of the log-probability of every token, given those before.

    Args:
        logits: (batch, length, vocabulary), what a causal model answers to `labels`: position t predicts t + 1.
        labels: (batch, length) tokens of prompt, completion and padding; whatever stands outside the mask is not read.
        mask: (batch, length), true where a token belongs to the completion.
    Returns:
        (batch,), in nats; in float32 where the logits are narrower.
    Raises:
        ValueError: shapes do not fit, a completion is empty (nothing would be learnt from the row) or begins at the first
            token, which nothing predicts (its prompt was cut away; a prompt that was cut away and filled up with padding on
            the left cannot be told from one), one of its tokens is not in the vocabulary, or there is no row.
    """
    if logits.ndim != 3 or not labels.shape == mask.shape == logits.shape[:2]:
        raise ValueError(
            "logits are (batch, length, vocabulary), labels and mask (batch, length); got "
            f"{tuple(logits.shape)}, {tuple(labels.shape)} and {tuple(mask.shape)}"
        )
    if labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise ValueError(f"labels are numbers of tokens, got {labels.dtype}")
    if not len(labels):
        raise ValueError("there is no row")
    mask = mask.bool()
    if not mask.any(1).all():
        raise ValueError(f"row {_first(~mask.any(1))} has an empty completion")
    if mask[:, 0].any():
        raise ValueError(
            f"the completion of row {_first(mask[:, 0])} begins at the first token, which no token "
            "predicts: keep at least one token of the prompt"
        )
    kept = labels[mask]
    if kept.min() < 0 or kept.max() >= logits.shape[2]:
        raise ValueError(
            f"a completion has tokens from {kept.min()} to {kept.max()}; the vocabulary has {logits.shape[2]}"
        )
    logits = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
    # whatever stands at padding, NaN too, has no part in the gradient
    logits = logits.masked_fill(~mask[:, 1:, None], 0.0)
    tokens = labels[:, 1:].where(mask[:, 1:], 0)
    each = logits.gather(2, tokens[:, :, None])[:, :, 0] - logits.logsumexp(2)
    return torch.where(mask[:, 1:], each, 0.0).sum(1)


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """−log σ(β log π(y_w)/π_ref(y_w) − β log π(y_l)/π_ref(y_l)), for each pair (Rafailov et al. 2023, equation 7).

    Args:
        policy_chosen_logps, ...: log-probabilities of whole responses, (batch,) each; gradients flow to all four: detach the reference's.
        beta: as in `exact.optimal_policy`.
        label_smoothing: the chance ε in [0, ½) that a label is the wrong way round; −(1 − ε) log σ(m) − ε log σ(−m)
            (Mitchell 2023).
    Returns:
        losses, implied rewards of the chosen, implied rewards of the rejected (these without gradient): (batch,) each.
    Raises:
        ValueError: shapes differ, a log-probability is not finite, `beta` or `label_smoothing` lies outside its range.
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must lie in [0, 1/2), got {label_smoothing}")
    chosen, rejected = _rewards(
        policy_chosen_logps,
        policy_rejected_logps,
        ref_chosen_logps,
        ref_rejected_logps,
        beta,
    )
    margin = chosen - rejected
    losses = -F.logsigmoid(margin)
    if label_smoothing:
        losses = losses + label_smoothing * margin  # −log σ(−m) = m − log σ(m)
    return losses, chosen.detach(), rejected.detach()


def ipo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(log π(y_w)/π_ref(y_w) − log π(y_l)/π_ref(y_l) − 1/2β)², for each pair (Azar et al. 2023, equation 17, τ = β).

    TRL divides each log-probability by the number of its tokens first; given such means, this does the same.

    Returns, Raises: as `dpo_loss`.
    """
    chosen, rejected = _rewards(
        policy_chosen_logps,
        policy_rejected_logps,
        ref_chosen_logps,
        ref_rejected_logps,
        beta,
    )
    losses = ((chosen - rejected) / beta - 1 / (2 * beta)) ** 2
    return losses, chosen.detach(), rejected.detach()


def pairwise_cringe_loss(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor,
    margin: float = 0.0,
    temperature: float = 1.0,
    weight: float = 1.0,
    top: int = 4,
    generator: torch.Generator | None = None,
) -> Tensor:
    """σ((b − M)/τ) · [L_likelihood(y_w) + α L_contrast(y_l)] with M = log π(y_w) − log π(y_l), for each pair (Xu et al. 2023).

    Each token of the rejected response stands against one drawn from the likeliest `top` others: −log of the share that
    the drawn one has of the two. The gate σ closes when the chosen response is likelier than the rejected by more than b;
    gradients flow through it. There is no reference.

    Args:
        logits, labels, mask: as in `sequence_logps`; the first half of the rows are chosen, the second half rejected.
        margin, temperature, weight: b, τ > 0 and α of the paper.
    Returns:
        (batch / 2,)
    Raises:
        ValueError: as `sequence_logps`; rows that are no pairs; a `temperature` that is not positive; a `top` that leaves
            no other token.
    """
    logps = sequence_logps(logits, labels, mask)
    if len(logps) % 2:
        raise ValueError(f"{len(logps)} rows are no pairs")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if not 1 <= top < logits.shape[2]:
        raise ValueError(f"top must lie in 1 to {logits.shape[2] - 1}, got {top}")
    half = len(logps) // 2
    chosen, rejected = logps[:half], logps[half:]
    mask = mask.bool()
    counts = mask[:, 1:].sum(1)
    kept = mask[half:, 1:]
    scores = logits[half:, :-1]
    tokens = labels[half:, 1:].where(kept, 0)[:, :, None]
    negative = scores.gather(2, tokens)
    others = scores.scatter(2, tokens, -torch.inf).topk(top, dim=2).values
    drawn = torch.multinomial(
        others.detach().softmax(2).flatten(0, 1), 1, generator=generator
    )
    positive = others.gather(2, drawn.view(*others.shape[:2], 1))
    contrast = torch.where(kept, -F.logsigmoid(positive - negative)[:, :, 0], 0.0)
    gate = torch.sigmoid((margin - (chosen - rejected)) / temperature)
    likelihood = -chosen / counts[:half]
    return gate * (likelihood + weight * contrast.sum(1) / counts[half:])


def _rewards(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
    all_four = (policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    check_beta(beta)
    if len({logps.shape for logps in all_four}) != 1:
        raise ValueError(f"shapes differ: {[tuple(t.shape) for t in all_four]}")
    for name, logps in zip(
        ("policy's chosen", "policy's rejected", "reference's chosen", "reference's"),
        all_four,
        strict=True,
    ):
        if not logps.isfinite().all():
            raise ValueError(f"one of the {name} log-probabilities is not finite")
    return tuple(
        beta * (policy - ref)
        for policy, ref in (
            (policy_chosen, ref_chosen),
            (policy_rejected, ref_rejected),
        )
    )


def _first(rows: Tensor) -> int:
    return int(rows.nonzero()[0])
