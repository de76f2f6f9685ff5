"""How the loss falls with the size of a model and of its data: one training of the ladder, and the law fitted to many."""

import math
import threading
import time
from typing import NamedTuple

import numpy as np
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
SEEDING = threading.Lock()  # threads share torch's random numbers


def trained(
    size: str,
    tokens: int,
    lr: float,
    seed: int = 0,
    length: int = LENGTH,
    batch: int = BATCH,
) -> tuple[Transformer, list[float]]:
    """A model of the ladder after Wikipedia's bytes, each seen once, and the loss of each step before it, in nats a byte.

    The learning rate falls along a cosine to its end at `tokens`: a longer training cut short would look worse than it is
    (Hoffmann et al. 2022, section 3). Everything random comes from `seed`, on one thread: the numbers are the same wherever
    this runs on the same machine.

    Args:
        size: a key of `SIZES`.
        tokens: bytes to train on, at least one step of `length` · `batch` and at most what there is.
        lr: peak learning rate of Adam.
        length, batch: bytes of a stretch, stretches of a step.
    Raises:
        ValueError: an unknown size, or more or fewer tokens than can be had.
    """
    if size not in SIZES:
        raise ValueError(f"size is {size!r}; it must be one of {', '.join(SIZES)}")
    text = stretches(corpora.wikipedia()[0], length)
    step = check_count("length", length) * check_count("batch", batch)
    steps = check_count("tokens", tokens) // step
    if not 1 <= steps <= len(text) // batch:
        raise ValueError(
            f"{tokens} tokens are {steps} steps; there are 1 to {len(text) // batch}"
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with SEEDING, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            dim, layers, heads = SIZES[size]
            model = Transformer(256, dim, layers, heads)
            order = torch.randperm(len(text))
        batches = iter(order[: steps * batch].view(steps, batch))

        def loss(model: Transformer) -> Tensor:
            return model.nll(text[next(batches)]).mean()

        return fit(model, loss, steps, lr, warmup=max(1, steps // 10))[:2]
    finally:
        torch.set_num_threads(threads)


def train(size: str, tokens: int, lr: float, seed: int = 0, windows: int = 256) -> dict:
    """One training of the ladder, and what it is worth.

    Args:
        windows: held-out stretches of LENGTH bytes that measure it; the others as `trained`.
    Returns:
        what was asked for, with `parameters` (all of them), `bits` a byte on the held-out text, the same on other stretches
        of it, for `choosing` a learning rate, and `seconds`. `online` is what the training text itself takes, in bits a
        byte, if a decoder trains along: the mean loss before each step, and 8 bits for the byte before each stretch.
    """
    start = time.perf_counter()
    model, losses = trained(size, tokens, lr, seed)
    held_out = stretches(corpora.wikipedia()[1])
    evenly = torch.linspace(0, len(held_out) - 2, check_count("windows", windows))
    evenly = evenly.long()
    bits, choosing = (_bits(model, held_out[evenly + i]) for i in range(2))
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


def stretches(text: bytes, length: int = LENGTH) -> Tensor:
    """`text` cut into stretches of `length` bytes, each with the byte before it: (n, length + 1)."""
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    return tokens.unfold(0, length + 1, length)


def best(rows: list[dict]) -> dict[tuple, dict]:
    """Of each size and length, the training whose rate was best where rates are chosen."""
    kept = {}
    for row in rows:
        cell = row["size"], row["tokens"]
        if cell not in kept or _worth(row) < _worth(kept[cell]):
            kept[cell] = row
    return kept


def _worth(row: dict) -> float:
    bits = row["choosing"]
    return math.inf if math.isnan(bits) else bits  # a training that diverged


class Law(NamedTuple):
    """L(N, D) = E + ((A/N^α)^p + (B/D^β)^p)^(1/p), in bits a byte, of N parameters and D bytes.

    With p = 1 it is the law of Hoffmann et al. 2022 (equation 2); for large p the greater term alone counts, as nearly in
    that of Kaplan et al. 2020 (equation 1.5), whose p is 1/β, some 10.
    """

    E: float
    A: float
    alpha: float
    B: float
    beta: float
    p: float = 1.0

    def __call__(self, n, d):
        a, b = self.A / n**self.alpha, self.B / d**self.beta
        return self.E + (a**self.p + b**self.p) ** (1 / self.p)

    @property
    def exponent(self) -> float:
        """Of compute, in the number of parameters that is best for it: N ∝ C^(β/(α + β)), whatever p is."""
        return self.beta / (self.alpha + self.beta)

    def best(self, compute: float) -> tuple[float, float]:
        """The N that makes L least where 6·N·D = `compute` operations, and that D: α·(A/N^α)^p = β·(B/D^β)^p there.

        Raises:
            ValueError: `compute` is not positive and finite.
        """
        _check_positive("compute", compute)
        ratio = (self.alpha / self.beta) ** (1 / self.p) * self.A / self.B
        n = (ratio * (compute / 6) ** self.beta) ** (1 / (self.alpha + self.beta))
        return n, compute / 6 / n

    def total(self, n, size: float, bits: float = 16.0):
        """Bits that `size` bytes take, with a model of `n` parameters trained on them, which is sent, at `bits` each."""
        return bits * n + size * self(n, size)

    def smallest(self, size: float, bits: float = 16.0) -> float:
        """The number of parameters, from 1 to 10¹², that makes `total` least.

        Raises:
            ValueError: `size` or `bits` is not positive and finite.
        """
        _check_positive("size", size)
        _check_positive("bits", bits)
        from scipy.optimize import minimize_scalar

        found = minimize_scalar(
            lambda log_n: math.log(self.total(math.exp(log_n), size, bits)),
            bounds=(0, 12 * math.log(10)),
            method="bounded",
            options={"xatol": 1e-8},
        )
        return math.exp(found.x)


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")


def fit_law(
    n: np.ndarray,
    d: np.ndarray,
    bits: np.ndarray,
    p: float | None = 1.0,
    near: Law | None = None,
) -> Law:
    """The law nearest to measured losses: least Huber loss of log L (threshold 10⁻³), best of several starts, as Hoffmann
    et al. fit theirs (section 3.3).

    Args:
        n, d, bits: (runs,) parameters, bytes and bits a byte, all positive; E is sought up to 20 bits.
        p: how the two terms are joined; None to fit it, too, between 0.4 and 50.
        near: a law to start from, instead of several.
    Raises:
        ValueError: shapes differ, there are fewer runs than the law has numbers and one, or of one N or D only; some are
            not positive; `p` is not.
    """
    from scipy.optimize import least_squares

    if p is not None:
        _check_positive("p", p)
    n, d, bits = (np.asarray(x, np.float64) for x in (n, d, bits))
    least = 6 if p else 7
    if not n.shape == d.shape == bits.shape or n.ndim != 1 or len(n) < least:
        raise ValueError(
            f"a law needs {least} runs or more in rows of one length, got {n.shape}, {d.shape}, {bits.shape}"
        )
    if not all((x > 0).all() and np.isfinite(x).all() for x in (n, d, bits)):
        raise ValueError("parameters, bytes and bits must be positive and finite")
    if len(np.unique(n)) < 2 or len(np.unique(d)) < 2:
        raise ValueError("a law needs runs of several sizes and several lengths")
    log_n, log_d = np.log(n), np.log(d)

    def residuals(x):  # logarithms of E, A, B and p: they stay positive
        e, a, alpha, b, beta, *free = x
        power = math.exp(free[0]) if free else p
        terms = np.stack((a - alpha * log_n, b - beta * log_d))
        both = np.logaddexp.reduce(power * terms) / power
        return np.logaddexp(e, both) - np.log(bits)

    starts = [
        (e, alpha * log_n.mean(), alpha, beta * log_d.mean(), beta, log_p)
        for e in (-0.5, 0.5)
        for alpha in (0.2, 0.5)
        for beta in (0.2, 0.5)
        for log_p in (0.0, 1.0)
    ]
    if near:
        E, A, alpha, B, beta, power = near
        starts = [(math.log(E), math.log(A), alpha, math.log(B), beta, math.log(power))]
    free = slice(5 if p else 6)
    bounds = np.array([[-12, -20, 0, -20, 0, -0.9], [3, 40, 3, 40, 3, 3.9]])[:, free]
    found = [
        least_squares(residuals, x[free], loss="huber", f_scale=1e-3, bounds=bounds)
        for x in starts[:: 2 if p and not near else 1]
    ]
    e, a, alpha, b, beta, *rest = (float(v) for v in min(found, key=lambda f: f.cost).x)
    power = math.exp(rest[0]) if rest else p
    return Law(math.exp(e), math.exp(a), alpha, math.exp(b), beta, power)


def bootstrap(n, d, bits, draws: int, p: float | None = 1.0, seed=0) -> list[Law]:
    """Laws fitted to runs drawn again, with repetition, from the same number of runs (Efron 1979)."""
    n, d, bits = (np.asarray(x) for x in (n, d, bits))
    draws, whole = check_count("draws", draws), fit_law(n, d, bits, p)
    picks = np.random.default_rng(seed).integers(len(n), size=(draws, len(n)))
    return [fit_law(n[i], d[i], bits[i], p, near=whole) for i in picks]
