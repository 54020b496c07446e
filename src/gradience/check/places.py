"""What other programs' formats need of a check: its rules, and the file and line that each finding points at."""

from __future__ import annotations

from pathlib import Path

from gradience.configs.lines import keys_of, line_of
from gradience.policy.config_rules import RULES
from gradience.policy.rule_settings import settings_of
from gradience.render.cards import Card, Place
from gradience.schema.findings import Finding
from gradience.schema.reports import CheckReport, SourceFile

__all__ = ["places", "rule_cards"]

_NOT_CONFIGURATION = {"base", "settings"}


def rule_cards() -> list[Card]:
    """Return a card for every rule of check."""
    return [
        Card(
            id=rule.id,
            title=rule.title,
            severity=rule.severity,
            why=rule.rationale,
            action=rule.action,
            scope=rule.scope,
            verify=rule.verify,
            evidence=rule.evidence,
            confidence=rule.confidence,
        )
        for rule in RULES
    ]


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
