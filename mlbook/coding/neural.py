"""A neural language model as a coder: code lengths in parallel, real bytes one token at a time, and what that rests on."""

import hashlib
import inspect
import platform
import zlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mlbook.coding import arithmetic
from mlbook.common.checks import check_count

LOG2 = torch.tensor(2.0, dtype=torch.float64).log()


@torch.no_grad()
def code_lengths(
    model, tokens: Sequence[int], window: int = 1024, first: int = 0, only=None
) -> tuple[Tensor, Tensor]:
    """Bits that each of `tokens` takes, and how many tokens the model held for likelier: (n,) float64, (n,) int64.

    What is coded is cut into windows, each predicted from its own beginning and `first` alone, in one pass: the numbers
    are those of the true distribution, but rounded differently than step by step, so nothing can be decoded with them.

    Args:
        model: tokens (1, n) to logits (1, n, vocabulary), or to something with `.logits`.
        tokens: of the vocabulary, or, where `only` is given, places in it.
        window: tokens that are predicted from one beginning.
        first: the token before each window.
        only: the tokens that can occur at all; the others' probability is shared among them.
    Raises:
        ValueError: a window of none, a token that is out of range or no whole number, a model in training mode (its
            dropout would give other numbers each time) or one that gives NaN.
    """
    _check_evaluates(model)
    window, bits, ranks = check_count("window", window), [], []
    device = next(model.parameters()).device
    size = _logits(model(torch.tensor([[first]], device=device))).shape[-1]
    names = None if only is None else _symbols(only, size)
    for part in _symbols(tokens, size if only is None else len(names)).split(window):
        known = part if names is None else names[part]
        before = torch.cat((torch.tensor([first]), known[:-1])).to(device)
        logits = _logits(model(before[None]))[0]
        logits = logits if names is None else logits[:, names.to(device)]
        for rows, symbols in zip(logits.split(256), part.split(256), strict=True):
            rows = rows.double()  # all at once they would take gigabytes
            true = rows.gather(1, symbols[:, None].to(device))
            bits.append((rows.logsumexp(1) - true[:, 0]).cpu() / LOG2)
            ranks.append((rows > true).sum(1).cpu())
    bits, ranks = torch.cat(bits), torch.cat(ranks)
    if bits.isnan().any():
        place = bits.isnan().nonzero()[0].item()
        raise ValueError(f"the model gives NaN for token {place}")
    return bits, ranks


class LanguageModel:
    """A causal transformer of `transformers` as a model for `arithmetic.encode`: one token at a time, with its cache.

    Encoder and decoder do the same operations on the same shapes in the same order; that is all that keeps them together.
    After `window` tokens the cache is emptied, and the next begins from `first` again.

    Raises:
        ValueError: the model is in training mode.
    """

    def __init__(self, model, first: int = 0, window: int = 1024):
        _check_evaluates(model)
        self.model, self.first = model, first
        self.window = check_count("window", window)
        self.size = model.config.vocab_size
        takes = inspect.signature(model.forward).parameters
        # Its name until transformers 5.24, and since.
        self.cache_name = "cache" if "cache" in takes else "past_key_values"

    def start(self) -> "_Walk":
        return _Walk(self)


class _Walk:
    def __init__(self, coder: LanguageModel):
        self.coder, self.seen = coder, 0
        self._begin()

    def _begin(self) -> None:
        from transformers import DynamicCache

        self.last, self.cache, self.said = self.coder.first, DynamicCache(), None

    @torch.no_grad()
    def predict(self) -> np.ndarray:
        if self.said is not None:  # what is in the cache stays there once
            return self.said
        cache, model = {self.coder.cache_name: self.cache}, self.coder.model
        last = torch.tensor([[self.last]], device=model.device)
        out = model(last, use_cache=True, **cache)
        self.said = out.logits[0, -1].double().softmax(0).cpu().numpy()
        return self.said

    def update(self, symbol: int) -> None:
        self.predict()  # which puts the last symbol into the cache, if nobody asked
        self.last, self.seen, self.said = symbol, self.seen + 1, None
        if self.seen % self.coder.window == 0:
            self._begin()


