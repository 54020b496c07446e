"""Intruder dimensions: leading left singular vectors of W + dW that resemble none of W's (arXiv 2410.21228).

Small matrices: dense float64 SVD of both. Large ones: Lanczos for the leading vectors of W + dW, then, for
each vector u, Golub-Kahan on W started at u. That yields the spectral measure of u, whose atoms are the
squared overlaps with the left singular vectors of W, all of them. The Christoffel function bounds every atom
from above, so "an intruder" is shown without the full SVD of W; a converged Ritz vector shows the contrary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from gradience.spectral.lanczos import Matrix, Operator, leading, orthogonal, unit

EXACT_UP_TO: Final = 768  # of the smaller side: about 0.6 s of dense SVDs
_STEPS: Final = 96  # at most, for each vector
_CHUNK: Final = 8  # steps between two looks at the bounds
_SETTLED: Final = 1e-4  # residual of a Ritz value, of the value itself: it belongs to one singular vector
_RESOLVED: Final = 1e-2  # of sigma_1: under it, polynomials of some dozens of degrees cannot separate values
_LEAST: Final = 1e-4  # of sigma_1: where the grid of the upper bound begins
_TINY: Final = 1e-6  # of the largest coefficient: only rounding is left
_GRID: Final = 1024
_NEAR: Final = 24  # points to each side of a Ritz value

_State: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


class Overlaps(NamedTuple):
    """For each leading left vector of W + dW, bounds on max_i |<u, u_i(W)>|; equal where exact.

    `left` holds the vectors as columns.
    """

    lower: npt.NDArray[np.float64]
    upper: npt.NDArray[np.float64]
    exact: bool
    converged: bool
    left: Matrix


def overlaps(base: Operator, tuned: Operator, k: int, eps: Sequence[float], *, seed: int = 0) -> Overlaps:
    """The largest overlap of each of the k leading left singular vectors of `tuned` with one of `base`.

    `eps` are the thresholds that the bounds should separate where they can.
    """
    if min(base.w.shape) <= EXACT_UP_TO:
        return _exact(base, tuned, k)
    found = leading(tuned, k, vectors=True, seed=seed)
    bounds = [_bounds(base, jnp.asarray(u), eps) for u in found.left.T]
    lower, upper = np.asarray(bounds).T
    return Overlaps(lower, upper, exact=False, converged=found.converged, left=found.left)


def count_below(found: Overlaps, eps: float) -> tuple[int, int]:
    """Return (intruders at eps, vectors the bounds leave open); an open one counts by its lower bound."""
    below = found.lower < eps
    return int(below.sum()), int((below & (found.upper >= eps)).sum())


def _exact(base: Operator, tuned: Operator, k: int) -> Overlaps:
    u_base, u_tuned = (_left_vectors(matrix) for matrix in (base, tuned))
    best = np.max(np.abs(u_base.T @ u_tuned[:, :k]), axis=0)
    return Overlaps(best, best, exact=True, converged=True, left=u_tuned[:, :k])


def _left_vectors(matrix: Operator) -> Matrix:
    full = np.asarray(matrix.w, np.float64) + np.asarray(matrix.b, np.float64) @ np.asarray(matrix.a, np.float64)
    return np.linalg.svd(full, full_matrices=False)[0]


def _bounds(base: Operator, u: jax.Array, eps: Sequence[float]) -> tuple[float, float]:
    """Return bounds on u's largest overlap, from as few steps as separate the thresholds."""
    size = min(_STEPS, *base.w.shape)
    state = _started(u, size, base.w.shape[1])
    lower, upper = 0.0, 1.0
    for done in range(0, size, _CHUNK):
        state = _advance(base, state, done, min(_CHUNK, size - done))
        alpha, beta = (np.asarray(x, np.float64)[: done + _CHUNK] for x in state[2:])
        lower, upper = _atoms(alpha, beta)
        if all(lower >= e or upper < e for e in eps):
            break
    return lower, upper


def _started(u: jax.Array, size: int, n: int) -> _State:
    left = jnp.zeros((size + 1, len(u)), jnp.float32).at[0].set(u / jnp.linalg.norm(u))
    zeros = jnp.zeros(size, jnp.float32)
    return left, jnp.zeros((size, n), jnp.float32), zeros, zeros


@partial(jax.jit, static_argnames="steps")
def _advance(base: Operator, state: _State, start: int, steps: int) -> _State:
    """Return the state after more steps of Golub-Kahan, started at u on the left.

    Working on W, not on W W^T, keeps the small singular values apart that squaring would merge. alpha and
    beta are diagonal and subdiagonal of the lower bidiagonal matrix.
    """

    def step(j: jax.Array, state: _State) -> _State:
        left, right, alpha, beta = state
        v, a = unit(orthogonal(base.turned(left[j]), right), jnp.max(alpha), _TINY)
        x, b = unit(orthogonal(base.times(v), left), jnp.maximum(a, jnp.max(alpha)), _TINY)
        return left.at[j + 1].set(x), right.at[j].set(v), alpha.at[j].set(a), beta.at[j].set(b)

    after: _State = lax.fori_loop(start, start + steps, step, state)
    return after


