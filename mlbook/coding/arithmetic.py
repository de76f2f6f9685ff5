"""Arithmetic coding: exactly, in fractions, and as it is used, in integers and bit by bit.

A *model* gives the distribution of the next symbol from those before. It has a `size`, the number of symbols, and
`start()`, which returns a fresh state with two methods: `predict()`, `size` numbers in proportion to the probabilities
(floats, integers or fractions), as often as it is asked, and `update(symbol)`. `Conditional` and `Static` make one of a function and of a table.
"""

import itertools
import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Protocol

import numpy as np

from mlbook.common.checks import check_count

PRECISION = 30  # frequencies sum to 2**PRECISION
REGISTER = 62  # bits of the interval's ends: a step loses at most 2**-30 of its width
HALF, QUARTER = 1 << (REGISTER - 1), 1 << (REGISTER - 2)
CHECK = 22  # bits that tell a damaged message, in its own last symbol


class State(Protocol):
    def predict(self) -> Sequence: ...
    def update(self, symbol: int) -> None: ...


class Model(Protocol):
    size: int

    def start(self) -> State: ...


class Conditional:
    """The model whose next symbol has probabilities in proportion to `function(past)`, `past` a tuple of symbols."""

    def __init__(self, function: Callable[[tuple[int, ...]], Sequence], size: int):
        self.function, self.size = function, check_count("size", size)

    def start(self) -> State:
        return _Past(self.function)


class _Past:
    def __init__(self, function):
        self.function, self.past = function, ()

    def predict(self):
        return self.function(self.past)

    def update(self, symbol):
        self.past += (symbol,)


class Static:
    """The model of independent symbols: `weights` at every step."""

    def __init__(self, weights: Sequence):
        self.weights, self.size = weights, len(weights)

    def start(self) -> "Static":
        return self

    def predict(self) -> Sequence:
        return self.weights

    def update(self, symbol: int) -> None:
        pass


# In fractions


def interval(symbols: Iterable[int], model: Model) -> tuple[Fraction, Fraction]:
    """The part [low, high) of [0, 1) that is the symbols', as wide as they are probable.

    Each symbol takes, of the interval of those before it, the part that its probability
    says, in the symbols' order (Elias, in Abramson 1963; Rissanen 1976).

    Raises:
        ValueError: a symbol out of range or of probability 0, or a distribution with a number that is none.
    """
    low, width, state = Fraction(0), Fraction(1), model.start()
    for symbol in check_symbols(symbols, model.size):
        weights = check_distribution(state.predict(), model.size)
        weights = [Fraction(w) for w in weights]
        total, below = sum(weights), sum(weights[:symbol])
        if not weights[symbol]:
            raise ValueError(f"symbol {symbol} has probability 0 and cannot be coded")
        low += width * below / total
        width *= weights[symbol] / total
        state.update(symbol)
    return low, low + width


def shortest_word(low: Fraction, high: Fraction) -> str:
    """The fewest bits b such that every number that begins 0.b lies in [low, high).

    At most ⌈−log₂(high − low)⌉ + 1; no message beside it begins so.
    """
    check_interval(low, high)
    for n in itertools.count():
        first = math.ceil(low * 2**n)
        if first + 1 <= high * 2**n:
            return format(first, f"0{n}b") if n else ""


def shortest_number(low: Fraction, high: Fraction) -> str:
    """The fewest bits b such that the number 0.b000… lies in [low, high): enough for who knows where they end."""
    check_interval(low, high)
    for n in itertools.count():
        first = math.ceil(low * 2**n)
        if first < high * 2**n:
            return format(first, f"0{n}b") if n else ""


def exact_code(symbols: Iterable[int], model: Model) -> str:
    """The bits of arithmetic coding without rounding, as a word that no other message of this length begins."""
    return shortest_word(*interval(symbols, model))


# In integers


