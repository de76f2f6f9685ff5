"""Staging: from executed chapters and the front pages to the folder that Jupyter Book renders."""

import base64
import collections
import hashlib
import html
import json
import re
import shutil
from pathlib import Path

import nbformat
import yaml

from book.builder import freshness, kinds, measures
from book.builder.execute import BuildError, Chapter
from mlbook.claims import MEANINGS

SITE = ["_config.yml", "_toc.yml", "book"]  # what is copied as it is
APART = {"__pycache__", "builder", "records"}  # and what of it is no page's
DATA_URI = re.compile(r"data:(video/mp4|image/jpeg);base64,([A-Za-z0-9+/=]+)")
SUFFIX = {"video/mp4": ".mp4", "image/jpeg": ".jpg"}


def chapter_paths(root: Path) -> list[Path]:
    """The chapters' notebooks, in the order of the table of contents.

    Raises:
        BuildError: the table names a notebook that is not there, or leaves one out.
    """
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    named = [
        root / f"{name}.ipynb" for name in _files(toc) if name.startswith("notebooks/")
    ]
    there = set((root / "notebooks").glob("*.ipynb"))
    if missing := [str(p.relative_to(root)) for p in named if p not in there]:
        raise BuildError(
            f"_toc.yml names notebooks that do not exist: {', '.join(missing)}"
        )
    if left_out := sorted(p.name for p in there - set(named)):
        raise BuildError(f"_toc.yml leaves out: {', '.join(left_out)}")
    return named


def _files(node) -> list[str]:
    if isinstance(node, list):
        return [name for item in node for name in _files(item)]
    if isinstance(node, dict):
        return [node[key] for key in ("root", "file") if key in node] + [
            name
            for key in ("parts", "chapters", "sections")
            for name in _files(node.get(key, []))
        ]
    return []


def stage(root: Path, folder: Path, chapters: list[Chapter]) -> bool:
    """Write everything Jupyter Book needs to `folder`; True if anything there changed.

    Raises:
        BuildError: two claims share an id.
    """
    check_claims(chapters)
    files: dict[str, bytes] = {}
    for name in SITE:
        paths = (
            [root / name]
            if (root / name).is_file()
            else sorted((root / name).rglob("*"))
        )
        for path in paths:
            if path.is_file() and not APART & {*path.relative_to(root).parts}:
                files[str(path.relative_to(root))] = path.read_bytes()
    if len(chapters) < len(chapter_paths(root)):
        files["_toc.yml"] = _toc_of(yaml.safe_load(files["_toc.yml"]), chapters)
        config = yaml.safe_load(files["_config.yml"])
        settings = config.setdefault("sphinx", {}).setdefault("config", {})
        unknown = settings.setdefault("suppress_warnings", [])
        unknown.append("myst.xref_missing")  # links to the chapters left out
        files["_config.yml"] = yaml.safe_dump(config, sort_keys=False).encode()
    for chapter in chapters:
        files |= _chapter_files(chapter, root)
    fill = {
        "<!-- chapters -->": _cards(chapters, files),
        "<!-- opening -->": _opening(chapters),
        "<!-- claims -->": claims_table(chapters),
        "<!-- status -->": status_table(chapters),
        "<!-- measures -->": measures_table(chapters, measures.recorded(root)),
    }
    for name in [n for n in files if n.startswith("book/") and n.endswith(".md")]:
        text = files[name].decode()
        for mark, words in fill.items():
            text = text.replace(mark, words)
        files[name] = text.encode()
    return _write(folder, files)


def check_claims(chapters: list[Chapter]) -> None:
    """Raise BuildError where two claims of the book share an id."""
    first: dict[str, str] = {}
    for chapter in chapters:
        for item in chapter.record["claims"]:
            if item["id"] in first:
                raise BuildError(
                    f"the claim id {item['id']} is used twice: {first[item['id']]} and {chapter.name}"
                )
            first[item["id"]] = chapter.name


