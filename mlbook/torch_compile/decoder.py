"""A decoder whose every step is the same graph."""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlbook.torch_compile.graphs import capture


class Decoder(nn.Module):
    """A transformer that reads one token and predicts the next, with a key–value cache
    of fixed size.

    Nothing in a step depends on Python numbers: the position is a tensor, and attention
    runs over the whole cache with what is not yet written masked out. So every step is
    the same graph.
    """

    def __init__(self, vocab=256, width=64, heads=4, layers=2, length=128):
        super().__init__()
        self.heads, self.length = heads, length
        self.embed = nn.Embedding(vocab, width)
        self.place = nn.Embedding(length, width)
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.mix = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(layers))
        self.head = nn.Linear(width, vocab)
        shape = (layers, 2, heads, length, width // heads)
        self.register_buffer("cache", torch.zeros(shape))

    def forward(self, token: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """(1,) token and (1,) position to the next token (1,) and its logits (1,
        vocab); writes the cache."""
        x = self.embed(token) + self.place(position)
        norm = functools.partial(F.layer_norm, normalized_shape=x.shape[-1:])
        hidden = torch.arange(self.length, device=x.device) > position
        for i in range(len(self.qkv)):
            q, k, v = self.qkv[i](norm(x)).view(3, self.heads, 1, -1)
            keys, values = self.cache[i]
            keys.index_copy_(1, position, k)
            values.index_copy_(1, position, v)
            scores = q @ keys.mT / math.sqrt(q.shape[-1])  # (heads, 1, length)
            attention = scores.masked_fill(hidden, float("-inf")).softmax(-1)
            x = x + self.mix[i]((attention @ values).view(1, -1))
            x = x + self.down[i](F.gelu(self.up[i](norm(x))))
        logits = self.head(norm(x))
        return logits.argmax(-1), logits


def decode(step: Callable, model: Decoder, tokens: int) -> tuple[Tensor, Tensor]:
    """Decode greedily from token 0 and an empty cache: the tokens (n,) and their logits
    (n, vocab).

    Args:
        step: `model`, or what was made of it.
        tokens: how many, at most the length of the model's cache.
    Raises:
        ValueError: the cache has no room for `tokens`.
    """
    if tokens > model.length:
        raise ValueError(
            f"the cache has room for {model.length} tokens, asked for {tokens}"
        )
    model.cache.zero_()
    token = torch.zeros(1, dtype=torch.long, device=model.cache.device)
    position, out = torch.zeros_like(token), []
    with torch.no_grad():
        for _ in range(tokens):
            token, logits = step(token, position)
            token = token.clone()  # a graph's output is overwritten by its next replay
            out.append((token, logits.clone()))
            position += 1
    return torch.cat([t for t, _ in out]), torch.cat([lg for _, lg in out])


def captured_step(model: Decoder) -> Callable:
    """A step of `model` as a graph: copy in, replay, hand out the static outputs."""
    token = torch.zeros(1, dtype=torch.long, device=model.cache.device)
    position = torch.zeros_like(token)
    graph = capture(model, token, position)

    def step(new_token: Tensor, new_position: Tensor) -> tuple[Tensor, Tensor]:
        token.copy_(new_token)
        position.copy_(new_position)
        graph.replay()
        return graph.output

    return step
