"""The page in a real browser: Debian's Chromium, driven by Playwright (``make report``)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report import troubled

sync = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install 'bntools[browser]'"
)
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
    # What Playwright's own event loop leaves open when it ends is no fault of the page.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.xdist_group("chromium"),
]
SIZES = [(390, 844), (1280, 900)]
SCHEMES = ["light", "dark"]

# Of every text that is seen, the contrast of its colour with what it stands on (WCAG 2.2, 1.4.3).
CONTRASTS = """() => {
  const parse = (text) => [...text.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);
  const line = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * line(r / 255) + 0.7152 * line(g / 255) + 0.0722 * line(b / 255);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || e.closest("svg, script, .unseen, .skip")) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.className + ": " + e.textContent]);
  }
  return found;
}"""
SHOWN = """() => [...document.querySelectorAll(".site")].filter((e) => e.checkVisibility())
  .map((e) => e.querySelector(".name bdi").textContent)"""
WHERE = """() => {
  const at = document.activeElement, site = at.closest(".site");
  return at.matches(".strip a") ? at.title : site ? "row " + site.querySelector(".at").textContent : "";
}"""
OUTLINE = "() => (({outlineStyle: s, outlineWidth: w}) => [s, w])(getComputedStyle(document.activeElement))"
TIMED = """() => {
  const search = document.getElementById("search"), took = [];
  for (const words of ["1.1", "1.11", "BN002", ""]) {
    const start = performance.now();
    search.value = words;
    search.dispatchEvent(new Event("input"));
    document.body.offsetHeight;
    took.push(performance.now() - start);
  }
  return Math.min(...took);
}"""

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, made = tmp_path_factory.mktemp("pages"), {}
    for name, model in (("resnet18", troubled.resnet18), ("tall", lambda: troubled.tall(400))):
        made[name] = folder / f"{name}.html"
        made[name].write_text(troubled.shown(*model(), f"{name}.pt")[1], "utf-8")
    return made


@pytest.fixture
def open_page(browser: Any, pages: dict[str, Path]) -> Iterator[Open]:
    """Opens one, and then nothing may have been complained about and nothing asked for."""
    said: list[str] = []
    asked: list[str] = []
    contexts = []

    def open_page(name: str = "resnet18", anchor: str = "", **settings: Any) -> Any:
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings}))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "request",
            lambda request: said.append(request.url) if not request.url.startswith("file:") else None,
        )
        page.goto(pages[name].as_uri() + anchor)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert {url.partition("#")[0] for url in asked} <= {path.as_uri() for path in pages.values()}


def focused(page: Any) -> str:
    return str(page.evaluate("() => document.activeElement.id || document.activeElement.textContent"))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["resnet18", "tall"])
def test_nothing_runs_over_the_side(open_page: Open, name: str, size: tuple[int, int], scheme: str) -> None:
    page = open_page(name, viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    measure = "() => document.documentElement.scrollWidth"
    assert page.evaluate(measure) <= size[0]
    page.click("#all")
    assert page.evaluate("() => document.querySelectorAll('details[open]').length") >= 20
    assert page.evaluate(measure) <= size[0]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_text_stands_out_from_its_ground(open_page: Open, scheme: str) -> None:
    page = open_page(color_scheme=scheme)
    page.click("#all")
    found = page.evaluate(CONTRASTS)
    assert len(found) > 500
    assert [told for ratio, told in found if ratio < 4.5] == []
    dark = page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor")
    assert (dark == "rgb(255, 255, 255)") == (scheme == "light")


def test_the_trouble_is_on_the_first_screen_of_a_phone(open_page: Open) -> None:
    page = open_page(viewport={"width": 390, "height": 844})
    for place in (
        ".first.error a",
        ".tiles",
        ".strip .cell.error >> nth=1",
        ".strip li:last-child .cell.warning >> nth=-1",
    ):
        box = page.locator(place).bounding_box()
        assert box["y"] + box["height"] < 844


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("layer3.1", ["layer3.1.bn1", "layer3.1.bn2.1"]),
        ("LAYER3.1 bn1", ["layer3.1.bn1"]),
        ("BN007", ["layer3.1.bn1"]),
        ("blocked", ["layer3.1.bn2.1"]),
        ("nothing-like-it", []),
    ],
)
def test_the_search_leaves_what_has_all_its_words(open_page: Open, words: str, left: list[str]) -> None:
    page = open_page()
    assert len(page.evaluate(SHOWN)) == 20
    page.fill("#search", words)
    assert page.evaluate(SHOWN) == left
    assert page.inner_text("#count") == f"{len(left)} of 20 sites"
    assert page.is_visible("#nothing") == (left == [])
    page.press("#search", "Escape")
    assert len(page.evaluate(SHOWN)) == 20
    assert page.inner_text("#count") == "20 sites"


def test_filters_work_together_with_the_search(open_page: Open) -> None:
    page = open_page()
    page.check("#worst-error")
    assert page.evaluate(SHOWN) == ["layer2.0.bn1", "layer2.1.bn2"]
    assert page.inner_text("#count") == "2 of 20 sites"
    page.fill("#search", "layer2.1")
    assert page.evaluate(SHOWN) == ["layer2.1.bn2"]
    page.check("#verdict-folds")
    assert page.evaluate(SHOWN) == []
    page.check("#worst-all")
    assert page.evaluate(SHOWN) == ["layer2.1.bn1"]


@pytest.mark.parametrize("script", [True, False])
def test_filters_need_no_script_and_the_search_hides_without_one(open_page: Open, script: bool) -> None:
    page = open_page(java_script_enabled=script)
    assert page.is_visible("#search") == page.is_visible("#all") == script
    page.check("#verdict-stays")
    names = [
        row.locator(".name bdi").text_content() for row in page.locator(".site").all() if row.is_visible()
    ]
    assert names == ["layer2.0.bn1", "layer2.1.bn2", "layer3.1.bn2.1"]


@pytest.mark.parametrize("script", [True, False])
@pytest.mark.parametrize(
    "place",
    [".card >> text=layer3.1.bn1", ".strip .cell >> nth=13", ".profile >> nth=2 >> a >> nth=13 >> rect"],
)
def test_a_link_opens_its_site_and_shows_it(open_page: Open, place: str, script: bool) -> None:
    page = open_page(java_script_enabled=script)
    row = page.locator(".site").nth(13)
    assert not row.locator(".inside").is_visible()
    page.click(place, force=True)
    row.locator(".inside table").wait_for(state="visible")
    page.wait_for_timeout(100)
    box = row.locator(".name").bounding_box()
    assert 0 <= box["y"] < 500
    assert page.locator("details[open]").count() == 1


def test_a_link_shows_what_a_filter_hides_and_works_a_second_time(open_page: Open) -> None:
    page = open_page()
    page.check("#verdict-folds")
    page.fill("#search", "bn1")
    page.click(".card >> text=layer2.1.bn2")
    assert "layer2.1.bn2" in page.evaluate(SHOWN)
    row = page.locator(".site").nth(9)
    row.locator("summary").click()
    assert not row.locator(".inside").is_visible()
    page.click(".card >> text=layer2.1.bn2")
    row.locator(".inside table").wait_for(state="visible")


def test_a_page_opened_at_a_site_shows_it(open_page: Open) -> None:
    page = open_page("tall", "#s333")
    row = page.locator(".site").nth(332)
    row.locator(".inside table").wait_for(state="visible")
    page.wait_for_timeout(100)
    assert 0 <= row.locator(".name").bounding_box()["y"] < 500


def test_it_is_read_without_a_mouse(open_page: Open) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to the findings"
    assert page.locator(".skip").first.bounding_box()["x"] >= 0
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert focused(page) == "search"
    page.keyboard.type("layer2.1.bn2")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert focused(page) == "all"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator(".site .inside:visible").count() == 1
    page.keyboard.press("Tab")
    assert focused(page) == "BN001 not-finite"
    page.keyboard.press("Enter")
    assert page.url.endswith("#BN001")
    page.keyboard.press("/")
    assert focused(page) == "search"
    page.keyboard.type("a/b")
    assert page.input_value("#search").endswith("a/b")


def test_tab_comes_to_every_cell_and_every_row(open_page: Open) -> None:
    page = open_page()
    reached = set()
    for _ in range(140):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(WHERE))
    assert len([each for each in reached if each.startswith("row")]) == 20
    assert len([each for each in reached if each and not each.startswith("row")]) == 20


def test_the_focus_is_seen(open_page: Open) -> None:
    page = open_page()
    for _ in range(12):
        page.keyboard.press("Tab")
        assert page.evaluate(OUTLINE) == ["solid", "3px"]


def test_arrow_keys_walk_through_the_map_and_through_the_rows(open_page: Open) -> None:
    page = open_page()
    page.locator(".strip a").nth(3).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("() => document.activeElement.title.split(':')[0]") == "5. layer1.1.bn2"
    page.check("#worst-warning")
    page.locator(".site.warning summary").first.focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("() => document.activeElement.querySelector('bdi').textContent") == "layer3.1.bn1"


def test_hundreds_of_sites_are_searched_while_one_types(open_page: Open) -> None:
    page = open_page("tall")
    page.fill("#search", "stages")  # the texts are read once
    took = page.evaluate(TIMED)
    assert took < 1000  # milliseconds, of the quickest: the machine may have more to do
    assert len(page.evaluate(SHOWN)) == 400


def test_paper_is_white_and_has_no_controls(open_page: Open) -> None:
    page = open_page(color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert (
        page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor")
        == "rgb(255, 255, 255)"
    )
    assert not page.is_visible(".filters")
    assert page.locator(".site:visible").count() == 20
    assert len(page.pdf(format="A4")) > 10_000
