"""Robust statistics of a series of numbers: level, noise, trend and spikes. Standard library only.

Every estimate works from two or three values up and comes with the least effect that it could have shown. A detector
that abstains can therefore name that effect. Functions that compare all pairs take at most `FEW_POINTS` values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import compress, islice, pairwise
from operator import gt, lt, sub
from statistics import NormalDist
from typing import Final, NamedTuple

FEW_POINTS: Final = 128  # 8128 pairs
MEDIAN_ERROR: Final = 1.2533  # standard error of a median over that of a mean, of normal values: sqrt(pi / 2)
NORMAL_95: Final = 1.645  # standard deviations, one-sided 95 %
# For normal noise: standard deviation divided by the median, or by the mean, of absolute second differences.
OF_MEDIAN: Final = 0.6053  # 1 / (0.6745 sqrt 6)
OF_MEAN: Final = 0.5117  # 1 / (0.7979 sqrt 6)
_FEW_DIFFERENCES: Final = 6  # with fewer, the median of the differences scatters more than their mean
_LARGEST: Final = 1e100
_EXACT: Final = 40  # rows up to which the exact distribution of inversions is counted
POWER: Final = 2.326 + 0.842  # normal quantiles: one-sided test at 1 %, power of 80 %
_CURVED: Final = 9  # rows from which a fall with the logarithm of the row is tested too
_LEAST_FALL: Final = 0.02  # no fall under this fraction is called one, however little noise there is


def bounded(values: Sequence[float]) -> Sequence[float]:
    """The values with magnitudes clipped to [1e-100, 1e100], so that their squares stay finite; zeros stay 0."""
    if not values or (max(values) <= _LARGEST and min(values) >= 1.0 / _LARGEST):
        return values
    return [
        math.copysign(min(max(abs(value), 1.0 / _LARGEST), _LARGEST), value) if value else value for value in values
    ]


def median(values: Iterable[float]) -> float:
    """The median; NaN if there are no values."""
    ordered = sorted(values)
    n = len(ordered)
    if not n:
        return math.nan
    # Halved before they are added: the sum of two of the largest floats is infinite
    return ordered[n // 2] if n % 2 else ordered[n // 2 - 1] / 2 + ordered[n // 2] / 2


def median_error(noise: float, *counts: float) -> float:
    """Standard error of a median of `count` noisy values; with several counts, of the difference of their medians."""
    return MEDIAN_ERROR * noise * math.sqrt(sum(1.0 / count for count in counts))


def mean(values: Sequence[float]) -> float:
    """The mean of one value or more, also where their sum is beyond the largest float."""
    try:
        return math.fsum(values) / len(values)
    except OverflowError:
        return math.fsum(value / len(values) for value in values)


def mean_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error, which is infinite for a single value."""
    values = bounded(values)
    mean = math.fsum(values) / len(values)
    if len(values) < 2:  # one value does not scatter
        return mean, math.inf
    squares = math.fsum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(squares / (len(values) - 1) / len(values))


def spread(values: Sequence[float]) -> float:
    """The median absolute first difference; 0 for fewer than two values."""
    return median(map(abs, map(sub, islice(values, 1, None), values))) if len(values) > 1 else 0.0


def noise(values: Sequence[float], *, few: int = _FEW_DIFFERENCES) -> float:
    """The standard deviation of the noise on a smooth curve, estimated from second differences.

    Second differences of a straight slope are 0, so a slope does not count as noise. If there are fewer than `few`
    differences, their mean is used instead of their median. Three values show noise only if they turn; two show none.
    """
    if len(values) < 3:
        return 0.0
    values = bounded(values)
    first = [b - a for a, b in pairwise(values)]
    if len(values) == 3:
        return abs(values[-1] - values[0]) / 2 if first[0] * first[1] < 0 else 0.0
    second = [abs(b - a) for a, b in pairwise(first)]
    return OF_MEAN * math.fsum(second) / len(second) if len(second) < few else OF_MEDIAN * median(second)


_PARTS: Final = 5  # parts of a series that have a slope of their own
_MOST_ALIKE: Final = 0.7  # highest correlation of neighbours that is believed: few rows measure it badly


