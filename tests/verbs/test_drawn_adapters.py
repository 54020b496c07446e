"""The numbers of every verb on adapters that a seed drew."""

from __future__ import annotations

import json

import pytest
from drawn_adapters import GOLDEN, all_numbers

EXPECTED: dict[str, dict[str, list[str]]] = json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("seed", EXPECTED)
def test_the_reports_on_drawn_adapters_have_these_numbers(seed: str) -> None:
    """`python tests/drawn_adapters.py` writes them anew after a change that was meant."""
    found = all_numbers(int(seed))
    assert list(found) == list(EXPECTED[seed])
    odd = {name: set(lines) ^ set(EXPECTED[seed][name]) for name, lines in found.items()}
    assert {name: lines for name, lines in odd.items() if lines} == {}
