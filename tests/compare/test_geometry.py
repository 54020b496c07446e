"""Cosines, overlaps and angles from the factors, against the dense matrices they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st
from tables import every

from gradience.spectral.subspace import (
    PairGeometry,
    StackTerm,
    chance_overlap,
    chance_overlap_sd,
    overlap,
    row_geometries,
)


def _stacked(b: np.ndarray, a: np.ndarray, scale: float = 1.0) -> StackTerm:
    return StackTerm(lambda: (b, a), a.shape[0], scale)


def geometry(one: StackTerm, two: StackTerm) -> PairGeometry:
    (row,) = row_geometries([[one, two]], [(0, 1)])
    return row.pairs[0, 1]


def _factors(seed: int, out: int, r: int, inner: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((out, r)), rng.standard_normal((r, inner))


@given(
    seed=st.integers(0, 999),
    out=st.integers(1, 40),
    inner=st.integers(1, 40),
    ranks=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    scales=st.tuples(st.sampled_from([1.0, 1e-6, -3.0]), st.sampled_from([0.5, 1e4])),
)
def test_geometry_is_that_of_the_dense_updates(seed, out, inner, ranks, scales):
    one, two = (_factors(seed + place, out, r, inner) for place, r in enumerate(ranks))
    found = geometry(_stacked(*one, scales[0]), _stacked(*two, scales[1]))
    first, second = scales[0] * one[0] @ one[1], scales[1] * two[0] @ two[1]
    size = np.linalg.norm(first) * np.linalg.norm(second)
    assert found.norms == pytest.approx((np.linalg.norm(first), np.linalg.norm(second)), rel=1e-9)
    assert found.inner == pytest.approx(np.sum(first * second), abs=1e-7 * size)
    assert found.distance == pytest.approx(np.linalg.norm(second - first), rel=1e-7)
    u, v = (np.linalg.svd(m)[0][:, : min(out, inner, r)] for m, r in zip((first, second), ranks, strict=True))
    k, n = found.left.shape
    truth = np.linalg.norm(u.T @ v) ** 2 / min(u.shape[1], v.shape[1])
    if (k, n) == (u.shape[1], v.shape[1]):  # else a direction is rounding
        assert overlap(found.left, k, n) == pytest.approx(truth, abs=1e-6)


@given(seed=st.integers(0, 99), tiny=st.sampled_from([1e-3, 1e-6, 1e-9]))
def test_factors_that_all_but_cancel_do_not_cost_the_cosine(seed, tiny):
    rng = np.random.default_rng(seed)
    b, a = rng.standard_normal((30, 1)), rng.standard_normal((1, 20))
    rest = np.outer(rng.standard_normal(30), rng.standard_normal(20))
    left, _, right = np.linalg.svd(rest)
    b1 = np.hstack([b, -b, tiny * left[:, :1]])
    a1 = np.vstack([a, a, right[:1]])
    other = _factors(seed + 1, 30, 4, 20)
    found = geometry(_stacked(b1, a1), _stacked(*other))
    dense = b1 @ a1
    truth = np.sum(dense * (other[0] @ other[1])) / (np.linalg.norm(dense) * np.linalg.norm(other[0] @ other[1]))
    assert found.cosine == pytest.approx(truth, abs=1e-6)


def test_an_update_beside_itself_in_other_factors_is_the_same_update():
    b, a = _factors(0, 50, 6, 30)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))[0]
    found = geometry(_stacked(b, a, 2.0), _stacked(b @ turn, turn.T @ a, 2.0))
    assert found.cosine == pytest.approx(1.0, abs=1e-12)
    assert found.distance < 1e-6 * found.norms[0]
    assert overlap(found.left, 6, 6) == pytest.approx(1.0, abs=1e-9)
    np.testing.assert_allclose(found.cosines[1], 1.0, atol=1e-9)


@every(("i", "j", "d"), [(1, 1, 12), (2, 5, 12), (6, 6, 12), (3, 4, 40)])
def test_chance_overlap_is_what_random_subspaces_give(i, j, d):
    rng = np.random.default_rng(7)
    u, v = (np.linalg.qr(rng.standard_normal((4000, d, k)))[0] for k in (i, j))
    seen = [overlap(cross, i, j) for cross in u.transpose(0, 2, 1) @ v]
    error = np.std(seen) / np.sqrt(len(seen))
    assert np.mean(seen) == pytest.approx(chance_overlap(i, j, d), abs=4 * error)
    assert np.std(seen) == pytest.approx(chance_overlap_sd(i, j, d), rel=0.06)


def test_a_zero_update_has_no_cosine_and_no_directions():
    b, a = _factors(0, 8, 2, 5)
    found = geometry(_stacked(np.zeros((8, 2)), a), _stacked(b, a))
    assert found.cosine is None
    assert found.left.shape == (0, 2)


def test_an_update_that_is_not_finite_says_so():
    b, a = _factors(0, 8, 2, 5)
    broken = b.copy()
    broken[3, 1] = np.nan
    found = geometry(_stacked(broken, a), _stacked(b, a))
    assert not found.finite
    assert found.cosine is None
