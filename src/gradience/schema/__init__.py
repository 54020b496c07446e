"""The types of logs and reports, with units. The package needs msgspec only.

This module defines the numbers and identifiers that every Struct shares. It also offers each type of the other modules
by its name, as in `from gradience.schema import ConfigSnapshot`, and imports the module that defines it on first use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

from msgspec import Meta

if TYPE_CHECKING:
    from gradience.schema.audit import (
        AUDIT_SCHEMA_ID as AUDIT_SCHEMA_ID,
        AuditReport as AuditReport,
        AuditSummary as AuditSummary,
        GroupSummary as GroupSummary,
        Health as Health,
        LayerSummary as LayerSummary,
        LedgerEntry as LedgerEntry,
        ModuleAudit as ModuleAudit,
        NotAnalysed as NotAnalysed,
        SuggestedRank as SuggestedRank,
    )
    from gradience.schema.diagnose import DIAGNOSE_SCHEMA_ID as DIAGNOSE_SCHEMA_ID, DiagnoseReport as DiagnoseReport
    from gradience.schema.document import Evidence as Evidence, Finding as Finding, NotRun as NotRun
    from gradience.schema.events import (
        EVENT_TYPES as EVENT_TYPES,
        Alert as Alert,
        ConfigSnapshot as ConfigSnapshot,
        Eval as Eval,
        EvalMetrics as EvalMetrics,
        Event as Event,
        EventBase as EventBase,
        LoraSnapshot as LoraSnapshot,
        Metrics as Metrics,
        OptimizerSnapshot as OptimizerSnapshot,
        Recommendation as Recommendation,
        RecommendationItem as RecommendationItem,
        RunEnd as RunEnd,
        RunStart as RunStart,
        StepDigests as StepDigests,
        Throughput as Throughput,
        TrainingSnapshot as TrainingSnapshot,
        TrainStep as TrainStep,
        UnknownEvent as UnknownEvent,
        Wiring as Wiring,
    )
    from gradience.schema.reports import (
        CHECK_SCHEMA_ID as CHECK_SCHEMA_ID,
        IMPORT_SCHEMA_ID as IMPORT_SCHEMA_ID,
        MONITOR_SCHEMA_ID as MONITOR_SCHEMA_ID,
        VALIDATE_SCHEMA_ID as VALIDATE_SCHEMA_ID,
        BadLine as BadLine,
        CheckReport as CheckReport,
        EvalPoint as EvalPoint,
        GapReading as GapReading,
        ImportReport as ImportReport,
        InputFile as InputFile,
        MonitorReport as MonitorReport,
        TrainSummary as TrainSummary,
        ValidateReport as ValidateReport,
    )


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


def __dir__() -> list[str]:
    """Return what completion offers: the names here, and the types that the other modules define."""
    homes = [import_module(f"{__name__}.{home}") for home in _HOMES]
    types = {
        name for home in homes for name, it in vars(home).items() if getattr(it, "__module__", "") == home.__name__
    }
    return sorted({*globals(), *(name for name in types if name[0].isupper())})


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


def as_float(value: float | NonFinite) -> float:
    """Return the float that a value read from JSON represents.

    >>> as_float("Infinity")
    inf
    """
    try:
        return float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return math.inf if int(value) > 0 else -math.inf
