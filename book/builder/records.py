"""The tracked record of each chapter's last whole run at scale cpu: `book/records/NAME.json`.

What is in a record is the same on every machine for the same content, but for the measured numbers, seconds and
memory, and the line that says where they come from: its changes are read in a diff.
"""

import json
import os
import platform
from pathlib import Path

import psutil

from book.builder import freshness
from book.builder.execute import Chapter

SCALE = "cpu"
BUDGET_SECONDS = 150  # of a chapter at this scale: what a new one is expected to take


def path_of(root: Path, name: str) -> Path:
    return root / "book" / "records" / f"{name}.json"


def read(root: Path, name: str) -> dict | None:
    """The record of a chapter; None where it has none.

    Raises:
        ValueError: the file is no JSON (a merge has left its marks there, say).
    """
    path = path_of(root, name)
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.relative_to(root)} is no JSON: {error}") from error


def of(chapter: Chapter, root: Path) -> dict:
    """The record of an execution, without device, paths or anything else of the machine in its digests."""
    ran = chapter.record
    return {
        "when": ran["when"],
        "machine": machine(ran),
        "seconds": ran["seconds"],
        "peak_mb": ran["peak_mb"],
        "versions": ran["versions"],
        "claims": {
            c["id"]: [_rounded(c["measured"]), c["verdict"]] for c in ran["claims"]
        },
        "data": {d["name"]: d.get("sha256", d["source"]) for d in ran["data"]},
        "dependencies": freshness.content(chapter.path, root),
    }


def machine(ran: dict) -> str:
    """The machine in words, without its name."""
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{ran['device']}, {os.cpu_count()} cores, {ran['threads']} threads, {memory:.0f} GB, "
        f"{platform.system()}, Python {ran['dependencies']['Python']}"
    )


def _rounded(value: float | bool) -> float | bool:
    return value if isinstance(value, bool) else float(f"{value:.5g}")


def stale(paths: list[Path], root: Path) -> dict[str, list[str]]:
    """The chapters whose tracked record does not describe them as they now are, each with what has changed."""
    found = {}
    for path in paths:
        record = read(root, path.stem)
        if record is None:
            found[path.stem] = ["no record"]
        elif why := freshness.differing(
            record["dependencies"], freshness.content(path, root)
        ):
            found[path.stem] = why
    return found


def estimate(root: Path, name: str) -> float:
    """The seconds that a chapter is expected to take at scale cpu."""
    record = read(root, name)
    return record["seconds"] if record else BUDGET_SECONDS


def differences(record: dict, now: dict) -> tuple[list[str], list[str]]:
    """What a new run says otherwise than the record: (claims that came, went or changed their verdict; numbers that moved).

    Where the data differ, the two runs need not have the same claims, and only those are compared that both have. A claim
    that is open in one of the runs, as a timing may be, was not decided there and contradicts nothing.
    """
    before, after = record["claims"], now["claims"]
    wrong, moved = [], []
    if record["data"] != now["data"]:
        moved.append("other data: claims that only one run has are not compared")
    else:
        wrong += [f"{id} is no longer claimed" for id in before.keys() - after.keys()]
        wrong += [f"{id} is not in the record" for id in after.keys() - before.keys()]
    for id in sorted(before.keys() & after.keys()):
        (old, verdict), (new, now_said) = before[id], after[id]
        if verdict != now_said and "open" not in (verdict, now_said):
            wrong.append(f"{id}: {verdict} in the record, {now_said} now")
        elif old != new:
            moved.append(f"{id}: {old} in the record, {new} now")
    return sorted(wrong), moved


def keep(chapter: Chapter, root: Path) -> bool:
    """Write the record of an execution where the one that is there describes another content, other claims or other data;
    True if so.

    A record that still holds is left alone, and one of data that this machine lacks: running an unchanged book changes
    no file of the repository.
    """
    now, before = of(chapter, root), read(root, chapter.name)
    if before and before["dependencies"] == now["dependencies"]:
        lacks_data = before["data"].keys() - now["data"].keys()
        same = before["data"] == now["data"] and not differences(before, now)[0]
        if lacks_data or same:
            return False
    path = path_of(root, chapter.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_pretty(now) + "\n")
    return True


def _pretty(value, indent: str = "") -> str:
    """JSON with one line for each entry of a dictionary, however deep."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False)
    inner = indent + " "
    lines = [
        f"{inner}{json.dumps(key, ensure_ascii=False)}: {_pretty(item, inner)}"
        for key, item in value.items()
    ]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
