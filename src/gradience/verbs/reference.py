"""The rules that the program has, as a report."""

from __future__ import annotations

from gradience.errors import ConfigError
from gradience.rules.registry import rule_cards, rules_named
from gradience.schema.findings import RULES_SCHEMA_ID, RulesReport


def list_rules(prefix: str | None = None) -> RulesReport:
    """Return every rule, or those whose id begins with a text such as `LR`; case does not matter.

    Raises:
        ConfigError: no id begins so.
    """
    cards = rule_cards() if prefix is None else rules_named(prefix)
    if not cards:
        raise ConfigError(f"unknown rule {prefix!r}", advice="'gradience rules' lists them")
    return RulesReport(schema=RULES_SCHEMA_ID, rules=list(cards))
