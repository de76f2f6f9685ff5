"""Executing chapters: as many at a time as have two cores each, measured, kept one by one as they finish."""

import ast
import datetime
import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import nbformat
import psutil
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import mlbook
from book.builder import freshness, threads
from book.builder.progress import Progress
from mlbook.claims import MIME as CLAIM_MIME
from mlbook.source import DATA_MIME

CELL_TIMEOUT = 1200  # seconds
# What a chapter's budget is written for; two chapters on the same cores would also spoil each other's clocks. At scale
# smoke most of the time goes into imports, which use one core.
CORES_A_CHAPTER = {"smoke": 1, "cpu": 2, "gpu": 2}


class BuildError(Exception):
    """The book cannot be built; the message says where and why."""


@dataclass
class Chapter:
    """A chapter's notebook as written, what its code printed, and the record of that execution."""

    name: str
    path: Path
    book: nbformat.NotebookNode
    record: dict

    @property
    def title(self) -> str:
        return re.search(r"^# (.+)$", self.book.cells[0].source, re.MULTILINE)[1]


def chapters(
    paths: list[Path],
    root: Path,
    cache: Path,
    progress: Progress | None = None,
    last: dict[str, float] | None = None,
) -> list[Chapter]:
    """Every chapter with outputs that are fresh: reused from `cache` where nothing changed, executed where it did.

    Args:
        progress: what tells how far it is; standard output, if not given.
        last: the seconds that a chapter took elsewhere, for one that `cache` knows nothing of.
    Raises:
        BuildError: a cell failed; the chapters that finished are kept in `cache`.
    """
    progress = progress or Progress()
    cache.mkdir(parents=True, exist_ok=True)
    stale = {}
    for path in paths:
        now = freshness.dependencies(path, root)
        record = _record(cache, path.stem)
        if why := freshness.changes(record, now):
            seconds = record["seconds"] if record else (last or {}).get(path.stem)
            stale[path] = (now, why, seconds)
        else:
            progress.say(
                f"  {path.stem}: reused (executed {record['when']} in {record['seconds']:.0f} s)"
            )
    workers, cores = _workers(len(stale))
    known = [seconds for _, _, seconds in stale.values() if seconds]
    if known:
        progress.say(
            f"  {len(stale)} of {len(paths)} to execute; {len(known)} of them took {sum(known) / workers / 60:.0f} min the last time"
        )
    failed: list[BuildError] = []

    def work(path: Path) -> None:
        if failed:  # one chapter has failed: start no further one, and let those under way finish
            return
        now, why, seconds = stale[path]
        progress.say(f"  {path.stem}: executing (changed: {', '.join(why)})")
        try:
            record = _execute(path, cache, cores, now, progress, seconds)
        except BuildError as error:
            failed.append(error)
            progress.say(f"  {path.stem}: failed")
        else:
            progress.say(
                f"  {path.stem}: executed in {record['seconds']:.0f} s, peak {record['peak_mb']:,.0f} MB"
            )

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, stale))
    if failed:
        raise BuildError("\n\n".join(map(str, failed)))
    return [_load(path, cache) for path in paths]


def _workers(chapters: int) -> tuple[int, int]:
    """How many chapters run at a time, and the threads of each."""
    at_once = (os.cpu_count() or 1) // CORES_A_CHAPTER[mlbook.scale_name()]
    workers = max(1, min(chapters, at_once))
    return workers, threads.share(workers)


