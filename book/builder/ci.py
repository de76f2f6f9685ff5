"""`python -m book.builder.ci`: what a change needs executed, and no more, as pages in `_build/ci`.

A chapter whose tracked record does not describe it as it is now is executed whole at scale cpu. So is one of the others,
each time another, and must make the claims that its record has. The rest is executed at scale smoke. What was not
executed at smoke is written to `_build/ci/left`, for nbmake.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from book.builder import pages, records
from book.builder.execute import BuildError, Chapter
from book.builder.progress import Progress
from book.builder.render import (
    FOLDERS,
    ROOT,
    at_scale,
    executed,
    locked,
    rendered,
)

# Seconds at scale cpu, by the chapters' records. Tests, pages and twelve chapters at smoke take about 14 minutes on two
# cores on a middling day; with these 12 all is done in under 60 minutes on a day of half the speed.
BUDGET_SECONDS = 720


@dataclass
class Plan:
    """Names of chapters: executed at cpu because their records are stale, and why; the one repeated at cpu, if any; at smoke."""

    stale: dict[str, list[str]]
    repeated: str | None
    smoke: list[str]


def plan(
    names: list[str], stale: dict[str, list[str]], seconds: dict[str, float], turn: int
) -> Plan:
    """What to execute at which scale.

    Args:
        names: every chapter.
        stale: those whose record is stale, with what changed.
        seconds: what each is expected to take at scale cpu.
        turn: grows by one from commit to commit: says whose turn it is to be repeated.
    Raises:
        BuildError: the stale chapters take more than the budget; says which to run first.
    """
    left = BUDGET_SECONDS - sum(seconds[name] for name in stale)
    if left < 0:
        fits, room = [], BUDGET_SECONDS
        longest_first = sorted(stale, key=lambda name: -seconds[name])
        for name in reversed(longest_first):
            if seconds[name] <= room:
                fits.append(name)
                room -= seconds[name]
        first = [name for name in longest_first if name not in fits]
        commands = "\n".join(f"  make chapter NAME={name}" for name in first)
        raise BuildError(
            f"{len(stale)} chapters have changed since their records, and take {sum(seconds[n] for n in stale) / 60:.0f} min "
            f"of the {BUDGET_SECONDS / 60:.0f} that CI has for them. Run these first, and commit book/records "
            f"(`make book` runs all):\n{commands}"
        )
    fresh = [name for name in names if name not in stale]
    in_turn = [fresh[(turn + i) % len(fresh)] for i in range(len(fresh))]
    repeated = next((name for name in in_turn if seconds[name] <= left), None)
    smoke = [name for name in fresh if name != repeated]
    return Plan(stale, repeated, smoke)


def commits(root: Path) -> int:
    """The number of commits that lead here; 0 where that cannot be told."""
    run = subprocess.run(
        ["git", "-C", root, "rev-list", "--count", "HEAD"],
        capture_output=True,
        text=True,
    )
    return int(run.stdout) if run.returncode == 0 else 0


def build(root: Path, out: Path, progress: Progress | None = None) -> Path:
    """Execute what `plan` says and render the pages into `out`; return their folder.

    Raises:
        BuildError: the budget does not suffice, a cell failed, a record is not reproduced, or a page cannot be made.
    """
    progress = progress or Progress()
    paths = {path.stem: path for path in pages.chapter_paths(root)}
    seconds = {name: records.estimate(root, name) for name in paths}
    stale = records.stale(list(paths.values()), root)
    todo = plan(list(paths), stale, seconds, commits(root))
    for name, why in todo.stale.items():
        progress.say(f"{name}: its record is stale ({', '.join(why)})")
    repeated = todo.repeated or "none (the stale ones take the budget)"
    progress.say(f"Repeated: {repeated if len(todo.stale) < len(paths) else 'none'}")
    with locked(out):
        if todo.repeated:  # an earlier execution is no repetition
            (out / "chapters" / "cpu" / f"{todo.repeated}.json").unlink(missing_ok=True)
        done: dict[str, Chapter] = {}
        for scale, names in (
            ("cpu", [name for name in paths if name not in todo.smoke]),
            ("smoke", todo.smoke),
        ):
            with at_scale(scale):
                some = executed([paths[n] for n in names], root, out, progress)
            done |= {chapter.name: chapter for chapter in some}
        for name in done.keys() - todo.smoke:
            compare(done[name], root, name == todo.repeated, progress)
        site = rendered(root, out, [done[name] for name in paths], progress)
        left = [
            paths[n].relative_to(root).as_posix() for n in paths if n not in todo.smoke
        ]
        (out / "left").write_text(" ".join(left) + "\n")
    return site


def compare(chapter: Chapter, root: Path, binding: bool, progress: Progress) -> None:
    """Tell how an execution differs from the chapter's record.

    Raises:
        BuildError: `binding`, and it has not the record's claims with the record's verdicts.
    """
    record = records.read(root, chapter.name)
    if record is None:
        return
    wrong, moved = records.differences(record, records.of(chapter, root))
    for line in moved if binding else wrong + moved:
        progress.say(f"  {chapter.name}: {line}")
    if binding and wrong:
        raise BuildError(
            f"{chapter.name} does not reproduce its record of {record['when']} ({record['machine']}):\n"
            + "\n".join(wrong)
        )


def main() -> int:
    try:
        site = build(ROOT, ROOT / FOLDERS["ci"])
    except (BuildError, ValueError) as error:
        print(f"\nThe book was not built.\n\n{error}", flush=True)
        return 1
    print(f"\nPages in {site}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
