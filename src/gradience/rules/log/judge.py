"""What a run's telemetry says: the table of detectors, each a finding, nothing, or why it could not run.

All look at the series with superseded rows removed and sorted by step. Conservative: a detector without
enough to go on, or that does not fit the objective, abstains and says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import msgspec

from gradience.rules.evidence import LOGGING_DEFAULT
from gradience.rules.log import (
    adapter,
    evaluation,
    gradient,
    level,
    numbers,
    overfitting,
    preference,
    progress,
    rate,
    record,
)
from gradience.rules.log.detector import Detector, Sighting, judge
from gradience.rules.log.facts import RunFacts, sorted_by_step
from gradience.rules.log.thresholds import FEW_ROWS
from gradience.rules.rule import Rule
from gradience.schema.findings import Finding, NotRun, by_severity


def _sparse(facts: RunFacts) -> Sighting | None:
    rows = len(facts.series.steps)
    evaluated = facts.history or facts.evals
    if rows >= FEW_ROWS.value and evaluated:
        return None
    missing = ([f"only {rows} training rows with a loss"] if rows < FEW_ROWS.value else []) + (
        [] if evaluated else ["no evaluation"]
    )
    return Sighting(
        f"Sparse log: {' and '.join(missing)}; what a curve would show cannot be judged.",
        {"rows": rows, "evals": len(evaluated)},
    )


_SPARSE = Detector(
    id="GAP118",
    severity="info",
    title="sparse log",
    condition=_sparse,
    confidence=0.95,
    evidence=(LOGGING_DEFAULT,),
    action="Log at least every steps/50 steps, and evaluate on held-out data a few times a run.",
    scope="any log",
    rationale="A curve of few points, or of training loss alone, hides overfitting and noise alike.",
    verify="The next log has 50 rows and some evaluations: the detectors named here then speak.",
    thresholds=(FEW_ROWS,),
)

DETECTORS: tuple[Detector | Rule[RunFacts], ...] = (
    *numbers.DETECTORS,
    *level.DETECTORS,
    *gradient.DETECTORS,
    *rate.DETECTORS,
    *overfitting.DETECTORS,
    *evaluation.DETECTORS,
    *record.DETECTORS,
    _SPARSE,
    *progress.DETECTORS,
    *preference.PREFERENCE_DETECTORS,
    *preference.DETECTORS,
    *adapter.DETECTORS,
)
DETECTED: tuple[str, ...] = tuple(item.id for item in DETECTORS)  # what a finding on a log is called


def detect(facts: RunFacts) -> tuple[list[Finding], list[NotRun]]:
    """Return the findings, most severe first, and the detectors that could not run with their reasons."""
    series = sorted_by_step(facts.series)
    if series is not facts.series:  # else what the facts worked out already is kept
        facts = dataclasses.replace(facts, series=series)
    outcomes = [judge(detector, facts) for detector in DETECTORS]
    not_run = [outcome for outcome in outcomes if isinstance(outcome, NotRun)]
    findings = [outcome for outcome in outcomes if isinstance(outcome, Finding)]
    return by_severity(_with_abstained(findings, not_run)), not_run


def _with_abstained(findings: Iterable[Finding], not_run: Iterable[NotRun]) -> list[Finding]:
    """Return the findings; that of a sparse log also says which detectors abstained."""
    abstained = [item.id for item in not_run]
    return [
        msgspec.structs.replace(f, values={**f.values, "abstained": abstained}) if f.id == _SPARSE.id else f
        for f in findings
    ]