def _record(cache: Path, name: str) -> dict | None:
    try:
        return json.loads((cache / f"{name}.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _load(path: Path, cache: Path) -> Chapter:
    """The notebook as it now reads, with the outputs that its code gave."""
    book = nbformat.read(path, as_version=4)
    outputs = nbformat.read(cache / f"{path.stem}.ipynb", as_version=4)
    for cell, ran in zip(
        freshness.code_cells(book), freshness.code_cells(outputs), strict=True
    ):
        cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
    book.metadata["language_info"] = outputs.metadata[
        "language_info"
    ]  # Sphinx colours the code by it
    return Chapter(path.stem, path, book, _record(cache, path.stem))


def _execute(
    path: Path,
    cache: Path,
    cores: int,
    dependencies: dict,
    progress: Progress,
    last: float | None,
) -> dict:
    book = nbformat.read(path, as_version=4)
    env = os.environ | threads.settings(cores)
    env |= {"MLBOOK_SCALE": mlbook.scale_name(), "PYTHONHASHSEED": "0"}
    numbers = {cell.id: i for i, cell in enumerate(freshness.code_cells(book), 1)}

    def begins(cell, cell_index):
        if cell.id in numbers:
            progress.cell(path.stem, numbers[cell.id])

    client = NotebookClient(
        book,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        on_cell_start=begins,
    )
    peak = _Peak(client, progress.tick)
    start = time.perf_counter()
    progress.start(path.stem, len(numbers), last)
    try:
        with peak, tempfile.TemporaryDirectory() as sockets:
            if os.name == "posix":  # a free port may be taken before the kernel has it
                client.km = client.create_kernel_manager()
                client.km.transport, client.km.ip = "ipc", f"{sockets}/kernel"
            client.execute(env=env)
    except CellExecutionError as error:
        number, cell = next(
            (i, c)
            for i, c in enumerate(book.cells)
            if c.cell_type == "code"
            and any(o.output_type == "error" for o in c.outputs)
        )
        raise BuildError(
            f"{path.name}: cell {number} (id {cell.id}) failed.\n\n{cell.source}\n\n{_plain(error.traceback)}"
        ) from None
    except Exception as error:  # the kernel died, or a cell outran its time
        raise BuildError(f"{path.name}: {type(error).__name__}: {error}") from error
    finally:
        progress.end(path.stem)
    seconds = time.perf_counter() - start
    check_outputs(path.name, book)
    record = {
        "dependencies": dependencies,
        "when": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": round(seconds, 1),
        "peak_mb": round(peak.bytes / 1e6),
        "scale": mlbook.scale_name(),
        "device": freshness.device_name(),
        "threads": cores,
        "versions": _versions(),
        "claims": collect(book, CLAIM_MIME),
        "data": collect(book, DATA_MIME),
    }
    nbformat.write(book, cache / f"{path.stem}.ipynb")
    (cache / f"{path.stem}.json").write_text(
        json.dumps(record, indent=1)
    )  # last: a record means a whole execution
    return record


def check_outputs(name: str, book: nbformat.NotebookNode) -> None:
    """Every cell that draws shows something or says why not, every picture has alternative text, nothing is printed to
    stderr.

    Raises:
        BuildError: naming the cell.
    """
    for number, cell in enumerate(book.cells):
        if cell.cell_type != "code":
            continue
        where = f"{name}: cell {number} (id {cell.id})"
        shown = [
            kind + str(text)
            for output in cell.outputs
            for kind, text in output.get("data", {}).items()
            if kind.startswith("image/") or kind == "text/html"
        ]
        pictures = [
            s for s in shown if re.search(r"^image/|<(svg|img|video|canvas)\b", s)
        ]
        if not pictures and _draws(cell.source, always=True):
            raise BuildError(
                f"{where} draws a figure, and nothing is visible in its output"
            )
        if not pictures and _draws(cell.source) and not _printed(cell, "stdout"):
            raise BuildError(
                f"{where} draws a figure where something is the case, and otherwise prints no line that says why not"
            )
        for picture in pictures:
            tags = re.findall(  # an <svg> without size holds definitions
                r'<(?:svg(?! width="0")|img|video|canvas)\b[^>]*', picture
            )
            if picture.startswith("image/") or not all(
                re.search(r'(aria-label|alt)="[^"]', tag) for tag in tags
            ):
                raise BuildError(
                    f"{where} shows a picture without alternative text: use mlbook.figures.show(fig, alt=…)"
                )
        if errors := _printed(cell, "stderr"):
            raise BuildError(
                f"{where} printed to stderr, which readers would see:\n{errors[:2000]}"
            )


def _printed(cell: nbformat.NotebookNode, stream: str) -> str:
    return "".join(
        output.text
        for output in cell.outputs
        if output.output_type == "stream" and output.name == stream
    )


def _draws(source: str, always: bool = False) -> bool:
    """Whether a cell makes a figure: it calls `figures.show`, `.film` or `.slider`, or makes a matplotlib figure and
    does not merely define the function that does. `always`: whether it does so under no condition."""
    tree = ast.parse(TransformerManager().transform_cell(source))
    maybe = (ast.If, ast.For) if always else ()  # a loop may have nothing to go through
    passed_over = (ast.FunctionDef, ast.ClassDef, *maybe)
    tree.body = [n for n in tree.body if not isinstance(n, passed_over)]
    calls = {
        ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)
    }
    makers = {
        "figures.show",
        "figures.film",
        "figures.slider",
        "plt.subplots",
        "plt.figure",
        "plt.show",
        "plt.plot",
    }
    return bool(calls & makers)


def collect(book: nbformat.NotebookNode, mime: str) -> list[dict]:
    """All outputs of one kind: claims, say, or data."""
    return [
        output.data[mime]
        for cell in freshness.code_cells(book)
        for output in cell.outputs
        if mime in output.get("data", {})
    ]


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "numpy", "matplotlib")}


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


class _Peak:
    """Watches the memory of a kernel and its children while it runs, and calls `tick` each time it looks."""

    def __init__(self, client: NotebookClient, tick: Callable[[], None]):
        self.client, self.tick = client, tick
        self.bytes, self.done = 0, Event()

    def __enter__(self):
        Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.done.set()

    def _watch(self) -> None:
        while not self.done.wait(0.25):
            self.tick()
            pid = getattr(getattr(self.client.km, "provisioner", None), "pid", None)
            if pid is None:
                continue
            try:
                kernel = psutil.Process(pid)
                now = sum(
                    p.memory_info().rss
                    for p in [kernel, *kernel.children(recursive=True)]
                )
            except psutil.Error:
                continue
            self.bytes = max(self.bytes, now)
