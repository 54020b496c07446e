"""The core at numbers small enough to work out by hand: where each rule of it changes its answer, and to what."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from tables import every

from gradience.spectral import base, batch, dense, subspace, sums, update
from gradience.spectral.base import MergeSums, UpdatedWeight, merge_sums
from gradience.spectral.batch import spectra, spectrum_of
from gradience.spectral.dense import DenseSpectrum, dense_spectrum
from gradience.spectral.grams import DIMENSIONS, Factors, Grams, Sketch, inner_size
from gradience.spectral.subspace import PairGeometry, StackTerm, row_geometries
from gradience.spectral.update import (
    gram_maps,
    leading_part,
    null_factor_stable_rank,
    part_with_energy,
    rank_for_energy,
    reduced,
)

EPS = float(np.finfo(np.float64).eps)


def by_grams(gram_b: np.ndarray, gram_a: np.ndarray) -> batch.Result:
    """The numbers of one update in float64, as arrays of NumPy."""
    with jax.enable_x64(True):  # noqa: FBT003  # JAX's own signature
        return jax.device_get(batch.by_grams(gram_b, gram_a))


def diagonal(*sigma: float, d_out: int = 40, d_in: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Factors whose product has these singular values."""
    n = len(sigma)
    return np.eye(d_out, n) * np.asarray(sigma), np.eye(n, d_in)


# --- ranks of a spectrum -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("equal", "ranks"), [(10, (9, 10, 10)), (100, (90, 95, 99)), (101, (91, 96, 100)), (1, (1, 1, 1))]
)
def test_equal_values_hold_equal_shares(equal, ranks):
    assert spectrum_of(np.ones(equal)).energy_ranks == ranks
    assert spectrum_of(np.zeros(equal)).energy_ranks == (0, 0, 0)


def test_a_share_that_is_held_exactly_asks_for_no_further_rank_by_rounding():
    """One and 41 thirds: of 50 ninths nine tenths are 45, nine of the first and 36 others."""
    assert spectrum_of(np.asarray([1.0] + [1 / 3] * 41)).energy_ranks[0] == 37


@pytest.mark.parametrize(("value", "counts"), [(3.9 * EPS, False), (4.1 * EPS, True)])
def test_a_value_under_the_rank_times_the_rounding_of_the_largest_is_zero(value, counts):
    found = spectrum_of(np.asarray([2.0, 2.0 * value, 0.0, 0.0]))
    assert (found.relative_errors[1] > 0.0) == counts
    assert (found.effective_rank > 1.0) == counts


def test_the_factors_have_ranks_of_their_own_b_first():
    b = np.eye(9, 3)
    a = np.zeros((3, 7))
    a[0, 0], a[1, 1], a[2, 1] = 2.0, 1.0, 1.0
    found = spectra([lambda: Factors(b, a, -2.0)])[0]
    assert found.factor_stable_ranks == pytest.approx((3.0, 6 / 4))
    assert found.factor_norms == pytest.approx((math.sqrt(3), math.sqrt(6)))  # without the scale
    assert found.sigma == pytest.approx([4.0, 2.0 * math.sqrt(2), 0.0])
    assert found.spectral_norm == pytest.approx(4.0)
    assert found.frobenius_norm == pytest.approx(math.sqrt(16 + 8))


def test_a_factor_has_the_squares_of_its_singular_values_over_the_largest_and_no_rank_where_it_is_zero():
    factors = np.stack([np.diag([1.0, 2.0**0.5, 2.0]), np.zeros((3, 3)), np.diag([0.0, 0.0, 5.0])])
    for size in (1.0, 2.0**-40):
        with jax.enable_x64(True):  # noqa: FBT003  # JAX's own signature
            assert batch.stable_ranks(factors * size).tolist() == pytest.approx([7 / 4, 0.0, 1.0])
            grams = np.swapaxes(factors, 1, 2) @ factors * size**2
            found = jax.device_get(batch.batched_by_grams(grams, grams[::-1]))
        assert found.factor_stable_ranks[:, 0].tolist() == pytest.approx([7 / 4, 0.0, 1.0])
        assert found.factor_stable_ranks[:, 1].tolist() == pytest.approx([1.0, 0.0, 7 / 4])


@every(("r", "d"), [(1, 5), (3, 3), (3, 7), (8, 64)])
def test_the_null_of_one_factor_is_that_of_random_ones(r, d):
    sigma = np.linalg.svd(np.random.default_rng(6).standard_normal((500, d, r)), compute_uv=False)
    seen = np.mean(np.sum(sigma**2, axis=1) / sigma[:, 0] ** 2)
    assert np.mean([null_factor_stable_rank(r, d, seed=seed) for seed in range(30)]) == pytest.approx(seen, rel=0.04)


