"""The rendered pages in a real browser: formulas, films, search, themes, narrow screens, accessibility, no foreign request."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe
from filelock import FileLock
from playwright.sync_api import sync_playwright

from book.builder import built_pages, kinds, measures, records

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FRONT = ["index", "how-to-run", "claims", "status", "about"]
PAGES = [f"book/{name}.html" for name in FRONT] + [
    f"notebooks/{p.stem}.html" for p in CHAPTERS
]
LOOKS = {  # a page is opened once in each
    "light": (1280, "light"),
    "dark": (1280, "dark"),
    "phone": (390, "light"),
    "small phone": (360, "light"),
}
PAGE_LIMIT = 6_000_000  # bytes, everything that opening a page brings

if not measures.chromium() and not os.environ.get("CI"):
    pytest.skip(
        "no Chromium on this machine: the pages are not tested in a browser",
        allow_module_level=True,
    )


@pytest.fixture(scope="module")
def folder(request):
    """The book's pages at the scale that `--pages` names, built where they are not there yet."""
    return built_pages(request.config.getoption("pages"))


@pytest.fixture(scope="module")
def site(folder):
    """The pages, served from this machine."""
    with measures.served(folder) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    assert measures.chromium(), (
        "CI is set and there is no Chromium: install it (Debian: apt-get install chromium)"
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=measures.chromium(), args=measures.FLAGS
        )
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
        self.path, self.scheme = path, scheme
        self.notebook = ROOT / "notebooks" / f"{Path(path).stem}.ipynb"
        self.tab.goto(site + path)
        measures.settled(self.tab)
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


# What a page is asked. A question moves what it must, so that none may lean on the state that another left.


def opens_clean(page):
    assert page.errors == [] and page.foreign == []


def weighs_little(page):
    assert page.bytes < PAGE_LIMIT


def every_image_has_words(page):
    assert page.tab.locator("main img:not([alt]), main img[alt='']").count() == 0


def every_formula_is_rendered(page):
    page.tab.wait_for_selector("mjx-container")
    assert page.tab.locator("mjx-container").count() == formulas(page.notebook)
    assert page.tab.locator("mjx-merror, [data-mjx-error]").count() == 0


def nothing_is_cut_off_or_scrolls_sideways(page):
    """What a parent hides counts, and what lies in a box that scrolls by itself does not."""
    beyond = page.tab.evaluate(
        """() => {
          const scrolls = e => e && (/auto|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
          return [...document.body.querySelectorAll(':not(mjx-assistive-mml, mjx-assistive-mml *)')]
            .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && e.getBoundingClientRect().width > 1
                      && e.checkVisibility({visibilityProperty: true, opacityProperty: true}) && !scrolls(e))
            .map(e => e.outerHTML.slice(0, 100)) }"""
    )
    assert beyond == []
    assert page.tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def is_accessible(page):
    """Code in colours is looked at on one page: its tokens are many, and everywhere the same."""
    whole = page.path == PAGES[-1]
    if whole:
        page.tab.evaluate(
            "document.querySelectorAll('details').forEach(d => d.open = true)"
        )
    scope = {"exclude": [] if whole else [[".highlight"]]}
    options = {"resultTypes": ["violations"]}
    if page.scheme == "dark":  # only colours differ from the light page
        options["runOnly"] = ["color-contrast"]
    found = Axe().run(page.tab, context=scope, options=options).response["violations"]
    bad = [
        f"{v['id']}: {v['nodes'][0]['html'][:160]} ({len(v['nodes'])} places)"
        for v in found
        if v["impact"] in ("serious", "critical")
    ]
    assert bad == []


def every_film_plays_and_can_be_moved(page):
    films = page.tab.locator(".mlbook-player")
    assert films.count() == page.tab.locator("video").count()
    for i in range(films.count()):
        button, position = films.nth(i).locator("button"), films.nth(i).locator("input")
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


def sliders_move_without_a_kernel(page):
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


def launches_and_downloads(page):
    links = page.tab.evaluate(
        "[...document.querySelectorAll('.article-header-buttons a')].map(a => a.href)"
    )
    name = page.notebook.name
    assert any(
        "colab.research.google.com/github/" in a and a.endswith(f"notebooks/{name}")
        for a in links
    )
    assert any("mybinder.org/v2/gh/" in a and page.notebook.stem in a for a in links)
    assert any(a.endswith(f"/lab/tree/{name}") for a in links)
    (download,) = [a for a in links if a.endswith(f"_sources/notebooks/{name}")]
    given = nbformat.reads(page.context.request.get(download).text(), 4)
    assert given == nbformat.read(page.notebook, 4), (
        "the notebook as written: no outputs"
    )


def folds_open_with_the_keyboard(page):
    folds = page.tab.locator("div.cell > details.hide")
    cells = nbformat.read(page.notebook, 4).cells
    of = [kinds.kind(c) for c in cells if c.cell_type == "code"]
    titles = [kinds.TITLES[kind] for kind in of if kind not in (None, "source")]
    assert [
        text.strip() for text in folds.locator("p.collapsed").all_text_contents()
    ] == titles
    summary = folds.first.locator("summary")
    code = folds.first.locator(".cell_input")
    assert not code.is_visible()
    summary.focus()
    page.tab.keyboard.press("Enter")
    assert code.is_visible() and "@title" not in code.inner_text()
    box, line = summary.bounding_box(), code.bounding_box()
    assert box["height"] < 30 and box["width"] < line["width"] / 2, "a quiet line"
    page.tab.keyboard.press("Enter")
    assert not code.is_visible()


