"""The types of logs and reports, with units. The package needs msgspec only.

This module defines the numbers and identifiers that every Struct shares. It also finds each type of the other modules
by its name; `gradience.events` has those of a log.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any, Final, Literal, TypeAlias, overload

from msgspec import Meta

_HOMES: Final = ("events", "document", "reports", "audit", "diagnose")

SCHEMA_ID: Final = "gradience.vnext.telemetry/v1"
SCHEMA_PREFIX: Final = "gradience.vnext.telemetry/"
SCHEMA_PATTERN: Final = r"^gradience\.vnext\.telemetry/v1(\.[0-9]+)?$"
"""The ids of this major version: a reader of `v1` reads `v1.1`, which only adds to it."""

Json: TypeAlias = Any  # any JSON value: msgspec cannot express the recursive alias

NonFinite: TypeAlias = Literal["NaN", "Infinity", "-Infinity"]

Real: TypeAlias = Annotated[
    float | NonFinite, Meta(description='A number, or "NaN", "Infinity", "-Infinity": JSON has no non-finite numbers.')
]

MAX_INT: Final = 2**53 - 1  # what every JSON reader keeps exactly

NonNegativeInt: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_INT)]

Fraction: TypeAlias = Annotated[float, Meta(ge=0.0, le=1.0)]

Severity: TypeAlias = Literal["info", "warning", "error", "critical"]

EventSeverity: TypeAlias = Literal["info", "warning", "error", "critical", "unknown"]
"""The severities of a log: one that a reader does not know is read as `unknown`."""

Status: TypeAlias = Literal["ok", "aborted", "error", "interrupted", "unknown"]

TaskProfile: TypeAlias = Literal["easy_classification", "hard_reasoning", "generation", "unknown"]


def __getattr__(name: str) -> Any:
    """Return a type or constant from the module that defines it."""
    # Tools ask every module for names such as `__path__`: none of them is worth these imports.
    for home in () if name.startswith("_") else _HOMES:
        module = import_module(f"{__name__}.{home}")
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def about(text: str) -> Meta:
    """Return the metadata that describes a field of a Struct in its JSON Schema."""
    return Meta(description=text)


def real(value: float) -> float | NonFinite:
    """Return the value as it is written to JSON: a finite number itself, otherwise its name.

    >>> real(0.5), real(float("-inf"))
    (0.5, '-Infinity')
    """
    if math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def number_in(values: Mapping[str, Json], key: str) -> float | None:
    """Return the number under a key, or None if the key is missing or its value is not a number."""
    value = values.get(key)
    return as_float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


@overload
def as_float(value: None) -> None: ...
@overload
def as_float(value: float | NonFinite) -> float: ...
@overload
def as_float(value: float | NonFinite | None) -> float | None: ...
def as_float(value: float | NonFinite | None) -> float | None:
    """Return the float that a value read from JSON represents, such as a row's `loss`; None of None.

    >>> as_float("Infinity"), as_float(0.5), as_float(None)
    (inf, 0.5, None)
    """
    if value is None:
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return math.inf if int(value) > 0 else -math.inf
