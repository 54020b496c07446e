"""The page docs/rules.md: one line for each rule, from its record.

It is the one place, beside the record, where a rule's severity, confidence and thresholds stand, so that a change of
one shows in a diff. After an intended change, or for a new rule, `python tests/rules_page.py` (`nox -s rules_page`)
writes the page again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gradience.render.findings import HEADINGS
from gradience.rules import rule_cards
from gradience.schema.document import RuleCard

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "rules.md"
_TOP: Final = """\
# Every rule

A line for each rule, from its record: when it reports, and only where. Severity is the usual one; a finding may be
milder or graver. Confidence is a judgement, in 0..1. `gradience rules LR001` explains a rule with its evidence, the
units and sources of its thresholds, and how to verify a finding. `--select` and `--ignore` take the ids.

This page is written by `python tests/rules_page.py`; do not edit it.
"""


def page() -> str:
    """The page, from the rules as they are."""
    return "\n".join([_TOP, *_sections()])


def _sections() -> Iterator[str]:
    for group, heading in HEADINGS.items():
        yield f"## {heading}\n"
        yield "| id | severity | confidence | finds | reports when | only where | thresholds |"
        yield "|---|---|---|---|---|---|---|"
        yield from (_line(card) for card in rule_cards() if card.groups[0] == group)
        yield ""


def _line(card: RuleCard) -> str:
    numbers = "; ".join(f"{item.name} {item.value:.9g}" for item in card.thresholds)
    also = "".join(f" (also: {group})" for group in card.groups[1:])
    cells = (
        *(card.id, card.severity, f"{card.confidence:g}", card.title + also),
        *(card.condition, "; ".join(card.premises), numbers),
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |".replace("|  |", "| |")


if __name__ == "__main__":
    sys.stdout.write(f"{PAGE}\n")
    PAGE.write_text(page(), encoding="utf-8")
