"""Each rule on logs on both sides of each of its thresholds, from the table in `log_runs`: ENTRIES."""

from __future__ import annotations

import re
from typing import Any

from log_runs import ENTRIES, Edge, Entry, said
from tables import every

from gradience.rules.log import DETECTORS

_NUMBER = re.compile(r"[-+]?\d[\d.,e+-]*")
EDGES = [(rule, edge) for rule, entry in ENTRIES.items() for edge in entry.edges]
ELSEWHERE = {  # thresholds whose two sides are held apart in another file
    "gradient_floor", "spike_floor", "recovered_rows", "vanished_share", "warmup_steps",
    "planned_rows", "guess", "learnt", "all_wrong", "kept", "many_level",
    "base_share", "looked", "lost_steps", "saved_share", "compared",
    "repeated", "once", "unmoved", "at_rate",
}  # fmt: skip


def letter(finding: Any) -> str:
    """The answer of a rule as the table has it."""
    if finding is None:
        return "-"
    return "?" if isinstance(finding, str) else finding.severity[0]


@every(("rule", "edge"), EDGES, ids=[f"{rule} {edge.number}" for rule, edge in EDGES])
def test_a_rule_answers_so_on_each_side_of_its_threshold(rule: str, edge: Edge) -> None:
    values = (edge.below, edge.above) if edge.at is None else (edge.below, edge.above, edge.at)
    answers = [said(rule, edge.make(value)) for value in values]
    assert "".join(map(letter, answers)) == edge.answers
    assert close(edge.below, edge.above), "between sides so far apart a threshold may be wrong by as much"
    if edge.says is not None:
        one, other = (" ".join([answer.message, *(each.says for each in answer.evidence)]) for answer in answers[:2])
        assert [edge.says[0] in one, edge.says[0] in other, edge.says[1] in one, edge.says[1] in other] == [1, 0, 0, 1]
        return
    assert told(answers[0]) != told(answers[1]), "both sides give the same answer"


def close(one: float, other: float) -> bool:
    """Whether two sides are near: whole numbers that follow each other, 0 and nearly 0, or under 1.5 times apart."""
    least, most = sorted((abs(one), abs(other)))
    if isinstance(one, int) and isinstance(other, int) and abs(one - other) == 1:
        return True
    return most <= 1.5 * least if least else most in {1e-6, 1e-9, 1.0}


def told(answer: Any) -> tuple[str, float | None, str]:
    """An answer without its numbers, which differ wherever the runs do."""
    if isinstance(answer, str) or answer is None:
        return "", None, _NUMBER.sub("#", answer or "")
    return answer.severity, answer.confidence, _NUMBER.sub("#", f"{answer.message} {answer.action}")


def test_every_threshold_of_a_rule_on_logs_has_two_sides_here_or_is_held_elsewhere() -> None:
    numbers = {each.number for entry in ENTRIES.values() for each in (*entry.edges, *entry.at)}
    stated = {threshold.name for rule in DETECTORS if rule.id[3] == "1" for threshold in rule.thresholds}
    assert stated - numbers - ELSEWHERE == set()


def test_every_rule_has_an_entry_where_it_fires_and_where_it_looked_and_is_silent() -> None:
    lacking = []
    for rule in (each.id for each in DETECTORS if each.groups == ("log",)):  # others have entries where they come from
        entry = ENTRIES.get(rule, Entry())
        answers = {answer for case in entry.at for answer in case.answers.values()}
        answers |= {None if answer == "-" else answer for edge in entry.edges for answer in edge.answers}
        lacking += [] if None in answers and answers - {None, "?"} else [rule]
    assert lacking == []
