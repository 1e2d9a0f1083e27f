"""Reports and pages in a real browser: at three widths, in both colour schemes, and on paper.

Screenshots and PDFs are in the folder that TUNEWRIGHT_SCREENSHOTS names, else in pytest's own.
"""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compared import comparison
from diagnosed import UNSTABLE, stored
from playwright.sync_api import Browser, Page, sync_playwright
from pypdf import PdfReader

from tunewright.search.judge.readout import read_out
from tunewright.search.show.page import write_page
from tunewright.search.show.report import write_report
from tunewright.search.store.results import Results
from tunewright.search.store.storage import open_store
from tunewright.search.train.recorder import Recorder
from tunewright.search.trial import Point, Trial

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden" / "results" / "golden"
REQUIRED = "TUNEWRIGHT_REQUIRE_CHROMIUM"  # set: a missing browser fails the tests
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PAGES = ("golden", "diagnosis", "comparison", "watched")
WIDTHS = (1400, 1024, 390)
DRAWN = """() => [...document.querySelectorAll("figure.plot")].map(figure => ({
    name: figure.id,
    traces: figure.querySelectorAll(".scatterlayer .trace, .barlayer .trace").length,
    panels: figure.querySelectorAll(".drawing .cartesianlayer > .subplot").length,
    width: figure.querySelector(".drawing .main-svg")?.getBoundingClientRect().width,
}))"""
# Texts of a figure that reach beyond it or below its buttons.
CUT = """() => [...document.querySelectorAll("figure.plot")].flatMap(figure => {
    const frame = figure.querySelector(".main-svg").getBoundingClientRect();
    const bar = figure.querySelector(".modebar-group").getBoundingClientRect();
    const texts = figure.querySelectorAll(
        ".gtitle, .annotation-text, .legendtext, .xtick text, .xtitle, .ytitle");
    const over = (one, other) => one.left < other.right && other.left < one.right
        && one.top + 4 < other.bottom && other.top < one.bottom;
    return [...texts].filter(text => {
        const box = text.getBoundingClientRect();
        return box.width && (box.left < frame.left - 1 || box.right > frame.right + 1
            || box.bottom > frame.bottom + 1
            || (text.classList.contains("gtitle") && over(box, bar)));
    }).map(text => `${figure.id}: ${text.textContent}`);
})"""
PRINTED = """() => addEventListener("beforeprint", () => {
    const width = document.body.getBoundingClientRect().width;
    window.printed = {
        width,
        wide: [...document.querySelectorAll("table, figure, p, dl, .main-svg")]
            .filter(one => one.getBoundingClientRect().right > width + 1)
            .map(one => `${one.tagName} ${one.id} ${one.textContent.slice(0, 40)}`),
        figures: (DRAWN)(),
    };
})""".replace("DRAWN", DRAWN)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        reason = f"no browser is installed: {', '.join(BROWSERS)}"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{reason}, and {REQUIRED} is set")
        pytest.skip(reason)
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu"]  # the tests may run as root
        own = playwright.chromium.launch(executable_path=program, args=options)
        yield own
        own.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    golden = shutil.copytree(GOLDEN, folder / "golden")
    found = {"golden": write_report(Results.read(open_store(golden)))}
    store, _, _ = stored(folder / "diagnosis", UNSTABLE)
    found["diagnosis"] = write_report(Results.read(store))
    other = Results.read(open_store(shutil.copytree(GOLDEN, folder / "other" / "golden")))
    sides = [[0.2, 0.21, 0.22, 0.2, 0.19], [0.29, 0.33, 0.3, 0.31, 0.28]]
    against = comparison(sides, [0.30, 0.31, 0.29, 0.30, 0.32])
    found["comparison"] = write_report(replace(other, comparison=against))
    found["watched"] = _watched(folder / "watched")
    return found


def _watched(folder: Path) -> Path:
    folder.mkdir()
    recorder, rng = Recorder(None), np.random.default_rng(0)
    falls = 2.3 * np.exp(-np.arange(600) / 150) + 0.2
    noise = np.exp(0.3 * rng.standard_normal((2, 900)))
    loss = np.append(falls, np.full(300, 9.0)) * noise[0]
    recorder.record_block(loss, noise[1])
    readout = read_out(recorder.curve(), recorder.verdict())
    point = Point(0, 0, "AdamW", 1e-3)
    trial = Trial.from_curve(point, readout.verdict, recorder.curve(), "", 1.0)
    return write_page(folder, trial, readout, readout.sentences)


