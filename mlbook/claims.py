"""The claims ledger: every number and statement that a chapter vouches for, checked where it stands."""

import html
import math
import re

from IPython.display import display

MIME = "application/vnd.mlbook.claim+json"
VERDICTS = ("confirmed", "corrected", "refuted")
# What a line says: the verdict where the claim holds; "failed" where it does not; "open" where a small scale cannot tell
MARKS = {
    "confirmed": "✓",
    "corrected": "✎",
    "refuted": "✗",
    "failed": "!",
    "open": "○",
}
MEANINGS = {
    "confirmed": "it holds",
    "corrected": "the source says something else, and this is what holds",
    "refuted": "the source’s own statement was tested and fails",
    "failed": "it does not hold",
    "open": "this run cannot tell",
}


class ClaimFailed(AssertionError):
    """A claim does not hold for what was measured."""


def claim(
    id: str,
    statement: str,
    *,
    measured: float | bool,
    below: float | None = None,
    above: float | None = None,
    source: str = "",
    verdict: str = "confirmed",
    unit: str = "",
    at_smoke: bool = True,
    recorded: dict | None = None,
    timed: bool = False,
) -> None:
    """Check a claim, display it as one line, and leave it where the book's build collects it.

    Args:
        id: "chapter.what", lower case, unique in the book.
        statement: one sentence; Markdown mathematics is not rendered.
        measured: the number the statement stands or falls with; or True/False, which is then the claim itself.
        below, above: the bounds it must keep, both strict; at least one for a number.
        source: the paper, post or file that the statement comes from.
        verdict: "confirmed"; "corrected" (the source is wrong, this is right); "refuted" (the source's own
            statement was tested and failed: the bounds are those of the refutation).
        unit: printed after the number.
        at_smoke: False where the claim needs the sizes of the larger scales (a trained model, say): at scale "smoke"
            it is then shown and not asserted.
        recorded: where the number comes from another machine, the record that holds it (one of `mlbook.recorded`,
            with "device" and "date"): the line says so, and the claim is asserted at every scale.
        timed: True where the number compares times: it is shown with its bounds and asserted at no scale, since a busy
            machine must not decide about a build.
    Raises:
        ClaimFailed: the bounds are not kept, or the number is not finite.
        ValueError: the claim itself is malformed.
    """
    from mlbook import scale_name

    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*\.[a-z0-9]+(-[a-z0-9]+)*", id):
        raise ValueError(
            f"a claim's id reads 'chapter.what-it-is' in lower case, got {id!r}"
        )
    if verdict not in VERDICTS:
        raise ValueError(
            f"claim {id}: verdict {verdict!r} is not one of {', '.join(VERDICTS)}"
        )
    if recorded is not None and not {"device", "date"} <= recorded.keys():
        raise ValueError(
            f"claim {id}: a record names its device and date, got {sorted(recorded)}"
        )
    is_fact = isinstance(measured, bool)
    value = measured if is_fact else float(measured)
    if is_fact != (below is None and above is None):
        raise ValueError(
            f"claim {id}: a number needs a bound (below=, above=), and True or False takes none"
        )

    if is_fact:
        holds, left, right = value, "", ""
        number = "checked" if value else "does not hold"
    else:
        holds = (
            math.isfinite(value)
            and (below is None or value < below)
            and (above is None or value > above)
        )
        left = f"{above:.4g} < " if above is not None else ""
        right = f" < {below:.4g}" if below is not None else ""
        right += f" {unit}" if unit else ""
        number = f"{value:.4g}"
    asserted = recorded is not None or (
        not timed and (at_smoke or scale_name() != "smoke")
    )
    outcome = verdict if holds else "failed" if asserted else "open"
    unasserted = "a timing, not asserted" if timed else "not asserted at this scale"
    note = "" if asserted else unasserted
    place = "here"
    if recorded is not None:
        place = note = f"recorded on {recorded['device']}, {recorded['date']}"
    record = {
        "id": id,
        "statement": statement,
        "measured": value,
        "shown": left + number + right,
        "marked": f"{html.escape(left)}<strong>{number}</strong>{html.escape(right)}",
        "source": source,
        "verdict": outcome,
        "place": place,
        "holds": holds,
        "asserted": asserted,
        "unasserted": "" if asserted else unasserted,
    }
    text = f"{MARKS[outcome]} {outcome}: {statement} [{record['shown']}]" + "".join(
        f" ({s})" for s in (source, note) if s
    )
    display(
        {MIME: record, "text/plain": text, "text/html": _line(record, note)}, raw=True
    )
    if asserted and not holds:
        raise ClaimFailed(f"claim {id} does not hold: {statement} [{record['shown']}]")


def _line(record: dict, note: str) -> str:
    """The claim as one quiet line of HTML, whose anchor the Claims page links to."""
    e = {key: html.escape(str(value)) for key, value in record.items()}
    tail = "".join(
        f' <span class="claim-source">{html.escape(s)}</span>'
        for s in (record["source"], note)
        if s
    )
    return (
        f'<div class="claim claim-{e["verdict"]}" id="claim-{e["id"]}" style="font-size:.9em;margin:.3em 0">'
        f'<b title="{MEANINGS[record["verdict"]]}">{MARKS[record["verdict"]]} {e["verdict"]}</b> {e["statement"]} '
        f'<code title="bold: measured; beside it: the bounds it must keep">{record["marked"]}</code>{tail}</div>'
    )
