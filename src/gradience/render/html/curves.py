"""Lines with their envelopes, numbered marks at steps, crosses where rows are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final
from xml.etree.ElementTree import Element

import numpy as np
from matplotlib.axes import Axes
from matplotlib.path import Path as Shape
from matplotlib.ticker import FuncFormatter, NullLocator
from matplotlib.transforms import Affine2DBase, ScaledTranslation, Transform

from gradience.render.html.drawing import (
    STYLES,
    Axis,
    Envelope,
    Floats,
    Line,
    Mark,
    Plot,
    Size,
    classed,
    compact,
    drawn,
    linear_ticks,
    y_axis,
)
from gradience.schema.audit import ModuleAudit

_BADGE: Final = 9.0  # radius of a numbered mark
_BADGE_ROWS: Final = 3
_ASIDE: Final = 70.0  # units beside the plot, about: for the numbers of the vertical axis
_MOST_POINTS: Final = 120  # with a dot each
_FEW_LINES: Final = 3  # whose bands can be told apart


def draw(plot: Plot, size: Size, label: str) -> Element:
    """Return the plot; `label` is what it says to those who do not see it."""
    many = "many" if len(plot.lines) > _FEW_LINES else ""
    return drawn(partial(_paint, plot=plot, size=size), size, label, classes=many)


def _paint(axes: Axes, plot: Plot, size: Size) -> None:
    y = y_axis(plot)
    axes.set_xlim(*_steps(plot))
    axes.xaxis.set_major_locator(linear_ticks(size.ticks, integer=True))
    axes.set_yscale("log" if y.log else "linear")
    axes.set_ylim(y.low, y.high)
    axes.yaxis.set_major_locator(y.ticks)
    axes.yaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(compact))
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label + (" (log scale)" if y.log else ""))
    axes.grid(axis="y")
    _marks(axes, plot.marks, size.width - _ASIDE)
    for style, line in enumerate(plot.lines):
        _line(axes, line, f"s{style % STYLES}", y)
    lost = np.unique(np.concatenate([line.data.lost for line in plot.lines]))
    if len(lost):
        axes.plot(
            lost, np.ones_like(lost), "x", transform=axes.get_xaxis_transform(), clip_on=False, gid=classed("cross")
        )


def _steps(plot: Plot) -> tuple[float, float]:
    """Return the ends of the horizontal axis."""
    rows = [column for line in plot.lines for column in (line.data.steps, line.data.lost)]
    places = np.concatenate([*rows, [mark.step for mark in plot.marks]])
    low, high = (float(places.min()), float(places.max())) if len(places) else (0.0, 1.0)
    return (low, high) if high > low else (low - 1.0, high + 1.0)


def _line(axes: Axes, line: Line, style: str, y: Axis) -> None:
    """Draw a line and its band; NaN stands where it breaks, and what stands alone is a dot."""
    data = line.data
    breaks = np.flatnonzero(data.broken)
    steps, low, middle, high = (
        np.insert(column, breaks, math.nan)
        for column in (data.steps, *(np.clip(v, y.low, y.high) for v in (data.low, data.middle, data.high)))
    )
    alone = _alone(steps)
    if data.sampled:
        band = classed(f"band {style}")
        axes.fill_between(steps, low, high, clip_on=False, gid=band)
        if alone.any():
            axes.vlines(steps[alone], low[alone], high[alone], clip_on=False, gid=band)
    axes.plot(steps, middle, clip_on=False, gid=classed(f"line {style}"))
    dots = np.isfinite(steps) if line.points and len(data.steps) <= _MOST_POINTS else alone
    if dots.any():
        axes.plot(steps[dots], middle[dots], "o", markersize=6, clip_on=False, gid=classed(f"dot {style}"))


def _alone(steps: Floats) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return which steps have no neighbour that a line could join them to."""
    gap = np.pad(np.isnan(steps), 1, constant_values=True)
    return np.asarray(~gap[1:-1] & gap[:-2] & gap[2:])


