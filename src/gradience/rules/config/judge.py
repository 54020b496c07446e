"""The table of rules that ``check`` applies, in the order in which they are reported."""

from __future__ import annotations

from collections.abc import Mapping

from gradience.rules.config import adapter as rules_adapter
from gradience.rules.config import coverage as rules_coverage
from gradience.rules.config import rate as rules_rate
from gradience.rules.config import recording as rules_recording
from gradience.rules.config import schedule as rules_schedule
from gradience.rules.config import serving as rules_serving
from gradience.rules.config import values as rules_values
from gradience.rules.config.facts import CheckContext, Facts
from gradience.rules.config.hits import Rule, apply_rules
from gradience.rules.rule import Verdict
from gradience.schema.config import ConfigSnapshot
from gradience.schema.findings import NotRun, by_severity

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
    around: CheckContext | None = None,
    left_out: Mapping[str, str] | None = None,
) -> Verdict:
    """Return what the rules say of a configuration, gravest first; a rule left out is named with its reason."""
    reasons = left_out or {}
    active = [rule for rule in RULES if rule.id not in reasons]
    verdict = apply_rules(active, Facts(config, transformers=transformers, around=around))
    skipped = [NotRun(id=rule_id, reason=reason) for rule_id, reason in reasons.items()]
    return Verdict(by_severity(verdict.findings), verdict.not_run + skipped)
