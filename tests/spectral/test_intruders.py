"""Intruder dimensions against the dense definition: max_i |<u_j(W + dW), u_i(W)>| < eps."""

from __future__ import annotations

import numpy as np
import pytest
from tables import every, few

from gradience.spectral import base as intruders
from gradience.spectral.base import Overlaps, count_below, overlaps
from gradience.spectral.devices import float64
from gradience.spectral.krylov import Operator, Ritz, Triplets

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


def test_an_interval_of_values_and_of_their_squares_has_room_for_rounding(monkeypatch):
    asked = {}
    monkeypatch.setattr(
        intruders, "bound", lambda of, middle, half: asked.update({of: (middle, half)}) or np.ones((len(middle), 1))
    )
    middle, half, rounding = np.asarray([0.5, 0.1]), np.asarray([1e-6, 1e-5]), 2e-6 * 2.0
    intruders.bound_within(intruders.Measures("both", "outer", "inner"), middle, half, 2.0)
    np.testing.assert_allclose(asked["both"], [middle, half + rounding])
    # (m + h)^2 and (m - h)^2 are m^2 + h^2 +- 2 m h; a value and the largest bound the rounding of a square
    wanted = [middle**2 + half**2, 2 * middle * half + rounding * (2.0 + middle)]
    np.testing.assert_allclose(asked["outer"], wanted)
    np.testing.assert_allclose(asked["inner"], wanted)


@pytest.mark.parametrize(("limit", "exact"), [(12, True), (11, False)])
def test_a_matrix_of_the_size_of_the_limit_is_done_exactly(limit, exact, monkeypatch):
    monkeypatch.setattr(intruders, "EXACT_UP_TO", limit)
    monkeypatch.setattr(intruders, "SETTLED_UP_TO", 0)
    base = Operator.of(np.random.default_rng(0).standard_normal((40, 12)) if limit == 12 else np.ones((12, 20)))
    found = Overlaps(np.ones(1), np.ones(1), exact=False, converged=True)
    monkeypatch.setattr(intruders, "_bounded", lambda *_: found)
    assert overlaps(base, base, 2, [0.5]).exact is exact


@pytest.mark.parametrize(("limit", "is_open", "exact"), [(12, True, True), (11, True, False), (12, False, False)])
def test_what_the_bounds_leave_open_is_settled_up_to_its_own_limit(limit, is_open, exact, monkeypatch):
    monkeypatch.setattr(intruders, "EXACT_UP_TO", 0)
    monkeypatch.setattr(intruders, "SETTLED_UP_TO", limit)
    upper = 0.5 if is_open else 0.49  # an upper bound that is the threshold is not under it
    found = Overlaps(np.array([0.4]), np.array([upper]), exact=False, converged=True)
    monkeypatch.setattr(intruders, "_bounded", lambda *_: found)
    base = Operator.of(np.random.default_rng(0).standard_normal((12, 20)))
    assert overlaps(base, base, 1, [0.5, 0.9]).exact is exact  # 0.9 leaves nothing open
    monkeypatch.setattr(intruders, "_bounded", lambda *_: found._replace(converged=False))
    assert overlaps(base, base, 1, [0.9]).exact is (limit == 12)


def test_a_ritz_vector_counts_from_its_tolerance_on_and_beyond_what_float32_tells_apart(monkeypatch):
    """The second is as far from the first as the bound, and so is left out, though it is more of the vector."""
    monkeypatch.setattr(intruders, "_SETTLED", 0.25)
    monkeypatch.setattr(intruders, "_APART", 0.5)
    two = Ritz(np.array([1.0, 0.5]), np.array([[0.6, 0.8]]), np.eye(2), np.array([0.25, 0.125]))
    three = Ritz(np.array([1.0, 0.5, 0.2]), np.array([[0.6, 0.64, 0.48]]), np.eye(3), np.array([1.0, 0.1, 0.1]))
    with float64():
        known = [intruders.known_of(ritz, count, 1) for ritz, count in ((two, 2), (three, 3), (three, 2))]
    assert [one.lower.tolist() for one in known] == [[pytest.approx(0.36)], [0.0], [0.0]]
    under = [pytest.approx(x) for x in (0.64, 0.64**2 + 0.48**2, 0.64**2)]  # of the last, a third is none of C's
    assert [one.under.tolist() for one in known] == [[x] for x in under]


