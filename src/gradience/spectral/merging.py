"""Merging entry by entry: the steps of TIES and DARE, and how far the signs of several updates disagree.

Dense updates stay on JAX's device from their product to the merged update. Two steps are NumPy's. The threshold of
`trimmed` comes from `np.partition`: a sort or a bisection by XLA takes six times as long on a CPU. The random numbers
of `dropped` come from NumPy's generators, so that a seed gives the masks that it always gave, on every device.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array

from gradience.spectral.devices import float64
from gradience.spectral.grams import Floats
from gradience.spectral.sums import Part

_SINGLE: Final = 1e37  # sums up to it are computed in float32, whose range is 3e38
_CHUNK: Final = 1 << 18  # entries of each update at a time: three such arrays stay in the cache


@jax.jit
def dense_update(b: Array, a: Array, scale: Array) -> Array:
    """Return the update scale * b @ a in float32, b (d_out, r), a (r, d_in)."""
    b, a, scale = (jnp.asarray(x, jnp.float32) for x in (b, a, scale))
    product: Array = jnp.matmul(b * scale, a, precision="highest")
    return product


def trimmed(update: Array, density: float) -> Array:
    """Return the update with only its largest entries by magnitude, floor(density * n) of n; others are 0 (TIES, trim).

    Entries tied with the smallest one kept are kept as well.
    """
    kept = int(density * update.size)
    if kept >= update.size:
        return update
    least = math.inf
    if kept:
        sizes = np.abs(np.asarray(update)).reshape(-1)
        sizes.partition(update.size - kept)  # by NumPy, in linear time; XLA would sort all entries
        least = sizes[update.size - kept]
    pruned: Array = zeroed_under(update, np.float32(least))
    return pruned


@jax.jit
def zeroed_under(update: Array, least: Array) -> Array:
    """Return the update with zeros for all entries of a magnitude under `least`."""
    return jnp.where(jnp.abs(update) >= least, update, 0.0)


def dropped(update: Array, density: float, generator: np.random.Generator) -> Array:
    """Return the update with each entry kept with probability `density` and divided by it; others are 0 (DARE)."""
    if density >= 1.0:
        return update
    is_kept = generator.random(update.shape, dtype=np.float32) < np.float32(density)
    scaled: Array = rescaled(update, is_kept, np.float32(density))
    return scaled


@jax.jit
def rescaled(update: Array, kept: Array, density: Array) -> Array:
    """Return the entries kept, divided by the density, and zeros for the others."""
    return jnp.where(kept, update / density, 0.0)


def mask_generator(seed: int, adapter: int, module: str) -> np.random.Generator:
    """Return the generator of one adapter's mask in one module; it does not depend on what else is merged, or when."""
    # Not hash(), which gives a text another number in each process.
    return np.random.default_rng([seed, adapter, zlib.crc32(module.encode())])


def summed(updates: Iterable[Array]) -> Array:
    """Return the sum of one update or more; one is held beside it."""
    total: Array | None = None
    for update in updates:
        total = update if total is None else total + update
    if total is None:
        raise ValueError("nothing to merge")
    return total


def elected_mean(updates: Callable[[], Iterable[Array]]) -> Array:
    """Return the disjoint mean of weighted, sparse updates (TIES, elect and merge).

    The elected sign of an entry is the sign of the sum of the updates. The result is the mean over the updates with
    that sign, or zero if the sum is zero. XLA takes an entry under 1.2e-38, float32's smallest normal number, for zero.
    `updates` is called twice, so that only one update is held beside the sums.
    """
    sign = jnp.sign(summed(updates()))
    total = count = jnp.zeros_like(sign)
    for update in updates():
        total, count = with_agreeing(total, count, update, sign)
    return total / jnp.maximum(count, 1.0)


@jax.jit
def with_agreeing(total: Array, count: Array, update: Array, sign: Array) -> tuple[Array, Array]:
    """Return the sum and the count of each entry's updates of its elected sign, with one more update."""
    agrees = jnp.sign(update) == sign  # where the sum is zero, only zeros do, and their mean is zero
    return total + jnp.where(agrees, update, 0.0), count + agrees


class Signs(NamedTuple):
    """The disagreement of several updates' signs, estimated from sampled rows, with standard errors.

    `conflict` is the share of entries in which two updates have opposite signs. `cancelled` is the share of the
    magnitude that cancels in the sum, 1 - sum |sum_i x_i| / sum sum_i |x_i|. `entries` were read, out of `of`.
    `weight` is the estimate of sum sum_i |x_i| over all entries.
    """

    conflict: float
    cancelled: float
    conflict_error: float
    cancelled_error: float
    entries: int
    of: int
    weight: float


