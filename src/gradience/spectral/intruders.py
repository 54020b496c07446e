"""Intruder dimensions: leading left singular vectors of W + dW that resemble none of W's (arXiv 2410.21228).

Small matrices: dense float64 SVD of both. Large ones: Lanczos for the leading vectors of W + dW, then, for
each vector u, Golub-Kahan on W started at u. That yields the spectral measure of u, whose atoms are the
squared overlaps with the left singular vectors of W, all of them. The Christoffel function bounds every atom
from above, so "an intruder" is proved without the full SVD of W; a converged Ritz vector shows the contrary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from gradience.spectral.lanczos import Matrix, Operator, leading, orthogonal, unit

__all__ = ["Overlaps", "count_below", "overlaps"]

EXACT_UP_TO: Final = 768  # of the smaller side: about 0.6 s of dense SVDs
_STAGES: Final = (32, 96)  # Lanczos steps per vector; the second only for what the first leaves open
_SETTLED: Final = 1e-4  # residual of a Ritz value, of the value itself: it belongs to one singular vector
_TINY: Final = 1e-6  # of the largest coefficient: only rounding is left
_GRID: Final = 4096

_State: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


class Overlaps(NamedTuple):
    """For each leading left vector of W + dW, bounds on max_i |<u, u_i(W)>|; equal where exact."""

    lower: npt.NDArray[np.float64]
    upper: npt.NDArray[np.float64]
    exact: bool
    converged: bool


def overlaps(base: Operator, tuned: Operator, k: int, eps: Sequence[float], *, seed: int = 0) -> Overlaps:
    """Return how much each of the k leading left singular vectors of `tuned` resembles one of `base`.

    `eps` are the thresholds that the bounds should separate where they can.
    """
    if min(base.w.shape) <= EXACT_UP_TO:
        return _exact(base, tuned, k)
    found = leading(tuned, k, vectors=True, seed=seed)
    bounds = [_bounds(base, jnp.asarray(u), eps) for u in found.left.T]
    lower, upper = np.asarray(bounds).T
    return Overlaps(lower, upper, exact=False, converged=found.converged)


def count_below(found: Overlaps, eps: float) -> tuple[int, int]:
    """Return (intruders at eps, vectors the bounds leave open); an open one counts by its lower bound."""
    below = found.lower < eps
    return int(below.sum()), int((below & (found.upper >= eps)).sum())


def _exact(base: Operator, tuned: Operator, k: int) -> Overlaps:
    u_base, u_tuned = (_left_vectors(matrix) for matrix in (base, tuned))
    best = np.max(np.abs(u_base.T @ u_tuned[:, :k]), axis=0)
    return Overlaps(best, best, exact=True, converged=True)


def _left_vectors(matrix: Operator) -> Matrix:
    full = np.asarray(matrix.w, np.float64) + np.asarray(matrix.b, np.float64) @ np.asarray(matrix.a, np.float64)
    return np.linalg.svd(full, full_matrices=False)[0]


def _bounds(base: Operator, u: jax.Array, eps: Sequence[float]) -> tuple[float, float]:
    lower, upper = 0.0, 1.0
    for steps in _STAGES:
        alpha, beta = (np.asarray(x, np.float64) for x in _measure(base, u, min(steps, len(u))))
        lower, upper = _atoms(alpha, beta)
        if all(lower >= e or upper < e for e in eps):
            break
    return lower, upper


@partial(jax.jit, static_argnames="steps")
def _measure(base: Operator, u: jax.Array, steps: int) -> tuple[jax.Array, jax.Array]:
    """Return the lower bidiagonal matrix (diagonal, subdiagonal) of Golub-Kahan started at u on the left.

    Working on W, not on W W^T, keeps the small singular values apart that squaring would merge.
    """
    m, n = base.w.shape

    def step(j: jax.Array, state: _State) -> _State:
        left, right, alpha, beta = state
        v, a = unit(orthogonal(base.turned(left[j]), right), jnp.max(alpha), _TINY)
        x, b = unit(orthogonal(base.times(v), left), jnp.maximum(a, jnp.max(alpha)), _TINY)
        return left.at[j + 1].set(x), right.at[j].set(v), alpha.at[j].set(a), beta.at[j].set(b)

    left = jnp.zeros((steps + 1, m), jnp.float32).at[0].set(u / jnp.linalg.norm(u))
    zeros = jnp.zeros(steps, jnp.float32)
    _, _, alpha, beta = lax.fori_loop(0, steps, step, (left, jnp.zeros((steps, n), jnp.float32), zeros, zeros))
    return alpha, beta


def _atoms(alpha: Matrix, beta: Matrix) -> tuple[float, float]:
    """Return bounds on the square root of the measure's largest atom.

    Lower: the largest weight of a Ritz value that has settled. Upper: the largest Christoffel number
    1 / sum_i p_i(x)^2 over the spectrum of W W^T, which no atom exceeds.
    """
    ended = (alpha == 0.0) | (beta == 0.0)
    used = int(np.argmax(ended)) + 1 if ended.any() else len(beta)
    alpha, beta = alpha[:used], beta[:used]
    vectors, sigma, _ = np.linalg.svd(np.diag(alpha) + np.diag(beta[:-1], -1))
    weights = vectors[0] ** 2
    settled = beta[-1] * np.abs(vectors[-1]) <= _SETTLED * sigma
    lower = float(np.sqrt(np.max(weights[settled], initial=0.0)))
    if ended.any():
        return lower, lower
    points = np.append(sigma, np.linspace(0.0, sigma[0], _GRID)) ** 2
    upper = float(np.sqrt(np.max(_christoffel(*_jacobi(alpha, beta), points))))
    return lower, max(lower, min(upper, 1.0))


def _jacobi(alpha: Matrix, beta: Matrix) -> tuple[Matrix, Matrix]:
    """Return diagonal and off-diagonal of L L^T for the lower bidiagonal L."""
    return alpha**2 + np.append(0.0, beta[:-1]) ** 2, alpha[:-1] * beta[:-1]


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
