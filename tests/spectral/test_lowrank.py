"""Best approximations from the factors, against the dense singular value decomposition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from gradience.spectral.update import decomposed, stacked


def _factors(seed: int, out: int, r: int, inner: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((out, r)), rng.standard_normal((r, inner))


@given(
    seed=st.integers(0, 99),
    out=st.integers(1, 20),
    r=st.integers(1, 24),
    inner=st.integers(1, 20),
    rank=st.integers(1, 24),
    scale=st.sampled_from([1.0, -2.5, 1e-9, 0.0]),
    target=st.sampled_from([2.0, -0.5]),
)
def test_the_error_is_that_of_the_dense_optimum(
    seed: int, out: int, r: int, inner: int, rank: int, scale: float, target: float
) -> None:
    b, a = _factors(seed, out, r, inner)
    dense = scale * b @ a
    sigma = np.linalg.svd(dense, compute_uv=False)
    found = decomposed(b, a, scale)
    new_b, new_a = found.factors(rank, scale=target)
    best = np.linalg.norm(sigma[rank:])
    size = np.linalg.norm(dense)
    assert np.linalg.norm(dense - target * new_b @ new_a) == pytest.approx(best, rel=1e-9, abs=1e-12 * size)
    assert found.error(rank) == pytest.approx(best, rel=1e-9, abs=1e-12 * size)
    assert new_b.shape == (out, rank)
    assert new_a.shape == (rank, inner)


@given(seed=st.integers(0, 99), r1=st.integers(1, 5), r2=st.integers(1, 5))
def test_stacking_adds_up(seed: int, r1: int, r2: int) -> None:
    b1, a1 = _factors(seed, 7, r1, 6)
    b2, a2 = _factors(seed + 1000, 7, r2, 6)
    b, a = stacked([(b1, a1, 0.5), (b2, a2, -3.0)])
    assert b.shape == (7, r1 + r2)
    np.testing.assert_allclose(b @ a, 0.5 * b1 @ a1 - 3.0 * b2 @ a2, rtol=1e-12, atol=1e-12)
