"""``gradience rules``."""

from __future__ import annotations

from collections.abc import Iterator

from gradience.cli.output import DONE, print_text
from gradience.errors import ConfigError
from gradience.policy.config_rules import RULES, rule_by_id
from gradience.policy.detectors.detector import Detector
from gradience.policy.joins import Join
from gradience.policy.joins_table import JOINS, join_by_id
from gradience.policy.merge_rules import MERGE_RULES, MergeRule, merge_rule_by_id
from gradience.policy.rules import Rule
from gradience.policy.run_detectors import DETECTORS, detector_by_id
from gradience.render.text import banner

__all__ = ["rules"]


def rules(rule_id: str | None = None, /) -> int:
    """List the rules of check and merge-check, monitor's detectors and diagnose's joins, or explain one.

    Parameters
    ----------
    rule_id:
        For example LR001.
    """
    if rule_id is None:
        print_text("\n".join(_table()))
        return DONE
    rule = rule_by_id(rule_id) or detector_by_id(rule_id) or join_by_id(rule_id) or merge_rule_by_id(rule_id)
    if rule is None:
        message = f"no rule is called {rule_id!r}"
        raise ConfigError(message, advice="'gradience rules' lists them")
    print_text("\n".join(_card(rule)))
    return DONE


def _table() -> Iterator[str]:
    yield from banner("GRADIENCE RULES")
    table: tuple[Rule | Detector | Join | MergeRule, ...] = (*RULES, *DETECTORS, *JOINS, *MERGE_RULES)
    for rule in table:
        yield f"{rule.id:<8}{rule.severity:<9}{rule.confidence:.2f}  {rule.title}"
    yield ""
    yield "Severity is the usual one; confidence is a judgement in 0..1. 'gradience rules LR001' explains one."


def _card(rule: Rule | Detector | Join | MergeRule) -> Iterator[str]:
    yield from banner(f"{rule.id}: {rule.title}")
    yield f"Severity:   {rule.severity}"
    yield f"Confidence: {rule.confidence:.2f} (a judgement)"
    yield f"Scope:      {rule.scope}"
    if rule.rationale:
        yield f"Why:        {rule.rationale}"
    yield f"Action:     {rule.action}"
    if rule.verify:
        yield f"Verify:     {rule.verify}"
    if rule.thresholds:
        yield "Thresholds:"
        for item in rule.thresholds:
            yield f"  {item.name} = {item.value:g} ({item.unit}): {item.source}"
    if rule.evidence:
        yield "Evidence:"
    for ground in rule.evidence:
        yield f"  {ground.source}:"
        yield f"      {ground.says}"
