"""A law of every verb on adapters that a seed drew: how the numbers go with the size of the weights."""

from __future__ import annotations

import math

import pytest
from drawn_adapters import all_leaves
from tables import few


@pytest.mark.parametrize("seed", few([1, 2], each=2))
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
