"""Numbers and identifiers that every Struct shares, and their conversion to and from JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias

from msgspec import Meta

SCHEMA_ID: Final = "gradience.vnext.telemetry/v1"
SCHEMA_PREFIX: Final = "gradience.vnext.telemetry/"

Json: TypeAlias = Any  # any JSON value: msgspec cannot express the recursive alias

NonFinite: TypeAlias = Literal["NaN", "Infinity", "-Infinity"]

Real: TypeAlias = Annotated[
    float | NonFinite, Meta(description='A number, or "NaN", "Infinity", "-Infinity": JSON has no non-finite numbers.')
]

MAX_INT: Final = 2**53 - 1  # what every JSON reader keeps exactly

NonNegativeInt: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_INT)]

Fraction: TypeAlias = Annotated[float, Meta(ge=0.0, le=1.0)]

Severity: TypeAlias = Literal["info", "warning", "error", "critical"]

Status: TypeAlias = Literal["ok", "aborted", "error", "interrupted", "unknown"]

TaskProfile: TypeAlias = Literal["easy_classification", "hard_reasoning", "generation", "unknown"]


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
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def as_float(value: float | NonFinite) -> float:
    """Return the float that a value read from JSON represents.

    >>> as_float("Infinity")
    inf
    """
    try:
        return float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return math.inf if int(value) > 0 else -math.inf
