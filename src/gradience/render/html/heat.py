"""A map of modules: layers to the right, kinds of module downwards."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final, NamedTuple
from xml.etree.ElementTree import Element

from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator

from gradience.render.heatmap import Cell, Grid
from gradience.render.html.drawing import Size, classed, compact, drawn
from gradience.render.html.markup import tag

_LONGEST: Final = 24  # characters of a row's name
_ROW, _AROUND = 22.0, 54.0  # units: height of a row; of what is under the map
_NUMBER: Final = 24.0  # units that a layer's number needs
_FADE: Final = ListedColormap([(0.0, 0.0, 0.0, 0.04 + 0.96 * i / 255) for i in range(256)])
_GAP: Final = 1.0  # units between two columns at most, a fifth of a column at most


class _Named(NamedTuple):
    column: int
    row: int
    value: float
    title: str


def draw_grid(grid: Grid, size: Size, label: str) -> Element:
    """Return the map, from 0 (faint) to the highest value (full); what has no value is its letter.

    Values below 0 have a colour of their own, by their size, and a sign.
    """
    cells = list(_cells(grid))
    titles = {name: [cell.title for cell in some] for name, some in _kinds(cells).items()}
    fitted = size._replace(height=_ROW * len(grid.rows) + _AROUND)
    return drawn(partial(_paint, grid=grid, cells=cells, size=size), fitted, label, titles=titles)


def ramp(grid: Grid) -> Element:
    """Return the legend: from 0 to the highest value."""
    return tag("p", "0 ", tag("span", class_="ramp", aria_hidden="true"), f" {compact(grid.top)}", class_="legend")


def _cells(grid: Grid) -> Iterator[_Named]:
    for row, (name, cells) in enumerate(grid.rows.items()):
        for column, layer in enumerate(grid.layers):
            cell = cells.get(layer)
            if isinstance(cell, float):
                yield _Named(column, row, cell, f"layer {layer} {name}: {cell:.4g}")


def _kinds(cells: list[_Named]) -> dict[str, list[_Named]]:
    return {
        "cell": [cell for cell in cells if cell.value >= 0.0],
        "cell below": [cell for cell in cells if cell.value < 0.0],
    }


def _paint(axes: Axes, grid: Grid, cells: list[_Named], size: Size) -> None:
    columns = len(grid.layers)
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(len(grid.rows) - 0.5, -0.5)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)
    axes.xaxis.set_major_locator(FixedLocator(range(columns), nbins=max(int(size.width * 0.8 / _NUMBER), 1)))
    axes.xaxis.set_major_formatter(lambda place, _: str(grid.layers[int(place)]))
    axes.set_yticks(range(len(grid.rows)), [_short(name) for name in grid.rows])
    axes.set_xlabel("layer")
    wide = 1.0 - min(_GAP * columns / (size.width * 0.8), 0.2)
    for name, some in _kinds(cells).items():
        boxes = [Rectangle((c.column - wide / 2, c.row - 0.45), wide, 0.9) for c in some]
        shades = PatchCollection(boxes, cmap=_FADE, gid=classed(name), clip_on=False, linewidth=0)
        shades.set_array([abs(c.value) for c in some])
        shades.set_clim(0.0, grid.top or 1.0)
        axes.add_collection(shades, autolim=False)
    for row, line in enumerate(grid.rows.values()):
        for column, layer in enumerate(grid.layers):
            _letter(axes, column, row, line.get(layer, " "))


def _letter(axes: Axes, column: int, row: int, cell: Cell) -> None:
    """Write the letter of a cell without a value, and the sign of one below 0."""
    letter = cell if isinstance(cell, str) else "-" if cell < 0.0 else " "
    if letter != " ":
        names = "lost" if isinstance(cell, str) else "sign"
        axes.text(column, row, letter, ha="center", va="center", gid=classed(names))


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"..{name[2 - _LONGEST :]}"