def test_sizes_beyond_the_range_of_squares_are_singular_values_still():
    b, a = diagonal(3.0, 1.0)
    for size in (1e200, 1e-200):
        assert update.core_singular_values(b * size, a) == pytest.approx(np.asarray([3.0, 1.0]) * size)
    assert update.core_singular_values(b * 0.0, a).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("cosine", "trusted"), [(0.9803, False), (0.9801, True)])
def test_the_gram_route_vouches_from_a_hundredth_of_the_bound(cosine, trusted):
    """Rows at an angle, subtracted: (1 - c) / (1 + c) of the bound's square is left, for b of rank one."""
    a = np.asarray([[1.0, 0.0], [-cosine, -math.sqrt(1 - cosine**2)]])
    b = np.ones((1, 2))
    found = by_grams(b.T @ b, a @ a.T)
    assert found.sigma[0] ** 2 == pytest.approx(2 - 2 * cosine)
    assert found.trusted == trusted
    assert by_grams(0.0 * b.T @ b, a @ a.T).trusted
    assert by_grams(b.T @ b, 0.0 * a @ a.T).trusted


# --- factors of a rank beyond their sides ------------------------------------------------------------------------


@every(
    ("rank", "d_out", "d_in", "inner"),
    [(64, 3, 3, 64), (65, 3, 5, 3), (65, 65, 90, 65), (66, 65, 90, 65), (66, 90, 65, 65), (1, 9, 9, 1)],
)
def test_the_inner_size_is_the_lesser_side_beyond_64(rank, d_out, d_in, inner):
    assert inner_size(rank, d_out, d_in) == inner


# --- many modules ------------------------------------------------------------------------------------------------


def test_more_modules_than_fit_one_call_are_told_apart():
    loads = [lambda k=k: Factors(np.full((3, 1), float(k)), np.ones((1, 4)), 1.0) for k in range(1, 131)]
    found = [one.spectral_norm for one in spectra(loads)]
    assert found == pytest.approx([math.sqrt(12) * k for k in range(1, 131)])


def test_spectra_of_given_grams_load_nothing_that_they_can_vouch_for():
    def never() -> Factors:
        raise AssertionError

    b, a = diagonal(3.0, 1.0)
    given = [Grams(np.pad(a @ a.T, (0, 6)), np.pad(b.T @ b, (0, 6)), 2, 2.0)]
    assert spectra([never], given)[0].sigma == pytest.approx([6.0, 2.0])


# --- lower ranks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("least", "kept"), [(1.1e-7, 3), (0.9e-7, 2)])
def test_a_direction_under_a_ten_millionth_is_left_out_of_the_maps(least, kept):
    b, a = diagonal(1.0, 0.5, least)
    maps = gram_maps(a @ a.T, b.T @ b, 3)
    assert maps is not None
    assert np.count_nonzero(np.abs(maps.left).sum(axis=0)) == kept
    assert np.count_nonzero(np.abs(maps.right).sum(axis=1)) == kept


def test_a_long_matrix_less_its_part_is_measured_to_the_last_row():
    matrix = np.zeros((2500, 3))
    matrix[0, 0], matrix[1500, 1], matrix[2499, 2] = 5.0, 2.0, 1.0
    part = leading_part(matrix, 1)
    assert (part.norm, part.rest) == (pytest.approx(math.sqrt(30)), pytest.approx(math.sqrt(5)))


@every(("energy", "rank"), [(0.25, 1), (0.2501, 2), (0.75, 3), (1.0, 4), (1.01, None)])
def test_four_equal_values_hold_a_quarter_each(energy, rank):
    assert rank_for_energy(np.ones(4), energy, 4.0) == rank
    part = part_with_energy(np.eye(4, 6), energy)
    assert len(part.low.sigma) == (rank or 4)
    assert part.norm == 2.0
    assert part.rest == pytest.approx(math.sqrt(4 - (rank or 4)))


def test_an_energy_short_by_rounding_alone_is_held():
    assert rank_for_energy(np.ones(2), 1.0, 2.0 + 1e-12) == 2
    assert rank_for_energy(np.ones(2), 1.0, 2.0 + 1e-11) is None


# --- two updates -------------------------------------------------------------------------------------------------


def stack(b: np.ndarray, a: np.ndarray, scale: float = 1.0) -> StackTerm:
    return StackTerm(lambda: (b, a), a.shape[0], scale)


def geometry(one: StackTerm, two: StackTerm) -> PairGeometry:
    (row,) = row_geometries([[one, two]], [(0, 1)])
    return row.pairs[0, 1]


