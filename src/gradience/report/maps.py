"""The figure of a map: both drawings, legend, and what was cut for the page's sake."""

from __future__ import annotations

from itertools import islice
from typing import Final

from gradience.render.heatmap import Grid
from gradience.report.heat import draw_grid, ramp
from gradience.report.markup import Element
from gradience.report.pieces import figure
from gradience.report.plot import NARROW, WIDE

__all__ = ["map_figure"]

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
