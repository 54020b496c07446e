"""The rules on a run's log as one table, and their verdict: findings, and what could not be judged with the reason.

All look at the series with superseded rows removed and sorted by step. A rule that cannot tell says so, with the least
effect that it would have seen.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from gradience.rules.log import (
    adapter,
    divergence,
    gradient,
    guard,
    held_out,
    learning,
    numbers,
    preference,
    record,
    repetition,
    rewards,
)
from gradience.rules.log.facts import RunFacts, sorted_by_step
from gradience.rules.rule import Rule, Verdict, judge

DETECTORS: Final[tuple[Rule[RunFacts], ...]] = (
    *numbers.RULES,
    *divergence.RULES,
    *learning.RULES,
    *gradient.RULES,
    *held_out.RULES,
    *repetition.RULES,
    *preference.RULES,
    *rewards.RULES,
    *record.RULES,
    *guard.RULES,
    *adapter.RULES,
)
DETECTED: Final[tuple[str, ...]] = tuple(rule.id for rule in DETECTORS)  # what a finding on a log is called


def detect(facts: RunFacts) -> Verdict:
    """The findings, most severe first, and the rules that could not be judged."""
    series = sorted_by_step(facts.series)
    if series is not facts.series:  # else what the facts worked out already is kept
        facts = dataclasses.replace(facts, series=series)
    return judge(DETECTORS, facts)
