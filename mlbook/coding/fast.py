"""The integer coder compiled, for models whose numbers are at hand: the same bytes as `arithmetic.encode`, a hundred times
sooner."""

import zlib
from collections.abc import Sequence

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from mlbook.coding.arithmetic import (
    CHECK,
    HALF,
    PRECISION,
    REGISTER,
    Decoder,
    check_symbols,
    quantise,
)
from mlbook.common.checks import check_count

LOOK = 12  # bits of a number that say where in a table to begin
jit = numba.njit(cache=True, nogil=True, error_model="numpy")


def encode(symbols: np.ndarray, weights: Sequence) -> bytes:
    """What `arithmetic.encode(symbols, Static(weights))` gives.

    Args:
        symbols: (n,) integers.
    Raises:
        ValueError: as there.
    """
    frequencies = quantise(weights)
    symbols = np.asarray(symbols)
    wrong = symbols.dtype.kind not in "iu" or symbols.ndim != 1
    if wrong or (symbols < 0).any() or (symbols >= len(frequencies)).any():
        list(check_symbols(symbols.tolist(), len(frequencies)))
        raise ValueError(
            f"symbols are one row of integers, got {symbols.dtype} {symbols.shape}"
        )
    starts = frequencies.cumsum() - frequencies
    return _finish(_write_static, symbols.astype(np.int64), starts, frequencies)


def encode_bits(bits: np.ndarray, ones: np.ndarray) -> bytes:
    """What `arithmetic.encode(bits, model)` gives, with a model in which bit i is 1 with probability `ones[i]`/2**16."""
    return _finish(_write_bits, bits, ones.astype(np.int64))


