"""Plots in characters for a terminal: a curve over steps, a histogram, intervals, and a map of an adapter's modules.

The curve uses braille dots, and the map block characters; both have a form in ASCII for terminals without these. The
map has a column for each layer, a row for each kind of module, and one character for each module. The HTML page draws
the same `Grid` in colour.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from gradience.adapters import layer_label
from gradience.blocks import Intervals, number

_BRAILLE: Final = 0x2800
_DOTS: Final = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by row and column of a cell
_LABEL: Final = 8  # minimal number of columns for the numbers at the left

_UNICODE: Final = "▁▂▃▄▅▆▇█"
_ASCII: Final = ".:-=+*#@"
_ABSENT: Final = " "
_ROW_NAME: Final = 24
_AXIS: Final = 61  # most characters of the axis of intervals
_TICK: Final = 10  # a mark above every tenth layer


def curve_lines(
    points: Sequence[tuple[float, float]],
    *,
    marks: Sequence[tuple[float, float]] = (),
    width: int = 72,
    height: int = 10,
    dots: bool = True,
) -> list[str]:
    """A curve over its steps, with the lowest and highest value at the left and the steps below.

    Args:
        points: (step, value) pairs in order of steps; points that are not finite are left out.
        marks: further points, drawn as `o` over the curve.
        width: characters per line, at least 20.
        height: lines of the curve, without the line of steps.
        dots: draw in braille, with two by four dots per character; else with `*`.
    """
    curve, over = _finite(points), _finite(marks)
    both = [*curve, *over]
    if not both:
        return []
    (bottom, top), (first, last) = (_ends([y for _, y in both], ".4g"), _ends([x for x, _ in both], "g"))
    label = max(_LABEL, len(bottom), len(top))
    cells, wide, high = max(width, 2 * label) - label - 2, 2 if dots else 1, 4 if dots else 1
    area = _Area(both, cells * wide, height * high)
    grid = [[0] * cells for _ in range(height)]
    for x, y in area.line(curve):
        grid[y // high][x // wide] |= _DOTS[y % high][x % wide] if dots else 1
    rows = [[(chr(_BRAILLE + cell) if dots else "*") if cell else " " for cell in row] for row in grid]
    for x, y in map(area.cell, over):
        rows[y // high][x // wide] = "o"
    return _framed(rows, label, (bottom, top), (first, last))


def _framed(rows: Sequence[Sequence[str]], label: int, values: tuple[str, str], steps: tuple[str, str]) -> list[str]:
    """The plot with its lowest and highest value at the left, and the first and last step below."""
    labels, (first, last) = {len(rows) - 1: values[0], 0: values[1]}, steps
    lines = [f"{labels.get(i, ''):>{label}} |{''.join(row).rstrip()}" for i, row in enumerate(rows)]
    return [*lines, " " * (label + 2) + first + last.rjust(max(len(rows[0]) - len(first), len(last) + 1))]


def _ends(values: Sequence[float], spec: str) -> tuple[str, str]:
    return format(min(values), spec), format(max(values), spec)


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


class _Area:
    """The rectangle of all points, mapped to a grid of `width` by `height` cells."""

    def __init__(self, points: Sequence[tuple[float, float]], width: int, height: int) -> None:
        xs, ys = [x for x, _ in points], [y for _, y in points]
        self.left, self.right = min(xs), max(xs)
        self.bottom, self.top = min(ys), max(ys)
        self._width, self._height = width, height

    def cell(self, point: tuple[float, float]) -> tuple[int, int]:
        """The column of a point, and its row counted from the top."""
        x = _share(point[0], self.left, self.right)
        y = 1.0 - _share(point[1], self.bottom, self.top)
        return round(x * (self._width - 1)), round(y * (self._height - 1))

    def line(self, points: Sequence[tuple[float, float]]) -> list[tuple[int, int]]:
        """The cells of the points, joined within each column so that a steep curve has no holes."""
        cells: list[tuple[int, int]] = []
        for x, y in map(self.cell, points):
            before = cells[-1][1] if cells else y
            step = 1 if y >= before else -1
            cells += [(x, between) for between in range(before + step, y, step)] if y != before else []
            cells.append((x, y))
        return cells


def _share(value: float, low: float, high: float) -> float:
    """The position of a value between two others, 0..1; 0.5 if they are equal or their distance overflows."""
    size = high - low
    return (value - low) / size if 0.0 < size < math.inf else 0.5


def spark(values: Sequence[float], *, dots: bool = True) -> str:
    """A series as one line of characters, each as high as its value lies between the least and the greatest.

    >>> spark([3.0, 2.0, 1.0, 1.0], dots=False)
    '@+..'
    """
    ramp, known = _UNICODE if dots else _ASCII, [value for value in values if math.isfinite(value)]
    if not known:
        return ""
    low, high = min(known), max(known)
    return "".join(ramp[round(_share(value, low, high) * (len(ramp) - 1))] for value in known)


def histogram_lines(bins: Sequence[int], width: int, *, limit: int | None = None, height: int = 5) -> list[str]:
    """A histogram from length 0, with the limit as a vertical line, and the lengths below.

    Args:
        bins: the number in each bar; the last bar holds all longer ones too.
        width: width of a bar, in units of the horizontal axis.
        limit: position of the line; no line if it is None or beyond the bars.
        height: lines of the bars.
    """
    top = max(bins, default=0)
    if not top:
        return []
    levels = [math.ceil(n * height * len(_UNICODE) / top) for n in bins]
    place = None if limit is None or limit > width * len(bins) else -(-limit // width)
    lines = []
    for row in range(height - 1, -1, -1):
        full = [max(0, min(level - row * len(_UNICODE), len(_UNICODE))) for level in levels]
        cells = [_UNICODE[part - 1] if part else " " for part in full]
        line = "".join(cells) if place is None else f"{''.join(cells[:place])}\u2502{''.join(cells[place:])}"
        label = f"{top:,}" if row == height - 1 else ""
        lines.append(f"{label:>{_LABEL}} |{line.rstrip()}")
    named = "" if place is None else f" limit {limit:,}"
    below = f"0{named:>{place or 0}}" if len(named) <= (place or 0) else f"0{named}"
    end = f"{width * len(bins):,}"
    room = len(bins) + (place is not None)
    return [*lines, " " * (_LABEL + 2) + below + end.rjust(max(room - len(below), len(end) + 1))]


Cell: TypeAlias = float | str  # a value; or 0, ! or a space for a module without one


class Grid(NamedTuple):
    """A quantity of the modules, by kind of module and layer."""

    title: str
    rows: dict[str, dict[int, Cell]]  # by the kind's name, then by layer
    layers: list[int]
    top: float  # the highest value
    labels: dict[int, str]  # the layers as people name them
    legend: str = ""  # of the letters in it
    outside: int = 0  # modules in no layer, which it cannot show
    unicode: bool = True


def grid_of_cells(title: str, cells: Sequence[tuple[str, int, Cell]]) -> Grid | None:
    """A quantity given as (module name, layer, cell), by kind and layer; None if no cell has a value."""
    rows = _rows(cells)
    values = [cell for row in rows.values() for cell in row.values() if isinstance(cell, float)]
    if not values:
        return None
    labels = {layer: layer_label(name) or str(layer) for name, layer, _ in cells}
    return Grid(title, rows, sorted(labels), max(values), labels)


def grid_lines(grid: Grid, page: int) -> list[str]:
    """The lines of the map of a quantity, each of at most `page` characters, in block characters or in ASCII."""
    ramp = _UNICODE if grid.unicode else _ASCII
    span = f"from 0 ({ramp[0]}) to {number(grid.top, '.3g')} ({ramp[-1]})"
    return [f"Heat map of {grid.title}, layer x module, {span}:", *_blocks(grid, ramp, page)]


def _rows(cells: Sequence[tuple[str, int, Cell]]) -> dict[str, dict[int, Cell]]:
    """The cells by label and layer, in the order of the modules."""
    kinds = [_kind(name) for name, _, _ in cells]
    shared = _shared(kinds)
    rows: dict[str, dict[int, list[Cell]]] = {}
    for (_, layer, cell), kind in zip(cells, kinds, strict=True):
        label = ".".join(kind[shared:])
        rows.setdefault(label, {}).setdefault(layer, []).append(cell)
    return {label: {layer: _mean(some) for layer, some in row.items()} for label, row in rows.items()}


def _kind(name: str) -> list[str]:
    """The parts of a module's path that are not numbers, which are the same in every layer."""
    return [part for part in name.partition("[")[0].split(".") if not part.isdigit()]


