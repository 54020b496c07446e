"""Every id that a report can print is listed once, and explained with its condition, numbers and grounds."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Collection
from functools import cache
from pathlib import Path

from hypothesis import given, strategies as st
from log_runs import ENTRIES
from tables import every

import gradience
from gradience.rules import GROUPS, Description, all_ids, cards_of, rule_cards, rules_named
from gradience.rules.between.rules import BETWEEN_RULES
from gradience.rules.config import RULES
from gradience.rules.data import DATA_RULES
from gradience.rules.joins.run import JOINS
from gradience.rules.log import DETECTORS
from gradience.rules.merge import MERGE_RULES
from gradience.rules.merged import MERGED_RULES
from gradience.rules.served import SERVED_RULES
from gradience.rules.weights.rules import WEIGHTS_RULES
from gradience.schema.document import Evidence, RuleCard

SOURCE = Path(gradience.__file__).parent
ID = re.compile(r"[A-Z]{2,3}\d{3}")
OWN = (*RULES, *WEIGHTS_RULES, *MERGE_RULES, *MERGED_RULES, *SERVED_RULES, *BETWEEN_RULES)
EVERY = (*OWN, *DATA_RULES, *DETECTORS, *JOINS)


@cache
def nodes() -> list[tuple[Path, ast.AST]]:
    """Every constant and every call of a name in the program, with its file."""
    trees = [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(SOURCE.rglob("*.py"))]
    return [
        (path, node) for path, tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant | ast.Call)
    ]


def calls(names: Collection[str]) -> list[ast.Call]:
    return [node for _, node in nodes() if isinstance(node, ast.Call) and getattr(node.func, "id", "") in names]


def records(of: type = Description) -> set[str]:
    """The names of the kinds of rules: the record of a rule, of a correlation, and those of each family of rules."""
    return {of.__name__}.union(*map(records, of.__subclasses__()))


def ids_written() -> dict[str, Path]:
    """Every string in the program that has the shape of an id: a rule cannot be made without one."""
    return {
        node.value: path
        for path, node in nodes()
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and ID.fullmatch(node.value)
    }


def test_every_id_in_the_program_is_listed() -> None:
    written = ids_written()
    assert len(written) > 80
    assert {rule: path.name for rule, path in written.items() if rule not in all_ids()} == {}


def test_every_id_that_is_listed_is_in_the_program_and_listed_once() -> None:
    assert sorted(set(all_ids())) == sorted(all_ids())
    assert set(all_ids()) <= ids_written().keys()


def recorded() -> list[tuple[str, Path]]:
    """The id that each record of a rule begins with, and the record's file."""
    calls = [(path, node) for path, node in nodes() if isinstance(node, ast.Call)]
    return [
        (first.value, path)
        for path, call in calls
        if getattr(call.func, "id", "") in records()
        for first in call.args[:1]
        if isinstance(first, ast.Constant)
    ]


def test_an_id_stands_in_one_record() -> None:
    assert sorted(rule for rule, _ in recorded()) == sorted(all_ids())


def test_a_finding_gets_its_id_from_a_rule_and_not_from_a_text() -> None:
    """So no id can be put together from pieces that the walk above would not see."""
    named = [kw.value for call in calls({"Finding", "NotRun"}) for kw in call.keywords if kw.arg == "id"]
    assert len(named) > 4
    assert all(isinstance(value, (ast.Attribute, ast.Name)) for value in named)


@every("card", rule_cards(), ids=lambda card: card.id)
def test_every_rule_says_when_how_sure_where_and_what_would_verify_it(card: RuleCard) -> None:
    assert ID.fullmatch(card.id)
    assert card.groups
    words = (card.title, card.condition, card.scope, card.verify)
    assert all(words)
    assert not any("{" in text or "None" in text for text in words)
    assert card.confidence is not None
    assert 0.0 < card.confidence <= 1.0
    assert all(number.name and number.unit and number.source for number in card.thresholds)


@every("rule", OWN, ids=lambda rule: rule.id)
def test_a_condition_has_the_number_of_every_threshold_and_each_threshold_is_the_rule_s(rule) -> None:
    named = [name for _, name, _, _ in string.Formatter().parse(rule.condition) if name]
    assert set(named) == {item.name for item in rule.thresholds}


def test_a_correlation_says_which_findings_of_which_sources_it_puts_together() -> None:
    cards = {join.id: join.speaks_when for join in JOINS}
    assert cards["SAV303"] == ("log: neither NOL106 nor GRD108; weights: TRN202 (untrained). It takes log and weights")


def test_no_ground_is_written_twice() -> None:
    """One that several rules cite is a constant, which they share; a Source in a docstring is of that rule alone."""
    cited: dict[Evidence, set[int]] = {}
    for rule in EVERY:
        for ground in rule.evidence:
            cited.setdefault(ground, set()).add(id(ground))
    assert len(cited) > 150
    assert [ground for ground, written in cited.items() if len(written) > 1] == []


def test_every_group_has_rules_and_a_rule_of_two_groups_is_in_both() -> None:
    assert all(cards_of(group) for group in GROUPS)
    of_settings = {"CLN001", "LR001", "LR003", "STP001"}
    assert {rule.id for rule in DETECTORS} | of_settings == {card.id for card in cards_of("log")}
    for rule in ("TRN202", "NUM201", "RND203"):
        (card,) = rules_named(rule)
        assert card.groups == ["weights", "log"]
        assert card in cards_of("log")
        assert card in cards_of("weights")
    (card,) = rules_named("DAT301")
    assert card.groups == ["data", "log"]


@every("rule", (*DATA_RULES, *WEIGHTS_RULES), ids=lambda rule: rule.id)
def test_a_rule_that_judges_logs_too_is_listed_with_its_own_premises(rule) -> None:
    (card,) = rules_named(rule.id)
    assert (card.premises, card.condition) == (rule.premises, rule.speaks_when)


def test_a_name_is_an_id_or_the_beginning_of_some_in_any_case() -> None:
    assert [card.id for card in rules_named("lr")] == [rule for rule in all_ids() if rule.startswith("LR")]
    assert [card.id for card in rules_named(" lr001 ")] == ["LR001"]
    assert rules_named("LR999") == rules_named("") == []


@given(st.sampled_from(all_ids()), st.integers(1, 6))
def test_any_beginning_of_an_id_finds_it(rule: str, length: int) -> None:
    found = [card.id for card in rules_named(rule[:length])]
    assert rule in found
    assert all(other.startswith(rule[:length]) for other in found)


def test_every_rule_is_in_the_tests_of_its_family(root: Path) -> None:
    """Rules on configurations and logs have entries, which their tables demand; of others the ids are looked for."""
    tested = "".join(path.read_text(encoding="utf-8") for path in (root / "tests" / "rules").rglob("test_*.py"))
    assert [rule for rule in all_ids() if rule not in tested and rule not in ENTRIES] == []


def test_nothing_but_its_record_names_a_rule() -> None:
    """Joins, stories, the diagnosis and the recorder know rules by what their records say; a text for people may."""
    records_in = dict(recorded())
    named = {
        (node.value, path.name)
        for path, node in nodes()
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in records_in
        if records_in[node.value] != path
    }
    assert {file for _, file in named} == {"recorded.py"}  # where rules on data judge what the recorder saw
    assert {rule[:3] for rule, _ in named} == {"DAT"}
