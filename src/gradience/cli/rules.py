"""``gradience rules``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from gradience.cli.output import DONE, print_document, print_text
from gradience.errors import ConfigError
from gradience.policy.registry import rule_cards, rules_named
from gradience.render.rules import rule_text, rules_text
from gradience.schema.rules import RULES_SCHEMA_ID, RuleCard, RulesReport

__all__ = ["rules"]


def rules(rule_id: str | None = None, /, *, json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """List every rule of every command, those whose ids begin alike, or explain one.

    Parameters
    ----------
    rule_id:
        An id, as LR001, or the beginning of ids, as LR; in any case.
    json:
        Print one JSON document (schemas/rules-report-v1.schema.json).
    """
    cards = rule_cards() if rule_id is None else _named(rule_id)
    if json:
        print_document(RulesReport(schema=RULES_SCHEMA_ID, rules=list(cards)))
    elif len(cards) == 1:
        print_text(rule_text(cards[0]))
    else:
        print_text(rules_text(cards))
    return DONE


def _named(rule_id: str) -> list[RuleCard]:
    found = rules_named(rule_id)
    if not found:
        raise ConfigError(f"no rule is called {rule_id!r}", advice="'gradience rules' lists them")
    return found
