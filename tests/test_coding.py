"""Coders give back what they were given, in as many bits as the model says, and refuse what they cannot decode."""

import itertools
import math
import os
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlbook.coding import codes, fast, mixing
from mlbook.coding.arithmetic import (
    PRECISION,
    Conditional,
    Encoder,
    Static,
    code_length,
    decode,
    encode,
    exact_code,
    interval,
    quantise,
    sample,
    shortest_number,
    shortest_word,
)
from mlbook.coding.mixing import Mix

some = settings(max_examples=40, deadline=None, derandomize=True)
few = settings(some, max_examples=10)
SEEDS = st.integers(0, 2**32 - 1)

# --- In fractions --------------------------------------------------------------------------------

AIXI = {
    (): "0.45 0.3 0.25",
    (0,): "0.2 0.6 0.2",
    (0, 1): "0.2 0.45 0.35",
    (0, 1, 2): "0.6 0.2 0.2",
}


def aixi():
    table = {past: [Fraction(p) for p in row.split()] for past, row in AIXI.items()}
    return Conditional(table.__getitem__, 3)


def fractional(seed, size, zeros=False):
    """An order-1 model with small whole weights."""
    rng = np.random.default_rng(seed)
    table = rng.integers(0 if zeros else 1, 9, (size + 1, size)).tolist()
    for row in table:
        row[0] += not any(row)
    return Conditional(lambda past: table[past[-1] + 1 if past else 0], size)


def test_the_example_of_language_modeling_is_compression():
    low, high = interval([0, 1, 2, 1], aixi())
    assert (low, high) == (Fraction(3222, 10_000), Fraction(3411, 10_000))
    assert exact_code([0, 1, 2, 1], aixi()) == shortest_word(low, high) == "0101010"
    assert shortest_number(low, high) == "010101"
    assert code_length([0, 1, 2, 1], aixi()) == pytest.approx(-math.log2(0.0189))
    data = encode([0, 1, 2, 1], aixi())
    assert decode(data, aixi(), 4) == [0, 1, 2, 1]


def test_one_of_two_equal_messages_takes_one_bit_and_the_others_have_none():
    model = Conditional(lambda past: [1 - past[0], past[0]] if past else [1, 1], 2)
    assert exact_code([0] * 9, model) == "0" and exact_code([1] * 9, model) == "1"
    assert shortest_number(*interval([1] * 9, model)) == "1"
    assert code_length([1] * 9, model) == 1
    for function in (interval, exact_code, code_length):
        with pytest.raises(ValueError, match="symbol 1 has probability 0 and cannot"):
            function([0, 1], model)


def test_four_symbols_of_one_bit_each():
    model = Static([Fraction(1, 4), Fraction(1, 4), Fraction(1, 2)])
    assert decode(encode([2, 2, 2, 2], model), model, 4) == [2, 2, 2, 2]
    assert code_length([2, 2, 2, 2], model) == 4
    assert 4 <= len(exact_code([2, 2, 2, 2], model)) <= 6


