"""The verb ``validate``: a log in, every fault of every line out."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Final

from gradience.schema.events import EventBase, UnknownEvent
from gradience.schema.reports import VALIDATE_SCHEMA_ID, BadLine, ValidateReport
from gradience.schema.scalars import SCHEMA_ID
from gradience.telemetry.reader import unnamed_note
from gradience.telemetry.scan import BadLines, LogScan, RowBlock, require_log

DEFAULT_MAX_ISSUES: Final = 100
_MOST_NAMES: Final = 1000  # unknown event names counted apart


def validate_log(path: str | os.PathLike[str], *, max_issues: int = DEFAULT_MAX_ISSUES) -> ValidateReport:
    """Return a report of every line of a log that does not follow the schema.

    Event names unknown to this version are legal, and counted. Bare NaN and Infinity tokens are read, but
    are not JSON: a log that holds one is not valid.

    Args:
        path: a run.jsonl.
        max_issues: how many faults the report lists; all are counted.

    Raises:
        RecorderError: the log is missing, empty, or not a file.
        SchemaError: the log is of another major version.
    """
    require_log(Path(path))
    scan = LogScan(path, strict=True)
    events: Counter[type[EventBase]] = Counter()
    unknown: Counter[str] = Counter()
    issues: list[BadLine] = []
    total = 0
    for found in scan:
        if isinstance(found, BadLines):
            total += len(found.faults)
            issues += found.faults[: max(max_issues - len(issues), 0)]
        elif isinstance(found, UnknownEvent):
            unknown[found.event if found.event in unknown or len(unknown) < _MOST_NAMES else "..."] += 1
        else:
            events.update(map(type, found.events() if isinstance(found, RowBlock) else found))
    return ValidateReport(
        schema=VALIDATE_SCHEMA_ID,
        file=str(path),
        valid=total == 0 and scan.lines > 0,
        lines=scan.lines,
        events={str(kind.__struct_config__.tag): count for kind, count in events.items()},
        unknown_events=dict(unknown),
        issues=issues,
        issues_total=total,
        notes=_notes(scan, unknown, sum(bad.torn for bad in issues)),
    )


def _notes(scan: LogScan, unknown: Counter[str], torn: int) -> list[str]:
    notes = []
    if not scan.lines:
        notes.append("the file holds no line that is not blank")
    if unknown:
        notes.append(f"{unknown.total()} events of a name unknown to {SCHEMA_ID} here: legal, not checked further")
    if scan.unnamed:
        notes.append(unnamed_note(scan.unnamed))
    if torn:
        notes.append("a torn tail is what a killed process leaves: the events around it are whole")
    return notes
