"""Where things come from: the repository's address, the source of an object, the data of a chapter."""

import ast
import hashlib
import html
import inspect
import json
import re
import textwrap
from pathlib import Path

from IPython.display import Markdown, display

# The one place of the repository's address. `make set-repository URL=…` changes this line and every copy of it.
REPOSITORY = "https://github.com/your-account-/mlbook"
TAG = "v0.1.0"

DATA_MIME = "application/vnd.mlbook.data+json"

SECTION = re.compile(r"( *)(Args|Attributes|Returns|Yields|Raises):")


def show(*objects) -> None:
    """Display the source of functions, classes or methods: the tested code itself, with a link to its lines.

    The parts of docstrings that a reader of the argument can spare, from "Args" on, stand folded beneath.

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
        code, details = _without_sections(textwrap.dedent("".join(lines)).rstrip())
        text = f"{_fenced(code, 'python')}\n\n<small>[`{path}`, line {first}]({link})</small>"
        if details:
            text += (
                '\n\n<details class="signature"><summary>Arguments and errors</summary>\n\n'
                f"{_fenced(details, 'text')}\n\n</details>"
            )
        display(Markdown(text))


def _fenced(text: str, language: str) -> str:
    """A block of code in Markdown, whatever fences it holds itself."""
    longest = max((len(run) for run in re.findall("`{3,}", text)), default=2)
    return f"{'`' * (longest + 1)}{language}\n{text}\n{'`' * (longest + 1)}"


def _without_sections(code: str) -> tuple[str, str]:
    """`code` with docstrings that end where their Google-style sections begin, and those sections, by what they are of."""
    documented = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    lines, details = code.splitlines(keepends=True), []

    def place(line: int, column: int) -> int:
        """An index into `code`; syntax trees count columns in bytes."""
        before = lines[line - 1].encode()[:column].decode()
        return sum(map(len, lines[: line - 1])) + len(before)

    nodes = [n for n in ast.walk(ast.parse(code)) if isinstance(n, documented)]
    for node in sorted(nodes, key=lambda n: -n.lineno):  # the last first: places hold
        if ast.get_docstring(node) is None:
            continue
        text = node.body[0].value
        start, end = (
            place(text.lineno, text.col_offset),
            place(text.end_lineno, text.end_col_offset),
        )
        opening, body, closing = re.fullmatch(
            r"""(\w*(\"{3}|'{3}|["']))(.*)(\2)""", code[start:end], re.DOTALL
        ).group(1, 3, 4)
        kept, cut = _cut(body)
        if cut:
            code = code[:start] + opening + kept + closing + code[end:]
            details.insert(0, f"{node.name}\n{textwrap.indent(cut, '    ')}")
    return code, "\n\n".join(details)


def _cut(docstring: str) -> tuple[str, str]:
    """What a docstring says before and after its sections, and the sections."""
    kept, cut, inside = [], [], None
    for line in docstring.split("\n"):
        section = SECTION.match(line) if kept else None
        if section:
            inside = len(section[1])
        elif (
            line.strip()
            and inside is not None
            and len(line) - len(line.lstrip()) <= inside
        ):
            inside = None
        (kept if inside is None else cut).append(line)
    if not cut:
        return docstring, ""
    while kept and not kept[-1].strip():
        kept.pop()
    last = docstring.split("\n")[-1]
    if len(kept) > 1 and not last.strip():  # the quotes keep a line of their own
        kept.append(last)
    return "\n".join(kept), textwrap.dedent("\n".join(filter(str.strip, cut)))


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