def test_two_updates_of_known_directions():
    one, two = stack(*diagonal(3.0, 1.0)), stack(*diagonal(0.0, 4.0, 2.0), -0.5)
    found = geometry(one, two)
    assert found.finite
    assert found.norms == pytest.approx((math.sqrt(10), math.sqrt(5)))
    assert found.inner == pytest.approx(-2.0)
    assert found.distance == pytest.approx(math.sqrt(9 + 9 + 1))
    assert found.cosine == pytest.approx(-2.0 / math.sqrt(50))
    np.testing.assert_allclose(np.abs(found.left), [[0.0, 0.0], [1.0, 0.0]], atol=1e-7)
    np.testing.assert_allclose(np.abs(found.right), [[0.0, 0.0], [1.0, 0.0]], atol=1e-7)


@pytest.mark.parametrize(("least", "directions"), [(1.1e-6, 2), (0.9e-6, 1)])
def test_a_direction_under_a_millionth_of_the_largest_has_no_angle(least, directions):
    found = geometry(stack(*diagonal(1.0, least)), stack(*diagonal(1.0)))
    assert found.left.shape == found.right.shape == (directions, 1)


def test_an_update_of_zero_has_no_directions_and_no_cosine():
    found = geometry(stack(*diagonal(0.0)), stack(*diagonal(1.0)))
    assert (found.left.shape, found.cosine, found.finite) == ((0, 1), None, True)


@pytest.mark.parametrize("rank", [3, 5])
def test_maps_of_a_rank_beyond_the_sides_are_of_the_narrowed_factors(rank):
    rng = np.random.default_rng(0)
    b, a = rng.standard_normal((6, 70)), rng.standard_normal((70, 5))
    ((_,), (maps,)) = batch.spectra_and_maps([lambda: Factors(b, a, 1.0)])
    new_b, new_a = reduced(b, a, 1.0, rank, maps=maps)
    u, sigma, v = np.linalg.svd(b @ a, full_matrices=False)
    np.testing.assert_allclose(new_b @ new_a, (u[:, :rank] * sigma[:rank]) @ v[:rank], atol=1e-9)


@pytest.mark.parametrize("scale", [math.inf, math.nan])
def test_a_scale_that_is_not_finite_leaves_nothing_to_compare(scale):
    found = geometry(stack(*diagonal(1.0)), stack(*diagonal(1.0), scale))
    assert (found.finite, found.cosine, found.left.shape) == (False, None, (0, 0))
    assert np.isnan([*found.norms, found.inner, found.distance]).all()


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("place", [0, 1])
def test_one_number_that_is_not_finite_leaves_nothing_to_compare(side, place):
    factors = [list(diagonal(1.0, 0.5)), list(diagonal(1.0, 0.5))]
    factors[place][side][-1, -1] = math.inf
    found = geometry(*(stack(*some) for some in factors))
    assert (found.finite, found.cosine, found.left.shape) == (False, None, (0, 0))


