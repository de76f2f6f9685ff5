"""Context mixing: one model for each length of context, and a small network that learns whom to believe, bit by bit.

After Mahoney's lpaq (2007), with plain counters. All arithmetic is on integers: two machines agree to the last bit, and so
a decoder learns exactly what the encoder learnt.
"""

import copy
import functools
from collections.abc import Iterable
from decimal import Decimal, localcontext
from typing import NamedTuple

import numpy as np

from mlbook.coding import fast
from mlbook.common.checks import check_count

ORDERS = 8  # contexts: the last 0 to 5 bytes, this word, and with it the last word
INPUTS = 2 * ORDERS + 2  # two for each, one of a match with earlier text, a constant
SLOTS = 1 << 22  # of each context's table; contexts that collide share a slot
LIMIT = 30  # a counter's memory, in bits seen
MATCH = ORDERS - 2  # bytes that make a match: those that the contexts hash
LONGEST = 63  # from where on the length of a match says nothing
RATE = 2  # of the network that mixes


class Memory(NamedTuple):
    """What a `Mix` has learnt. A context has a slot in its length's table, and there p(1)·2¹⁶, how often it was seen, and
    its last bits after a 1; for each such history, what followed it. The weights (·2¹⁶) are three that are added: by how
    many contexts are known, by the bits of this byte so far, by the last byte."""

    p: np.ndarray
    seen: np.ndarray
    history: np.ndarray
    followed: np.ndarray
    heard: np.ndarray  # which contexts have a say, and, last, the match
    by_known: np.ndarray
    by_bits: np.ndarray
    by_byte: np.ndarray
    match: np.ndarray  # how often a match of each length goes on, ·2¹⁶
    places: np.ndarray  # where six bytes stood last
    now: np.ndarray  # last byte, where the match goes on, its length, words' hashes


