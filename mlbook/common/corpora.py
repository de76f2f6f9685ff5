"""Text to train small language models on: what every machine has, and a larger one that can be downloaded."""

import bz2
import functools
import hashlib
import http.client
import io
import urllib.request
import zipfile
import zlib
from pathlib import Path

import torch
from torch import Tensor

from mlbook.common import packaged

ENWIK8 = "http://mattmahoney.net/dc/enwik8.zip"
ENWIK8_MD5 = "a1fa5ffddb56f4953e226637dabbb36a"


def python_reference() -> tuple[Tensor, Tensor]:
    """The Python language reference as Python itself carries it, in bytes: (training text, held-out text), int64.

    About 460 KB; every eighth of its topics in alphabetical order is held out.
    """
    from pydoc_data.topics import topics

    names = sorted(topics)
    held_out = set(names[::8])
    parts = ([n for n in names if n not in held_out], sorted(held_out))
    return tuple(
        torch.tensor(list("\n".join(topics[n] for n in part).encode()))
        for part in parts
    )


WIKIPEDIA = (
    "test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
)

WIKIPEDIA_SHA256 = "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d"


@functools.cache
def wikipedia() -> tuple[bytes, bytes]:
    """206 pages of the English Wikipedia as gensim carries them, XML and all: (training text, held-out text).

    6.1 MB, a kin of enwik8; every eighth page, by the order of the file, is held out. Text: CC BY-SA.

    Raises:
        FileNotFoundError: gensim is not installed.
        ValueError: its file is another.
    """
    packed = packaged.check(packaged.file(WIKIPEDIA, "gensim==4.4.0"), WIKIPEDIA_SHA256)
    _, *pages = bz2.decompress(packed).split(b"  <page>\n")
    pages = [b"  <page>\n" + page for page in pages]
    held_out = pages[::8]
    return b"".join(p for i, p in enumerate(pages) if i % 8), b"".join(held_out)


def enwik8(folder: str | Path, length: int = 20_000_000) -> tuple[Tensor, Tensor]:
    """The first bytes of the English Wikipedia of 2006: (nine tenths, the tenth after), int64; fetched once.

    Args:
        folder: where the archive (36 MB) is kept.
        length: bytes in both together, at most 100,000,000.
    Raises:
        OSError: it is not there and cannot be fetched.
        ValueError: what was fetched is something else, or `length` is out of range.
    """
    if not 10 <= length <= 100_000_000:
        raise ValueError(f"length must be between 10 and 100,000,000, got {length}")
    path = Path(folder) / "enwik8.zip"
    if path.exists():
        archive = path.read_bytes()
    else:
        try:
            with urllib.request.urlopen(ENWIK8, timeout=20) as response:
                archive = response.read()
        except http.client.HTTPException as error:  # the server closed too early
            raise OSError(f"{ENWIK8} cannot be fetched: {error!r}") from error
    try:
        text = zipfile.ZipFile(io.BytesIO(archive)).read("enwik8")
    except (zipfile.BadZipFile, KeyError, zlib.error, RuntimeError) as error:
        raise ValueError(
            f"{path if path.exists() else ENWIK8} is not the archive of enwik8: {error}"
        ) from error
    digest = hashlib.md5(text).hexdigest()
    if digest != ENWIK8_MD5:
        raise ValueError(f"enwik8 has the digest {ENWIK8_MD5}, this has {digest}")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(archive)
    tokens = torch.frombuffer(bytearray(text[:length]), dtype=torch.uint8).long()
    return tokens[: length * 9 // 10], tokens[length * 9 // 10 :]


def windows(tokens: Tensor, n: int, length: int, generator: torch.Generator) -> Tensor:
    """`n` stretches of `length` tokens from anywhere in `tokens`: (n, length).

    Raises:
        ValueError: `tokens` has fewer than `length`.
    """
    if len(tokens) < length:
        raise ValueError(f"a text of {len(tokens)} tokens has no stretch of {length}")
    starts = torch.randint(len(tokens) - length + 1, (n, 1), generator=generator)
    return tokens[starts + torch.arange(length)]
