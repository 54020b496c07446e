"""An update beside the weight it changes: what a merge into 16 bits keeps of it, and how large both are.

Products in float32 as a merge computes them, a few rows at a time: while these are in the cache they are widened,
changed, rounded and summed. bfloat16 goes to the kernel as its bits, which are widened in registers: XLA's own cast of
a bfloat16 takes twenty times as long. Rows are added up in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax

from gradience.spectral.grams import Matrix

_PART: Final = 1 << 17  # numbers of W that are widened at a time: 512 KiB stay in a core's cache
_BFLOAT16: Final = np.dtype(ml_dtypes.bfloat16)
_BITS: Final = {"bfloat16": (8, 7), "float16": (5, 10)}
_F16_NORMAL: Final = 2.0**-14  # below it float16 counts in steps of 2^-24
_F16_STEP: Final = 2.0**-24


class Updated(NamedTuple):
    """W as stored, and dW: scale * left @ right, or `dense` where that is given."""

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


def merge_sums(update: Updated, *, scale: float, target: str, delta_dtype: str) -> MergeSums:
    """The effective change of merging s * left @ right into W when the result is stored as `target`.

    PEFT computes the product in float32, rounds it to the adapter's dtype (`delta_dtype`) and adds it to the
    stored weight; so does this.
    """
    w = _on_device(update.w)
    if update.dense is not None:
        sums = _sums_dense(w, update.dense, target=target)
    else:
        sums = _sums_low(w, update.left, update.right, np.float32(scale), target=target, delta_dtype=delta_dtype)
    changed, *rest = np.asarray(sums).sum(axis=1, dtype=np.float64)
    return MergeSums(update.w.size, int(changed), *(float(x) for x in rest))


def _on_device(w: Matrix) -> jax.Array:
    """Return w for the kernels, bfloat16 as bits; not copied where it lies as XLA wants it, so it must not change."""
    put: jax.Array = jax.device_put(w.view(np.uint16) if w.dtype == _BFLOAT16 else w, may_alias=True)
    return put


@partial(jax.jit, static_argnames=("target", "delta_dtype"))
def _sums_low(
    w: jax.Array, left: jax.Array, right: jax.Array, scale: jax.Array, *, target: str, delta_dtype: str
) -> jax.Array:
    wide = right.astype(jnp.float32)

    def delta(rows: Callable[[jax.Array], jax.Array]) -> jax.Array:
        product = jnp.matmul(rows(left).astype(jnp.float32), wide, precision=lax.Precision.HIGHEST)
        return rounded(product * scale, delta_dtype)

    return _by_rows(w, delta, target)


@partial(jax.jit, static_argnames="target")
def _sums_dense(w: jax.Array, delta: jax.Array, *, target: str) -> jax.Array:
    return _by_rows(w, lambda rows: rows(delta).astype(jnp.float32), target)


def _by_rows(w: jax.Array, delta: Callable[[Callable[[jax.Array], jax.Array]], jax.Array], target: str) -> jax.Array:
    """Return the sums over each row; `delta` gives the update's rows, told how to take those rows of a matrix."""
    m, n = w.shape
    size = min(max(1, _PART // n), m)
    if size == m:
        return _sums(w, delta(lambda x: x), target)

    def part(i: jax.Array, sums: jax.Array) -> jax.Array:
        first = jnp.minimum(i * size, m - size)  # the last part has rows of the one before where they do not divide m
        found = _sums(lax.dynamic_slice_in_dim(w, first, size), delta(partial(_rows, first, size)), target)
        return lax.dynamic_update_slice(sums, found, (0, first))

    made: jax.Array = lax.fori_loop(0, -(-m // size), part, jnp.zeros((5, m), jnp.float32))
    return made


def _rows(first: jax.Array, size: int, x: jax.Array) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, first, size)


def _sums(w: jax.Array, delta: jax.Array, target: str) -> jax.Array:
    """Return sums over each row, in float32; the caller adds rows up in float64."""
    is_bits = w.dtype == jnp.uint16
    weight = lax.bitcast_convert_type(w.astype(jnp.uint32) << 16, jnp.float32) if is_bits else w.astype(jnp.float32)
    before = weight if is_bits and target == "bfloat16" else rounded(weight, target)
    realised = rounded(before + delta, target) - before
    changed = (realised != 0.0).astype(jnp.float32)
    products = (changed, realised * delta, realised * realised, delta * delta, weight * weight)
    return jnp.stack([jnp.sum(x, axis=1) for x in products])