def _finish(write, symbols: np.ndarray, *numbers: np.ndarray) -> bytes:
    out = np.zeros(len(symbols) * PRECISION // 8 + 16, np.uint8)
    seen = zlib.crc32(symbols.astype("<u4").tobytes()) % (1 << CHECK)
    return out[: write(symbols, *numbers, seen, out)].tobytes()


@jit
def _write_static(symbols, starts, sizes, seen, out):
    state = opened()
    for symbol in symbols:
        state = _push(state, out, starts[symbol], sizes[symbol])
    return _end(state, out, seen)


@jit
def _write_bits(bits, ones, seen, out):
    state = opened()
    for i in range(len(bits)):
        start, size = part(bits[i], ones[i])
        state = _push(state, out, start, size)
    return _end(state, out, seen)


@jit
def part(bit, one):
    """Where bit 0 or 1 lies among 2**PRECISION parts, and how many it has."""
    one <<= PRECISION - 16
    return ((1 << PRECISION) - one, one) if bit else (0, (1 << PRECISION) - one)


@jit
def opened():
    """low, width, bits pending, bits that wait for a whole byte, how many they are, bytes written."""
    return 0, 1 << REGISTER, 0, 0, 0, 0


@jit
def _push(state, out, start, size):
    low, width, pending, bits, many, n = state
    unit = width >> PRECISION
    low += unit * start
    width = unit * size
    settled, straddling = shifts(low, width)
    if settled:
        first = low >> (REGISTER - 1)
        top = low >> (REGISTER - settled)
        low -= top << (REGISTER - settled)
        if pending:  # the first bit, its opposites, and then the others
            bits, many, n = _put(bits, many, n, out, first, 1)
            while pending:
                some = min(pending, 24)
                opposites = (1 - first) * ((1 << some) - 1)
                bits, many, n = _put(bits, many, n, out, opposites, some)
                pending -= some
            top -= first << (settled - 1)
            bits, many, n = _put(bits, many, n, out, top, settled - 1)
        else:
            bits, many, n = _put(bits, many, n, out, top, settled)
    low = (low << settled) - (HALF - (HALF >> straddling)) << straddling
    width <<= settled + straddling
    return low, width, pending + straddling, bits, many, n


@jit
def _end(state, out, seen):
    size = 1 << (PRECISION - CHECK)
    _, _, _, bits, many, n = _push(state, out, seen * size, size)
    bits, many, n = _put(bits, many, n, out, 1, 1)
    bits, many, n = _put(bits, many, n, out, 0, -many % 8)
    return n


@jit
def _put(held, many, n, out, bits, count):
    held, many = held << count | bits, many + count
    while many >= 8:
        many -= 8
        out[n] = held >> many
        n += 1
    return held & ((1 << many) - 1), many, n


@jit
def shifts(low, width):
    """How often the interval is doubled because its numbers share their first bit (E1, E2), and then because they begin
    01 or 10 (E3)."""
    last = low + width - 1
    settled = REGISTER - bit_length(low ^ last)
    mask = (HALF >> settled) - 1  # what follows the first bit in which the ends differ
    straddling = REGISTER - 1 - settled - bit_length(~(low & ~last) & mask)
    return settled, straddling


@intrinsic
def bit_length(context, x):
    """Of a non-negative int64, as `int.bit_length`: one instruction of the processor."""

    def build(context, builder, signature, arguments):
        zeros = builder.ctlz(arguments[0], context.get_constant(types.boolean, False))
        return builder.sub(context.get_constant(types.int64, 64), zeros)

    return types.int64(types.int64), build


def decode(data: bytes, weights: Sequence, length: int) -> np.ndarray:
    """What `arithmetic.decode(data, Static(weights), length)` gives, as (length,) int64.

    Raises:
        ValueError: as there.
    """
    ends = quantise(weights).cumsum()
    symbols = np.zeros(check_count("length", length, 0), np.int64)
    decoder, registers = Decoder(data), open_registers(data)
    first = ends.searchsorted(np.arange(1 << LOOK) << (PRECISION - LOOK), side="right")
    _read(np.frombuffer(data, np.uint8), registers, ends, first, symbols)
    close(decoder, registers, symbols)
    return symbols


def open_registers(data: bytes) -> np.ndarray:
    """A decoder's numbers as `narrow` changes them: low, width, value, bits read, bits pending."""
    decoder = Decoder(data)
    return np.array([decoder.low, decoder.width, decoder.value, decoder.read, 0])


def close(decoder: Decoder, registers: np.ndarray, symbols: np.ndarray) -> None:
    """Check the end of what has been read."""
    decoder.low, decoder.width, decoder.value, decoder.read, decoder.pending = (
        registers.tolist()
    )
    decoder.seen = zlib.crc32(symbols.astype("<u4").tobytes())
    decoder.finish()


@jit
def _read(data, registers, ends, first, symbols):
    for i in range(len(symbols)):
        target = (registers[2] - registers[0]) // (registers[1] >> PRECISION)
        if not 0 <= target < 1 << PRECISION:
            return  # damaged, as `close` will say
        symbol = first[target >> (PRECISION - LOOK)]
        while ends[symbol] <= target:
            symbol += 1
        start = ends[symbol - 1] if symbol else 0
        narrow(registers, data, start, ends[symbol] - start)
        symbols[i] = symbol


@jit
def narrow(registers, data, start, size):
    """`arithmetic.Decoder._narrow` on the numbers of `open_registers`."""
    low, width, value, read, pending = registers
    unit = width >> PRECISION
    low += unit * start
    width = unit * size
    settled, straddling = shifts(low, width)
    if settled:
        top = (low >> (REGISTER - settled)) << (REGISTER - settled)
        low, value, pending = low - top, value - top, 0
    pending += straddling
    cut = HALF - (HALF >> straddling)
    shift = settled + straddling
    low = (low << settled) - cut << straddling
    width <<= shift
    value = (value << settled) - cut
    value <<= straddling
    need, have = shift, 0
    while need:  # bits of the next bytes
        byte, place = read >> 3, read & 7
        take = min(need, 8 - place)
        bits = data[byte] if byte < len(data) else 0
        have = have << take | (bits >> (8 - place - take)) & ((1 << take) - 1)
        read += take
        need -= take
    registers[:] = low, width, value + have, read, pending


@jit
def pop_bit(registers, data, one):
    """The next bit, which is 1 with probability `one`/2**16."""
    target = (registers[2] - registers[0]) // (registers[1] >> PRECISION)
    start, _ = part(1, one)
    bit = 1 if target >= start else 0
    start, size = part(bit, one)
    narrow(registers, data, start, size)
    return bit
