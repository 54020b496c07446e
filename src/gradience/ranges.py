"""The ranges that options have, and their refusal: one wording for the command line and for Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Final, NamedTuple

from gradience.errors import OptionError


class Range(NamedTuple):
    """Which numbers an option may be, and that in words."""

    holds: Callable[[float], bool]
    wanted: str


COUNT: Final = Range(lambda x: x >= 1 and x == int(x), "a whole number from 1")
WHOLE: Final = Range(lambda x: x >= 0 and x == int(x), "a whole number from 0")
SHARE: Final = Range(lambda x: 0.0 < x <= 1.0, "above 0, at most 1")
POSITIVE: Final = Range(lambda x: x > 0.0, "above 0")


def option_name(field: str) -> str:
    """The option of the command line that a record's field is.

    >>> option_name("max_mb")
    '--max-mb'
    """
    return "--" + field.replace("_", "-")


def refuse_beyond(options: object, **ranges: Range) -> None:
    """Refuse a record of which a field is out of its range; None is in each.

    Raises:
        OptionError: a field is no finite number, or beyond its range.
    """
    for field, (holds, wanted) in ranges.items():
        value = getattr(options, field)
        if value is None:
            continue
        if not isinstance(value, Real):  # NumPy's numbers are real ones too
            raise OptionError(f"{option_name(field)} is {value!r}, expected {wanted}")
        if not _is_finite(value):
            raise OptionError(f"{option_name(field)} is {value!s:.40}, expected a finite number")
        if not holds(float(value)):
            raise OptionError(f"{option_name(field)} is {value}, expected {wanted}")


def _is_finite(value: Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond float64
        return False
