"""Values as other loggers write them, to values as events have them: total functions, for nothing here is trusted."""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import Final

from gradience.configs.values import printable
from gradience.schema.scalars import MAX_INT, Json, Real, real

__all__ = ["clock_of", "count_of", "json_value", "number_of", "step_of"]

MAX_DEPTH: Final = 8  # levels of a logged value: rows are flat
MAX_VALUES: Final = 64  # of a list that a row may carry in full

_NUMBER: Final = re.compile(r"\s*[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|nan|inf(?:inity)?)\s*", re.IGNORECASE)
_STEP: Final = re.compile(r"\s*(\d{1,16})(?:\.0+)?\s*")
_SECONDS: Final = (1e9, 1e10)  # Unix time of 2001 to 2286: what else a column called `timestamp` holds is no clock
_MAX_BITS: Final = 200
_MAX_TEXT: Final = 64  # characters of a number


def number_of(value: Json) -> Real | None:
    """Return a number as it goes on the wire, also one written as text; None for anything else.

    >>> number_of("4.16"), number_of(float("nan")), number_of("4 apples"), number_of(True)
    (4.16, 'NaN', None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and (len(value) > _MAX_TEXT or not _NUMBER.fullmatch(value)):
        return None
    try:
        return real(float(value))
    except OverflowError:
        return None


def step_of(value: Json) -> int | None:
    """Return an optimizer step: a whole number, not negative; None for anything else.

    >>> step_of(12), step_of(12.0), step_of("12"), step_of(-1), step_of(1.5), step_of(True)
    (12, 12, 12, None, None, None)
    """
    if isinstance(value, str):
        hit = _STEP.fullmatch(value)
        value = int(hit[1]) if hit else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= MAX_INT else None


def count_of(value: Json) -> int | None:
    """Return a positive whole number, such as a planned number of steps; None for anything else."""
    return step_of(value) or None


def clock_of(value: Json) -> float | None:
    """Return Unix seconds of a clock reading, or None: of text without a time zone, too, for that is no clock.

    >>> clock_of(1700000000.5), clock_of(1700000000500), clock_of("2023-11-14T22:13:20+00:00"), clock_of(12.5)
    (1700000000.5, 1700000000.5, 1700000000.0, None)
    """
    number = number_of(value)
    if isinstance(number, float):
        low, high = _SECONDS
        if low <= number < high:
            return number
        return number / 1000 if low <= number / 1000 < high else None
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        return None
    try:
        moment = datetime.fromisoformat(value.strip())
        return moment.timestamp() if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def json_value(value: Json, depth: int = 0) -> Json:
    """Return a value as an event may carry it: non-finite numbers by name, large or deep things by their size."""
    if isinstance(value, dict | list):
        return _nested(value, depth)
    if isinstance(value, float):
        return value if math.isfinite(value) else real(value)
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, int) and abs(value) > MAX_INT:
        return str(value) if value.bit_length() < _MAX_BITS else "<a huge number>"
    return value


def _nested(value: dict[str, Json] | list[Json], depth: int) -> Json:
    if depth >= MAX_DEPTH or len(value) > MAX_VALUES:
        return f"<{len(value)} values>"
    if isinstance(value, dict):
        return {printable(key): json_value(item, depth + 1) for key, item in value.items()}
    return [json_value(item, depth + 1) for item in value]
