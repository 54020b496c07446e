"""An axis: from values to places, and where its ticks are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

__all__ = ["Scale", "compact", "scale_of"]

_WIDE: Final = 100.0  # highest over lowest value from which an axis of positive values is logarithmic
_STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)
_INTEGERS: Final = (1.0, 2.0, 5.0, 10.0)
_THOUSAND, _MILLION = 1e3, 1e6
_LEAST: Final = 1e-300  # what is smaller stands at 0: a tenth of it is no normal number any more


class Scale(NamedTuple):
    """An axis from `low` to `high`, linear or logarithmic."""

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Return the place of a value: 0 at the low end, 1 at the high end; values beyond go to the ends."""
        low, high, at = (_log(x) if self.log else x for x in (self.low, self.high, value))
        return min(max((at - low) / (high - low), 0.0), 1.0)


def scale_of(
    values: Iterable[float],
    *,
    ticks: int = 5,
    log: bool | None = None,
    zero: bool = False,
    whole: bool = False,
    integers: bool = False,
) -> Scale:
    """Return the axis that holds all finite values.

    Args:
        values: those to be shown.
        ticks: about how many ticks.
        log: whether logarithmic; None: where all are positive and the highest is over 100 times the lowest.
        zero: whether a linear axis begins at 0 if no value is negative.
        whole: whether a linear axis begins and ends at a tick.
        integers: whether the ticks of a linear axis are integers, as steps and ranks are.
    """
    known = [v if abs(v) >= _LEAST else 0.0 for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if low > 0.0 and (log or (log is None and high / low > _WIDE)):
        return _logarithmic(low, high, ticks)
    if zero and low > 0.0:
        low = 0.0
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(high) / 10.0 or 1.0
        low, high = low - room, high + room
    width = (high - low) / max(ticks - 1, 1)
    step = _nice(max(width, 1.0), _INTEGERS) if integers else _nice(width, _STEPS)
    if whole:
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Scale(low, high, log=False, ticks=tuple(i * step for i in range(first, last + 1)))


def compact(value: float) -> str:
    """Return a number for a tick, in few characters.

    >>> compact(0.25), compact(20_000.0), compact(1.5e6), compact(0.0002), compact(0.0)
    ('0.25', '20k', '1.5M', '2e-4', '0')
    """
    size = abs(value)
    if _THOUSAND * 10 <= size < _MILLION:
        return f"{value / _THOUSAND:g}k"
    if _MILLION <= size < _MILLION * _THOUSAND:
        return f"{value / _MILLION:g}M"
    if 0.0 < size < 1.0 / _THOUSAND or size >= _MILLION * _THOUSAND:
        digits, power = f"{value:.3e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    return f"{value:.4g}"


def _log(value: float) -> float:
    return math.log10(value) if value > 0.0 else -math.inf


def _nice(width: float, steps: Sequence[float]) -> float:
    """Return the least of the steps times a power of ten that is not under the width."""
    unit = 10.0 ** math.floor(math.log10(max(width, _LEAST)))
    return next(unit * step for step in steps if unit * step >= width * (1.0 - 1e-9))


def _logarithmic(low: float, high: float, ticks: int) -> Scale:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, math.ceil((last - first) / ticks))
    marks = [10.0**power for power in range(first, last + 1, every) if power > -308]  # noqa: PLR2004  # normal floats
    few = sum(low <= mark <= high for mark in marks) < 2  # noqa: PLR2004  # one tick does not show a scale
    if few:
        marks = [m * 10.0**power for power in range(first, last + 1) for m in (1.0, 2.0, 5.0)]
    if high / low < 1.0 + 1e-9:
        low, high = low / 1.1, high * 1.1
    return Scale(low, high, log=True, ticks=tuple(mark for mark in marks if low <= mark <= high))
