"""Pieces that several sections of the page share: figures, tables, captions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Final, NamedTuple
from xml.etree.ElementTree import Element

from gradience.render.heatmap import Grid
from gradience.render.html.curves import draw
from gradience.render.html.drawing import HALF, NARROW, STYLES, WIDE, Envelope, Mark, Plot, Size
from gradience.render.html.heat import draw_grid, ramp
from gradience.render.html.markup import Node, tag
from gradience.schema.diagnose import Cause, DiagnoseReport

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


_STEPS: Final = ("step", "first_step", "best_step", "from_step", "lowest_step")  # where a finding says it is


class Numbered(NamedTuple):
    """A cause and its number in the report."""

    number: int
    cause: Cause

    @property
    def sources(self) -> list[str]:
        """Which sources show it."""
        return list(dict.fromkeys(piece.source for piece in self.cause.pieces))

    @property
    def ids(self) -> list[str]:
        """Its id, and those of the findings that it joins."""
        return list(dict.fromkeys([self.cause.id, *(piece.id for piece in self.cause.pieces if piece.id)]))

    @property
    def step(self) -> int | None:
        """The step it speaks of, or None where it speaks of no single one."""
        values = (self.cause.values.get(name) for name in _STEPS)
        return next((v for v in values if isinstance(v, int) and not isinstance(v, bool)), None)

    @property
    def anchor(self) -> str:
        """The id of its place in the page."""
        return f"finding-{self.number}"


def numbered(report: DiagnoseReport) -> list[Numbered]:
    """Return the causes with their numbers, from 1."""
    return [Numbered(place, cause) for place, cause in enumerate(report.causes, 1)]


def marks_of(found: Sequence[Numbered], prefix: str = "") -> list[Mark]:
    """Return the marks of what the log shows and whose id begins so, in the order of their steps."""
    at = [(n, n.step) for n in found if "log" in n.sources and any(finding.startswith(prefix) for finding in n.ids)]
    marks = [Mark(n.number, step, n.cause.severity) for n, step in at if step is not None]
    return sorted(marks, key=lambda mark: mark.step)


_MOST_CELLS: Final = 2_000  # of the map
_MOST_LAYERS: Final = 400


def map_figure(title: str, grid: Grid, *, legend: str, outside: int) -> Element:
    """Return the map of a quantity by layer and kind of module.

    Args:
        title: of the figure.
        grid: the quantity.
        legend: what the letters in it mean.
        outside: modules in no layer, which it cannot show.
    """
    layers = grid.layers[:_MOST_LAYERS]
    kinds = max(_MOST_CELLS // len(layers), 1)
    cut = grid._replace(rows=dict(islice(grid.rows.items(), kinds)), layers=layers)
    said = f"{grid.title[:1].upper()}{grid.title[1:]} by layer and kind of module; {legend}."
    said += f" {outside} modules in no layer are not shown." if outside else ""
    more = ((len(grid.rows) - len(cut.rows), "kinds"), (len(grid.layers) - len(layers), "layers"))
    said += "".join(f" {n:,} further {what} are not shown." for n, what in more if n)
    shape = f"{len(cut.rows)} kinds of module in {len(layers)} layers"
    label = f"{title}: {grid.title} of {shape}, highest {grid.top:.4g}."
    return figure(title, [draw_grid(cut, size, label) for size in (WIDE, NARROW)], ramp(cut), caption=said, wide=True)