@pytest.mark.parametrize(("size", "length"), [(2, 5), (3, 3), (5, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_messages_tile_the_line_and_none_begins_another(size, length, seed):
    model = fractional(seed, size)
    messages = list(itertools.product(range(size), repeat=length))
    parts = [interval(message, model) for message in messages]
    ends = [high for _, high in parts]
    assert [low for low, _ in parts] == [0, *ends[:-1]] and ends[-1] == 1
    words = [exact_code(message, model) for message in messages]
    assert codes.is_prefix_free(words)
    for message, (low, high), word in zip(messages, parts, words, strict=True):
        number, p = shortest_number(low, high), high - low
        assert low <= in_binary(word) and in_binary(word) + 2 ** -len(word) <= high
        assert low <= in_binary(number) < high and len(number) <= len(word)
        assert -math.log2(p) <= len(word) <= math.ceil(-math.log2(p)) + 1
        assert code_length(message, model) == pytest.approx(-math.log2(p))


def in_binary(bits):
    return Fraction(int(bits or "0", 2), 2 ** len(bits))


@some
@given(st.lists(st.fractions(0, 1), min_size=2, max_size=2, unique=True).map(sorted))
@example([0, 1])
@example([Fraction(1, 3), Fraction(1, 3) + Fraction(1, 10**30)])
def test_no_shorter_word_and_no_shorter_number_lies_inside(ends):
    low, high = map(Fraction, ends)
    word, number = shortest_word(low, high), shortest_number(low, high)
    assert low <= in_binary(word) and in_binary(word + "1" * 200) < high
    assert low <= in_binary(number) < high
    for n in range(len(word)):
        assert math.ceil(low * 2**n) + 1 > high * 2**n
    for n in range(len(number)):
        assert math.ceil(low * 2**n) >= high * 2**n


def test_nothing_takes_no_bits():
    assert interval([], aixi()) == (0, 1)
    assert exact_code([], aixi()) == shortest_number(Fraction(0), Fraction(1)) == ""
    assert code_length([], aixi()) == code_length([], aixi(), quantised=True) == 0


@pytest.mark.parametrize("function", [shortest_word, shortest_number])
@pytest.mark.parametrize(
    ("low", "high"), [("1/2", "1/2"), ("3/4", "1/2"), ("-1/2", "1/2"), ("3/2", "2")]
)
def test_what_is_no_interval_is_refused(function, low, high):
    with pytest.raises(ValueError, match=re.escape(f"[{low}, {high}) is no interval")):
        function(Fraction(low), Fraction(high))


def test_probabilities_too_small_for_floats_are_not_nothing():
    model = Static([1, Fraction(1, 10**400)])
    assert code_length([1], model) == pytest.approx(400 * math.log2(10), rel=1e-14)
    assert len(exact_code([1], model)) in (1329, 1330)
    assert code_length([1], Static([1e300, 5e-324])) == pytest.approx(1074 + 996.578)
    assert code_length([1] * 9, model, quantised=True) == 9 * PRECISION
    assert decode(encode([1] * 9, model), model, 9) == [1] * 9


# --- Frequencies ---------------------------------------------------------------------------------


def by_hand(weights, precision=PRECISION):
    """One for each symbol, the rest by weight and rounded down, what is left to the first of the greatest."""
    room, total = 2**precision - len(weights), sum(map(Fraction, weights))
    frequencies = [1 + math.floor(Fraction(w) / total * room) for w in weights]
    frequencies[weights.index(max(weights))] += 2**precision - sum(frequencies)
    return frequencies


WEIGHTS = st.lists(st.integers(0, 2**62), min_size=1, max_size=40).filter(any)


@some
@given(WEIGHTS, st.integers(6, 40))
@example([2**40, 2**40 + 1, 2**40 + 1], PRECISION)
@example([2**64, 1, 2**200], PRECISION)
def test_whole_weights_are_shared_without_rounding(weights, precision):
    frequencies = quantise(weights, precision)
    assert frequencies.dtype == np.int64
    assert frequencies.tolist() == by_hand(weights, precision)
    assert frequencies.min() >= 1 and frequencies.sum() == 2**precision


@some
@given(st.lists(st.integers(0, 127), min_size=2, max_size=40).filter(any))
def test_frequencies_do_not_depend_on_the_type_of_whole_weights(weights):
    expected = quantise(weights).tolist()
    for dtype in (np.int8, np.uint8, np.int32, np.int64, np.uint64, object):
        assert quantise(np.array(weights, dtype)).tolist() == expected
    assert quantise(tuple(weights)).tolist() == expected
    assert quantise([Fraction(w, 7) for w in weights]).tolist() == expected
    floats = np.array(weights) / 128
    assert quantise(floats).tolist() == quantise(floats.astype(np.float32)).tolist()
    assert quantise(floats).tolist() == quantise(floats.tolist()).tolist()


POSITIVE = st.lists(st.floats(0, 1e308), min_size=1, max_size=40).filter(any)


@some
@given(POSITIVE)
@example([5e-324, 0.0])
@example([1e308, 1e308, 1e308])
@example([1.0, math.nextafter(1, 2), math.nextafter(1, 2)])
@example([1e-300, 1e300])
def test_floats_are_shared_nearly_as_the_numbers_they_stand_for(weights):
    frequencies, exact = quantise(weights), np.array(by_hand(weights))
    assert frequencies.min() >= 1 and frequencies.sum() == 2**PRECISION
    off = np.abs(frequencies - exact)
    assert off.sum() <= 2 * len(weights)
    assert max(np.delete(off, np.argmax(weights)), default=0) <= 1


@some
@given(st.one_of(WEIGHTS, POSITIVE))
@example([2**40, 2**40 + 1, 2**40 + 1])
@example([1.0, math.nextafter(1, 2), math.nextafter(1, 2)])
def test_more_weight_never_makes_a_frequency_less(weights):
    frequencies = quantise(weights)
    for i, j in itertools.permutations(range(len(weights)), 2):
        if weights[i] < weights[j]:
            assert frequencies[i] <= frequencies[j]


def test_frequencies_that_are_weights_less_one_stay_as_they_are():
    frequencies = np.random.default_rng(0).multinomial(2**30 - 9, np.ones(9) / 9) + 1
    assert quantise(frequencies - 1).tolist() == frequencies.tolist()
    assert quantise([0, 3, 0]).tolist() == [1, 2**30 - 2, 1], "nothing is impossible"
    assert quantise([1, 1], precision=1).tolist() == [1, 1]
    assert quantise([7]).tolist() == [2**30]


def test_more_symbols_than_parts_are_refused():
    with pytest.raises(
        ValueError, match=re.escape("5 symbols cannot share 2**2 parts")
    ):
        quantise([1, 1, 1, 1, 1], precision=2)
    with pytest.raises(ValueError, match=re.escape("1073741825 symbols cannot share")):
        quantise(range(2**30 + 1))


# --- In integers ---------------------------------------------------------------------------------


class Counts:
    """How often each symbol has come, and one."""

    def __init__(self, size, dtype=float):
        self.size, self.counts = size, np.ones(size, dtype)

    def start(self):
        return Counts(self.size, self.counts.dtype)

    def predict(self):
        return self.counts

    def update(self, symbol):
        self.counts[symbol] += 1


def skewed(rng, *shape):
    return rng.exponential(1, shape) ** 3


def random_model(kind, size, rng):
    if kind == "static":
        return Static(skewed(rng, size))
    if kind == "order 1":
        table = skewed(rng, size + 1, size)
        return Conditional(lambda past: table[past[-1] if past else size], size)
    return Counts(size, int if size < 20 else float)


def random_message(size, length, rng):
    p = skewed(rng, size)
    return rng.choice(size, length, p=p / p.sum()).tolist()


def check_round_trip(symbols, model):
    data = encode(symbols, model)
    assert decode(data, model, len(symbols)) == symbols
    bits = code_length(symbols, model, quantised=True)
    assert bits <= 8 * len(data) <= bits + 32


@some
@given(
    st.sampled_from(["static", "order 1", "counts"]),
    st.integers(2, 300),
    st.integers(0, 200),
    SEEDS,
)
def test_decoding_gives_what_was_encoded_in_as_many_bits_as_the_model_says(
    kind, size, length, seed
):
    rng = np.random.default_rng(seed)
    model = random_model(kind, size, rng)
    check_round_trip(random_message(size, length, rng), model)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.float16, np.int64])
def test_huffman_adds_up_weights_of_any_type(kind):
    weights = np.array([100, 100, 50, 50, 6], kind)
    if kind is np.int64:
        weights *= 2**55
    given = dict(zip("abcde", weights, strict=True))
    plain = {letter: int(w) for letter, w in given.items()}
    assert codes.huffman(given) == codes.huffman(plain)


def test_entropy_of_large_numbers_and_of_mappings():
    assert codes.entropy(np.array([60000, 60000], np.float16)) == 1
    assert codes.entropy([1e308] * 4) == codes.entropy([2**1100] * 4) == 2
    assert codes.entropy({1: 100, 2: 300}) == codes.entropy([100, 300])


def test_a_symbol_without_a_part_cannot_be_pushed():
    with pytest.raises(ValueError, match="symbol 1 has frequency 0"):
        Encoder().push(1, np.array([1 << PRECISION, 0]))


@pytest.mark.parametrize("bits, ones", [
    ([0, 1], [1, 0]),
    ([0, 1], [1, 65536]),
    ([0, 2], [1, 1]),
    ([0, 1], [1]),
    ([0, 1], [0.5, 0.5]),
])  # fmt: skip
def test_bits_that_are_none_and_chances_that_are_none_are_refused(bits, ones):
    with pytest.raises(ValueError, match="integers from"):
        fast.encode_bits(np.array(bits), np.array(ones))


def test_the_fast_coder_takes_what_the_other_takes():
    weights = [1, 2, 5]
    for message in ([], b"\0\1\2", [0, 1, 2, 2], (2, 0)):
        data = fast.encode(message, weights)
        assert data == encode(message, Static(weights))
        for form in (data, bytearray(data), memoryview(data)):
            back = fast.decode(form, weights, len(message)).tolist()
            assert back == decode(form, Static(weights), len(message)) == list(message)
    for function in (fast.decode, lambda data, w, n: decode(data, Static(w), n)):
        with pytest.raises(TypeError, match="bytes-like"):
            function(5, weights, 0)


def test_compiled_code_is_kept_for_these_sources_alone(tmp_path):
    """Numba itself would keep a coder whose precision was changed in another file."""
    source = Path(fast.__file__).parent
    package = tmp_path / "mlbook"
    shutil.copytree(
        source.parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    run = "from mlbook.coding import fast; print(fast.encode([0, 1, 1] * 9, [1, 2]).hex())"
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    env.pop("NUMBA_CACHE_DIR", None)
    found = []
    for check in (22, 12):
        path = package / "coding/arithmetic.py"
        path.write_text(path.read_text().replace("CHECK = 22", f"CHECK = {check}"))
        found.append(
            subprocess.check_output([sys.executable, "-c", run], env=env, cwd=tmp_path)
        )
    assert len(found[1]) < len(found[0])


def test_what_is_drawn_comes_as_often_as_the_model_says():
    table = np.array([[1, 3], [4, 1], [1, 1]])  # after 0, after 1, at the beginning
    model = Conditional(lambda past: table[past[-1] if past else 2], 2)
    drawn = np.array(sample(model, 20_000, np.random.default_rng(0).bytes(4000)))
    for last, expected in enumerate((3 / 4, 1 / 5)):
        after = drawn[1:][drawn[:-1] == last]
        assert after.mean() == pytest.approx(expected, abs=0.02)


def test_noise_is_the_code_of_what_is_drawn_from_it():
    model, noise = Static([1, 2, 5]), np.random.default_rng(1).bytes(200)
    drawn = sample(model, 900, noise)
    data = encode(drawn, model)
    assert data[: len(data) - 6] == noise[: len(data) - 6]
    with pytest.raises(ValueError, match="900 symbols take .* got 100 bytes"):
        sample(model, 900, noise[:100])
    with pytest.raises(ValueError, match="symbol 0 is 3"):
        sample(model, 1, noise, [3])


def test_the_past_of_what_is_drawn_is_heard():
    model = Conditional(lambda past: np.eye(3)[(past[-1] + 1) % 3 if past else 0], 3)
    assert sample(model, 4, bytes(range(16)), [1]) == [2, 0, 1, 2]


@pytest.mark.parametrize("size", [2, 3, 20])
def test_learning_costs_half_a_logarithm_for_each_free_probability(size):
    """Krichevsky and Trofimov 1981: with counts that begin at one half."""
    rng = np.random.default_rng(size)
    p = rng.dirichlet(np.full(size, 5.0))
    more = {}
    for n in (1000, 4000):
        message = rng.choice(size, n, p=p)
        halves = Counts(size)
        halves.counts -= 0.5
        halves.start = lambda first=halves: first
        often = np.bincount(message, minlength=size) / n
        best = -n * np.sum(often * np.log2(np.maximum(often, 1e-300)))
        more[n] = code_length(message, halves) - best
    assert more[4000] - more[1000] == pytest.approx(size - 1, rel=0.15)


def test_a_vocabulary_of_a_language_model():
    rng = np.random.default_rng(0)
    check_round_trip([0, 49_151, 17, 30_000, 17], Static(skewed(rng, 49_152)))


@pytest.mark.parametrize("size", [1, 2, 300])
def test_nothing_is_encoded_as_a_check_alone(size):
    check_round_trip([], Counts(size))
    assert len(encode([], Counts(size))) <= 3


def test_one_symbol_says_nothing():
    check_round_trip([0] * 100, Static([5]))


def test_what_was_nearly_certain_takes_nearly_nothing():
    model = Static([1 - 1e-9, 1e-9])
    check_round_trip([0] * 200, model)
    assert len(encode([0] * 200, model)) <= 4
    check_round_trip([0] * 50 + [1] + [0] * 50, model)
    check_round_trip([1] * 50, model)


@pytest.mark.parametrize("ending", [0, 2])
@pytest.mark.parametrize("length", [300, 301, 777])
def test_bits_wait_while_the_interval_straddles_one_half(length, ending):
    model, encoder = Static([1, 2, 1]), Encoder()
    for _ in range(length):
        encoder.push(1, quantise(model.weights))
    assert encoder.pending == length and not encoder.bits
    for symbols in ([1] * length, [1] * length + [ending, 1, 1, 2, 0]):
        check_round_trip(symbols, model)
        data = fast.encode(np.array(symbols), model.weights)
        assert data == encode(symbols, model)
        assert fast.decode(data, model.weights, len(symbols)).tolist() == symbols


def test_least_probabilities_at_both_ends():
    for place in (0, 1, 2):
        weights = [0, 0, 0]
        weights[place] = 1
        for symbol in (0, 1, 2):
            check_round_trip([symbol] * 40, Static(weights))


# --- What is refused -----------------------------------------------------------------------------

USUAL = [5, 3, 2, 1, 1]
MESSAGE = [*random_message(5, 70, np.random.default_rng(3)), 0, 1, 2, 3, 4]


def slowly(data, weights, length):
    return decode(data, Static(weights), length)


decoders = pytest.mark.parametrize("decoder", [slowly, fast.decode])


@decoders
def test_damaged_data_are_refused(decoder):
    data, length = encode(MESSAGE, Static(USUAL)), len(MESSAGE)
    assert list(decoder(data, USUAL, length)) == MESSAGE
    cut = [data[:n] for n in range(len(data))]
    longer = [data + more for more in (b"\0", b"\x80", b"\xff", b"a", bytes(9), data)]
    swapped = [data[i:] + data[:i] for i in range(1, len(data))]
    for wrong in all_flipped(data) + cut + longer + swapped:
        with pytest.raises(ValueError, match="the check fails: the data are damaged"):
            decoder(wrong, USUAL, length)


@decoders
@pytest.mark.parametrize("length", range(24))
def test_no_bit_is_idle(decoder, length):
    """Nor those that fill the last byte."""
    for wrong in all_flipped(encode(MESSAGE[:length], Static(USUAL))):
        with pytest.raises(ValueError, match="the check fails"):
            decoder(wrong, USUAL, length)


def all_flipped(data):
    whole, size = int.from_bytes(data, "big"), len(data)
    return [(whole ^ 1 << i).to_bytes(size, "big") for i in range(8 * size)]


@decoders
def test_another_length_is_refused(decoder):
    data = encode(MESSAGE, Static(USUAL))
    for length in (*range(len(MESSAGE)), len(MESSAGE) + 1, len(MESSAGE) + 1000):
        with pytest.raises(ValueError, match="the length is another"):
            decoder(data, USUAL, length)
    for length in (-1, True, 2.0):
        with pytest.raises(ValueError, match="length must be a whole number"):
            decoder(data, USUAL, length)


@decoders
def test_what_is_nearly_certain_still_has_a_length(decoder):
    weights = [1 - 1e-9, 1e-9]
    data = encode([0] * 40, Static(weights))
    for length in (*range(40), *range(41, 100)):
        with pytest.raises(ValueError, match="the length is another"):
            decoder(data, weights, length)


@decoders
@pytest.mark.parametrize(
    "weights",
    [[1, 1, 2, 3, 5], [1] * 5, [5, 3, 2, 1, 1, 1], [5, 3, 2, 1], [5, 3, 2, 1, 1.0001]],
)
def test_another_model_is_refused(decoder, weights):
    with pytest.raises(ValueError, match="the model is not the one that encoded"):
        decoder(encode(MESSAGE, Static(USUAL)), weights, len(MESSAGE))


@decoders
def test_a_model_that_differs_by_one_unit_is_refused(decoder):
    """After few symbols it says the same bits, and so the same symbols."""
    frequencies = quantise(USUAL)
    for more, less in itertools.permutations(range(5), 2):
        other = frequencies - 1
        other[more] += 1
        other[less] -= 1
        with pytest.raises(ValueError, match="the model is not the one that encoded"):
            decoder(encode(MESSAGE, Static(USUAL)), other, len(MESSAGE))
        for length in range(12):
            short = MESSAGE[-length:] if length else []
            try:
                decoded = decoder(encode(short, Static(USUAL)), other, length)
            except ValueError:
                continue
            assert list(decoded) == short
            assert encode(short, Static(other)) == encode(short, Static(USUAL))


@some
@given(SEEDS)
def test_floats_that_differ_in_the_last_place_never_decode_wrongly(seed):
    rng = np.random.default_rng(seed)
    weights = skewed(rng, 20)
    message = random_message(20, 40, rng)
    other = np.nextafter(weights, rng.choice([0, np.inf], 20))
    try:
        decoded = slowly(encode(message, Static(weights)), other, 40)
    except ValueError:
        decoded = message
    assert decoded == message


@some
@given(st.integers(0, 12), st.binary(max_size=40), st.integers(1, 300), SEEDS)
@example(40, b"", 2, 0)
@example(7, b"\x01" * 60, 200, 0)
def test_bytes_that_no_coder_wrote_are_refused(ones, tail, size, seed):
    """Ones lead behind the last symbol, where rounding leaves a gap."""
    weights = np.random.default_rng(seed).integers(1, 9, size) / 8
    for decoder in (slowly, fast.decode):
        with pytest.raises(ValueError, match="the check fails"):
            decoder(b"\xff" * ones + tail, weights, 200)


def test_no_data_are_no_message():
    for decoder in (slowly, fast.decode):
        for length in (0, 1, 50):
            with pytest.raises(ValueError, match="the check fails"):
                decoder(b"", USUAL, length)


CODERS = [
    encode,
    interval,
    exact_code,
    code_length,
    lambda symbols, model: code_length(symbols, model, quantised=True),
]


@pytest.mark.parametrize("function", CODERS)
@pytest.mark.parametrize("wrong", [-1, 3, 2**40, True, 2.0, math.nan, "1", None])
def test_what_is_no_symbol_is_refused(function, wrong):
    told = f"symbol 1 (is {wrong};|must be .*, got {re.escape(repr(wrong))})"
    with pytest.raises(ValueError, match=told):
        function([0, wrong], Static([1, 2, 3]))


def test_symbols_may_be_numbers_of_numpy_and_come_one_by_one():
    expected = encode([0, 2, 1], Static([1, 2, 3]))
    for dtype in (np.int8, np.uint64):
        assert encode(np.array([0, 2, 1], dtype), Static([1, 2, 3])) == expected
    assert encode(iter([0, 2, 1]), Static([1, 2, 3])) == expected


@pytest.mark.parametrize(
    "function", [*CODERS, lambda _, model: decode(b"\x12" * 20, model, 2)]
)
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0, 0, 0], "gives every symbol the probability 0"),
        ([0.0, 0.0, 0.0], "gives every symbol the probability 0"),
        ([1, -1, 1], "gives symbol 1 the probability -1"),
        ([1, 1, -0.5], "gives symbol 2 the probability -0.5"),
        ([Fraction(-1, 3), 1, 1], "gives symbol 0 the probability -1/3"),
        ([1.0, math.nan, 1.0], "gives symbol 1 the probability nan"),
        ([Fraction(1), math.nan, 1.0], "gives symbol 1 the probability nan"),
        ([1.0, 1.0, math.inf], "gives symbol 2 the probability inf"),
        ([math.inf, 1, 1], "gives symbol 0 the probability inf"),
        ([1, 1], "has 3 symbols and gives (2 numbers|numbers of shape \\(2,\\))"),
        ([0.5] * 4, "has 3 symbols and gives (4 numbers|numbers of shape \\(4,\\))"),
        (np.ones((3, 3)), "has 3 symbols and gives numbers of shape \\(3, 3\\)"),
        (np.ones((3, 1), int), "has 3 symbols and gives numbers of shape \\(3, 1\\)"),
    ],
)
def test_what_is_no_distribution_is_refused(function, weights, message):
    with pytest.raises(ValueError, match=message):
        function([0, 1], Conditional(lambda _: weights, 3))


