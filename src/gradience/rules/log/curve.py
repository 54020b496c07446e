"""A series of numbers made small enough to look at, and the robust statistics of it. Nothing but the standard library.

A whole-series loop in Python costs some 100 ms per million rows, so a long series is looked at through
blocks: the median of each, and its highest value, which keeps a spike of one row visible.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import compress, islice
from operator import sub
from typing import Final, NamedTuple

MOST_POINTS: Final = 2048  # points a detector loops over
_SAMPLE: Final = 33  # values of a block that give its median; rows of it whose differences give its noise
_MANY: Final = 1000  # rows from which a spike must be the higher the more rows there are to choose from
_NEAR: Final = 0.6  # of the bar, judged on the block: what passes is judged on its own rows
_NORMAL: Final = 1.0483  # standard deviation over the median |first difference|, for normal noise


class Curve(NamedTuple):
    """The finite values of a series, their rows in it, one median per block of rows, and the least value."""

    values: Sequence[float]
    rows: Sequence[int]
    block: int
    points: Sequence[float]
    lowest: float  # NaN of nothing; asked by several, for each look at a million rows costs 10 ms

    def row(self, point: int) -> int:
        """Return the row in the series with which a point begins."""
        return self.rows[point * self.block]


def all_finite(values: Sequence[float]) -> bool:
    """Whether no value is NaN or infinite; a sum that overflows is looked at twice.

    >>> all_finite([1.0, 2.0]), all_finite([1.0, float("nan")]), all_finite([1e308, 1e308])
    (True, False, True)
    """
    return math.isfinite(sum(values)) or all(map(math.isfinite, values))


def curve_of(values: Sequence[float]) -> Curve:
    """Return the curve of a series; not finite, or NaN for missing, is left out."""
    kept: Sequence[float] = values
    rows: Sequence[int] = range(len(values))
    if not all_finite(values):
        finite = list(map(math.isfinite, values))
        kept, rows = list(compress(values, finite)), list(compress(rows, finite))
    block = math.ceil(len(kept) / MOST_POINTS) or 1
    points = kept if block == 1 else _block_medians(kept, block)
    return Curve(kept, rows, block, points, min(kept, default=math.nan))


def _block_medians(values: Sequence[float], block: int) -> list[float]:
    """Return the median of each block; of a long one, that of some 32 values spread evenly over it."""
    stride = max(1, block // _SAMPLE)
    return [median(values[i : i + block : stride]) for i in range(0, len(values), block)]


def median(values: Iterable[float]) -> float:
    """Return the median; NaN of nothing."""
    ordered = sorted(values)
    n = len(ordered)
    if not n:
        return math.nan
    return ordered[n // 2] if n % 2 else ordered[n // 2 - 1] / 2 + ordered[n // 2] / 2


def noise(values: Sequence[float]) -> float:
    """Return the standard deviation of the noise on a slow curve, from its first differences."""
    return _NORMAL * spread(values)


def spread(values: Sequence[float]) -> float:
    """Return the median |first difference|; 0 of fewer than two values."""
    return median(map(abs, map(sub, islice(values, 1, None), values))) if len(values) > 1 else 0.0


def thin(values: Sequence[float], most: int) -> list[float]:
    """Return at most that many block medians of a curve."""
    block = math.ceil(len(values) / most) or 1
    return list(values) if block == 1 else _block_medians(values, block)


def theil_sen(values: Sequence[float]) -> float:
    """Return the median slope per point, over all pairs of points; 0 of fewer than two."""
    pairs = ((values[j] - values[i]) / (j - i) for i in range(len(values)) for j in range(i + 1, len(values)))
    return median(pairs) if len(values) > 1 else 0.0


def excesses(curve: Curve, k: float, floor: float, *, logarithmic: bool) -> list[tuple[int, float]]:
    """Return the rows that rise by more than k times the spread above the rows before, and by how many times.

    The level is the median of the 8 values before, the spread the median |first difference| of the 32 before,
    at least `floor` (a fraction of the level, or of a logarithm). The first 8 values are not judged. From
    1000 rows on k grows by a quarter with each factor of 10: chance has more rows to choose from.
    """
    values = curve.values
    k *= 1.0 + 0.25 * max(0.0, math.log10(max(len(values), 1) / _MANY))
    found = []
    for i in _candidates(curve, k, floor, logarithmic=logarithmic):
        before, value = values[max(0, i - _SAMPLE) : i], values[i]
        if logarithmic:
            before, value = [*map(math.log, before)], math.log(value)
        level = median(before[-8:])
        scale = max(spread(before), floor if logarithmic else floor * abs(level))
        if scale > 0.0 and value - level > k * scale:
            found.append((i, (value - level) / scale))
    return found


def _candidates(curve: Curve, k: float, floor: float, *, logarithmic: bool) -> Sequence[int]:
    """Return the values worth a closer look: all of a short curve, those far above their block of a long one."""
    values, block = curve.values, curve.block
    if block == 1:
        return range(8, len(values))
    found: list[int] = []
    for point in range(1, len(curve.points)):
        start = point * block
        rows: Sequence[float] = values[start : start + _SAMPLE]
        level = min(curve.points[point], curve.points[point - 1])
        if logarithmic:
            bar = level * math.exp(_NEAR * k * max(spread([*map(math.log, rows)]), floor))
        else:
            bar = level + _NEAR * k * max(spread(rows), floor * abs(level))
        if max(values[start : start + block]) > bar:
            found += [i for i in range(start, min(start + block, len(values))) if values[i] > bar]
    return found if len(found) <= MOST_POINTS else sorted(sorted(found, key=lambda i: -values[i])[:MOST_POINTS])


def runs_of(rows: Sequence[int]) -> list[list[int]]:
    """Return the rows in stretches without a gap.

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