@pytest.mark.parametrize("place", [0, 1])
def test_one_update_that_all_but_cancels_is_enough_for_a_decomposition_of_the_factors(place):
    """Of which the Gram matrices show the eighth digit, and so the first of this norm.

    The terms that cancel are as far as may be from those of the other update, of rank one, and a tiny one between.
    """
    off, tiny = 1e-7, 1e-9
    b = np.array([[1.0, -1.0, 0.0], [0.0, 0.0, tiny], [0.0, 0.0, 0.0]])
    a = np.array([[1.0, 0.0, 0.0, 0.0], [1.0, off, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    order = [0, 1, 2] if place else [2, 0, 1]
    near = b[:, order], a[order]
    pairs = [stack(*diagonal(1.0, d_out=3, d_in=4)), stack(*near)]
    found = geometry(*(pairs if place else pairs[::-1]))
    assert found.norms[place] == pytest.approx(math.hypot(off, tiny), rel=1e-6)
    assert found.inner == pytest.approx(0.0, abs=1e-12)


# --- whole matrices ----------------------------------------------------------------------------------------------


def test_energy_ranks_of_a_whole_spectrum_are_exact_and_of_a_leading_one_bounds():
    whole = DenseSpectrum(np.asarray([3.0, 2.0, 1.0, 1.0]), 15.0, 4)
    assert [whole.energy_rank(share) for share in (0.6, 0.61, 13 / 15, 0.9, 1.0)] == [(k, k) for k in (1, 2, 2, 3, 4)]
    assert DenseSpectrum(np.ones(2), 2.0001, 2).energy_rank(1.0) == (2, 2)  # all values, whatever rounding adds
    bounded = DenseSpectrum(np.asarray([3.0, 2.0]), 14.0, 8, next_square=4.0, is_whole=False)
    assert bounded.energy_rank(12 / 14) == (2, 2)  # beside the first is 1 at most, though a value might be 4
    exactly = DenseSpectrum(np.ones(2), 4.0, 4, next_square=1.0, is_whole=False)
    assert exactly.energy_rank(0.5 / (1.0 - 4 * EPS)) == (1, 2)  # 2 of 4 are wanted: one and next to it another 1
    short = DenseSpectrum(np.asarray([3.0, 2.0]), 16.0, 8, next_square=0.5, is_whole=False)
    loose = DenseSpectrum(np.asarray([3.0, 2.0]), 16.0, 8, next_square=0.01, is_whole=False)
    assert loose.energy_rank(1.0) == (8, 8)  # a bound too low to be one decides nothing
    assert DenseSpectrum(np.asarray([3.0, 2.0]), 12.9, 8, is_whole=False).energy_rank(1.0) == (2, 2)  # rounding
    # 3 left in 6 values: a straight line gains half a value each, and k values are at most k halves more
    assert [short.energy_rank(share) for share in (13 / 16, 14 / 16, 15 / 16, 1.0)] == [(2, 2), (2, 4), (4, 6), (6, 8)]


def test_a_large_matrix_shows_as_many_values_as_asked_for_and_64_at_least(monkeypatch):
    monkeypatch.setattr(dense, "EXACT_UP_TO", 80)
    matrix = np.diag(np.linspace(2.0, 1.0, 90))
    sigma = np.linalg.svd(matrix, compute_uv=False)
    for values, shown in ((3, 64), (80, 80)):
        found = dense_spectrum(matrix, values=values)
        assert found.sigma == pytest.approx(sigma[:shown], rel=1e-5)
        assert sigma[shown] ** 2 <= found.next_square <= sigma[shown] ** 2 * 1.0003


# --- what a merge keeps ------------------------------------------------------------------------------------------


def test_a_cosine_of_sums():
    def sums(inner, realised, intended):
        return MergeSums(1, 1, inner, realised, intended, 1.0, 0.0).cosine

    assert (sums(1.0, 1.0, 0.0), sums(0.0, 0.0, 1.0)) == (None, 0.0)
    assert sums(3.0, 4.0, 9.0) == pytest.approx(0.5)


def test_sums_over_three_entries_by_hand():
    """bfloat16 has steps of 1/128 from 1 to 2: of 0.003 nothing is kept there, of 0.006 a whole step."""
    w = np.asarray([[1.0, 1.0], [0.0, 2.0]], np.float32)
    delta = np.asarray([[0.003, 0.006], [0.5, 0.0]], np.float32)
    whole = UpdatedWeight(w, w[:, :0], w[:0], delta)
    found = merge_sums(whole, scale=1.0, target="bfloat16", delta_dtype="float32")
    assert (found.entries, found.changed) == (4, 2)
    assert found.realised == pytest.approx((1 / 128) ** 2 + 0.25)
    assert found.intended == pytest.approx(0.003**2 + 0.006**2 + 0.25)
    assert found.inner == pytest.approx(0.006 / 128 + 0.25)
    assert found.weight == pytest.approx(6.0)
    assert found.along == pytest.approx(0.003 + 0.006)  # of W with dW
    kept = UpdatedWeight(np.asarray([[0.3]], np.float32), w[:1, :0], w[:0, :1], np.asarray([[2.0]], np.float32))
    assert merge_sums(kept, scale=1.0, target="bfloat16", delta_dtype="float32").along == pytest.approx(0.6, rel=1e-6)


# --- sketches ----------------------------------------------------------------------------------------------------


def sketch(*parts: tuple[str, np.ndarray, np.ndarray, float]) -> np.ndarray:
    made = Sketch()
    for part in parts:
        made.add(*part)
    return np.asarray(made.numbers())


def test_a_sketch_is_the_convolution_of_both_sides_folded_under_their_signs():
    rng = np.random.default_rng(0)
    b, a = rng.standard_normal((300, 2)).astype(np.float32), rng.standard_normal((2, 130)).astype(np.float32)
    found = sketch(("m", b, a, 0.5))
    assert found.shape == (DIMENSIONS,) == (128,)
    doubled = sketch(("m", b, a, 1.0))
    np.testing.assert_allclose(doubled, 2 * found, rtol=1e-5)
    np.testing.assert_allclose(found[[0, 1, 64, 127]], [6.035882, -4.800443, 0.341554, 9.250155], rtol=1e-4)
    np.testing.assert_allclose(sketch(("m", np.asfortranarray(b), a, 0.5)), found, rtol=1e-4, atol=1e-4)


def test_a_sketch_adds_up_leaves_out_what_it_has_and_what_is_not_finite():
    rng = np.random.default_rng(1)
    one = ("m", rng.standard_normal((9, 2)), rng.standard_normal((2, 8)), 1.0)
    two = ("n", rng.standard_normal((9, 2)), rng.standard_normal((2, 8)), 1.0)
    broken = ("o", np.full((9, 2), np.nan), np.ones((2, 8)), 1.0)
    both = sketch(one, two, one, broken)
    np.testing.assert_allclose(both, sketch(one) + sketch(two), rtol=1e-4, atol=1e-5)
    assert not sketch().any()
    assert not sketch(("m", np.full((9, 1), 1e30), np.full((1, 8), 1e30), 1.0)).any()
    many = [(f"m{i}", rng.standard_normal((4, 600)), rng.standard_normal((600, 5)), 1.0) for i in range(8)]
    np.testing.assert_allclose(sketch(*many), sum(sketch(each) for each in many), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("padding", [0, 6])
def test_grams_are_taken_where_they_are_of_the_factors_own_rank_and_made_anew_where_they_are_padded(padding):
    b, a = diagonal(3.0, 1.0)
    given = tuple(np.pad(gram, (0, padding)) for gram in (a @ a.T, b.T @ b))
    new_b, new_a = reduced(b, a, 1.0, 1, grams=given)
    assert (new_b.shape, new_a.shape) == ((40, 1), (1, 30))
    np.testing.assert_allclose((new_b @ new_a)[:2, :2], [[3.0, 0.0], [0.0, 0.0]], atol=1e-12)


@pytest.mark.parametrize(
    ("delta_dtype", "kept"), [("float32", 3.01171875), ("bfloat16", 3.015625), ("float16", 3.01171875)]
)
def test_the_scaled_update_is_rounded_to_the_dtype_of_its_factors_before_it_is_added(delta_dtype, kept):
    """3 * (1 + 1/256): bfloat16 has steps of 1/64 there; 1 + 1/256 alone would be 1. W can hold either."""
    one = np.ones((1, 1), np.float32)
    made = UpdatedWeight(0.0 * one, one, np.float32(1.00390625) * one)
    found = merge_sums(made, scale=3.0, target="float32", delta_dtype=delta_dtype)
    assert (found.intended, found.realised, found.inner) == (kept**2, kept**2, kept**2)


# --- kernels of pairs, sums and bases ----------------------------------------------------------------------------


def compare(b, a, scale=1.0):
    with jax.enable_x64(True):  # noqa: FBT003  # JAX's own signature
        return subspace.compared(np.hstack([b, b]), np.hstack([a.T, a.T]), np.array([scale, scale]))


@pytest.mark.parametrize("scale", [1.0, 1e-6, -1e-6, 1e6])
@pytest.mark.parametrize(("off", "trusted"), [(1.0, True), (0.02, True), (0.005, False)])
def test_an_update_is_known_from_gram_matrices_unless_it_all_but_cancels_whatever_its_scale(off, trusted, scale):
    """b = (1, -1), rows of a apart by `off`: sigma is `off` of 1 + 1 + off^2 / 2 or so, squared."""
    b, a = np.array([[1.0, -1.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [1.0, off]])
    assert (off**2 / (2.0 + off**2) >= 1e-4) is trusted
    assert bool(compare(b, a, scale).trusted) is trusted


def test_vectors_of_what_float32_does_not_tell_from_zero_are_none():
    columns = np.ones((2, 4))
    with jax.enable_x64(True):  # noqa: FBT003  # JAX's own signature
        found = base.over(columns, np.array([2.0, 1e-6, 1.9e-7, 0.0]))
    assert found.tolist() == [[0.5, 1e6, 0.0, 0.0]] * 2


def test_the_norm_of_wide_factors_is_zero_where_the_terms_cancel_and_infinite_beyond_the_range():
    rng = np.random.default_rng(0)
    b, a = rng.standard_normal((3, 40)), rng.standard_normal((40, 4))
    for factors, norm in (
        ((b, a), np.sum((b @ a) ** 2)),
        ((np.hstack([b, b]), np.vstack([a, -a])), 0.0),
        ((1e170 * b, 1e170 * a), math.inf),
    ):
        with np.errstate(all="ignore"):
            assert sums.norm_beyond_the_sides(*factors, sums.pair_grams(*factors)) == pytest.approx(norm)
