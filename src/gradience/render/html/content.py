"""What a report page shows: one diagnosis of a run, the rows behind it, and the files that were read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gradience.schema.compare import CompareAdaptersReport
from gradience.schema.diagnose import DiagnoseReport
from gradience.telemetry.series import RunSeries


@dataclass(frozen=True, slots=True)
class FileRead:
    """A file that was read: what for, and what tells it from every other."""

    role: str
    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Story:
    """One run: its diagnosis with the reports of check, monitor and audit; rows of its log; files; comparison."""

    diagnosis: DiagnoseReport
    series: RunSeries | None = None
    comparison: CompareAdaptersReport | None = None
    files: list[FileRead] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
