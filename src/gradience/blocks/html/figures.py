"""Figures as SVG elements of the page: plots by matplotlib, and maps of modules.

matplotlib draws with the style sheet `figures.mplstyle`. Its SVG is changed only where the page's strict policy demands
it: declarations in `style` become attributes, colours become the CSS variables of `style.css`, and metadata and clip
paths are dropped. A map is a rectangle for each module, with its value as a title that a browser shows; it is written
here because matplotlib cannot write such titles.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple
from xml.etree.ElementTree import Element, fromstring

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from matplotlib.transforms import offset_copy

from gradience.blocks.html import tag
from gradience.blocks.html.plot import (
    Axis,
    Floats,
    Mark,
    Plot,
    PlotLine,
    compact,
    linear_ticks,
    running_median,
    x_axis,
    y_axis,
)
from gradience.blocks.plots import Cell, Grid

STYLES: Final = 8  # styles of lines: four colours, each solid and dashed

_FEW_LINES: Final = 3  # bands of more lines than this overlap too much to read
_MOST_POINTS: Final = 120  # a line of more values has no dot at each
_BADGE: Final = 9.0  # radius of a numbered mark
_BADGE_ROWS: Final = 3
_ASIDE: Final = 70.0  # about the units beside the plot for the numbers of the vertical axis
_MARGIN: Final = 6.0  # units around a figure
_POINT: Final = 72  # units per inch of matplotlib's SVG; a unit is a pixel at the figure's usual size

_KEPT: Final = frozenset({"g", "defs", "path", "use", "text"})
_DROPPED: Final = frozenset({"style", "clip-path"})
_DECIMALS: Final = re.compile(r"\d+\.\d{3,}")
_COLOUR: Final = re.compile(r"#[0-9a-f]{6}")

_CHARACTER: Final = 7.0  # about the units of a character in the page's font
_LONGEST: Final = 24  # characters of a row's name
_ROW: Final = 22.0  # height of a row of a map
_FOOT: Final = 40.0  # height of the numbers and the label under a map
_BARS: Final = 160.0  # height of a histogram
_NUMBER: Final = 24.0  # units that a layer's number needs


class Size(NamedTuple):
    """The class and the size of a figure, in units that are pixels at its usual size."""

    name: str
    width: float
    height: float
    ticks: int  # about the number of ticks of the horizontal axis


WIDE: Final = Size("wide", 1080, 300, 10)
HALF: Final = Size("wide", 520, 260, 6)
NARROW: Final = Size("narrow", 360, 250, 5)


@cache
def style_sheet() -> str:
    """The page's style sheet."""
    return files("gradience.blocks.html").joinpath("style.css").read_text(encoding="utf-8")


@cache
def _palette() -> dict[str, str]:
    """The colours of the light scheme, by the name of their CSS variable."""
    light = style_sheet().partition("@media")[0]
    return dict(re.findall(r"--(\w+): (#\w{6})", light))


@cache
def _variables() -> dict[str, str]:
    """The CSS variable of each colour; two variables of one colour in the light scheme share it in the others too."""
    return {colour: f"var(--{name})" for name, colour in reversed(_palette().items())}


def draw(plot: Plot, size: Size, label: str) -> Element:
    """The plot as an SVG element; `label` describes it for readers who cannot see it."""
    # Without a salt matplotlib draws its ids at random: with one, a page has the same bytes each time, and ids of two
    # figures on it differ.
    sheets: list[str | dict[str, str]] = [
        "default",
        "gradience.blocks.html.figures",
        {"svg.hashsalt": f"{label} {size.name}"},
    ]
    text = io.StringIO()
    # A log axis computes ticks a decade beyond its ends, which overflow near 1e308; such ticks are not shown.
    with style.context(sheets), warnings.catch_warnings(), np.errstate(over="ignore"):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # its font only serves to estimate widths
        figure = Figure(figsize=(size.width / _POINT, size.height / _POINT), dpi=_POINT)
        FigureCanvasSVG(figure)  # the canvas measures text
        axes = figure.add_subplot()
        _paint(figure, axes, plot, size)
        _lay_out(axes, size)
        figure.savefig(text, format="svg", metadata={"Date": None})
    root = fromstring(text.getvalue())  # noqa: S314  # the text that matplotlib has just written
    return _svg(list(_elements(root)), size, label)


def _lay_out(axes: Axes, size: Size) -> None:
    """Give the plot all the room that the labels and ticks around it leave.

    The labels are measured once, because the ticks do not depend on the plot's size. matplotlib's own layouts measure
    twice and draw the whole figure once more.
    """
    inner = axes.bbox
    outer = axes.get_tightbbox(for_layout_only=True) or inner  # None if the axes are invisible
    left, right = inner.x0 - outer.x0 + _MARGIN, outer.x1 - inner.x1 + _MARGIN
    below, above = inner.y0 - outer.y0 + _MARGIN, outer.y1 - inner.y1 + _MARGIN
    width, height = size.width - left - right, size.height - below - above
    axes.set_position((left / size.width, below / size.height, width / size.width, height / size.height))


