"""Parts that several sections of the page share: sections, tables, figures with captions, numbered causes.

A log or an adapter can hold any number of items, so every list is cut, and its caption gives the number left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final, NamedTuple, TypeAlias, TypeVar
from xml.etree.ElementTree import Element

from gradience.render import sentence
from gradience.render.html import Node, tag
from gradience.render.html.figures import HALF, NARROW, STYLES, WIDE, Size, draw, draw_map, ramp
from gradience.render.html.plot import Envelope, Mark, Plot
from gradience.render.plots import Grid
from gradience.schema.diagnose import Cause, DiagnoseReport

T = TypeVar("T")
Columns: TypeAlias = Sequence[tuple[str, Callable[[T], Node]]]  # title, and cell of an item

_MARKS: Final = 40  # findings named under a plot
_ROWS: Final = 100  # rows of a table
_CELLS: Final = 2_000  # cells of a map
_LAYERS: Final = 400

_STEPS: Final = ("step", "first_step", "best_step", "from_step", "lowest_step")  # values of a finding that are its step


def section(name: str, title: str, *content: Node) -> Element:
    """A section of the page with its heading."""
    return tag("section", tag("h2", title, id=f"{name}-title"), *content, id=name, aria_labelledby=f"{name}-title")


def note(text: str) -> Element:
    """A remark in small print."""
    return tag("p", text, class_="note")


def facts(pairs: Iterable[tuple[str, str]]) -> Element:
    """The main numbers of a part of the page, each in a box."""
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs], class_="facts")


def fold(summary: str, *content: Node) -> Element:
    """Content that opens on request, and that is always printed."""
    return tag("details", tag("summary", summary), *content)


def table(columns: Columns[T], items: Sequence[T], *, caption: str, numbers: int = 0) -> Element | None:
    """A table that scrolls within itself, whose last `numbers` columns hold numbers. None without items."""
    if not items:
        return None
    first = len(columns) - numbers
    if len(items) > _ROWS:
        caption = f"{caption} (the first {_ROWS} of {len(items):,})"

    def line(cells: Iterable[Node], kinds: Sequence[tuple[str, str]]) -> Element:
        return tag(
            "tr",
            [
                tag(kind, cell, class_="number" if i >= first else None, scope=scope or None)
                for i, (cell, (kind, scope)) in enumerate(zip(cells, kinds, strict=True))
            ],
        )

    head = line((title for title, _ in columns), [("th", "col")] * len(columns))
    kinds = [("th", "row"), *[("td", "")] * (len(columns) - 1)]
    body = [line((cell(item) for _, cell in columns), kinds) for item in items[:_ROWS]]
    whole = tag("table", tag("caption", tag("span", caption)), tag("thead", head), tag("tbody", body))
    return tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def figure(title: str, *content: Node, caption: Node, wide: bool = False, heading: str = "h3") -> Element:
    """A figure under its heading."""
    inside = [tag(heading, title), *content, tag("figcaption", caption)]
    return tag("figure", inside, class_="wide" if wide else None)


def plot_figure(
    title: str, plot: Plot, *, wide: Size = HALF, summary: str, caption: str, heading: str = "h3"
) -> Element:
    """A plot in a size for wide screens and in one for narrow screens, with legend and caption.

    Args:
        title: title of the figure.
        plot: the plot.
        wide: the size for wide screens.
        summary: what the lines show, for readers who cannot see them.
        caption: how the rows were drawn.
        heading: the element of its title.
    """
    legend = None
    if len(plot.lines) > 1:
        styles = (f"swatch s{i % STYLES}{' points' if line.points else ''}" for i, line in enumerate(plot.lines))
        swatches = [tag("span", class_=names, aria_hidden="true") for names in styles]
        entries = [tag("li", swatch, " ", x.label) for swatch, x in zip(swatches, plot.lines, strict=True)]
        legend = tag("ul", entries, class_="legend")
    marks = plot.marks[:_MARKS]
    steps = ", ".join(f"{mark.number} at step {mark.step:g}" for mark in marks)
    label = f"{title}. {summary}{f' Marked: findings {steps}.' if steps else ''}"
    links = [
        [", " if i else "", tag("a", f"{mark.number}", href=f"#finding-{mark.number}"), f" at step {mark.step:,.0f}"]
        for i, mark in enumerate(marks)
    ]
    drawn = [draw(plot, size, label) for size in (wide, NARROW)]
    marked = [" Findings marked: ", links, "."] if links else None
    return figure(title, legend, drawn, caption=[caption, marked], wide=wide is WIDE, heading=heading)


def caption_of(column: str, data: Envelope, *, absent: int = 0) -> str:
    """A sentence on how the rows of a column were drawn: in buckets or one by one, and how many are not finite."""
    total = data.rows + data.lost_rows
    if data.sampled:
        drawn = (
            f"{column}: {total:,} rows in {len(data.steps):,} buckets of steps, about {data.per_bucket:,} rows each. "
            "The line is each bucket's median, the band spans its lowest to its highest row: no spike is dropped."
        )
    else:
        drawn = f"{column}: {total:,} {'row' if total == 1 else 'rows'}, each drawn."
    if data.lost_rows:
        drawn += f" {data.lost_rows:,} of them {'is' if data.lost_rows == 1 else 'are'} not finite: crosses at the top."
    if absent:
        drawn += f" {absent:,} further rows have no value."
    return drawn


def map_figure(title: str, grid: Grid, *, legend: str, outside: int) -> Element:
    """The map of a quantity by layer and kind of module.

    Args:
        title: title of the figure.
        grid: the quantity.
        legend: the meaning of the letters in it.
        outside: the number of modules outside any layer, which it cannot show.
    """
    layers = grid.layers[:_LAYERS]
    kinds = max(_CELLS // len(layers), 1)
    cut = grid._replace(rows=dict(islice(grid.rows.items(), kinds)), layers=layers)
    caption = f"{sentence(grid.title)} by layer and kind of module; {legend}."
    caption += f" {outside} modules in no layer are not shown." if outside else ""
    more = ((len(grid.rows) - len(cut.rows), "kinds"), (len(grid.layers) - len(layers), "layers"))
    caption += "".join(f" {n:,} further {name} are not shown." for n, name in more if n)
    shape = f"{len(cut.rows)} kinds of module in {len(layers)} layers"
    label = f"{title}: {grid.title} of {shape}, highest {grid.top:.4g}."
    drawn = [draw_map(cut, size, label) for size in (WIDE, NARROW)]
    return figure(title, drawn, ramp(cut), caption=caption, wide=True)


class Numbered(NamedTuple):
    """A cause and its number in the report."""

    number: int
    cause: Cause

    @property
    def sources(self) -> list[str]:
        """The sources that show the cause."""
        return list(dict.fromkeys(piece.source for piece in self.cause.pieces))

    @property
    def step(self) -> int | None:
        """The step of the cause, or None if it has no single one."""
        values = (self.cause.values.get(name) for name in _STEPS)
        return next((v for v in values if isinstance(v, int) and not isinstance(v, bool)), None)

    @property
    def steps(self) -> list[int]:
        """Every step at which the cause was seen, such as each spike of a burst."""
        several = self.cause.values.get("steps")
        if isinstance(several, list):
            return [v for v in several if isinstance(v, int) and not isinstance(v, bool)]
        return [] if self.step is None else [self.step]


def numbered(report: DiagnoseReport) -> list[Numbered]:
    """The causes with their numbers, from 1."""
    return [Numbered(n, cause) for n, cause in enumerate(report.findings, 1)]


def marks_of(found: Sequence[Numbered], prefix: str = "") -> list[Mark]:
    """The marks, by step, of findings in the log whose id, or a piece's id, begins with the prefix."""
    marks = [
        Mark(n.number, step, n.cause.severity)
        for n in found
        if "log" in n.sources
        if any(rule.startswith(prefix) for rule in (n.cause.id, *(piece.id for piece in n.cause.pieces if piece.id)))
        for step in n.steps
    ]
    return sorted(marks, key=lambda mark: mark.step)
