"""A small decoder-only transformer, Llama's with a choice of position encodings, over bytes or any tokens given.

Its positions come from the room of the chapter that derives them, which needs nothing but torch: they are that chapter's
subject, and stand once.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlbook.common.optional import hide_broken
from mlbook.long_context import rope

EPS = 1e-6  # of the norms
POSITIONS = ("rope", "alibi", "sinusoidal", "learned", "none")


class Transformer(nn.Module):
    """Tokens to logits. Pre-norm blocks of causal attention and a SwiGLU network, no biases, embedding shared with the
    output: with position "rope" it computes what `transformers.LlamaForCausalLM` does (`to_llama`).

    Embeddings begin with variance 1/dim, and what is added to the residual stream with a variance that keeps the sum
    over all layers at one.

    Args:
        vocabulary: number of tokens; 256 for bytes.
        dim: width; divisible by `heads`.
        layers, heads: of each how many.
        hidden: width inside the SwiGLU network; about 8/3 dim, rounded to a multiple of 16, unless given.
        position: "rope", "alibi", "sinusoidal", "learned" or "none".
        max_length: rows of the table of learned positions; a longer input raises.
        base, scaling: of `rope.inv_freq`.
        attention: makes a layer of attention from (dim, heads); `Attention` unless given.
    Raises:
        ValueError: an unknown position encoding, a `dim` that `heads` does not divide, "learned" without `max_length`.
    """

    def __init__(
        self,
        vocabulary: int = 256,
        dim: int = 128,
        layers: int = 4,
        heads: int = 4,
        hidden: int | None = None,
        position: str = "rope",
        max_length: int | None = None,
        base: float = 10_000.0,
        scaling: rope.Scaling | None = None,
        attention: Callable[[int, int], nn.Module] | None = None,
    ):
        super().__init__()
        if position not in POSITIONS:
            raise ValueError(
                f"position is {position!r}; it must be one of {', '.join(POSITIONS)}"
            )
        if heads < 1 or dim % heads:
            raise ValueError(f"{heads} heads do not divide dim = {dim}")
        if position == "learned" and not max_length:
            raise ValueError(
                "learned positions need max_length, the rows of their table"
            )
        hidden = hidden or 16 * math.ceil(dim / 6)
        attention = attention or Attention
        self.position, self.heads, self.head_dim = position, heads, dim // heads
        self.embedding = nn.Embedding(vocabulary, dim)
        self.table = nn.Embedding(max_length, dim) if position == "learned" else None
        self.blocks = nn.ModuleList(
            Block(dim, hidden, attention(dim, heads)) for _ in range(layers)
        )
        self.norm = nn.RMSNorm(dim, eps=EPS)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=dim**-0.5)
            if name.endswith(("out.weight", "down.weight")):  # sums over 2·layers
                nn.init.normal_(weight, std=(2 * layers * dim) ** -0.5)
        if position == "rope":
            self.set_rope(base, scaling)

    def set_rope(self, base: float, scaling: rope.Scaling | None = None) -> None:
        """Rotate from now on with this base and scaling; weights stay as they are.

        Raises:
            ValueError: the model's positions are not rotations.
        """
        if self.position != "rope":
            raise ValueError(f"this model's position is {self.position!r}, not 'rope'")
        self.base, self.scaling = base, scaling
        self.freqs = rope.inv_freq(self.head_dim, base, scaling)
        self.factor = rope.attention_factor(scaling)

    def forward(self, tokens: Tensor, cache: "Cache | None" = None) -> Tensor:
        """Logits (batch, length, vocabulary) of what follows each of `tokens` (batch, length).

        With a `cache`, the tokens continue those of the earlier calls with it.

        Raises:
            IndexError: positions are learned, and the input is longer than their table.
        """
        start = cache.length if cache else 0
        end = start + tokens.shape[1]
        positions = torch.arange(start, end, device=tokens.device)
        x = self.embedding(tokens)
        rotation = mask = None
        if self.position == "rope":
            rotation = rope.rotation(positions, self.freqs, self.factor, x.dtype)
        elif self.position == "sinusoidal":
            x = x * x.shape[-1] ** 0.5  # Vaswani et al. 2017, section 3.4
            x = x + rope.sinusoidal(end, x.shape[-1])[start:].to(x)
        elif self.position == "learned":
            if end > self.table.num_embeddings:
                raise IndexError(
                    f"position {end - 1} has no row in a table of {self.table.num_embeddings}"
                )
            x = x + self.table(positions)
        if self.position == "alibi":
            mask = rope.alibi_bias(self.heads, end)[:, start:].to(x)
        elif start:  # the queries are the last rows; without a mask, all of them
            mask = positions[:, None] >= torch.arange(end, device=tokens.device)
        for i, block in enumerate(self.blocks):
            x = block(x, rotation, mask, cache.layer(i) if cache else None)
        if cache:
            cache.length = end
        return F.linear(self.norm(x), self.embedding.weight)

    def nll(self, tokens: Tensor) -> Tensor:
        """−log p of each of `tokens` (batch, length) but the first, in nats: (batch, length − 1)."""
        logits = self(tokens[:, :-1])
        flat = F.cross_entropy(
            logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
        )
        return flat.view(tokens.shape[0], -1)

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        n: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue `tokens` (batch, length) by `n` tokens, drawn at `temperature`; the likeliest at 0.

        Returns:
            (batch, length + n).
        Raises:
            ValueError: `temperature` is negative, or there are no tokens.
        """
        if not temperature >= 0:
            raise ValueError(f"temperature must not be negative, got {temperature}")
        if not tokens.numel():
            raise ValueError(
                f"there is nothing to continue in tokens of shape {tuple(tokens.shape)}"
            )
        cache, new = Cache(), tokens
        for _ in range(n):
            logits = self(new, cache)[:, -1]
            if temperature:
                p = (logits / temperature).softmax(dim=-1)
                new = torch.multinomial(p, 1, generator=generator)
            else:
                new = logits.argmax(dim=-1, keepdim=True)
            tokens = torch.cat((tokens, new), dim=1)
        return tokens


