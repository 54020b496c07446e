"""Parse a page as a browser would, and gather the data of a report page."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

from gradience.folder import find
from gradience.verbs.report.options import ReportOptions
from gradience.verbs.report.run import build_story
from gradience.verbs.report.story import Story

VOID = {"meta", "wbr", "br", "link", "img", "input", "hr"}


class Found(NamedTuple):
    """The contents of a parsed page: its elements with their attributes, and all text."""

    elements: list[tuple[str, dict[str, str]]]
    text: str

    def all(self, name: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag == name]


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


def parse(page: str) -> Found:
    parser = _Parser()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return Found(parser.elements, "".join(parser.text))


def gather(path: Path | None = None, *, adapter: Path | None = None, compare: list[Path] | None = None) -> Story:
    """The data of a report on a run, from the run's folder or log."""
    return build_story(find(path, adapter=adapter), ReportOptions(compare=compare or ()))
