"""Plain values to typed ones. Each reader says, in its error, what it expected."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TypeVar, get_args

from gradience.schema.scalars import Json, NonFinite, TaskProfile
from gradience.schema.scalars import real as on_the_wire

__all__ = [
    "MAX_DEPTH",
    "MAX_TEXT",
    "Malformed",
    "as_text",
    "flag",
    "keyword",
    "layer_numbers",
    "layer_ranges",
    "name_list",
    "names",
    "pattern",
    "plain",
    "profile",
    "real",
    "reals",
    "short_name",
    "strategy",
    "text",
    "token_indices",
    "upper",
    "whole",
]

MAX_DEPTH = 64  # levels of nesting: a configuration has two or three
MAX_TEXT = 256  # characters: longer strings are redacted in a log, and refused here
MAX_REGEX = 8192  # characters: a generated `target_modules` expression can be long
MAX_SHOWN = 40  # characters of a value quoted in an error
MAX_INT = 2**63  # what JSON readers of our reports can hold

T = TypeVar("T")

_ENUM = re.compile(r"[A-Z][A-Za-z0-9]*\.(\w+)")  # `OptimizerNames.ADAMW_TORCH`, as str() writes an enum
_NO = {"false", "no", "off", "0"}
_YES = {"true", "yes", "on", "1"}


class Malformed(ValueError):  # noqa: N818  # says what the text is
    """A text is not a usable document, or a value is not what its key wants: the message says which."""


def plain(value: Json) -> str:
    """Describe a value for an error: its kind, and itself if short.

    >>> plain("abc"), plain(None), plain([1])
    ("the text 'abc'", 'null', 'a list')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    shown = ascii(value) if isinstance(value, str) else _digits(value)
    shown = shown if len(shown) <= MAX_SHOWN else f"{shown[: MAX_SHOWN - 3]}..."
    return f"the text {shown}" if isinstance(value, str) else f"the number {shown}"


def _digits(value: float) -> str:
    big = isinstance(value, int) and abs(value) >= MAX_INT
    return "of more than 18 digits" if big else repr(value)


def real(value: Json) -> float | NonFinite:
    """Return a number, also where it is written as text (YAML 1.1 reads `1e-4` as text)."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Malformed("a number")
    try:
        return on_the_wire(float(value))
    except OverflowError:
        return on_the_wire(math.inf if int(value) > 0 else -math.inf)
    except ValueError:
        raise Malformed("a number") from None


def whole(value: Json) -> int:
    """Return a whole number; 8.0 and "8" are 8, and 8.5 is refused."""
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        read = real(value)
        if isinstance(read, str) or not read.is_integer():
            raise Malformed("a whole number")
        number = int(read)
    if abs(number) >= MAX_INT:
        raise Malformed("a whole number of at most 18 digits")
    return number


def text(value: Json) -> str:
    """Return a short text."""
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise Malformed(f"a text of at most {MAX_TEXT} characters")
    return printable(value)


def printable(value: str) -> str:
    """Return the text without lone surrogates, which JSON can spell and UTF-8 cannot."""
    return value.encode("utf-8", "replace").decode("utf-8")


def keyword(value: Json) -> str:
    """Return a name from a fixed choice, in lower case, without the name of its Python enum."""
    found = text(value)
    match = _ENUM.fullmatch(found)
    return (match[1] if match else found).lower()


def upper(value: Json) -> str:
    """Return a name from a fixed choice, as PEFT writes them: in upper case."""
    return keyword(value).upper()


def strategy(value: Json) -> str:
    """Return when something happens: `no`, `steps`, `epoch`. YAML 1.1 reads a bare `no` as false."""
    return "no" if value is False else keyword(value)


def flag(value: Json) -> bool:
    """Return a yes or no, also as 0 and 1 or as text."""
    word = str(value).lower() if isinstance(value, bool | int | str) else ""
    if word in _YES | _NO:
        return word in _YES
    raise Malformed("true or false")


def as_text(value: Json) -> str:
    """Return a value that is true, false or a name, as text (PEFT's `init_lora_weights`)."""
    return str(value).lower() if isinstance(value, bool) else text(value)


def short_name(value: Json) -> str:
    r"""Return a hub id as it is, and only the last part of a path: a log must not tell where things lie.

    >>> short_name("org/model"), short_name("/home/me/model/"), short_name("C:\\models\\m")
    ('org/model', 'model', 'm')
    """
    found = text(value)
    parts = [part for part in re.split(r"[/\\]", found) if part]
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", found) is not None
    return found if is_hub_id or not parts else parts[-1]


def names(value: Json) -> list[str] | str:
    """Return a list of module names, or one expression."""
    if isinstance(value, str) and len(value) <= MAX_REGEX:
        return printable(value)
    if isinstance(value, list):
        return [text(item) for item in value]
    raise Malformed("a list of names, or one text")


def name_list(value: Json) -> list[str]:
    """Return a list of names; one name is a list of one."""
    found = names(value)
    return [found] if isinstance(found, str) else found


def reals(value: Json) -> list[float | NonFinite]:
    """Return a list of numbers."""
    if not isinstance(value, list):
        raise Malformed("a list of numbers")
    return [real(item) for item in value]


def wholes(value: Json) -> list[int]:
    """Return a list of whole numbers."""
    if not isinstance(value, list):
        raise Malformed("a list of whole numbers")
    return [whole(item) for item in value]


def layer_numbers(value: Json) -> list[int]:
    """Return PEFT's `layers_to_transform` as a list; one number is a list of one."""
    return wholes(value) if isinstance(value, list) else [whole(value)]


def token_indices(value: Json) -> list[int] | dict[str, list[int]]:
    """Return PEFT's `trainable_token_indices`: token ids, of the input embedding or by layer."""
    if isinstance(value, dict):
        return {printable(key): wholes(item) for key, item in value.items()}
    return wholes(value)


def layer_ranges(value: Json) -> list[list[int]]:
    """Return PEFT's `layer_replication`: ranges of layers."""
    if not isinstance(value, list):
        raise Malformed("a list of pairs of whole numbers")
    return [wholes(item) for item in value]


def pattern(read: Callable[[Json], T]) -> Callable[[Json], dict[str, T]]:
    """Return a reader of PEFT's `rank_pattern` and `alpha_pattern`: module pattern to number."""

    def read_pattern(value: Json) -> dict[str, T]:
        if not isinstance(value, dict):
            raise Malformed("a mapping of module patterns to numbers")
        return {printable(key): read(item) for key, item in value.items()}

    return read_pattern


def profile(value: Json) -> TaskProfile:
    """Return one of the task profiles."""
    choices = get_args(TaskProfile)
    for choice in choices:
        if choice == value:
            found: TaskProfile = choice
            return found
    raise Malformed(f"one of {', '.join(choices)}")
