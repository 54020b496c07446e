"""A vertical axis: from where to where, and whether it is logarithmic; the words of its ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, NamedTuple

from matplotlib.ticker import Locator, LogLocator, MaxNLocator

from gradience.report.plot import Plot

__all__ = ["Axis", "axis_of", "compact", "linear_ticks", "y_axis"]

_WIDE: Final = 100.0  # highest over lowest value from which an axis of positive values is logarithmic
_THOUSAND, _MILLION = 1e3, 1e6
_LEAST: Final = 1e-290  # what is smaller stands at 0: matplotlib treats a shorter axis as one of no length
_TICKS: Final = 5


class Axis(NamedTuple):
    """An axis from `low` to `high`, linear or logarithmic."""

    low: float
    high: float
    log: bool

    @property
    def ticks(self) -> Locator:
        """Where its ticks are."""
        if not self.log:
            return linear_ticks(_TICKS)
        decades = math.floor(math.log10(self.high)) - math.ceil(math.log10(self.low))
        return LogLocator(subs=(1.0,) if decades >= 1 else (1.0, 2.0, 5.0), numticks=_TICKS + 1)


def linear_ticks(most: int, *, integer: bool = False) -> MaxNLocator:
    """Return ticks for at most so many steps of a linear axis; integers, as steps and ranks are."""
    return MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], integer=integer, min_n_ticks=1)


def y_axis(plot: Plot) -> Axis:
    """Return the vertical axis of a plot."""
    ends = (end for line in plot.lines for end in (line.data.low, line.data.high))
    values = [float(v) for column in ends for v in column] if plot.span is None else list(plot.span)
    return axis_of(values, log=plot.log, zero=plot.zero)


def axis_of(values: Iterable[float], *, log: bool | None = None, zero: bool = False) -> Axis:
    """Return the axis that holds all finite values; a linear one begins and ends at a tick.

    Args:
        values: those to be shown.
        log: whether logarithmic; None: where all are positive and the highest is over 100 times the lowest.
        zero: whether a linear axis begins at 0 if no value is negative.
    """
    known = [v if abs(v) >= _LEAST else 0.0 for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if low > 0.0 and (log or (log is None and high / low > _WIDE)):
        flat = high / low < 1.0 + 1e-9
        return Axis(low / 1.1, high * 1.1, log=True) if flat else Axis(low, high, log=True)
    if zero and low > 0.0:
        low = 0.0
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(high) / 10.0 or 1.0
        low, high = low - room, high + room
    ticks = linear_ticks(_TICKS).tick_values(low, high)
    return Axis(min(low, float(ticks[0])), max(high, float(ticks[-1])), log=False)


def compact(value: float, _place: int | None = None) -> str:
    """Return a number for a tick, in few characters; the second argument is matplotlib's and not used.

    >>> compact(0.25), compact(20_000.0), compact(1.5e6), compact(0.0002), compact(0.0)
    ('0.25', '20k', '1.5M', '2e-4', '0')
    """
    size = abs(value)
    if not math.isfinite(size):  # beyond the largest number, and beyond the axis
        return ""
    if _THOUSAND * 10 <= size < _MILLION:
        return f"{value / _THOUSAND:g}k"
    if _MILLION <= size < _MILLION * _THOUSAND:
        return f"{value / _MILLION:g}M"
    if 0.0 < size < 1.0 / _THOUSAND or size >= _MILLION * _THOUSAND:
        digits, power = f"{value:.3e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    return f"{value:.4g}"