def a_claim_leads_to_its_check(page):
    claim = page.tab.locator("div.cell:has(> details.hide) .claim").last
    code = page.tab.locator(
        f"div.cell:has([id='{claim.get_attribute('id')}']) > details.hide .cell_input"
    )
    assert not code.is_visible()
    claim.locator("a.claim-check").click()
    code.wait_for()
    in_sight = "e => { const top = e.getBoundingClientRect().top; return 0 <= top && top < innerHeight }"
    assert code.evaluate(in_sight)
    first = page.tab.locator("div.cell:has(> details.hide) .claim").first
    page.tab.evaluate(f"location.hash = '{first.get_attribute('id')}'")
    page.tab.wait_for_function(in_sight, arg=first.element_handle())
    assert first.evaluate("e => e.closest('.cell').querySelector('details.hide').open")


def is_measured(page):
    """Kept in `_build/measures.json`; and those on record, which the Status page shows, are not far off, where the record
    of the chapter's run is not itself of another state."""
    found = measures.measures(page.tab, page.notebook)
    path = ROOT / "_build" / "measures.json"
    with FileLock(path.with_suffix(".lock")):
        there = measures.read(path)
        measures.keep(path, there | {page.notebook.stem: found})
    whole = page.tab.locator(".mlbook-scale").first.inner_text() == "Scale: cpu."
    if whole and not records.stale([page.notebook], ROOT):
        known = measures.recorded(ROOT).get(page.notebook.stem, {})
        assert found == pytest.approx(known, rel=0.1, abs=0.005), (
            "run `python -m book.builder.measures`"
        )


def icons_come_from_a_font_alone(page):
    assert page.tab.locator("script[src*=fontawesome]").count() == 0
    loaded = page.tab.evaluate(
        "[...document.fonts].filter(f => f.status == 'loaded').map(f => f.family)"
    )
    assert any("Font Awesome" in family for family in loaded)


def every_claim_is_linked_to_its_cell(page):
    links = page.tab.evaluate(
        "[...document.querySelectorAll('td a[href*=\"#claim-\"]')].map(a => a.href)"
    )
    assert len(links) >= 12 * len(CHAPTERS)
    ids = {}
    for link in links:
        where, anchor = link.split("#")
        if where not in ids:
            text = page.context.request.get(where).text()
            ids[where] = set(re.findall(r'id="(claim-[^"]+)"', text))
        assert anchor in ids[where], f"{link} leads nowhere"


def every_card_has_a_picture(page):
    cards = page.tab.locator(".chapter-card")
    assert cards.count() == len(CHAPTERS)
    drawn = "c => c.querySelector('img').naturalWidth > 0"
    assert all(card.evaluate(drawn) for card in cards.all())
    narrowest = min(
        card.locator("> span").bounding_box()["width"] for card in cards.all()
    )
    assert narrowest > 200, "no text is squeezed"


def the_theme_switch_changes_the_page(page):
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


def questions(path, look):
    """What is asked of a page in a look, in this order: what measures comes before what moves."""
    chapter = path.startswith("notebooks/")
    asked = [opens_clean, nothing_is_cut_off_or_scrolls_sideways]
    if look == "light":
        asked += [weighs_little, every_image_has_words, icons_come_from_a_font_alone]
        if chapter:
            asked += [
                is_measured,
                every_formula_is_rendered,
                launches_and_downloads,
                folds_open_with_the_keyboard,
                a_claim_leads_to_its_check,
                every_film_plays_and_can_be_moved,
                sliders_move_without_a_kernel,
            ]
        asked += {
            "book/index.html": [every_card_has_a_picture],
            "book/claims.html": [every_claim_is_linked_to_its_cell],
        }.get(path, [])
    if look in ("light", "dark"):
        asked += [is_accessible]
    if look == "light" and chapter:
        asked += [the_theme_switch_changes_the_page]
    return asked


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("path", PAGES)
def test_page(browser, site, path, look, subtests):
    width, scheme = LOOKS[look]
    with Opened(browser, site, path, width, scheme) as page:
        for question in questions(path, look):
            with subtests.test(question.__name__):
                question(page)


def test_search_finds_a_word_of_the_chapter(browser, site):
    with Opened(browser, site, "search.html?q=Hutchinson") as page:
        page.tab.wait_for_selector("ul.search li a")
        assert any(
            "flow-matching" in a.get_attribute("href")
            for a in page.tab.locator("ul.search li a").all()
        )


def test_pages_open_from_a_folder_without_a_server(browser, folder):
    with Opened(browser, f"{folder.as_uri()}/", PAGES[-1]) as page:
        page.tab.wait_for_selector("mjx-container")
        assert page.foreign == [] and page.errors == []
        page.tab.locator("div.cell:has(> details.hide) a.claim-check").first.click()
        assert page.tab.locator("details.hide[open] .cell_input").is_visible()
