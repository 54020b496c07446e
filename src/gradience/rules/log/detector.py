"""What a detector is: data around one pure condition on a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from gradience.rules import rule as one
from gradience.rules.conditions import CONDITIONS
from gradience.rules.log.facts import RunFacts
from gradience.rules.objective import Kind
from gradience.rules.rule import Description, Rule, Threshold, Unknown
from gradience.schema.findings import Evidence, Finding, NotRun
from gradience.schema.scalars import Json, Severity, real

Outcome: TypeAlias = Finding | NotRun | None


class Sighting(NamedTuple):
    """What a condition saw; what is not None differs in this case from the detector's own."""

    message: str
    values: dict[str, Json]
    severity: Severity | None = None
    confidence: float | None = None
    action: str | None = None
    rationale: str | None = None
    seen: tuple[str, ...] = ()


class Detector(NamedTuple):
    """One detector: the condition raises Unknown where the log does not say enough."""

    id: str
    severity: Severity
    title: str
    condition: Callable[[RunFacts], Sighting | Finding | None]
    confidence: float
    evidence: tuple[Evidence, ...]
    action: str
    scope: str
    rationale: str | None = None
    verify: str | None = None
    thresholds: tuple[Threshold, ...] = ()
    not_for: tuple[Kind, ...] = ()  # objectives under which the condition means nothing
    only_for: tuple[Kind, ...] = ()  # objectives it was made for; under others it is not even mentioned
    least_rows: Threshold | None = None  # training rows with a finite loss


def judge(detector: Detector | Rule[RunFacts], facts: RunFacts) -> Outcome:
    """Return what the detector says of the run, or why it abstains."""
    if isinstance(detector, Rule):
        verdict = one.judge((detector,), facts)
        outcomes: list[Outcome] = [*verdict.findings, *verdict.not_run, None]
        return outcomes[0]
    if detector.only_for and facts.objective.kind not in detector.only_for:
        return None
    reason = _misfit(detector, facts)
    if reason is not None:
        return NotRun(id=detector.id, reason=reason)
    try:
        seen = detector.condition(facts)
    except Unknown as unknown:
        return NotRun(id=detector.id, reason=str(unknown))
    return _finding(detector, seen) if isinstance(seen, Sighting) else seen


def _misfit(detector: Detector, facts: RunFacts) -> str | None:
    kind, because, _ = facts.objective
    if kind in detector.not_for:
        return f"does not fit the objective {kind} ({because})"
    least = detector.least_rows
    if least is not None and len(facts.loss.values) < least.value:
        return f"{len(facts.loss.values)} training rows with a finite loss; it needs {least.value:g}"
    return None


def _finding(detector: Detector, seen: Sighting) -> Finding:
    return Finding(
        id=detector.id,
        severity=seen.severity or detector.severity,
        message=seen.message,
        action=seen.action or detector.action,
        rationale=seen.rationale or detector.rationale,
        confidence=detector.confidence if seen.confidence is None else seen.confidence,
        scope=detector.scope,
        verify=detector.verify,
        evidence=[*(Evidence(source="the log", says=says) for says in seen.seen), *detector.evidence],
        values={key: real(value) if isinstance(value, float) else value for key, value in seen.values.items()},
    )


def described(detector: Detector | Rule[RunFacts]) -> Description:
    """A detector as the record of a rule."""
    if isinstance(detector, Rule):
        return detector
    return Description(
        id=detector.id,
        title=detector.title,
        groups=("log",),
        severity=detector.severity,
        condition=CONDITIONS[detector.id],
        confidence=detector.confidence,
        scope=detector.scope,
        rationale=detector.rationale or "",
        action=detector.action,
        verify=detector.verify or "",
        thresholds=detector.thresholds,
        evidence=detector.evidence,
    )
