"""What a report on a run is made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gradience.schema.compare import BenchReport, CompareAdaptersReport
from gradience.schema.diagnose import DiagnoseReport
from gradience.telemetry.series import RunSeries


@dataclass(frozen=True, slots=True)
class FileRead:
    """A file that was read: its role, place, size in bytes, and hash."""

    role: str
    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Story:
    """One run: its diagnosis with the reports of check, monitor and audit; log rows; files; comparison; bench."""

    diagnosis: DiagnoseReport
    series: RunSeries | None = None
    comparison: CompareAdaptersReport | None = None
    bench: BenchReport | None = None
    files: list[FileRead] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