def _toc_of(toc: dict, chapters: list[Chapter]) -> bytes:
    """The table of contents with only the given chapters: for rendering one alone."""
    kept = {f"notebooks/{c.name}" for c in chapters}

    def prune(node):
        if isinstance(node, list):
            return [
                prune(i)
                for i in node
                if not ("file" in i and i["file"].startswith("notebooks/"))
                or i["file"] in kept
            ]
        return {k: prune(v) if isinstance(v, list) else v for k, v in node.items()}

    toc = prune(toc)
    if "parts" in toc:
        toc["parts"] = [part for part in toc["parts"] if part.get("chapters")]
    return yaml.safe_dump(toc).encode()


def _chapter_files(chapter: Chapter, root: Path) -> dict[str, bytes]:
    """The staged notebook and the films and posters taken out of it."""
    files: dict[str, bytes] = {}

    book = nbformat.from_dict(json.loads(json.dumps(chapter.book)))
    for number, cell in enumerate(freshness.code_cells(book)):
        _fold(cell, first=number == 0)
        for output in cell.outputs:
            if "text/html" in output.get("data", {}):
                output.data["text/html"] = _outside(output.data["text/html"], files)
    book.cells.insert(
        1, nbformat.v4.new_markdown_cell(_runs_on(chapter, root), id="runs-on")
    )
    book.cells.append(
        nbformat.v4.new_markdown_cell(_provenance(chapter), id="provenance")
    )
    files[f"notebooks/{chapter.name}.ipynb"] = nbformat.writes(book).encode()
    return files


def _fold(cell: nbformat.NotebookNode, first: bool) -> None:
    """Let the page's fold say what is inside; the set-up that a chapter begins with folds what it prints too."""
    kind = kinds.kind(cell)
    if kind is None:
        return
    title = kinds.TITLES[kind]
    cell.source = kinds.untitled(cell.source)
    cell.metadata["mystnb"] = {"code_prompt_show": title, "code_prompt_hide": title}
    if first and kind == "setup":
        cell.metadata["tags"] = ["hide-cell"]


def _runs_on(chapter: Chapter, root: Path) -> str:
    """The row under the title: measured minutes and memory, here and on recorded machines."""
    rows = [
        {
            **chapter.record,
            "device": f"{chapter.record['device']}, {chapter.record['threads']} threads",
        }
    ]
    for path in sorted(
        (root / "benchmarks" / "results").glob(f"chapter-{chapter.name}-*.json")
    ):
        rows.append(json.loads(path.read_text()))
    cells = [
        f"{r['device']}: **{_minutes(r['seconds'])}**, {r['peak_mb'] / 1000:.1f} GB (scale `{r['scale']}`)"
        for r in rows
    ]
    return (
        '<p class="runs-on">Runs on any CPU or GPU. Measured: '
        + "; ".join(map(_inline, cells))
        + ".</p>"
    )


def _inline(text: str) -> str:
    """The little Markdown that `_runs_on` uses, as HTML: a raw paragraph may carry a class."""
    return re.sub(
        r"`(.+?)`", r"<code>\1</code>", re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)
    )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _provenance(chapter: Chapter) -> str:
    r = chapter.record
    versions = ", ".join(f"{k} {v}" for k, v in r["versions"].items())
    sources = (
        "; ".join(f"{d['name']} ({d['source']})" for d in r["data"])
        or "made by the chapter itself"
    )
    return (
        f'<p class="provenance">This page shows an execution of {r["when"]}: {r["seconds"]:.0f} s, peak memory '
        f"{r['peak_mb']:,} MB, scale {r['scale']}, on {r['device']} with {r['threads']} threads, "
        f"Python {r['dependencies']['Python']}, {versions}. Data: {html.escape(sources)}. "
        f"{len(r['claims'])} claims were checked.</p>"
    )


def _first_paragraph(chapter: Chapter) -> str:
    after_title = chapter.book.cells[0].source.split("\n", 1)[1]
    return re.sub(r"\s+", " ", after_title.strip().split("\n\n")[0])