@pytest.mark.parametrize("size", [0, -1, True, 2.0])
def test_a_model_has_symbols(size):
    with pytest.raises(ValueError, match="size must be a whole number, at least 1"):
        Conditional(lambda _: [1], size)


# --- Compiled ------------------------------------------------------------------------------------

DTYPES = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint64, ">i4"]


@some
@given(
    st.sampled_from(DTYPES),
    st.integers(1, 100),
    st.integers(0, 300),
    st.booleans(),
    SEEDS,
)
def test_the_compiled_coder_writes_the_same_bytes(dtype, size, length, sparse, seed):
    rng = np.random.default_rng(seed)
    weights = skewed(rng, size) * (rng.random(size) < 0.5 if sparse else 1) + 1e-12
    symbols = np.array(random_message(size, length, rng), dtype)
    data = fast.encode(symbols, weights)
    assert data == encode(symbols, Static(weights))
    decoded = fast.decode(data, weights, length)
    assert decoded.dtype == np.int64
    assert decoded.tolist() == symbols.tolist() == slowly(data, weights, length)


def test_the_compiled_coder_takes_any_view():
    symbols = np.random.default_rng(0).integers(0, 5, 90, np.uint8)
    expected = encode(symbols[::-3], Static(USUAL))
    assert fast.encode(symbols[::-3], USUAL) == expected
    symbols.flags.writeable = False
    assert fast.encode(symbols[::-3], USUAL) == expected
    assert fast.encode(symbols[::-3].tolist(), USUAL) == expected
    assert fast.decode(bytearray(expected), USUAL, 30).tolist() == [*symbols[::-3]]


