"""The types of logs and reports, with units. The package needs msgspec only.

Import a type from here by its name, as in `from gradience.schema import ConfigSnapshot`. The module that defines it is
imported when the name is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

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
        TrainingSnapshot as TrainingSnapshot,
        TrainStep as TrainStep,
        UnknownEvent as UnknownEvent,
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
        MonitorReport as MonitorReport,
        SourceFile as SourceFile,
        TrainSummary as TrainSummary,
        ValidateReport as ValidateReport,
    )
    from gradience.schema.scalars import (
        SCHEMA_ID as SCHEMA_ID,
        NonFinite as NonFinite,
        Real as Real,
        Severity as Severity,
        Status as Status,
        TaskProfile as TaskProfile,
        as_float as as_float,
        real as real,
    )

_HOMES: Final = ("events", "document", "reports", "audit", "diagnose", "scalars")


def __getattr__(name: str) -> Any:
    """Return a type or constant from the module that defines it."""
    for home in () if name.startswith("_") else _HOMES:
        module = import_module(f"{__name__}.{home}")
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