def _pictures(chapter: Chapter) -> list[str]:
    """The HTML of the chapter's films and drawings, in order."""
    htmls = [
        o.data["text/html"]
        for c in freshness.code_cells(chapter.book)
        for o in c.outputs
        if "text/html" in o.get("data", {})
    ]
    return [h for h in htmls if "<video" in h or "<svg" in h]


def _outside(text: str, files: dict[str, bytes] | None = None) -> str:
    """HTML whose films and posters are addresses of staged files; their contents join `files`, where given."""

    def address(match: re.Match) -> str:
        content = base64.b64decode(match[2])
        name = hashlib.sha256(content).hexdigest()[:16] + SUFFIX[match[1]]
        if files is not None:
            files[f"book/_static/media/{name}"] = content
        return f"../_static/media/{name}"

    return DATA_URI.sub(address, text)


def _opening(chapters: list[Chapter]) -> str:
    """The first film of the first chapter, for the front page."""
    for chapter in chapters:
        for picture in _pictures(chapter):
            if film := re.search(
                r'<div class="mlbook-player">.*?</div></div>', picture, re.DOTALL
            ):
                return f'<div class="opening">{_outside(film[0])}</div>'
    return ""


def _cards(chapters: list[Chapter], files: dict[str, bytes]) -> str:
    """The table of chapters: picture, title, what the reader will be able to do, and how long it runs; still pictures
    join `files`."""
    cards = []
    for chapter in chapters:
        cards.append(
            f'<a class="chapter-card" href="../notebooks/{chapter.name}.html">{_card_picture(chapter, files)}'
            f"<span><b>{html.escape(chapter.title)}</b>"
            f"<span>{html.escape(_first_paragraph(chapter))}</span><small>{_minutes(chapter.record['seconds'])} to run; "
            f"{len(chapter.record['claims'])} claims checked</small></span></a>"
        )
    return '<div class="chapter-cards">' + "\n".join(cards) + "</div>"


def _card_picture(chapter: Chapter, files: dict[str, bytes]) -> str:
    """The poster of a chapter's first film, else its first figure, as an `<img>`; nothing where it has neither."""
    pictures = _pictures(chapter)
    for picture in pictures:
        if film := re.search(r'aria-label="([^"]+)" poster="([^"]+)"', picture):
            return f'<img alt="{film[1]}" src="{_outside(film[2])}">'
    for picture in pictures:
        if svg := _still(picture):
            alt = re.search(r'aria-label="([^"]*)"', svg)[1]
            name = hashlib.sha256(svg.encode()).hexdigest()[:16] + ".svg"
            files[f"book/_static/media/{name}"] = svg.encode()
            return f'<img alt="{alt}" src="../_static/media/{name}">'
    return ""


def _still(picture: str) -> str | None:
    """The figure that `picture` shows first as a file of its own: dark on white, whatever page it came from."""
    shown = re.search(
        r'(?:<div class="mlbook-frame"(?![^>]* hidden)[^>]*>|<div class="mlbook-scroll"[^>]*>)(<svg role="img".*?</svg>)',
        picture,
        re.DOTALL,
    )
    if not shown:
        return None
    svg = re.sub(r"var\(--mlbook-\w+,(#\w+)\)", r"\1", shown[1])
    shared = re.search(r"<defs>.*?</defs>", picture, re.DOTALL)
    if (
        shared and shared[0] not in svg
    ):  # a slider's frames keep their letters in one place
        svg = svg.replace(">", f">{shared[0]}", 1)
    return svg.replace("currentColor", "#222222")