def signs_of(parts: Sequence[Part], *, most: int | None, seed: int) -> Signs:
    """Return the disagreement of finite updates scale * b @ a of one shape, b (d_out, r), a (r, d_in).

    Args:
        parts: the (b, a, scale) of two updates or more.
        most: read about this many entries of each update, at least eight rows; None reads all.
        seed: of the sample of rows.
    """
    d_out, d_in = len(parts[0][0]), parts[0][1].shape[1]
    wanted = d_out if most is None else min(d_out, max(8, most // max(1, d_in)))
    rows = np.sort(np.random.default_rng(seed).choice(d_out, wanted, replace=False))
    conflict, net, gross = np.concatenate(list(_row_sums(parts, rows, d_in)), axis=1)
    left = 1.0 - wanted / d_out
    share = float(np.mean(conflict)) / d_in if d_in else 0.0
    total = float(np.sum(gross))
    ratio = float(np.sum(net)) / total if total > 0.0 else 1.0
    # The sample is one of rows: entries of one row share a row of b, so they do not err independently.
    return Signs(
        conflict=share,
        cancelled=1.0 - ratio,
        conflict_error=_error(conflict / max(1, d_in), left),
        # Of a ratio of two sampled means, to first order (Cochran, Sampling Techniques, 1977, chapter 6).
        cancelled_error=_error(net - ratio * gross, left) * wanted / total if total > 0.0 else 0.0,
        entries=wanted * d_in,
        of=d_out * d_in,
        weight=total * d_out / wanted,
    )


def _row_sums(parts: Sequence[Part], rows: npt.NDArray[np.int64], d_in: int) -> Iterator[Floats]:
    """Yield `row_sums` of blocks of the rows, of one shape for all but a last block that is the only one."""
    kind: Any = np.float32 if sum(map(_peak, parts)) < _SINGLE else np.float64
    r = max(len(a) for _, a, _ in parts)
    step = min(len(rows), max(1, _CHUNK // max(1, d_in)))
    b, a = np.zeros((len(parts), -(-len(rows) // step) * step, r), kind), np.zeros((len(parts), r, d_in), kind)
    for k, (left, right, scale) in enumerate(parts):
        b[k, : len(rows), : len(right)] = left[rows].astype(kind) * kind(scale)
        a[k, : len(right)] = right
    with float64():
        right_sides = jax.device_put(a)
        for start in range(0, len(rows), step):
            yield np.asarray(row_sums(b[:, start : start + step], right_sides))[:, : len(rows) - start]


@jax.jit
def row_sums(b: Array, a: Array) -> Array:
    """Return for each row of updates x_i = b_i a_i, b (n, rows, r), a (n, r, d_in), three numbers: (3, rows).

    They are the entries in which two updates have opposite signs, sum |sum_i x_i|, and sum sum_i |x_i|.
    """
    x = jnp.matmul(b, a, precision="highest")
    clash = jnp.any(x > 0.0, axis=0) & jnp.any(x < 0.0, axis=0)
    per_entry = (clash, jnp.abs(jnp.sum(x, axis=0)), jnp.sum(jnp.abs(x), axis=0))
    return jnp.stack([jnp.sum(y, axis=1, dtype=jnp.float64) for y in per_entry])


def _peak(part: Part) -> float:
    """An upper bound on the magnitudes of the entries of scale * b @ a."""
    b, a, scale = part
    return float(abs(scale)) * len(a) * float(np.max(np.abs(b), initial=0.0)) * float(np.max(np.abs(a), initial=0.0))


def _error(per_row: Floats, left: float) -> float:
    """Return the standard error of the mean of rows sampled without replacement; `left` is the share not sampled."""
    if left <= 0.0:  # of one row, which is then all there is, no variance can be taken
        return 0.0
    return math.sqrt(left * float(np.var(per_row, ddof=1)) / len(per_row))


def pooled_signs(some: Sequence[Signs]) -> Signs | None:
    """Return the disagreement over several modules together, None without entries; errors are taken as independent."""
    of, weight = sum(s.of for s in some), math.fsum(s.weight for s in some)
    if not of:
        return None
    return Signs(
        conflict=math.fsum(s.conflict * s.of for s in some) / of,
        cancelled=math.fsum(s.cancelled * s.weight for s in some) / weight if weight > 0.0 else 0.0,
        conflict_error=math.sqrt(math.fsum((s.conflict_error * s.of) ** 2 for s in some)) / of,
        cancelled_error=math.sqrt(math.fsum((s.cancelled_error * s.weight) ** 2 for s in some)) / weight
        if weight > 0.0
        else 0.0,
        entries=sum(s.entries for s in some),
        of=of,
        weight=weight,
    )
