"""The page of rules in Markdown: a line for each rule, from its record. The site has it as its page "Every rule"."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from gradience.render.findings import HEADINGS
from gradience.schema.document import RuleCard

_TOP: Final = """\
# Every rule

A line for each rule, from its record: when it reports, and only where. Severity is the usual one; a finding may be
milder or graver. Confidence is a judgement, in 0..1. `gradience rules LR001` explains a rule with its evidence, the
units and sources of its thresholds, and how to verify a finding. `--select` and `--ignore` take the ids. A rule's
passport is what shows that its fault is met: a public run on which it was right, a complaint whose cause it names, a
documented behaviour of a library, or arithmetic. What each says is in `gradience rules` with the rule's id.
"""


def rules_markdown(cards: Sequence[RuleCard]) -> str:
    """The rules as tables, one for each group, each rule in the first group that it belongs to."""
    return "\n".join(_lines(cards))


def _lines(cards: Sequence[RuleCard]) -> Iterator[str]:
    yield from _TOP.splitlines()
    for group, heading in HEADINGS.items():
        members = [card for card in cards if card.groups[0] == group]
        if members:
            yield from ("", f"## {heading}", "")
            yield "| id | severity | confidence | finds | reports when | only where | passport | thresholds |"
            yield "|---|---|---|---|---|---|---|---|"
            yield from map(_line, members)


def _line(card: RuleCard) -> str:
    numbers = "; ".join(f"{item.name} {item.value:.9g}" for item in card.thresholds)
    also = "".join(f" (also: {group})" for group in card.groups[1:])
    cells = (
        *(card.id, card.severity, f"{card.confidence:g}", card.title + also),
        *(card.condition, "; ".join(card.premises), "; ".join(each.source for each in card.passports), numbers),
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |".replace("|  |", "| |")
