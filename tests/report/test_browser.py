"""The page in a real browser: no request, no error, no overflow, no finding of axe, at two widths in two schemes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from pages import gather

from gradience.verbs.report.page import report_html

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
LONG = "a" * 300


def browser_path(driver) -> str | None:
    """The browser that GRADIENCE_BROWSER names, playwright installed, or the machine has."""
    own = Path(driver.chromium.executable_path)
    places = [os.environ.get("GRADIENCE_BROWSER"), str(own) if own.exists() else None, *map(shutil.which, NAMES)]
    return next((place for place in places if place), None)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as driver:
        path = browser_path(driver)
        if path is None:
            pytest.skip("no Chromium: 'playwright install chromium', a system package, or GRADIENCE_BROWSER=PATH")
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page_file(write_log, write_adapter, tmp_path_factory) -> Path:
    """A page with everything in it, and names that are as long as they may be."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    log = write_log(2_000, model=f"acme/{LONG}", split="held_out_" * 8)
    adapter, other = (write_adapter("self_attn.q_proj", LONG) for _ in range(2))
    path.write_text(report_html(gather(log, adapter=adapter, compare=[other])), encoding="utf-8")
    return path


@pytest.fixture(params=[(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")], ids=str)
def seen(request, browser, page_file):
    width, scheme = request.param
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda asked: page.asked.append(asked.url))
    page.goto(page_file.as_uri())
    yield page
    page.close()


def test_the_page_asks_for_nothing_says_nothing_and_fits_its_width(seen, page_file):
    assert seen.asked == [page_file.as_uri()]
    assert seen.said == []
    width = seen.viewport_size["width"]
    assert seen.evaluate("document.documentElement.scrollWidth") == width
    seen.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert seen.evaluate("document.documentElement.scrollWidth") == width


def test_one_drawing_of_each_plot_is_shown_and_its_text_can_be_read(seen):
    seen_width = seen.viewport_size["width"]
    shown = seen.evaluate(
        "[...document.querySelectorAll('.chart')].filter(e => e.getClientRects().length).map(e => e.classList[1])"
    )
    assert set(shown) == {"narrow" if seen_width == 390 else "wide"}
    assert len(shown) == seen.evaluate("document.querySelectorAll('.chart').length") / 2
    heights = seen.evaluate(
        "[...document.querySelectorAll('.chart text')].map(e => e.getBoundingClientRect().height).filter(h => h)"
    )
    assert min(heights) >= 10.0  # pixels


def test_plots_follow_the_colour_scheme(seen):
    page, line = seen.evaluate(
        "[getComputedStyle(document.body).backgroundColor,"
        " getComputedStyle(document.querySelector('.chart path[stroke=\"var(--c0)\"]')).stroke]"
    )
    dark = seen.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert page == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")
    assert line == ("rgb(86, 180, 233)" if dark else "rgb(0, 114, 178)")


def test_axe_finds_nothing(seen):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    result = axe.Axe().run(seen)
    assert result.violations_count == 0, result.generate_report()


def test_printed_details_are_open_and_colours_are_light(seen):
    seen.emulate_media(media="print")
    assert seen.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert seen.evaluate("document.querySelector('article details dl').getBoundingClientRect().height") > 0
    assert seen.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
