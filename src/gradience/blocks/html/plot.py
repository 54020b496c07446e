"""The content of a figure, without how it is drawn: lines as envelopes of their rows, axes, marks and tick labels.

A column of a million rows becomes an envelope of a few hundred buckets that keeps every extreme. An axis spans all
finite values and begins and ends at a tick. It is logarithmic if positive values spread over a hundredfold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import Locator, LogLocator, MaxNLocator

from gradience.schema import Severity

BUCKETS: Final = 480  # at most: about two columns of pixels each at the widest plot

Floats = npt.NDArray[np.float64]

_LARGEST: Final = 1e300  # values are clipped to it: the range of two such numbers is still finite

_SMOOTHED: Final = 100  # a running median is drawn for at least so many values

_SPREAD: Final = 100.0  # an axis of positive values is logarithmic above this ratio of highest to lowest value
_LEAST: Final = 1e-290  # smaller values are drawn at 0: matplotlib treats a shorter axis as one of no length
_TICKS: Final = 5

_THOUSANDTH, _THOUSAND, _MILLION, _BILLION = 1e-3, 1e3, 1e6, 1e9


class Envelope(NamedTuple):
    """The lowest, median and highest finite value in each bucket of steps, and the steps of non-finite rows.

    The first four arrays are parallel, with one entry for each bucket that holds a finite row. If not `sampled`, every
    row is a bucket of its own, and lowest, median and highest are its value.
    """

    steps: Floats  # the middle of the bucket's steps
    low: Floats
    middle: Floats
    high: Floats
    lost: Floats  # one step for each bucket with a non-finite row
    broken: npt.NDArray[np.bool_]  # whether the line breaks before the bucket, because all rows between are not finite
    rows: int  # number of finite rows
    lost_rows: int
    sampled: bool

    @classmethod
    def of(cls, steps: npt.ArrayLike, low: Floats, middle: Floats, high: Floats, *, apart: bool, sampled: bool) -> Self:
        """Bands of finite values, one at each step: joined by a line, or separate if `apart`."""
        at = np.asarray(steps, np.float64)
        broken = np.full(len(at), apart)
        broken[:1] = False
        return cls(at, low, middle, high, np.empty(0), broken, rows=len(at), lost_rows=0, sampled=sampled)

    @property
    def per_bucket(self) -> int:
        """Rows in a bucket, on average."""
        return round((self.rows + self.lost_rows) / max(len(self.steps), 1))


def envelope(steps: npt.ArrayLike, values: npt.ArrayLike, *, buckets: int = BUCKETS) -> Envelope:
    """A column of values over its steps, in buckets of equal width in steps.

    Args:
        steps: the step of each row, in any order.
        values: the value of each row; NaN and infinities are counted and placed, never averaged.
        buckets: maximal number of buckets; rows share them only if there are more than two rows per bucket.
    """
    at, column = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    order = np.argsort(at, kind="stable")
    at, column = at[order], column[order]
    sampled = len(at) > 2 * buckets
    bucket = _bucket(at, buckets) if sampled else np.arange(len(at))
    finite = np.isfinite(column)
    own, kept = bucket[finite], np.clip(column[finite], -_LARGEST, _LARGEST)
    starts = np.flatnonzero(np.diff(own, prepend=-1))
    lost_at = np.flatnonzero(~finite)
    lost_at = lost_at[np.flatnonzero(np.diff(bucket[lost_at], prepend=-1))]
    return Envelope(
        steps=_centres(at[finite], starts),
        low=np.minimum.reduceat(kept, starts) if len(kept) else kept,
        middle=_medians(kept, starts) if sampled else kept,
        high=np.maximum.reduceat(kept, starts) if len(kept) else kept,
        lost=at[lost_at],
        broken=_broken(own[starts], bucket[lost_at]),
        rows=len(kept),
        lost_rows=int(len(column) - len(kept)),
        sampled=sampled,
    )


def _bucket(steps: Floats, buckets: int) -> npt.NDArray[np.int64]:
    first, last = steps[0], steps[-1]
    share = (steps - first) / max(last - first, 1.0)
    return np.asarray(np.minimum(share * buckets, buckets - 1), np.int64)


def _centres(steps: Floats, starts: npt.NDArray[np.int64]) -> Floats:
    ends = np.append(starts[1:], len(steps)) - 1
    return (steps[starts] + steps[ends]) / 2 if len(steps) else steps


def _medians(values: Floats, starts: npt.NDArray[np.int64]) -> Floats:
    return np.array([np.median(part) for part in np.split(values, starts[1:])]) if len(values) else values


def _broken(own: npt.NDArray[np.int64], lost: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """For each bucket, whether a bucket of only non-finite rows lies between it and the previous one."""
    alone = np.setdiff1d(lost, own)
    passed = np.searchsorted(alone, own)
    return np.asarray(np.diff(passed, prepend=passed[:1]) > 0)


def running_median(values: Floats, window: int) -> Floats:
    """The median of a window centred at each value; at both ends the window is cut.

    >>> running_median(np.array([1.0, 9.0, 2.0, 3.0, 3.0]), 3).tolist()
    [5.0, 2.0, 3.0, 3.0, 3.0]
    """
    padded = np.pad(values, window // 2, constant_values=math.nan)
    return np.asarray(np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, window), axis=1))


class PlotLine(NamedTuple):
    """One line of a plot."""

    label: str
    data: Envelope
    points: bool = False  # a dot at each value, for columns of few values
    smooth: bool = False  # a running median over the line, which is drawn faint

    @property
    def window(self) -> int:
        """Number of values in the running median's window, which is odd; 0 if no running median is drawn."""
        return len(self.data.middle) // 40 * 2 + 1 if self.smooth and len(self.data.middle) >= _SMOOTHED else 0


