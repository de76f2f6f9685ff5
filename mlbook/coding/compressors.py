"""The compressors that people use, each from bytes to bytes, with the strongest of its usual settings."""

import bz2
import io
import lzma
import wave
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mlbook.common.checks import check_count

Compressor = Callable[[bytes], bytes]


def general() -> dict[str, Compressor]:
    """For any bytes: gzip -9, bzip2 -9, xz -9e, zstd --ultra -22, brotli -q 11 -w 24, PPMd of order 16 in 256 MB.

    Raises:
        ModuleNotFoundError: zstandard, brotli or pyppmd is not installed.
    """
    import brotli
    import pyppmd
    import zstandard

    return {
        "gzip": gzip,
        "bzip2": lambda data: bz2.compress(data, 9),
        "xz": xz,
        "zstd": lambda data: zstandard.ZstdCompressor(22).compress(data),
        "brotli": lambda data: brotli.compress(data, quality=11, lgwin=24),
        "PPMd": lambda data: pyppmd.compress(data, max_order=16, mem_size=256 << 20),
    }


def gzip(data: bytes) -> bytes:
    """DEFLATE at level 9 in gzip's frame, without a name or a date."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def xz(data: bytes) -> bytes:
    """What `xz -9e` writes."""
    return lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)


def image(pixels: np.ndarray) -> dict[str, bytes]:
    """A picture (height, width[, 3]) of bytes in PNG, and without loss in WebP and JPEG XL.

    Raises:
        ModuleNotFoundError: Pillow or pillow-jxl-plugin is not installed.
        ValueError: pixels of another type or shape.
    """
    import pillow_jxl  # noqa: F401
    from PIL import Image

    pixels = np.asarray(pixels)
    flat = pixels.ndim >= 2 and pixels.shape[2:] in ((), (3,))
    if pixels.dtype != np.uint8 or not flat or not pixels.size:
        raise ValueError(
            f"pixels must be (height, width[, 3]) uint8, got {pixels.shape} {pixels.dtype}"
        )
    picture, found = Image.fromarray(pixels), {}
    for name, options in {
        "PNG": {"format": "PNG", "optimize": True},
        "WebP": {"format": "WebP", "lossless": True, "quality": 100, "method": 6},
        "JPEG XL": {"format": "JXL", "lossless": True, "effort": 9},
    }.items():
        out = io.BytesIO()
        picture.save(out, **options)
        found[name] = out.getvalue()
    return found


def flac(samples: np.ndarray, rate: int) -> bytes:
    """Sound of eight bits and one channel, (n,) uint8 with silence at 128, in FLAC at its highest level.

    Raises:
        ModuleNotFoundError: soundfile is not installed.
        ValueError: samples of another type or shape.
    """
    import soundfile

    samples = np.asarray(samples)
    if samples.dtype != np.uint8 or samples.ndim != 1 or not samples.size:
        raise ValueError(
            f"samples must be (n,) uint8, got {samples.shape} {samples.dtype}"
        )
    wide = (samples.astype(np.int16) - 128) << 8  # soundfile keeps the upper byte
    out = io.BytesIO()
    soundfile.write(
        out, wide, rate, format="FLAC", subtype="PCM_S8", compression_level=1.0
    )
    return out.getvalue()


def sound(path: str | Path) -> tuple[np.ndarray, int]:
    """A WAV file of eight bits and one channel: (n,) uint8, and samples a second.

    Raises:
        ValueError: it has more of either, is cut, or is no such file.
    """
    try:
        file = wave.open(str(path))
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{path} is no WAV file: {error!r}") from error
    with file:
        shape = file.getsampwidth(), file.getnchannels()
        if shape != (1, 1):
            raise ValueError(f"{path} has (bytes, channels) {shape}, not (1, 1)")
        data = np.frombuffer(file.readframes(file.getnframes()), np.uint8)
        if len(data) != file.getnframes():
            raise ValueError(
                f"{path} is cut: {len(data)} of {file.getnframes()} samples"
            )
        return data, file.getframerate()


def chunks(data: bytes, size: int = 2048) -> list[bytes]:
    """`data` in pieces of `size` bytes, the last one shorter."""
    size = check_count("size", size)
    return [data[i : i + size] for i in range(0, len(data), size)]