class Cache:
    """Keys and values of the tokens that a model has seen, for each layer: pass it to every call."""

    def __init__(self):
        self.length, self._layers = 0, {}

    def layer(self, i: int) -> dict[str, Tensor]:
        return self._layers.setdefault(i, {})


class Block(nn.Module):
    def __init__(self, dim: int, hidden: int, attention: nn.Module):
        super().__init__()
        self.before_attention, self.attention = nn.RMSNorm(dim, eps=EPS), attention
        self.before_mlp = nn.RMSNorm(dim, eps=EPS)
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x, rotation, mask, cache):
        x = x + self.attention(self.before_attention(x), rotation, mask, cache)
        y = self.before_mlp(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Attention(nn.Module):
    """Causal self-attention with `heads` heads; (batch, length, dim) to the same."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (
            nn.Linear(dim, dim, bias=False) for _ in range(4)
        )

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values: (batch, heads, length, dim / heads)."""
        return tuple(
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )

    def join(self, heads: Tensor) -> Tensor:
        """What the heads found, side by side, through the last projection."""
        return self.out(heads.transpose(1, 2).flatten(-2))

    def forward(self, x, rotation, mask, cache):
        q, k, v = self.project(x)
        if rotation is not None:
            q, k = rope.rotate(q, *rotation), rope.rotate(k, *rotation)
        if cache is not None:
            if cache:
                k = torch.cat((cache["k"], k), dim=2)
                v = torch.cat((cache["v"], v), dim=2)
            cache.update(k=k, v=v)
        x = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None
        )
        return self.join(x)


def to_llama(model: Transformer):
    """The same model as `transformers.LlamaForCausalLM`, weights copied.

    With `DynamicNTK` the two agree on texts of its `length`, no other: `transformers` takes the length of each text.

    Raises:
        ValueError: the model's positions are not rotations, or its attention is not `Attention`.
        ModuleNotFoundError: `transformers` is not installed.
    """
    attention = type(model.blocks[0].attention)
    if model.position != "rope" or attention is not Attention:
        raise ValueError(
            f"Llama rotates and attends to all, and this model's position is {model.position!r}, "
            f"its attention {attention.__name__}"
        )
    hide_broken("torchvision")
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary, dim = model.embedding.weight.shape
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=dim,
        intermediate_size=model.blocks[0].down.in_features,
        num_hidden_layers=len(model.blocks),
        num_attention_heads=model.heads,
        rms_norm_eps=EPS,
        tie_word_embeddings=True,
        rope_parameters=rope.rope_parameters(model.head_dim, model.base, model.scaling),
        max_position_embeddings=rope.longest(model.scaling),
        bos_token_id=None,
        eos_token_id=None,
    )
    names = {
        "embedding.": "embed_tokens.",
        "blocks.": "layers.",
        ".before_attention.": ".input_layernorm.",
        ".before_mlp.": ".post_attention_layernorm.",
        ".attention.out.": ".self_attn.o_proj.",
        ".attention.q.": ".self_attn.q_proj.",
        ".attention.k.": ".self_attn.k_proj.",
        ".attention.v.": ".self_attn.v_proj.",
        ".gate.": ".mlp.gate_proj.",
        ".up.": ".mlp.up_proj.",
        ".down.": ".mlp.down_proj.",
    }
    theirs = {}
    for name, weight in model.state_dict().items():
        for ours, new in names.items():
            name = name.replace(ours, new)
        theirs[f"model.{name}"] = weight
    llama = LlamaForCausalLM(config).to(model.embedding.weight)
    missing = llama.load_state_dict(theirs, strict=False)
    if missing.unexpected_keys or set(missing.missing_keys) - {"lm_head.weight"}:
        raise RuntimeError(f"transformers names its weights differently: {missing}")
    return llama.eval()
