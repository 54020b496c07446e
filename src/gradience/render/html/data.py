"""The page of a check of data: findings, histograms, and rows as the model sees them, with what is in the loss."""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter
from pathlib import PurePath
from typing import Final
from xml.etree.ElementTree import Element

from gradience.render import count, counted, grounds, percent, sentence, words
from gradience.render.check import data_rows
from gradience.render.html import Node, tag
from gradience.render.html.figures import HALF, NARROW, draw_bars
from gradience.render.html.page import whole_page
from gradience.render.html.pieces import facts as boxes, figure, fold, note, section, table
from gradience.schema.document import SEVERITIES, Finding
from gradience.schema.reports import CheckReport, DataReport, Example, Piece, ShownSequence

_KINDS: Final = {
    "loss": "in the loss: the model learns to write it",
    "context": "read, not learnt",
    "cut": "cut off: the model never sees it",
}
_BREAK: Final = "\u21b5"  # shown where a line ends
_SHARE: Final = 5  # per cent of a bar


def data_html(report: CheckReport) -> str:
    """The page of a check of data. The same report gives the same bytes.

    Raises:
        ValueError: the report is on a configuration alone.
    """
    data = report.data
    if data is None:
        raise ValueError("a report without data")
    name = PurePath(data.path).name
    header = tag("header", tag("p", "Gradience data", class_="kicker"), tag("h1", name), boxes(_main(report, data)))
    columns = [("", itemgetter(0)), ("", itemgetter(1))]
    understood = table(columns, list(data_rows(data, report.derived)), caption="As the trainer feeds it")
    sections = (_findings(report), _figures(data), _examples(data), section("data", "Data as understood", understood))
    return whole_page(name, header, sections, first=("findings", "Skip to the findings"))


def _main(report: CheckReport, data: DataReport) -> Iterator[tuple[str, str]]:
    tokens = data.tokens
    counts = [(severity, sum(f.severity == severity for f in report.findings)) for severity in reversed(SEVERITIES)]
    yield "findings", ", ".join(counted(n, severity) for severity, n in counts if n) or "none"
    yield "rows", f"{data.rows_read:,} of {data.rows:,}" if data.sampled else f"{data.rows:,}"
    yield "tokens", count(tokens.kept)
    if data.loss != "none":
        yield "in the loss", percent(tokens.supervised / tokens.kept if tokens.kept else 0.0)
    yield "longest", f"{data.lengths.longest:,} tokens"
    if data.max_length is not None:
        yield "limit", f"{data.max_length:,} tokens"


def _findings(report: CheckReport) -> Element:
    lead = "Hypotheses with their grounds: verify on held-out data. You decide."
    shown = tag("div", list(map(_finding, report.findings)), class_="causes") if report.findings else None
    return section("findings", f"Findings ({len(report.findings)})", note(lead), shown)


def _finding(finding: Finding) -> Element:
    kind = tag("p", tag("span", finding.severity, class_=f"severity {finding.severity}"), f" {finding.id}")
    terms = [[tag("dt", sentence(label)), tag("dd", text)] for label, text in grounds(finding)]
    then = tag("p", f"{sentence(finding.action)}.") if finding.action else None
    folded = fold("Grounds: why, confidence, evidence, how to verify", tag("dl", terms))
    return tag("article", tag("h3", sentence(finding.message)), kind, then, folded, class_=finding.severity)


def _figures(data: DataReport) -> Element:
    width = data.lengths.bin_width
    label = f"Tokens per sequence: {data.sequences:,} sequences, bars of {width:,} tokens."
    lengths = [draw_bars(data.lengths.bins, width, size, label, data.max_length) for size in (HALF, NARROW)]
    shown = [figure("Tokens per sequence", lengths, caption=f"Before the cut, {width:,} tokens a bar.")]
    if any(data.shares):
        label = f"Share of a sequence in the loss: {sum(data.shares):,} sequences, bars of {_SHARE} %."
        shares = [draw_bars(data.shares, _SHARE, size, label) for size in (HALF, NARROW)]
        shown.append(figure("Share in the loss, in per cent", shares, caption="Of the tokens that the limit leaves."))
    return section("lengths", "Lengths", tag("div", shown, class_="figures"))


def _examples(data: DataReport) -> Element | None:
    if not data.examples:
        return None
    kinds = [tag("li", tag("span", kind, class_=f"token {kind}"), f" {text}") for kind, text in _KINDS.items()]
    legend = tag("ul", kinds, class_="legend")
    lead = note(f"Decoded from the tokens; {_BREAK} is a line break. Most faults first, then rows without one.")
    return section(
        "rows", f"Rows as the model sees them ({len(data.examples)})", lead, legend, map(_example, data.examples)
    )


def _example(example: Example) -> Element:
    faults = ", ".join(map(words, example.faults)) or "no fault noted"
    head = tag("h3", f"Row {example.row:,} ", tag("span", faults, class_="where"))
    return tag("article", head, map(_sequence, example.sequences))


def _sequence(sequence: ShownSequence) -> list[Element]:
    named = f"{sequence.name}, " if sequence.name else ""
    size = note(f"{named}{sequence.tokens:,} tokens")
    return [size, tag("p", map(_piece, sequence.pieces), class_="tokens")]


def _piece(piece: Piece) -> Node:
    if piece.kind == "left_out":
        return tag("span", f" [{piece.text} not shown] ", class_="where")
    return tag("span", list(_lines(piece.text)), class_=f"token {piece.kind}", title=_KINDS[piece.kind])


def _lines(text: str) -> Iterator[Node]:
    """The lines of a text, each end marked: the page's text has none of its own."""
    first, *rest = text.split("\n")
    yield first
    for line in rest:
        yield from (_BREAK, tag("br"), line)