@functools.cache
def tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The logistic function · 2¹⁶ of x/256, its inverse of (i + ½)/4096, and 2¹⁶/(n + 1.5): exp and ln of decimals, which
    are rounded alike everywhere."""
    with localcontext(prec=20):
        squash = [65536 / (1 + (Decimal(-x) / 256).exp()) for x in range(-2047, 2048)]
        p = [(2 * Decimal(i) + 1) / 8192 for i in range(4096)]
        stretch = [256 * (x / (1 - x)).ln() for x in p]
    share = [2 * 65536 // (2 * n + 3) for n in range(LIMIT + 1)]
    rounded = [np.array([round(x) for x in t]) for t in (squash, stretch, share)]
    rounded[1] = rounded[1].clip(-2047, 2047)
    return tuple(rounded)


class Mix:
    """A model of bytes that has seen `text`, and learns from every byte that it codes.

    Each context of each length counts which bits followed it. Its probability goes into a weighted sum on the logistic
    scale, and after each bit the weights take a step down the gradient of its code length (Mahoney 2005). It is for one
    thread at a time.

    Args:
        text: what it has seen before the first byte.
        heard: the contexts that have a say: 0 to 5 for as many bytes, 6 for the word so far, 7 for it and the word before,
            8 for the match with earlier text.
    Raises:
        ValueError: another number in `heard`, or none.
    """

    def __init__(self, text: bytes = b"", heard: Iterable[int] = range(ORDERS + 1)):
        heard = sorted(set(heard))
        if not heard or not set(heard) <= set(range(ORDERS + 1)):
            raise ValueError(f"heard must be some of 0 to {ORDERS}, got {heard}")
        weight = 1 << 14
        self.memory = Memory(
            np.full((ORDERS, SLOTS), 1 << 15, np.uint16),
            np.zeros((ORDERS, SLOTS), np.uint8),
            np.ones((ORDERS, SLOTS), np.uint8),
            np.full((ORDERS, 256), 1 << 15, np.int64),
            np.isin(np.arange(ORDERS + 1), heard),
            np.full((ORDERS + 1, INPUTS), weight, np.int64),
            np.full((256, INPUTS), weight, np.int64),
            np.zeros((256, INPUTS), np.int64),
            np.full(LONGEST + 1, 3 << 14, np.int64),
            np.full(1 << 18, -1, np.int64),
            np.zeros(5, np.int64),
        )
        self.text = b""
        self.learn(text)

    def learn(self, text: bytes) -> np.ndarray:
        """See `text`; what was said of its bits before each was seen: p(1)·2¹⁶, (8 · len(text),)."""
        text = memoryview(text).tobytes()
        history = np.frombuffer(self.text + text, np.uint8)
        ones = np.zeros(8 * len(text), np.int64)
        _learn(history, len(self.text), self.memory, *tables(), ones)
        self.text += text
        return ones

    def code_lengths(self, text: bytes) -> np.ndarray:
        """Bits that each byte of `text` takes, (len(text),); the model has seen it afterwards."""
        ones, bits = self.learn(text), np.unpackbits(np.frombuffer(text, np.uint8))
        p = np.where(bits, ones, 65536 - ones) / 65536
        return -np.log2(p).reshape(-1, 8).sum(1)

    def code_length(self, text: bytes) -> float:
        """Bits that `text` takes; the model has seen it afterwards."""
        return float(self.code_lengths(text).sum())

    def encode(self, text: bytes) -> bytes:
        """`text`, compressed; the model has seen it afterwards."""
        bits = np.unpackbits(np.frombuffer(text, np.uint8))
        return fast.encode_bits(bits, self.learn(text))

    def decode(self, data: bytes, length: int) -> bytes:
        """The `length` bytes that a model which had seen the same made `data` of.

        Raises:
            ValueError: the data are damaged or cut, or the model had seen something else.
        """
        trial = self.copy()  # damaged data shall teach nothing
        text, registers = trial._read(data, length)
        fast.close(data, registers, np.unpackbits(text))
        self.memory, self.text = trial.memory, trial.text
        return text.tobytes()

    def _read(self, data: bytes, length: int) -> tuple[np.ndarray, np.ndarray]:
        text = np.zeros(check_count("length", length, 0), np.uint8)
        history = np.append(np.frombuffer(self.text, np.uint8), text)
        registers, packed = fast.open_registers(data), np.frombuffer(data, np.uint8)
        _decode(history, len(self.text), self.memory, *tables(), registers, packed)
        text = history[len(self.text) :]
        self.text += text.tobytes()
        return text, registers

    def generate(self, length: int, noise: bytes) -> bytes:
        """`length` bytes drawn from the model: what its decoder makes of random bytes, which should be as many."""
        text, _ = self._read(noise, length)
        return text.tobytes()

    def copy(self) -> "Mix":
        """The same, to learn on its own."""
        return copy.deepcopy(self)


@fast.freely
def _learn(history, start, memory, squash, stretch, share, ones):
    contexts, slots = np.zeros(ORDERS, np.int64), np.zeros(ORDERS, np.int64)
    inputs = np.zeros(INPUTS, np.int64)
    for i in range(start, len(history)):
        _look(history, i, memory, contexts)
        so_far = 1  # the bits of this byte that are known, after a 1
        for k in range(8):
            bit = (history[i] >> (7 - k)) & 1
            one, parts = _predict(
                history, so_far, memory, stretch, squash, contexts, slots, inputs
            )
            ones[8 * (i - start) + k] = one
            _update(bit, one, parts, memory, squash, share, slots, inputs)
            so_far = 2 * so_far + bit


@fast.freely
def _decode(history, start, memory, squash, stretch, share, registers, data):
    contexts, slots = np.zeros(ORDERS, np.int64), np.zeros(ORDERS, np.int64)
    inputs = np.zeros(INPUTS, np.int64)
    for i in range(start, len(history)):
        _look(history, i, memory, contexts)
        so_far = 1
        for _ in range(8):
            one, parts = _predict(
                history, so_far, memory, stretch, squash, contexts, slots, inputs
            )
            bit = fast.pop_bit(registers, data, one)
            _update(bit, one, parts, memory, squash, share, slots, inputs)
            so_far = 2 * so_far + bit
        history[i] = so_far & 255


@fast.freely
def _look(history, i, memory, contexts):
    """Hash the contexts of byte `i`, and find what followed its last six bytes before."""
    now, places = memory.now, memory.places
    hashed = 0
    for order in range(MATCH):
        contexts[order] = hashed + order + 1
        if order < i:
            hashed = (hashed + history[i - 1 - order] + 1) * 0x2F0B4C47 & 0xFFFFFFFF
    if i:
        now[0] = history[i - 1]
        letter = now[0] | 32
        if 97 <= letter <= 122 or letter > 127:
            now[3] = (now[3] + letter + 1) * 0x2F0B4C47 & 0xFFFFFFFF
        elif now[3]:
            now[3], now[4] = 0, now[3]
    contexts[ORDERS - 2] = now[3] + 99
    contexts[ORDERS - 1] = (now[3] * 0x2F0B4C47 + now[4]) & 0xFFFFFFFF
    if now[2] and i and history[now[1]] == history[i - 1]:
        now[1], now[2] = now[1] + 1, min(now[2] + 1, LONGEST)
    else:
        now[2] = 0
    if i >= MATCH:
        slot = hashed >> 14
        if not now[2] and places[slot] >= 0:
            now[1] = places[slot]
            while (
                now[2] < LONGEST
                and now[2] < now[1]
                and history[now[1] - 1 - now[2]] == history[i - 1 - now[2]]
            ):
                now[2] += 1
        places[slot] = i


@fast.freely
def _predict(history, so_far, memory, stretch, squash, contexts, slots, inputs):
    """p(1)·2¹⁶ of the next bit, with what `_update` needs."""
    known = 0
    for k in range(ORDERS):
        hashed = (contexts[k] + so_far * 0x9E3779B1) * 0x2545F491 & 0xFFFFFFFFFF
        slots[k] = (hashed >> 12) % SLOTS
        p, n = memory.p[k, slots[k]], memory.seen[k, slots[k]]
        said = n > 0 and memory.heard[k]
        inputs[2 * k] = stretch[p >> 4] if said else 0
        followed = memory.followed[k, memory.history[k, slots[k]]]
        inputs[2 * k + 1] = stretch[followed >> 4] if said else 0
        known += said
    now = memory.now
    expected = -1
    if now[2]:
        byte = np.int64(history[now[1]]) | 256
        width = fast.bit_length(so_far)
        if byte >> (9 - width) == so_far:
            expected = (byte >> (8 - width)) & 1
    inputs[2 * ORDERS] = 0
    if expected >= 0 and memory.heard[ORDERS]:
        sure = stretch[memory.match[now[2]] >> 4]
        inputs[2 * ORDERS] = sure if expected else -sure
    inputs[2 * ORDERS + 1] = 256
    return _mixed(memory, known, so_far, inputs, squash), (known, so_far, expected)


@fast.inlined
def _mixed(memory, known, so_far, inputs, squash):
    """p(1)·2¹⁶: the logistic function of the weighted sum."""
    total = 0
    for k in range(INPUTS):
        weight = memory.by_known[known, k] + memory.by_bits[so_far, k]
        weight += memory.by_byte[memory.now[0], k]
        total += weight * inputs[k]
    x = min(max(total >> 17, -2047), 2047)
    return min(max(squash[x + 2047], 24), 65536 - 24)


@fast.inlined
def _step(memory, known, so_far, inputs, bit, one):
    """The weights, down the gradient."""
    error = ((bit << 16) - one) * RATE
    for k in range(INPUTS):
        step = inputs[k] * error + (1 << 17) >> 18
        memory.by_known[known, k] += step
        memory.by_bits[so_far, k] += step
        memory.by_byte[memory.now[0], k] += step


@fast.freely
def _update(bit, one, parts, memory, squash, share, slots, inputs):
    known, so_far, expected = parts
    _step(memory, known, so_far, inputs, bit, one)
    for k in range(ORDERS):
        p, n = np.int64(memory.p[k, slots[k]]), memory.seen[k, slots[k]]
        p += ((bit << 16) - p) * share[n] >> 16
        memory.p[k, slots[k]] = min(max(p, 16), 65535)
        memory.seen[k, slots[k]] = min(n + 1, LIMIT)
        past = np.int64(memory.history[k, slots[k]])
        memory.followed[k, past] += ((bit << 16) - memory.followed[k, past]) >> 7
        past = 2 * past + bit
        memory.history[k, slots[k]] = past if past < 256 else past & 127 | 128
    if expected >= 0:
        length = memory.now[2]
        memory.match[length] += ((expected == bit) * 65535 - memory.match[length]) >> 6
