"""An update beside the weight it changes: what a merge into 16 bits keeps of it, and how large both are.

Rows come in chunks of one size (the last is padded), so that one compilation serves a whole matrix and
nothing but a chunk is ever held twice. Products in float32 as a merge computes them, rows added up in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradience.spectral.krylov import Matrix

CHUNK_ELEMENTS: Final = 1 << 20  # the float32 values of a chunk stay in the cache: a fourth of the time of 1 << 22
_BITS: Final = {"bfloat16": (8, 7), "float16": (5, 10)}
_F16_NORMAL: Final = 2.0**-14  # below it float16 counts in steps of 2^-24
_F16_STEP: Final = 2.0**-24


class Chunk(NamedTuple):
    """Some rows of W as stored, and of dW there: scale * left @ right, or `dense` where that is given."""

    w: Matrix
    left: Matrix
    right: Matrix
    dense: Matrix | None = None


class MergeSums(NamedTuple):
    """Sums over the entries of one module: intended dW, realised change, and W itself."""

    entries: int
    changed: int
    inner: float
    realised: float
    intended: float
    weight: float

    @property
    def cosine(self) -> float | None:
        """Cosine between realised and intended change; None where the update is zero."""
        if self.intended == 0.0:
            return None
        if self.realised == 0.0:
            return 0.0
        return self.inner / math.sqrt(self.realised * self.intended)


def rounded(x: jax.Array, dtype: str) -> jax.Array:
    """Return float32 values rounded to the nearest of a 16-bit dtype, ties to even.

    A cast there and back would be optimised away by XLA, which may keep excess precision.
    """
    if dtype not in _BITS:
        return x
    exponent, mantissa = _BITS[dtype]
    coarse = lax.reduce_precision(x, exponent, mantissa)
    if dtype == "bfloat16":
        return coarse
    return jnp.where(jnp.abs(x) < _F16_NORMAL, jnp.round(x / _F16_STEP) * _F16_STEP, coarse)


def merge_sums(chunks: Iterable[Chunk], *, scale: float, target: str, delta_dtype: str) -> MergeSums:
    """The effective change of merging s * left @ right into W when the result is stored as `target`.

    PEFT computes the product in float32, rounds it to the adapter's dtype (`delta_dtype`) and adds it to the
    stored weight; so does this.
    """
    total = np.zeros(5)
    entries = rows = 0
    for chunk in chunks:
        entries += chunk.w.size
        rows = rows or len(chunk.w)
        total += np.asarray(_sums_of(_padded(chunk, rows), scale, target, delta_dtype)).sum(axis=1, dtype=np.float64)
    return MergeSums(entries, int(total[0]), *(float(x) for x in total[1:]))


def _sums_of(chunk: Chunk, scale: float, target: str, delta_dtype: str) -> jax.Array:
    sums: jax.Array
    if chunk.dense is not None:
        sums = _sums_dense(chunk.w, chunk.dense, target=target)
    else:
        size = np.float32(scale)
        sums = _sums_low(chunk.w, chunk.left, chunk.right, size, target=target, delta_dtype=delta_dtype)
    return sums


def _padded(chunk: Chunk, rows: int) -> Chunk:
    """Return the chunk with rows of zeros up to the number, so that kernels see one shape."""
    if len(chunk.w) == rows:
        return chunk
    more = ((0, rows - len(chunk.w)), (0, 0))
    dense = None if chunk.dense is None else np.pad(chunk.dense, more)
    return Chunk(np.pad(chunk.w, more), np.pad(chunk.left, more), chunk.right, dense)


@partial(jax.jit, static_argnames=("target", "delta_dtype"))
def _sums_low(
    w: jax.Array, left: jax.Array, right: jax.Array, scale: jax.Array, *, target: str, delta_dtype: str
) -> jax.Array:
    product = jnp.matmul(left.astype(jnp.float32), right.astype(jnp.float32), precision=lax.Precision.HIGHEST)
    return _sums(w, rounded(product * scale, delta_dtype), target)


@partial(jax.jit, static_argnames="target")
def _sums_dense(w: jax.Array, delta: jax.Array, *, target: str) -> jax.Array:
    return _sums(w, delta.astype(jnp.float32), target)


def _sums(w: jax.Array, delta: jax.Array, target: str) -> jax.Array:
    """Return sums over each row, in float32; the caller adds rows up in float64."""
    weight = w.astype(jnp.float32)
    before = rounded(weight, target)
    realised = rounded(before + delta, target) - before
    changed = (realised != 0.0).astype(jnp.float32)
    products = (changed, realised * delta, realised * realised, delta * delta, weight * weight)
    return jnp.stack([jnp.sum(x, axis=1) for x in products])