@pytest.mark.parametrize(
    ("symbols", "message"),
    [
        (np.array([0.0, 1.0]), "symbol 0 must be a whole number, at least 0, got 0.0"),
        (np.array([[0, 1]]), "symbol 0 must be a whole number"),
        (np.zeros((0, 2), int), "one row of integers, got int64 \\(0, 2\\)"),
        (np.array([True]), "symbol 0 must be a whole number, at least 0, got True"),
        (np.array([0, 5]), "symbol 1 is 5; the model has 0 to 4"),
        (np.array([0, -1], np.int8), "symbol 1 must be .* at least 0, got -1"),
        (np.array([0, 255], np.uint8), "symbol 1 is 255"),
        (np.array([2**64 - 1], np.uint64), "symbol 0 is 18446744073709551615"),
    ],
)
def test_the_compiled_coder_refuses_what_are_no_symbols(symbols, message):
    with pytest.raises(ValueError, match=message):
        fast.encode(symbols, USUAL)


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], [1, math.nan], [[1, 2]]])
def test_the_compiled_coder_refuses_what_is_no_distribution(weights):
    with pytest.raises(ValueError, match="the model"):
        fast.encode(np.array([0]), weights)
    with pytest.raises(ValueError, match="the model"):
        fast.decode(b"abc", weights, 1)


