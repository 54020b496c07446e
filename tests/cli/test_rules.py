"""The table of rules, and one rule with its grounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from tables import every

from gradience.cli.main import main
from gradience.rules import all_ids, rule_cards
from gradience.schema.document import RuleCard


def test_table_has_a_line_for_every_rule_below_where_it_applies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{rule}  " in out or f"\n{rule} " in out for rule in all_ids())
    log, weights = out.index("(gradience monitor):"), out.index("(gradience audit):")
    assert log < out.index("\nDIV103 ") < weights < out.index("\nSCL206 ")
    assert out.count("\nTRN202 ") == 2  # of a log, and of weights


@every("card", rule_cards(), ids=lambda card: card.id)
def test_card_shows_the_condition_the_thresholds_with_their_sources_and_all_evidence(
    card: RuleCard, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rules", card.id.lower()]) == 0
    out = " ".join(capsys.readouterr().out.split())  # lines break where the screen ends
    assert card.condition in out
    assert all(f"{item.value:g} ({item.unit}): {item.source}" in out for item in card.thresholds)
    assert all(item.says in out for item in card.evidence)
    assert f"Severity: {'reading' if card.reading else card.severity}" in out
    assert f"Verify: {card.verify}" in out
    assert ": None" not in out


def test_the_beginning_of_ids_lists_those(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "LR"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{rule} " in out for rule in all_ids() if rule.startswith("LR"))
    assert "VAL001" not in out


@pytest.mark.parametrize("asked", [[], ["LR"], ["LR001"]])
def test_json_is_one_document_of_its_schema(asked: list[str], root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", *asked, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    schema = json.loads((root / "schemas" / "rules-report-v2.schema.json").read_text())
    Draft202012Validator(schema).validate(document)
    wanted = [rule for rule in all_ids() if rule.startswith(asked[0] if asked else "")]
    assert [rule["id"] for rule in document["rules"]] == wanted


def test_strange_id_is_one_line_and_a_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "LR999"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "gradience: unknown rule 'LR999' ('gradience rules' lists them)\n"