def claims_table(chapters: list[Chapter]) -> str:
    """Every claim, linked to its cell, in two views: what is not plainly confirmed by verdict, and all by chapter."""
    claims = [(chapter, c) for chapter in chapters for c in chapter.record["claims"]]
    counts = collections.Counter(c["verdict"] for _, c in claims)
    parts = [_claims_counts(chapters)]
    for verdict in ("corrected", "refuted", "open"):
        if counts[verdict]:
            parts.append(
                f"## {verdict.capitalize()}: {counts[verdict]}\n\n{MEANINGS[verdict].capitalize()}.\n\n"
                "| Claim | Measured | Chapter | Source |\n| --- | --- | --- | --- |\n"
                + "\n".join(
                    _claim_row(chapter, c, chapter.title)
                    for chapter, c in claims
                    if c["verdict"] == verdict
                )
            )
    for chapter in chapters:
        parts.append(
            f"## {chapter.title}\n\n| Claim | Measured | Verdict | Source |\n| --- | --- | --- | --- |\n"
            + "\n".join(
                _claim_row(chapter, c, c["verdict"]) for c in chapter.record["claims"]
            )
        )
    return "\n\n".join(parts)


def _claims_counts(chapters: list[Chapter]) -> str:
    """How many claims of each verdict each chapter has."""
    verdicts = ["corrected", "refuted", "confirmed", "open"]
    counts = {
        f"[{chapter.title}](../notebooks/{chapter.name}.ipynb)": collections.Counter(
            c["verdict"] for c in chapter.record["claims"]
        )
        for chapter in chapters
    }
    counts["**All**"] = sum(counts.values(), collections.Counter())
    rows = [
        f"| {title} | " + " | ".join(str(count[v]) for v in verdicts) + " |"
        for title, count in counts.items()
    ]
    head = " | ".join(v.capitalize() for v in verdicts)
    return f"| Chapter | {head} |\n" + "| --- " * 5 + "|\n" + "\n".join(rows)


def _claim_row(chapter: Chapter, c: dict, third: str) -> str:
    place = c["place"]
    notes = [html.escape(c["source"])] if c["source"] else []
    notes += [html.escape(place)] if place != "here" else []
    notes += [] if c["asserted"] else [c["unasserted"]]
    return (
        f'| <a href="../notebooks/{chapter.name}.html#claim-{c["id"]}">{html.escape(c["statement"])}</a> '
        f"| {c['marked']} | {third} | {'; '.join(notes)} |"
    )


def status_table(chapters: list[Chapter]) -> str:
    """When, where and how long each chapter last ran, as a Markdown table, and its data below."""
    head = (
        "| Chapter | Executed | Seconds | Peak memory | Scale | Device | Claims |\n"
        + "| --- " * 7
        + "|\n"
    )
    rows = "\n".join(
        f"| [{c.title}](../notebooks/{c.name}.ipynb) | {c.record['when']} | {c.record['seconds']:.0f} "
        f"| {c.record['peak_mb']:,} MB | {c.record['scale']} | {c.record['device']}, {c.record['threads']} threads "
        f"| {len(c.record['claims'])} |"
        for c in chapters
    )
    data = "\n".join(
        f"- *{c.title}*: {'; '.join(d['name'] for d in c.record['data']) or 'made by the chapter'}."
        for c in chapters
    )
    return f"{head}{rows}\n\nThe data of the chapters:\n\n{data}"


def measures_table(chapters: list[Chapter], recorded: dict[str, dict]) -> str:
    """How each chapter's page is filled, beside what the book aims at, as a Markdown table."""
    known = [c for c in chapters if c.name in recorded]
    head = ["Measure", "Aim", *(c.title for c in known)]
    rows = [
        [words, aim, *(show.format(recorded[c.name][key]) for c in known)]
        for key, (words, aim, show) in measures.TABLE.items()
    ]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _write(folder: Path, files: dict[str, bytes]) -> bool:
    """Make `folder` hold exactly `files`, touching only what differs (Sphinx rereads what was touched)."""
    changed = False
    for path in (
        [p for p in folder.rglob("*") if p.is_file()] if folder.exists() else []
    ):
        if str(path.relative_to(folder)) not in files:
            path.unlink()
            changed = True
    for name, content in files.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            changed = True
    return changed


def clean_downloads(root: Path, site: Path, chapters: list[Chapter]) -> None:
    """Let the download button give the notebook as written: no outputs, no rows added by the build."""
    for chapter in chapters:
        shutil.copy(chapter.path, site / "_sources" / "notebooks" / chapter.path.name)