@pytest.mark.parametrize("p", [skewed(np.random.default_rng(1), 200), [0.998, 0.002]])
def test_a_million_symbols_take_what_the_model_says(p):
    p = np.array(p) / np.sum(p)
    symbols = np.random.default_rng(0).choice(len(p), 10**6, p=p)
    data = fast.encode(symbols, p)
    bits = -np.log2(quantise(p) / 2**PRECISION)[symbols].sum()
    assert bits <= 8 * len(data) <= 1.0001 * bits + 32
    assert bits == pytest.approx(10**6 * codes.entropy(p), rel=0.02)
    np.testing.assert_array_equal(fast.decode(data, p, 10**6), symbols)


@some
@given(st.integers(0, 200), SEEDS)
def test_compiled_bits_are_those_of_a_model_of_two_symbols(length, seed):
    rng = np.random.default_rng(seed)
    ones = rng.integers(1, 65536, length)
    extremes = rng.random(length) < 0.5
    ones[extremes] = rng.choice([1, 24, 32767, 32768, 32769, 65535], extremes.sum())
    bits = (rng.random(length) < 0.7).astype(np.uint8)
    model = Conditional(lambda past: (65536 - ones[len(past)], ones[len(past)]), 2)
    data = fast.encode_bits(bits, ones)
    assert data == encode(bits, model)
    assert data == fast.encode_bits(bits, ones.astype(np.uint16))
    registers = fast.open_registers(data)
    packed = np.frombuffer(data, np.uint8)
    assert [fast.pop_bit(registers, packed, one) for one in ones] == bits.tolist()
    fast.close(data, registers, bits)


