"""How the loss falls with the size of a model and of its data: one training of the ladder, and the law fitted to many."""

import math
import time

import torch
from torch import Tensor

from mlbook.common import corpora
from mlbook.common.checks import check_count
from mlbook.common.lm import Transformer
from mlbook.common.training import fit

LENGTH, BATCH = 256, 4  # bytes of a stretch, stretches of a step
SIZES = {  # (width, layers, heads) by a name; heads of 16 to 32 numbers
    "11k": (16, 2, 1),
    "35k": (32, 2, 2),
    "96k": (48, 3, 2),
    "218k": (64, 4, 2),
    "468k": (96, 4, 3),
    "1m": (128, 5, 4),
}


def train(
    size: str, tokens: int, lr: float, seed: int = 0, windows: int = 256
) -> dict[str, float]:
    """Train one model of the ladder on Wikipedia's bytes, each seen once, and measure it on the pages held out.

    The learning rate falls along a cosine to its end at `tokens`: a longer training cut short would look worse than it is
    (Hoffmann et al. 2022, section 3). Everything random comes from `seed`, on one thread, so that the numbers are the same
    wherever this runs on the same machine.

    Args:
        size: a key of `SIZES`.
        tokens: bytes to train on, at least one step of LENGTH · BATCH and at most what there is.
        lr: peak learning rate of Adam.
        windows: held-out stretches of LENGTH bytes that measure it.
    Returns:
        what was asked for, with `parameters` (all of them), `bits` a byte on the held-out text, the same on other
        stretches of it, for `choosing` a learning rate, and `seconds`. `online` is what the training text itself takes, in bits a byte, if a
        decoder trains along: the mean loss before each step, and 8 bits for the byte before each stretch.
    Raises:
        ValueError: an unknown size, or more or fewer tokens than can be had.
    """
    if size not in SIZES:
        raise ValueError(f"size is {size!r}; it must be one of {', '.join(SIZES)}")
    text, held_out = (stretches(part) for part in corpora.wikipedia())
    steps = check_count("tokens", tokens) // (LENGTH * BATCH)
    if not 1 <= steps <= len(text) // BATCH:
        raise ValueError(
            f"{tokens} tokens are {steps} steps; there are 1 to {len(text) // BATCH}"
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            dim, layers, heads = SIZES[size]
            model = Transformer(256, dim, layers, heads)
            order = torch.randperm(len(text))
        batches = iter(order[: steps * BATCH].view(steps, BATCH))
        loss = lambda model: model.nll(text[next(batches)]).mean()
        start = time.perf_counter()
        model, losses, _ = fit(model, loss, steps, lr, warmup=max(1, steps // 10))
        evenly = torch.linspace(0, len(held_out) - 2, windows).long()
        bits, choosing = (_bits(model, held_out[evenly + i]) for i in range(2))
    finally:
        torch.set_num_threads(threads)
    return {
        "size": size,
        "tokens": tokens,
        "lr": lr,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "bits": bits,
        "choosing": choosing,
        "online": sum(losses) / len(losses) / math.log(2) + 8 / LENGTH,
        "seconds": time.perf_counter() - start,
    }


@torch.no_grad()
def _bits(model: Transformer, text: Tensor) -> float:
    """A byte, on average."""
    nll = torch.cat([model.nll(part) for part in text.split(32)])
    return nll.double().mean().item() / math.log(2)


def stretches(text: bytes) -> Tensor:
    """`text` cut into stretches of LENGTH bytes, each with the byte before it: (n, LENGTH + 1)."""
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    return tokens.unfold(0, LENGTH + 1, LENGTH)
