"""Python, numpy and torch values as JSON values; what JSON does not have is refused by name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from enum import Enum
from math import isfinite
from typing import Any, Final, get_args

from gradience.errors import RecorderError
from gradience.schema.scalars import NonFinite, Real, real

_NAMES: Final = frozenset(get_args(NonFinite))
_DEEPEST: Final = 64
_ADVICE: Final = "record numbers, strings, booleans, and lists or mappings of them"


def number(value: Any, name: str) -> Real:
    """Return a number as it goes on the wire: of Python, numpy or torch, one element, or a non-finite one's name.

    Raises:
        RecorderError: it is no number.
    """
    if type(value) is float:
        return value if isfinite(value) else real(value)
    if type(value) is int or (isinstance(value, str) and value in _NAMES):
        return value  # type: ignore[return-value]  # an int is a Real, and so is a name
    item = _listed(value)
    while isinstance(item, list) and len(item) == 1:
        item = item[0]
    if isinstance(item, (bool, str, list)) or not hasattr(item, "__float__"):
        raise _refusal(name, "a number", value)
    try:
        return int(item) if isinstance(item, int) else real(float(item))
    except (TypeError, ValueError, OverflowError) as error:
        raise _refusal(name, "a number", value) from error


def rates(value: Any) -> Real | list[Real]:
    """Return a learning rate, or one per parameter group.

    Raises:
        RecorderError: it is neither a number nor numbers.
    """
    if type(value) is float:
        return value if isfinite(value) else real(value)
    listed = _listed(value)
    if isinstance(listed, Sequence) and not isinstance(listed, str):
        return [number(rate, f"lr[{i}]") for i, rate in enumerate(listed)]
    return number(listed, "lr")


def plain(value: Any, name: str, depth: int = 0) -> Any:
    """Return the value with non-finite floats named, numpy and torch values as Python's, and keys as text.

    Raises:
        RecorderError: something in it is no JSON value; the message names where.
    """
    kind = type(value)
    if kind is float:
        return value if isfinite(value) else real(value)
    if kind is int or kind is bool or value is None:
        return value
    if kind is str:
        return _text(value)
    if depth > _DEEPEST:
        raise RecorderError(f"`{name}` is nested more than {_DEEPEST} levels deep", advice=_ADVICE)
    if isinstance(value, Mapping):
        return {_text(str(k)): plain(v, f"{name}.{k}" if name else str(k), depth + 1) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=str)
    if isinstance(value, (list, tuple)):
        return [plain(v, f"{name}[{i}]", depth + 1) for i, v in enumerate(value)]
    return _converted(value, name, depth)


def _converted(value: Any, name: str, depth: int) -> Any:
    if isinstance(value, Enum):
        return plain(value.value, name, depth + 1)
    if isinstance(value, str):
        return _text(str(value))
    if isinstance(value, os.PathLike):
        return _text(str(value))
    listed = _listed(value)
    if listed is not value:
        return plain(listed, name, depth + 1)
    if isinstance(value, (int, float)) or hasattr(value, "__float__"):
        return number(value, name)
    raise _refusal(name, "a JSON value", value)


def _listed(value: Any) -> Any:
    """Return an array's or tensor's values as Python has them; anything else as it is."""
    tolist = getattr(value, "tolist", None)
    if not callable(tolist):
        return value
    try:
        return tolist()
    except (TypeError, ValueError, RuntimeError):  # a tensor without data, such as torch's on "meta"
        return value


def _text(text: str) -> str:
    """Return the text; half a surrogate pair, which UTF-8 does not have, becomes a question mark."""
    if text.isascii():
        return text
    return text.encode("utf-8", "replace").decode()


def _refusal(name: str, expected: str, value: Any) -> RecorderError:
    got = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return RecorderError(f"`{name}`: expected {expected}, got {got}", advice=_ADVICE)
