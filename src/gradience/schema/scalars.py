"""Numbers and identifiers every Struct shares."""

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
    """What a field of a Struct is, for its JSON Schema."""
    return Meta(description=text)


def real(value: float) -> float | NonFinite:
    """The value as it goes on the wire: itself if finite, else its name.

    >>> real(0.5), real(float("-inf"))
    (0.5, '-Infinity')
    """
    if math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def number_in(values: Mapping[str, Json], key: str) -> float | None:
    """The number under a key; None where there is none, or something else."""
    value = values.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def as_float(value: float | NonFinite) -> float:
    """The Python float that a value on the wire stands for.

    >>> as_float("Infinity")
    inf
    """
    try:
        return float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return math.inf if int(value) > 0 else -math.inf
