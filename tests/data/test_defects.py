"""Each planted defect is found in every format it can be in, by its rule, and nothing is found in the clean twin."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from planted import DEFECTS, FORMS, checked

from gradience.rules.data import DATA_RULES, meaning

FORMS_OF_EACH = len(FORMS) if os.environ.get("GRADIENCE_SLOW") else 1
"""How many of the formats that a defect can be in are tried, from another place in their list for each defect."""


def tried(number: int, forms: Sequence[str]) -> list[str]:
    return [forms[(number + place) % len(forms)] for place in range(min(FORMS_OF_EACH, len(forms)))]


@pytest.mark.parametrize("form", FORMS)
def test_every_planted_defect_that_a_format_can_have_is_found(form: str, tmp_path: Path) -> None:
    missed = []
    for number, (name, defect) in enumerate(DEFECTS.items()):
        if form in tried(number, sorted(defect.forms)):
            folder = tmp_path / str(number)
            folder.mkdir()
            found = {finding.id for finding in checked(folder, form, defect).findings}
            missed += [] if defect.rule in found else [(name, defect.rule, sorted(found))]
    assert not missed, missed


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_found_in_the_clean_twin(form: str, tmp_path: Path) -> None:
    assert [finding.message for finding in checked(tmp_path, form, None).findings] == []


def test_every_rule_has_a_planted_defect() -> None:
    elsewhere = {
        *("DAT376", "DAT385", "DAT386"),
        *(rule.id for rule in meaning.RULES),
    }  # in test_meaning, each beside a sound twin
    assert {defect.rule for defect in DEFECTS.values()} == {rule.id for rule in DATA_RULES} - elsewhere
