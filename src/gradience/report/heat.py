"""A map of the update as SVG: layers to the right, kinds of module downwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from gradience.render.heatmap import Cell, Grid
from gradience.report.chart import Size
from gradience.report.markup import Element, tag
from gradience.report.scale import compact

__all__ = ["draw_grid", "ramp"]

_CHARACTER: Final = 6.6
_LONGEST: Final = 24  # characters of a row's name
_FAINTEST: Final = 0.04
_LEVELS: Final = 6  # of the ramp in the legend


class _Place(NamedTuple):
    left: float
    width: float
    height: float


def draw_grid(grid: Grid, size: Size, label: str) -> Element:
    """Return the map, from 0 (faint) to the highest value (full); 0: a zero update, !: one that is not finite."""
    names = [_short(name) for name in grid.rows]
    left = 8.0 + _CHARACTER * max(map(len, names), default=0)
    width = (size.width - left - 8.0) / max(len(grid.layers), 1)
    place = _Place(left, width, 22.0)
    bottom = 8.0 + place.height * len(names)
    return tag(
        "svg",
        [_row(name, grid, row, i, place) for i, (name, row) in enumerate(zip(names, grid.rows.values(), strict=True))],
        _ruler(grid.layers, place, bottom),
        tag("text", "layer", x=left + width * len(grid.layers) / 2, y=bottom + 34, class_="label middle"),
        viewBox=f"0 0 {size.width:g} {bottom + 42:g}",
        class_=f"chart {size.name}",
        role="img",
        aria_label=label,
    )


def ramp(grid: Grid) -> Element:
    """Return the legend: from 0 to the highest value."""
    boxes = [
        tag("rect", x=i * 18, y=1, width=18, height=12, class_="cell", fill_opacity=_opacity(i / (_LEVELS - 1)))
        for i in range(_LEVELS)
    ]
    return tag(
        "p",
        "0 ",
        tag("svg", boxes, viewBox=f"0 0 {_LEVELS * 18} 14", class_="ramp", aria_hidden="true"),
        f" {compact(grid.top)}",
        class_="legend",
    )


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"..{name[2 - _LONGEST :]}"


def _opacity(share: float) -> float:
    return round(_FAINTEST + (1.0 - _FAINTEST) * share, 3)


def _row(name: str, grid: Grid, row: dict[int, Cell], number: int, place: _Place) -> Iterator[Element]:
    top = 4.0 + place.height * number
    middle = top + place.height / 2 + 4
    yield tag("text", name, x=place.left - 6, y=middle, class_="tick end")
    for column, layer in enumerate(grid.layers):
        cell = row.get(layer)
        if cell is None or cell == " ":
            continue
        x = round(place.left + column * place.width, 2)
        if isinstance(cell, str):
            yield tag("text", cell, x=round(x + place.width / 2, 1), y=middle, class_="lost middle")
            continue
        share = cell / grid.top if grid.top > 0.0 else 0.0
        yield tag(
            "rect",
            tag("title", f"layer {layer} {name}: {cell:.4g}"),
            x=x,
            y=top,
            width=round(max(place.width - 1.0, place.width * 0.8), 2),
            height=place.height - 2,
            class_="cell",
            fill_opacity=_opacity(min(share, 1.0)),
        )


def _ruler(layers: Sequence[int], place: _Place, bottom: float) -> Iterator[Element]:
    """Yield the number of every layer that has room for it."""
    needed = _CHARACTER * (len(str(max(layers, default=0))) + 1)
    last = -needed
    for column, layer in enumerate(layers):
        x = place.left + (column + 0.5) * place.width
        if x - last >= needed:
            last = x
            yield tag("text", str(layer), x=round(x, 1), y=bottom + 14, class_="tick middle")
