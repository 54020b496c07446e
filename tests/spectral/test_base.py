"""Norms of a base weight, and what a 16-bit merge keeps, against dense float64 and ml_dtypes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from shaped import SPECTRA, M, N, of
from tables import grid

from gradience.spectral.base import UpdatedWeight, merge_sums, rounded
from gradience.spectral.krylov import Operator, leading

R = 4


def matrix(kind: str) -> np.ndarray:
    return of(SPECTRA[kind])


@grid(each=3, scale=[1e-6, 1.0, 1e6], kind=SPECTRA)
def test_spectral_norm_is_within_1e_5_of_dense_float64(kind, scale):
    w = matrix(kind) * np.float32(scale)
    found = leading(Operator.of(w))
    true = np.linalg.norm(w.astype(np.float64), 2)
    assert found.converged
    assert found.sigma[0] == pytest.approx(true, rel=1e-6, abs=1e-30)


def test_what_one_step_of_a_block_does_not_show_is_decomposed_whole():
    w = np.random.default_rng(0).standard_normal((97, 97)).astype(np.float32)
    found = leading(Operator.of(w), 48)
    assert found.exact
    assert np.allclose(found.sigma, np.linalg.svd(w.astype(np.float64), compute_uv=False)[:48], rtol=1e-9)


def test_leading_values_and_left_vectors_match_the_dense_svd():
    w = matrix("decaying")
    found = leading(Operator.of(w), 6, vectors=True)
    u, s, _ = np.linalg.svd(w.astype(np.float64))
    assert found.converged
    assert np.allclose(found.sigma, s[:6], rtol=1e-6)
    assert np.allclose(np.abs(np.sum(found.left * u[:, :6], axis=0)), 1.0, atol=1e-5)


def test_the_implicit_sum_has_the_norm_of_the_explicit_one():
    rng = np.random.default_rng(1)
    w, b, a = matrix("flat"), rng.standard_normal((M, R)), rng.standard_normal((R, N))
    found = leading(Operator.of(w).plus(b, a))
    assert found.sigma[0] == pytest.approx(np.linalg.norm(w + b @ a, 2), rel=1e-6)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_rounding_is_that_of_ml_dtypes_bit_for_bit(name):
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    values = np.r_[bits[np.isfinite(bits)], rng.standard_normal(50_000), rng.standard_normal(50_000) * 1e-6]
    x = values.astype(np.float32)
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    largest = float(ml_dtypes.finfo(dtype).max)
    x = x[(np.abs(x) < largest * 0.99) & ((np.abs(x) > 1e-37) | (x == 0))]
    got = np.asarray(jax.jit(rounded, static_argnums=1)(jnp.asarray(x), name))
    assert np.array_equal(got, x.astype(dtype).astype(np.float32))


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(("dense", "rows"), [(False, M), (True, M), (False, 701)])
def test_merge_sums_are_those_of_an_elementwise_merge_each_row_counted_once(stored, dense, rows):
    """Of 701 rows 436 are summed at a time: the last part begins within the first."""
    rng = np.random.default_rng(0)
    w = (rng.standard_normal((rows, 300)) * 0.02).astype(np.dtype(getattr(ml_dtypes, stored, None) or stored))
    b, a = (rng.standard_normal(s).astype(np.float32) for s in ((rows, R), (R, 300)))
    delta = (b @ a) * np.float32(-1e-4)
    target = ml_dtypes.bfloat16 if stored == "float32" else w.dtype
    name = "bfloat16" if stored == "float32" else stored
    given = UpdatedWeight(w, b, a, delta if dense else None)
    found = merge_sums(given, scale=-1e-4, target=name, delta_dtype="float32")
    before = w.astype(target).astype(np.float32)
    realised = (before + delta).astype(target).astype(np.float64) - before
    wide = delta.astype(np.float64)
    assert found.entries == w.size
    assert abs(found.changed - np.count_nonzero(realised)) <= 4  # a product may round the other way
    assert found.intended == pytest.approx(np.sum(wide**2), rel=1e-5)
    assert found.weight == pytest.approx(np.sum(w.astype(np.float64) ** 2), rel=1e-6)
    assert found.realised == pytest.approx(np.sum(realised**2), rel=1e-3)
    assert found.inner == pytest.approx(np.sum(realised * wide), rel=1e-3)
    cosine = np.sum(realised * wide) / np.linalg.norm(realised) / np.linalg.norm(wide)
    assert found.cosine == pytest.approx(cosine, abs=1e-4)


def test_a_zero_update_changes_nothing_and_has_no_cosine():
    w = matrix("flat")
    zero = UpdatedWeight(w, np.zeros((M, R), np.float32), np.ones((R, N), np.float32))
    found = merge_sums(zero, scale=1.0, target="bfloat16", delta_dtype="float32")
    assert found.changed == 0
    assert found.cosine is None