class Mark(NamedTuple):
    """A numbered finding at a step."""

    number: int
    step: float
    severity: Severity


class Plot(NamedTuple):
    """Lines over an axis of steps or ranks."""

    lines: Sequence[PlotLine]
    x_label: str
    y_label: str
    marks: Sequence[Mark] = ()
    log: bool | None = None  # None: by the spread of the values
    zero: bool = False  # whether a linear axis of positive values begins at 0
    span: tuple[float, float] | None = None  # vertical axis of a close-up; values beyond it are drawn at its ends


class Axis(NamedTuple):
    """An axis from `low` to `high`, linear or logarithmic."""

    low: float
    high: float
    log: bool

    @property
    def ticks(self) -> Locator:
        """The locator of the ticks; within one decade a logarithmic axis has ticks at 1, 2 and 5."""
        if not self.log:
            return linear_ticks(_TICKS)
        decades = math.floor(math.log10(self.high)) - math.ceil(math.log10(self.low))
        return LogLocator(subs=(1.0,) if decades >= 1 else (1.0, 2.0, 5.0), numticks=_TICKS + 1)


def linear_ticks(most: int, *, integer: bool = False) -> MaxNLocator:
    """A locator of ticks that split a linear axis into about `most` parts; integers for steps and ranks."""
    return MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], integer=integer, min_n_ticks=1)


def x_axis(plot: Plot) -> Axis:
    """The horizontal axis of a plot: from its first to its last step."""
    rows = [column for line in plot.lines for column in (line.data.steps, line.data.lost)]
    steps = np.concatenate([*rows, [mark.step for mark in plot.marks]])
    low, high = (float(steps.min()), float(steps.max())) if len(steps) else (0.0, 1.0)
    return Axis(low, high, log=False) if high > low else Axis(low - 1.0, high + 1.0, log=False)


def y_axis(plot: Plot) -> Axis:
    """The vertical axis of a plot: it spans all values, or the span of a close-up."""
    ends = (end for line in plot.lines for end in (line.data.low, line.data.high))
    values = [float(v) for column in ends for v in column] if plot.span is None else list(plot.span)
    return axis_of(values, log=plot.log, zero=plot.zero)


def axis_of(values: Iterable[float], *, log: bool | None = None, zero: bool = False) -> Axis:
    """The axis that spans all finite values; a linear one begins and ends at a tick.

    Args:
        values: the values to be shown.
        log: whether it is logarithmic; None: if all values are positive and the highest is over 100 times the lowest.
        zero: whether a linear axis begins at 0 if no value is negative.
    """
    known = [v if abs(v) >= _LEAST else 0.0 for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if low > 0.0 and (log or (log is None and high / low > _SPREAD)):
        flat = high / low < 1.0 + 1e-9
        return Axis(low / 1.1, high * 1.1, log=True) if flat else Axis(low, high, log=True)
    if zero and low > 0.0:
        low = 0.0
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(high) / 10.0 or 1.0
        low, high = low - room, high + room
    for _ in range(4):  # repeated, because a longer axis may have wider tick steps and so other ends
        ticks = linear_ticks(_TICKS).tick_values(low, high)
        low, high = min(low, float(ticks[0])), max(high, float(ticks[-1]))
    return Axis(low, high, log=False)


def compact(value: float, _position: int | None = None) -> str:
    """The label of a tick, in few characters; empty for infinity. matplotlib passes a second argument, which is unused.

    >>> compact(0.25), compact(20_000.0), compact(1.5e6), compact(0.0002), compact(0.0)
    ('0.25', '20k', '1.5M', '2e-4', '0')
    """
    size = abs(value)
    if not math.isfinite(size):  # matplotlib tries ticks a step beyond the axis, which can overflow
        return ""
    if _THOUSAND * 10 <= size < _MILLION:
        return f"{value / _THOUSAND:g}k"
    if _MILLION <= size < _BILLION:
        return f"{value / _MILLION:g}M"
    if 0.0 < size < _THOUSANDTH or size >= _BILLION:
        digits, power = f"{value:.3e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    return f"{value:.4g}"
