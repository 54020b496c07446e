"""The types of logs and reports, with units. Needs msgspec only.

Each is had from here by its name, as in `from gradience.schema import ConfigSnapshot`; the module that holds it is
imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from gradience.schema.audit import (
        AUDIT_SCHEMA_ID as AUDIT_SCHEMA_ID,
    )
    from gradience.schema.audit import (
        AuditReport as AuditReport,
    )
    from gradience.schema.audit import (
        AuditSummary as AuditSummary,
    )
    from gradience.schema.audit import (
        GroupSummary as GroupSummary,
    )
    from gradience.schema.audit import (
        Health as Health,
    )
    from gradience.schema.audit import (
        LayerSummary as LayerSummary,
    )
    from gradience.schema.audit import (
        LedgerEntry as LedgerEntry,
    )
    from gradience.schema.audit import (
        ModuleAudit as ModuleAudit,
    )
    from gradience.schema.audit import (
        NotAnalysed as NotAnalysed,
    )
    from gradience.schema.audit import (
        SuggestedRank as SuggestedRank,
    )
    from gradience.schema.config import (
        ConfigSnapshot as ConfigSnapshot,
    )
    from gradience.schema.config import (
        LoraSnapshot as LoraSnapshot,
    )
    from gradience.schema.config import (
        OptimizerSnapshot as OptimizerSnapshot,
    )
    from gradience.schema.config import (
        TrainingSnapshot as TrainingSnapshot,
    )
    from gradience.schema.diagnose import (
        DIAGNOSE_SCHEMA_ID as DIAGNOSE_SCHEMA_ID,
    )
    from gradience.schema.diagnose import (
        DiagnoseReport as DiagnoseReport,
    )
    from gradience.schema.events import (
        EVENT_TYPES as EVENT_TYPES,
    )
    from gradience.schema.events import (
        Alert as Alert,
    )
    from gradience.schema.events import (
        Eval as Eval,
    )
    from gradience.schema.events import (
        EvalMetrics as EvalMetrics,
    )
    from gradience.schema.events import (
        Event as Event,
    )
    from gradience.schema.events import (
        EventBase as EventBase,
    )
    from gradience.schema.events import (
        Metrics as Metrics,
    )
    from gradience.schema.events import (
        Recommendation as Recommendation,
    )
    from gradience.schema.events import (
        RecommendationItem as RecommendationItem,
    )
    from gradience.schema.events import (
        RunEnd as RunEnd,
    )
    from gradience.schema.events import (
        RunStart as RunStart,
    )
    from gradience.schema.events import (
        TrainStep as TrainStep,
    )
    from gradience.schema.events import (
        UnknownEvent as UnknownEvent,
    )
    from gradience.schema.findings import (
        Evidence as Evidence,
    )
    from gradience.schema.findings import (
        Finding as Finding,
    )
    from gradience.schema.findings import (
        NotRun as NotRun,
    )
    from gradience.schema.reports import (
        CHECK_SCHEMA_ID as CHECK_SCHEMA_ID,
    )
    from gradience.schema.reports import (
        IMPORT_SCHEMA_ID as IMPORT_SCHEMA_ID,
    )
    from gradience.schema.reports import (
        MONITOR_SCHEMA_ID as MONITOR_SCHEMA_ID,
    )
    from gradience.schema.reports import (
        VALIDATE_SCHEMA_ID as VALIDATE_SCHEMA_ID,
    )
    from gradience.schema.reports import (
        BadLine as BadLine,
    )
    from gradience.schema.reports import (
        CheckReport as CheckReport,
    )
    from gradience.schema.reports import (
        EvalPoint as EvalPoint,
    )
    from gradience.schema.reports import (
        GapReading as GapReading,
    )
    from gradience.schema.reports import (
        ImportReport as ImportReport,
    )
    from gradience.schema.reports import (
        MonitorReport as MonitorReport,
    )
    from gradience.schema.reports import (
        SourceFile as SourceFile,
    )
    from gradience.schema.reports import (
        TrainSummary as TrainSummary,
    )
    from gradience.schema.reports import (
        ValidateReport as ValidateReport,
    )
    from gradience.schema.scalars import (
        SCHEMA_ID as SCHEMA_ID,
    )
    from gradience.schema.scalars import (
        NonFinite as NonFinite,
    )
    from gradience.schema.scalars import (
        Real as Real,
    )
    from gradience.schema.scalars import (
        Severity as Severity,
    )
    from gradience.schema.scalars import (
        Status as Status,
    )
    from gradience.schema.scalars import (
        TaskProfile as TaskProfile,
    )
    from gradience.schema.scalars import (
        as_float as as_float,
    )
    from gradience.schema.scalars import (
        real as real,
    )

_HOMES: Final = ("config", "events", "findings", "reports", "audit", "diagnose", "scalars")


def __getattr__(name: str) -> Any:
    """A type or constant of one of the modules."""
    for home in () if name.startswith("_") else _HOMES:
        module = import_module(f"{__name__}.{home}")
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
