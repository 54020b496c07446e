"""What a plot is made of: lines with their envelopes, numbered marks, sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from gradience.report.envelope import Envelope
from gradience.schema.scalars import Severity

__all__ = ["HALF", "NARROW", "STYLES", "WIDE", "Line", "Mark", "Plot", "Size"]

STYLES: Final = 8  # line styles in the style sheet: four colours, each solid and dashed


class Line(NamedTuple):
    """One line of a plot."""

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


class Size(NamedTuple):
    """How large a figure is drawn, in units that are pixels at its usual size; and for which screens."""

    name: str
    width: float
    height: float
    ticks: int  # of the horizontal axis, about


WIDE: Final = Size("wide", 1080, 300, 10)
HALF: Final = Size("wide", 520, 260, 6)
NARROW: Final = Size("narrow", 360, 250, 5)