def _shared(kinds: Sequence[list[str]]) -> int:
    """The number of leading parts that all paths share, reduced so that each path keeps at least two parts."""
    least = min(map(len, kinds), default=0) - 2
    return next((i for i in range(max(least, 0)) if len({kind[i] for kind in kinds}) > 1), max(least, 0))


def _mean(cells: Sequence[Cell]) -> Cell:
    values = [cell for cell in cells if isinstance(cell, float)]
    return sum(values) / len(values) if values else cells[0]


def _blocks(grid: Grid, ramp: str, page: int) -> Iterator[str]:
    """The lines of the map, split into blocks of layers that fit the page."""
    label = min(max(map(len, grid.rows)), _ROW_NAME)
    room = max(page - label - 4, 1)
    for start in range(0, len(grid.layers), room):
        layers = grid.layers[start : start + room]
        yield f"  {'':<{label}}  {_ruler(layers, grid.labels)}".rstrip()
        for name, row in grid.rows.items():
            cells = "".join(_glyph(row.get(layer, _ABSENT), ramp, grid.top) for layer in layers)
            yield f"  {name[-label:]:<{label}}  {cells}".rstrip()


def _ruler(layers: Sequence[int], labels: Mapping[int, str]) -> str:
    """A line of layer labels above their columns: the first layer, every tenth, and each one after a gap."""
    line = ""
    for place, layer in enumerate(layers):
        marked = place == 0 or layer % _TICK == 0 or layers[place - 1] != layer - 1
        if marked and (not line or len(line) < place):
            line = line.ljust(place) + labels[layer]
    return line