def levels_error(values: Sequence[float], rows: int) -> float:
    """Standard error of the difference of two medians of so many rows, each of which may resemble the one before.

    In AR(1) noise of correlation r, successive first differences have the correlation -(1 - r) / 2, second differences
    the variance 2 (1 - r) (3 - r) of a row's (6 of independent rows), and a mean of m rows the variance of a row times
    ((1 + r) / (1 - r) - 2 r (1 - r^m) / (m (1 - r)^2)) / m. Of r, as much as chance explains is taken off.
    """
    chance = 1.0 / math.sqrt(max(1, len(values)))  # few independent rows seem to be so much alike
    r = min(max(0.0, _alike(bounded(values)) - chance), _MOST_ALIKE)
    lasting = (1.0 + r) / (1.0 - r) - 2.0 * r * (1.0 - r**rows) / (rows * (1.0 - r) ** 2)
    return median_error(noise(values), rows, rows) * math.sqrt(3.0 / ((1.0 - r) * (3.0 - r)) * lasting)


def _alike(values: Sequence[float]) -> float:
    """The correlation of neighbours by that of their differences, less the slope of each part; 0 of few rows."""
    moves = [b - a for a, b in pairwise(values)]
    part = len(moves) // _PARTS
    if part < 2:
        return 0.0
    slopes = [mean(moves[at : at + part]) for at in range(0, part * _PARTS, part)]
    moves = [move - slopes[min(at // part, _PARTS - 1)] for at, move in enumerate(moves)]
    squares = math.fsum(move * move for move in moves)
    both = math.fsum(a * b for a, b in pairwise(moves))
    return 1.0 + 2.0 * both / squares if squares > 0.0 else 0.0


class Slope(NamedTuple):
    """Theil-Sen slope per value (median over all pairs) and its one-sided 95 % bounds (Sen 1968)."""

    slope: float
    low: float
    high: float


def theil_sen(values: Sequence[float]) -> Slope:
    """The Theil-Sen slope of a series; for fewer than two values the slope is 0 and the bounds are infinite."""
    n = len(values)
    slopes = sorted((b - a) / apart for apart in range(1, n) for a, b in zip(values, values[apart:], strict=False))
    if not slopes:
        return Slope(0.0, -math.inf, math.inf)
    # The normal quantile times the deviation of Kendall's statistic: the ranks between the bounds
    half = NORMAL_95 * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low, high = int((len(slopes) - half) // 2), math.ceil((len(slopes) + half) / 2)
    return Slope(
        median(slopes), slopes[low] if low >= 0 else -math.inf, slopes[high] if high < len(slopes) else math.inf
    )


def mann_kendall(values: Sequence[float]) -> float:
    """One-sided p of a Mann-Kendall test for a fall: exact up to 40 values without ties, else approximately normal."""
    n = len(values)
    falls = sum(_falls(values, values[apart:]) for apart in range(1, n))
    counts: dict[float, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    if n <= _EXACT and len(counts) == n:
        falling_pairs = (falls + n * (n - 1) // 2) // 2
        return sum(_inversions(n)[falling_pairs:]) / math.factorial(n)
    ties = sum(k * (k - 1) * (2 * k + 5) for k in counts.values())
    variance = (n * (n - 1) * (2 * n + 5) - ties) / 18
    # Continuity correction: the statistic moves in steps of 2, and half a step is taken off
    return _upper_tail((falls - (falls > 0)) / math.sqrt(variance)) if variance > 0 else 1.0


def _falls(values: Sequence[float], later: Sequence[float]) -> int:
    """Over pairs of a value and its later partner: the number that fall less the number that rise."""
    over: Iterable[bool] = map(gt, values, later)
    under: Iterable[bool] = map(lt, values, later)
    return sum(over) - sum(under)


@lru_cache(maxsize=_EXACT + 1)
def _inversions(n: int) -> tuple[int, ...]:
    """For each k, the number of orders of n values with k falling pairs (Mahonian numbers)."""
    row = [1]
    for m in range(2, n + 1):
        longer = [0] * (len(row) + m - 1)
        for k, count in enumerate(row):
            for j in range(k, k + m):
                longer[j] += count
        row = longer
    return tuple(row)


def falls_with_logarithm(values: Sequence[float]) -> float:
    """One-sided p that a positive series falls with the logarithm of the row: steep at first, as learning curves do.

    The test statistic is the correlation of ln(value) with -ln(row). By chance it is about normal with standard
    deviation 1 / sqrt(n - 1). Returns 1 for fewer than 9 values.
    """
    n = len(values)
    if n < _CURVED or min(values) <= 0.0:
        return 1.0
    logs, rows = [math.log(value) for value in values], [-math.log(row) for row in range(1, n + 1)]
    mean, middle = math.fsum(logs) / n, math.fsum(rows) / n
    spread_logs = math.fsum((x - mean) ** 2 for x in logs)
    if spread_logs <= 0.0:
        return 1.0
    both = math.fsum((x - mean) * (y - middle) for x, y in zip(logs, rows, strict=True))
    correlation = both / math.sqrt(spread_logs * math.fsum((y - middle) ** 2 for y in rows))
    return _upper_tail(correlation * math.sqrt(n - 1))


def moves(values: Sequence[float]) -> float:
    """Two-sided p that a positive series has a trend, linear or with the logarithm of the row."""
    one_sided = (
        mann_kendall(values),
        mann_kendall([-value for value in values]),
        falls_with_logarithm(values),
        falls_with_logarithm([1.0 / value for value in values]),
    )
    return min(1.0, 2 * 2 * min(one_sided))  # Bonferroni: two sides times two tests


def _upper_tail(z: float) -> float:
    return 1.0 - NormalDist().cdf(z)


class Trend(NamedTuple):
    """How a series falls from its first rows to its last fifth.

    Attributes:
        rows: number of values.
        start: level of the first rows. Under 20 rows, the higher of the first value and the median of the first three.
        end: median of the last fifth.
        fall: 1 - end / start.
        noise: standard deviation of one row, as a fraction of `end`.
        p: one-sided p of a falling order.
        least: the fall that 80 % of series with this noise would have shown at p = 1 %.
    """

    rows: int
    start: float
    end: float
    fall: float
    noise: float
    p: float
    least: float


def trend_of(values: Sequence[float]) -> Trend | None:
    """The trend of a series of at most `FEW_POINTS` values; None if fewer than two or if its median is not positive."""
    n = len(values)
    if n < 2 or median(values) <= 0.0:
        return None
    start, end = _start(values), median(values[-max(1, n // 5) :])
    relative = noise(values) / max(end, 1e-12)
    p = mann_kendall(values)
    if n >= _CURVED:
        # Bonferroni: the lower p of two tests
        p = min(1.0, 2 * min(p, falls_with_logarithm(values)))
    # The fall of a straight line over its n rows has a standard error of sqrt(12 / n) rows' noise. That is a share u of
    # the end, so u / (1 + u) of the start.
    unseen = POWER * relative * math.sqrt(12.0 / n)
    fall = 1.0 - end / start if start > 0.0 else 0.0
    return Trend(n, start, end, fall, relative, p, max(_LEAST_FALL, unseen / (1.0 + unseen)))


def _start(values: Sequence[float]) -> float:
    n = len(values)
    first = values[0] if n < 20 else median(values[: max(3, n // 20)])
    return max(first, median(values[:3])) if n >= 5 and first > 0.0 else first  # under 5 rows, 3 are most of the series


_SAW: Final = 0.9  # fraction of the values between two others that turn; of values in a random order 2 in 3 do


def without_saw(values: Sequence[float]) -> Sequence[float]:
    """The means of pairs of neighbours if the values alternate and the pairs suffice for a trend; else the values.

    Batches sorted by length (group_by_length) come as a block of long and a block of short examples in turn. A row of
    each block makes a saw, whose teeth are no noise.

    >>> without_saw([3.0, 1.0] * 9)[:3], without_saw([3.0, 1.0, 3.0])
    ([2.0, 2.0, 2.0], [3.0, 1.0, 3.0])
    """
    n = len(values)
    if n < 2 * _CURVED:
        return values
    turns = sum((b - a) * (c - b) < 0.0 for a, b, c in zip(values, values[1:], values[2:], strict=False))
    if turns < _SAW * (n - 2):
        return values
    # Of an odd number of rows the first is left out, and not the last
    return [a / 2 + b / 2 for a, b in zip(values[n % 2 :: 2], values[n % 2 + 1 :: 2], strict=True)]


MOST_POINTS: Final = 2048  # points that a detector loops over
_SAMPLE: Final = 33  # values sampled from a block for its median; rows of a block used for its spread
_BEFORE: Final = 8  # values before a row that give its level
_MANY: Final = 1000  # rows from which the bar for a spike grows with the number of rows
_NEAR: Final = 0.6  # fraction of the bar that a value must pass by its block to be judged by its own rows


class BlockedSeries(NamedTuple):
    """The finite values of a series, their rows in it, the median of each block of rows, and the lowest value."""

    values: Sequence[float]
    rows: Sequence[int]
    block: int
    points: Sequence[float]
    lowest: float  # NaN if there are no values; stored, because a pass over a million rows costs 10 ms

    def row(self, point: int) -> int:
        """The row of the series at which a point (a block) begins."""
        return self.rows[point * self.block]

    def outline(self, most: int) -> BlockedSeries:
        """The same curve reduced to at most `most` points."""
        block = _block(len(self.points), most)
        points = self.points if block == 1 else _block_medians(self.points, block)
        return self._replace(block=self.block * block, points=points)


def curve_of(values: Sequence[float]) -> BlockedSeries:
    """The curve of a series without its missing (NaN) and infinite values."""
    kept: Sequence[float] = values
    rows: Sequence[int] = range(len(values))
    if not all_finite(values):
        finite = list(map(math.isfinite, values))
        kept, rows = list(compress(values, finite)), list(compress(rows, finite))
    block = _block(len(kept), MOST_POINTS)
    points = bounded(kept if block == 1 else _block_medians(kept, block))
    return BlockedSeries(kept, rows, block, points, min(kept, default=math.nan))


def all_finite(values: Sequence[float]) -> bool:
    """Whether no value is NaN or infinite. If the sum is not finite, each value is checked, for the sum may overflow.

    >>> all_finite([1.0, 2.0]), all_finite([1.0, float("nan")]), all_finite([1e308, 1e308])
    (True, False, True)
    """
    return math.isfinite(sum(values)) or all(map(math.isfinite, values))


def thin(values: Sequence[float], most: int) -> list[float]:
    """The series reduced to at most `most` block medians."""
    block = _block(len(values), most)
    return list(values) if block == 1 else _block_medians(values, block)


def _block(rows: int, most: int) -> int:
    return math.ceil(rows / most) or 1


def _block_medians(values: Sequence[float], block: int) -> list[float]:
    """The median of each block; for a long block, the median of 33 to 65 values spread evenly over it."""
    stride = max(1, block // _SAMPLE)
    return [median(values[i : i + block : stride]) for i in range(0, len(values), block)]


class Bar(NamedTuple):
    """How far a row must rise above the rows before it to stand out.

    Attributes:
        k: multiple of the spread of the 32 rows before. From 1000 rows on it grows by a quarter per factor of 10,
            because more rows give chance more opportunities.
        floor: least spread, as a fraction of the level; if `logarithmic`, as a difference of logarithms.
        logarithmic: whether to compare logarithms of the values, which must be positive.
    """

    k: float
    floor: float
    logarithmic: bool


def excesses(curve: BlockedSeries, bar: Bar) -> list[tuple[int, float]]:
    """Return the values that stand out: index in `curve.values`, and height as a multiple of the spread.

    The first 8 are not judged.
    """
    k = _raised(curve, bar)
    judged = ((i, _excess(curve.values, i, bar, over=k)) for i in _candidates(curve, bar, k))
    return [(i, times) for i, times in judged if times > k]


def _raised(curve: BlockedSeries, bar: Bar) -> float:
    return bar.k * (1.0 + 0.25 * max(0.0, math.log10(max(len(curve.values), 1) / _MANY)))


def _excess(values: Sequence[float], place: int, bar: Bar, *, over: float = 0.0) -> float:
    """A value's height over the median of the 8 before it, in units of their spread; 0 if all are equal.

    Also 0 if the floor of the spread alone shows that the height is no more than `over`. Few rows stand out, so this
    saves computing most spreads, which are the expensive part.
    """
    before, value = values[max(0, place - _SAMPLE) : place], values[place]
    if bar.logarithmic:
        before, value = [*map(math.log, before)], math.log(value)
    level = median(before[-_BEFORE:])
    least = bar.floor if bar.logarithmic else bar.floor * abs(level)
    if least > 0.0 and (value - level) / least <= over:
        return 0.0
    scale = max(spread(before), least)
    return (value - level) / scale if scale > 0.0 else 0.0


def _candidates(curve: BlockedSeries, bar: Bar, k: float) -> Sequence[int]:
    """Indices worth a closer look: all of a short curve; in a long one, the values far above their block."""
    values, block = curve.values, curve.block
    if block == 1:
        return range(_BEFORE, len(values))
    high: list[int] = []
    for point in range(1, len(curve.points)):
        start = point * block
        rows: Sequence[float] = values[start : start + _SAMPLE]
        # A burst that fills its block is the block's own median; the block before it still has the level
        level = min(curve.points[point], curve.points[point - 1])
        if bar.logarithmic:
            rise = _NEAR * k * max(spread([*map(math.log, rows)]), bar.floor)
            height = level * math.exp(min(rise, _HIGHEST))
        else:
            height = level + _NEAR * k * max(spread(rows), bar.floor * abs(level))
        if max(values[start : start + block]) > height:
            high += [i for i in range(start, min(start + block, len(values))) if values[i] > height]
    return high if len(high) <= MOST_POINTS else sorted(sorted(high, key=lambda i: -values[i])[:MOST_POINTS])


_HIGHEST: Final = 700.0  # largest logarithm taken, because exp of much more overflows a float


def runs_of(rows: Sequence[int]) -> list[list[int]]:
    """Group rising numbers into runs of consecutive integers.

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
