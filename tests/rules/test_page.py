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
def test_a_rule_is_on_the_page_once_with_its_condition_and_all_of_its_numbers(card: RuleCard) -> None:
    (text,) = re.findall(rf"^### {card.id}: (.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    title, weight, *items = text.strip().replace("\n\n", "\n").splitlines()
    assert title == card.title
    assert weight.split(";")[0] == f"- {card.severity}, confidence {card.confidence:g}"
    named = dict(item.removeprefix("- ").split(": ", 1) for item in items)
    assert named["when"] == card.condition
    numbers = dict(re.findall(r"`(\w+)` ([^;]+)", named.get("thresholds", "")))
    assert {name: float(value) for name, value in numbers.items()} == {
        item.name: float(f"{item.value:.9g}") for item in card.thresholds
    }
    assert named.get("passport", "") == "; ".join(f"`{each.source}`" for each in card.passports)


@pytest.mark.parametrize("group", ["merge", "weights"])
def test_the_command_prints_the_page_of_all_rules_or_of_a_group(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "--md"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == PAGE.rstrip("\n")
    assert main(["rules", group, "--md"]) == 0
    lines = re.findall(r"^### ([A-Z]+\d+):", capsys.readouterr().out, re.MULTILINE)
    assert set(lines) == {card.id for card in rule_cards() if group in card.groups}


def test_every_group_has_a_heading() -> None:
    assert set(HEADINGS) == set(GROUPS)
