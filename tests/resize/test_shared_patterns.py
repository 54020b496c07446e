"""Pairs that share their config: one pattern gives one rank and one scale."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from gradience.errors import AdapterError
from gradience.rewrite.resize.plan import _refuse_unequal


@pytest.mark.parametrize(("rank", "scale", "refused"), [(4, 2.0, False), (8, 2.0, True), (4, 1.0, True)])
def test_pairs_that_one_pattern_governs_have_one_rank_and_one_scale(rank, scale, refused):
    pairs = [
        SimpleNamespace(path="m.q", first=SimpleNamespace(name=f"m.q:{n}", r=r, scale=s))
        for n, (r, s) in enumerate(((4, 2.0), (rank, scale)))
    ]
    _refuse_unequal([pairs[0], SimpleNamespace(path="m.v", first=pairs[1].first)])  # of two paths
    if not refused:
        _refuse_unequal(pairs)
        return
    says = rf"m\.q:0 and m\.q:1 share their config, but have ranks 4 and {rank} and scales 2 and {scale:g}"
    with pytest.raises(AdapterError, match=says) as error:
        _refuse_unequal(pairs)
    assert error.value.advice == "save each adapter in a folder of its own"
