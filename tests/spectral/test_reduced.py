"""The Gram route to lower ranks, against the dense singular value decomposition."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st

from gradience.spectral.batch import spectra, spectra_and_maps
from gradience.spectral.grams import Factors, grams_of, inner_size, narrowed
from gradience.spectral.update import decomposed, gram_maps, reduced, stacked


def _factors(seed: int, out: int, r: int, inner: int, fall: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((out, r)), rng.standard_normal((r, inner)) * fall ** np.arange(r)[:, None]


def _errors(b, a, scale, rank, **more) -> tuple[float, float]:
    """Return (error of the reduced product, least possible error), both relative to the product's norm."""
    dense = scale * b.astype(np.float64) @ a.astype(np.float64)
    new_b, new_a = reduced(b, a, scale, rank, **more)
    assert new_b.shape == (len(b), rank)
    assert new_a.shape == (rank, a.shape[1])
    got = scale * new_b.astype(np.float64) @ new_a.astype(np.float64)
    sigma = np.linalg.svd(dense, compute_uv=False)
    size = np.linalg.norm(dense) or 1.0
    return float(np.linalg.norm(dense - got) / size), float(np.linalg.norm(sigma[rank:]) / size)


@given(
    seed=st.integers(0, 99),
    out=st.integers(1, 40),
    r=st.integers(1, 24),
    inner=st.integers(1, 40),
    rank=st.integers(1, 24),
    scale=st.sampled_from([1.0, -2.5, 1e-9, 1e9]),
    fall=st.sampled_from([1.0, 0.5, 0.1, 1e-3]),
)
def test_the_error_is_within_1e_6_of_the_dense_optimum(seed, out, r, inner, rank, scale, fall):
    b, a = _factors(seed, out, r, inner, fall)
    error, least = _errors(b, a, scale, min(rank, r))
    assert error == pytest.approx(least, abs=1e-6)


@given(seed=st.integers(0, 99), rank=st.integers(1, 12), size=st.sampled_from([1e-12, 1e-6, 1.0, 1e6]))
def test_rows_of_very_different_size_cost_no_accuracy(seed, rank, size):
    b, a = _factors(seed, 30, 12, 40, 0.8)
    balance = size ** np.linspace(-1.0, 1.0, 12)
    error, least = _errors(b * balance, a / balance[:, None], 1.0, rank)
    assert error == pytest.approx(least, abs=1e-6)


@given(seed=st.integers(0, 99), rank=st.integers(1, 8))
def test_factors_that_all_but_cancel_go_through_qr(seed, rank):
    rng = np.random.default_rng(seed)
    b, a = rng.standard_normal((30, 4)), rng.standard_normal((4, 40))
    b2, a2 = np.hstack([b, b + 1e-6 * rng.standard_normal(b.shape)]), np.vstack([a, -a])
    assert gram_maps(a2 @ a2.T, b2.T @ b2, rank) is None
    error, least = _errors(b2, a2, 1.0, rank)
    assert error == pytest.approx(least, abs=1e-6)


def test_half_precision_factors_need_no_more_than_float32_products():
    b, a = _factors(0, 300, 16, 400, 0.7)
    b, a = b.astype(ml_dtypes.bfloat16), a.astype(ml_dtypes.bfloat16)
    error, least = _errors(b, a, 2.0, 4, half=True)
    assert error == pytest.approx(least, abs=1e-6)
    assert reduced(b, a, 2.0, 4, half=True)[0].dtype == np.float32


def test_both_factors_get_the_same_share_of_the_size():
    b, a = _factors(0, 30, 8, 40, 0.7)
    new_b, new_a = reduced(1e4 * b, 1e-7 * a, 1.0, 3)
    np.testing.assert_allclose(np.linalg.norm(new_b, axis=0), np.linalg.norm(new_a, axis=1), rtol=1e-9)


def test_a_zero_product_is_zero():
    for b, a in ((np.zeros((5, 3)), np.ones((3, 4))), (np.ones((5, 3)), np.zeros((3, 4)))):
        new_b, new_a = reduced(b, a, 1.0, 2)
        assert not (new_b @ new_a).any()


def stable_rank(matrix):
    sigma = np.linalg.svd(matrix, compute_uv=False)
    return np.sum(sigma**2) / sigma[0] ** 2


