"""A curve as text: braille dots where the terminal has them, else stars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

_BRAILLE: Final = 0x2800
_DOTS: Final = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by row and column of a cell
_LABEL: Final = 8  # columns for the numbers at the left, at least


def curve_lines(
    points: Sequence[tuple[float, float]],
    *,
    marks: Sequence[tuple[float, float]] = (),
    width: int = 72,
    height: int = 10,
    dots: bool = True,
) -> list[str]:
    """Return a curve over its steps, the lowest and highest value at the left, the steps below.

    Args:
        points: (step, value), by rising step; what is not finite is left out.
        marks: more of them, drawn as `o` over the curve.
        width: of a line in characters, at least 20.
        height: lines of the curve, without that of the steps.
        dots: draw in braille, two by four dots a character; else with `*`.
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
    for x, y in map(area.place, over):
        rows[y // high][x // wide] = "o"
    labels = {height - 1: bottom, 0: top}
    lines = [f"{labels.get(i, ''):>{label}} |{''.join(row).rstrip()}" for i, row in enumerate(rows)]
    return [*lines, " " * (label + 2) + first + last.rjust(max(cells - len(first), len(last) + 1))]


def _ends(values: Sequence[float], spec: str) -> tuple[str, str]:
    return format(min(values), spec), format(max(values), spec)


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


class _Area:
    """The rectangle of all points, and where in a grid of that size each lies."""

    def __init__(self, points: Sequence[tuple[float, float]], width: int, height: int) -> None:
        xs, ys = [x for x, _ in points], [y for _, y in points]
        self.left, self.right = min(xs), max(xs)
        self.bottom, self.top = min(ys), max(ys)
        self._width, self._height = width, height

    def place(self, point: tuple[float, float]) -> tuple[int, int]:
        """Return the column and the row, from the top, of a point."""
        x = _share(point[0], self.left, self.right)
        y = 1.0 - _share(point[1], self.bottom, self.top)
        return round(x * (self._width - 1)), round(y * (self._height - 1))

    def line(self, points: Sequence[tuple[float, float]]) -> list[tuple[int, int]]:
        """Return the places of the points, joined down each column so that a steep curve has no holes."""
        places: list[tuple[int, int]] = []
        for x, y in map(self.place, points):
            before = places[-1][1] if places else y
            step = 1 if y >= before else -1
            places += [(x, between) for between in range(before + step, y, step)] if y != before else []
            places.append((x, y))
        return places


def _share(value: float, low: float, high: float) -> float:
    """Return where between two values one lies, 0..1; the middle where they are the same or too far apart."""
    size = high - low
    return (value - low) / size if 0.0 < size < math.inf else 0.5
