"""A series of numbers made small enough to look at, and the rows that stand out of it.

A loop in Python over a whole series costs some 100 ms per million rows, so a long series is looked at through blocks:
the median of each, and its highest value, which keeps a spike of one row visible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import compress
from typing import Final, NamedTuple

from gradience.rules.log.statistics import bounded, median, spread

MOST_POINTS: Final = 2048  # points that a detector loops over
_SAMPLE: Final = 33  # values of a block that give its median; rows of it whose differences give its noise
_BEFORE: Final = 8  # values that give the level before a row
_MANY: Final = 1000  # rows from which a spike must be the higher the more rows there are to choose from
_NEAR: Final = 0.6  # of the bar, judged on the block: what passes is judged on its own rows


class Curve(NamedTuple):
    """The finite values of a series, their rows in it, one median per block of rows, and the least value."""

    values: Sequence[float]
    rows: Sequence[int]
    block: int
    points: Sequence[float]
    lowest: float  # NaN of nothing; looked up once, for a pass over a million rows costs 10 ms

    def row(self, point: int) -> int:
        """The row in the series with which a point begins."""
        return self.rows[point * self.block]

    def outline(self, most: int) -> Curve:
        """The same curve through at most so many points."""
        block = _block(len(self.points), most)
        points = self.points if block == 1 else _block_medians(self.points, block)
        return self._replace(block=self.block * block, points=points)


def curve_of(values: Sequence[float]) -> Curve:
    """The curve of a series, without values that are missing (NaN) or not finite."""
    kept: Sequence[float] = values
    rows: Sequence[int] = range(len(values))
    if not all_finite(values):
        finite = list(map(math.isfinite, values))
        kept, rows = list(compress(values, finite)), list(compress(rows, finite))
    block = _block(len(kept), MOST_POINTS)
    points = bounded(kept if block == 1 else _block_medians(kept, block))
    return Curve(kept, rows, block, points, min(kept, default=math.nan))


def all_finite(values: Sequence[float]) -> bool:
    """Whether no value is NaN or infinite; a sum that overflows is looked at twice.

    >>> all_finite([1.0, 2.0]), all_finite([1.0, float("nan")]), all_finite([1e308, 1e308])
    (True, False, True)
    """
    return math.isfinite(sum(values)) or all(map(math.isfinite, values))


def thin(values: Sequence[float], most: int) -> list[float]:
    """At most so many block medians of a series."""
    block = _block(len(values), most)
    return list(values) if block == 1 else _block_medians(values, block)


def _block(rows: int, most: int) -> int:
    return math.ceil(rows / most) or 1


def _block_medians(values: Sequence[float], block: int) -> list[float]:
    """The median of each block; of a long one, that of some 32 values spread evenly over it."""
    stride = max(1, block // _SAMPLE)
    return [median(values[i : i + block : stride]) for i in range(0, len(values), block)]


class Bar(NamedTuple):
    """How far a row must rise over the rows before to stand out.

    Attributes:
        k: times the spread of the 32 rows before; from 1000 rows on it grows by a quarter with each factor of 10, for
            chance has more rows to choose from.
        floor: least spread, as a fraction of the level, or of a logarithm.
        logarithmic: whether logarithms of the values are compared.
    """

    k: float
    floor: float
    logarithmic: bool


def excesses(curve: Curve, bar: Bar) -> list[tuple[int, float]]:
    """The values that stand out, by place among the curve's values, and by how many times the spread."""
    k = _raised(curve, bar)
    judged = ((i, _excess(curve.values, i, bar)) for i in _candidates(curve, bar, k))
    return [(i, times) for i, times in judged if times > k]


def stands_out(curve: Curve, place: int, bar: Bar) -> bool:
    """Whether the value at one place stands out; the first 8 are not judged."""
    return _BEFORE <= place < len(curve.values) and _excess(curve.values, place, bar) > _raised(curve, bar)


def _raised(curve: Curve, bar: Bar) -> float:
    return bar.k * (1.0 + 0.25 * max(0.0, math.log10(max(len(curve.values), 1) / _MANY)))


def _excess(values: Sequence[float], place: int, bar: Bar) -> float:
    """A value's height over the median of the 8 before it, in units of their spread; 0 where they are all equal."""
    before, value = values[max(0, place - _SAMPLE) : place], values[place]
    if bar.logarithmic:
        if value <= 0.0 or min(before) <= 0.0:
            return 0.0
        before, value = [*map(math.log, before)], math.log(value)
    level = median(before[-_BEFORE:])
    scale = max(spread(before), bar.floor if bar.logarithmic else bar.floor * abs(level))
    return (value - level) / scale if scale > 0.0 else 0.0


def _candidates(curve: Curve, bar: Bar, k: float) -> Sequence[int]:
    """Values worth a closer look: all of a short curve, those far above their block of a long one."""
    values, block = curve.values, curve.block
    if block == 1:
        return range(_BEFORE, len(values))
    found: list[int] = []
    for point in range(1, len(curve.points)):
        start = point * block
        rows: Sequence[float] = values[start : start + _SAMPLE]
        level = min(curve.points[point], curve.points[point - 1])
        if bar.logarithmic:
            rise = _NEAR * k * max(spread([*map(math.log, rows)]), bar.floor)
            height = level * math.exp(min(rise, _HIGHEST))
        else:
            height = level + _NEAR * k * max(spread(rows), bar.floor * abs(level))
        if max(values[start : start + block]) > height:
            found += [i for i in range(start, min(start + block, len(values))) if values[i] > height]
    return found if len(found) <= MOST_POINTS else sorted(sorted(found, key=lambda i: -values[i])[:MOST_POINTS])


_HIGHEST: Final = 700.0  # of a logarithm: its exponential is still a float


def runs_of(rows: Sequence[int]) -> list[list[int]]:
    """Rising numbers as stretches of neighbours.

    >>> runs_of([1, 2, 5, 6, 7])
    [[1, 2], [5, 6, 7]]
    """
    runs: list[list[int]] = []
    for row in rows:
        if runs and row == runs[-1][-1] + 1:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs
