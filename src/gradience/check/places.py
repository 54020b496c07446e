"""The file and line that each finding of a check points at, for other programs' formats."""

from __future__ import annotations

from pathlib import Path

from gradience.configs.lines import keys_of, line_of
from gradience.policy.rule_settings import settings_of
from gradience.render.cards import Place
from gradience.schema.findings import Finding
from gradience.schema.reports import CheckReport, SourceFile

__all__ = ["places"]

_NOT_CONFIGURATION = {"base", "settings"}


def places(report: CheckReport) -> list[Place | None]:
    """Return a place for each finding, in their order; None where no file was read."""
    files = [source for source in report.sources if source.role not in _NOT_CONFIGURATION]
    return [_place(finding, files) for finding in report.findings]


def _place(finding: Finding, files: list[SourceFile]) -> Place | None:
    if not files:
        return None
    keys = [key for field in settings_of(finding) for key in keys_of(field)]
    for source in reversed(files):  # a later source wins
        line = line_of(Path(source.path), keys)
        if line is not None:
            return Place(source.path, line)
    return Place(files[0].path)
