"""The report as one HTML page, and what it is made from: a `Story`.

`page.report_html` writes it. The page holds its style sheet and its figures as SVG: no script, link or request. Figures
need matplotlib (extra `report`); this module does not, so that a story can be gathered for Markdown without it.
"""

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
