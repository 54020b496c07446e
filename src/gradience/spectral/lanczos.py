"""Golub-Kahan-Lanczos bidiagonalisation with full reorthogonalisation: the leading singular triplets of W.

Works on W or on W + B A, the latter without forming the sum. float32 products, float64 small problem.
Seeded, and run until the residuals show convergence.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

Matrix: TypeAlias = npt.NDArray[Any]

STEPS: Final = (32, 128, 384)  # the basis grows in these stages; each is one compilation per shape
_CHUNK: Final = 16  # steps between two looks at the residuals
_EXACT_UNDER: Final = 96  # smaller matrices: dense float64 SVD
_TINY: Final = 1e-6  # of the largest coefficient: the Krylov space is exhausted
_ANGLE: Final = 2e-3
_HIGHEST: Final = lax.Precision.HIGHEST


class Operator(NamedTuple):
    """The matrix W + B A: w (m, n), b (m, r), a (r, n), all float32; r may be 0."""

    w: jax.Array
    b: jax.Array
    a: jax.Array

    @classmethod
    def of(cls, w: Matrix, b: Matrix | None = None, a: Matrix | None = None) -> Operator:
        """Return the operator of float32 arrays, on JAX's default device."""
        m, n = w.shape
        left = np.zeros((m, 0), np.float32) if b is None else b
        right = np.zeros((0, n), np.float32) if a is None else a
        return cls(*(jnp.asarray(x, jnp.float32) for x in (w, left, right)))

    def times(self, v: jax.Array) -> jax.Array:
        """Return (W + B A) v."""
        low = jnp.matmul(self.b, jnp.matmul(self.a, v, precision=_HIGHEST), precision=_HIGHEST)
        return jnp.matmul(self.w, v, precision=_HIGHEST) + low

    def turned(self, u: jax.Array) -> jax.Array:
        """Return (W + B A)^T u."""
        low = jnp.matmul(jnp.matmul(u, self.b, precision=_HIGHEST), self.a, precision=_HIGHEST)
        return jnp.matmul(u, self.w, precision=_HIGHEST) + low


class Triplets(NamedTuple):
    """Leading singular values and left vectors, largest first."""

    sigma: npt.NDArray[np.float64]
    left: Matrix
    residuals: npt.NDArray[np.float64]
    steps: int
    converged: bool
    exact: bool


class _State(NamedTuple):
    """Row j of `left` and `right` is the j-th basis vector; rows not reached yet are zero."""

    left: jax.Array
    right: jax.Array
    alpha: jax.Array
    beta: jax.Array


def leading(matrix: Operator, k: int = 1, *, tolerance: float = 2e-6, vectors: bool = False, seed: int = 0) -> Triplets:
    """Return the k largest singular values of W + B A, with left vectors.

    A value counts as converged when its error bound min(rho, rho^2 / gap) is within tolerance * sigma_1, rho
    being the residual and gap the distance to the next value; with `vectors`, when also the angle rho / gap is
    within 2e-3, or rho within tolerance * sigma_1 (equal values have no vectors of their own).
    """
    m, n = matrix.w.shape
    k = min(k, m, n)
    if min(m, n) <= _EXACT_UNDER:
        return _dense(matrix, k)
    state = _start(matrix, seed)
    done = 0
    while True:
        size = _capacity(done + _CHUNK, min(m, n))
        state = _grown(state, size)
        steps = min(_CHUNK, size - done)
        state = _extend(matrix, state, done, steps)
        done += steps
        ritz = _ritz(state, done)
        converged = _converged(ritz, k, tolerance, vectors=vectors)
        if converged or done >= min(STEPS[-1], m, n):
            left = (ritz.left[:, :k].T.astype(np.float32) @ np.asarray(state.left)[:done]).T
            return Triplets(ritz.sigma[:k], left, ritz.residuals[:k], done, converged=converged, exact=False)


def _dense(matrix: Operator, k: int) -> Triplets:
    full = np.asarray(matrix.w, np.float64) + np.asarray(matrix.b, np.float64) @ np.asarray(matrix.a, np.float64)
    left, sigma, _ = np.linalg.svd(full, full_matrices=False)
    return Triplets(sigma[:k], left[:, :k], np.zeros(k), 0, converged=True, exact=True)