def quantise(weights: Sequence, precision: int = PRECISION) -> np.ndarray:
    """Integer frequencies in proportion to `weights`: (size,) int64, each at least 1, together 2**precision.

    Integers (and fractions) are computed without rounding, and so give the same frequencies on every machine. Floats are
    rounded, as IEEE 754 says, at each step; they give the same frequencies where they are the same to the last bit.

    Raises:
        ValueError: a weight is negative, NaN or infinite, all are 0, or there are more than 2**precision.
    """
    room = (1 << precision) - len(weights)
    if room < 0:
        raise ValueError(f"{len(weights)} symbols cannot share 2**{precision} parts")
    array = np.asarray(weights)
    if array.dtype.kind == "f":
        array = array.astype(np.float64)
        good = array.ndim == 1 and array.any() and (array >= 0).all()
        if not good or not np.isfinite(array).all():
            check_distribution(array, len(array))
        array /= array.max()
        shares = np.floor(array * (room / math.fsum(array.tolist()))).astype(np.int64)
    else:
        exact = array.tolist() if array.dtype.kind in "iu" else weights
        if array.ndim != 1 or not all(w >= 0 for w in exact) or not any(exact):
            check_distribution(weights, len(weights))
        total = sum(exact)
        shares = np.array([math.floor(w * room // total) for w in exact], np.int64)
    frequencies = shares + 1
    frequencies[array.argmax()] += room - shares.sum()
    return frequencies


class Encoder:
    """Symbols in, bytes out, by numbers of 62 bits (Witten, Neal and Cleary 1987)."""

    def __init__(self):
        self.low, self.width = 0, 1 << REGISTER
        self.bits, self.pending, self.seen = [], 0, 0

    def push(self, symbol: int, frequencies: np.ndarray) -> None:
        """Narrow the interval to the part of `symbol`; frequencies: of `quantise`.

        Raises:
            ValueError: the symbol has no part.
        """
        if frequencies[symbol] < 1:
            raise ValueError(f"symbol {symbol} has frequency {frequencies[symbol]}")
        self.seen = zlib.crc32(int(symbol).to_bytes(4, "little"), self.seen)
        self._narrow(int(frequencies[:symbol].sum()), int(frequencies[symbol]))

    def finish(self) -> bytes:
        """What has been written, a check of 22 bits, and as many as fill a byte. Once."""
        part = PRECISION - CHECK
        self._narrow((self.seen % (1 << CHECK)) << part, 1 << part)
        self._write(1)  # one half lies inside, whatever the interval is
        bits = "".join(map(str, self.bits)).rstrip("0")
        return int(bits.ljust(-len(bits) % 8 + len(bits), "0"), 2).to_bytes(
            (len(bits) + 7) // 8, "big"
        )

    def _narrow(self, start: int, size: int) -> None:
        unit = self.width >> PRECISION
        self.low, self.width = self.low + unit * start, unit * size
        while self._settle():
            self.low, self.width = 2 * self.low, 2 * self.width

    def _settle(self) -> str:
        """Which case lets the interval be doubled, if one does."""
        if self.low + self.width <= HALF:
            self._write(0)
            return "E1"
        if self.low >= HALF:
            self._write(1)
            self.low -= HALF
            return "E2"
        if self.low >= QUARTER and self.low + self.width <= 3 * QUARTER:
            self.pending += 1  # the next two bits are 01 or 10
            self.low -= QUARTER
            return "E3"
        return ""

    def _write(self, bit: int) -> None:
        self.bits += [bit] + [1 - bit] * self.pending
        self.pending = 0


class Decoder:
    """Bytes in, symbols out: it walks the encoder's intervals, and looks which part the number lies in."""

    def __init__(self, data: bytes):
        self.low, self.width, self.pending, self.seen = 0, 1 << REGISTER, 0, 0
        self.data, self.read = memoryview(data).tobytes(), REGISTER
        head = int.from_bytes(self.data[:8].ljust(8, b"\0"), "big")
        self.value = head >> (64 - REGISTER)

    def pop(self, frequencies: np.ndarray) -> int:
        """The next symbol.

        Raises:
            ValueError: the number lies in no symbol's part: the data are damaged.
        """
        ends = frequencies.cumsum()
        symbol = int(ends.searchsorted(self._target(), side="right"))
        self._narrow(int(ends[symbol] - frequencies[symbol]), int(frequencies[symbol]))
        self.seen = zlib.crc32(symbol.to_bytes(4, "little"), self.seen)
        return symbol

    def finish(self) -> None:
        """Compare the check, and see that the data end where they should.

        Raises:
            ValueError: they are damaged, cut, or longer; or the model is not the one that encoded.
        """
        part = PRECISION - CHECK
        check = self._target() >> part
        self._narrow(check << part, 1 << part)
        last = self.read - REGISTER - self.pending  # where the bit stands that ends it
        whole = self.value == HALF and len(self.data) == last // 8 + 1
        if check != self.seen % (1 << CHECK) or not whole:
            raise ValueError(_DAMAGED)

    def _target(self) -> int:
        target = (self.value - self.low) // (self.width >> PRECISION)
        if not 0 <= target < 1 << PRECISION:
            raise ValueError(_DAMAGED)
        return target

    def _narrow(self, start: int, size: int) -> None:
        unit = self.width >> PRECISION
        self.low, self.width = self.low + unit * start, unit * size
        while True:
            if self.low + self.width <= HALF:
                cut = 0
            elif self.low >= HALF:
                cut = HALF
            elif self.low >= QUARTER and self.low + self.width <= 3 * QUARTER:
                cut = QUARTER
            else:
                return
            self.pending = self.pending + 1 if cut == QUARTER else 0
            self.low, self.width = 2 * (self.low - cut), 2 * self.width
            self.value = 2 * (self.value - cut) + self._bit()

    def _bit(self) -> int:
        byte, place = divmod(self.read, 8)
        self.read += 1
        return self.data[byte] >> (7 - place) & 1 if byte < len(self.data) else 0


_DAMAGED = "the check fails: the data are damaged or cut, the length is another, or the model is not the one that encoded"


def encode(symbols: Iterable[int], model: Model) -> bytes:
    """`symbols` as bytes, in −log₂ P(symbols) bits and at most 30 more: a check of 22, and the end in a whole byte.

    Raises:
        ValueError: a symbol is out of range, or the model's numbers are no distribution.
    """
    state, encoder = model.start(), Encoder()
    for symbol in check_symbols(symbols, model.size):
        encoder.push(symbol, _frequencies(state, model.size))
        state.update(symbol)
    return encoder.finish()


def decode(data: bytes, model: Model, length: int) -> list[int]:
    """The `length` symbols that `encode` made `data` of, with the same model.

    Raises:
        ValueError: the data are damaged or cut, the length is wrong, or the model is not the one that encoded.
    """
    state, decoder, symbols = model.start(), Decoder(data), []
    for _ in range(check_count("length", length, 0)):
        symbols.append(decoder.pop(_frequencies(state, model.size)))
        state.update(symbols[-1])
    decoder.finish()
    return symbols


def sample(
    model: Model, length: int, noise: bytes, past: Iterable[int] = ()
) -> list[int]:
    """`length` symbols drawn from the model after `past`: what its decoder makes of random bytes.

    Raises:
        ValueError: the noise is too short for so many; a symbol of `past` is out of range, or as `encode`.
    """
    state, decoder, symbols = model.start(), Decoder(noise), []
    for symbol in check_symbols(past, model.size):
        state.update(symbol)
    for _ in range(check_count("length", length, 0)):
        symbols.append(decoder.pop(_frequencies(state, model.size)))
        state.update(symbols[-1])
    if decoder.read > 8 * len(noise):
        raise ValueError(
            f"{length} symbols take {decoder.read} random bits, got {len(noise)} bytes"
        )
    return symbols


def code_length(symbols: Iterable[int], model: Model, quantised: bool = False) -> float:
    """−Σ log₂ p(symbol | those before) in bits: what no coder with this model falls below on average.

    Args:
        quantised: with the integer frequencies that the coder uses, instead of the model's own numbers.
    Raises:
        ValueError: as `encode`; also, unless `quantised`, a symbol of probability 0.
    """
    state, lengths = model.start(), []
    for symbol in check_symbols(symbols, model.size):
        if quantised:
            frequency = int(_frequencies(state, model.size)[symbol])
            lengths.append(-math.log2(frequency / 2**PRECISION))
        else:
            weights = check_distribution(state.predict(), model.size)
            if not weights[symbol]:
                raise ValueError(
                    f"symbol {symbol} has probability 0 and cannot be coded"
                )
            floats = any(isinstance(w, float) for w in weights)
            total = math.fsum(weights) if floats else sum(weights)
            p = Fraction(weights[symbol]) / Fraction(
                total
            )  # too small for a float, perhaps
            lengths.append(math.log2(p.denominator) - math.log2(p.numerator))
        state.update(symbol)
    return math.fsum(lengths)


def _frequencies(state: State, size: int) -> np.ndarray:
    frequencies = quantise(state.predict())
    if len(frequencies) != size:
        raise ValueError(
            f"the model has {size} symbols and gives {len(frequencies)} numbers"
        )
    return frequencies


def check_interval(low: Fraction, high: Fraction) -> None:
    if not 0 <= low < high <= 1:
        raise ValueError(f"[{low}, {high}) is no interval of [0, 1)")


def check_symbols(symbols: Iterable[int], size: int) -> Iterable[int]:
    """`symbols`, one by one, each a whole number in [0, size)."""
    for i, symbol in enumerate(symbols):
        if check_count(f"symbol {i}", symbol, 0) >= size:
            raise ValueError(f"symbol {i} is {symbol}; the model has 0 to {size - 1}")
        yield int(symbol)


def check_distribution(weights: Sequence, size: int) -> list:
    """`weights` as Python's numbers, if there are `size` of them, none negative, NaN or infinite, and not all 0."""
    if np.ndim(weights) != 1 or len(weights) != size:
        raise ValueError(
            f"the model has {size} symbols and gives numbers of shape {np.shape(weights)}"
        )
    plain = [w.item() if isinstance(w, np.generic) else w for w in weights]
    for symbol, w in enumerate(plain):
        if not 0 <= w < math.inf:
            raise ValueError(f"the model gives symbol {symbol} the probability {w}")
    if not any(plain):
        raise ValueError("the model gives every symbol the probability 0")
    return plain
