"""Every coder of the chapter on compression, on text, photographs and music: bytes whole and in pieces of 2,048.

    PYTHONPATH=. python benchmarks/compressing.py

Sources: the Python reference and Wikipedia (held-out parts), the prose of this book's own chapters (written after the
pretrained model), four photographs in grey, and a loop of music, at most 32,768 bytes of each. Coders: those that people
use; context mixing, fresh and after the source's own training text (and the same favour for xz and PPMd: what they add to
that text); transformers of three sizes trained on Wikipedia here; SmolLM2, on text by its tokens, on the rest by its 256
tokens of one byte. Of neural models the length is the ideal one, in windows that begin with nothing.
"""

import hashlib
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from provenance import arguments, provenance, told

from mlbook.coding import compressors, neural, scaling
from mlbook.coding.mixing import Mix
from mlbook.common import corpora, packaged, smollm

MOST = 1 << 15  # bytes of each source
PRIMING = 2_000_000  # bytes of Wikipedia that every trained coder sees
CHUNK = 2048
FEW = 1 << 14  # bytes that SmolLM2 gets as numbers, too: two photographs
WINDOW = 1024  # bytes that the transformers trained here see
CONTEXT = 4096  # tokens that SmolLM2 sees
WALKED = 1 << 14  # bytes that SmolLM2 writes and reads back
TRAINED = {"35k": 16e-3, "218k": 4e-3, "1m": 4e-3}  # sizes, and their learning rates
PHOTOGRAPHS = ("camera", "astronaut", "coffee", "chelsea")
BOOK = ("flow-matching", "leveraged-etfs")


def sources() -> dict[str, dict]:
    """By name: the bytes, the text to learn from first, and pictures or samples of the same bytes."""
    reference = [bytes(part.tolist()) for part in corpora.python_reference()]
    wikipedia = corpora.wikipedia()
    photographs = [photograph(name) for name in PHOTOGRAPHS]
    music, rate = compressors.sound(
        packaged.file("examples/data/house_lo.wav", "pygame-ce==2.5.8", "pygame")
    )
    return {
        "Python reference": {"data": whole(reference[1]), "training": reference[0]},
        "Wikipedia": {
            "data": whole(wikipedia[1]),
            "training": wikipedia[0][:PRIMING],
        },
        "this book": {"data": whole(prose())},
        "photographs": {
            "data": b"".join(p.tobytes() for p in photographs),
            "pictures": photographs,
        },
        "music": {"data": music[:MOST].tobytes(), "rate": rate},
    }


def whole(text: bytes) -> bytes:
    """At most MOST bytes of it, without half a character at the end."""
    return text[:MOST].decode(errors="ignore").encode()


def prose() -> bytes:
    """The Markdown of two chapters."""
    notebooks = Path(__file__).parents[1] / "notebooks"
    cells = [
        "".join(cell["source"])
        for name in BOOK
        for cell in json.loads((notebooks / f"{name}.ipynb").read_text())["cells"]
        if cell["cell_type"] == "markdown"
    ]
    return "\n\n".join(cells).encode()


def photograph(name: str) -> np.ndarray:
    """Its middle in grey, (64, 128) uint8."""
    from PIL import Image

    path = packaged.file(f"skimage/data/{name}.png", "scikit-image==0.26.0")
    grey = np.asarray(Image.open(path).convert("L"))
    top, left = (grey.shape[0] - 64) // 2, (grey.shape[1] - 128) // 2
    return grey[top : top + 64, left : left + 128].copy()


def pieces(name: str, data: bytes) -> list[bytes]:
    """Of CHUNK bytes; text is cut at the last whole character before."""
    if name in ("photographs", "music"):
        return compressors.chunks(data, CHUNK)
    found = []
    while data:
        piece = data[:CHUNK].decode(errors="ignore").encode()
        found.append(piece)
        data = data[len(piece) :]
    return found


def row(source, coder, data, whole, chunked, start, model_bytes=0, **more) -> dict:
    """Lengths in bytes, whole and in pieces, and what the decoder needs besides the program."""
    return {
        "source": source,
        "coder": coder,
        "bytes": len(data),
        "whole": whole,
        "chunks": chunked,
        "model_bytes": model_bytes,
        "seconds": round(time.perf_counter() - start, 2),
    } | more


