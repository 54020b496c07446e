"""The bidiagonalisation against its own equations, in float64."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from gradience.spectral import krylov
from gradience.spectral.krylov import Bidiagonal, Operator, as_float32


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):  # noqa: FBT003  # JAX's own signature
        yield


WIDTH = 4


def matrices():
    rng = np.random.default_rng(0)
    flat = rng.standard_normal((60, 44))
    return {
        "flat": flat,
        "wide": flat.T * 1e-6,
        "rank 3": flat[:, :3] @ flat[:3, :],
        "equal values": np.linalg.qr(flat)[0],
        "zero": np.zeros((60, 44)),
    }


@pytest.mark.parametrize("kind", matrices())
def test_bases_are_orthonormal_and_obey_the_recurrence(kind):
    w = matrices()[kind].astype(np.float32)
    start = np.random.default_rng(1).standard_normal((WIDTH, len(w)), np.float32)
    matrix = Operator.of(w)
    half = krylov.advanced(matrix, start, Bidiagonal.empty(matrix, WIDTH, 9), 4)  # a step more than has room
    basis = krylov.advanced(matrix, start, half, 7)
    assert int(basis.blocks) == 7
    assert not any(np.asarray(x[7:]).any() for x in basis[:3])
    p, q = (np.asarray(x, np.float64).reshape(-1, x.shape[-1]) for x in (basis.left[:7], basis.right[:6]))
    core, coupling = np.asarray(basis.core)[:7, :, :6].reshape(7 * WIDTH, -1), np.asarray(basis.core)[6, :, 6].T
    size = np.linalg.norm(w.astype(np.float64), 2) or 1.0
    if kind != "zero":  # where any vectors do
        assert np.allclose(p @ p.T, np.eye(len(p)), atol=1e-5)
    assert np.allclose(q @ q.T, np.eye(len(q)), atol=1e-5) or kind == "zero"
    assert np.allclose(w @ q.T, p.T @ core, atol=2e-6 * size)
    behind = w.T @ p.T - q.T @ core.T
    assert np.allclose(behind[:, :-WIDTH], 0.0, atol=2e-6 * size)
    assert np.allclose(behind[:, -WIDTH:].T @ behind[:, -WIDTH:], coupling.T @ coupling, atol=1e-5 * size**2)
    spanned = start.astype(np.float64) @ p[:WIDTH].T @ p[:WIDTH]
    assert np.allclose(spanned, start, atol=1e-5)


@pytest.mark.parametrize(("size", "taken"), [(44, 36), (44, 40), (300, 200)])
def test_what_a_basis_leaves_of_its_own_vectors_is_made_orthogonal_to_it_too(size, taken):
    """Rounding errors alone are left, of which the basis has as large a share as of any vector."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        basis = np.linalg.qr(rng.standard_normal((size, size)))[0][:taken].astype(np.float32)
        within = (rng.standard_normal((WIDTH, taken)) @ basis.astype(np.float64)).astype(np.float32)
        rows, _ = jax.jit(krylov.orthonormal)(within, basis.reshape(-1, WIDTH, size), np.int32(taken // WIDTH))
        wide = np.asarray(rows, np.float64)
        assert np.abs(wide @ basis.T).max() < 1e-7
        assert np.abs(wide @ wide.T - np.eye(WIDTH)).max() < 1e-7


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_an_operator_multiplies_as_the_sum_it_stands_for(shape):
    rng = np.random.default_rng(2)
    w, b, a = (rng.standard_normal(s) for s in (shape, (shape[0], 2), (2, shape[1])))
    x = Operator.of(w).plus(b, a)
    v, u = rng.standard_normal((3, shape[1])), rng.standard_normal((3, shape[0]))
    assert np.allclose(x.times(v.astype(np.float32)), v @ (w + b @ a).T, atol=1e-5)
    assert np.allclose(x.times_transposed(u.astype(np.float32)), u @ (w + b @ a), atol=1e-5)
    assert np.allclose(x.turned().whole(), (w + b @ a).T, atol=1e-5)


def test_float32_is_aligned_and_made_once():
    x = np.arange(12.0).reshape(3, 4)
    found = as_float32(x)
    several = [as_float32(np.ones((n, 3))) for n in range(1, 40)]  # memory at addresses of all kinds
    assert not any(one.ctypes.data % 64 for one in (found, *several))
    assert np.array_equal(found, x)
    assert as_float32(found) is found
    turned = as_float32(found.T)
    assert turned.flags.c_contiguous
    assert np.array_equal(turned, x.T)


APART, EQUAL = (2.0, 1.75, 1.25), (2.0, 2.0, 1.25)


@pytest.mark.parametrize(
    ("sigma", "residuals", "vectors", "converged"),
    [
        # within 2^-8: the residual rho, or rho^2 over the gap of 1/4
        (APART, (2.0**-5, 2.0**-5), False, True),
        (APART, (2.0**-4.9, 2.0**-9), False, False),
        (APART, (2.0**-9, 2.0**-4.9), False, False),
        (EQUAL, (2.0**-8, 2.0**-8), False, True),
        (EQUAL, (2.0**-7.9, 2.0**-9), False, False),
        # and the angle rho over the gap within 2^-4, but for equal values, which have no vectors of their own
        (APART, (2.0**-6, 2.0**-6), True, True),
        (APART, (2.0**-5.9, 2.0**-9), True, False),
        (APART, (2.0**-9, 2.0**-5.9), True, False),
        (EQUAL, (2.0**-8, 2.0**-8), True, True),
        (EQUAL, (2.0**-9, 2.0**-7.9), True, False),
    ],
)
def test_a_value_has_converged_by_its_residual_and_a_vector_by_its_angle(
    sigma, residuals, vectors, converged, monkeypatch
):
    monkeypatch.setattr(krylov, "_ANGLE", 2.0**-4)
    ritz = krylov.Ritz(np.array(sigma), np.eye(3), np.eye(3), np.array([*residuals, 9.0]))
    assert bool(krylov.converged(ritz, 2, 2.0**-9, vectors=vectors)) is converged


def test_a_gap_is_that_to_the_nearest_neighbour():
    assert krylov.gaps_of(np.array([9.0, 7.0, 6.0, 1.0])).tolist() == [2.0, 1.0, 1.0, 5.0]
    assert krylov.gaps_of(np.array([2.0, 2.0]))[0] == np.finfo(np.float64).tiny


@pytest.mark.parametrize(("size", "exact"), [(96, True), (97, False)])
def test_small_matrices_are_done_exactly(size, exact):
    w = np.diag(np.arange(size, 0.0, -1.0))
    found = krylov.leading(Operator.of(w))
    assert (found.exact, found.guard.shape) == (exact, (size, 0 if exact else 7))  # of a block of eight, seven more


@pytest.mark.parametrize("off", [0.5, 1e-6])  # of the second no digit but four would be left by a Gram matrix
def test_rows_that_all_but_depend_on_each_other_get_a_basis_all_the_same(off):
    block = np.array([[1.0, 0.0, 0.0], [1.0, off, 0.0]], np.float32)
    y, r = jax.jit(krylov.orthonormal)(block, np.zeros((1, 2, 3), np.float32), np.int32(0))
    np.testing.assert_allclose(np.abs(y), np.eye(2, 3), atol=1e-6)
    np.testing.assert_allclose(np.asarray(r).T @ y, block, atol=1e-6)


def test_a_core_is_cut_to_a_power_of_two():
    assert [krylov.room_for(blocks, 96) for blocks in (4, 16, 17, 32, 33, 65)] == [16, 16, 32, 32, 64, 96]


def test_a_matrix_of_which_one_square_is_beyond_float32_has_its_norm():
    sigma = np.linspace(1.0, 2.0, 97)
    sigma[5] = 1e30
    w = np.diag(sigma).astype(np.float32)
    found = krylov.spectral_norm(w)
    assert found.value == pytest.approx(1e30, rel=1e-5)
    assert found.converged
    start = np.random.default_rng(0).standard_normal((2, 97)).astype(np.float32)
    given_up = krylov.lanczos(w, start, 48)
    assert [x.item() for x in given_up] == [np.inf, 1, False]  # after one pass
