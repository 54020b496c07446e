"""An update dW beside the weight W that it changes: the sums of a merge, the sizes of both, and intruder dimensions.

The sums of a merge follow the merge's own float32 arithmetic, a few rows at a time. While the rows are in the cache,
they are widened, changed, rounded and summed. The sums of rows are added up in float64.

Intruder dimensions are leading left singular vectors of W + dW that resemble none of W's (arXiv 2410.21228). Block
Golub-Kahan on W + dW finds the leading vectors. Block Golub-Kahan on W then starts from these vectors, so that they
share each product and each basis. `atoms` bounds the largest overlap of every vector from both sides, so an intruder
is proved without the full SVD of W. Small matrices, and matrices of moderate size that the bounds leave open, get exact
overlaps from float64 eigenvectors of their Gram matrices.

The squared overlaps of a starting vector y are the atoms of the spectral measure of W W^T seen from y. Let u, v be
singular vectors of W for sigma, and t = (P^T u, Q^T v), so that |t|^2 <= 2. The recurrence is exact except in its last
block of rows, so ([0 C; C^T 0] - sigma) t is zero in all other rows. The overlap of u with y is the entry of t that
belongs to y. So the space of such t bounds the overlap: this is the block Christoffel function. If sigma is only known
to lie in an interval [c - h, c + h], the same rows M of [0 C; C^T 0] - c satisfy |M t| <= h |t|, and by Cauchy-Schwarz

    overlap^2 <= |t|^2 (1 + s h^2) [(1 + s M^T M)^-1]_yy    for every s > 0.

The eigenvectors of the small matrix give this bound in closed form, and h is widened to allow for rounding. Two further
measures give sharper bounds for small sigma. That of W W^T on P does not count a vector twice, near sigma and near
-sigma. That of W^T W on Q, seen from W^T y and divided by sigma^2, has no part in the null space of W^T. The smallest
of the three bounds counts. The lower bound on the overlap is the coefficient of y in a converged Ritz vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array, lax

from gradience.spectral.codes import Codes, moved
from gradience.spectral.decompositions import solve
from gradience.spectral.devices import float64
from gradience.spectral.grams import Floats, Matrix
from gradience.spectral.krylov import Bidiagonal, Operator, Ritz, Triplets, leading, looks, ritz_of, room_for
from gradience.spectral.stored import put, rounded, tile

_PART: Final = 1 << 17  # entries of W converted to float32 at a time: 512 KiB stay in a core's cache

_SETTLED: Final = 1e-4  # residual of a Ritz value relative to it: below it, it belongs to one singular vector
_RECURRENCE: Final = 2e-6  # of sigma_1: the recurrence's error in float32, and the least half-width of an interval
_APART: Final = 1e-3  # of sigma_1: smaller singular values are hardly separated by float32 products
_INTERVALS: Final = 160  # between _APART * sigma_1 and sigma_1, before any is halved
_SHARE: Final = 0.05  # s h^2: the relative amount by which the width of an interval raises its bound

EXACT_UP_TO: Final = 768  # of the shorter side: the exact way takes .3 s there, the bounds .2 to 3 s
SETTLED_UP_TO: Final = 2048  # of the shorter side: exact if the bounds leave a vector open, which takes 5 s
_VECTORS: Final = 640  # of a basis, at most
_RESOLVED: Final = 1e-7  # of the largest singular value: a smaller one cannot be told from zero in float32 weights
_ROUNDING: Final = 1e-4  # of an overlap: float32 vectors are of unit length, and bases orthogonal, within it


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


class Atoms(NamedTuple):
    """Bounds on max_i <u_i, y>^2 for each vector y; `upper` is only as sharp as the given thresholds need."""

    lower: Floats
    upper: Floats


class Measure(NamedTuple):
    """A small symmetric matrix: eigenvalues (n,), and of its eigenvectors the first k rows (k, n) and last c (c, n)."""

    values: Array
    first: Array
    last: Array


class Measures(NamedTuple):
    """The three measures: of the augmented matrix (eigenvalues +-sigma and zeros), of W W^T on P, of W^T W on Q.

    The first two are seen from y, the third from W^T y.
    """

    both: Measure
    outer: Measure
    inner: Measure


def measures_of(ritz: Ritz, blocks: Array, c: int, k: int) -> Measures:
    """Return the measures of bases with that many blocks of c, seen from their first k vectors.

    Ritz values beyond those of C are zero, and belong to the null space.
    """
    sigma, first = ritz.sigma, ritz.left[:k]
    # P has a block more than Q, so Q's last block begins one block earlier.
    last_left, last_right = (
        lax.dynamic_slice_in_dim(x, c * at, c) for x, at in ((ritz.left, blocks - 1), (ritz.right, blocks - 2))
    )
    twice_first, twice_last = (jnp.concatenate([x, x], axis=1) / jnp.sqrt(2.0) for x in (first, last_left))
    return Measures(
        Measure(jnp.concatenate([sigma, -sigma]), twice_first, twice_last),
        Measure(sigma**2, first, last_left),
        # W^T y = Q C^T e for y = P e: its parts on the right Ritz vectors are those of y times sigma.
        Measure(sigma**2, first * sigma, last_right),
    )


class RitzOverlaps(NamedTuple):
    """What Ritz vectors show of squared overlaps (k,): lower bounds, and the parts on values that are not told apart.

    `largest` is the largest Ritz value.
    """

    largest: Array
    lower: Array
    under: Array


def known_of(ritz: Ritz, count: Array, k: int) -> RitzOverlaps:
    """Return what the first `count` Ritz vectors show of the first k vectors of the starting block."""
    largest, squares = ritz.sigma[0], ritz.left[:k] ** 2
    is_apart = ritz.sigma > _APART * largest
    is_settled = is_apart & (ritz.residuals <= _SETTLED * ritz.sigma)
    is_under = ~is_apart & (jnp.arange(len(is_apart)) < count)
    return RitzOverlaps(
        largest,
        lower=jnp.max(jnp.where(is_settled, squares, 0.0), axis=1),
        under=jnp.sum(jnp.where(is_under, squares, 0.0), axis=1),
    )


@partial(jax.jit, static_argnames=("size", "k"))
def seen_from(basis: Bidiagonal, size: int, k: int) -> tuple[RitzOverlaps, Measures]:
    """Return what the bases, of at most `size` blocks, show of the first k vectors of the starting block."""
    ritz, c = ritz_of(basis, size), basis.core.shape[1]
    return known_of(ritz, c * (basis.blocks - 1), k), measures_of(ritz, basis.blocks, c, k)


def atoms(basis: Bidiagonal, size: int, k: int, thresholds: Sequence[float]) -> Atoms:
    """Bounds on the largest squared overlap of each of the first k vectors of the starting block.

    `thresholds` are for squared overlaps. An upper bound is refined until it is below the next threshold above the
    lower bound, or until no refinement can bring it there.
    """
    known, measures = seen_from(basis, size, k)
    largest, lower, under = float(known.largest), np.asarray(known.lower), np.asarray(known.under)
    if largest == 0.0:
        return Atoms(np.zeros(k), np.zeros(k))
    if np.all(lower >= max(thresholds)):
        return Atoms(lower, np.ones(k))
    upper = _search(measures, largest, np.maximum(lower, under), thresholds)
    return Atoms(lower, np.minimum(np.maximum(lower, upper), 1.0))


def _search(measures: Measures, largest: float, known: Floats, thresholds: Sequence[float]) -> Floats:
    """Return upper bounds over all sigma that float32 resolves, as sharp as the thresholds above `known` need.

    An interval whose bound reaches the next threshold is halved. A bound for the narrowest interval at its middle
    cannot be refined, so `known` is raised to it first, and thresholds below `known` are given up.
    """
    steps = np.append(np.sort(thresholds), np.inf)
    edges = np.geomspace(_APART * largest, largest * (1.0 + _SETTLED), _INTERVALS + 1)
    middle, half = (edges[1:] + edges[:-1]) / 2.0, (edges[1:] - edges[:-1]) / 2.0
    upper = known
    while len(middle):
        least = np.maximum(_SETTLED / 2.0 * middle, _RECURRENCE * largest)
        wide, sharp = (_within(measures, middle, x, largest) for x in (half, np.minimum(half, least)))
        known = np.maximum(known, sharp.max(axis=0))
        goals = steps[np.searchsorted(steps, known, side="right")]
        halved = np.any(wide >= goals, axis=1) & (half > least)
        upper = np.maximum(upper, wide[~halved].max(axis=0, initial=0.0))
        half = np.tile(half[halved] / 2.0, 2)
        middle = np.tile(middle[halved], 2) + np.repeat([-1.0, 1.0], len(half) // 2) * half
    return upper


def _within(measures: Measures, middle: Floats, half: Floats, largest: float) -> Floats:
    """Return `within` of any number of intervals, by calls of one size."""
    size, parts = _INTERVALS, []
    for start in range(0, len(middle), size):
        some = (np.resize(x[start : start + size], size) for x in (middle, half))
        parts.append(np.asarray(within(measures, *some, largest)))
    return np.concatenate(parts)[: len(middle)]


def bound_within(measures: Measures, middle: Array, half: Array, largest: Array) -> Array:
    """Return bounds (intervals, k) on the squared overlaps for sigma within each [middle - half, middle + half]."""
    least = jnp.maximum(middle - half, np.finfo(np.float64).tiny)
    rounding = _RECURRENCE * largest
    # |t|^2 is at most 2 for the augmented matrix, and 1 for the other two.
    of_both = 2.0 * bound(measures.both, middle, half + rounding)
    # The squares of [m - h, m + h] lie within 2 m h of m^2 + h^2.
    square, width = middle**2 + half**2, 2.0 * middle * half + rounding * (largest + middle)
    of_outer = bound(measures.outer, square, width)
    of_inner = bound(measures.inner, square, width) / least[:, None] ** 2
    return jnp.minimum(of_both, jnp.minimum(of_outer, of_inner))


within = jax.jit(bound_within)


def bound(measure: Measure, middle: Array, half: Array) -> Array:
    """Return (1 + s h^2) [(1 + s M^T M)^-1]_yy for each interval and vector, at s h^2 = 0.05.

    For T the small symmetric matrix, x the middle and E the last block of unit vectors, M^T M is
    (T - x) (1 - E E^T) (T - x). In T's eigenbasis that is a diagonal matrix minus one whose rank is the block's width,
    so Woodbury's identity inverts it.
    """
    values, first, last = measure
    sharpness = _SHARE / half[:, None] ** 2
    gaps = values - middle[:, None]
    weights = 1.0 / (1.0 + sharpness * gaps**2)
    own = weights @ (first**2).T
    mixed = jnp.einsum("pn,kn,cn->pkc", weights * gaps, first, last)
    end = jnp.einsum("pn,cn,dn->pcd", weights, last, last)
    solved = jax.vmap(solve)(end, jnp.swapaxes(mixed, 1, 2))
    return (1.0 + _SHARE) * (own + sharpness * jnp.einsum("pkc,pck->pk", mixed, solved))


class Overlaps(NamedTuple):
    """Bounds on the largest overlap max_i |<u, u_i(W)>| of each leading left singular vector u of W + dW.

    If `exact`, `lower` and `upper` are equal.
    """

    lower: npt.NDArray[np.float64]
    upper: npt.NDArray[np.float64]
    exact: bool
    converged: bool


def overlaps(base: Operator, tuned: Operator, k: int, eps: Sequence[float], *, seed: int = 0) -> Overlaps:
    """The largest overlap of each of the k leading left singular vectors of `tuned` with one of `base`.

    `eps` are thresholds: the bounds are refined until they show on which side of each an overlap lies, if they can.
    """
    size = min(base.w.shape)
    with float64():
        if size <= EXACT_UP_TO:
            return _exact(base, tuned, k)
        bounded = _bounded(base, leading(tuned, k, vectors=True, seed=seed), eps)
        is_open = not bounded.converged or any(count_below(bounded, e)[1] for e in eps)
        return _exact(base, tuned, k) if is_open and size <= SETTLED_UP_TO else bounded


def count_below(found: Overlaps, eps: float) -> tuple[int, int]:
    """Return (number of intruders at eps, how many of them are undecided: lower bound < eps <= upper bound)."""
    below = found.lower < eps
    return int(below.sum()), int((below & (found.upper >= eps)).sum())


def _exact(base: Operator, tuned: Operator, k: int) -> Overlaps:
    best = np.asarray(exact_overlaps(base, tuned, k))
    return Overlaps(best, best, exact=True, converged=True)


@partial(jax.jit, static_argnames="k")
def exact_overlaps(base: Operator, tuned: Operator, k: int) -> Array:
    """The exact overlaps (k,) with W's left singular vectors of values above zero.

    For a tall W the left singular vectors are W V / s, so U^T u = (u^T W) V / s needs no product of two large matrices.
    If W + dW has fewer than k nonzero singular values, the remaining vectors are no new directions: their overlap is 1.
    """
    w, changed = base.whole(), tuned.whole()
    is_tall = w.shape[0] > w.shape[1]
    s_base, of_base = _short_side(w)
    s, vectors = _short_side(changed)
    s, vectors = s[:k], vectors[:, :k]
    left = over(changed @ vectors, s) if is_tall else vectors
    inner = over((left.T @ w) @ of_base, s_base) if is_tall else left.T @ of_base
    return jnp.where(s > _RESOLVED * s[0], jnp.max(jnp.abs(inner), axis=1), 1.0)


def _short_side(matrix: Array) -> tuple[Array, Array]:
    """Return (singular values, largest first; singular vectors of the shorter side as columns, left ones if wide)."""
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    squares, vectors = jnp.linalg.eigh(short @ short.T)
    return jnp.sqrt(jnp.maximum(squares[::-1], 0.0)), vectors[:, ::-1]


def over(columns: Array, s: Array) -> Array:
    """Return each column divided by its singular value; zeros if the value cannot be told from zero."""
    is_value = s > _RESOLVED * s[0]
    return jnp.where(is_value, columns / jnp.where(is_value, s, 1.0), 0.0)


def _bounded(base: Operator, top: Triplets, eps: Sequence[float]) -> Overlaps:
    """Return bounds after as few Golub-Kahan steps as decide every overlap at every threshold."""
    start = np.concatenate([top.left, top.guard], axis=1).T
    k, most = top.left.shape[1], min(_VECTORS, *base.w.shape) // len(start) - 1
    for basis, steps in looks(base, start, most):
        # Thresholds less the allowance that `_widened` adds to an upper bound.
        lower, upper = _widened(atoms(basis, room_for(steps + 1, most + 1), k, [(e - _ROUNDING) ** 2 for e in eps]))
        if all(np.all((lower >= e) | (upper < e)) for e in eps):
            break
    return Overlaps(lower, upper, exact=False, converged=top.converged)


def _widened(found: Atoms) -> tuple[Matrix, Matrix]:
    """Return (lower, upper) bounds on overlaps from those on their squares, widened by an allowance for rounding."""
    lower, upper = np.sqrt(found.lower), np.sqrt(found.upper)
    return np.maximum(lower - _ROUNDING, 0.0), np.minimum(upper + _ROUNDING, 1.0)