def _atoms(alpha: Matrix, beta: Matrix) -> tuple[float, float]:
    """Return bounds on the square root of the largest atom, of u's measure mu outside W's null space.

    Works on nu = x mu, the measure of W^T u, which the null space has no part in: each atom of mu is one of
    nu divided by x. Lower: the largest Ritz weight that has settled. Upper: the largest of the Christoffel
    numbers of mu, and of nu over x, which no atom exceeds; under the resolution of the polynomials at zero
    (sigma below 1 % of sigma_1), the mass that quadrature finds there.
    """
    if alpha[0] == 0.0:
        return 0.0, 0.0
    used = _steps_used(alpha, beta)
    left, sigma, right = np.linalg.svd(_bidiagonal(alpha[:used], beta[:used]), full_matrices=False)
    atoms = (alpha[0] * right[:, 0] / np.where(sigma > 0.0, sigma, np.inf)) ** 2
    residuals = alpha[used] * np.abs(left[-1])
    lower = float(np.max(atoms[residuals <= _SETTLED * sigma], initial=0.0))
    if alpha[used] == 0.0 or beta[used - 1] == 0.0:
        return math.sqrt(lower), math.sqrt(lower)
    points = _points(sigma)
    of_mu = _christoffel(*_jacobi_mu(alpha[:used], beta[:used]), points**2)
    of_nu = _christoffel(*_jacobi_nu(alpha[:used], beta[:used]), points**2) * (alpha[0] / points) ** 2
    under = np.where(points <= _RESOLVED * sigma[0], np.sum(atoms[sigma <= _RESOLVED * sigma[0]]), 1.0)
    upper = float(np.max(np.minimum(np.minimum(of_mu, of_nu), under)))
    return math.sqrt(min(lower, 1.0)), math.sqrt(min(max(lower, upper), 1.0))


def _points(sigma: Matrix) -> Matrix:
    """Points at which to search for the largest bound: a grid that narrows towards each Ritz value.

    Near a value that is about to settle the bound is a peak as narrow as the residual, beside the value.
    """
    gaps = np.abs(np.diff(sigma, append=0.0))
    near = np.geomspace(1e-7, 0.5, _NEAR)
    above = sigma[1:, None] + gaps[:-1, None] * near
    below = sigma[:, None] - gaps[:, None] * near
    grid = np.geomspace(_LEAST * sigma[0], sigma[0], _GRID)
    points = np.concatenate([sigma, above.ravel(), below.ravel(), grid])
    inside: Matrix = points[(points >= _LEAST * sigma[0]) & (points <= sigma[0])]
    return inside


def _steps_used(alpha: Matrix, beta: Matrix) -> int:
    """Return the steps before the last, or before the Krylov space ended."""
    ended = np.flatnonzero((alpha[1:] == 0.0) | (beta[:-1] == 0.0))
    return int(ended[0]) + 1 if len(ended) else len(alpha) - 1


def _bidiagonal(alpha: Matrix, beta: Matrix) -> Matrix:
    """Return the (k + 1, k) lower bidiagonal matrix."""
    k = len(alpha)
    full = np.zeros((k + 1, k))
    full[np.arange(k), np.arange(k)] = alpha
    full[np.arange(1, k + 1), np.arange(k)] = beta
    return full


def _jacobi_mu(alpha: Matrix, beta: Matrix) -> tuple[Matrix, Matrix]:
    """Return diagonal and off-diagonal of the Jacobi matrix of u on W W^T."""
    return alpha**2 + np.append(0.0, beta[:-1]) ** 2, alpha[:-1] * beta[:-1]


def _jacobi_nu(alpha: Matrix, beta: Matrix) -> tuple[Matrix, Matrix]:
    """Return the same of W^T u on W^T W."""
    return alpha**2 + beta**2, alpha[1:] * beta[:-1]


def _christoffel(alpha: Matrix, beta: Matrix, x: Matrix) -> Matrix:
    """Return 1 / sum_{i<k} p_i(x)^2 of the orthonormal polynomials of the Jacobi matrix."""
    before, now = np.zeros_like(x), np.ones_like(x)
    total = np.ones_like(x)
    with np.errstate(over="ignore", invalid="ignore"):
        for i in range(len(alpha) - 1):
            after = ((x - alpha[i]) * now - (beta[i - 1] * before if i else 0.0)) / beta[i]
            before, now = now, after
            total += after**2
    return 1.0 / np.where(np.isfinite(total), total, np.inf)
