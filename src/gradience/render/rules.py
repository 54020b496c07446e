"""Rules for people: the table by where they apply, and one with its grounds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from gradience.render.text import banner
from gradience.schema.rules import RuleCard, RuleGroup

__all__ = ["rule_text", "rules_text"]

_HEADINGS: Final[dict[RuleGroup, str]] = {
    "config": "A configuration (gradience check)",
    "base": "A configuration beside its base model (gradience check --base)",
    "serve": "A configuration where it will run (gradience check --serve)",
    "log": "A run's log (gradience monitor)",
    "weights": "An adapter's weights (gradience audit)",
    "weights_and_base": "An adapter's weights beside their base (gradience audit --base)",
    "joins": "Several of these that have one cause (gradience diagnose)",
    "merge": "Adapters that may be merged (gradience merge-check)",
}


def rules_text(cards: Sequence[RuleCard]) -> str:
    """Return the rules as a table, a part for each group; a rule that applies in two stands in both."""
    return "\n".join(_table(cards))


def rule_text(card: RuleCard) -> str:
    """Return one rule with its condition, numbers and grounds."""
    return "\n".join(_card(card))


def _table(cards: Sequence[RuleCard]) -> Iterator[str]:
    yield from banner("GRADIENCE RULES")
    for group, heading in _HEADINGS.items():
        members = [card for card in cards if group in card.groups]
        if members:
            yield f"{heading}:"
            yield from (f"{card.id:<8}{card.severity:<9}{_sure(card)}  {card.title}" for card in members)
            yield ""
    yield "Severity is the usual one; confidence is a judgement in 0..1. 'gradience rules LR001' explains one."


def _sure(card: RuleCard) -> str:
    return "   -" if card.confidence is None else f"{card.confidence:.2f}"


def _card(card: RuleCard) -> Iterator[str]:
    yield from banner(f"{card.id}: {card.title}")
    where = "; ".join(_HEADINGS[group] for group in card.groups)
    sure = "" if card.confidence is None else f"{card.confidence:.2f} (a judgement)"
    labelled = {
        "Severity": card.severity,
        "Confidence": sure,
        "Applies to": f"{where[:1].lower()}{where[1:]}",
        "When": card.condition,
        "Scope": card.scope,
        "Why": card.rationale,
        "Action": card.action,
        "Verify": card.verify,
    }
    yield from (f"{f'{label}:':<12}{text}" for label, text in labelled.items() if text)
    yield from _numbers(card)
    if card.evidence:
        yield "Evidence:"
    for ground in card.evidence:
        yield f"  {ground.source}:"
        yield f"      {ground.says}"


def _numbers(card: RuleCard) -> Iterable[str]:
    numbers = [f"  {item.name} = {item.value:g} ({item.unit}): {item.source}" for item in card.thresholds]
    return ["Thresholds:", *numbers] if numbers else []