# --- Mixing --------------------------------------------------------------------------------------

TEXT = b"""It is a truth universally acknowledged, that a single man in possession of a good
fortune, must be in want of a wife. However little known the feelings or views of such
a man may be on his first entering a neighbourhood, this truth is so well fixed in the
minds of the surrounding families, that he is considered the rightful property of some
one or other of their daughters. """


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\0",
        b"\xff",
        b"a" * 3000,
        bytes(999),
        bytes(range(256)) * 2,
        np.random.default_rng(0).bytes(2000),
        TEXT * 3,
        "Größe, naïve, 日本".encode(),
    ],
)
def test_a_mixture_gives_back_every_text(text):
    data = Mix().encode(text)
    assert Mix().decode(data, len(text)) == text
    bits = Mix().code_length(text)
    assert bits <= 8 * len(data) <= bits + 40


@few
@given(st.binary(max_size=60), st.binary(max_size=60), st.integers(1, 9))
def test_a_mixture_gives_back_any_bytes_after_any_others(first, text, times):
    first, text = first * times, text * times
    encoder, decoder = Mix(first), Mix(first)
    data = encoder.encode(text)
    assert decoder.decode(data, len(text)) == text
    assert encoder.text == decoder.text == first + text
    assert all(map(np.array_equal, encoder.memory, decoder.memory))
    assert encoder.encode(TEXT) == decoder.encode(TEXT)


