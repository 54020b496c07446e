"""The page of rules in Markdown, from their records. The site has a page for each group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from gradience.render.findings import HEADINGS
from gradience.schema.document import RuleCard

_TOP: Final = """\
# Every rule

Each rule as its record has it: when it reports, and only where. Severity is the usual one; a finding may be
milder or graver. Confidence is a judgement, in 0..1. `gradience rules LR001` explains a rule with its evidence, the
units and sources of its thresholds, and how to verify a finding. `--select` and `--ignore` take the ids. A rule's
passport is what shows that its fault is met: a public run on which it was right, a complaint whose cause it names, a
documented behaviour of a library, or arithmetic. What each says is in `gradience rules` with the rule's id.
"""


def rules_markdown(cards: Sequence[RuleCard]) -> str:
    """The rules under a heading for each group, each rule in the first group that it belongs to."""
    return "\n".join(_lines(cards))


def _lines(cards: Sequence[RuleCard]) -> Iterator[str]:
    yield from _TOP.splitlines()
    for group, heading in HEADINGS.items():
        members = [card for card in cards if card.groups[0] == group]
        if members:
            yield from ("", f"## {heading}")
        for card in members:
            yield from ("", f"### {card.id}: {card.title}", "", *_items(card))


def _items(card: RuleCard) -> Iterator[str]:
    also = "".join(f"; also: {group}" for group in card.groups[1:])
    yield f"- {card.severity}, confidence {card.confidence:g}{also}"
    numbers = "; ".join(f"`{item.name}` {item.value:.9g}" for item in card.thresholds)
    named = {
        "when": card.condition,
        "only where": "; ".join(card.premises),
        "thresholds": numbers,
        "passport": "; ".join(f"`{each.source}`" for each in card.passports),
    }
    yield from (f"- {name}: {text}" for name, text in named.items() if text)