@pytest.mark.parametrize("rank", [3, 9])
def test_the_maps_that_come_with_the_spectra_are_those_of_the_grams_at_every_lower_rank(rank):
    """At rank 9 of 6 what lies beyond is zero; the Gram matrices are padded to 8."""
    b, a = _factors(3, 50, 6, 40, 0.6)
    (spectrum,), (maps,) = spectra_and_maps([lambda: Factors(b, a, -0.5)])
    assert spectrum.sigma == pytest.approx(np.linalg.svd(0.5 * b @ a, compute_uv=False)[:6], rel=1e-10)
    assert spectrum.factor_stable_ranks == pytest.approx([stable_rank(b), stable_rank(a)])
    given_b, given_a = reduced(b, a, -0.5, rank, maps=maps)
    u, sigma, v = np.linalg.svd(b @ a)
    kept = min(rank, 6)
    best = (u[:, :kept] * sigma[:kept]) @ v[:kept]
    np.testing.assert_allclose(given_b @ given_a, best, atol=1e-12 * sigma[0])
    assert (given_b.shape, given_a.shape) == ((50, rank), (rank, 40))


def test_factors_that_all_but_cancel_come_with_no_maps():
    b, a = _factors(0, 30, 4, 40, 1.0)
    b2 = np.hstack([b, b + 1e-6 * np.random.default_rng(1).standard_normal(b.shape)])
    assert spectra_and_maps([lambda: Factors(b2, np.vstack([a, -a]), 1.0)])[1] == [None]


@given(
    seed=st.integers(0, 99),
    out=st.integers(1, 20),
    r=st.integers(1, 24),
    inner=st.integers(1, 20),
    rank=st.integers(1, 24),
    scale=st.sampled_from([1.0, -2.5, 1e-9, 0.0]),
    target=st.sampled_from([2.0, -0.5]),
)
def test_a_decomposition_by_qr_has_the_error_of_the_dense_optimum(seed, out, r, inner, rank, scale, target):
    b, a = _factors(seed, out, r, inner, 1.0)
    dense = scale * b @ a
    sigma = np.linalg.svd(dense, compute_uv=False)
    found = decomposed(b, a, scale)
    new_b, new_a = found.factors(rank, scale=target)
    best, size = np.linalg.norm(sigma[rank:]), np.linalg.norm(dense)
    assert np.linalg.norm(dense - target * new_b @ new_a) == pytest.approx(best, rel=1e-9, abs=1e-12 * size)
    assert found.error(rank) == pytest.approx(best, rel=1e-9, abs=1e-12 * size)
    assert (new_b.shape, new_a.shape) == ((out, rank), (rank, inner))


def test_stacking_adds_up():
    (b1, a1), (b2, a2) = _factors(0, 7, 3, 6, 1.0), _factors(1, 7, 2, 6, 1.0)
    b, a = stacked([(b1, a1, 0.5), (b2, a2, -3.0)])
    np.testing.assert_allclose(b @ a, 0.5 * b1 @ a1 - 3.0 * b2 @ a2, rtol=1e-12, atol=1e-12)


# --- factors of a rank beyond their product's sides ----------------------------------------------------------------


@pytest.mark.parametrize(("d_out", "d_in", "rank"), [(1, 1, 500), (3, 70, 400), (70, 3, 400)])
def test_a_rank_beyond_both_sides_has_the_spectrum_of_the_dense_product(d_out, d_in, rank):
    rng = np.random.default_rng(0)
    b, a = rng.standard_normal((d_out, rank)), rng.standard_normal((rank, d_in))
    least = min(d_out, d_in)
    assert narrowed(b, a)[0].shape[1] == least == inner_size(rank, d_out, d_in)
    np.testing.assert_allclose(np.matmul(*narrowed(b, a)), b @ a)
    loads = [lambda: Factors(b, a, 2.0)]
    assert len(grams_of(loads)[0].gram_a) == 8  # the least bucket
    found = spectra(loads)[0]
    np.testing.assert_allclose(found.sigma[:least], 2.0 * np.linalg.svd(b @ a, compute_uv=False), rtol=1e-6)
    assert found.sigma.shape == (rank,)
    assert not found.sigma[least:].any()
    assert found.relative_errors.shape == (rank + 1,)
    np.testing.assert_allclose(np.matmul(*reduced(b, a, 1.0, least)), b @ a, rtol=1e-6, atol=1e-9)


def test_a_rank_within_the_sides_is_left_as_it_is():
    b, a = np.ones((100, 64)), np.ones((64, 2))
    assert narrowed(b, a)[0] is b
