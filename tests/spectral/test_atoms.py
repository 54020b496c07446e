"""Bounds on overlaps against the dense SVD, for vectors of every kind."""

from __future__ import annotations

import numpy as np
import pytest

from gradience.spectral.intruders import atoms
from gradience.spectral.krylov import Bidiagonal, Operator

SIZE, WIDTH = 120, 5
THRESHOLDS = (0.09, 0.25, 0.49)
SPECTRA = {
    "falls slowly": np.arange(1.0, SIZE + 1) ** -0.5,
    "outliers over a bulk": np.r_[[20.0, 9.0, 4.0], np.linspace(1.0, 0.2, SIZE - 3)],
    "down to nothing": np.geomspace(1.0, 1e-6, SIZE),
    "rank 30": np.r_[np.linspace(2.0, 1.0, 30), np.zeros(SIZE - 30)],
}


def turned(m, n, sigma, seed=0):
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((side, len(sigma))))[0] for side in (m, n))
    return u, (u * sigma) @ v.T


def starts(u, m):
    """Vectors as rows: a singular vector, two mixtures of a few, one with a little of all, one outside the range."""
    rng = np.random.default_rng(1)
    spread = rng.standard_normal(m)
    outside = rng.standard_normal(m)
    outside -= u @ (u.T @ outside)
    mixed = (u[:, :3] @ [0.8, 0.5, 0.33], u[:, 4:9] @ np.ones(5))
    rows = np.stack([u[:, 1], *mixed, spread, outside + 1e-3 * spread])
    return np.linalg.qr(rows.T)[0].T


@pytest.mark.parametrize("steps", [2, 5, 9, 16])
@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("shape", [(170, 120), (120, 130)])
def test_bounds_hold_the_largest_overlap_of_the_dense_svd(shape, kind, steps):
    u, w = turned(*shape, SPECTRA[kind])
    y = starts(u, shape[0])
    basis = Bidiagonal(Operator.of(w), y.astype(np.float32), steps)
    for _ in range(steps):
        basis.step()
    found = atoms(basis, WIDTH, THRESHOLDS)
    seen = SPECTRA[kind] > 1e-4 * SPECTRA[kind][0]  # below it float32 tells none apart
    true = np.max((y @ u[:, seen]) ** 2, axis=1)
    assert np.all(found.lower <= true + 1e-4)
    assert np.all(found.upper >= true - 1e-4)
    if steps == 16 and kind in {"falls slowly", "outliers over a bulk"}:
        decided = [all(lo >= x or up < x for x in THRESHOLDS) for lo, up in zip(found.lower, found.upper, strict=True)]
        assert all(decided[:3])
        assert found.lower[0] == pytest.approx(1.0, abs=1e-4)


def test_vectors_are_decided_long_before_the_space_is_whole():
    u, w = turned(600, 500, np.linspace(2.0, 1.0, 500))
    rng = np.random.default_rng(3)
    spread = np.linalg.qr(rng.standard_normal((600, 2)))[0].T
    basis = Bidiagonal(Operator.of(w), spread.astype(np.float32), 30)
    for _ in range(30):
        basis.step()
    found = atoms(basis, 2, THRESHOLDS)
    true = np.max((spread @ u) ** 2, axis=1)
    assert np.all(found.upper < 0.09)
    assert np.all(found.upper >= true)


def test_a_matrix_of_zeros_has_no_overlaps():
    basis = Bidiagonal(Operator.of(np.zeros((20, 30))), np.eye(2, 20, dtype=np.float32), 2)
    basis.step()
    basis.step()
    found = atoms(basis, 2, THRESHOLDS)
    assert (found.lower.tolist(), found.upper.tolist()) == ([0.0, 0.0], [0.0, 0.0])
