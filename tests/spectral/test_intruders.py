"""Intruder dimensions against the dense definition: max_i |<u_j(W + dW), u_i(W)>| < eps."""

from __future__ import annotations

import numpy as np
import pytest
from tables import every, few

from gradience.spectral import base as intruders
from gradience.spectral.base import count_below, overlaps
from gradience.spectral.krylov import Operator

M, N, R, K = 240, 200, 6, 6
EPS = (0.3, 0.5, 0.7)


def dense_overlaps(base: np.ndarray, tuned: np.ndarray, k: int) -> np.ndarray:
    u_base = np.linalg.svd(base.astype(np.float64), full_matrices=False)[0]
    u_tuned = np.linalg.svd(tuned.astype(np.float64), full_matrices=False)[0]
    return np.max(np.abs(u_base.T @ u_tuned[:, :k]), axis=0)


def case(decay: float, strength: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    u, s, vt = np.linalg.svd(rng.standard_normal((M, N)), full_matrices=False)
    s = s if decay == 0.0 else s[0] * np.arange(1, N + 1.0) ** -decay
    w = ((u * s) @ vt).astype(np.float32)
    b, a = rng.standard_normal((M, R)), rng.standard_normal((R, N))
    b *= strength * s[0] / np.linalg.norm(b @ a, 2)
    return w, b.astype(np.float32), a.astype(np.float32)


CASES = [(0.0, 0.9), (0.3, 0.9), (0.3, 0.3), (1.0, 0.9), (1.0, 0.05)]  # decay of W, strength of dW


@pytest.mark.parametrize(("decay", "strength"), CASES)
def test_exact_overlaps_are_the_dense_definition(decay, strength):
    w, b, a = case(decay, strength)
    found = overlaps(Operator.of(w), Operator.of(w).plus(b, a), K, EPS)
    assert found.exact
    assert np.allclose(found.lower, dense_overlaps(w, w + b @ a, K), atol=1e-5)


@pytest.mark.parametrize("shape", [(90, 90), (60, 300), (300, 60)])
@pytest.mark.parametrize("seed", range(3))
def test_exact_overlaps_of_wide_and_tall_weights_are_those_of_both_whole_svds(shape, seed):
    rng = np.random.default_rng(seed)
    w = (rng.standard_normal(shape) * rng.exponential(size=shape[1])).astype(np.float32)
    b, a = rng.standard_normal((shape[0], 3)).astype(np.float32), rng.standard_normal((3, shape[1])).astype(np.float32)
    found = overlaps(Operator.of(w), Operator.of(w).plus(b, a), 5, EPS)
    changed = w.astype(np.float64) + b.astype(np.float64) @ a
    np.testing.assert_allclose(found.lower, dense_overlaps(w, changed, 5), atol=1e-9)
    np.testing.assert_array_equal(found.lower, found.upper)


def test_what_a_tall_weight_of_low_rank_does_not_reach_is_an_intruder_and_what_is_zero_is_none():
    rng = np.random.default_rng(0)
    w = (rng.standard_normal((200, 4)) @ rng.standard_normal((4, 40))).astype(np.float32)  # rank 4
    new = np.linalg.svd(w.astype(np.float64))[0][:, 100:101].astype(np.float32)  # at right angles to all four
    found = overlaps(Operator.of(w), Operator.of(w).plus(new * 1e3, np.ones((1, 40), np.float32)), 8, EPS)
    np.testing.assert_allclose(found.lower[0], 0.0, atol=0.01)
    np.testing.assert_array_equal(found.lower[5:], 1.0)  # the sum has rank 5: there are no more directions
    nothing = Operator.of(np.zeros((30, 20), np.float32))
    assert count_below(overlaps(nothing, nothing, 8, EPS), 0.7) == (0, 0)


@pytest.mark.parametrize(("settled_up_to", "exact"), [(M, True), (N, True), (N - 1, False)])
def test_what_the_bounds_leave_open_is_settled_where_the_shorter_side_allows_it(monkeypatch, settled_up_to, exact):
    monkeypatch.setattr(intruders, "EXACT_UP_TO", N - 1)
    monkeypatch.setattr(intruders, "SETTLED_UP_TO", settled_up_to)
    w, b, a = case(0.0, 0.9)
    at = float(dense_overlaps(w, w + b @ a, 1)[0])  # no bounds part a vector from its own overlap
    assert overlaps(Operator.of(w), Operator.of(w).plus(b, a), 1, [at]).exact is exact


@every(
    ("lower", "upper", "counted"),
    [(0.4, 0.49, (1, 0)), (0.4, 0.5, (1, 1)), (0.49, 0.6, (1, 1)), (0.5, 0.6, (0, 0)), (0.5, 0.5, (0, 0))],
)
def test_a_vector_is_open_where_the_threshold_lies_above_its_lower_bound_and_not_above_its_upper(lower, upper, counted):
    found = intruders.Overlaps(np.asarray([lower]), np.asarray([upper]), exact=False, converged=True)
    assert count_below(found, 0.5) == counted


@pytest.mark.parametrize("shape", [(800, 8), (8, 800)])
def test_the_shorter_side_decides_whether_overlaps_are_exact(shape):
    w = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    b, a = np.ones((shape[0], 1), np.float32), np.ones((1, shape[1]), np.float32)
    assert overlaps(Operator.of(w), Operator.of(w).plus(b, a), 2, EPS).exact


@pytest.mark.parametrize(("decay", "strength"), few(CASES, each=2))
def test_lanczos_bounds_hold_the_dense_overlaps_and_give_its_counts(monkeypatch, decay, strength):
    monkeypatch.setattr(intruders, "EXACT_UP_TO", 0)
    monkeypatch.setattr(intruders, "SETTLED_UP_TO", 0)
    w, b, a = case(decay, strength)
    found = overlaps(Operator.of(w), Operator.of(w).plus(b, a), K, EPS)
    true = dense_overlaps(w, w + b @ a, K)
    assert not found.exact
    assert found.converged
    assert np.all(found.lower <= true + 1e-3)
    assert np.all(found.upper >= true - 1e-3)
    for eps in EPS:
        count, undecided = count_below(found, eps)
        assert count - undecided <= int(np.sum(true < eps)) <= count


@pytest.mark.parametrize("exact_up_to", [0, 768])
def test_a_strong_new_direction_is_one_intruder_and_no_update_is_none(monkeypatch, exact_up_to):
    monkeypatch.setattr(intruders, "EXACT_UP_TO", exact_up_to)
    w, b, a = case(1.0, 3.0)
    strong = overlaps(Operator.of(w), Operator.of(w).plus(b[:, :1] * 10, a[:1]), K, EPS)
    assert count_below(strong, 0.5)[0] == 1
    none = overlaps(Operator.of(w), Operator.of(w), K, EPS)
    assert count_below(none, 0.7) == (0, 0)


def test_k_beyond_the_matrix_is_cut_to_it():
    w = np.diag(np.arange(1.0, 6.0)).astype(np.float32)
    assert len(overlaps(Operator.of(w), Operator.of(w), 10, EPS).lower) == 5


def test_an_overlap_with_a_direction_below_what_float32_resolves_is_not_ruled_out(monkeypatch):
    monkeypatch.setattr(intruders, "EXACT_UP_TO", 0)
    monkeypatch.setattr(intruders, "SETTLED_UP_TO", 0)
    rng = np.random.default_rng(3)
    u, _, vt = np.linalg.svd(rng.standard_normal((M, N)), full_matrices=False)
    s = np.concatenate([np.linspace(2.0, 1.0, 20), np.geomspace(9e-4, 1e-5, N - 20)])  # behind the 20th hardly there
    w = ((u * s) @ vt).astype(np.float32)
    b, a = u[:, 24:25].astype(np.float32), (3.0 * vt[24:25]).astype(np.float32)
    found = overlaps(Operator.of(w), Operator.of(w).plus(b, a), 1, EPS)
    assert dense_overlaps(w, w + b @ a, 1)[0] > 0.9
    assert found.upper[0] > 0.9