def test_what_is_not_above_all_thresholds_is_searched_from_what_is_known(monkeypatch):
    known = intruders.RitzOverlaps(np.array(1.0), np.array([0.36]), np.array([0.5]))
    monkeypatch.setattr(intruders, "seen_from", lambda *_: (known, None))
    found = intruders.atoms(None, 4, 1, [0.3])
    assert (found.lower.tolist(), found.upper.tolist()) == ([0.36], [1.0])
    for searched, upper in ((0.4, 0.4), (0.2, 0.36), (1.2, 1.0)):
        monkeypatch.setattr(intruders, "_search", lambda *_, searched=searched: np.array([searched]))
        assert intruders.atoms(None, 4, 1, [0.3, 0.5]).upper.tolist() == [upper]
    monkeypatch.setattr(intruders, "_search", lambda *args: args[2])
    assert intruders.atoms(None, 4, 1, [0.9]).upper.tolist() == [0.5]


def test_bounds_have_room_for_rounding_within_zero_and_one():
    lower, upper = intruders._widened(intruders.Atoms(np.array([0.0, 0.25]), np.array([1.0, 0.36])))
    assert (lower.tolist(), upper.tolist()) == ([0.0, 0.5 - 1e-4], [1.0, 0.6 + 1e-4])


def test_a_vector_under_the_threshold_is_an_intruder_and_open_where_its_bound_is_not():
    lower, upper = np.array([0.5, 0.49, 0.3, 0.2]), np.array([0.6, 0.5, 0.49, 0.2])
    found = Overlaps(lower, upper, exact=False, converged=True)
    assert [count_below(found, eps) for eps in (0.5, 0.2, 0.51)] == [(3, 1), (0, 0), (4, 1)]


@pytest.mark.parametrize(("decided_at", "looks"), [(3, [3]), (4, [3, 4]), (99, [3, 4, 5, 6])])
def test_bounds_are_looked_at_until_they_decide_or_the_basis_is_full(decided_at, looks, monkeypatch):
    """At 3 steps, then a quarter more each time, up to as many as leave the basis within the matrix."""
    seen = []

    def at(basis, size, _k, thresholds):
        seen.append(int(basis.blocks) - 1)
        assert size == 7
        assert thresholds == [pytest.approx((0.5 - 1e-4) ** 2)]
        upper = 0.25 if seen[-1] < decided_at else 0.2
        return intruders.Atoms(np.array([0.16]), np.array([upper]))

    monkeypatch.setattr(intruders, "atoms", at)
    base = Operator.of(np.random.default_rng(0).standard_normal((30, 40)).astype(np.float32))
    one = np.eye(30, 4, dtype=np.float32)
    top = Triplets(np.ones(1), one[:, :1], 1, converged=True, exact=False, guard=one[:, 1:])
    with float64():
        found = intruders._bounded(base, top, [0.5])
    assert seen == looks
    assert found.lower[0] == pytest.approx(0.4 - 1e-4)
    assert found.upper[0] == pytest.approx((0.5 if decided_at > 6 else np.sqrt(0.2)) + 1e-4)
    assert (found.exact, found.converged) == (False, True)


@pytest.mark.parametrize(
    ("lower", "upper", "eps", "looks"),
    [(0.25, 0.9, [0.5], [3]), (0.16, 0.25, [0.5, 0.9], [3, 4, 5, 6, 7, 8, 10, 12, 14])],
)
def test_an_overlap_of_the_threshold_is_over_it(lower, upper, eps, looks, monkeypatch):
    seen = []
    bounds = intruders.Atoms(np.array([lower, lower / 4]), np.array([upper, upper / 4]))  # the second is decided
    monkeypatch.setattr(intruders, "_ROUNDING", 0.0)
    monkeypatch.setattr(intruders, "atoms", lambda basis, *_: seen.append(int(basis.blocks) - 1) or bounds)
    base = Operator.of(np.random.default_rng(0).standard_normal((30, 40)).astype(np.float32))
    one = np.eye(30, 2, dtype=np.float32)
    top = Triplets(np.ones(2), one, 1, converged=True, exact=False, guard=one[:, 2:])
    with float64():
        found = intruders._bounded(base, top._replace(converged=False), eps)
    assert (seen, found.converged) == (looks, False)  # as that of the vectors that it started from
