"""`python -m book.builder.measures`: how the chapters' pages are filled, from the book that is built at scale cpu.

Heights are of a window 1280 px wide with its folds closed; shares are of the page's height.
"""

import functools
import http.server
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from book.builder import kinds

ROOT = Path(__file__).resolve().parents[2]
RECORD = Path("book", "records", "measures.json")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
]
# What the Status page shows: words, the aim, the number's format
TABLE = {
    "code": ("Visible code", "≤ 20 %", "{:.0%}"),
    "shown": ("Shown sources", "≤ 10 %", "{:.0%}"),
    "figures": ("Figures, films, sliders", "≥ 20 %", "{:.0%}"),
    "claims": ("Claims", "", "{:.0%}"),
    "height": ("Height, px", "≤ 30,000", "{:,}"),
    "first": ("First picture at, px", "≤ 900", "{:,}"),
    "lines": ("Lines of code in cells", "≤ 700", "{:,}"),
    "nclaims": ("Number of claims", "12–30", "{}"),
    "words": ("Words", "", "{:,}"),
    "nfigures": ("Number of figures", "", "{}"),
    "films": ("of them films", "", "{}"),
    "density": ("Figures per 1,000 words", "≥ 3", "{:.1f}"),
}
COUNT = """() => {
  const seen = e => e.offsetParent !== null && !e.closest('details:not([open])');
  const all = s => [...document.querySelectorAll(s)];
  const page = document.documentElement.scrollHeight;
  const share = s => all(s).filter(seen).reduce((a, e) => a + e.getBoundingClientRect().height, 0) / page;
  const first = all('main figure, main video, main svg.mlbook-svg, main img').filter(seen)[0];
  return {
    height: page, code: share('.cell_input'), shown: share('.cell_output .highlight'),
    figures: share('figure.mlbook-figure'), claims: share('.claim'),
    first: first ? Math.round(first.getBoundingClientRect().top + scrollY) : page,
    nfigures: all('figure.mlbook-figure').length, films: all('video').length, nclaims: all('.claim').length,
    words: all('main p, main li').map(e => e.innerText).join(' ').split(/\\s+/).length
  }}"""


def measures(page, notebook: Path) -> dict[str, float]:
    """What fills a chapter's page, by the names of `TABLE`.

    Args:
        page: a Playwright page, 1280 px wide, on which the chapter is open and its formulas are set.
        notebook: the chapter's notebook, whose lines of code are counted.
    """
    found = {k: round(v, 4) for k, v in page.evaluate(COUNT).items()}
    found["density"] = round(1000 * found["nfigures"] / found["words"], 2)
    code = [
        kinds.untitled("".join(cell["source"]))
        for cell in json.loads(notebook.read_text())["cells"]
        if cell["cell_type"] == "code"
    ]
    found["lines"] = sum(bool(line.strip()) for c in code for line in c.splitlines())
    return found


def recorded(root: Path) -> dict[str, dict]:
    """The measures on record, by chapter; empty where there are none yet."""
    return read(root / RECORD)


def read(path: Path) -> dict[str, dict]:
    """What `keep` wrote, if it did."""
    return json.loads(path.read_text()) if path.exists() else {}


def keep(path: Path, found: dict[str, dict]) -> None:
    """Let the file `path` hold the measures `found`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def chromium() -> str | None:
    """Where this machine's Chromium is."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which the pages of `folder` can be had meanwhile."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=folder)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def settled(page) -> None:
    """Return when the formulas of the page are set."""
    page.wait_for_function(
        "!window.MathJax || !MathJax.startup || MathJax.startup.promise.then(() => true)"
    )


def main() -> int:
    from playwright.sync_api import sync_playwright

    site = ROOT / "_build" / "html"
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    if not chromium() or not all(
        (site / "notebooks" / f"{path.stem}.html").exists() for path in paths
    ):
        print("This needs Chromium, and the book that `make book` builds.")
        return 1
    found = {}
    with served(site) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        for path in paths:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(f"{address}notebooks/{path.stem}.html")
            settled(page)
            found[path.stem] = measures(page, path)
            page.close()
        browser.close()
    keep(ROOT / RECORD, found)
    print(f"{RECORD}: {', '.join(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
