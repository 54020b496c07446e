"""What is left out of a report is named with its reason, and nothing else is touched."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st
from tables import every

from gradience.errors import ConfigError
from gradience.rules import cards_of, excluded_rules, matching, without
from gradience.schema.document import Finding

IDS = [card.id for card in cards_of("log")]
SOME = st.lists(st.sampled_from(IDS), unique=True, max_size=6)
FINDINGS = st.lists(st.builds(Finding, id=st.sampled_from(IDS), severity=st.just("info"), message=st.text(max_size=5)))


@given(SOME, SOME)
def test_a_rule_speaks_if_it_is_selected_and_not_ignored(select: list[str], ignore: list[str]) -> None:
    gone = excluded_rules(IDS, select=select, ignore=ignore)
    assert [rule for rule in IDS if rule not in gone] == [
        rule for rule in IDS if (not select or rule in select) and rule not in ignore
    ]
    assert all(gone.values())


def test_without_a_choice_nothing_changes() -> None:
    findings = [Finding(id="DIV103", severity="warning", message="m")]
    assert without(findings, [], excluded_rules(IDS)) == (findings, [])
    assert excluded_rules(IDS, select=["all"]) == {}


@every("entry", ["NOPE", "", "TGT001", "DIV103,"])
def test_an_entry_that_is_no_beginning_of_an_id_is_refused_with_the_ids_there_are(entry: str) -> None:
    with pytest.raises(ConfigError, match="no rule is called") as caught:
        excluded_rules(IDS, ignore=[entry])
    assert "DIV103" in caught.value.advice


def test_entries_may_have_blanks_commas_and_small_letters():
    assert matching(["LR001", "LR003", "TGT001"], [" lr003 , tgt ", "LR003"], "select") == ["LR003", "TGT001"]
    assert matching(["LR001", "TGT001"], ["all"], "select") == ["LR001", "TGT001"]
    with pytest.raises(ConfigError, match="--ignore: no rule is called X, an empty text"):
        matching(["LR001"], ["x, "], "ignore")
