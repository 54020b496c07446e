"""Pieces that several sections of the page share: figures, tables, captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gradience.report.curves import draw
from gradience.report.envelope import Envelope
from gradience.report.markup import Element, Node, tag
from gradience.report.plot import HALF, NARROW, STYLES, WIDE, Mark, Plot, Size

__all__ = ["caption_of", "figure", "fold", "plot_figure", "section", "table"]

_MOST_MARKS: Final = 40  # named under a plot
_MOST_ROWS: Final = 100  # of a table


def section(name: str, title: str, *content: Node) -> Element:
    """Return a section of the page with its heading."""
    return tag("section", tag("h2", title, id=f"{name}-title"), *content, id=name, aria_labelledby=f"{name}-title")


def fold(summary: str, *content: Node) -> Element:
    """Return content that is shown when asked for; printing shows it anyway."""
    return tag("details", tag("summary", summary), *content)


def table(head: Sequence[str], rows: Sequence[Sequence[Node]], *, caption: str, numbers: int = 0) -> Element:
    """Return a table that scrolls within itself; its last `numbers` columns are numbers.

    A log can hold any number of anything: what is over a hundred rows is counted in the caption and not shown.
    """
    first = len(head) - numbers
    if len(rows) > _MOST_ROWS:
        caption = f"{caption} (the first {_MOST_ROWS} of {len(rows):,})"

    def cell(kind: str, i: int, content: Node, **attributes: str) -> Element:
        return tag(kind, content, class_="number" if i >= first else None, **attributes)

    top = tag("thead", tag("tr", [cell("th", i, name, scope="col") for i, name in enumerate(head)]))
    body = [
        tag("tr", [tag("th", r[0], scope="row"), *(cell("td", i, value) for i, value in enumerate(r[1:], 1))])
        for r in rows[:_MOST_ROWS]
    ]
    whole = tag("table", tag("caption", tag("span", caption)), top, tag("tbody", body))
    return tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def plot_figure(title: str, plot: Plot, *, wide: Size = HALF, says: str, caption: Node) -> Element:
    """Return a plot in a size for wide screens and one for narrow ones, with legend and caption."""
    legend = None
    if len(plot.lines) > 1:
        entries = [tag("li", _swatch(i, points=x.points), " ", x.label) for i, x in enumerate(plot.lines)]
        legend = tag("ul", entries, class_="legend")
    label = f"{title}. {says}{_marked_words(plot.marks)}"
    drawn = [draw(plot, size, label) for size in (wide, NARROW)]
    return figure(title, legend, drawn, caption=[caption, _marked(plot.marks)], wide=wide is WIDE)


def _swatch(style: int, *, points: bool) -> Element:
    """Return a piece of a line, for the legend."""
    return tag("span", class_=f"swatch s{style % STYLES}{' points' if points else ''}", aria_hidden="true")


def figure(title: str, *content: Node, caption: Node, wide: bool = False) -> Element:
    """Return a figure under its heading."""
    inside = [tag("h3", title), *content, tag("figcaption", caption)]
    return tag("figure", inside, class_="wide" if wide else None)


def _marked_words(marks: Sequence[Mark]) -> str:
    steps = ", ".join(f"{mark.number} at step {mark.step:g}" for mark in marks[:_MOST_MARKS])
    return f" Marked: findings {steps}." if marks else ""


def _marked(marks: Sequence[Mark]) -> Node:
    if not marks:
        return None
    links = [
        [", " if i else "", tag("a", f"{mark.number}", href=f"#finding-{mark.number}"), f" at step {mark.step:,.0f}"]
        for i, mark in enumerate(marks[:_MOST_MARKS])
    ]
    return [" Findings marked: ", links, "."]


def caption_of(what: str, data: Envelope, *, absent: int = 0) -> str:
    """Return how the rows of a column were drawn: what was put together, and what is not finite."""
    total = data.rows + data.lost_rows
    if data.sampled:
        drawn = (
            f"{what}: {total:,} rows in {len(data.steps):,} buckets of steps, about {data.per_bucket:,} rows each. "
            "The line is each bucket's median, the band spans its lowest to its highest row: no spike is dropped."
        )
    else:
        drawn = f"{what}: {total:,} {'row' if total == 1 else 'rows'}, each drawn."
    if data.lost_rows:
        drawn += f" {data.lost_rows:,} of them {'is' if data.lost_rows == 1 else 'are'} not finite: crosses at the top."
    if absent:
        drawn += f" {absent:,} further rows have no value."
    return drawn
