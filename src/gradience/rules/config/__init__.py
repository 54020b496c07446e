"""All rules on a configuration in one table, and the verdict they give: findings and rules that were not judged."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from gradience.rules import Rule, Verdict, judge
from gradience.rules.config import adapter, families, memory, prompt, quantised, rate, serving, training, values
from gradience.rules.config.facts import CheckContext, Facts
from gradience.schema.document import Finding, NotRun, by_severity
from gradience.schema.events import ConfigSnapshot

RULES: Final[tuple[Rule[Facts], ...]] = (
    *values.RULES,
    *rate.RULES,
    *adapter.RULES,
    *families.RULES,
    *training.RULES,
    *prompt.RULES,
    *quantised.RULES,
    *memory.RULES,
    *serving.RULES,
)
_BY_ID: Final = {rule.id: rule for rule in RULES}


def judge_config(
    config: ConfigSnapshot,
    *,
    around: CheckContext | None = None,
    left_out: Mapping[str, str] | None = None,
) -> Verdict:
    """Judge a configuration: its findings, most severe first, and the rules not judged or left out, with reasons."""
    reasons = left_out or {}
    around = around or CheckContext()
    facts = Facts(config, around)
    planned = Facts(config, around._replace(moment="to come", begun=""))
    verdicts = [
        judge([rule], planned if _is_asked(rule, around.stated) else facts) for rule in RULES if rule.id not in reasons
    ]
    skipped = [NotRun(id=rule_id, reason=reason) for rule_id, reason in reasons.items()]
    findings = by_severity([item for verdict in verdicts for item in verdict.findings])
    not_run = [item for verdict in verdicts for item in verdict.not_run]
    return Verdict(findings, not_run + skipped, [item for verdict in verdicts for item in verdict.readings])


def _is_asked(rule: Rule[Facts], stated: frozenset[str]) -> bool:
    """Whether a rule is about a setting that was given as such."""
    return not callable(rule.settings) and not stated.isdisjoint(rule.settings)


def settings_of(finding: Finding) -> list[str]:
    """The configuration fields, or keys of its file, that a finding is about, the most relevant first."""
    rule = _BY_ID.get(finding.id)
    if rule is None:
        return []
    return list(rule.settings(finding.values) if callable(rule.settings) else rule.settings)


def transformers_version() -> str | None:
    """The installed version of transformers, found without importing it, or None."""
    try:
        return version("transformers")
    except PackageNotFoundError:
        return None
