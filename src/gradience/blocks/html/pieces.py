"""Blocks as one HTML page, which holds its style sheet and its figures as SVG: no script, link elsewhere or request.

A log or an adapter can hold any number of items, so every table is cut, and its caption gives the number left out.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator
from itertools import chain, groupby, islice, repeat
from typing import Final
from xml.etree.ElementTree import Element

import numpy as np

from gradience.blocks import (
    Bars,
    Block,
    FactList,
    Figure,
    Findings,
    Fold,
    Heading,
    Intervals,
    Next,
    Note,
    Page,
    Section,
    ShownFinding,
    Table,
    VerdictLine,
    grounds,
    sentence,
)
from gradience.blocks.html import Node, document, style_element, tag
from gradience.blocks.html.figures import HALF, NARROW, STYLES, WIDE, draw, draw_bars, draw_map, ramp, style_sheet
from gradience.blocks.html.plot import Envelope, Plot, PlotLine
from gradience.blocks.plots import Grid

_MARKS: Final = 40  # findings named under a plot
_ROWS: Final = 100  # rows of a table
_JOINTS: Final = re.compile(r"(?<=[_/])(?=\w)")
_SENTENCE: Final = 80  # characters of a fact from which it is a sentence
_CELLS: Final = 2_000  # cells of a map
_LAYERS: Final = 400


def page_html(page: Page) -> str:
    """The page as HTML. The same page gives the same bytes."""
    links = [tag("li", tag("a", part.title, href=f"#{part.name}")) for part in page.sections]
    first = page.sections[0]
    kicker = f"Gradience {page.kind}" + ("" if page.of in {"", page.name} else f": {page.of}")
    body = tag(
        "body",
        tag("a", f"Skip to {first.title.partition(' (')[0].lower()}", href=f"#{first.name}", class_="skip"),
        tag("header", tag("p", kicker, class_="kicker"), tag("h1", page.name), _nodes(page.header, in_grid=False)),
        tag("nav", tag("ul", links), aria_label="Contents"),
        tag("main", _nodes(page.sections)),
        tag("footer", tag("p", "Made by gradience: it instruments, you decide. No script, no network.")),
    )
    return document(tag("html", _head(page.name), body, lang="en"))


def _head(name: str) -> Element:
    css = style_sheet()
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"{name}: gradience report"),
        style_element(css),
    )


def _nodes(blocks: Iterable[Block], *, in_grid: bool = True) -> Iterator[Node]:
    """The elements of blocks; neighbouring figures of a section stand side by side."""
    for kind, members in groupby(blocks, key=type):
        nodes = list(map(_node, members))
        yield tag("div", nodes, class_="figures") if kind is Figure and in_grid else nodes


def _node(block: Block) -> Node:  # noqa: C901, PLR0911  # an element for each block
    match block:
        case str():
            return tag("p", block.strip()) if block.strip() else None
        case Heading(text):
            return tag("h3", text)
        case VerdictLine(word, rest, tone):
            return tag("p", tag("strong", sentence(word)), rest, class_=f"verdict {tone}".strip())
        case Note(text):
            return tag("p", text, class_="note")
        case Next(text, alternative):
            return tag("p", tag("strong", "Next: "), "; or: ".join(filter(None, (text, alternative))))
        case FactList(pairs) if block.caption:
            return _table(Table((("Name", ""), ("Value", "")), pairs, caption=block.caption))
        case FactList(pairs):
            return tag("dl", [_fact(name, value) for name, value in pairs], class_="facts")
        case Table():
            return _table(block)
        case Findings(found):
            return tag("div", list(map(_finding, found)), class_="causes") if found else None
        case Fold(summary, content):
            return tag("details", tag("summary", summary), _nodes(content))
        case Section(name, title, content):
            heading = tag("h2", title, id=f"{name}-title")
            return tag("section", heading, _nodes(content), id=name, aria_labelledby=f"{name}-title")
        case Figure(title, drawing):
            return _figure(block, title, drawing)
    return None  # of terminals alone


def _fact(name: str, value: str) -> Element:
    """A box with a name and its value, which may break after a sign within a name; a sentence takes the whole row."""
    first, *others = _JOINTS.split(value)
    breakable = (first, *chain.from_iterable((tag("wbr"), piece) for piece in others))
    return tag("div", tag("dt", name), tag("dd", *breakable), class_="long" if len(value) > _SENTENCE else None)


def _table(given: Table) -> Element | None:
    """A table that scrolls within itself. None without rows."""
    block, total = given.by_name(), len(given.rows)
    if not total:
        return None
    caption = block.caption + (f" (the first {_ROWS} of {total:,})" if total > _ROWS else "")
    numbers = [i > 0 and spec.startswith(">") for i, (_, spec) in enumerate(block.columns)]

    def line(cells: Iterable[str], *kinds: tuple[str, str | None]) -> Element:
        """A row, whose cells are of these kinds, all further ones of the last."""
        every = chain(kinds, repeat(kinds[-1]))
        made = [
            tag(kind, cell, class_="number" if is_number else None, scope=scope)
            for cell, is_number, (kind, scope) in zip(cells, numbers, every, strict=False)
        ]
        return tag("tr", made)

    head = line(block.titles, ("th", "col"))
    body = [line(row, ("th", "row"), ("td", None)) for row in block.rows[:_ROWS]]
    label = tag("caption", tag("span", caption)) if caption else None
    whole = tag("table", label, tag("thead", head), tag("tbody", body))
    return tag("div", whole, class_="scroll", tabindex="0", role="group", aria_label=caption or "Table")


def _finding(item: ShownFinding) -> Element:
    finding = item.finding
    head = tag("h3", tag("span", str(item.number), class_=f"disc {finding.severity}"), " ", finding.message)
    severity = tag("span", finding.severity, class_=f"severity {finding.severity}")
    kind = tag("p", severity, f" {finding.id} ", tag("span", item.where.strip(), class_="where"))
    pieces = [tag("li", tag("strong", f"{source} {rule}".strip() + ": "), says) for source, rule, says in item.pieces]
    then = tag("p", f"{sentence(finding.action)}.") if finding.action and not pieces else None
    terms = [[tag("dt", sentence(label)), tag("dd", text)] for label, text in grounds(finding)]
    folded = tag("details", tag("summary", "Grounds: why, confidence, evidence, how to verify"), tag("dl", terms))
    listed = tag("ul", pieces, class_="pieces") if pieces else None
    return tag("article", head, kind, listed, then, folded, id=f"finding-{item.number}", class_=finding.severity)


def _figure(block: Figure, title: str, drawing: object) -> Element | None:
    match drawing:
        case Grid():
            return _map(title, drawing)
        case Bars(bins, width, limit):
            label = f"{title}: {block.summary}, bars of {width:,}."
            drawn = [draw_bars(bins, width, size, label, limit) for size in (WIDE if block.wide else HALF, NARROW)]
            return _framed(block, drawn, caption=block.caption)
        case Intervals():
            return _plot(block, _over_sizes(drawing)) if len(drawing.rows) > 1 else None  # one gives no axis
        case Plot():
            return _plot(block, drawing)
    return None


def _framed(block: Figure, *content: Node, caption: Node) -> Element:
    """A figure under its heading."""
    inside = [tag("h2" if block.first else "h3", block.title), *content, tag("figcaption", caption)]
    return tag("figure", inside, class_="wide" if block.wide else None)


def _plot(block: Figure, plot: Plot) -> Element:
    """A plot in a size for wide screens and in one for narrow screens, with legend and caption."""
    legend = None
    if len(plot.lines) > 1:
        styles = (f"swatch s{i % STYLES}{' points' if line.points else ''}" for i, line in enumerate(plot.lines))
        swatches = [tag("span", class_=names, aria_hidden="true") for names in styles]
        entries = [tag("li", swatch, " ", x.label) for swatch, x in zip(swatches, plot.lines, strict=True)]
        legend = tag("ul", entries, class_="legend")
    marks = plot.marks[:_MARKS]
    steps = ", ".join(f"{mark.number} at step {mark.step:g}" for mark in marks)
    label = f"{block.title}. {block.summary}{f' Marked: findings {steps}.' if steps else ''}"
    links = [
        [", " if i else "", tag("a", f"{mark.number}", href=f"#finding-{mark.number}"), f" at step {mark.step:,.0f}"]
        for i, mark in enumerate(marks)
    ]
    drawn = [draw(plot, size, label) for size in (WIDE if block.wide else HALF, NARROW)]
    return _framed(block, legend, drawn, caption=[block.caption, [" Findings marked: ", links, "."] if links else None])


def _over_sizes(drawn: Intervals) -> Plot:
    """Intervals over the sizes of what they are of, with the tolerance as a line."""
    rows = sorted(drawn.rows, key=lambda row: row[1])
    sizes = [size for _, size, *_ in rows]
    low, middle, high = (np.array(column) for column in list(zip(*rows, strict=True))[2:])
    bars = Envelope.of(sizes, low, middle, high, apart=True, sampled=True)
    edge = np.full(2, drawn.tolerance)
    limit = Envelope.of([min(*sizes, 0.0), max(*sizes, 100.0)], edge, edge, edge, apart=False, sampled=False)
    lines = [PlotLine("candidates", bars, points=True), PlotLine("tolerance", limit)]
    return Plot(lines, drawn.size_label, drawn.value_label, log=False)


def _map(title: str, grid: Grid) -> Element:
    """The map of a quantity by layer and kind of module."""
    layers = grid.layers[:_LAYERS]
    kinds = max(_CELLS // len(layers), 1)
    cut = grid._replace(rows=dict(islice(grid.rows.items(), kinds)), layers=layers)
    caption = f"{sentence(grid.title)} by layer and kind of module; {grid.legend}."
    caption += f" {grid.outside} modules in no layer are not shown." if grid.outside else ""
    more = ((len(grid.rows) - len(cut.rows), "kinds"), (len(grid.layers) - len(layers), "layers"))
    caption += "".join(f" {n:,} further {name} are not shown." for n, name in more if n)
    shape = f"{len(cut.rows)} kinds of module in {len(layers)} layers"
    label = f"{title}: {grid.title} of {shape}, highest {grid.top:.4g}."
    drawn = [draw_map(cut, size, label) for size in (WIDE, NARROW)]
    return _framed(Figure(title, grid, wide=True), drawn, ramp(cut), caption=caption)
