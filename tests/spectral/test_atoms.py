"""Bounds on overlaps against the dense SVD, for vectors of every kind."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from tables import few, grid

from gradience.spectral.base import Measure, atoms, bound, measures_of
from gradience.spectral.krylov import Bidiagonal, Operator, advanced, ritz_of


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):  # noqa: FBT003  # JAX's own signature
        yield


def bases(w, start, steps):
    matrix = Operator.of(w)
    return advanced(matrix, start.astype(np.float32), Bidiagonal.empty(matrix, len(start), steps + 1), steps + 1)


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


@grid(each=2, shape=[(170, 120), (120, 130)], kind=SPECTRA, steps=few([2, 5, 9, 16], each=3))
def test_bounds_hold_the_largest_overlap_of_the_dense_svd(shape, kind, steps):
    u, w = turned(*shape, SPECTRA[kind])
    y = starts(u, shape[0])
    found = atoms(bases(w, y, steps), steps + 1, WIDTH, THRESHOLDS)
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
    found = atoms(bases(w, spread, 30), 31, 2, THRESHOLDS)
    true = np.max((spread @ u) ** 2, axis=1)
    assert np.all(found.upper < 0.09)
    assert np.all(found.upper >= true)


def test_a_matrix_of_zeros_has_no_overlaps():
    found = atoms(bases(np.zeros((20, 30)), np.eye(2, 20), 2), 3, 2, THRESHOLDS)
    assert (found.lower.tolist(), found.upper.tolist()) == ([0.0, 0.0], [0.0, 0.0])


def stepped(seed=0, steps=3, room=4):
    """The core C of some steps, and the measures and Ritz values of the bases with room for more or not."""
    rng = np.random.default_rng(seed)
    basis = bases(rng.standard_normal((40, 30)), rng.standard_normal((WIDTH, 40)), steps)
    ritz = ritz_of(basis._replace(core=np.pad(basis.core, [(0, room - 4), (0, 0)] * 2)), room)
    core = np.asarray(basis.core).reshape(4 * WIDTH, -1)[:, :-WIDTH]
    return core, measures_of(ritz, basis.blocks, WIDTH, 2), ritz


def test_measures_are_of_the_augmented_matrix_and_of_both_squares():
    """Rows of eigenvectors give back the blocks of each matrix that they are of."""
    core, (both, outer, inner), _ = stepped(room=6)
    k, square = 2, core @ core.T
    for measure, power in ((both, 2), (outer, 1)):  # [0 C; C^T 0] has C C^T as the first block of its square
        values, first, last = measure
        for one, rows in ((first, slice(0, k)), (last, slice(-WIDTH, None))):
            for two, columns in ((first, slice(0, k)), (last, slice(-WIDTH, None))):
                np.testing.assert_allclose(one @ two.T, np.eye(len(core))[rows, columns], atol=1e-12)
                np.testing.assert_allclose((one * values**power) @ two.T, square[rows, columns], atol=1e-9)
    np.testing.assert_allclose((both.first * both.values) @ both.last.T, 0.0, atol=1e-9)
    np.testing.assert_allclose(inner.first @ inner.first.T, square[:k, :k], atol=1e-9)
    np.testing.assert_allclose((inner.first * inner.values) @ inner.first.T, (square @ square)[:k, :k], atol=1e-8)
    np.testing.assert_allclose(inner.last @ inner.last.T, np.eye(WIDTH), atol=1e-12)
    last = (inner.last * inner.values) @ inner.last.T
    np.testing.assert_allclose(last, (core.T @ core)[-WIDTH:, -WIDTH:], atol=1e-9)


@pytest.mark.parametrize("half", [0.05, 0.5])
def test_the_bound_is_that_of_the_dense_formula(half):
    """(1 + s h^2) [(1 + s M^T M)^-1]_yy with M all but the last block of rows of T - c, and s h^2 = 0.05."""
    rng = np.random.default_rng(4)
    n, k, c = 9, 2, 3
    t = rng.standard_normal((n, n))
    t += t.T
    values, vectors = np.linalg.eigh(t)
    middle = np.array([-1.0, 0.3, 2.0])
    found = bound(Measure(values, vectors[:k], vectors[-c:]), middle, np.full(3, half))
    for at, centre in enumerate(middle):
        rows = (t - centre * np.eye(n))[:-c]
        whole = 1.05 * np.linalg.inv(np.eye(n) + 0.05 / half**2 * rows.T @ rows)
        np.testing.assert_allclose(found[at], np.diagonal(whole)[:k], rtol=1e-9)


@pytest.mark.parametrize("weight", [0.2, 0.5, 0.8])
def test_a_vector_in_a_whole_space_is_known_from_both_sides(weight):
    """W of 12 x 10 in three steps of four; y = sqrt(weight) u_1 + sqrt(1 - weight) u_4."""
    u, w = turned(12, 10, np.linspace(3.0, 1.0, 10))
    y = np.sqrt(weight) * u[:, 0] + np.sqrt(1 - weight) * u[:, 3]
    rest = np.linalg.qr(np.column_stack([y, np.random.default_rng(0).standard_normal((12, 3))]))[0].T
    rest *= np.sign(rest[0] @ y)
    found = atoms(bases(w, rest, 2), 3, 1, THRESHOLDS)
    larger = max(weight, 1 - weight)
    assert found.lower[0] <= larger + 1e-4
    assert larger - 1e-4 <= found.upper[0] <= 1.0
