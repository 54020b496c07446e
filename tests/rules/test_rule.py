"""The record of a rule: what a finding takes from it, what makes it abstain, and what its card shows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from tables import every

from gradience.configs.training import Objective
from gradience.errors import few
from gradience.rules import Observation, Premise, Rule, Threshold, Unknown, card, finding, judge
from gradience.rules.log.facts import not_under, under
from gradience.schema.document import Evidence

BOOK = Evidence(source="a book", says="that it is so")
PAPER = Evidence(source="a paper", says="so it is")
SEEN = Evidence(source="the input", says="so it was")
RECORD: Rule[int] = Rule(
    "ABC001",
    groups=("config", "log"),
    severity="warning",
    confidence=0.7,
    thresholds=(Threshold("bar", 2.5, "pieces", "a judgement"),),
    evidence=(PAPER,),
)


@RECORD
def large(n):
    """large

    over {bar}
    of them

    Why: because: it
        is so
    Scope: numbers
    Action: make it smaller
    Verify: look again
    Source: a book -- that it
        is so
    Seen: https://github.com/o/n/issues/1 -- that it
        was so
    """
    return Observation(f"{n} is large", {"n": n}) if n > 2.5 else None


RULE = large


def test_a_finding_is_the_rule_s_where_the_observation_says_nothing_else():
    made = finding(RULE, Observation("seen", {"n": 3}))
    assert (made.id, made.severity, made.confidence, made.action) == ("ABC001", "warning", 0.7, "make it smaller")
    assert (made.rationale, made.scope, made.verify) == ("because: it is so", "numbers", "look again")
    assert made.evidence == [BOOK, PAPER]
    assert made.values == {"n": 3}


def test_an_observation_overrides_what_it_states_even_a_confidence_of_zero():
    seen = Observation(
        "seen", severity="info", confidence=0.0, action="wait", rationale="since", evidence=(SEEN, PAPER)
    )  # fmt: skip
    made = finding(RULE, seen)
    assert (made.severity, made.confidence, made.action, made.rationale) == ("info", 0.0, "wait", "since")
    assert made.evidence == [SEEN, PAPER, BOOK]  # what was seen first, and nothing twice


@every(("value", "stored"), [(math.nan, "NaN"), (math.inf, "Infinity"), (1.5, 1.5), (None, None), (3, 3)])
def test_values_are_json(value, stored):
    assert finding(RULE, Observation("seen", {"x": value})).values == {"x": stored}


def test_a_rule_observes_once_often_or_not_at_all():
    many = replace(RULE, observe=lambda n: [Observation(str(i)) for i in range(n)])
    assert [item.message for item in judge([RULE, many], 3).findings] == ["3 is large", "0", "1", "2"]
    assert judge([RULE], 2) == ([], [], [])


def test_the_gravest_finding_comes_first_whatever_the_order_of_the_rules():
    rules = [replace(RULE, id=f"ABC00{i}", severity=s) for i, s in enumerate(("info", "critical", "warning", "error"))]
    assert [item.severity for item in judge(rules, 3).findings] == ["critical", "error", "warning", "info"]


def test_a_need_that_is_lacking_is_the_reason_and_the_first_one_counts():
    def explode(_):
        raise AssertionError

    rule = replace(RULE, observe=explode, needs=(lambda _: None, lambda n: f"{n} is odd", lambda _: "never asked"))
    assert [(item.id, item.reason) for item in judge([rule], 3).not_run] == [("ABC001", "3 is odd")]


def test_what_was_observed_before_the_unknown_is_kept_and_both_are_reported():
    def observe(n):
        yield Observation("one thing")
        raise Unknown(f"not {n}")

    found, not_run, _ = judge([replace(RULE, observe=observe)], 7)
    assert [item.message for item in found] == ["one thing"]
    assert [(item.id, item.reason) for item in not_run] == [("ABC001", "not 7")]


def test_a_rule_that_is_not_meant_for_the_facts_is_not_even_mentioned():
    odd, lacking = Premise("odd", lambda n: None if n % 2 else "even"), Premise("never", lambda _: "lacking")
    rule = replace(RULE, meant_for=odd, needs=(lacking,))
    assert judge([rule], 4) == ([], [], [])
    assert [item.reason for item in judge([rule], 3).not_run] == ["lacking"]
    assert rule.premises == ["odd", "never"]
    assert replace(RULE, needs=(lacking,)).premises == ["never"]


def test_a_card_is_the_record_with_the_numbers_in_its_condition():
    made = card(RULE)
    assert (made.condition, made.groups, made.confidence) == ("over 2.5 of them", ["config", "log"], 0.7)
    assert [(each.kind, each.source, each.says) for each in made.passports] == [
        ("complaint", "https://github.com/o/n/issues/1", "that it was so")
    ]
    assert made.evidence == [BOOK, PAPER]
    assert [(item.name, item.value, item.unit, item.source) for item in made.thresholds] == [
        ("bar", 2.5, "pieces", "a judgement")
    ]


def described(doc):
    def observe(_):
        return None

    observe.__doc__ = doc
    return observe


@every(
    ("doc", "says"),
    [
        ("t\n\nc\n\nScope: s\nVerify: v\nHow: h", "unknown section How in its docstring; known: Why, Scope"),
        ("t\n\nc\n\nScope: s\nVerify: v\nScope: again", "two sections Scope"),
        ("t\n\nc\n\nScope: s\nVerify: v\nSource: a book", "Source: a book: expected a source, ' -- ' and what it says"),
        ("t\n\nc\n\nScope: s\nVerify: v\nSeen: a run", "Seen: a run: expected a source, ' -- ' and what it says"),
        ("t\n\nc\n\nScope: s\nVerify: v\nSeen: a run -- so", "Seen: a run: expected a public run or a complaint"),
        ("t\n\nc\n\nScope: s", "the docstring of its function has no Verify"),
        ("t\n\nc\n\nVerify: v", "the docstring of its function has no Scope"),
        ("t\n\nScope: s\nVerify: v", "the docstring of its function has no condition"),
        ("", "the docstring of its function has no title"),
    ],
)
def test_a_docstring_without_a_section_or_with_one_too_many_is_refused(doc, says):
    with pytest.raises(ValueError, match=f"^ABC001: .*{says}"):
        RECORD(described(doc))


def test_a_section_of_the_family_holds_where_the_docstring_has_none():
    made = replace(RECORD, scope="all", verify="see")(described("t\n\nc\n\nVerify: look"))
    assert (made.scope, made.verify, made.rationale, made.action) == ("all", "look", "", "")


class Run:
    objective = Objective("rl", "task grpo", stated=True)


def test_a_rule_for_some_objectives_applies_under_them_alone():
    assert under("preference", "rl")(Run()) is None
    assert under("sft")(Run()) == under("sft").says == "the objective is sft"


def test_a_rule_that_an_objective_makes_meaningless_says_so():
    assert not_under("rl", "sft").says == "the objective is not rl or sft"
    assert not_under("rl")(Run()) == "does not fit the objective rl (task grpo)"
    assert not_under("sft", "preference")(Run()) is None


@every(
    ("names", "text"),
    [([], ""), (["a"], "a"), (["a", "b", "c"], "a, b, c"), (["a", "b", "c", "d", "e"], "a, b, c and 2 more")],
)
def test_many_names_are_shown_as_the_first_three_and_a_count(names, text):
    assert few(list(names)) == text


def test_what_a_reading_reports_is_no_finding_and_can_be_left_out():
    readings = [replace(RULE, id="ABC002", reading=True), RULE, replace(RULE, id="ABC003", reading=True)]
    verdict = judge(readings, 3)
    assert [item.id for item in verdict.findings] == ["ABC001"]
    assert [item.id for item in verdict.readings] == ["ABC002", "ABC003"]
    assert [item.id for item in verdict.told] == ["ABC001", "ABC002", "ABC003"]
    assert verdict.silent_of(["ABC001", "ABC002", "ABC004"]) == ["ABC004"]
    kept = verdict.without({"ABC002": "ignored on request"})
    assert [item.id for item in kept.readings] == ["ABC003"]
    assert [(item.id, item.reason) for item in kept.not_run] == [("ABC002", "ignored on request")]
