"""Numbers as they are stored, in a dtype or in codes: put on a device, widened to compute with, and rounded to.

bfloat16 goes to the kernels as its bits, which are widened in registers, because XLA's own cast of bfloat16 takes
twenty times as long on a CPU.
"""

from __future__ import annotations

from typing import Final

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import Array, lax

from gradience.spectral.codes import Codes, decoded
from gradience.spectral.grams import Matrix

_BFLOAT16: Final = np.dtype(ml_dtypes.bfloat16)
_BITS: Final = {"float32": (8, 23), "bfloat16": (8, 7), "float16": (5, 10)}  # of the exponent and of the mantissa
_F16_NORMAL: Final = 2.0**-14  # below it float16 counts in steps of 2^-24
_F16_STEP: Final = 2.0**-24


def put(w: Matrix | Codes) -> Array | Codes:
    """Return w for the kernels, bfloat16 as its bits. XLA may share w's memory, so the caller must not change w."""
    bits = w.view(np.uint16) if not isinstance(w, Codes) and w.dtype == _BFLOAT16 else w
    array: Array | Codes = jax.device_put(bits, may_alias=True)
    return array


def tile(w: Array | Codes, start: Array | int, count: int) -> Array:
    """Return some rows of what `put` gave, in float32."""
    if isinstance(w, Codes):
        return decoded(w.rows(start, count))
    return widened(lax.dynamic_slice_in_dim(w, start, count))


def widened(w: Array) -> Array:
    """Return an array that `put` gave, or some rows of it, in float32."""
    if w.dtype != jnp.uint16:
        return w.astype(jnp.float32)
    return lax.bitcast_convert_type(w.astype(jnp.uint32) << 16, jnp.float32)


def rounded(x: Array, dtype: str) -> Array:
    """Return numbers rounded to the nearest of a dtype, ties to even, in their own dtype.

    A cast there and back would be optimised away by XLA, which may keep excess precision.
    """
    if dtype == x.dtype or dtype not in _BITS:
        return x
    coarse = lax.reduce_precision(x, *_BITS[dtype])
    if dtype != "float16":
        return coarse
    # reduce_precision makes zeros of float16's subnormals, which a cast keeps.
    return jnp.where(jnp.abs(x) < _F16_NORMAL, jnp.round(x / _F16_STEP) * _F16_STEP, coarse)
