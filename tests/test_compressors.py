"""The compressors that people use: what they were given comes back, they are at their strongest, and the sources are whole."""

import bz2
import gzip
import importlib.util
import io
import lzma
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlbook.coding import compressors
from mlbook.common import smollm

some = settings(max_examples=25, deadline=None, derandomize=True)
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NAMES = ("gzip", "bzip2", "xz", "zstd", "brotli", "PPMd")
PROSE = "".join(f"{i} bottles of beer — {i % 7} Flaschen Bier\n" for i in range(400))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def installed(*names):
    return [pytest.importorskip(n, reason=f"{n} is not installed") for n in names]


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        # by its path: Python 3.14 has a `compression` of its own
        spec = importlib.util.spec_from_file_location(
            "benchmark_of_compression", BENCHMARKS / "compressing.py"
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


# --- Any bytes -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def general():
    installed("brotli", "pyppmd", "zstandard")
    return compressors.general()


def opened(name, data):
    if name in ("zstd", "brotli", "PPMd"):
        brotli, pyppmd, zstandard = installed("brotli", "pyppmd", "zstandard")
    return {
        "gzip": lambda: gzip.decompress(data),
        "bzip2": lambda: bz2.decompress(data),
        "xz": lambda: lzma.decompress(data, lzma.FORMAT_XZ),
        "zstd": lambda: zstandard.ZstdDecompressor().decompress(data),
        "brotli": lambda: brotli.decompress(data),
        "PPMd": lambda: pyppmd.decompress(data, max_order=16, mem_size=64 << 20),
    }[name]()


def test_all_are_there(general):
    assert tuple(general) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_what_was_compressed_comes_back(general, name):
    text = PROSE.encode()
    repeated = (b"a" * 70_000, bytes(1000), b"\xff" * 300, text[:100] * 50)
    for data in (b"", b"a", b"\0", b"\xff", noise(5000).tobytes(), text, *repeated):
        packed = general[name](data)
        assert opened(name, packed) == data and packed == general[name](data)


@pytest.mark.parametrize("name", NAMES)
@settings(some, max_examples=10)
@given(data=st.binary(max_size=300))
def test_any_bytes_come_back(general, name, data):
    assert opened(name, general[name](data)) == data


@pytest.mark.parametrize(
    ("name", "more"),
    [*zip(NAMES, (1.01, 1.15, 1.02, 1.01, 1.01, 1.05), strict=True)],
)
def test_noise_grows_and_text_shrinks(general, name, more):
    assert 4096 < len(general[name](noise(4096).tobytes())) < 4096 * more
    assert len(general[name](PROSE.encode())) < len(PROSE.encode()) / 4


@pytest.mark.parametrize("length", [0, 1, 3000, 20_000])
def test_each_is_what_its_tool_writes_at_its_highest_level(general, benchmark, length):
    brotli, zstandard = installed("brotli", "zstandard")
    data = benchmark.prose()[:length]
    assert general["gzip"](data) == gzip.compress(data, 9, mtime=0)
    packer = bz2.BZ2Compressor(9)
    assert general["bzip2"](data) == packer.compress(data) + packer.flush()
    extreme = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    assert general["xz"](data) == lzma.compress(data, filters=extreme)
    assert zstandard.MAX_COMPRESSION_LEVEL == 22
    level = zstandard.ZstdCompressionParameters.from_level(22, source_size=len(data))
    packer = zstandard.ZstdCompressor(compression_params=level)
    assert general["zstd"](data) == packer.compress(data)
    packer = brotli.Compressor(quality=11, lgwin=24)
    streamed = packer.process(data) + packer.finish()
    assert abs(len(general["brotli"](data)) - len(streamed)) <= 4


def test_frames_say_their_level(general):
    data = PROSE.encode()
    assert general["gzip"](data)[:10] == bytes((31, 139, 8, 0, 0, 0, 0, 0, 2, 3))
    assert general["bzip2"](data)[:4] == b"BZh9"
    xz = general["xz"](data)
    assert xz[:8] == b"\xfd7zXZ\0\0\4"  # with CRC64
    assert xz[13:17] == bytes((0, 0x21, 1, 28))  # LZMA2, 64 MB
    assert general["brotli"](data)[0] & 0x0F == 0x0F  # 16 MB
    (brotli,) = installed("brotli")
    with pytest.raises(brotli.error):
        brotli.compress(data, quality=12)
    with pytest.raises(brotli.error):
        brotli.compress(data, lgwin=25)


@pytest.mark.parametrize(
    ("name", "between"),
    [("gzip", 2000), ("brotli", 10_000_000), ("xz", 10_000_000), ("zstd", 40_000_000)],
)
def test_repetitions_are_seen_from_as_far_as_may_be(general, name, between):
    piece = noise(30_000).tobytes()
    packed = general[name](piece + bytes(between) + piece)
    assert len(packed) < 1.1 * len(piece)


def test_no_other_level_is_stronger_on_prose(general, benchmark):
    brotli, zstandard = installed("brotli", "zstandard")
    data = benchmark.prose()[:20_000]
    others = {
        "gzip": [gzip.compress(data, k) for k in range(1, 10)],
        "bzip2": [bz2.compress(data, k) for k in range(1, 10)],
        "xz": [lzma.compress(data, preset=k) for k in range(10)],
        "zstd": [zstandard.ZstdCompressor(k).compress(data) for k in range(1, 23)],
        "brotli": [brotli.compress(data, quality=k) for k in range(12)],
    }
    for name, found in others.items():
        assert len(general[name](data)) <= 1.01 * min(map(len, found)), name


# --- Pictures ------------------------------------------------------------------------------------


@pytest.fixture
def pillow():
    installed("pillow_jxl")
    return installed("PIL.Image")[0]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 5), (33, 17), (64, 64)])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_pictures_come_back(pillow, shape, channels):
    smooth = np.add.outer(np.arange(shape[0]), np.arange(shape[1])).astype(np.uint8)
    smooth = np.broadcast_to(
        smooth.reshape(*shape, *(1 for _ in channels)), shape + channels
    )
    for pixels in (
        noise(*shape, *channels),
        smooth,
        noise(*shape, *channels)[::-1, ::-1],
    ):
        found = compressors.image(pixels)
        assert list(found) == ["PNG", "WebP", "JPEG XL"]
        for name, data in found.items():
            picture = pillow.open(io.BytesIO(data))
            assert picture.format == {"WebP": "WEBP", "JPEG XL": "JXL"}.get(name, name)
            back = np.asarray(picture.convert("RGB" if channels else "L"))
            assert (back == pixels).all(), name