def _marks(axes: Axes, marks: Sequence[Mark], width: float) -> None:
    """Draw the numbers above the plot, each with a line down to its step."""
    low, high = axes.get_xlim()
    rows = _rows([(mark.step - low) / (high - low) * width for mark in marks])
    highest = max(rows, default=0)
    figure = axes.figure.get_figure(root=True)
    assert figure is not None  # noqa: S101  # axes that are drawn in have one
    for mark, row in zip(marks, rows, strict=True):
        above = _BADGE + 7.0 + (highest - row) * 2 * (_BADGE + 1)
        axes.annotate(
            str(mark.number),
            (mark.step, 0.0),
            (mark.step, 1.0),
            xycoords=axes.get_xaxis_transform(),
            textcoords=_lifted(axes.get_xaxis_transform(), above, figure.dpi_scale_trans),
            horizontalalignment="center",
            verticalalignment="center",
            arrowprops={"arrowstyle": "-", "shrinkA": 0, "shrinkB": 0, "gid": classed(f"mark {mark.severity}")},
            bbox={"boxstyle": _disc, "gid": classed(f"badge {mark.severity}")},
            annotation_clip=False,
            gid=classed("number"),
            zorder=1.5,  # under the lines
        )


def _lifted(transform: Transform, units: float, inches: Affine2DBase) -> Transform:
    return transform + ScaledTranslation(0.0, units / 72.0, inches)


def _disc(x: float, y: float, width: float, height: float, _mutation: float) -> Shape:
    """Return the outline behind a mark's number."""
    return Shape.circle((x + width / 2, y + height / 2), _BADGE)


def _rows(places: Sequence[float]) -> list[int]:
    """Return in which row each number stands, so that neighbours do not cover one another."""
    ends = [-math.inf] * _BADGE_ROWS
    rows = []
    for at in places:
        free = [row for row, end in enumerate(ends) if at - end >= 2 * _BADGE + 2]
        row = free[0] if free else ends.index(min(ends))
        ends[row] = at
        rows.append(row)
    return rows


_TINY: Final = 1e-300  # keeps a division by the first singular value finite


def kinds_of(modules: Sequence[ModuleAudit]) -> dict[str, list[ModuleAudit]]:
    """Return the modules that have a spectrum by the last part of their name; by type where that gives too many."""
    with_values = [m for m in modules if m.state == "ok" and m.top_singular_values]
    for name in (_last_part, lambda m: m.module_type):
        groups: dict[str, list[ModuleAudit]] = {}
        for module in with_values:
            groups.setdefault(name(module), []).append(module)
        if len(groups) <= STYLES:
            break
    return dict(list(groups.items())[:STYLES])


def _last_part(module: ModuleAudit) -> str:
    parts = [part for part in module.name.partition("[")[0].split(".") if not part.isdigit()]
    return parts[-1] if parts else module.module_type


def fall_lines(kinds: Mapping[str, Sequence[ModuleAudit]]) -> list[Line]:
    """Return sigma_k / sigma_1 by k: the median of each kind's modules within their lowest and highest."""
    return _lines(kinds, lambda sigma, _: sigma / max(sigma[0], _TINY))


def energy_lines(kinds: Mapping[str, Sequence[ModuleAudit]]) -> list[Line]:
    """Return the share of the squared Frobenius norm that the first k directions hold, by k."""
    return _lines(kinds, _energy)


def _energy(sigma: Floats, module: ModuleAudit) -> Floats:
    first = max(sigma[0], _TINY)  # divided by first: squares of huge or tiny values stay in range
    whole = max(float(module.frobenius_norm) / first, 1.0) ** 2
    return np.asarray(np.minimum(np.cumsum((sigma / first) ** 2) / whole, 1.0))


def _lines(kinds: Mapping[str, Sequence[ModuleAudit]], quantity: Callable[[Floats, ModuleAudit], Floats]) -> list[Line]:
    return [Line(_label(kind, group), _spread(group, quantity)) for kind, group in kinds.items()]


def _label(kind: str, group: Sequence[ModuleAudit]) -> str:
    return f"{kind} ({len(group)})"


def _spread(group: Sequence[ModuleAudit], quantity: Callable[[Floats, ModuleAudit], Floats]) -> Envelope:
    """Return lowest, median and highest over modules, direction by direction; modules of lower rank end earlier."""
    longest = max(len(m.top_singular_values) for m in group)
    table = np.full((len(group), longest), np.nan)
    for row, module in zip(table, group, strict=True):
        values = quantity(np.asarray(module.top_singular_values, np.float64), module)
        row[: len(values)] = values
    columns = [column[np.isfinite(column)] for column in table.T]
    keep = [k for k, column in enumerate(columns) if len(column)]
    low, middle, high = (np.array([f(columns[k]) for k in keep]) for f in (np.min, np.median, np.max))
    return Envelope(
        steps=np.array([k + 1.0 for k in keep]),
        low=low,
        middle=middle,
        high=high,
        lost=np.empty(0),
        broken=np.zeros(len(keep), np.bool_),
        rows=len(keep),
        lost_rows=0,
        sampled=len(group) > 1,
    )
