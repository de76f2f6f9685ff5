"""The rendered pages in a real browser: formulas, films, search, themes, narrow screens, accessibility, no foreign request."""

import functools
import http.server
import os
import re
import shutil
import threading
from pathlib import Path

import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from book.builder.__main__ import build

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FRONT = ["index", "how-to-run", "claims", "status", "about"]
PAGES = [f"book/{name}.html" for name in FRONT] + [
    f"notebooks/{p.stem}.html" for p in CHAPTERS
]
CHROMIUM = (
    shutil.which("chromium")
    or shutil.which("chromium-browser")
    or shutil.which("google-chrome")
)
PAGE_LIMIT = 6_000_000  # bytes, everything that opening a page brings

if not CHROMIUM and not os.environ.get("CI"):
    pytest.skip(
        "no Chromium on this machine: the pages are not tested in a browser",
        allow_module_level=True,
    )


@pytest.fixture(scope="module")
def folder(request):
    """The book's pages at the scale that `--pages` names, built where they are not there yet."""
    scale = request.config.getoption("pages")
    out = ROOT / "_build" / ("smoke" if scale == "smoke" else "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLBOOK_SCALE", scale)
        return build(ROOT, out).parent


@pytest.fixture(scope="module")
def site(folder):
    """The pages, served from this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=folder)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    assert CHROMIUM, (
        "CI is set and there is no Chromium: install it (Debian: apt-get install chromium)"
    )
    with sync_playwright() as playwright:
        flags = [
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
        ]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


class Opened:
    """A page, with everything that went wrong or was fetched while it opened."""

    def __init__(self, browser, site, path, width=1280, scheme="light"):
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        self.context.add_init_script(
            f"localStorage.setItem('mode','{scheme}');localStorage.setItem('theme','{scheme}')"
        )
        self.tab = self.context.new_page()
        self.errors, self.foreign, self.bytes, self.awaited = [], [], 0, set()
        self.tab.on(
            "console", lambda m: m.type == "error" and self.errors.append(m.text)
        )
        self.tab.on("pageerror", lambda e: self.errors.append(str(e)))
        self.tab.on("requestfailed", self._failed)
        self.tab.on(
            "response",
            lambda r: r.status >= 400 and self.errors.append(f"{r.status}: {r.url}"),
        )
        self.tab.on("request", lambda r: self._seen(r, site))
        self.tab.on("requestfinished", self._count)
        self.tab.goto(site + path)
        self.tab.wait_for_function(
            "!window.MathJax || !MathJax.startup || MathJax.startup.promise.then(() => true)"
        )
        quiet = 0
        while quiet < 5:
            self.tab.wait_for_timeout(100)
            quiet = 0 if self.awaited else quiet + 1

    def _failed(self, request):
        self.awaited.discard(request)
        film_paused = (
            request.url.endswith(".mp4") and request.failure == "net::ERR_ABORTED"
        )
        if not film_paused:  # the browser stops loading a film once it knows its size
            self.errors.append(f"failed: {request.url} ({request.failure})")

    def _seen(self, request, site):
        if not request.url.startswith((site, "data:", "blob:")):
            self.foreign.append(request.url)
        if not request.url.endswith(".mp4"):  # a film may take its time
            self.awaited.add(request)

    def _count(self, request):
        size = request.sizes()["responseBodySize"]
        self.bytes += size  # asked for first: other requests are counted meanwhile
        self.awaited.discard(request)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()


def formulas(path):
    """How many formulas the notebook's prose holds."""
    prose = "\n".join(
        c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown"
    )
    prose = re.sub(r"`[^`]*`", "", prose)
    displays = re.findall(r"\$\$.+?\$\$", prose, re.DOTALL)
    return len(displays) + len(
        re.findall(
            r"(?<!\\)\$[^$\n]+?\$", re.sub(r"\$\$.+?\$\$", "", prose, flags=re.DOTALL)
        )
    )


