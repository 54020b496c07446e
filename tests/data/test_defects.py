"""Each planted defect is found in every format it can be in, by its rule, and nothing is found in the clean twin."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted import DEFECTS, FORMS, cases, checked

from gradience.rules.data import DATA_RULES


@pytest.mark.parametrize(("name", "form"), list(cases()))
def test_a_planted_defect_is_found(name: str, form: str, tmp_path: Path) -> None:
    report = checked(tmp_path, form, DEFECTS[name])
    assert DEFECTS[name].rule in {finding.id for finding in report.findings}


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_found_in_the_clean_twin(form: str, tmp_path: Path) -> None:
    assert [finding.message for finding in checked(tmp_path, form, None).findings] == []


def test_every_rule_has_a_planted_defect() -> None:
    assert {defect.rule for defect in DEFECTS.values()} == {rule.id for rule in DATA_RULES}
