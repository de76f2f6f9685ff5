"""How the policies of `words` are trained: on pairs drawn once, on pairs of their own, on pairs that a reward model made."""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlbook.common.checks import check_count
from mlbook.preferences import exact, losses, pairs, words

BATCH = 64


def offline(
    reference: nn.Module,
    data: Tensor,
    beta: float,
    lr: float,
    epochs: int,
    seed: int = 0,
    kind: str = "dpo",
    each: Callable[[int, nn.Module, Tensor], None] | None = None,
    **options,
) -> nn.Module:
    """A policy trained on pairs that are there from the start.

    Args:
        reference: where it begins; left as it is.
        data: (n, 3), as `pairs.draw` gives them for the twelve prompts.
        beta, lr, epochs: of the loss, of Adam (at its peak; see `_descend`), and how often each pair is seen.
        kind: "dpo", "ipo", "cringe", or "likelihood", which raises the chosen and does not look at the rejected; the last two
            have no use for `beta`.
        each: called after every step with its number, the policy, and the losses of its batch.
        options: further arguments of the loss; and `bonus`, (22,621,): what labels are known to add to each response
            beyond the reward that is wanted. It explains them in the policy's stead (Park et al. 2024, for length); and
            `chances`, for "dpo": the true rewards (12, 22,621), from which each pair's chance to have the other label is
            taken instead of the label: the mean of the loss over endless labels of the same pairs.
    Raises:
        ValueError: the kind is unknown or has no use for an option, `data` are no pairs of these words, or `epochs` is no whole
            number of at least 1.
    """
    epochs = check_count("epochs", epochs)
    if data.ndim != 2 or data.shape[1] != 3 or not len(data):
        raise ValueError(f"data must be (n, 3), got {tuple(data.shape)}")
    if data.min() < 0 or data[:, 0].max() >= words.N:
        raise ValueError(f"there are {words.N} prompts, got {int(data[:, 0].max())}")
    generator = torch.Generator().manual_seed(seed)
    loss = _loss(reference, beta, kind, generator, options)
    batches = _batches(data, epochs, generator)
    steps = epochs * -(-len(data) // BATCH)
    return _descend(copy.deepcopy(reference), batches, loss, lr, steps, each)


def online(
    reference: nn.Module,
    reward: Tensor,
    labels: int,
    rounds: int,
    beta: float,
    lr: float,
    epochs: int,
    seed: int = 0,
    kind: str = "dpo",
    own: bool = True,
    **options,
) -> nn.Module:
    """A policy trained on pairs of its own: about `labels` of them, asked for in equal `rounds` (Guo et al. 2024).

    Args:
        own: False, for comparison: each round has new pairs of the reference.
        reward: (12, 22,621), the true one, from which preferences are drawn.
        epochs: how often the pairs of a round are seen before the next one.
        kind, options: as in `offline`.
    """
    labels, rounds = check_count("labels", labels), check_count("rounds", rounds)
    generator = torch.Generator().manual_seed(seed)
    policy = copy.deepcopy(reference)

    def batches():
        for _ in range(rounds):
            writes = words.table(policy if own else reference)
            new = pairs.draw(writes, reward, labels // rounds, generator)
            yield from _batches(new, epochs, generator)

    loss = _loss(reference, beta, kind, generator, options)
    steps = rounds * epochs * -(-(labels // rounds) // BATCH)
    return _descend(policy, batches(), loss, lr, steps)


def _batches(data, epochs, generator):
    for _ in range(epochs):
        for some in torch.randperm(len(data), generator=generator).split(BATCH):
            yield data[some]


def _loss(reference, beta, kind, generator, options):
    bonus, chances = options.pop("bonus", None), options.pop("chances", None)
    kinds = ("dpo", "ipo", "cringe", "likelihood")
    if kind not in kinds:
        raise ValueError(f"kind is {kind!r}, not one of {', '.join(kinds)}")
    if bonus is not None and kind in ("cringe", "likelihood"):
        raise ValueError(f"{kind} has no reference that a bonus could be added to")
    if chances is not None and kind != "dpo":
        raise ValueError(f"chances are for the loss of DPO, not {kind}")
    if options and kind == "likelihood":
        raise ValueError(f"likelihood has no options, got {', '.join(options)}")

    def loss(policy, batch):
        tokens, mask = _both(batch)
        logits = policy(tokens)
        if kind == "cringe":
            return losses.pairwise_cringe_loss(
                logits, tokens, mask, generator=generator, **options
            )
        if kind == "likelihood":
            half = len(batch)
            return -losses.sequence_logps(logits[:half], tokens[:half], mask[:half])
        with torch.no_grad():
            ref = losses.sequence_logps(reference(tokens), tokens, mask)
            if bonus is not None:
                ref -= bonus[batch[:, 1:].T.flatten()].to(ref) / beta
        logps = losses.sequence_logps(logits, tokens, mask)
        if chances is not None:
            margin = beta * (logps - ref).view(2, -1)
            margin = margin[0] - margin[1]
            better, worse = (chances[batch[:, 0], batch[:, i]] for i in (1, 2))
            wrong = torch.sigmoid(worse - better).to(margin)
            return wrong * margin - F.logsigmoid(margin)
        on_pairs = losses.dpo_loss if kind == "dpo" else losses.ipo_loss
        return on_pairs(*logps.chunk(2), *ref.chunk(2), beta, **options)[0]

    return loss


def _both(batch):
    prompts, chosen, rejected = batch.T
    return words.sequences(prompts.repeat(2), torch.cat((chosen, rejected)))


def _descend(model, batches, loss, lr, steps, each=None):
    """Adam; its rate rises over the first twentieth of the steps and falls to nothing at the last, both along a line."""
    model.requires_grad_(True).train()
    optimizer = torch.optim.Adam(model.parameters(), lr, betas=(0.9, 0.99))
    for step, batch in enumerate(batches):
        rate = min(1, 20 * (step + 1) / steps) * (1 - step / steps)
        optimizer.param_groups[0]["lr"] = lr * rate
        values = loss(model, batch)
        optimizer.zero_grad()
        values.mean().backward()
        optimizer.step()
        if each:
            each(step, model, values.detach())
    return model.eval().requires_grad_(False)


class Scorer(nn.Module):
    """A reward model: the reference's body, and a weighted sum of its outputs at the end of the word."""

    def __init__(self, reference: nn.Module):
        super().__init__()
        self.body = copy.deepcopy(reference).requires_grad_(True)
        self.head = nn.Linear(words.END + 1, 1, bias=False)
        nn.init.normal_(self.head.weight, std=0.01)

    def forward(self, tokens: Tensor) -> Tensor:
        """Rewards (batch,) of whole words: tokens (batch, 5)."""
        logits = self.body(F.pad(tokens, (0, 1), value=words.END))
        ends = 1 + (tokens[:, 1:] != words.END).sum(1)
        return self.head(logits[torch.arange(len(tokens)), ends])[:, 0]


@torch.no_grad()
def scores(scorer: Scorer) -> Tensor:
    """The reward model's opinion of every response to every prompt: (12, 22,621), in float64."""
    number = torch.arange(len(words.responses()[0]))
    rows = []
    for prompt in range(words.N):
        tokens, _ = words.sequences(torch.full_like(number, prompt), number)
        rows.append(torch.cat([scorer(part) for part in tokens.split(8192)]))
    return torch.stack(rows).double()


def reward_model(
    reference: nn.Module, data: Tensor, lr: float, epochs: int, seed: int = 0
) -> Scorer:
    """A `Scorer` fitted to pairs by the likelihood of Bradley and Terry."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)

    def loss(scorer, batch):
        better, worse = scorer(_both(batch)[0]).chunk(2)
        return -F.logsigmoid(better - worse)

    steps = check_count("epochs", epochs) * -(-len(data) // BATCH)
    batches = _batches(data, epochs, generator)
    return _descend(Scorer(reference), batches, loss, lr, steps)


@torch.no_grad()
def rejection_sampled(
    scorer: nn.Module,
    ref: Tensor,
    beta: float,
    n: int,
    generator: torch.Generator | None = None,
    candidates: int = 64,
    kept: int = 8,
) -> Tensor:
    """`n` pairs from about π_ref exp(r̂/β)/Z, labelled by the reward model r̂ itself (Liu et al. 2023, algorithm 1).

    Of every `candidates` responses of the reference, `kept` stay: one after the other, each picked at random and kept with
    probability exp((r̂ − max r̂)/β), the maximum being over those that are left. That draws without replacement and in
    proportion to exp(r̂/β), as the largest of r̂/β plus Gumbel noise do (Yellott 1977). The kept meet two by two.

    Raises:
        ValueError: `n` is no whole number of at least 1, `kept` no even one of at most `candidates`, or `beta` not positive.
    """
    n, beta = check_count("n", n), exact.check_beta(beta)
    if kept % 2 or not 0 < kept <= candidates:
        raise ValueError(f"kept must be even and at most {candidates}, got {kept}")
    groups = -(-2 * n // kept)
    prompts = torch.randint(len(ref), (groups,), generator=generator)
    drawn = pairs.answers(ref, prompts, candidates, generator)
    each = torch.stack((prompts[:, None].expand_as(drawn), drawn), -1).flatten(0, 1)
    unique, back = each.unique(dim=0, return_inverse=True)
    tokens, _ = words.sequences(*unique.T)
    scores = torch.cat([scorer(part) for part in tokens.split(8192)])[back].double()
    scores = scores.view_as(drawn)
    noise = -torch.empty_like(scores).exponential_(generator=generator).log()
    top = (scores / beta + noise).topk(kept, dim=1).indices
    top = top.gather(1, torch.rand(top.shape, generator=generator).argsort(1))
    two = drawn.gather(1, top).view(-1, 2)
    two = pairs.preferred_first(two, scores.gather(1, top).view(-1, 2), generator)
    return torch.column_stack((prompts.repeat_interleave(kept // 2), two))[:n]
