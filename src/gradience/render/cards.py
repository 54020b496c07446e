"""A rule as other programs' formats want it: its id, words and grounds; and where a finding points."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gradience.schema.findings import Evidence, Finding
from gradience.schema.scalars import Severity

__all__ = ["Card", "Place", "cards"]


class Place(NamedTuple):
    """Where a finding points: a file, and a line where it is known."""

    path: str
    line: int | None = None


class Card(NamedTuple):
    """What there is to say of a rule, whether it found something or not."""

    id: str
    title: str
    severity: Severity
    why: str = ""
    action: str = ""
    scope: str = ""
    verify: str = ""
    evidence: tuple[Evidence, ...] = ()
    confidence: float | None = None


def cards(known: Iterable[Card], findings: Sequence[Finding]) -> list[Card]:
    """Return the known cards, and one made from the first finding of each rule that has none."""
    found = {card.id: card for card in known}
    for finding in findings:
        found.setdefault(finding.id, _card_of_finding(finding))
    return list(found.values())


def _card_of_finding(finding: Finding) -> Card:
    return Card(
        id=finding.id,
        title=finding.id,
        severity=finding.severity,
        why=finding.rationale or "",
        action=finding.action or "",
        scope=finding.scope or "",
        verify=finding.verify or "",
        evidence=tuple(finding.evidence),
        confidence=finding.confidence,
    )
