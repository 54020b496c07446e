"""A line chart as SVG: lines with their envelopes, numbered marks at steps, crosses where rows are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from gradience.report.envelope import Envelope
from gradience.report.markup import Element, tag
from gradience.report.scale import Scale, compact, scale_of
from gradience.schema.scalars import Severity

__all__ = ["HALF", "NARROW", "STYLES", "WIDE", "Line", "Mark", "Plot", "Size", "draw", "swatch"]

STYLES: Final = 8  # line styles in the style sheet: four colours, each solid and dashed

_CHARACTER: Final = 6.6  # width of a tick label's character, in units of the drawing
_BADGE: Final = 9.0  # radius of a numbered mark
_BADGE_ROWS: Final = 3
_MOST_POINTS: Final = 120  # with a dot each
_FEW_LINES: Final = 3  # whose bands can be told apart


class Line(NamedTuple):
    """One line of a chart."""

    label: str
    data: Envelope
    points: bool = False  # a dot at each value, as few values have


class Mark(NamedTuple):
    """A numbered finding at a step."""

    number: int
    step: float
    severity: Severity


class Plot(NamedTuple):
    """What is drawn. Without a choice, an axis of widely spread positive values is logarithmic."""

    lines: Sequence[Line]
    x_label: str
    y_label: str
    marks: Sequence[Mark] = ()
    log: bool | None = None
    zero: bool = False
    span: tuple[float, float] | None = (
        None  # of the vertical axis, where not all that is drawn; the rest is at its ends
    )

    @property
    def y(self) -> Scale:
        """The vertical axis."""
        ends = (end for line in self.lines for end in (line.data.low, line.data.high))
        values = [float(v) for column in ends for v in column] if self.span is None else list(self.span)
        return scale_of(values, log=self.log, zero=self.zero, whole=True)


class Size(NamedTuple):
    """How large a chart is drawn, in units that are pixels at its usual size; and for which screens."""

    name: str
    width: float
    height: float
    ticks: int  # of the horizontal axis


WIDE: Final = Size("wide", 1080, 300, 10)
HALF: Final = Size("wide", 520, 260, 6)
NARROW: Final = Size("narrow", 360, 250, 4)


class _Frame(NamedTuple):
    """The rectangle of the plot, and its axes."""

    left: float
    top: float
    right: float
    bottom: float
    x: Scale
    y: Scale

    def across(self, value: float) -> float:
        return self.left + self.x.at(value) * (self.right - self.left)

    def up(self, value: float) -> float:
        return self.bottom - self.y.at(value) * (self.bottom - self.top)


def draw(plot: Plot, size: Size, label: str) -> Element:
    """Return the chart; `label` is what it says to those who do not see it."""
    places = [float(x) for line in plot.lines for column in (line.data.steps, line.data.lost) for x in column]
    y = plot.y
    margin = 30.0 + _CHARACTER * max((len(compact(tick)) for tick in y.ticks), default=1)
    x = scale_of(places, ticks=size.ticks, log=False, integers=True)
    rows = _rows(plot.marks, x, size.width - margin - 20.0)
    top = 14.0 + 2 * (_BADGE + 1) * (max(rows, default=-1) + 1)
    frame = _Frame(margin, top, size.width - 20.0, size.height - 40.0, x, y)
    return tag(
        "svg",
        _axes(plot, frame, size),
        _marks(plot.marks, rows, frame),
        [_line(line, style % STYLES, frame) for style, line in enumerate(plot.lines)],
        _crosses(plot.lines, frame),
        viewBox=f"0 0 {size.width:g} {size.height:g}",
        class_=f"chart {size.name}" + (" many" if len(plot.lines) > _FEW_LINES else ""),
        role="img",
        aria_label=label,
    )


def swatch(style: int, *, points: bool = False) -> Element:
    """Return a piece of a line, for a legend."""
    return tag(
        "svg",
        tag("path", d="M1 6H27", class_=f"line s{style % STYLES}"),
        tag("circle", cx=14, cy=6, r=3, class_=f"dot s{style % STYLES}") if points else None,
        viewBox="0 0 28 12",
        class_="swatch",
        aria_hidden="true",
    )


def _rows(marks: Sequence[Mark], x: Scale, width: float) -> list[int]:
    """Return in which row each mark's number stands, so that neighbours do not cover one another."""
    ends = [-math.inf] * _BADGE_ROWS
    rows = []
    for mark in marks:
        at = x.at(mark.step) * width
        free = [row for row, end in enumerate(ends) if at - end >= 2 * _BADGE + 2]
        row = free[0] if free else ends.index(min(ends))
        ends[row] = at
        rows.append(row)
    return rows


