"""Every rule of every command as a card of one shape: what may be listed, explained, selected and ignored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Protocol

from gradience.rules.conditions import condition_of, condition_of_join
from gradience.rules.config import coverage as rules_coverage
from gradience.rules.config import serving as rules_serving
from gradience.rules.config.judge import RULES
from gradience.rules.joins.run import ALL_JOINS as JOINS
from gradience.rules.log.judge import DETECTED, DETECTORS
from gradience.rules.merge.rules import MERGE_RULES
from gradience.rules.rule import Threshold
from gradience.rules.weights.table import ADAPTER_CHECKS
from gradience.schema.findings import Evidence, RuleCard, RuleGroup, RuleThreshold
from gradience.schema.scalars import Severity

GROUPS: tuple[RuleGroup, ...] = ("config", "base", "serve", "log", "weights", "weights_and_base", "joins", "merge")
_BASE = frozenset(rule.id for rule in rules_coverage.RULES)
_SERVE = frozenset(rule.id for rule in rules_serving.RULES)


class _Described(Protocol):
    """What rules, detectors, checks and joins all say of themselves."""

    @property
    def id(self) -> str: ...
    @property
    def severity(self) -> Severity: ...
    @property
    def title(self) -> str: ...
    @property
    def confidence(self) -> float: ...
    @property
    def scope(self) -> str: ...
    @property
    def rationale(self) -> str | None: ...
    @property
    def action(self) -> str: ...
    @property
    def verify(self) -> str | None: ...
    @property
    def thresholds(self) -> tuple[Threshold, ...]: ...
    @property
    def evidence(self) -> tuple[Evidence, ...]: ...


@cache
def rule_cards() -> tuple[RuleCard, ...]:
    """Return a card for every rule, each id once, in the order of the groups."""
    cards = {card.id: card for card in _cards()}
    return tuple(sorted(cards.values(), key=lambda card: GROUPS.index(card.groups[0])))


def cards_of(*groups: RuleGroup) -> list[RuleCard]:
    """Return the rules that apply in any of the groups."""
    return [card for card in rule_cards() if not set(groups).isdisjoint(card.groups)]


def all_ids() -> Sequence[str]:
    """Return the ids of every rule: what a project's settings may name."""
    return [card.id for card in rule_cards()]


def rules_named(name: str) -> list[RuleCard]:
    """Return the rule of this id, else those whose ids begin so, in any case; none for an empty name."""
    wanted = name.strip().upper()
    begun = [card for card in rule_cards() if wanted and card.id.startswith(wanted)]
    return [card for card in begun if card.id == wanted] or begun


def _cards() -> Iterator[RuleCard]:
    for rule in RULES:
        yield _card(rule, "base" if rule.id in _BASE else "serve" if rule.id in _SERVE else "config")
    checked = {check.id for check in ADAPTER_CHECKS}
    yield from (_card(detector, "log") for detector in DETECTORS if detector.id not in checked)
    for check in ADAPTER_CHECKS:
        also: tuple[RuleGroup, ...] = ("log",) if check.id in DETECTED else ()
        yield _card(check, "weights_and_base" if check.needs_base else "weights", *also)
    yield from (_card(join, "joins", condition=condition_of_join(join)) for join in JOINS)
    yield from (_card(rule, "merge") for rule in MERGE_RULES)


def _card(item: _Described, *groups: RuleGroup, condition: str = "") -> RuleCard:
    return RuleCard(
        id=item.id,
        title=item.title,
        groups=list(groups),
        severity=item.severity,
        condition=condition or condition_of(item.id, item.thresholds),
        confidence=item.confidence,
        scope=item.scope,
        rationale=item.rationale or "",
        action=item.action,
        verify=item.verify or "",
        thresholds=[RuleThreshold(**number._asdict()) for number in item.thresholds],
        evidence=list(item.evidence),
    )
