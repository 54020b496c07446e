"""What is said of some 300 logs and runs, number by number, and where each rule's answer changes."""

from __future__ import annotations

import json

import pytest
from log_runs import EDGES, RUNS, Edge
from said import GOLDEN, all_said

from gradience.rules.log.judge import DETECTORS

EXPECTED: dict[str, list[str]] = json.loads(GOLDEN.read_text(encoding="utf-8"))
ELSEWHERE = {  # thresholds whose two sides are held apart in another file
    "ln_vocabulary", "gradient_floor", "spike_floor",
}  # fmt: skip


@pytest.fixture(scope="module")
def said() -> dict[str, list[str]]:
    return dict(all_said())


def test_the_golden_file_is_of_these_logs_and_runs(said: dict[str, list[str]]) -> None:
    assert list(said) == list(EXPECTED)
    assert len(RUNS) == 2 * len(EDGES)


@pytest.mark.parametrize("name", EXPECTED)
def test_severities_confidences_values_and_the_numbers_of_every_sentence_are_these(
    name: str, said: dict[str, list[str]]
) -> None:
    """`python tests/said.py` writes them anew after a change that was meant."""
    assert said[name] == EXPECTED[name]


@pytest.mark.parametrize("edge", EDGES, ids=lambda edge: f"{edge.rule}-{edge.number}")
def test_the_answer_of_a_rule_changes_between_the_two_sides_of_its_threshold(
    edge: Edge, said: dict[str, list[str]]
) -> None:
    below, above = ([line for line in said[name] if line.startswith(edge.rule)] for name in edge.names)
    assert below != above


def test_every_threshold_of_a_rule_on_logs_has_two_sides_here_or_is_held_elsewhere() -> None:
    numbers = {edge.number for edge in EDGES}
    stated = {threshold.name for rule in DETECTORS if rule.id[3] == "1" for threshold in rule.thresholds}
    assert stated - numbers - ELSEWHERE == set()
