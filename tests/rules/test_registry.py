"""Every id that a report can print is listed once, and explained with its condition, numbers and grounds."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradience
from gradience.rules import evidence as configs
from gradience.rules import evidence as joins
from gradience.rules import evidence as runs
from gradience.rules import evidence as weights
from gradience.rules.conditions import CONDITIONS
from gradience.rules.joins.run import ALL_JOINS as JOINS
from gradience.rules.merge import rules as merge_rules
from gradience.rules.registry import GROUPS, all_ids, cards_of, rule_cards, rules_named
from gradience.schema.findings import Evidence, RuleCard

SOURCE = Path(gradience.__file__).parent
ID = re.compile(r"[A-Z]{2,3}\d{3}")
TABLES = (configs, joins, runs, weights)


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def ids_written() -> dict[str, Path]:
    """Every string in the program that has the shape of an id: a rule cannot be made without one."""
    return {
        node.value: path
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and ID.fullmatch(node.value)
    }


def test_every_id_in_the_program_is_listed() -> None:
    written = ids_written()
    assert len(written) > 80
    assert {rule: path.name for rule, path in written.items() if rule not in all_ids()} == {}


def test_every_id_that_is_listed_is_in_the_program_and_listed_once() -> None:
    assert sorted(set(all_ids())) == sorted(all_ids())
    assert set(all_ids()) <= ids_written().keys()


def test_a_finding_gets_its_id_from_a_rule_and_not_from_a_text() -> None:
    """So no id can be put together from pieces that the walk above would not see."""
    named = [
        keyword.value
        for _, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in {"Finding", "NotRun"}
        for keyword in node.keywords
        if keyword.arg == "id"
    ]
    assert len(named) > 5
    assert all(isinstance(value, (ast.Attribute, ast.Name)) for value in named)


@pytest.mark.parametrize("card", rule_cards(), ids=lambda card: card.id)
def test_every_rule_says_when_how_sure_where_and_what_would_verify_it(card: RuleCard) -> None:
    assert ID.fullmatch(card.id)
    assert card.groups
    words = (card.title, card.condition, card.scope, card.action, card.verify)
    assert all(words)
    assert not any("{" in text or "None" in text for text in words)
    assert card.confidence is not None
    assert 0.0 < card.confidence <= 1.0
    assert all(number.name and number.unit and number.source for number in card.thresholds)


def test_every_sentence_on_a_condition_belongs_to_a_rule() -> None:
    assert CONDITIONS.keys() == set(all_ids()) - {join.id for join in JOINS}


def test_the_numbers_in_a_condition_are_those_of_the_rule() -> None:
    (card,) = rules_named("BAT001")
    assert [f"{number.value:g}" for number in card.thresholds] == ["256"]
    assert card.condition == "more than 256 sequences per optimizer step"


def entries() -> list[Evidence]:
    return [value for table in TABLES for value in vars(table).values() if isinstance(value, Evidence)]


def test_a_rule_cites_from_the_tables_of_evidence_and_nowhere_else() -> None:
    known = {(item.source, item.says) for item in entries()}
    own = {(item.source, item.says) for rule in merge_rules.MERGE_RULES for item in rule.evidence}
    cited = {(item.source, item.says): card.id for card in rule_cards() for item in card.evidence}
    assert {rule for ground, rule in cited.items() if ground not in known | own} == set()


def test_nothing_stands_twice_in_the_tables_of_evidence_and_every_entry_is_exported() -> None:
    said = [(item.source, item.says) for item in entries()]
    assert len(said) == len(set(said))
    for table in TABLES:
        assert set(table.__all__) == {name for name, value in vars(table).items() if isinstance(value, Evidence)}


def test_every_group_has_rules_and_a_rule_of_two_groups_is_in_both() -> None:
    assert all(cards_of(group) for group in GROUPS)
    (card,) = rules_named("UTL204")
    assert card in cards_of("log")
    assert card in cards_of("weights")


def test_a_name_is_an_id_or_the_beginning_of_some_in_any_case() -> None:
    assert [card.id for card in rules_named("lr")] == [rule for rule in all_ids() if rule.startswith("LR")]
    assert [card.id for card in rules_named(" lr001 ")] == ["LR001"]
    assert rules_named("LR999") == rules_named("") == []


@given(st.sampled_from(all_ids()), st.integers(1, 6))
def test_any_beginning_of_an_id_finds_it(rule: str, length: int) -> None:
    found = [card.id for card in rules_named(rule[:length])]
    assert rule in found
    assert all(other.startswith(rule[:length]) for other in found)
