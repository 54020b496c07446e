"""Every rule of every command as one list of cards: what may be listed, explained, selected and ignored."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final, get_args

from gradience.errors import ConfigError
from gradience.rules.config import RULES
from gradience.rules.data import DATA_RULES
from gradience.rules.joins.run import JOINS
from gradience.rules.log import DETECTORS
from gradience.rules.merge import MERGE_RULES
from gradience.rules.rule import Description, card
from gradience.rules.weights.rules import WEIGHTS_RULES
from gradience.schema.findings import RULES_SCHEMA_ID, RuleCard, RuleGroup, RulesReport

GROUPS: Final[tuple[RuleGroup, ...]] = get_args(RuleGroup)


@cache
def rule_cards() -> tuple[RuleCard, ...]:
    """A card for every rule, each id once, in the order of the groups."""
    every: tuple[Description, ...] = (*RULES, *DATA_RULES, *DETECTORS, *WEIGHTS_RULES, *JOINS, *MERGE_RULES)
    cards = {rule.id: card(rule) for rule in every}
    return tuple(sorted(cards.values(), key=lambda each: GROUPS.index(each.groups[0])))


def cards_of(*groups: RuleGroup) -> list[RuleCard]:
    """The rules that apply in any of the groups."""
    return [each for each in rule_cards() if not set(groups).isdisjoint(each.groups)]


def all_ids() -> Sequence[str]:
    """The ids of every rule: what a project's settings may name."""
    return [each.id for each in rule_cards()]


def rules_named(name: str) -> list[RuleCard]:
    """The rule of this id, else those whose ids begin so, in any case; nothing for an empty name."""
    wanted = name.strip().upper()
    begun = [each for each in rule_cards() if wanted and each.id.startswith(wanted)]
    return [each for each in begun if each.id == wanted] or begun


def list_rules(prefix: str | None = None) -> RulesReport:
    """Return every rule, or those whose id begins with a text such as `LR`; case does not matter.

    Raises:
        ConfigError: no id begins so.
    """
    cards = rule_cards() if prefix is None else rules_named(prefix)
    if not cards:
        raise ConfigError(f"unknown rule {prefix!r}", advice="'gradience rules' lists them")
    return RulesReport(schema=RULES_SCHEMA_ID, rules=list(cards))
