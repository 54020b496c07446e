"""The bidiagonalisation against its own equations, in float64."""

from __future__ import annotations

import numpy as np
import pytest

from gradience.spectral.krylov import Bidiagonal, Operator, as_float32

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
    basis = Bidiagonal(Operator.of(w), start, 6)
    for _ in range(6):
        basis.step()
    p, q = basis.left.astype(np.float64), basis.right.astype(np.float64)
    assert (p.shape, q.shape) == ((7 * WIDTH, len(w)), (6 * WIDTH, w.shape[1]))
    size = np.linalg.norm(w.astype(np.float64), 2) or 1.0
    if kind != "zero":  # where any vectors do
        assert np.allclose(p @ p.T, np.eye(len(p)), atol=1e-5)
    assert np.allclose(q @ q.T, np.eye(len(q)), atol=1e-5) or kind == "zero"
    assert np.allclose(w @ q.T, p.T @ basis.core, atol=2e-6 * size)
    behind = w.T @ p.T - q.T @ basis.core.T
    assert np.allclose(behind[:, :-WIDTH], 0.0, atol=2e-6 * size)
    assert np.allclose(behind[:, -WIDTH:].T @ behind[:, -WIDTH:], basis.next.T @ basis.next, atol=1e-5 * size**2)
    spanned = start.astype(np.float64) @ p[:WIDTH].T @ p[:WIDTH]
    assert np.allclose(spanned, start, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_an_operator_multiplies_as_the_sum_it_stands_for(shape):
    rng = np.random.default_rng(2)
    w, b, a = (rng.standard_normal(s) for s in (shape, (shape[0], 2), (2, shape[1])))
    x = Operator.of(w).plus(b, a)
    v, u = rng.standard_normal((3, shape[1])), rng.standard_normal((3, shape[0]))
    assert np.allclose(x.times(v.astype(np.float32)), v @ (w + b @ a).T, atol=1e-5)
    assert np.allclose(x.turned(u.astype(np.float32)), u @ (w + b @ a), atol=1e-5)


def test_float32_is_aligned_and_made_once():
    x = np.arange(12.0).reshape(3, 4)
    found = as_float32(x)
    assert found.ctypes.data % 64 == 0
    assert np.array_equal(found, x)
    assert as_float32(found) is found
    turned = as_float32(found.T)
    assert turned.flags.c_contiguous
    assert np.array_equal(turned, x.T)
