"""The page in a real browser: no request, no error, no overflow, no finding of axe, at four widths in two schemes.

The engine is Chromium's, as Qt has it: from the package index, without a screen.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from pages import gather

from gradience.verbs.report.page import report_html

LONG = "a" * 300
SECONDS = 30  # in which a page is loaded, or a script has answered
APPLY = """
for (const sheet of document.styleSheets)
    for (const rule of [...sheet.cssRules])
        if (rule.media && rule.media.mediaText === '%s')
            for (const own of rule.cssRules) sheet.insertRule(own.cssText, sheet.cssRules.length);
"""
NARROW = 832  # pixels: the 52 rem of the style sheet
DARK = "(prefers-color-scheme: dark)"


class Browser:
    """A page of Qt WebEngine. `asked` are the addresses that it asked for, `said` what scripts wrote or threw."""

    dark = False

    def __init__(self) -> None:
        os.environ |= {
            "QT_QPA_PLATFORM": "offscreen",
            "QTWEBENGINE_DISABLE_SANDBOX": "1",
            "QT_LOGGING_RULES": "*=false",
        }
        os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = "--disable-gpu --force-device-scale-factor=1"
        from PySide6 import QtCore, QtWebEngineCore, QtWebEngineWidgets, QtWidgets

        said, asked = self.said, self.asked = list[str](), list[str]()

        class Page(QtWebEngineCore.QWebEnginePage):
            def javaScriptConsoleMessage(self, _: Any, message: str, *__: Any) -> None:  # noqa: N802  # Qt's name
                said.append(message)

        class Requests(QtWebEngineCore.QWebEngineUrlRequestInterceptor):
            def interceptRequest(self, info: Any) -> None:  # noqa: N802  # Qt's name
                asked.append(info.requestUrl().toString())

        self._core, self._application = QtCore, QtWidgets.QApplication.instance() or QtWidgets.QApplication(["page"])
        self._view, self._requests = QtWebEngineWidgets.QWebEngineView(), Requests()
        self._page = Page(self._view)
        self._page.setUrlRequestInterceptor(self._requests)
        self._view.setPage(self._page)

    def _until(self, signal: Any) -> Any:
        """Wait for a signal, or a callback that is connected by calling this with its setter; return what it gives."""
        loop, given = self._core.QEventLoop(), []
        signal(lambda *values: (given.extend(values), loop.quit()))
        self._core.QTimer.singleShot(SECONDS * 1000, loop.quit)
        loop.exec()
        assert given, f"no answer within {SECONDS} s"
        return given[0]

    def open(self, path: Path, width: int) -> None:
        self._view.resize(width, 900)
        self._view.show()
        self.said.clear()
        self.asked.clear()
        self._view.load(self._core.QUrl.fromLocalFile(str(path)))
        assert self._until(self._page.loadFinished.connect) is True
        self._page.loadFinished.disconnect()

    def evaluate(self, script: str) -> Any:
        """The value of an expression, as JSON has it."""
        return json.loads(self._until(lambda tell: self._page.runJavaScript(f"JSON.stringify({script})", 0, tell)))

    def run(self, script: str) -> None:
        """Run statements."""
        self._until(lambda tell: self._page.runJavaScript(f"{script}; 1", 0, tell))

    def apply(self, media: str) -> None:
        """Let what the style sheet says for a medium hold on this screen, which has no such medium."""
        self.run(APPLY % media)

    def wait(self, condition: str) -> None:
        """Wait until a condition holds on the page."""
        for _ in range(SECONDS * 20):
            if self.evaluate(condition):
                return
            loop = self._core.QEventLoop()
            self._core.QTimer.singleShot(50, loop.quit)
            loop.exec()
        raise AssertionError(condition)


@pytest.fixture(scope="module")
def browser() -> Browser:
    reason = "PySide6-WebEngine, or a library of the system that it needs, is not installed"
    pytest.importorskip("PySide6.QtWebEngineWidgets", reason=reason, exc_type=ImportError)
    return Browser()


@pytest.fixture(scope="module")
def page_file(write_log, write_adapter, tmp_path_factory) -> Path:
    """A page with everything in it, and names that are as long as they may be."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    log = write_log(2_000, model=f"acme/{LONG}", split="held_out_" * 8)
    adapter, other = (write_adapter("self_attn.q_proj", LONG) for _ in range(2))
    path.write_text(report_html(gather(log, adapter=adapter, compare=[other])), encoding="utf-8")
    return path


@pytest.fixture(params=[(390, False), (390, True), (768, False), (1280, False), (1280, True), (1920, True)], ids=str)
def seen(request, browser, page_file) -> Iterator[Browser]:
    width, dark = request.param
    browser.open(page_file, width)
    browser.wait(f"innerWidth === {width}")
    browser.dark = dark
    if dark:
        browser.apply(DARK)
    return browser


def test_the_page_asks_for_nothing_says_nothing_and_fits_its_width(seen, page_file):
    assert seen.asked == [page_file.as_uri()]
    assert seen.said == []
    assert seen.evaluate("document.documentElement.scrollWidth <= innerWidth")
    seen.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert seen.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_one_drawing_of_each_plot_is_shown_and_its_text_can_be_read(seen):
    shown = seen.evaluate(
        "[...document.querySelectorAll('.chart')].filter(e => e.getClientRects().length).map(e => e.classList[1])"
    )
    assert set(shown) == {"narrow" if seen.evaluate("innerWidth") < NARROW else "wide"}
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
    assert page == ("rgb(20, 23, 26)" if seen.dark else "rgb(255, 255, 255)")
    assert line == ("rgb(86, 180, 233)" if seen.dark else "rgb(0, 114, 178)")


def test_axe_finds_nothing(seen):
    pytest.importorskip(
        "axe_playwright_python", reason="axe-playwright-python, which brings axe.min.js, is not installed"
    )
    seen.run(files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    seen.run("axe.run().then(found => { window.found = found.violations })")
    seen.wait("window.found !== undefined")
    assert seen.evaluate("found.map(each => [each.id, each.nodes.map(node => node.html)])") == []


def test_printed_details_are_open_and_colours_are_light(seen):
    seen.apply("print")
    assert seen.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert seen.evaluate("document.querySelector('article details dl').getBoundingClientRect().height") > 0
    assert seen.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
