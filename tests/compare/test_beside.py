"""An adapter's own numbers, taken from what its pairs were compared by."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gradience.adapters.layout import Module
from gradience.spectral.subspace import PairGeometry
from gradience.verbs import sides as sides_module
from gradience.verbs.compare import SETTLED, _shares, _wanted, module_pair, series_of
from gradience.verbs.sides import _energy, _Owns, _padded


def test_the_squared_norm_is_that_of_the_dense_update_or_is_not_vouched_for():
    rng = np.random.default_rng(0)
    b, a = rng.standard_normal((30, 4)), rng.standard_normal((4, 20))
    assert _energy(b.T @ b, a @ a.T, -0.5) == pytest.approx(np.sum((0.5 * b @ a) ** 2), rel=1e-12)
    assert _energy(np.zeros((2, 2)), np.eye(2), 3.0) == 0.0
    assert _energy(np.full((2, 2), np.nan), np.eye(2), 1.0) is None
    assert _energy(np.eye(2), np.eye(2), np.inf) is None


@pytest.mark.parametrize(("angle", "vouched"), [(0.16, True), (0.12, False)])
def test_parts_that_all_but_cancel_are_left_to_the_spectrum(angle, vouched):
    """Of b_1 = -b_2 and unit rows an angle apart: |b a|^2 over the sum of squares is 1 - cos(angle), here 1 %."""
    gram_b = np.array([[1.0, -1.0], [-1.0, 1.0]])
    gram_a = np.array([[1.0, np.cos(angle)], [np.cos(angle), 1.0]])
    assert (_energy(gram_b, gram_a, 1.0) is not None) == vouched


def owns(*, whole: bool) -> tuple[_Owns, Module]:
    """What is gathered of one adapter with one module, b a = 3 on a diagonal of two, so that its norm is 18^0.5."""
    b, a = 3.0 * np.eye(4, 2), np.eye(2, 3)
    module = Module("m.q", "lora", (4, 3), 2, 2.0, 1.0, 14, lambda: (b, a))
    side: Any = SimpleNamespace(adapter=SimpleNamespace(modules=[module]))
    return _Owns([side], whole=whole), module


@pytest.mark.parametrize(("whole", "waiting"), [(False, 0), (True, 1)])
def test_spectra_are_computed_only_where_they_are_asked_for(whole, waiting):
    found, module = owns(whole=whole)
    found.put(0, module, 9.0 * np.eye(2), np.eye(2))
    assert len(found._open) == waiting
    (own,) = found.finish()
    assert own.energies["m.q"] == pytest.approx(18.0)
    assert [s.sigma[:2].tolist() for s in own.spectra.values()] == [[3.0, 3.0]] * waiting


def test_a_norm_that_is_not_vouched_for_is_that_of_the_spectrum():
    found, module = owns(whole=False)
    found.put(0, module, np.full((2, 2), np.nan), np.eye(2))
    assert [name for _, name, _ in found._open] == [module]
    found.put(0, module, 9.0 * np.eye(2), np.eye(2))  # and vouched for, it waits for nothing
    assert len(found._open) == 1
    assert found.finish()[0].spectra == {}


def test_what_waits_is_let_go_at_the_limit(monkeypatch):
    found, module = owns(whole=True)
    size = 2 * _padded(np.eye(2)).size
    monkeypatch.setattr(sides_module, "_HELD", 2 * size)
    found.put(0, module, 9.0 * np.eye(2), np.eye(2))
    assert (len(found._open), found._held) == (1, size)
    found.put(0, module, 9.0 * np.eye(2), np.eye(2))
    assert (len(found._open), found._held) == (0, 0)


@pytest.mark.parametrize(
    ("n", "series", "pairs"),
    [
        (2, True, [(0, 1)]),
        (4, True, [(0, 1), (0, 3), (1, 2), (1, 3), (2, 3)]),
        (4, False, [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]),
    ],
)
def test_of_a_series_each_is_compared_with_the_next_and_the_last(n, series, pairs):
    assert _wanted(n, series=series) == pairs


@pytest.mark.parametrize(
    ("norms", "state", "ratio", "sides"),
    [((2.0, 3.0), "ok", 1.5, True), ((2.0, 0.0), "zero", 0.0, False), ((0.0, 3.0), "zero", None, False)],
)
def test_a_pair_of_which_one_is_zero_has_no_directions_in_common(norms, state, ratio, sides):
    _, module = owns(whole=False)
    row = module_pair(
        module, module, PairGeometry(finite=True, norms=norms, inner=1.0, distance=1.0, left=np.eye(2), right=np.eye(2))
    )
    assert (row.state, row.norm_ratio, row.frobenius_norms) == (state, ratio, list(norms))
    assert (row.output_side is not None, row.input_side is not None) == (sides, sides)


@pytest.mark.parametrize(
    ("cosines", "settled"),
    [([0.5, SETTLED, 1.0], 1), ([SETTLED, 0.5, 1.0], None), ([None, SETTLED, 1.0], 1), ([SETTLED, 1.0, 1.0], 0)],
)
def test_a_series_has_settled_from_where_every_cosine_is_at_the_threshold(cosines, settled):
    points: Any = [
        SimpleNamespace(cosine_to_final=c, effective_rank_mean=2.0 + i, name=f"c{i}", step=i)
        for i, c in enumerate(cosines)
    ]
    found = series_of(points)
    assert (found.settled_step, found.rank_growth) == (settled, 2.0)
    for place in (0, -1):
        kept, points[place].effective_rank_mean = points[place].effective_rank_mean, None
        assert series_of(points).rank_growth is None
        points[place].effective_rank_mean = kept


@pytest.mark.parametrize("total", [0.0, np.inf, np.nan])
def test_there_are_no_shares_of_an_energy_that_is_none(total):
    assert _shares(({"layers.0.q": total}, {"layers.0.q": 1.0})) == []
    assert _shares(({"layers.0.q": 1.0}, {"layers.0.q": total})) == []
    assert len(_shares(({"layers.0.q": 1.0}, {"layers.0.q": 2.0}))) == 1
