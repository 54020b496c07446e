"""What is read of adapter files of every kind and of many faulty ones, number by number."""

from __future__ import annotations

import json

from odd_adapters import CASES, GOLDEN, alike, all_read

EXPECTED: dict[str, list[str]] = json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_kinds_shapes_ranks_scales_updates_and_refusals_are_these(tmp_path):
    """`python tests/odd_adapters.py` writes them anew after a change that was meant."""
    found = all_read(tmp_path)
    changed = {
        name: set(lines) ^ set(EXPECTED[name]) for name, lines in found.items() if not alike(lines, EXPECTED[name])
    }
    assert changed == {}
    assert list(found) == list(EXPECTED) == list(CASES)


def test_no_case_is_read_like_another():
    assert len({tuple(lines) for lines in EXPECTED.values()}) >= len(CASES) - 3  # some faults are alike
