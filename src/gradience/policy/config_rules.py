"""The table of rules that ``check`` applies, in the order in which they are reported."""

from __future__ import annotations

from collections.abc import Mapping

from gradience.policy import (
    rules_adapter,
    rules_coverage,
    rules_rate,
    rules_recording,
    rules_schedule,
    rules_serving,
    rules_values,
)
from gradience.policy.facts import Around, Facts
from gradience.policy.rules import Rule, Verdict, apply_rules
from gradience.schema.config import ConfigSnapshot
from gradience.schema.findings import NotRun, gravest_first

__all__ = ["RULES", "judge_config"]

RULES: tuple[Rule, ...] = (
    rules_values.RULES
    + rules_rate.RULES
    + rules_adapter.RULES
    + rules_coverage.RULES
    + rules_recording.RULES
    + rules_schedule.RULES
    + rules_serving.RULES
)


def judge_config(
    config: ConfigSnapshot,
    *,
    transformers: str | None = None,
    around: Around | None = None,
    left_out: Mapping[str, str] | None = None,
) -> Verdict:
    """Return what the rules say of a configuration, gravest first; a rule left out is named with its reason."""
    reasons = left_out or {}
    active = [rule for rule in RULES if rule.id not in reasons]
    verdict = apply_rules(active, Facts(config, transformers=transformers, around=around))
    skipped = [NotRun(id=rule_id, reason=reason) for rule_id, reason in reasons.items()]
    return Verdict(gravest_first(verdict.findings), verdict.not_run + skipped)
