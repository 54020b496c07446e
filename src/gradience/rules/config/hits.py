"""What a rule is: data around one pure condition."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from gradience.rules.config.facts import Facts
from gradience.rules.rule import Threshold, Unknown, Verdict
from gradience.schema.findings import Evidence, Finding, NotRun
from gradience.schema.scalars import Json, Severity, real


class Hit(NamedTuple):
    """What a condition saw; what is not None differs in this case from the rule's own."""

    message: str
    values: dict[str, Json]
    severity: Severity | None = None
    confidence: float | None = None
    action: str | None = None
    evidence: tuple[Evidence, ...] = ()


class Rule(NamedTuple):
    """One rule: the condition yields hits, and raises Unknown where its inputs are not known."""

    id: str
    severity: Severity
    title: str
    condition: Callable[[Facts], Iterator[Hit]]
    confidence: float
    evidence: tuple[Evidence, ...]
    rationale: str
    action: str
    scope: str
    verify: str
    thresholds: tuple[Threshold, ...] = ()
    about_lora: bool = True


def apply_rules(rules: Iterable[Rule], facts: Facts) -> Verdict:
    """Return what the rules say; a rule that cannot tell is named with its reason."""
    verdict = Verdict([], [])
    for rule in rules:
        if rule.about_lora and facts.not_lora:
            verdict.not_run.append(NotRun(id=rule.id, reason=facts.not_lora))
            continue
        try:
            for hit in rule.condition(facts):
                verdict.findings.append(_finding(rule, hit))
        except Unknown as unknown:
            verdict.not_run.append(NotRun(id=rule.id, reason=str(unknown)))
    return verdict


def _finding(rule: Rule, hit: Hit) -> Finding:
    return Finding(
        id=rule.id,
        severity=hit.severity or rule.severity,
        message=hit.message,
        action=hit.action or rule.action,
        rationale=rule.rationale,
        confidence=rule.confidence if hit.confidence is None else hit.confidence,
        scope=rule.scope,
        verify=rule.verify,
        evidence=list(hit.evidence or rule.evidence),
        values={key: real(value) if isinstance(value, float) else value for key, value in hit.values.items()},
    )
