"""Decompositions of one matrix that `vmap` turns into a loop on a CPU, and into one batched call elsewhere.

jaxlib 0.10 divides a batch among the threads of XLA's pool, and waits for them in one of these threads. So several
batched calls at once, of this package or of the program that calls it, can wait for each other for ever. A call with
one matrix computes where it is made, and waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap


def _one_by_one(of_one: Callable[..., Any]) -> Callable[..., Any]:
    alone = custom_vmap(of_one)

    @alone.def_vmap
    def of_many(size: int, has_axis: list[bool], *args: Array) -> tuple[Any, Any]:
        stacks = [x if has else jnp.broadcast_to(x, (size, *x.shape)) for x, has in zip(args, has_axis, strict=True)]
        # Within the loop it is `alone` again, or a second vmap around the first would batch its calls.
        found = lax.platform_dependent(
            *stacks, cpu=lambda *xs: lax.map(lambda x: alone(*x), xs), default=jax.vmap(of_one)
        )
        return found, jax.tree.map(lambda _: True, found)

    return alone


@_one_by_one
def eigh(gram: Array) -> tuple[Array, Array]:
    """The eigenvalues of a symmetric matrix, smallest first, and its eigenvectors as columns."""
    values, vectors = jnp.linalg.eigh(gram)
    return values, vectors


@_one_by_one
def svd(matrix: Array) -> tuple[Array, Array, Array]:
    """The thin singular value decomposition (u, sigma, v^T)."""
    u, sigma, vt = jnp.linalg.svd(matrix, full_matrices=False)
    return u, sigma, vt


@_one_by_one
def singular_values(matrix: Array) -> Array:
    """The singular values, largest first."""
    return jnp.linalg.svd(matrix, compute_uv=False)


@_one_by_one
def r_of_qr(matrix: Array) -> Array:
    """The upper triangle R of QR."""
    return jnp.linalg.qr(matrix, mode="r")


@_one_by_one
def solve(matrix: Array, right: Array) -> Array:
    """The X with matrix X = right."""
    solution: Array = jnp.linalg.solve(matrix, right)
    return solution
