"""The page of rules is the records: a severity, a confidence or a threshold that moves is a line of a diff."""

from __future__ import annotations

import re
from pathlib import Path

import rules_page
from tables import every

from gradience.render.findings import HEADINGS
from gradience.rules import GROUPS, rule_cards
from gradience.schema.document import RuleCard


def test_the_page_is_what_the_records_say(root: Path) -> None:
    written = (root / "docs" / "rules.md").read_text(encoding="utf-8")
    assert written == rules_page.page(), "after a change that was meant: python tests/rules_page.py"


@every("card", rule_cards(), ids=lambda card: card.id)
def test_a_rule_has_one_line_with_all_of_its_numbers(card: RuleCard, root: Path) -> None:
    written = (root / "docs" / "rules.md").read_text(encoding="utf-8")
    (line,) = re.findall(rf"^\| {card.id} \|(.*)\|$", written, re.MULTILINE)
    severity, confidence, *_, numbers = (cell.strip() for cell in line.split("|"))
    assert (severity, float(confidence)) == (card.severity, card.confidence)
    named = dict(item.rsplit(" ", 1) for item in numbers.split("; ") if item)
    assert {name: float(value) for name, value in named.items()} == {
        item.name: float(f"{item.value:.9g}") for item in card.thresholds
    }


def test_every_group_has_a_heading() -> None:
    assert set(HEADINGS) == set(GROUPS)
