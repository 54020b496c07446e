"""What a rule says of itself is of that rule: no text stands in the place of another."""

from __future__ import annotations

from collections import defaultdict

from gradience.rules import rule_cards

OWN = ("title", "condition", "rationale", "action")
OF_A_FAMILY = ("verify", "scope")
SHARED = {  # one trouble, seen in two places or left in one way
    "From that step on the run fitted its training data at the cost of held-out data.": {"OVF110", "OVF304"},
    "The reloaded model gets a fresh random head and predicts at chance.": {"HED308", "TGT004"},
    "train without the feature, or merge the adapter into the base before serving": {"SRV001", "SRV002", "SRV003"},
}


def places() -> dict[str, set[tuple[str, str]]]:
    """Each text with the rules and the fields in which it stands."""
    found = defaultdict(set)
    for card in rule_cards():
        for field in (*OWN, *OF_A_FAMILY):
            if text := getattr(card, field):
                found[text].add((card.id, field))
        for threshold in card.thresholds:
            found[threshold.unit].add((card.id, "unit of a threshold"))
            found[threshold.source].add((card.id, "source of a threshold"))
    return found


def test_a_title_a_condition_a_reason_and_an_action_are_of_one_rule() -> None:
    several = {text: {rule for rule, field in at if field in OWN} for text, at in places().items()}
    assert {text: rules for text, rules in several.items() if len(rules) > 1} == SHARED


def test_a_text_stands_in_fields_of_one_kind() -> None:
    kinds = {text: {field for _, field in at} for text, at in places().items()}
    assert [text for text, fields in kinds.items() if len(fields) > 1] == []


def test_every_ground_names_its_source_and_says_something_of_its_own() -> None:
    grounds = defaultdict(set)
    for card in rule_cards():
        for ground in card.evidence:
            assert ground.source.strip()
            assert ground.says.strip()
            assert ground.source != ground.says
            grounds[ground.says].add(ground.source)
    texts = {text for text, at in places().items() if {field for _, field in at} & {*OWN, *OF_A_FAMILY}}
    assert texts & grounds.keys() == set()