@pytest.mark.parametrize("path", PAGES)
def test_a_page_opens_clean(browser, site, path):
    with Opened(browser, site, path) as page:
        assert page.errors == [] and page.foreign == []
        assert page.bytes < PAGE_LIMIT
        assert (
            page.tab.evaluate(
                "[...document.querySelectorAll('main img')].filter(i => !i.alt.trim()).length"
            )
            == 0
        )


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_every_formula_is_rendered(browser, site, path):
    with Opened(browser, site, f"notebooks/{path.stem}.html") as page:
        page.tab.wait_for_selector("mjx-container")
        assert page.tab.locator("mjx-container").count() == formulas(path)
        assert page.tab.locator("mjx-merror, [data-mjx-error]").count() == 0


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_every_film_plays_and_can_be_moved(browser, site, path):
    with Opened(browser, site, f"notebooks/{path.stem}.html") as page:
        films = page.tab.locator(".mlbook-player")
        assert films.count() == page.tab.locator("video").count()
        for i in range(films.count()):
            button, position = (
                films.nth(i).locator("button"),
                films.nth(i).locator("input"),
            )
            button.click()
            films.nth(i).locator("button[aria-label=Pause]").wait_for()
            page.tab.wait_for_function(
                "r => r.value > 0", arg=position.element_handle(), timeout=10_000
            )
            button.click()
            films.nth(i).locator("button[aria-label=Play]").wait_for()
            position.fill("0.5")  # scrubbing moves the film
            near_half = films.nth(i).evaluate(
                """async p => { const v = p.querySelector('video');
                   await new Promise(r => setTimeout(r, 700));
                   return v.videoWidth > 0 && Math.abs(v.currentTime / v.duration - .5) < .1 }"""
            )
            assert near_half, f"film {i} does not follow its slider"


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_sliders_move_without_a_kernel(browser, site, path):
    with Opened(browser, site, f"notebooks/{path.stem}.html") as page:
        sliders = page.tab.locator("figure:has(.mlbook-frame) input[type=range]")
        for i in range(sliders.count()):
            slider = sliders.nth(i)
            slider.focus()
            before = slider.evaluate(
                "s => s.closest('figure').querySelector('output').value"
            )
            slider.press(
                "ArrowRight" if slider.evaluate("s => s.value < s.max") else "ArrowLeft"
            )
            after, shown = slider.evaluate(
                "s => [s.closest('figure').querySelector('output').value,"
                " [...s.closest('figure').querySelectorAll('.mlbook-frame')].filter(f => f.offsetParent).length]"
            )
            assert after != before and shown == 1


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_scrolls_sideways(browser, site, path, width):
    with Opened(browser, site, path, width=width) as page:
        assert (
            page.tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        )


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(browser, site, path, scheme):
    with Opened(browser, site, path, scheme=scheme) as page:
        found = (
            Axe()
            .run(page.tab, options={"resultTypes": ["violations"]})
            .response["violations"]
        )
        bad = [
            f"{v['id']}: {v['nodes'][0]['html'][:160]} ({len(v['nodes'])} places)"
            for v in found
            if v["impact"] in ("serious", "critical")
        ]
        assert bad == []


def test_search_finds_a_word_of_the_chapter(browser, site):
    with Opened(browser, site, "search.html?q=Hutchinson") as page:
        page.tab.wait_for_selector("ul.search li a")
        assert any(
            "flow-matching" in a.get_attribute("href")
            for a in page.tab.locator("ul.search li a").all()
        )


def test_icons_come_from_a_font_alone(browser, site):
    with Opened(browser, site, PAGES[-1]) as page:
        assert page.tab.locator("script[src*=fontawesome]").count() == 0
        loaded = page.tab.evaluate(
            "[...document.fonts].filter(f => f.status == 'loaded').map(f => f.family)"
        )
        assert any("Font Awesome" in family for family in loaded)


def test_the_theme_switch_changes_the_page(browser, site):
    with Opened(browser, site, PAGES[-1]) as page:

        def look():
            return page.tab.evaluate(
                "[document.body, document.querySelector('.mlbook-svg')]"
                ".map(e => getComputedStyle(e)).map((s, i) => i ? s.color : s.backgroundColor)"
            )

        light = look()
        for _ in range(3):  # the switch goes round light, dark and automatic
            page.tab.locator("button.theme-switch-button").locator(
                "visible=true"
            ).first.click()
            if page.tab.evaluate("document.documentElement.dataset.theme") == "dark":
                break
        dark = look()
        assert light[0] != dark[0] and light[1] != dark[1]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_launch_and_download_buttons(browser, site, path):
    with Opened(browser, site, f"notebooks/{path.stem}.html") as page:
        links = page.tab.evaluate(
            "[...document.querySelectorAll('.article-header-buttons a')].map(a => a.href)"
        )
        assert any(
            "colab.research.google.com/github/" in a
            and a.endswith(f"notebooks/{path.name}")
            for a in links
        )
        assert any("mybinder.org/v2/gh/" in a and path.stem in a for a in links)
        assert any(a.endswith(f"/lab/tree/{path.name}") for a in links)
        (download,) = [
            a for a in links if a.endswith(f"_sources/notebooks/{path.name}")
        ]
        given = nbformat.reads(page.context.request.get(download).text(), 4)
        assert given == nbformat.read(path, 4), "the notebook as written: no outputs"


def test_claims_link_to_their_cells(browser, site):
    with Opened(browser, site, "book/claims.html") as page:
        links = page.tab.evaluate(
            "[...document.querySelectorAll('td a[href*=\"#claim-\"]')].map(a => a.href)"
        )
        assert len(links) >= 12 * len(CHAPTERS)
        ids = {}
        for link in links:
            where, anchor = link.split("#")
            if where not in ids:
                ids[where] = set(
                    re.findall(
                        r'id="(claim-[^"]+)"', page.context.request.get(where).text()
                    )
                )
            assert anchor in ids[where], f"{link} leads nowhere"


def test_pages_open_from_a_folder_without_a_server(browser, folder):
    with Opened(browser, f"{folder.as_uri()}/", PAGES[-1]) as page:
        page.tab.wait_for_selector("mjx-container")
        assert page.foreign == [] and page.errors == []
