"""The spectrum of a whole matrix against numpy's SVD, small and large."""

from __future__ import annotations

import numpy as np
import pytest

from gradience.spectral import dense
from gradience.spectral.dense import dense_spectrum


def matrix_with(sigma, m, n, seed=0):
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((side, len(sigma))))[0] for side in (m, n))
    return (u * sigma) @ v.T


def k_of(sigma, share):
    return int(np.argmax(np.cumsum(sigma**2) >= share * np.sum(sigma**2) * (1 - 1e-13))) + 1


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (1, 7), (30, 30)])
def test_a_small_matrix_has_every_singular_value_of_the_svd(shape):
    matrix = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    found = dense_spectrum(matrix)
    expected = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(found.sigma, expected, rtol=1e-13, atol=1e-14 * expected[0])
    assert found.is_whole
    assert found.energy == pytest.approx(np.sum(expected**2), rel=1e-12)
    for share in (0.5, 0.9, 0.99, 1.0):
        assert found.energy_rank(share) == (k_of(expected, share),) * 2


SPECTRA = {
    "falls fast": 0.5 ** np.arange(300),
    "falls slowly": 1.0 / np.arange(1, 301),
    "flat": np.ones(300),
    "peak over a flat floor": np.concatenate([[30.0], np.ones(299)]),
    "70 equal, then nothing": np.concatenate([np.ones(70), np.full(230, 1e-4)]),
}


@pytest.mark.parametrize("kind", SPECTRA)
def test_bounds_of_a_large_matrix_hold_the_true_energy_ranks(kind, monkeypatch):
    monkeypatch.setattr(dense, "EXACT_UP_TO", 100)
    sigma = SPECTRA[kind]
    found = dense_spectrum(matrix_with(sigma, 300, 340))
    assert not found.is_whole
    assert found.energy == pytest.approx(np.sum(sigma**2), rel=1e-9)
    assert found.sigma[0] == pytest.approx(sigma[0], rel=1e-5)
    for share in (0.5, 0.9, 0.95, 0.99):
        least, most = found.energy_rank(share)
        assert least <= k_of(sigma, share) <= most
    if kind == "falls fast":
        assert found.energy_rank(0.99) == (4, 4)
    if kind == "flat":  # straight line and Ky Fan's bound meet but for their tolerances
        least, most = found.energy_rank(0.9)
        assert least >= 0.6 * 270
        assert most == 270
