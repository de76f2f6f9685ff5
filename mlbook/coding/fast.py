"""The integer coder compiled, for models whose numbers are at hand: the same bytes as `arithmetic.encode`, a hundred times
sooner."""

import hashlib
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

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
HERE = Path(__file__).parent
SOURCES = [HERE / f"{name}.py" for name in ("arithmetic", "fast", "mixing")]
KEPT = hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()


def jit(function: Callable | None = None, **options):
    """Compiled by Numba, and kept beside the sources as long as none of them changes: Numba looks only at the file in
    which the function stands, not at what it calls or takes from others."""
    if function is None:
        return lambda function: jit(function, **options)
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = before or str(HERE / "__pycache__" / KEPT[:12])
    try:
        return numba.njit(cache=True, **options)(function)
    finally:
        numba.config.CACHE_DIR = before


freely = jit(nogil=True, error_model="numpy")
inlined = jit(nogil=True, error_model="numpy", inline="always")


def encode(symbols: Sequence[int], weights: Sequence) -> bytes:
    """What `arithmetic.encode(symbols, Static(weights))` gives.

    Args:
        symbols: (n,) integers, or bytes.
    Raises:
        ValueError: as there.
    """
    frequencies = quantise(weights)
    if isinstance(symbols, bytes | bytearray):
        symbols = np.frombuffer(symbols, np.uint8)
    symbols = np.asarray(symbols)
    if not symbols.size:
        symbols = symbols.astype(np.int64)
    wrong = symbols.dtype.kind not in "iu" or symbols.ndim != 1
    if wrong or (symbols < 0).any() or (symbols >= len(frequencies)).any():
        list(check_symbols(symbols.tolist(), len(frequencies)))
        raise ValueError(
            f"symbols are one row of integers, got {symbols.dtype} {symbols.shape}"
        )
    symbols = symbols.astype(np.int64, copy=False)
    return _finish(symbols, symbols, frequencies.cumsum() - frequencies, frequencies)


def encode_bits(bits: np.ndarray, ones: np.ndarray) -> bytes:
    """What `arithmetic.encode(bits, model)` gives, with a model in which bit i is 1 with probability `ones[i]`/2**16.

    Args:
        bits, ones: (n,) integers; `ones` from 1 to 2**16 - 1.
    Raises:
        ValueError: they are not.
    """
    for name, row, least, most in (("bits", bits, 0, 1), ("ones", ones, 1, 65535)):
        good = row.dtype.kind in "iu" and row.shape == (len(bits),)
        if not good or ((row < least) | (row > most)).any():
            raise ValueError(
                f"{name} are ({len(bits)},) integers from {least} to {most}, got {row.dtype} {row.shape}: {row}"
            )
    ones = ones.astype(np.int64) << (PRECISION - 16)
    zeros = (1 << PRECISION) - ones
    starts, sizes = np.where(bits, zeros, 0), np.where(bits, ones, zeros)
    return _finish(bits, np.arange(len(bits)), starts, sizes)


def _finish(symbols, places, starts, sizes) -> bytes:
    out = np.zeros(len(symbols) * PRECISION // 8 + 32, np.uint8)
    seen = zlib.crc32(symbols.astype("<u4").tobytes()) % (1 << CHECK)
    part = 1 << (PRECISION - CHECK)
    n = _write(places, np.append(starts, seen * part), np.append(sizes, part), out)
    return out[:n].tobytes()


@freely
def _write(places, starts, sizes, out):
    """Narrow to the part at each of `places` of the table, and at last to the table's last, which is the check."""
    low, width, pending = 0, 1 << REGISTER, 0
    held, many, n = 0, 0, 0  # bits that wait, how many they are, bytes written
    for i in range(len(places) + 1):
        place = places[i] if i < len(places) else len(starts) - 1
        unit = width >> PRECISION
        low += unit * starts[place]
        width = unit * sizes[place]
        settled, straddling = shifts(low, width)
        if settled:
            bits = low >> (REGISTER - settled)
            low -= bits << (REGISTER - settled)
            first = bits >> (settled - 1)
            rest = bits - (first << (settled - 1))
            if pending + settled < 32:  # 01…1 or 10…0, and the rest
                bits = ((1 << pending) - 1 + first) << (settled - 1) | rest
                held, many, n = _put(held, many, n, out, bits, pending + settled)
            else:
                held, many, n = _put(held, many, n, out, first, 1)
                for _ in range(pending):
                    held, many, n = _put(held, many, n, out, 1 - first, 1)
                held, many, n = _put(held, many, n, out, rest, settled - 1)
            pending = 0
        low = (low << settled) - (HALF - (HALF >> straddling)) << straddling
        width <<= settled + straddling
        pending += straddling
    held, many, n = _put(held, many, n, out, 1, 1)
    held <<= 32 - many
    for shift in (24, 16, 8, 0):
        out[n] = held >> shift
        n += 1
    return n - (32 - many) // 8


@inlined
def _put(held, many, n, out, bits, count):
    """`count` < 32 more bits; four bytes are written when they are full."""
    held, many = held << count | bits, many + count
    if many >= 32:
        many -= 32
        four = held >> many
        out[n], out[n + 1] = four >> 24, four >> 16
        out[n + 2], out[n + 3] = four >> 8, four
        n += 4
        held &= (1 << many) - 1
    return held, many, n


@freely
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
    ends, data = quantise(weights).cumsum(), memoryview(data).tobytes()
    symbols = np.zeros(check_count("length", length, 0), np.int64)
    registers = open_registers(data)
    first = ends.searchsorted(np.arange(1 << LOOK) << (PRECISION - LOOK), side="right")
    _read(np.frombuffer(data, np.uint8), registers, ends, first, symbols)
    close(data, registers, symbols)
    return symbols


def open_registers(data: bytes) -> np.ndarray:
    """A decoder's numbers as `narrow` changes them: low, width, value, bits read, bits pending."""
    decoder = Decoder(data)
    return np.array([decoder.low, decoder.width, decoder.value, decoder.read, 0])


def close(data: bytes, registers: np.ndarray, symbols: np.ndarray) -> None:
    """Check the end of what has been read, as `arithmetic.Decoder.finish` does."""
    decoder = Decoder(data)
    decoder.low, decoder.width, decoder.value, decoder.read, decoder.pending = (
        registers.tolist()
    )
    decoder.seen = zlib.crc32(symbols.astype("<u4").tobytes())
    decoder.finish()


@freely
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


@freely
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


@freely
def pop_bit(registers, data, one):
    """The next bit, which is 1 with probability `one`/2**16."""
    target = (registers[2] - registers[0]) // (registers[1] >> PRECISION)
    zero = (1 << PRECISION) - (one << (PRECISION - 16))
    if target < zero:
        narrow(registers, data, 0, zero)
        return 0
    narrow(registers, data, zero, (1 << PRECISION) - zero)
    return 1