def _svg(content: Sequence[Element], size: Size, label: str) -> Element:
    box = f"0 0 {size.width:g} {size.height:g}"
    return tag("svg", content, viewBox=box, class_=f"chart {size.name}", role="img", aria_label=label)


def _elements(parent: Element) -> Iterator[Element]:
    """Matplotlib's shapes and texts as elements of the page; only definitions keep ids, as others refer to them."""
    defines = _local(parent.tag) == "defs"
    for node in parent:
        name = _local(node.tag)
        if name in _KEPT:
            made = tag(name, node.text if name == "text" else None, list(_elements(node)))
            made.attrib.update((key, value) for key, value in _attributes(node) if defines or key != "id")
            yield made


def _attributes(node: Element) -> Iterator[tuple[str, str]]:
    """The attributes of a shape, and the declarations of its style; fonts are left out, as the page sets them."""
    declarations = (part.split(":", 1) for part in node.get("style", "").split(";") if ":" in part)
    for key, value in (*node.items(), *declarations):
        name = _local(key.strip())
        if name not in _DROPPED and not name.startswith("font"):
            yield name, _value(value)


def _value(text: str) -> str:
    """The value of an attribute, with two decimals and with colours as the page's variables."""
    short = _DECIMALS.sub(lambda number: f"{float(number[0]):.2f}", " ".join(text.split()))
    return _COLOUR.sub(lambda colour: _variables().get(colour[0], colour[0]), short)


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _paint(figure: Figure, axes: Axes, plot: Plot, size: Size) -> None:
    x, y = x_axis(plot), y_axis(plot)
    axes.set_xlim(x.low, x.high)
    axes.xaxis.set_major_locator(linear_ticks(size.ticks, integer=True))
    axes.set_yscale("log" if y.log else "linear")
    axes.set_ylim(y.low, y.high)
    axes.yaxis.set_major_locator(y.ticks)
    axes.yaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(compact))
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label + (" (log scale)" if y.log else ""))
    _marks(figure, axes, plot.marks, x, size.width - _ASIDE)
    for line in plot.lines:
        _line(axes, line, y, crowded=len(plot.lines) > _FEW_LINES)
    lost = np.unique(np.concatenate([line.data.lost for line in plot.lines]))
    if len(lost):
        at_top = axes.get_xaxis_transform()
        axes.plot(lost, np.ones_like(lost), "x", mec=_palette()["error"], transform=at_top, clip_on=False)


def _line(axes: Axes, line: PlotLine, y: Axis, *, crowded: bool) -> None:
    """Draw a line and its band. NaN is inserted where the line breaks, and a value without neighbours is a dot."""
    data = line.data
    breaks = np.flatnonzero(data.broken)
    steps, low, middle, high = (
        np.insert(column, breaks, math.nan)
        for column in (data.steps, *(np.clip(v, y.low, y.high) for v in (data.low, data.middle, data.high)))
    )
    smoothed = np.insert(running_median(data.middle, line.window), breaks, math.nan) if line.window else None
    alone = _alone(steps)
    dots = np.isfinite(steps) if line.points and len(data.steps) <= _MOST_POINTS else alone
    (drawn,) = axes.plot(steps, middle, marker="o", markevery=dots, clip_on=False)
    if smoothed is not None:
        drawn.set(alpha=0.6, linewidth=0.8)
        colour, dashes = drawn.get_color(), drawn.get_linestyle()  # without both, this call takes the next line's
        axes.plot(steps, np.clip(smoothed, y.low, y.high), color=colour, linestyle=dashes, linewidth=2.2)
    if data.sampled:
        colour, alpha = drawn.get_color(), 0.07 if crowded else 0.22
        axes.fill_between(steps, low, high, color=colour, alpha=alpha, linewidth=0, clip_on=False)
        axes.vlines(steps[alone], low[alone], high[alone], color=colour, alpha=alpha, clip_on=False)


def _alone(steps: Floats) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """For each step, whether the line joins it to no other step."""
    gap = np.pad(np.isnan(steps), 1, constant_values=True)
    return np.asarray(~gap[1:-1] & gap[:-2] & gap[2:])


def _marks(figure: Figure, axes: Axes, marks: Sequence[Mark], x: Axis, width: float) -> None:
    """Draw the numbers of the marks above the plot, each with a line down to its step."""
    rows = _rows([(mark.step - x.low) / (x.high - x.low) * width for mark in marks])
    at_top = axes.get_xaxis_transform()
    for mark, row in zip(marks, rows, strict=True):
        above = _BADGE + 7.0 + (max(rows) - row) * 2 * (_BADGE + 1)
        colour = _palette()[mark.severity]
        axes.annotate(
            str(mark.number),
            (mark.step, 0.0),
            (mark.step, 1.0),
            xycoords=at_top,
            textcoords=offset_copy(at_top, figure, y=above, units="points"),
            ha="center",
            va="center",
            fontsize=11,
            color=_palette()["on"],
            arrowprops={"arrowstyle": "-", "shrinkA": 0, "shrinkB": 0, "color": colour, "ls": (0, (3, 3)), "lw": 1.2},
            bbox={"boxstyle": "circle,pad=0.3", "facecolor": colour, "edgecolor": "none"},
            annotation_clip=False,
            zorder=1.5,  # under the lines
        )