def test_a_mixture_learns():
    mix = Mix()
    first, second = mix.code_length(TEXT), mix.code_length(TEXT)
    assert second < first / 10 and first < 5 * len(TEXT)
    assert mix.code_length(b"z" * 4000) / 4000 < 0.05
    noise = np.random.default_rng(0).bytes(3000)
    assert 8 <= Mix().code_length(noise) / 3000 < 8.5


def test_a_mixture_may_learn_in_pieces():
    whole, pieces = Mix(TEXT), Mix()
    for i in range(0, len(TEXT), 37):
        pieces.learn(TEXT[i : i + 37])
    assert whole.text == pieces.text
    assert all(map(np.array_equal, whole.memory, pieces.memory))


def test_a_copy_learns_on_its_own():
    mix = Mix(TEXT)
    other = mix.copy()
    data = other.encode(TEXT[:50])
    assert mix.text == TEXT and other.text == TEXT + TEXT[:50]
    assert not any(map(np.shares_memory, mix.memory, other.memory))
    assert mix.decode(data, 50) == TEXT[:50]


def test_a_mixture_refuses_damaged_data_and_forgets_them():
    mix, data = Mix(TEXT), Mix(TEXT).encode(TEXT[::-1])
    length = len(TEXT)
    wrong = [data[:-1], data[:9], b"", data + b"\0", data + data, b"\xff" * 80]
    wrong += [data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :] for i in (0, 40, -2)]
    for bad in wrong:
        with pytest.raises(ValueError, match="the check fails"):
            mix.decode(bad, length)
    for other in (0, length - 1, length + 1, 9 * length):
        with pytest.raises(ValueError, match="the length is another"):
            mix.decode(data, other)
    for seen in (b"", TEXT[:-1], TEXT + b"\0", TEXT[::-1]):
        with pytest.raises(ValueError, match="the model is not the one that encoded"):
            Mix(seen).decode(data, length)
    assert mix.text == TEXT and mix.decode(data, length) == TEXT[::-1]
    with pytest.raises(ValueError, match="length must be a whole number"):
        mix.decode(data, -1)


def test_what_a_mixture_draws_is_what_its_code_would_be_noise_for():
    noise, mix = np.random.default_rng(0).bytes(300), Mix(TEXT)
    drawn = mix.generate(300, noise)
    assert len(drawn) == 300 and mix.text == TEXT + drawn
    data = Mix(TEXT).encode(drawn)
    assert 20 < len(data) < 300 and data[:-5] == noise[: len(data) - 5]
    assert drawn != Mix(TEXT).generate(300, noise[::-1])


@pytest.mark.parametrize("heard", [[0], [8], [1, 3], range(9)])
def test_a_mixture_that_hears_some_contexts_decodes_what_it_encodes(heard):
    data = Mix(heard=heard).encode(TEXT)
    assert Mix(heard=heard).decode(data, len(TEXT)) == TEXT
    if len(heard) < 9:
        assert len(data) > len(Mix().encode(TEXT))
        with pytest.raises(ValueError, match="the model is not the one that encoded"):
            Mix().decode(data, len(TEXT))


@pytest.mark.parametrize("heard", [[], [9], [-1], [0, 12]])
def test_contexts_that_are_not_there_are_refused(heard):
    with pytest.raises(ValueError, match="heard must be some of 0 to 8"):
        Mix(heard=heard)


@pytest.fixture
def plain(monkeypatch):
    """The compiled functions as Python runs them."""
    for module in (fast, mixing):
        for name, function in list(vars(module).items()):
            if hasattr(function, "py_func"):
                monkeypatch.setattr(module, name, function.py_func)
    monkeypatch.setattr(fast, "bit_length", lambda x: int(x).bit_length())
    with np.errstate(over="ignore"):  # hashes
        yield


def test_a_mixture_is_the_same_in_plain_python(request):
    text = b"abcabcabc \xff\0 the theme, the theme" + TEXT[:30] + b"abcabcabc"
    compiled = Mix()
    ones = compiled.learn(text)
    data = Mix().encode(text)
    fresh, again = Mix(), Mix()
    request.getfixturevalue("plain")
    wide = np.array(list(text))
    slow = np.zeros(8 * len(text), np.int64)
    mixing._learn(wide, 0, fresh.memory, *mixing.tables(), slow)
    assert slow.tolist() == ones.tolist()
    assert all(map(np.array_equal, fresh.memory, compiled.memory))
    assert fast.encode_bits(np.unpackbits(np.uint8(wide)).astype(int), slow) == data
    registers, packed = fast.open_registers(data), np.array(list(data))
    decoded = np.zeros(len(text), np.int64)
    mixing._decode(decoded, 0, again.memory, *mixing.tables(), registers, packed)
    assert bytes(decoded.tolist()) == text
    assert all(map(np.array_equal, again.memory, compiled.memory))


# --- One symbol at a time ------------------------------------------------------------------------


