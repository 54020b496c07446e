"""The table of rules, and one rule with its grounds."""

from __future__ import annotations

import pytest

from gradience.cli.rules import rules
from gradience.errors import ConfigError
from gradience.policy.config_rules import RULES
from gradience.policy.detectors.detector import Detector
from gradience.policy.run_detectors import DETECTORS


def test_table_has_a_line_for_every_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert rules() == 0
    out = capsys.readouterr().out
    assert all(any(line.startswith(rule.id) for line in out.splitlines()) for rule in RULES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_card_shows_thresholds_with_their_sources_and_all_evidence(
    rule: object, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = next(item for item in RULES if item is rule)
    assert rules(chosen.id.lower()) == 0
    out = capsys.readouterr().out
    assert all(item.source in out for item in chosen.thresholds)
    assert all(item.says in out for item in chosen.evidence)


def test_strange_id_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="LR999"):
        rules("LR999")


def test_a_detector_of_monitor_is_explained_as_a_rule_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert rules("ovf110") == 0
    out = capsys.readouterr().out
    assert "OVF110: overfitting" in out
    assert "overfit_rise = 0.02" in out
    assert "None" not in out


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda detector: detector.id)
def test_every_detector_is_listed_and_has_a_card_without_holes(
    detector: Detector, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rules() == 0
    assert f"\n{detector.id}  " in capsys.readouterr().out
    assert rules(detector.id) == 0
    assert "None" not in capsys.readouterr().out
