"""The kernels of pairs, sums and bases at numbers small enough to work out by hand."""

from __future__ import annotations

import jax
import ml_dtypes
import numpy as np
import pytest

from gradience.spectral import base, subspace, sums
from gradience.spectral.subspace import StackTerm, row_geometries


def diagonal(*sigma: float, d_out: int = 40, d_in: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Factors whose product has these singular values."""
    n = len(sigma)
    return np.eye(d_out, n) * np.asarray(sigma), np.eye(n, d_in)


def stack(b: np.ndarray, a: np.ndarray) -> StackTerm:
    return StackTerm(lambda: (b, a), len(a), 1.0)


def test_factors_of_two_dtypes_and_ranks_are_stacked_each_padded_to_one_rank():
    (b, a), (c, d) = diagonal(1.0), diagonal(2.0, 3.0)
    both_b, both_a = subspace._together(stack(b.astype(np.float16), a), stack(c.astype(ml_dtypes.bfloat16), d), 3)
    np.testing.assert_array_equal(both_b, np.concatenate([b, 0 * c, c, 0 * b], axis=1))
    np.testing.assert_array_equal(both_a, np.concatenate([a, 0 * d, d, 0 * a]))


@pytest.mark.parametrize(("count", "calls"), [(1, [1]), (3, [4]), (8, [8]), (9, [8, 1])])
def test_pairs_are_taken_eight_at_a_time_and_fewer_are_padded_to_a_power_of_two(monkeypatch, count, calls):
    seen, by_grams = [], subspace.compared_by_grams
    monkeypatch.setattr(
        subspace, "compared_by_grams", lambda gram_b, *more: seen.append(len(gram_b)) or by_grams(gram_b, *more)
    )
    row = [stack(*diagonal(1.0 + k)) for k in range(count + 1)]
    (found,) = row_geometries([row], [(0, k + 1) for k in range(count)])
    assert seen == calls
    assert [found.pairs[0, k + 1].inner for k in range(count)] == pytest.approx([2.0 + k for k in range(count)])


def compare(b, a, scale=1.0):
    with jax.enable_x64(True):  # noqa: FBT003  # JAX's own signature
        return subspace.compared(np.hstack([b, b]), np.hstack([a.T, a.T]), np.array([scale, scale]))


@pytest.mark.parametrize(("sigma", "rank"), [((4.0, 1.0, 0.5), 1), ((4.0, 1.25, 1.0), 2), ((0.0, 0.0), 0)])
def test_a_direction_counts_from_above_the_floor(sigma, rank, monkeypatch):
    monkeypatch.setattr(subspace, "_FLOOR", 0.25)
    found = compare(*diagonal(*sigma))
    assert found.ranks.tolist() == [rank, rank]
    assert np.count_nonzero(np.asarray(found.left).round(9)) == rank


@pytest.mark.parametrize("scale", [1.0, 1e-6, -1e-6, 1e6])
@pytest.mark.parametrize(("off", "trusted"), [(1.0, True), (0.02, True), (0.005, False)])
def test_an_update_is_known_from_gram_matrices_unless_it_all_but_cancels_whatever_its_scale(off, trusted, scale):
    """b = (1, -1), rows of a apart by `off`: sigma is `off` of 1 + 1 + off^2 / 2 or so, squared."""
    b, a = np.array([[1.0, -1.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [1.0, off]])
    assert (off**2 / (2.0 + off**2) >= 1e-4) is trusted
    assert bool(compare(b, a, scale).trusted) is trusted


@pytest.mark.parametrize(("share", "trusted"), [(0.25, True), (0.2501, False)])
def test_an_update_at_the_trusted_share_of_its_bound_is_trusted(share, trusted, monkeypatch):
    monkeypatch.setattr(subspace, "_TRUSTED", share)
    assert bool(compare(np.eye(2), np.diag([1.0, 3.0**0.5]) * 2.0, 0.5).trusted) is (share <= 0.75)
    four = np.eye(4)
    assert bool(compare(four, 2.0 * four, 0.5).trusted) is trusted


def test_vectors_of_what_float32_does_not_tell_from_zero_are_none():
    columns = np.ones((2, 4))
    with jax.enable_x64(True):  # noqa: FBT003  # JAX's own signature
        found = base.over(columns, np.array([2.0, 1e-6, 1.9e-7, 0.0]))
    assert found.tolist() == [[0.5, 1e6, 0.0, 0.0]] * 2


@pytest.mark.parametrize(("least", "rank"), [(1.0, 1), (1.0 + 1e-12, 2), (0.5, 1)])
def test_a_direction_at_the_floor_or_at_the_bound_of_rounding_is_rounding(least, rank, monkeypatch):
    monkeypatch.setattr(sums, "EXACT", 0.5)
    nothing = np.zeros((2, 2))
    assert sums._rank(np.array([2.0, least]), (nothing, nothing)) == rank
    monkeypatch.setattr(sums, "EXACT", 0.0)
    terms = np.diag([8.0, 2.0]), np.diag([8.0, 18.0])  # lengths of 8 and 6, and 10 of both: times 2 eps
    rounding = 20.0 * np.finfo(np.float64).eps
    assert sums._rank(np.array([2.0, rounding * least]), terms) == rank