def test_smooth_pictures_shrink(pillow):
    pixels = np.tile(np.arange(128, dtype=np.uint8), (128, 1))
    for name, data in compressors.image(pixels).items():
        assert len(data) < pixels.size / 20, name


@pytest.mark.parametrize(
    "shape",
    [(), (5,), (7, 5, 1), (7, 5, 2), (7, 5, 4), (2, 7, 5, 3), (0, 5), (5, 0, 3)],
)
def test_what_has_no_shape_of_a_picture_is_refused(pillow, shape):
    with pytest.raises(ValueError, match=r"\(height, width\[, 3\]\) uint8, got \("):
        compressors.image(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint16, np.int64, np.float32])
def test_pixels_that_are_no_bytes_are_refused(pillow, dtype):
    for channels in ((), (3,)):
        message = rf"pixels must be .* uint8, got \(4, 4.* {np.dtype(dtype)}"
        with pytest.raises(ValueError, match=message):
            compressors.image(np.ones((4, 4, *channels), dtype))


# --- Sound ---------------------------------------------------------------------------------------


def tone(n):
    return (128 + 100 * np.sin(np.arange(n) / 9)).astype(np.uint8)


@pytest.mark.parametrize(
    "samples",
    [
        noise(1),
        noise(2),
        noise(5000),
        tone(5000),
        tone(50_000)[::2],
        np.uint8([0, 255] * 9),
    ],
    ids=["one", "two", "noise", "tone", "every second", "extremes"],
)
def test_sound_comes_back(samples):
    (soundfile,) = installed("soundfile")
    data = compressors.flac(samples, 22_050)
    assert data[:4] == b"fLaC"
    back, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    assert rate == 22_050 and (back % 256 == 0).all()
    assert (back // 256 + 128).tolist() == samples.tolist()


def test_flac_is_at_its_highest_level():
    (soundfile,) = installed("soundfile")
    chirp = np.sin(np.arange(20_000) ** 2 / 2e5)
    samples = (tone(20_000) // 2 + 60 * chirp + 64 + noise(20_000) % 16).astype(
        np.uint8
    )
    lengths = []
    for level in np.linspace(0, 1, 9):
        out, wide = io.BytesIO(), (samples.astype(np.int16) - 128) << 8
        soundfile.write(
            out, wide, 8000, format="FLAC", subtype="PCM_S8", compression_level=level
        )
        lengths.append(len(out.getvalue()))
    assert len(compressors.flac(samples, 8000)) == lengths[-1] < min(lengths[:-1])


OTHER_SAMPLES = [
    *(np.zeros(4), np.zeros(4, np.int16), np.zeros((4, 1), np.uint8), np.uint8(3)),
    *(np.zeros((2, 4), np.uint8), np.zeros(0, np.uint8), [1, 2, 3], b"abc"),
]


@pytest.mark.parametrize("samples", OTHER_SAMPLES, ids=str)
def test_samples_of_another_kind_are_refused(samples):
    installed("soundfile")
    with pytest.raises(ValueError, match=r"samples must be \(n,\) uint8, got \("):
        compressors.flac(samples, 8000)


def wav(path, frames, width=1, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, 11_025, 0, "NONE", ""))
        file.writeframes(frames)
    return path


