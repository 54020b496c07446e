"""The numbers of every verb on adapters that a seed drew."""

from __future__ import annotations

import json
import math

import pytest
from drawn_adapters import GOLDEN, all_leaves, all_numbers, differences

EXPECTED: dict[str, dict[str, list[str]]] = json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("seed", EXPECTED)
def test_the_reports_on_drawn_adapters_have_these_numbers(seed: str) -> None:
    """`python tests/drawn_adapters.py` writes them anew after a change that was meant."""
    found = all_numbers(int(seed))
    assert list(found) == list(EXPECTED[seed])
    odd = {name: differences(lines, EXPECTED[seed][name]) for name, lines in found.items()}
    assert {name: lines for name, lines in odd.items() if lines} == {}


@pytest.mark.parametrize("seed", [1, 2])
def test_of_weights_a_millionth_as_large_sizes_are_a_millionth_and_all_else_is_the_same(seed: int) -> None:
    """No threshold is of an absolute size, but for the audit's rules on the update's own."""
    small = 2.0**-20
    every = all_leaves(seed, small)
    for verb, whole in all_leaves(seed, 1.0).items():
        tiny = every[verb]
        odd = {at for at in whole.keys() ^ tiny.keys() if not at.startswith("findings")}
        for at in whole.keys() & tiny.keys():
            one, other = whole[at], tiny[at]
            if isinstance(one, float) and isinstance(other, float):
                ratios = (1.0, small, small * small)  # a share, a norm, a square
                if not any(math.isclose(one * by, other, rel_tol=1e-3, abs_tol=1e-5 * by) for by in ratios):
                    odd.add(at)
            elif one != other and not at.startswith("findings"):
                odd.add(at)
        assert (verb, odd) == (verb, set())


@pytest.mark.parametrize(
    ("found", "is_other"),
    [("a.b 1.00005", False), ("a.b 1.0003", True), ("a.c 1", True), ("a.b 1 2", True), ("a.b one", True)],
)
def test_numbers_are_the_same_to_a_ten_thousandth(found, is_other):
    assert bool(differences([found], ["a.b 1"])) is is_other
    assert differences(["a.b 1", "a.b 1"], ["a.b 1"]) == ["2 lines, not 1"]