def _glyph(cell: Cell, ramp: str, top: float) -> str:
    if isinstance(cell, str) or cell < 0.0:
        return cell if isinstance(cell, str) else "-"
    share = cell / top if top > 0.0 else 0.0
    return ramp[min(int(share * len(ramp)), len(ramp) - 1)]


_LINES: Final = "─├┤●┊"  # an interval's line, left end, right end and mean; and the tolerance
_DASHES: Final = "-[]o:"  # the same


def forest_lines(drawn: Intervals, page: int) -> Iterator[str]:
    """A line for each interval, on one axis that spans all intervals, 0 and the tolerance, within `page` characters."""
    dash, left, right, mean, tolerance = _LINES if drawn.unicode else _DASHES
    ends = [value for _, _, *span in drawn.rows for value in span]
    low, high = min([0.0, *ends]), max([drawn.tolerance, *ends])
    axis = min(_AXIS, page - _ROW_NAME - 3)
    width = high - low or 1.0  # all scores are 0, and so is a tolerance in percent

    def at(value: float) -> int:
        return round((value - low) / width * (axis - 1))

    yield f"  {drawn.order}; | is 0, {tolerance} the tolerance:"
    for name, _, *span in drawn.rows:
        line = [" "] * axis
        line[at(0.0)], line[at(drawn.tolerance)] = "|", tolerance
        first, middle, last = map(at, span)
        line[first : last + 1] = dash * (last + 1 - first)
        line[first], line[last], line[middle] = left, right, mean
        yield f"  {name[:_ROW_NAME]:<{_ROW_NAME}} {''.join(line).rstrip()}"
    least = f"{low:.3g}"
    yield f"  {'':<{_ROW_NAME}} {least}{f'{high:.3g}':>{axis - len(least)}}"
