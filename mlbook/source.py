"""Where things come from: the repository's address, the source of an object, the data of a chapter."""

import hashlib
import html
import inspect
import json
import textwrap
from pathlib import Path

from IPython.display import Markdown, display

# The one place of the repository's address. `make set-repository URL=…` changes this line and every copy of it.
REPOSITORY = "https://github.com/your-account-/mlbook"
TAG = "v0.1.0"

DATA_MIME = "application/vnd.mlbook.data+json"


def show(*objects) -> None:
    """Display the source of functions, classes or methods: the tested code itself, with a link to its lines.

    Args:
        objects: anything that `inspect.getsource` takes.
    Raises:
        TypeError: an object that has no Python source (a built-in, an instance, a number).
    """
    for obj in objects:
        obj = getattr(obj, "fn", obj)  # a Triton kernel keeps its function there
        try:
            lines, first = inspect.getsourcelines(obj)
            path = _in_repository(inspect.getsourcefile(obj))
        except (TypeError, OSError) as error:
            raise TypeError(
                f"show() needs a function or class with Python source, got {obj!r}"
            ) from error
        link = f"{REPOSITORY}/blob/{TAG}/{path}#L{first}-L{first + len(lines) - 1}"
        code = textwrap.dedent("".join(lines)).rstrip()
        display(
            Markdown(
                f"```python\n{code}\n```\n\n<small>[`{path}`, line {first}]({link})</small>"
            )
        )


def _in_repository(file: str) -> str:
    """`…/site-packages/mlbook/claims.py` as `mlbook/claims.py`."""
    return (
        Path(file).resolve().relative_to(Path(__file__).resolve().parents[1]).as_posix()
    )


def recorded(name: str) -> dict[str, dict]:
    """What was measured on other machines: the files `benchmarks/results/NAME-*.json`, by their names.

    Empty where the repository is not at hand (on Colab, say) or nothing has been recorded. The build executes a chapter
    that calls this again when those files change.
    """
    folder = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
    return {
        path.stem: json.loads(path.read_text())
        for path in sorted(folder.glob(f"{name}-*.json"))
    }


def recorded_on(record: dict) -> str:
    """The line that says where and when one of `recorded` was measured."""
    versions = ", ".join(f"{name} {v}" for name, v in record["versions"].items())
    driver = record.get("card", {}).get("driver_version", "not known")
    cuda = f", CUDA {record['cuda']}, driver {driver}" if record["cuda"] else ""
    return (
        f"Recorded on {record['device']}, {record['date']}, commit {record['commit']}: "
        f"{versions}{cuda}"
    )


def data(name: str, source: str, path: str | Path | None = None) -> None:
    """Name a data source of this chapter: shown here and at the page's end, and watched by the build.

    Args:
        name: what it is, for the reader ("8×8 digits").
        source: where it comes from ("scikit-learn", a URL), with its licence.
        path: the file it was read from, if any; when the file changes, the chapter is executed again.
    Raises:
        FileNotFoundError: `path` is given and there is no such file.
    """
    record = {"name": name, "source": source}
    if path is not None:
        record |= {
            "path": str(path),
            "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        }
    text = f"Data: {name} ({source})"
    display(
        {
            DATA_MIME: record,
            "text/plain": text,
            "text/html": f"<small>{html.escape(text)}</small>",
        },
        raw=True,
    )