@pytest.fixture(scope="session")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("TUNEWRIGHT_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def opened(browser: Browser, path: Path, width: int = 1400, scheme: Any = "light") -> Page:
    """A page whose figures can be drawn; what its console says is an error of the test."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-figures=ready]", timeout=60_000)
    assert said == []
    return page


def draw_all(page: Page) -> list[dict[str, Any]]:
    """What is drawn once every figure was near the screen."""
    for figure in page.query_selector_all("figure.plot"):
        figure.scroll_into_view_if_needed()
        page.wait_for_function("one => one.querySelector('.drawing.drawn .main-svg')", arg=figure)
    page.evaluate("scrollTo(0, 0)")
    found: list[dict[str, Any]] = page.evaluate(DRAWN)
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_at_every_width_nothing_is_cut_and_every_figure_is_drawn(
    browser: Browser, pages: dict[str, Path], shots: Path, name: str, width: int, scheme: str
) -> None:
    page = opened(browser, pages[name], width, scheme)
    figures = draw_all(page)
    page.screenshot(path=shots / f"{name}-{width}-{scheme}.png", full_page=True)
    assert figures
    assert [figure["name"] for figure in figures if not figure["traces"]] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CUT) == []
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    of_figure = page.evaluate("document.querySelector('.main-svg').style.background")
    assert paper.replace(" ", "") == of_figure.replace(" ", "") or scheme == "light"
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_on_paper_every_panel_and_every_column_is_kept(
    browser: Browser, pages: dict[str, Path], shots: Path, name: str
) -> None:
    page = opened(browser, pages[name], scheme="dark")
    on_screen = {one["name"]: one["panels"] for one in draw_all(page)}
    columns = page.eval_on_selector_all("thead th", "all => all.map(one => one.innerText)")
    page.evaluate(PRINTED)
    path = shots / f"{name}.pdf"
    page.pdf(path=path, prefer_css_page_size=True, print_background=True)
    printed = page.evaluate("printed")
    assert printed["wide"] == []
    assert {one["name"]: one["panels"] for one in printed["figures"]} == on_screen
    assert all(one["width"] <= printed["width"] for one in printed["figures"])
    reader = PdfReader(path)
    assert float(reader.pages[0].mediabox.width) == pytest.approx(210 / 25.4 * 72, abs=1)  # A4
    text = _letters("".join(sheet.extract_text() for sheet in reader.pages))
    titles = page.evaluate(
        """() => [...document.querySelectorAll(".drawing")].flatMap(one => one.layout.annotations)
            .filter(note => note.name === "panel title").map(note => note.text.split("<br")[0])"""
    )
    missing = [
        words for words in [*columns, *titles] if _letters(re.sub("<.*?>", "", words)) not in text
    ]
    assert missing == []
    assert page.evaluate("document.querySelectorAll('.printing, .slice').length") == 0
    page.close()


def test_every_sheet_of_a_long_table_names_its_columns(
    browser: Browser, pages: dict[str, Path], shots: Path
) -> None:
    page = opened(browser, pages["golden"])
    page.evaluate(
        """() => {
            const body = document.querySelector("#trials tbody"), row = body.rows[0];
            row.cells[1].textContent = "repeated";
            for (let n = 0; n < 200; n++) body.append(row.cloneNode(true));
        }"""
    )
    path = shots / "long-table.pdf"
    page.pdf(path=path, prefer_css_page_size=True, print_background=True)
    sheets = [sheet.extract_text() for sheet in PdfReader(path).pages]
    having = [text for text in sheets if "repeated" in text]
    assert len(having) > 2
    assert [text for text in having if "onset_step" not in text] == []
    page.close()


def _letters(text: str) -> str:
    """Without what a line break or a font changes."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


@pytest.mark.parametrize("name", PAGES)
def test_every_link_within_the_page_leads_somewhere(
    browser: Browser, pages: dict[str, Path], name: str
) -> None:
    page = opened(browser, pages[name])
    lost = page.eval_on_selector_all(
        'a[href^="#"]',
        "all => all.map(one => one.hash.slice(1)).filter(id => !document.getElementById(id))",
    )
    assert lost == []
    twice = "all => all.map(one => one.id).filter((id, place, ids) => ids.indexOf(id) !== place)"
    assert page.eval_on_selector_all("[id]:not(svg *)", twice) == []
    page.close()


def test_a_table_is_sorted_and_filtered_from_the_keyboard(
    browser: Browser, pages: dict[str, Path]
) -> None:
    page = opened(browser, pages["golden"])
    head = page.locator("#trials thead th", has_text="best_value")
    column = head.evaluate("one => one.cellIndex")
    read = (
        f"all => all.map(row => row.cells[{column}].dataset.value ?? row.cells[{column}].innerText)"
    )
    head.locator("button").focus()
    for direction, turned in (("ascending", False), ("descending", True)):
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == direction
        values = page.eval_on_selector_all("#trials tbody tr", read)
        numbers = [float(value) for value in values]
        assert numbers == sorted(numbers, reverse=turned)
        assert len(set(numbers)) > 2
    count = len(values)
    page.locator("#words").focus()
    page.keyboard.type("momentum FEASIBLE")
    shown = page.eval_on_selector_all(
        "#trials tbody tr:not([hidden])", "all => all.map(one => one.innerText)"
    )
    assert 0 < len(shown) < count
    assert all("momentum" in row and "feasible" in row for row in shown)
    assert page.locator(".filter output").inner_text() == f"{len(shown)} of {count} rows"
    page.close()


def test_a_trial_leads_to_its_curve(browser: Browser, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["golden"])
    link = page.locator("[data-curve]").first
    trial = link.get_attribute("data-curve")
    link.click()
    widths = page.eval_on_selector(
        "#training_curves .drawing", "one => one.data.map(trace => [trace.meta, trace.line?.width])"
    )
    assert [meta for meta, width in widths if width == 4] == [trial] * sum(
        meta == trial for meta, _ in widths
    )
    assert page.evaluate("scrollY") > 0
    page.close()


def test_the_summary_leads_to_a_trial(browser: Browser, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["golden"])
    link = page.locator("tr.under a").first
    number = re.search(r"trial (\d+)", link.inner_text())
    link.click()
    row = page.locator("tr:target")
    assert number
    assert row.locator("th").inner_text() == number[1]
    page.close()


def test_a_browser_that_cannot_unpack_says_so(browser: Browser, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(pages["golden"].as_uri())
    said = page.locator(".missing").all_inner_texts()
    assert said
    assert all("This browser is too old to unpack the figures" in one for one in said)
    page.close()


def test_without_scripts_there_are_tables_and_a_sentence(
    browser: Browser, pages: dict[str, Path]
) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["golden"].as_uri())
    assert "need JavaScript" in page.locator("noscript").inner_text()
    assert page.locator("#trials tbody tr").count() > 2
    context.close()
