"""A task that is small enough to be exact: a word is begun by its first letter, and a model goes on with up to four.

Twelve letters make 22,621 responses to each of twelve prompts. A transformer gives all of them their probabilities in one
pass over the 20,736 beginnings, so that its reward and divergence are sums, not estimates.
"""

import functools
import re
from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor

from mlbook.common import corpora, training
from mlbook.common.lm import Transformer
from mlbook.preferences import exact

LETTERS = "etaoinshrdlu"  # the most frequent of English
N, LONGEST = len(LETTERS), 4
END = N  # the token that ends a word; a response of four letters needs none
VOWELS = "aeiou"


def vocabulary() -> dict[str, int]:
    """The words of two to five of the twelve letters that come at least five times in the book's texts, and how often."""
    texts = [bytes(part.tolist()) for part in corpora.python_reference()]
    text = b"\n".join([*texts, *corpora.wikipedia()]).decode(errors="ignore")
    found = Counter(re.findall(rf"(?<![A-Za-z])[{LETTERS}]{{2,5}}(?![A-Za-z])", text))
    return {word: n for word, n in found.items() if n >= 5}


@functools.cache
def responses() -> tuple[Tensor, Tensor]:
    """All responses, the shortest first: tokens (22,621, 4), padded with END, and a mask of those that were chosen, the END
    of a shorter one included."""
    tokens = [torch.full((1, LONGEST), END)]
    for length in range(1, LONGEST + 1):
        letters = torch.cartesian_prod(*[torch.arange(N)] * length)
        tokens.append(F.pad(letters.view(-1, length), (0, LONGEST - length), value=END))
    tokens = torch.cat(tokens)
    length = (tokens != END).sum(1)
    return tokens, torch.arange(LONGEST) <= length[:, None]


def spell(prompt: int, response: int) -> str:
    """The whole word."""
    letters = [t for t in responses()[0][response].tolist() if t != END]
    return LETTERS[prompt] + "".join(LETTERS[t] for t in letters)


def spelt(vocabulary) -> Tensor:
    """Which responses to which prompts make words of a vocabulary: (12, 22,621), as floating-point numbers."""
    number = range(len(responses()[0]))
    rows = [[spell(x, y) in vocabulary for y in number] for x in range(N)]
    return torch.tensor(rows).double()


def lengths() -> Tensor:
    """How many letters each response has: (22,621,)."""
    return (responses()[0] != END).sum(1)


def vowels() -> Tensor:
    """How many of them are vowels: (22,621,), as floating-point numbers."""
    table = torch.tensor([c in VOWELS for c in LETTERS] + [False])
    return table[responses()[0]].sum(1).double()


def sequences(prompts: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (batch, 5) of prompts and responses by their numbers, and the mask of the responses."""
    tokens, mask = responses()
    return (
        torch.column_stack((prompts, tokens[chosen])),
        F.pad(mask[chosen], (1, 0)),
    )


@torch.no_grad()
def table(model: torch.nn.Module) -> Tensor:
    """log π(y|x) of every response to every prompt: (12, 22,621), in float64."""
    device = next(model.parameters()).device
    begun = torch.cartesian_prod(*[torch.arange(N)] * LONGEST).to(device)
    logits = torch.cat([model(part) for part in begun.split(4096)])
    nexts = logits.double().log_softmax(-1).cpu().view(*[N] * LONGEST, LONGEST, END + 1)
    so_far, found = torch.zeros(N, dtype=torch.float64), []
    for depth in range(LONGEST):
        after = nexts[(slice(None),) * (depth + 1) + (0,) * (LONGEST - 1 - depth)]
        after = after[..., depth, :]
        found.append((so_far + after[..., END]).view(N, -1))
        so_far = so_far[..., None] + after[..., :N]
    return torch.cat([*found, so_far.view(N, -1)], 1)


def controlled(ref: Tensor, reward: Tensor, beta: float, soft: bool = True) -> Tensor:
    """The reference, steered token by token: π(a|s) ∝ π_ref(a|s) exp(v(s′)/β), where s′ is what a makes of s.

    Args:
        ref: `table` of the reference; reward: of the same shape.
        soft: v is the soft value β log E_ref[exp(r/β) | s′], which gives `exact.optimal_policy`; else the mean reward of the
            reference from there, E_ref[r | s′] (Mudgal et al. 2023; Yang and Klein 2021).
    Returns:
        a table of the same shape.
    Raises:
        ValueError: as `exact.optimal_policy`; or the reference never gives some response.
    """
    exact.checked(ref, beta, reward)
    if not ref.isfinite().all():
        raise ValueError("a response has no probability at all under the reference")
    sizes = [N**depth for depth in range(LONGEST + 1)]
    ends = [part.view(N, -1) for part in ref.split(sizes, 1)]
    points = [part.reshape(N, -1) for part in reward.split(sizes, 1)]
    mass, value, steps = ends[-1], points[-1], []
    for depth in reversed(range(LONGEST)):
        children = [mass.view(N, -1, N), ends[depth][..., None]]
        behind = [value.view(N, -1, N), points[depth][..., None]]
        children, behind = torch.cat(children, 2), torch.cat(behind, 2)
        mass = children.logsumexp(2)
        chance = children - mass[..., None]
        tilted = chance + behind / beta
        steps.append(tilted.log_softmax(2))
        value = beta * tilted.logsumexp(2) if soft else (chance.exp() * behind).sum(2)
    so_far, found = torch.zeros(N, 1, dtype=ref.dtype), []
    for step in reversed(steps):
        onward = so_far[..., None] + step
        found.append(onward[..., END])
        so_far = onward[..., :N].flatten(1)
    return torch.cat([*found, so_far], 1)


def reference(steps: int = 800, dim: int = 48, seed: int = 0) -> Transformer:
    """A small transformer that has learnt to write the words of `vocabulary`, each as often as the root of its count."""
    words = vocabulary()
    rows = torch.full((len(words), LONGEST + 1), END)
    for row, word in zip(rows, words, strict=True):
        row[: len(word)] = torch.tensor([LETTERS.index(c) for c in word])
    mask = torch.arange(LONGEST) < (rows != END).sum(1)[:, None]
    weights = torch.tensor(list(words.values())).sqrt()
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = Transformer(END + 1, dim, layers=2, heads=4)

    def loss(model):
        batch = torch.multinomial(weights, 64, replacement=True, generator=generator)
        nll, kept = model.nll(rows[batch]), mask[batch]
        return (nll * kept).sum() / kept.sum()

    return training.fit(model, loss, steps, lr=6e-3, average=0.99)[0]
