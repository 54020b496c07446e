"""Turn values of Python, NumPy and torch into JSON values. Recorder, callback and importers share this normaliser.

`plain` is exact: it refuses what JSON cannot hold and names the field, because the caller of the writer can correct it.
`described` refuses nothing and is bounded: whatever a trainer or another program logged, large or foreign values become
a description such as `<300 values>`. Both write non-finite numbers by name, because JSON has none.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from itertools import islice
from math import isfinite, prod
from typing import Any, Final, NamedTuple, TypeVar, get_args

import msgspec

from gradience.errors import RecorderError
from gradience.schema import MAX_INT, Json, NonFinite, Real, real

_NAMES: Final = frozenset(get_args(NonFinite))
_NUMBER: Final = re.compile(r"\s*[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|nan|inf(?:inity)?)\s*", re.IGNORECASE)
_WHOLE: Final = re.compile(r"\s*(\d{1,16})(?:\.0+)?\s*")
_MAX_TEXT: Final = 64  # most characters of a number written as text
_MAX_BITS: Final = 200  # most bits of an integer that `described` writes out
_ADVICE: Final = "record numbers, strings, booleans, and lists or mappings of them"

_T = TypeVar("_T")

MAX_VALUES: Final = 10_000  # most values in one event's lists and mappings: more do not fit a line of 64 KiB
MAX_ELEMENTS: Final = 4096  # most elements of one array or tensor; checked by its shape before values are fetched
_MAX_LEVELS: Final = 64
_WHOLE_BITS: Final = 4096  # most bits of an integer that `plain` writes: 1233 digits; the largest float has 309


class _Limits(NamedTuple):
    """How much of a value is kept. `items` None means that all of it is kept, or the value is refused."""

    depth: int  # levels below the value itself
    items: int | None  # most items of one list, mapping or array
    left: list[int] = []  # if `items` is None: how many more values may come, counted down


_BOUNDED: Final = _Limits(7, 64)  # enough for logged rows, which are flat


def plain(value: Any, name: str) -> Json:
    """Return the value as JSON: non-finite floats by name, NumPy and torch values as Python's, keys as text.

    Raises:
        RecorderError: something in it is not a JSON value; the message names its place.
    """
    return _plain(value, name, _Limits(_MAX_LEVELS, None, [MAX_VALUES]), 0)


def described(value: Any) -> Json:
    """Return the value as `plain` does, but shortened to 64 items per list, mapping or array, and 8 levels.

    >>> described({"per_head": [1.0, float("nan")], "all": list(range(300)), "thing": object()})
    {'per_head': [1.0, 'NaN'], 'all': '<300 values>', 'thing': '<object>'}
    """
    if (type(value) is float and isfinite(value)) or (type(value) is str and value.isascii()):  # most values
        return value
    try:
        return _plain(value, "", _BOUNDED, 0)
    except RecorderError:  # an object has __float__ but gives no number
        return f"<{type(value).__name__}>"


def number(value: Any, name: str) -> Real:
    """Return a number of Python, NumPy or torch as JSON: one element of an array, or a non-finite number's name.

    Raises:
        RecorderError: the value is not a number.
    """
    if type(value) is float:
        return value if isfinite(value) else real(value)
    if type(value) is int and value.bit_length() <= _WHOLE_BITS:
        return value
    if isinstance(value, str) and value in _NAMES:
        return value  # type: ignore[return-value]  # a name is a Real
    item = _only(_listed(value))
    if isinstance(item, (bool, str, list)) or not hasattr(item, "__float__"):
        raise _refusal(name, "a number", value)
    try:
        return int(item) if isinstance(item, int) and item.bit_length() <= _WHOLE_BITS else real(float(item))
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # RuntimeError: an array whose data is gone
        raise _refusal(name, "a number", value) from error


def rates(value: Any) -> Real | list[Real]:
    """Return a learning rate, or one per parameter group.

    Raises:
        RecorderError: the value is neither a number nor a list of numbers.
    """
    if type(value) is float:
        return value if isfinite(value) else real(value)
    listed = _listed(value)
    if isinstance(listed, Sequence) and not isinstance(listed, str):
        items = list(islice(listed, MAX_ELEMENTS + 1))
        if len(items) > MAX_ELEMENTS:
            raise _refusal("lr", f"at most {MAX_ELEMENTS} values", value)
        return [number(rate, f"lr[{i}]") for i, rate in enumerate(items)]
    return number(listed, "lr")


def number_of(value: Json) -> Real | None:
    """Return a JSON value as a number, or None. Numbers written as text count, because some trainers log them so.

    >>> number_of("4.16"), number_of(float("nan")), number_of("4 apples"), number_of(True)
    (4.16, 'NaN', None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and (len(value) > _MAX_TEXT or not _NUMBER.fullmatch(value)):
        return None
    try:
        return real(float(value.strip() if isinstance(value, str) else value))  # float strips less than a pattern's \s
    except OverflowError:
        return None


def finite_of(value: Json) -> float | None:
    """Return a JSON value, or a number written as text, as a finite float; None for anything else.

    >>> finite_of(3), finite_of("4.5"), finite_of(float("inf")), finite_of("nan"), finite_of(10**400), finite_of([1])
    (3.0, 4.5, None, None, None, None)
    """
    number = number_of(value)
    return None if number is None or isinstance(number, str) else float(number)


def rounded_of(value: Json) -> int | None:
    """Return the whole number nearest to a JSON number, if it is one from 0 that JSON holds exactly; else None.

    >>> rounded_of(2.6), rounded_of("12"), rounded_of(1e300), rounded_of(float("nan")), rounded_of(-1)
    (3, 12, None, None, None)
    """
    number = finite_of(value)
    return None if number is None or not 0.0 <= number <= MAX_INT else round(number)


def step_of(value: Json) -> int | None:
    """Return a JSON value as an optimizer step or another count, a whole number from 0; None for anything else.

    >>> step_of(12), step_of(12.0), step_of("12"), step_of(-1), step_of(1.5), step_of(True)
    (12, 12, 12, None, None, None)
    """
    if isinstance(value, str):
        hit = _WHOLE.fullmatch(value)
        value = int(hit[1]) if hit else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= MAX_INT else None


def _plain(value: Any, name: str, limits: _Limits, depth: int) -> Json:
    kind = type(value)
    if kind is float:
        return value if isfinite(value) else real(value)
    if kind is int:
        if limits.items is None and value.bit_length() > _WHOLE_BITS:
            raise _refusal(name, f"an integer of at most {_WHOLE_BITS} bits", value)
        return value if limits.items is None or -MAX_INT <= value <= MAX_INT else _huge(value)
    if kind is bool or value is None:
        return value
    if kind is str:
        return _text(value)
    if isinstance(value, (Mapping, set, frozenset, list, tuple)):
        return _nested(value, name, limits, depth)
    return _converted(value, name, limits, depth)


def _nested(value: Any, name: str, limits: _Limits, depth: int) -> Json:
    if limits.items is None:
        if depth > limits.depth:
            raise RecorderError(f"`{name}` is nested more than {limits.depth} levels deep", advice=_ADVICE)
    elif depth > limits.depth or len(value) > limits.items:
        return f"<{len(value)} values>"
    if isinstance(value, Mapping):
        inner = f"{name}." if name else ""
        pairs = _within(value.items(), name, limits)
        return {_text(str(k)): _plain(v, f"{inner}{k}", limits, depth + 1) for k, v in pairs}
    if isinstance(value, (set, frozenset)):
        # A set of texts has another order in every process.
        value = sorted(_within(value, name, limits), key=str)
        return [_plain(v, f"{name}[{i}]", limits, depth + 1) for i, v in enumerate(value)]
    return [_plain(v, f"{name}[{i}]", limits, depth + 1) for i, v in enumerate(_within(value, name, limits))]


def _within(items: Iterable[_T], name: str, limits: _Limits) -> list[_T]:
    """Return the items as a list and count them. A foreign mapping may yield items without end.

    Counting also stops a list that contains itself twice, which would have 2^64 values within 64 levels.

    Raises:
        RecorderError: there are more items than one event may have.
    """
    most = limits.items if limits.items is not None else limits.left[0]
    taken = list(islice(items, most + 1))
    if len(taken) > most:
        raise RecorderError(f"`{name}` holds more values than the {MAX_VALUES} of one event", advice=_ADVICE)
    if limits.items is None:
        limits.left[0] -= len(taken)
    return taken


def _converted(value: Any, name: str, limits: _Limits, depth: int) -> Json:
    if depth > _MAX_LEVELS:  # what it turns into turns into another, as a mock does without end
        raise RecorderError(f"`{name}` is nested more than {_MAX_LEVELS} levels deep", advice=_ADVICE)
    if isinstance(value, (msgspec.Struct, Enum)):  # checked before str, because transformers' enums are both
        inner = value.value if isinstance(value, Enum) else msgspec.to_builtins(value)
        return _plain(inner, name, limits, depth + 1)
    if isinstance(value, (str, os.PathLike)):
        return _text(str(value))
    shape = getattr(value, "shape", None)
    if limits.items is not None and isinstance(shape, tuple) and prod(shape) > limits.items:
        return f"<array of shape {list(shape)}>"  # without `tolist`, which would fetch it from the device
    if limits.items is None and _is_large(value):
        raise _refusal(name, f"at most {MAX_ELEMENTS} values", value)
    listed = _listed(value)
    if limits.items is not None:
        listed = _only(listed)
    if listed is not value:
        return _plain(listed, name, limits, depth + 1)
    if isinstance(value, (int, float)) or hasattr(value, "__float__"):
        return number(value, name)
    if limits.items is not None:
        return f"<{type(value).__name__}>"
    raise _refusal(name, "a JSON value", value)


def _listed(value: Any) -> Any:
    """Return an array's or tensor's values as Python lists and numbers; any other value unchanged."""
    tolist = getattr(value, "tolist", None)
    if not callable(tolist) or _is_large(value):
        return value
    try:
        return tolist()
    except (TypeError, ValueError, RuntimeError):  # a tensor without data, such as torch's on "meta"
        return value


def _only(item: Any) -> Any:
    """Return what lists of one item hold within each other; a list that holds itself ends with the levels."""
    for _ in range(_MAX_LEVELS):
        if not (isinstance(item, list) and len(item) == 1):
            break
        item = item[0]
    return item


def _is_large(value: Any) -> bool:
    """Whether an array or tensor has more values than an event may hold, judged by its shape alone."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        return prod(shape) > MAX_ELEMENTS
    return isinstance(value, array) and len(value) > MAX_ELEMENTS


def _huge(value: int) -> str:
    """Return an integer as text, because not every JSON reader keeps such large ones."""
    return str(value) if value.bit_length() < _MAX_BITS else "<a huge number>"


def _text(text: str) -> str:
    """Return the text with lone surrogates, which UTF-8 cannot hold, replaced by question marks."""
    if text.isascii():
        return text
    return text.encode("utf-8", "replace").decode()


def _refusal(name: str, expected: str, value: Any) -> RecorderError:
    got = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return RecorderError(f"`{name}`: expected {expected}, got {got}", advice=_ADVICE)