def test_entropy_by_hand():
    assert codes.entropy([0.5, 0.5]) == codes.entropy([3, 3]) == 1
    assert codes.entropy([4, 2, 1, 1]) == 1.75
    assert codes.entropy([1, 0, 2, 1]) == codes.entropy(iter([1, 2, 1])) == 1.5
    assert codes.entropy([Fraction(1, 3)] * 8) == pytest.approx(3)
    assert codes.entropy([0.3, 0.9]) == pytest.approx(2 - 0.75 * math.log2(3))
    assert codes.entropy(np.full(256, 1e-9)) == pytest.approx(8)


def test_what_is_certain_has_no_entropy():
    for weights in ([1], [0, 7.5, 0]):
        assert str(codes.entropy(weights)) == "0.0"
    assert 0 <= codes.entropy([5e-324, 10]) < 1e-300


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], [math.nan], [1, math.inf]])
def test_what_are_no_weights_is_refused(weights):
    told = "finite, not negative and not all 0, got"
    with pytest.raises(ValueError, match=told):
        codes.entropy(weights)
    with pytest.raises(ValueError, match=told):
        codes.huffman(dict(enumerate(weights)))


def test_kraft_by_hand():
    assert codes.kraft([]) == 0 and codes.kraft([0]) == 1
    assert codes.kraft([1, 2, 2]) == codes.kraft([*range(1, 60), 59]) == 1
    assert codes.kraft([1, 1, 2]) == 1.25 and codes.kraft(iter([3, 3])) == 0.25
    assert codes.kraft([2000]) == 0


@pytest.mark.parametrize("length", [-1, 1.0, True, math.nan])
def test_what_is_no_length_is_refused(length):
    for function in (codes.kraft, codes.canonical):
        with pytest.raises(ValueError, match="length must be a whole number"):
            function([2, length])


@some
@given(st.lists(st.integers(0, 12), max_size=60))
@example([0])
@example([0, 1])
@example([3, 1, 2, 3])
@example([*range(1, 60), 59])
@example([*range(1, 60), 59, 59])
def test_there_is_a_code_where_kraft_has_room(lengths):
    fitting, room = [], Fraction(1)
    for n in lengths:
        if Fraction(1, 2**n) <= room:
            fitting.append(n)
            room -= Fraction(1, 2**n)
    words = codes.canonical(fitting)
    assert [len(word) for word in words] == fitting
    assert codes.is_prefix_free(words) and not set("".join(words)) - {"0", "1"}
    if len(fitting) < len(lengths):
        with pytest.raises(ValueError, match="have Kraft's sum .* > 1"):
            codes.canonical(lengths)


def test_every_short_code_is_found_and_none_that_cannot_be():
    for size in range(5):
        for lengths in itertools.product(range(5), repeat=size):
            if sum(Fraction(1, 2**n) for n in lengths) <= 1:
                assert codes.is_prefix_free(codes.canonical(lengths))
            else:
                with pytest.raises(ValueError, match="Kraft's sum"):
                    codes.canonical(lengths)


def average(weights, words):
    bits = sum(w * len(words[s]) for s, w in weights.items())
    return Fraction(bits, sum(weights.values()))


@some
@given(st.lists(st.integers(0, 50), min_size=2, max_size=5).filter(any))
@example([1, 1, 2, 3, 5])
@example([0, 0, 0, 0, 1])
def test_no_code_is_shorter_than_huffmans(numbers):
    weights = dict(enumerate(numbers))
    words = codes.huffman(weights)
    assert words.keys() == weights.keys() and codes.is_prefix_free(words.values())
    assert codes.kraft(map(len, words.values())) == 1
    sizes = range(1, len(numbers))
    least = min(
        sum(map(int.__mul__, lengths, numbers))
        for lengths in itertools.product(sizes, repeat=len(numbers))
        if codes.kraft(lengths) <= 1
    )
    assert average(weights, words) * sum(numbers) == least


@some
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=60))
def test_huffmans_code_lies_within_a_bit_of_the_entropy(numbers):
    weights = {f"symbol {i}": n for i, n in enumerate(numbers)}
    words = codes.huffman(weights)
    assert codes.is_prefix_free(words.values())
    bound = codes.entropy(numbers)
    assert bound - 1e-9 <= average(weights, words) < bound + 1


def test_huffmans_code_reaches_the_entropy_of_powers_of_two():
    weights = {"a": 1 / 2, "b": 1 / 4, "c": 1 / 8, "d": 1 / 16, "e": 1 / 16}
    words = codes.huffman(weights)
    assert {s: len(w) for s, w in words.items()} == dict(a=1, b=2, c=3, d=4, e=4)
    mean = sum(p * len(words[s]) for s, p in weights.items())
    assert mean == codes.entropy(weights.values()) == 1.875


def test_one_symbol_needs_no_bits():
    assert codes.huffman({"a": 3}) == {"a": ""} and codes.canonical([0]) == [""]


def test_prefixes_are_found_wherever_they_stand():
    for good in ([], [""], ["0"], ["0", "10", "11"], ["110", "0", "111", "10"]):
        assert codes.is_prefix_free(good)
    for bad in (["0", "0"], ["", "1"], ["10", "0", "101"], ["0", "00", "1"]):
        assert not codes.is_prefix_free(iter(bad))
