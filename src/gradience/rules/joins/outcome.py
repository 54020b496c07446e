"""How a run turned out, held against the findings on its configuration: an outcome that is good outweighs a convention.

Published rates are averages over other models and data. Where this run converged, or its held-out result is good, the
run itself is the better evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from gradience.rules.rule import Threshold
from gradience.schema.events import Eval
from gradience.schema.findings import SEVERITIES, Evidence, Finding, NotRun, by_severity
from gradience.schema.reports import CheckReport, MonitorReport
from gradience.schema.scalars import as_float

GOOD_ACCURACY = Threshold(
    "good_accuracy", 0.5, "of the way from chance to 1", "a judgement; without the number of classes, two are assumed"
)
GOOD_FALL = Threshold("good_fall", 0.03, "fall of the held-out loss from first to last, relative", "a judgement")
NEAR_BEST = Threshold("near_best", 0.02, "last held-out loss above the lowest, relative", "a judgement")

_WARNING: Final = SEVERITIES.index("warning")
_MUST_BE_SILENT: Final = ("NUM101", "NUM102", "DIV104", "NOL106")
_OF_DIVERGENCE: Final = frozenset({"LR002", "LR003", "LR005"})  # "such a rate diverges": this run did not
_CONVENTIONS: Final = frozenset({"LR001", "LR004", "ALP001", "ALP002", "SCH002"})


class Outcome(NamedTuple):
    """Whether it was judged and neither diverged nor stood still, and what is good of its held-out result, in words."""

    converged: bool = False
    good: str = ""


def outcome_of(report: MonitorReport, evals: Sequence[Eval]) -> Outcome:
    """The outcome of a run by its log; None for one that is unfinished or has a warning.

    Args:
        report: the monitor's.
        evals: every evaluation of the run, in order.
    """
    if report.status != "ok" or any(SEVERITIES.index(item.severity) >= _WARNING for item in report.findings):
        return Outcome()
    spoken = {item.id for item in report.not_run} | {item.id for item in report.findings}
    good = _good(report, evals)
    return Outcome(converged=bool(good) or spoken.isdisjoint(_MUST_BE_SILENT), good=good)


def _good(report: MonitorReport, evals: Sequence[Eval]) -> str:
    point = next((item for item in report.evals if item.split != "train"), None)
    if point is None:
        return ""
    accuracy = None if point.metrics.accuracy is None else as_float(point.metrics.accuracy)
    chance = 1.0 / max(report.config.num_labels or 2, 2)
    if accuracy is not None and chance + GOOD_ACCURACY.value * (1.0 - chance) <= accuracy <= 1.0:
        return f"held-out accuracy {accuracy:.3g}"
    found = [as_float(e.metrics.loss) for e in evals if e.split == point.split and e.metrics.loss is not None]
    losses = [loss for loss in found if math.isfinite(loss)]
    if len(losses) < 2 or losses[0] <= 0.0 or accuracy is not None:  # an accuracy near chance outweighs the loss
        return ""
    first, last = losses[0], losses[-1]
    good = last <= first * (1.0 - GOOD_FALL.value) and last <= min(losses) * (1.0 + NEAR_BEST.value)
    return f"held-out loss {first:.4g} -> {last:.4g}" if good else ""


def outweighed(check: CheckReport, outcome: Outcome) -> CheckReport:
    """The check beside the outcome: what the run refutes is left out, with the reason; a convention becomes info."""
    if not outcome.converged:
        return check
    refuted = [item for item in check.findings if item.id in _OF_DIVERGENCE]
    left = [_milder(item, outcome.good) for item in check.findings if item.id not in _OF_DIVERGENCE]
    shown = f" ({outcome.good})" if outcome.good else ""
    reasons = [NotRun(id=item.id, reason=f"this run did not diverge{shown}") for item in refuted]
    return msgspec.structs.replace(check, findings=by_severity(left), not_run=[*check.not_run, *reasons])


def _milder(finding: Finding, good: str) -> Finding:
    if not good or finding.id not in _CONVENTIONS:
        return finding
    return msgspec.structs.replace(
        finding,
        severity="info",
        message=f"a convention that this run's outcome outweighs ({good}): {finding.message}",
        action="nothing is wrong with this run; another value is worth a try only where the result is to be better",
        evidence=[Evidence(source="the log", says=good), *finding.evidence],
    )
