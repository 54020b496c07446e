"""The numbers of rules are the records': a severity, a confidence or a threshold that moves is a line of a diff."""

from __future__ import annotations

import re

import pytest
import rules_page
from tables import every

from gradience.cli.main import main
from gradience.render.findings import HEADINGS
from gradience.render.rules import rules_markdown
from gradience.rules import GROUPS, rule_cards
from gradience.schema.document import RuleCard

PAGE = rules_markdown(rule_cards())


def test_the_numbers_are_what_the_records_say() -> None:
    written = rules_page.PAGE.read_text(encoding="utf-8")
    assert written == rules_page.page(), "after a change that was meant: python tests/rules_page.py"


@every("card", rule_cards(), ids=lambda card: card.id)
def test_a_rule_has_one_line_on_the_page_with_its_condition_and_all_of_its_numbers(card: RuleCard) -> None:
    (line,) = re.findall(rf"^\| {card.id} \|(.*)\|$", PAGE, re.MULTILINE)
    severity, confidence, *_, numbers = (cell.strip() for cell in re.split(r"(?<!\\)\|", line))
    assert (severity, float(confidence)) == (card.severity, card.confidence)
    assert card.condition.replace("|", "\\|") in line
    named = dict(item.rsplit(" ", 1) for item in numbers.split("; ") if item)
    assert {name: float(value) for name, value in named.items()} == {
        item.name: float(f"{item.value:.9g}") for item in card.thresholds
    }


@pytest.mark.parametrize("group", ["merge", "weights"])
def test_the_command_prints_the_page_of_all_rules_or_of_a_group(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "--md"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == PAGE.rstrip("\n")
    assert main(["rules", group, "--md"]) == 0
    lines = re.findall(r"^\| ([A-Z]+\d+) \|", capsys.readouterr().out, re.MULTILINE)
    assert set(lines) == {card.id for card in rule_cards() if group in card.groups}


def test_every_group_has_a_heading() -> None:
    assert set(HEADINGS) == set(GROUPS)