def _check_evaluates(model) -> None:
    if model.training:
        raise ValueError("the model is in training mode; call its eval() first")


def _logits(out) -> Tensor:
    return getattr(out, "logits", out)


def _symbols(tokens, size: int) -> Tensor:
    checked = arithmetic.check_symbols(torch.as_tensor(tokens).tolist(), size)
    return torch.tensor(list(checked), dtype=torch.int64)


# What the numbers rest on, and a message that says so

FIELDS = {"model": 4, "software": 2, "processor": 2, "threads": 2}  # bytes
MAGIC = b"LMC1"
HEADER = len(MAGIC) + sum(FIELDS.values()) + 4 + 2  # the length, and a check of these


def fingerprint(weights: str | Path, device: str = "cpu") -> dict[str, str]:
    """What two runs must share for the same probabilities to the last bit: the file of weights, versions, processor, threads.

    Necessary, as far as we know, and not sufficient: no library promises as much.
    """
    versions = (
        f"{name} {version(name)}" for name in ("torch", "transformers", "numpy")
    )
    return {
        "model": hashlib.sha256(Path(weights).read_bytes()).hexdigest(),
        "software": ", ".join(versions),
        "processor": _processor(torch.device(device)),
        "threads": str(torch.get_num_threads()),
    }


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info, name = Path("/proc/cpuinfo"), platform.processor()
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def seal(payload: bytes, length: int, where: dict[str, str]) -> bytes:
    """`payload` with what `open_sealed` needs in front of it, in 20 bytes: a mark, the fingerprint's digests, the length,
    and a check of them, so that no damaged length sends a decoder on its way."""
    length = check_count("length", length, 0)
    if length >= 2**32:
        raise ValueError(f"length must be less than 2**32, got {length}")
    head = MAGIC + _digests(where) + length.to_bytes(4, "big")
    return head + _check(head) + payload


def open_sealed(data: bytes, where: dict[str, str]) -> tuple[bytes, int]:
    """What `seal` was given.

    Raises:
        ValueError: it is no such message, its beginning is damaged, or it was made by another model or elsewhere; what
            differs is named.
    """
    head = data[: HEADER - 2]
    if data[:4] != MAGIC or len(data) < HEADER:
        raise ValueError("these bytes do not begin as a message of a language model")
    if data[HEADER - 2 : HEADER] != _check(head):
        raise ValueError("the beginning of the message is damaged")
    here, body, place = _digests(where), head[len(MAGIC) :], 0
    for name, n in FIELDS.items():
        if body[place : place + n] != here[place : place + n]:
            called = "number of threads" if name == "threads" else name
            raise ValueError(
                f"the message was made with another {called}; here it is {where[name]}, and the probabilities may differ "
                "in their last bit, after which everything would decode to something else"
            )
        place += n
    return data[HEADER:], int.from_bytes(body[place : place + 4], "big")


def _digests(where: dict[str, str]) -> bytes:
    threads = int(where["threads"]).to_bytes(FIELDS["threads"], "big")  # as it is
    names = [name for name in FIELDS if name != "threads"]
    parts = [hashlib.sha256(where[k].encode()).digest()[: FIELDS[k]] for k in names]
    return b"".join(parts) + threads


def _check(head: bytes) -> bytes:
    return zlib.crc32(head).to_bytes(4, "big")[:2]


def compress(text: str, coder: LanguageModel, tokenizer, where: dict) -> bytes:
    """`text` in bytes that `decompress` reads in the same surroundings."""
    tokens = tokenizer.encode(text).ids
    return seal(arithmetic.encode(tokens, coder), len(tokens), where)


def decompress(data: bytes, coder: LanguageModel, tokenizer, where: dict) -> str:
    """The text of `compress`.

    Raises:
        ValueError: the surroundings are others, or the data are damaged.
    """
    payload, length = open_sealed(data, where)
    return tokenizer.decode(arithmetic.decode(payload, coder, length))
