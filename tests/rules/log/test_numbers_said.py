"""What is said of some 300 logs and runs, number by number, and where each rule's answer changes."""

from __future__ import annotations

import json

import pytest
from log_runs import ENTRIES, RUNS, Entry
from said import ABSTAINED, GOLDEN, all_said, changed

from gradience.rules.log import DETECTORS

EXPECTED: dict[str, list[str]] = json.loads(GOLDEN.read_text(encoding="utf-8"))
ELSEWHERE = {  # thresholds whose two sides are held apart in another file
    "ln_vocabulary", "gradient_floor", "spike_floor", "recovered_rows", "vanished_share", "warmup_steps",
    "planned_rows", "few_steps", "guess", "learnt", "all_wrong", "still_share", "rising", "kept", "many_level",
    "scale_evals", "same_ratio", "reward_shown", "base_share", "looked", "lost_steps", "saved_share", "compared",
    "repeated", "once",
}  # fmt: skip


@pytest.fixture(scope="module")
def said() -> dict[str, list[str]]:
    return dict(all_said())


def test_the_golden_file_is_of_these_logs_and_runs(said: dict[str, list[str]]) -> None:
    assert [*said, ABSTAINED] == list(EXPECTED)
    assert len(RUNS) == 2 * sum(len(entry.edges) for entry in ENTRIES.values())


def test_severities_confidences_values_and_the_numbers_of_every_sentence_are_these(said: dict[str, list[str]]) -> None:
    """`python tests/said.py` writes them anew after a change that was meant."""
    assert changed(said, EXPECTED) == {}


def test_the_answer_of_a_rule_changes_between_the_two_sides_of_its_threshold(said: dict[str, list[str]]) -> None:
    alike = []
    for rule, entry in ENTRIES.items():
        for edge in entry.edges:
            below, above = ([line for line in said[name] if line.startswith(rule)] for name in edge.runs(rule))
            alike += [f"{rule} {edge.number}"] if below == above else []
    assert alike == []


def test_every_threshold_of_a_rule_on_logs_has_two_sides_here_or_is_held_elsewhere() -> None:
    numbers = {each.number for entry in ENTRIES.values() for each in (*entry.edges, *entry.at)}
    stated = {threshold.name for rule in DETECTORS if rule.id[3] == "1" for threshold in rule.thresholds}
    assert stated - numbers - ELSEWHERE == set()


def test_every_rule_has_an_entry_where_it_fires_and_where_it_looked_and_is_silent(said: dict[str, list[str]]) -> None:
    lacking = []
    for rule in (each.id for each in DETECTORS if each.groups == ("log",)):  # others have entries where they come from
        entry = ENTRIES.get(rule, Entry())
        answers = [answer for case in entry.at for answer in case.answers.values()]
        for edge in entry.edges:
            for name in edge.runs(rule):
                line = next((line for line in said[name] if line.startswith(rule)), None)
                answers.append("?" if line and ABSTAINED in line else line)
        lacking += [] if None in answers and {*answers} - {None, "?"} else [rule]
    assert lacking == []
