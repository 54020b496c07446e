"""Blocks as one table for the output cell of a notebook, without style sheet, script or figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from xml.etree.ElementTree import Element, tostring  # builds and writes; nothing is parsed

from gradience.blocks import Block, FactList, Findings, ShownFinding, Title
from gradience.blocks.html import tag


def notebook_html(blocks: Iterable[Block]) -> str:
    """The blocks as an HTML table: a title, labels and values, findings, and lines of text."""
    rows = [row for block in blocks for row in _rows(block)]
    return tostring(tag("table", tag("tbody", rows)), encoding="unicode", method="html")


def _rows(block: Block) -> Iterator[Element]:
    match block:
        case Title(text):
            yield tag("tr", tag("th", text, colspan=2, style="text-align:left"))
        case FactList(pairs):
            yield from (_row(label, value) for label, value in pairs)
        case Findings(found):
            yield from map(_finding, found)
        case str() if block.strip():
            yield tag("tr", tag("td", block.strip(), colspan=2, style="text-align:left"))


def _row(label: str, value: str) -> Element:
    return tag("tr", tag("th", label, scope="row", style="text-align:left"), tag("td", value, style="text-align:left"))


def _finding(found: ShownFinding) -> Element:
    finding = found.finding
    action = f" \u2192 {finding.action}" if finding.action else ""
    return _row(f"{finding.severity} {finding.id}", f"{finding.message}{action}")
