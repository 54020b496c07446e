"""An update dW beside the weight W that it changes: the sums of a merge, and the sizes of both.

The sums follow the merge's own float32 arithmetic, a few rows at a time. While the rows are in the cache, they are
widened, changed, rounded and summed. The sums of rows are added up in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gradience.spectral.codes import Codes, moved
from gradience.spectral.grams import Matrix
from gradience.spectral.stored import put, rounded, tile

_PART: Final = 1 << 17  # entries of W converted to float32 at a time: 512 KiB stay in a core's cache


class UpdatedWeight(NamedTuple):
    """W as stored, and its update dW: scale * left @ right, or `dense` if it is given."""

    w: Matrix | Codes
    left: Matrix
    right: Matrix
    dense: Matrix | None = None


class MergeSums(NamedTuple):
    """Sums over the entries of one module: of the intended change dW, the realised change, and W itself.

    `inner` is of the realised with the intended change, `along` of W with the intended one.
    """

    entries: int
    changed: int
    inner: float
    realised: float
    intended: float
    weight: float
    along: float
    in_codes: MergeSums | None = None
    """Those of a merge into the codes that W is stored in, with their scales and zero points as they are."""

    @property
    def cosine(self) -> float | None:
        """The cosine between the realised and the intended change; None if the update is zero."""
        if self.intended == 0.0:
            return None
        if self.realised == 0.0:
            return 0.0
        return self.inner / math.sqrt(self.realised * self.intended)


def merge_sums(update: UpdatedWeight, *, scale: float, target: str, delta_dtype: str) -> MergeSums:
    """The effective change of W when scale * left @ right is merged into it and the result is stored as `target`.

    As in PEFT, the product is computed in float32, rounded to the adapter's dtype (`delta_dtype`), and added to the
    stored weight.
    """
    w = put(update.w)
    if update.dense is not None:
        sums = sums_of_dense(w, update.dense, target=target)
    else:
        sums = sums_of_low(w, update.left, update.right, np.float32(scale), target=target, delta_dtype=delta_dtype)
    with np.errstate(invalid="ignore"):  # products of huge numbers are infinite in float32, of either sign
        totals = [float(x) for x in np.asarray(sums).sum(axis=1, dtype=np.float64)]
    total = _merge_sums(update.w.size, totals[:6])
    # Into codes only the realised change is another one: dW and W are the same.
    return total._replace(in_codes=_merge_sums(total.entries, totals[6:] + totals[3:6])) if totals[6:] else total


def _merge_sums(entries: int, totals: Sequence[float]) -> MergeSums:
    changed, inner, realised, intended, weight, along = totals
    return MergeSums(entries, int(changed), inner, realised, intended, weight, along)


@partial(jax.jit, static_argnames=("target", "delta_dtype"))
def sums_of_low(w: Array | Codes, left: Array, right: Array, scale: Array, *, target: str, delta_dtype: str) -> Array:
    """Return the sums of each row of W, as it is `put`, changed by scale * left @ right: (6, m), in codes (9, m)."""
    wide = right.astype(jnp.float32)

    def delta(rows: Callable[[Array], Array]) -> Array:
        product = jnp.matmul(rows(left).astype(jnp.float32), wide, precision="highest")
        return rounded(product * scale, delta_dtype)

    return _by_rows(w, delta, target)


@partial(jax.jit, static_argnames="target")
def sums_of_dense(w: Array | Codes, delta: Array, *, target: str) -> Array:
    """Return the sums of each row of W, as it is `put`, changed by delta (m, n): (6, m), in codes (9, m)."""
    return _by_rows(w, lambda rows: rows(delta).astype(jnp.float32), target)


def _by_rows(w: Array | Codes, delta: Callable[[Callable[[Array], Array]], Array], target: str) -> Array:
    """Return the sums over each row. `delta` returns the update's rows, given a function that selects rows."""
    m, n = w.shape
    size = min(max(1, _PART // n), m)

    def part(i: Array, sums: Array) -> Array:
        first = i * size  # slices of XLA keep within their array: the last part overlaps the one before, or is it
        rows = partial(lax.dynamic_slice_in_dim, start_index=first, slice_size=size)
        weight, change = tile(w, first, size), delta(rows)
        products = _products(weight, change, target)
        if isinstance(w, Codes):
            products += _realised(moved(w.rows(first, size), change), change)
        of_rows = jnp.stack([jnp.sum(x, axis=1) for x in products])
        return lax.dynamic_update_slice(sums, of_rows, (0, first))

    sums = jnp.zeros((9 if isinstance(w, Codes) else 6, m), jnp.float32)
    made: Array = lax.fori_loop(0, -(-m // size), part, sums)
    return made


def _products(weight: Array, delta: Array, target: str) -> tuple[Array, ...]:
    """Return what is summed over each row, in float32; the caller adds rows up in float64."""
    before = rounded(weight, target)
    realised = _realised(rounded(before + delta, target) - before, delta)
    return (*realised, delta * delta, weight * weight, weight * delta)


def _realised(change: Array, delta: Array) -> tuple[Array, ...]:
    """Return what is summed of the change that a merge makes: whether there is one, its part along dW, its square."""
    return (change != 0.0).astype(jnp.float32), change * delta, change * change
