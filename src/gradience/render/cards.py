"""Where a finding points, and the cards of the rules behind findings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gradience.schema.findings import Finding
from gradience.schema.rules import RuleCard

__all__ = ["Place", "cards"]


class Place(NamedTuple):
    """Where a finding points: a file, and a line where it is known."""

    path: str
    line: int | None = None


def cards(known: Iterable[RuleCard], findings: Sequence[Finding]) -> list[RuleCard]:
    """Return the known cards, and one made from the first finding of each rule that has none."""
    found = {card.id: card for card in known}
    for finding in findings:
        found.setdefault(finding.id, _card_of_finding(finding))
    return list(found.values())


def _card_of_finding(finding: Finding) -> RuleCard:
    return RuleCard(
        id=finding.id,
        title=finding.id,
        severity=finding.severity,
        confidence=finding.confidence,
        scope=finding.scope or "",
        rationale=finding.rationale or "",
        action=finding.action or "",
        verify=finding.verify or "",
        evidence=finding.evidence,
    )