def main():
    parser = arguments(__doc__, minutes=120)
    parser.add_argument("--parts", nargs="*", help="these alone; others as they were")
    options = parser.parse_args()
    torch.set_num_threads(2)
    given = sources()
    names = "zstandard brotli pyppmd pillow soundfile transformers".split()
    record = provenance(*names) | {
        "sha256": {n: hashlib.sha256(s["data"]).hexdigest() for n, s in given.items()},
        "parameters": {},
    }

    def classical():
        for source, about in given.items():
            data = about["data"]
            for name, compress in compressors.general().items():
                start = time.perf_counter()
                chunked = sum(len(compress(p)) for p in pieces(source, data))
                yield row(source, name, data, len(compress(data)), chunked, start)
            for name in ("xz", "PPMd") if "training" in about else ():
                compress, start = compressors.general()[name], time.perf_counter()
                before = about["training"]
                added = len(compress(before + data)) - len(compress(before))
                yield row(source, f"{name}, primed", data, added, None, start)
            start = time.perf_counter()
            if "pictures" in about:
                found = [compressors.image(p) for p in about["pictures"]]
                strips = [
                    p[i : i + 16] for p in about["pictures"] for i in range(0, 64, 16)
                ]
                small = [compressors.image(p) for p in strips]
                for name in found[0]:
                    lengths = [
                        sum(len(f[name]) for f in part) for part in (found, small)
                    ]
                    yield row(source, name, data, *lengths, start)
            if "rate" in about:
                parts = [np.frombuffer(p, np.uint8) for p in pieces(source, data)]
                lengths = [
                    sum(len(compressors.flac(p, about["rate"])) for p in part)
                    for part in ([np.concatenate(parts)], parts)
                ]
                yield row(source, "FLAC", data, *lengths, start)
        start = time.perf_counter()
        for source in ("photographs", "music"):
            few = given[source]["data"][:FEW]
            packed = {"xz": len(compressors.xz(few))}
            if source == "music":
                samples = np.frombuffer(few, np.uint8)
                packed["FLAC"] = len(compressors.flac(samples, given[source]["rate"]))
            else:
                pictures = given[source]["pictures"][: FEW // 8192]
                assert few == b"".join(p.tobytes() for p in pictures)
                found = [compressors.image(p) for p in pictures]
                packed |= {name: sum(len(f[name]) for f in found) for name in found[0]}
            for name, length in packed.items():
                yield row(f"{source}, few", name, few, length, None, start)

    def mixing():
        for source, about in given.items():
            data = about["data"]
            for name, text in {"": b"", ", primed": about.get("training")}.items():
                if text is None:
                    continue
                model, start = Mix(text), time.perf_counter()
                chunked = sum(len(model.copy().encode(p)) for p in pieces(source, data))
                yield row(
                    source,
                    f"mix{name}",
                    data,
                    len(model.copy().encode(data)),
                    chunked,
                    start,
                )
        text = corpora.wikipedia()[0]
        for part in (PRIMING, len(text)):  # whole, and nothing else sent
            coders = compressors.general() | {"mix": lambda data: Mix().encode(data)}
            for name, compress in coders.items():
                start = time.perf_counter()
                yield row(
                    f"Wikipedia, {part:,} bytes",
                    name,
                    text[:part],
                    len(compress(text[:part])),
                    None,
                    start,
                )

    def transformers():
        for size, rate in TRAINED.items():
            start = time.perf_counter()
            model, losses = scaling.trained(size, PRIMING, rate, length=WINDOW, batch=2)
            parameters = sum(p.numel() for p in model.parameters())
            record["parameters"][size] = parameters
            online = (sum(losses) / len(losses) / math.log(2) + 8 / WINDOW) / 8
            for source, about in given.items():
                data, more = about["data"], {}
                if source == "Wikipedia":
                    more = {"online": online, "trained_on": len(losses) * WINDOW * 2}
                yield row(
                    source, f"transformer {size}", data,
                    neural_length(model, data),
                    sum(neural_length(model, p) for p in pieces(source, data)),
                    start, 2 * parameters, **more,
                )  # fmt: skip

    def pretrained():
        model, tokenizer = smollm.load()
        size = smollm.path().stat().st_size
        byte = byte_tokens(tokenizer)
        figures = [tokenizer.token_to_id(c) for c in (*"0123456789", "Ġ")]
        for source, about in given.items():
            data, start = about["data"], time.perf_counter()
            parts = pieces(source, data)
            if source in ("photographs", "music"):
                bits = [
                    neural.code_lengths(model, list(p), CHUNK, only=byte)[0].sum()
                    for p in parts
                ]
                lengths = [math.ceil(sum(bits).item() / 8)] * 2
                yield row(source, "SmolLM2", data, *lengths, start, size)
                few, start = data[:FEW], time.perf_counter()
                length = math.ceil(sum(bits[: FEW // CHUNK]).item() / 8)
                more = None, start, size
                yield row(f"{source}, few", "SmolLM2", few, length, *more)
                places = ["0123456789 ".index(c) for v in few for c in f"{v} "]
                bits, _ = neural.code_lengths(model, places, CONTEXT, only=figures)
                length = math.ceil(bits.sum().item() / 8)
                for name in (source, f"{source}, few"):
                    yield row(name, "SmolLM2, as numbers", few, length, *more)
                continue
            tokens = [tokenizer.encode(p.decode()).ids for p in (data, *parts)]
            bits = [
                neural.code_lengths(model, t, CONTEXT)[0].sum().item() for t in tokens
            ]
            chunked = sum(math.ceil(b / 8) for b in bits[1:])
            yield row(
                source,
                "SmolLM2",
                data,
                math.ceil(bits[0] / 8),
                chunked,
                start,
                size,
                tokens=len(tokens[0]),
            )

    def walked():
        """Real bytes: each token written and read back one at a time."""
        model, tokenizer = smollm.load()
        text = given["Python reference"]["data"][:WALKED].decode(errors="ignore")
        tokens, data = tokenizer.encode(text).ids, text.encode()
        coder, where = neural.LanguageModel(model), neural.fingerprint(smollm.path())
        ideal = neural.code_lengths(model, tokens, coder.window)[0].sum().item()
        start = time.perf_counter()
        packed = neural.compress(text, coder, tokenizer, where)
        middle = time.perf_counter()
        back = neural.decompress(packed, coder, tokenizer, where) == text
        yield {
            "source": "Python reference",
            "bytes": len(data),
            "tokens": len(tokens),
            "message": len(packed),
            "header": neural.HEADER,
            "ideal_bits": ideal,
            "xz": len(compressors.xz(data)),
            "read_back": back,
            "seconds": [round(middle - start), round(time.perf_counter() - middle)],
        }

    parts = {
        "classical": classical,
        "mixing": mixing,
        "transformers": transformers,
        "pretrained": pretrained,
        "walked": walked,
    }
    path, chosen = options.out / "compression-cpu.json", options.parts or parts
    earlier = json.loads(path.read_text()) if path.exists() else {}
    record |= {n: earlier[n] for n in (*parts, "parameters") if n in earlier}
    told({n: (1.0, parts[n]) for n in chosen}, record, path, options.minutes)


def neural_length(model, data: bytes) -> int:
    """Ideal length in whole bytes; a space stands before each window, which costs nothing to know."""
    bits, _ = neural.code_lengths(model, list(data), WINDOW, first=ord(" "))
    return math.ceil(bits.sum().item() / 8)


def byte_tokens(tokenizer) -> list[int]:
    """A token for each of the 256 bytes; the 13 that the vocabulary lacks are called " a", " b" and so on."""
    tokens = [tokenizer.token_to_id(name) for name in byte_names()]
    spare = iter(tokenizer.token_to_id(f"Ġ{chr(c)}") for c in range(ord("a"), 123))
    return [next(spare) if token is None else token for token in tokens]


def byte_names() -> list[str]:
    """How GPT-2's tokenizers write the 256 bytes."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    names = bytes_to_unicode()
    return [names[byte] for byte in range(256)]


if __name__ == "__main__":
    main()
