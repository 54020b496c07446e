"""The singular values of one low-rank update B A, without ever forming it.

Both routes work on float64 arrays. The Gram route needs only the two r x r Gram matrices, which a
stream of tiles can add up; its error is about sqrt(eps) * |A| * |B|, so it is trusted only where
sigma_1 is not much smaller than that product. `core_singular_values` (QR of both factors) is backward
stable and covers the rest.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

__all__ = ["GramSpectrum", "core_singular_values", "gram_columns", "gram_rows", "gram_singular_values"]

# sigma_1^2 below this share of |A|^2 |B|^2: the Gram route may miss 1e-6 sigma_1 (see tests/spectral).
TRUSTED_SHARE = 1e-2


class GramSpectrum(NamedTuple):
    """Singular values, largest first, and whether the Gram route can vouch for them."""

    sigma: Array
    trusted: Array


def gram_rows(x: Array) -> Array:
    """Return X X^T of a (r, d) array, accumulated in float64."""
    wide = x.astype(jnp.float64)
    return wide @ wide.T


def gram_columns(x: Array) -> Array:
    """Return X^T X of a (d, r) array, accumulated in float64."""
    wide = x.astype(jnp.float64)
    return wide.T @ wide


def gram_singular_values(gram_a: Array, gram_b: Array) -> GramSpectrum:
    """Return the singular values of B A from A A^T and B^T B, both (r, r) float64.

    Rows of A and columns of B are balanced first (A -> D A, B -> B D^-1 leaves B A as it is), and both
    are scaled to trace one: neither a row's scale nor the adapter's costs accuracy.
    """
    balance = _balance(jnp.diagonal(gram_a), jnp.diagonal(gram_b))
    unit_a, size_a = _unit_trace(gram_a * jnp.outer(balance, balance))
    unit_b, size_b = _unit_trace(gram_b / jnp.outer(balance, balance))
    values, vectors = jnp.linalg.eigh(unit_a)
    root = vectors * jnp.sqrt(jnp.maximum(values, 0.0))
    squares = jnp.maximum(jnp.linalg.eigvalsh(root.T @ unit_b @ root)[::-1], 0.0)
    largest = jnp.max(values) * jnp.linalg.norm(unit_b)
    trusted = (squares[0] >= TRUSTED_SHARE * largest) | (size_a == 0.0) | (size_b == 0.0)
    return GramSpectrum(jnp.sqrt(squares) * jnp.sqrt(size_a) * jnp.sqrt(size_b), trusted)


def core_singular_values(b: Array, a: Array) -> Array:
    """Return the singular values of B A by QR of both factors: b (d_out, r), a (r, d_in), float64."""
    r_b = jnp.linalg.qr(b, mode="r")
    r_a = jnp.linalg.qr(a.T, mode="r")
    return jnp.linalg.svd(r_b @ r_a.T, compute_uv=False)


def _balance(diagonal_a: Array, diagonal_b: Array) -> Array:
    """Return D that makes row i of A and column i of B equally long; 1 where either is zero."""
    both = (diagonal_a > 0.0) & (diagonal_b > 0.0)
    ratio = jnp.where(both, diagonal_b, 1.0) / jnp.where(both, diagonal_a, 1.0)
    return jnp.where(both, jnp.sqrt(jnp.sqrt(ratio)), 1.0)


def _unit_trace(gram: Array) -> tuple[Array, Array]:
    size = jnp.trace(gram)
    return gram / jnp.where(size > 0.0, size, 1.0), size
