"""What the terminal and the pages show of reports that a seed drew, line by line."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
from drawn_reports import EACH, GOLDEN, PAGES, VIEWS, shown

EXPECTED: dict[str, list[str]] = json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_shows_these_lines_of_drawn_reports(name: str) -> None:
    """`python tests/drawn_reports.py` writes them anew after a change that was meant."""
    if name in PAGES and find_spec("matplotlib") is None:
        pytest.skip("needs matplotlib")
    seeds = [int(key.rpartition(" ")[2]) for key in EXPECTED if key.rpartition(" ")[0] == name]
    assert len(seeds) == EACH
    for seed in seeds:
        assert shown(name, seed) == EXPECTED[f"{name} {seed}"]