def _capacity(steps: int, limit: int) -> int:
    """Return the least stage that holds the steps, never above what the matrix has."""
    return min(next((size for size in STEPS if size >= steps), STEPS[-1]), limit)


def _start(matrix: Operator, seed: int) -> _State:
    m, n = matrix.w.shape
    first = np.random.default_rng(seed).standard_normal(n)
    right = np.zeros((1, n), np.float32)
    right[0] = first / np.linalg.norm(first)
    empty = np.zeros(0, np.float32)
    return _State(np.zeros((0, m), np.float32), right, empty, empty)  # type: ignore[arg-type]  # arrays of either kind


def _grown(state: _State, size: int) -> _State:
    """Return the state with room for so many steps."""
    more = size - len(state.alpha)
    if more == 0:
        return state

    def pad(x: jax.Array) -> Matrix:
        return np.pad(np.asarray(x), ((0, more), *((0, 0),) * (x.ndim - 1)))

    return _State(*(jnp.asarray(pad(x)) for x in state))


@partial(jax.jit, static_argnames="steps", donate_argnums=1)
def _extend(matrix: Operator, state: _State, start: int, steps: int) -> _State:
    def step(j: jax.Array, s: _State) -> _State:
        u = orthogonal(matrix.times(s.right[j]), s.left)
        u, alpha = unit(u, jnp.max(s.alpha))
        v = orthogonal(matrix.turned(u), s.right)
        v, beta = unit(v, jnp.maximum(alpha, jnp.max(s.alpha)))
        return _State(s.left.at[j].set(u), s.right.at[j + 1].set(v), s.alpha.at[j].set(alpha), s.beta.at[j].set(beta))

    after: _State = lax.fori_loop(start, start + steps, step, state)
    return after


def orthogonal(x: jax.Array, basis: jax.Array) -> jax.Array:
    """Return x less its part in the span of the rows; twice is enough (Parlett)."""
    for _ in range(2):
        x = x - jnp.matmul(jnp.matmul(basis, x, precision=_HIGHEST), basis, precision=_HIGHEST)
    return x


def unit(x: jax.Array, scale: jax.Array, tiny: float = _TINY) -> tuple[jax.Array, jax.Array]:
    """Return (x / |x|, |x|), both zero where only rounding is left."""
    size = jnp.linalg.norm(x)
    left_over = size > tiny * scale
    return jnp.where(left_over, x / jnp.where(size > 0.0, size, 1.0), 0.0), jnp.where(left_over, size, 0.0)


class _Ritz(NamedTuple):
    """SVD of the bidiagonal matrix: values, left vectors in the basis, residuals."""

    sigma: Matrix
    left: Matrix
    residuals: Matrix


def _ritz(state: _State, done: int) -> _Ritz:
    alpha = np.asarray(state.alpha, np.float64)[:done]
    beta = np.asarray(state.beta, np.float64)[:done]
    left, sigma, _ = np.linalg.svd(np.diag(alpha) + np.diag(beta[:-1], 1))
    return _Ritz(sigma, left, beta[-1] * np.abs(left[-1]))


def _converged(ritz: _Ritz, k: int, tolerance: float, *, vectors: bool) -> bool:
    gaps, bar = _gaps(ritz.sigma)[:k], tolerance * ritz.sigma[0]
    residuals = ritz.residuals[:k]
    held = np.minimum(residuals, residuals**2 / gaps) <= bar
    if vectors:
        held &= (residuals <= _ANGLE * gaps) | (residuals <= bar)
    return bool(held.all())


def _gaps(sigma: Matrix) -> Matrix:
    """Return the distance of each value to its nearest neighbour, never 0."""
    steps = np.abs(np.diff(sigma))
    nearest = np.minimum(np.append(np.inf, steps), np.append(steps, np.inf))
    gaps: Matrix = np.maximum(nearest, np.finfo(np.float64).tiny)
    return gaps