def _rows(positions: Sequence[float]) -> list[int]:
    """The row of each number, so that neighbours do not overlap: the lowest free row, or the least recently used."""
    ends = [-math.inf] * _BADGE_ROWS
    rows = []
    for at in positions:
        free = [row for row, end in enumerate(ends) if at - end >= 2 * _BADGE + 2]
        row = free[0] if free else ends.index(min(ends))
        ends[row] = at
        rows.append(row)
    return rows


def draw_map(grid: Grid, size: Size, label: str) -> Element:
    """The map of a quantity, with layers to the right, from 0 (faint) to the highest value (full).

    A value below 0 has a sign and another colour, whose strength is its size. A module without a value shows its
    letter.
    """
    names = [name if len(name) <= _LONGEST else f"..{name[2 - _LONGEST :]}" for name in grid.rows]
    left, bottom = _CHARACTER * max(map(len, names)) + 8.0, _ROW * len(names)
    column = (size.width - left - 4.0) / len(grid.layers)
    every = math.ceil(_NUMBER / column)
    content = [_text(name, left - 6.0, (i + 0.7) * _ROW, "end") for i, name in enumerate(names)]
    content.append(_text("layer", (left + size.width) / 2, bottom + 33.0, "middle label"))
    for j, layer in enumerate(grid.layers):
        x = left + j * column
        if j % every == 0:
            content.append(_text(grid.labels[layer], x + column / 2, bottom + 15.0, "middle"))
        for i, (kind, row) in enumerate(grid.rows.items()):
            box = _Box(x, i * _ROW, column)
            content += _cell(row.get(layer, " "), box, f"layer {layer} {kind}", grid.top)
    return _svg(content, size._replace(height=bottom + _FOOT), label)


def draw_bars(bins: Sequence[int], bin_width: int, size: Size, label: str, limit: int | None = None) -> Element:
    """A histogram from 0. The title of a bar has its range and count, and a line marks the limit."""
    column, bottom, top = size.width / max(len(bins), 1), _BARS, max(bins, default=0) or 1
    content = []
    for i, n in enumerate(bins):
        low, high = i * bin_width, (i + 1) * bin_width - 1
        span = {"x": round(i * column + 0.5, 1), "width": round(max(column - 1.0, 0.5), 1)}
        name = tag("title", f"{low:,} to {high:,}: {n:,}")
        height = round(bottom * n / top, 1)
        content.append(tag("rect", name, y=round(bottom - height, 1), height=height, class_="cell", **span))
    content.append(_text("0", 0.0, bottom + 15.0, ""))
    content.append(_text(f"{bin_width * len(bins):,}", size.width, bottom + 15.0, "end"))
    if limit is not None and limit <= bin_width * len(bins):
        x = limit / bin_width * column
        content.append(tag("rect", x=round(x - 1.0, 1), y=0.0, width=2.0, height=bottom, class_="cell below"))
        content.append(_text(f"limit {limit:,}", x, bottom + 15.0, "middle label"))
    return _svg(content, size._replace(height=bottom + _FOOT), label)


class _Box(NamedTuple):
    x: float
    y: float
    width: float


def _cell(cell: Cell, box: _Box, name: str, top: float) -> Iterator[Element]:
    if isinstance(cell, float):
        gap = min(1.0, box.width / 5)
        yield tag(
            "rect",
            tag("title", f"{name}: {cell:.4g}"),
            x=round(box.x + gap / 2, 1),
            y=box.y + 1.0,
            width=round(box.width - gap, 1),
            height=_ROW - 2.0,
            class_="cell" if cell >= 0.0 else "cell below",
            fill_opacity=round(0.04 + 0.96 * min(abs(cell) / (top or 1.0), 1.0), 3),
        )
    letter = cell if isinstance(cell, str) else "-" if cell < 0.0 else " "
    if letter != " ":
        names = "middle lost" if isinstance(cell, str) else "middle label"
        yield _text(letter, box.x + box.width / 2, box.y + 0.7 * _ROW, names)


def _text(text: str, x: float, y: float, names: str) -> Element:
    return tag("text", text, x=round(x, 1), y=round(y, 1), class_=names)


def ramp(grid: Grid) -> Element:
    """The legend of a map, from 0 to the highest value."""
    return tag("p", "0 ", tag("span", class_="ramp", aria_hidden="true"), f" {compact(grid.top)}", class_="legend")
