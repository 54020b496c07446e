"""The table of rules that ``check`` applies, in the order in which they are reported."""

from __future__ import annotations

from gradience.policy import rules_adapter, rules_rate, rules_recording, rules_schedule, rules_values
from gradience.policy.facts import Facts
from gradience.policy.rules import Rule, Verdict, apply_rules
from gradience.schema.config import ConfigSnapshot
from gradience.schema.findings import NotRun, gravest_first

__all__ = ["RULES", "judge_config", "rule_by_id"]

RULES: tuple[Rule, ...] = (
    rules_values.RULES + rules_rate.RULES + rules_adapter.RULES + rules_recording.RULES + rules_schedule.RULES
)


def rule_by_id(rule_id: str) -> Rule | None:
    """Return the rule of this id, in any case, or None."""
    return next((rule for rule in RULES if rule.id == rule_id.upper()), None)


def judge_config(
    config: ConfigSnapshot, *, transformers: str | None = None, ignore: frozenset[str] = frozenset()
) -> Verdict:
    """Return what the rules say of a configuration, gravest first; ignored rules are named as not run."""
    active = [rule for rule in RULES if rule.id not in ignore]
    verdict = apply_rules(active, Facts(config, transformers=transformers))
    skipped = [NotRun(id=rule.id, reason="ignored on request") for rule in RULES if rule.id in ignore]
    return Verdict(gravest_first(verdict.findings), verdict.not_run + skipped)
