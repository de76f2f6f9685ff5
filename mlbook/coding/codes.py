"""Codes for one symbol at a time: entropy, Kraft's sum, prefix codes, Huffman's."""

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from mlbook.common.checks import check_count


def entropy(weights: Iterable[float]) -> float:
    """−Σ p log₂ p in bits, of `weights` (a mapping's values) divided by their sum; a weight of 0 adds nothing.

    Raises:
        ValueError: a weight is negative, NaN or infinite, or none is positive.
    """
    if isinstance(weights, Mapping):
        weights = weights.values()
    weights = check_weights(weights)
    most = max(weights)  # the sum of huge ones would overflow
    weights = [w / most for w in weights]
    total = math.fsum(weights)
    shares = [w / total for w in weights]
    return math.fsum(-p * math.log2(p) for p in shares if p)


def kraft(lengths: Iterable[int]) -> float:
    """Σ 2^−length: at most 1 for every code whose messages can be told apart (Kraft 1949, McMillan 1956)."""
    return math.fsum(2.0 ** -check_count("length", n, 0) for n in lengths)


def canonical(lengths: Sequence[int]) -> list[str]:
    """A prefix code with these lengths, in bits, one for each symbol (the proof of Kraft's inequality as a program).

    Words stand in a row on [0, 1), the shortest first: one of length n takes 2^−n of it.

    Raises:
        ValueError: Kraft's sum is above 1: there is no such code.
    """
    lengths = [check_count("length", n, 0) for n in lengths]
    start, longest, words = 0, max(lengths, default=0), [""] * len(lengths)
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if start >= 1 << longest:
            raise ValueError(
                f"lengths {lengths} have Kraft's sum {kraft(lengths):g} > 1"
            )
        words[i] = format(start, f"0{longest}b")[: lengths[i]]
        start += 1 << (longest - lengths[i])
    return words


def huffman(weights: Mapping) -> dict:
    """The prefix code of least average length, symbol → word of bits (Huffman 1952).

    Raises:
        ValueError: there are no symbols, or a weight is negative or not finite.
    """
    plain = check_weights(weights.values())
    heap = [
        (w, i, {s: ""}) for i, (s, w) in enumerate(zip(weights, plain, strict=True))
    ]
    heapq.heapify(heap)
    while len(heap) > 1:
        (a, i, zeros), (b, _, ones) = heapq.heappop(heap), heapq.heappop(heap)
        merged = {s: "0" + word for s, word in zeros.items()}
        merged |= {s: "1" + word for s, word in ones.items()}
        heapq.heappush(heap, (a + b, i, merged))
    return heap[0][2]


def is_prefix_free(words: Iterable[str]) -> bool:
    """No word begins another, nor stands twice."""
    return not any(b.startswith(a) for a, b in pairwise(sorted(words)))


def check_weights(weights: Iterable[float]) -> list[float]:
    """`weights` as a list of Python's numbers, if each is finite and not negative and one is positive."""
    weights = [w.item() if hasattr(w, "item") else w for w in weights]
    wrong = [w for w in weights if not 0 <= w < math.inf]
    if wrong or not any(weights):
        raise ValueError(
            f"weights must be finite, not negative and not all 0, got {wrong or weights}"
        )
    return weights
