"""What is said of configurations, audits and data sets that a seed drew, number by number."""

from __future__ import annotations

import json
import re

from drawn_inputs import GOLDEN, all_drawn
from said import ABSTAINED, changed

EXPECTED: dict[str, list[str]] = json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_findings_and_reasons_on_drawn_inputs_have_these_numbers() -> None:
    """`python tests/drawn_inputs.py` writes them anew after a change that was meant."""
    said = all_drawn()
    assert [*said, ABSTAINED] == list(EXPECTED)
    assert changed(said, EXPECTED) == {}


def test_most_rules_speak_of_one_of_them_or_another() -> None:
    spoken = {hit[0] for lines in EXPECTED.values() for line in lines if (hit := re.match(r"[A-Z]{2,3}\d{3}", line))}
    assert len(spoken) >= 60
