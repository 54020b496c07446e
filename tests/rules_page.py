"""tests/golden/rules.txt: a line for each rule with its severity, confidence and thresholds.

It is the one place, beside the record, where they stand, so that a change of one shows in a diff. After an intended
change, or for a new rule, `python tests/rules_page.py` (`nox -s rules_page`) writes it again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from gradience.rules import rule_cards
from gradience.schema.document import RuleCard

PAGE: Final = Path(__file__).resolve().parent / "golden" / "rules.txt"


def page() -> str:
    """The lines, from the rules as they are."""
    return "".join(map(_line, rule_cards()))


def _line(card: RuleCard) -> str:
    numbers = "; ".join(f"{item.name} {item.value:.9g} {item.unit}" for item in card.thresholds)
    return f"{card.id} {card.severity} {card.confidence:g} {numbers}".rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(f"{PAGE}\n")
    PAGE.write_text(page(), encoding="utf-8")
