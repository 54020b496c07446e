"""The leading singular triplets of W or of W + B A, the latter without forming the sum.

Block Lanczos from a seeded block of random vectors, run until the residuals show convergence. A block finds equal
values together, and its products are of matrices, which cost a processor little more than those of one vector.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gradience.spectral.krylov import Bidiagonal, Floats, Matrix, Operator

_GUARD: Final = 6  # vectors of a block beyond those that are asked for
_WIDTHS: Final = 8  # a block is a multiple of it: so wide is a register
_VECTORS: Final = 768  # of each basis, at most
EXACT_UNDER: Final = 96  # smaller matrices: dense float64 SVD
_SMALL: Final = 768  # the same, where the iteration did not converge
_FIRST_LOOK: Final = 3  # steps
_ANGLE: Final = 2e-3


class Triplets(NamedTuple):
    """Leading singular values and left vectors, largest first.

    `guard` has further left vectors, which may not have converged: all that follows W + B A well can start from them.
    """

    sigma: npt.NDArray[np.float64]
    left: Matrix
    residuals: npt.NDArray[np.float64]
    steps: int
    converged: bool
    exact: bool
    guard: Matrix


def leading(matrix: Operator, k: int = 1, *, tolerance: float = 2e-6, vectors: bool = False, seed: int = 0) -> Triplets:
    """Return the k largest singular values of W + B A, with left vectors.

    A value counts as converged when its error bound min(rho, rho^2 / gap) is within tolerance * sigma_1, rho
    being the residual and gap the distance to the next value; with `vectors`, when also the angle rho / gap is
    within 2e-3, or rho within tolerance * sigma_1 (equal values have no vectors of their own).
    """
    m, n = matrix.w.shape
    k = min(k, m, n)
    width = _WIDTHS * -(-(k + (_GUARD if vectors else 0)) // _WIDTHS)
    most = min(_VECTORS, m, n) // width - 1
    if min(m, n) <= EXACT_UNDER or most < 1:
        return _dense(matrix, k)
    found = _iterated(matrix, k, (width, most), tolerance, vectors=vectors, seed=seed)
    return found if found.converged or min(m, n) > _SMALL else _dense(matrix, k)


def _iterated(
    matrix: Operator, k: int, sizes: tuple[int, int], tolerance: float, *, vectors: bool, seed: int
) -> Triplets:
    width, most = sizes
    start = np.random.default_rng(seed).standard_normal((width, matrix.w.shape[0]), np.float32)
    basis, look = Bidiagonal(matrix, start, most), min(_FIRST_LOOK, most)
    while True:
        basis.step()
        if basis.steps < look:
            continue
        ritz = ritz_of(basis)
        converged = _converged(ritz, k, tolerance, vectors=vectors)
        if converged or basis.steps == most:
            left = basis.left.T @ ritz.left[:, :width].astype(np.float32)
            return Triplets(
                ritz.sigma[:k], left[:, :k], ritz.residuals[:k], basis.steps, converged, exact=False, guard=left[:, k:]
            )
        look = min(most, look + max(1, look // 4))


def _dense(matrix: Operator, k: int) -> Triplets:
    full = np.asarray(matrix.w, np.float64) + np.asarray(matrix.b, np.float64) @ np.asarray(matrix.a, np.float64)
    left, sigma, _ = np.linalg.svd(full, full_matrices=False)
    return Triplets(sigma[:k], left[:, :k], np.zeros(k), 0, converged=True, exact=True, guard=left[:, k:k])


class Ritz(NamedTuple):
    """SVD of the core: values largest first, vectors in the bases, and the residuals |W^T p - sigma q|."""

    sigma: Floats
    left: Floats
    right: Floats
    residuals: Floats


def ritz_of(basis: Bidiagonal) -> Ritz:
    """Return what the bases hold of singular triplets."""
    left, sigma, right = np.linalg.svd(basis.core, full_matrices=False)
    residuals = np.linalg.norm(basis.next @ left[-basis.width :], axis=0)
    return Ritz(sigma, left, right.T, residuals)


def _converged(ritz: Ritz, k: int, tolerance: float, *, vectors: bool) -> bool:
    gaps, bar = _gaps(ritz.sigma)[:k], tolerance * ritz.sigma[0]
    residuals = ritz.residuals[:k]
    held = np.minimum(residuals, residuals**2 / gaps) <= bar
    if vectors:
        held &= (residuals <= _ANGLE * gaps) | (residuals <= bar)
    return bool(held.all())


def _gaps(sigma: Floats) -> Floats:
    """Return the distance of each value to its nearest neighbour, never 0."""
    steps = np.abs(np.diff(sigma))
    nearest = np.minimum(np.append(np.inf, steps), np.append(steps, np.inf))
    gaps: Floats = np.maximum(nearest, np.finfo(np.float64).tiny)
    return gaps