def test_a_wav_file_of_bytes_is_read(tmp_path):
    samples = noise(777)
    path = wav(tmp_path / "a.wav", samples.tobytes())
    for name in (path, str(path)):
        back, rate = compressors.sound(name)
        assert back.dtype == np.uint8 and back.tolist() == samples.tolist()
        assert rate == 11_025
    assert len(compressors.sound(wav(tmp_path / "b.wav", b""))[0]) == 0


@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (2, 2), (3, 1)])
def test_wider_samples_and_more_channels_are_refused(tmp_path, shape):
    path = wav(tmp_path / "a.wav", bytes(12), *shape)
    message = rf"a.wav has \(bytes, channels\) \({shape[0]}, {shape[1]}\), not \(1, 1\)"
    with pytest.raises(ValueError, match=message):
        compressors.sound(path)


def test_a_cut_sound_is_refused(tmp_path):
    path = wav(tmp_path / "a.wav", bytes(1000))
    whole = path.read_bytes()
    for wrong, message in (
        (whole[:-300], "is cut: 700 of 1000"),
        (b"", "no WAV"),
        (b"<html>" * 20, "no WAV"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=message):
            compressors.sound(path)


# --- Pieces --------------------------------------------------------------------------------------


@some
@given(st.binary(max_size=100), st.integers(1, 40))
@example(b"", 1)
@example(bytes(80), 40)
def test_chunks_join_to_what_was_cut(data, size):
    found = compressors.chunks(data, size)
    assert b"".join(found) == data and len(found) == -(-len(data) // size)
    assert all(len(chunk) == size for chunk in found[:-1])
    assert all(0 < len(chunk) <= size for chunk in found[-1:])


def test_chunks_hold_2048_bytes_and_at_least_one():
    assert [len(c) for c in compressors.chunks(bytes(5000))] == [2048, 2048, 904]
    for size in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="size must be a whole number"):
            compressors.chunks(b"abc", size)


# --- The benchmark's sources ---------------------------------------------------------------------


TEXTS = st.text(st.sampled_from("ab\nñ—한🎉"), max_size=40).map(lambda s: s * 60)


@some
@given(text=TEXTS)
@example(text="")
@example(text="🎉" * 2000)
@example(text="a" + "🎉" * 2000)
@example(text="a" * 2048)
@example(text="a" * 2047 + "ñ")
def test_pieces_of_text_cut_no_character(benchmark, text):
    found = benchmark.pieces("this book", text.encode())
    assert "".join(piece.decode() for piece in found) == text
    assert all(2044 < len(piece) <= 2048 for piece in found[:-1])
    assert all(0 < len(piece) <= 2048 for piece in found)


@pytest.mark.parametrize("name", ["photographs", "music"])
def test_pieces_of_other_bytes_are_chunks(benchmark, name):
    data = noise(5000).tobytes()
    assert benchmark.pieces(name, data) == compressors.chunks(data, 2048)


@pytest.mark.parametrize("before", range(5))
@pytest.mark.parametrize("character", "ñ—🎉")
def test_whole_cuts_no_character(benchmark, before, character):
    most, text = benchmark.MOST, "a" * before + character * benchmark.MOST
    found = benchmark.whole(text.encode())
    assert text.startswith(found.decode())
    assert most - len(character.encode()) < len(found) <= most
    assert benchmark.whole(b"abc") == b"abc" and benchmark.whole(b"") == b""


def test_the_prose_of_two_chapters_fills_a_source(benchmark):
    prose = benchmark.prose()
    assert len(prose) > benchmark.MOST
    assert prose.decode().startswith("# ")


def test_photographs_of_one_size_fill_a_source(benchmark):
    installed("PIL.Image")
    try:
        found = [benchmark.photograph(name) for name in benchmark.PHOTOGRAPHS]
    except FileNotFoundError as error:
        pytest.skip(str(error))
    for pixels in found:
        assert pixels.shape == found[0].shape and pixels.dtype == np.uint8
        assert pixels.std() > 10 and pixels.flags.c_contiguous
    assert found[0].shape[1] == 128
    assert sum(p.size for p in found) == benchmark.MOST


def test_every_source_has_its_bytes(benchmark):
    installed("PIL.Image")
    try:
        sources = benchmark.sources()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    for name, about in sources.items():
        data = about["data"]
        assert 30_000 < len(data) <= benchmark.MOST, name
        if not {"pictures", "rate"} & about.keys():
            assert data.decode().encode() == data
        assert data not in about.get("training", b"")


def test_every_byte_has_a_token_of_its_own(benchmark):
    (gguf,) = installed("gguf")
    installed("tokenizers")
    try:
        fields = gguf.GGUFReader(smollm.path()).fields
    except FileNotFoundError as error:
        pytest.skip(str(error))
    names = ("tokens", "merges")
    about = [fields[f"tokenizer.ggml.{name}"].contents() for name in names]
    tokenizer = smollm._tokenizer(*about)
    tokens = benchmark.byte_tokens(tokenizer)
    assert len(set(tokens)) == len(tokens) == 256
    assert all(0 <= token < 49_152 for token in tokens)
    for character in " aZ09\n~":
        assert tokenizer.encode(character).ids == [tokens[ord(character)]]


def test_names_of_bytes_are_those_of_gpt_2(benchmark):
    (pre,) = installed("tokenizers.pre_tokenizers")
    names = benchmark.byte_names()
    assert sorted(names) == sorted(pre.ByteLevel.alphabet())
    level = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in (PROSE[:60], "ñ🎉\0\x7f"):
        ((found, _),) = level.pre_tokenize_str(text)
        assert found == "".join(names[b] for b in text.encode())
