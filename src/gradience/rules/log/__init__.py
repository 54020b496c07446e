"""All rules on a run's log in one table, and the verdict they give on a run.

The verdict holds the findings, and the rules that could not be judged with the reason. Every rule sees the series
sorted by step, without superseded rows. A rule that cannot tell names the least effect that it would have seen.
"""

from __future__ import annotations

from typing import Final

from gradience.rules import Verdict, judge
from gradience.rules.log import (
    choice,
    components,
    cost,
    divergence,
    gradient,
    held_out,
    learning,
    numbers,
    order,
    preference,
    record,
    recorded,
    repetition,
    resumed,
    rewards,
    sampler,
    wiring,
)
from gradience.rules.log.facts import LogRule, RunFacts
from gradience.schema.document import SEVERITIES, Finding, NotRun

DETECTORS: Final[tuple[LogRule, ...]] = (
    *numbers.RULES,
    *order.RULES,
    *divergence.RULES,
    *learning.RULES,
    *gradient.RULES,
    *held_out.RULES,
    *choice.RULES,
    *repetition.RULES,
    *preference.RULES,
    *rewards.RULES,
    *components.RULES,
    *sampler.RULES,
    *record.RULES,
    *resumed.RULES,
    *recorded.RULES,
    *wiring.RULES,
    *cost.RULES,
)
BEFORE_TRAINING: Final[tuple[LogRule, ...]] = (*recorded.OF_BATCHES, *wiring.RULES)
"""What can be judged of a model and its first batches before a step is made."""
_WITHOUT_LOSS: Final = frozenset(rule.id for rule in (*record.RULES, *recorded.RULES, *wiring.RULES, *cost.RULES))
_MASKED: Final = "no token is supervised (see DAT301): loss and gradient mean nothing"
RULE_OF: Final[dict[str, LogRule]] = {rule.id: rule for rule in DETECTORS}
DETECTED: Final[tuple[str, ...]] = tuple(rule.id for rule in DETECTORS)  # the ids a finding on a log can have


def _usefulness(found: Finding) -> tuple[int, bool, float]:
    """The place of a finding: by severity, then what makes a run worth a look; of mere notes, the surest first."""
    sure = found.confidence or 0.0 if found.severity == "info" else 0.0
    return -SEVERITIES.index(found.severity), not RULE_OF[found.id].look, -sure


def detect(facts: RunFacts) -> Verdict:
    """Judge a run: its findings, most severe first, and the rules that could not be judged."""
    if not recorded.everything_masked(facts):
        verdict = judge(DETECTORS, facts)
        return verdict._replace(findings=sorted(verdict.findings, key=_usefulness))
    verdict = judge((rule for rule in DETECTORS if rule.id in _WITHOUT_LOSS), facts)
    masked = [NotRun(id=rule.id, reason=_MASKED) for rule in DETECTORS if rule.id not in _WITHOUT_LOSS]
    return verdict._replace(not_run=[*masked, *verdict.not_run])
