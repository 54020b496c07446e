"""The ranges that options have, and their refusal: one wording for the command line and for Python.

A record's field also tells how the command line takes it, if otherwise than by its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, Self, TypeAlias, get_args, get_origin, get_type_hints

from cyclopts import Parameter

from gradience.errors import OptionError


class Range(NamedTuple):
    """Which numbers an option may be, and that in words."""

    holds: Callable[[float], bool]
    wanted: str


# int() raises for an infinity: `refuse_beyond` asks for a finite number before it asks a range.
COUNT: Final = Range(lambda x: x >= 1 and x == int(x), "a whole number from 1")
WHOLE: Final = Range(lambda x: x >= 0 and x == int(x), "a whole number from 0")
SHARE: Final = Range(lambda x: 0.0 < x <= 1.0, "above 0, at most 1")
POSITIVE: Final = Range(lambda x: x > 0.0, "above 0")

Count: TypeAlias = Annotated[int, COUNT]
Whole: TypeAlias = Annotated[int, WHOLE]
Share: TypeAlias = Annotated[float, SHARE]
Positive: TypeAlias = Annotated[float, POSITIVE]

LIBRARY_ONLY: Final = Parameter(parse=False)
"""A field of a record that the library takes and the command line does not."""
SELDOM: Final = Parameter(group="More options")
"""An option that few calls need: --help lists it in a group of its own, after the others."""
Seed: TypeAlias = Annotated[Whole, LIBRARY_ONLY]


@dataclass(frozen=True, kw_only=True)
class VerbOptions:
    """The options of a verb: each is a field with its type, its range, its default, and a sentence in the docstring."""

    def refuse_bad(self) -> None:
        """Refuse a field out of its range; a record whose fields are related refuses here what does not go together.

        Raises:
            OptionError: there is one.
        """
        refuse_beyond(self, **ranges_of(type(self)))

    def completed(self, keywords: Mapping[str, object]) -> Self:
        """Return the options with single ones replaced, where a path may be text; none of them is out of its range.

        Raises:
            OptionError: one is.
            TypeError: no option has such a name.
        """
        options = replace(self, **{name: _as_declared(type(self), name, value) for name, value in keywords.items()})
        options.refuse_bad()
        return options


def _as_declared(kind: type, field: str, value: object) -> object:
    return Path(value) if isinstance(value, str) and Path in get_args(get_type_hints(kind).get(field)) else value


def ranges_of(kind: type) -> dict[str, Range]:
    """The range of each bounded field; that of a base class holds where a subclass annotates the field anew."""
    hints = (get_type_hints(each, include_extras=True) for each in reversed(kind.__mro__))
    return {name: bounds for each in hints for name, hint in each.items() for bounds in _ranges_in(hint)}


def _ranges_in(hint: Any) -> Iterator[Range]:
    if get_origin(hint) is Annotated:
        yield from (each for each in hint.__metadata__ if isinstance(each, Range))
    for part in get_args(hint):
        yield from _ranges_in(part)


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