def _axes(plot: Plot, frame: _Frame, size: Size) -> Iterator[Element]:
    for tick in frame.y.ticks:
        y = round(frame.up(tick), 1)
        yield tag("path", d=f"M{frame.left:g} {y:g}H{frame.right:g}", class_="grid")
        yield tag("text", compact(tick), x=frame.left - 7, y=y + 4, class_="tick end")
    for tick in frame.x.ticks:
        x = round(frame.across(tick), 1)
        yield tag("path", d=f"M{x:g} {frame.bottom:g}v5", class_="axis")
        yield tag("text", compact(tick), x=x, y=frame.bottom + 18, class_="tick middle")
    yield tag("path", d=f"M{frame.left:g} {frame.bottom:g}H{frame.right:g}", class_="axis")
    yield tag("text", plot.x_label, x=(frame.left + frame.right) / 2, y=size.height - 6, class_="label middle")
    half = (frame.top + frame.bottom) / 2
    said = plot.y_label + (" (log scale)" if frame.y.log else "")
    yield tag("text", said, transform=f"translate(13 {half:g}) rotate(-90)", class_="label middle")


def _line(line: Line, style: int, frame: _Frame) -> Iterator[Element]:
    data = line.data
    xs = [frame.across(float(x)) for x in data.steps]
    low, middle, high = ([frame.up(float(v)) for v in column] for column in (data.low, data.middle, data.high))
    parts = [slice(a, b) for a, b in pairwise([0, *(i for i, gap in enumerate(data.broken) if gap), len(xs)])]
    if data.sampled:
        bands = "".join(_around(xs[p], low[p], high[p]) for p in parts)
        yield tag("path", d=bands, class_=f"band s{style}")
    yield tag("path", d="".join(_along(xs[p], middle[p]) for p in parts), class_=f"line s{style}")
    if line.points and len(xs) <= _MOST_POINTS:
        for x, y in zip(xs, middle, strict=True):
            yield tag("circle", cx=round(x, 1), cy=round(y, 1), r=3, class_=f"dot s{style}")


def _along(xs: Sequence[float], ys: Sequence[float]) -> str:
    """Return a path through the points; one point alone becomes a dot, by the round ends of the line."""
    points = [f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True)]
    if not points:
        return ""
    return f"M{points[0]}" + ("L" + " ".join(points[1:]) if len(points) > 1 else "h0")


def _around(xs: Sequence[float], low: Sequence[float], high: Sequence[float]) -> str:
    if not xs:
        return ""
    there = " ".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, high, strict=True))
    back = " ".join(f"{x:.1f} {y:.1f}" for x, y in zip(reversed(xs), reversed(low), strict=True))
    return f"M{there} {back}Z"


def _marks(marks: Sequence[Mark], rows: Sequence[int], frame: _Frame) -> Iterator[Element]:
    for mark, row in zip(marks, rows, strict=True):
        x = round(frame.across(mark.step), 1)
        y = 2.0 + _BADGE + row * 2 * (_BADGE + 1)
        yield tag("path", d=f"M{x:g} {y + _BADGE:g}V{frame.bottom:g}", class_=f"mark {mark.severity}")
        yield tag("circle", cx=x, cy=y, r=_BADGE, class_=f"badge {mark.severity}")
        yield tag("text", str(mark.number), x=x, y=y + 4, class_="number middle")


def _crosses(lines: Sequence[Line], frame: _Frame) -> Element | None:
    """Return a cross at the upper edge wherever rows are not finite."""
    places = sorted({round(frame.across(float(step)), 1) for line in lines for step in line.data.lost})
    if not places:
        return None
    y = frame.top
    return tag("path", d="".join(f"M{x - 3:g} {y - 3:g}l6 6m0-6l-6 6" for x in places), class_="cross")
