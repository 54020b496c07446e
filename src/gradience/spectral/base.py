"""An update dW beside the weight W that it changes: the sums of a merge, the sizes of both, and intruder dimensions.

The sums of a merge follow the merge's own float32 arithmetic, a few rows at a time. While the rows are in the cache,
they are widened, changed, rounded and summed. bfloat16 goes to the kernel as its bits, which are widened in registers,
because XLA's own cast of bfloat16 takes twenty times as long. The sums of rows are added up in float64.

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
import ml_dtypes
import numpy as np
import numpy.typing as npt
from jax import lax

from gradience.spectral.batch import gram_of
from gradience.spectral.grams import Floats, Matrix
from gradience.spectral.krylov import Bidiagonal, Operator, Ritz, Triplets, leading, ritz_of
from gradience.spectral.stored import rounded

_PART: Final = 1 << 17  # entries of W converted to float32 at a time: 512 KiB stay in a core's cache
_BFLOAT16: Final = np.dtype(ml_dtypes.bfloat16)

_SETTLED: Final = 1e-4  # residual of a Ritz value relative to it: below it, it belongs to one singular vector
_RECURRENCE: Final = 2e-6  # of sigma_1: the recurrence's error in float32, and the least half-width of an interval
_APART: Final = 1e-3  # of sigma_1: smaller singular values are hardly separated by float32 products
_INTERVALS: Final = 160  # between _APART * sigma_1 and sigma_1, before any is halved
_SHARE: Final = 0.05  # s h^2: the relative amount by which the width of an interval raises its bound

EXACT_UP_TO: Final = 768  # of the shorter side: the exact way takes .3 s there, the bounds .2 to 3 s
SETTLED_UP_TO: Final = 2048  # of the shorter side: exact if the bounds leave a vector open, which takes 5 s
_VECTORS: Final = 640  # of a basis, at most
_FIRST_LOOK: Final = 3  # steps before the bounds are first computed
_RESOLVED: Final = 1e-7  # of the largest singular value: a smaller one cannot be told from zero in float32 weights
_ROUNDING: Final = 1e-4  # of an overlap: float32 vectors are of unit length, and bases orthogonal, within it


class Updated(NamedTuple):
    """W as stored, and its update dW: scale * left @ right, or `dense` if it is given."""

    w: Matrix
    left: Matrix
    right: Matrix
    dense: Matrix | None = None


class MergeSums(NamedTuple):
    """Sums over the entries of one module: of the intended change dW, the realised change, and W itself."""

    entries: int
    changed: int
    inner: float
    realised: float
    intended: float
    weight: float

    @property
    def cosine(self) -> float | None:
        """The cosine between the realised and the intended change; None if the update is zero."""
        if self.intended == 0.0:
            return None
        if self.realised == 0.0:
            return 0.0
        return self.inner / math.sqrt(self.realised * self.intended)


def merge_sums(update: Updated, *, scale: float, target: str, delta_dtype: str) -> MergeSums:
    """The effective change of W when scale * left @ right is merged into it and the result is stored as `target`.

    As in PEFT, the product is computed in float32, rounded to the adapter's dtype (`delta_dtype`), and added to the
    stored weight.
    """
    w = _on_device(update.w)
    if update.dense is not None:
        sums = _sums_dense(w, update.dense, target=target)
    else:
        sums = _sums_low(w, update.left, update.right, np.float32(scale), target=target, delta_dtype=delta_dtype)
    changed, *rest = np.asarray(sums).sum(axis=1, dtype=np.float64)
    return MergeSums(update.w.size, int(changed), *(float(x) for x in rest))


def _on_device(w: Matrix) -> jax.Array:
    """Return w for the kernels, bfloat16 as its bits. XLA may share w's memory, so the caller must not change w."""
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
    """Return the sums over each row, (5, m). `delta` returns the update's rows, given a function that selects rows."""
    m, n = w.shape
    size = min(max(1, _PART // n), m)
    if size == m:
        return _sums(w, delta(lambda x: x), target)

    def part(i: jax.Array, sums: jax.Array) -> jax.Array:
        first = i * size  # slices of XLA keep within their array: the last part overlaps the one before, or is it
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


class Atoms(NamedTuple):
    """Bounds on max_i <u_i, y>^2 for each vector y; `upper` is only as sharp as the given thresholds need."""

    lower: Floats
    upper: Floats


class _Measure(NamedTuple):
    """A small symmetric matrix: eigenvalues (n,), and of its eigenvectors the first k rows (k, n) and last c (c, n)."""

    values: Floats
    first: Floats
    last: Floats


def atoms(basis: Bidiagonal, k: int, thresholds: Sequence[float]) -> Atoms:
    """Bounds on the largest squared overlap of each of the first k vectors of the starting block.

    `thresholds` are for squared overlaps. An upper bound is refined until it is below the next threshold above the
    lower bound, or until no refinement can bring it there.
    """
    ritz = ritz_of(basis)
    first, largest = ritz.left[:k], float(ritz.sigma[0])
    if largest == 0.0:
        return Atoms(np.zeros(k), np.zeros(k))
    settled = (ritz.residuals <= _SETTLED * ritz.sigma) & (ritz.sigma > _APART * largest)
    lower = np.max(first**2, axis=1, where=settled, initial=0.0)
    under = np.sum(first**2, axis=1, where=ritz.sigma <= _APART * largest)
    if np.all(lower >= max(thresholds)):
        return Atoms(lower, np.ones(k))
    upper = _search(_measures(basis, ritz, k), largest, np.maximum(lower, under), thresholds)
    return Atoms(lower, np.minimum(np.maximum(lower, upper), 1.0))


class _Measures(NamedTuple):
    """The three measures: of the augmented matrix (eigenvalues +-sigma and zeros), of W W^T on P, of W^T W on Q.

    The first two are seen from y, the third from W^T y.
    """

    both: _Measure
    outer: _Measure
    inner: _Measure


def _measures(basis: Bidiagonal, ritz: Ritz, k: int) -> _Measures:
    c = basis.width
    sigma, left, right = ritz.sigma, ritz.left, ritz.right
    null = np.linalg.qr(left, mode="complete")[0][:, len(sigma) :]
    twice = np.concatenate([left, left, np.sqrt(2.0) * null], axis=1) / np.sqrt(2.0)
    whole = np.concatenate([left, null], axis=1)
    zeros = np.zeros(c)
    return _Measures(
        _Measure(np.concatenate([sigma, -sigma, zeros]), twice[:k], twice[-c:]),
        _Measure(np.concatenate([sigma**2, zeros]), whole[:k], whole[-c:]),
        _Measure(sigma**2, left[:k] * sigma, right[-c:]),
    )


def _search(measures: _Measures, largest: float, known: Floats, thresholds: Sequence[float]) -> Floats:
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


def _within(measures: _Measures, middle: Floats, half: Floats, largest: float) -> Floats:
    """Return bounds (intervals, k) on the squared overlaps for sigma within each [middle - half, middle + half]."""
    least = np.maximum(middle - half, np.finfo(np.float64).tiny)
    rounding = _RECURRENCE * largest
    of_both = 2.0 * _bound(measures.both, middle, half + rounding)
    square, width = middle**2 + half**2, 2.0 * middle * half + rounding * (largest + middle)
    of_outer = _bound(measures.outer, square, width)
    of_inner = _bound(measures.inner, square, width) / least[:, None] ** 2
    least_of_all: Floats = np.minimum(of_both, np.minimum(of_outer, of_inner))
    return least_of_all


def _bound(measure: _Measure, middle: Floats, half: Floats) -> Floats:
    """Return (1 + s h^2) [(1 + s M^T M)^-1]_yy for each interval and vector, at s h^2 = 0.05.

    For T the small symmetric matrix, x the middle and E the last block of unit vectors, M^T M is
    (T - x) (1 - E E^T) (T - x). In T's eigenbasis that is a diagonal matrix minus one whose rank is the block's width,
    so Woodbury's identity inverts it.
    """
    values, first, last = measure
    k, c, n = len(first), len(last), len(values)
    sharpness = _SHARE / half**2
    gaps = values - middle[:, None]
    weights = 1.0 / (1.0 + sharpness[:, None] * gaps**2)
    own = weights @ (first**2).T
    mixed = ((weights * gaps) @ (first[:, None] * last).reshape(k * c, n).T).reshape(-1, k, c)
    end = (weights @ (last[:, None] * last).reshape(c * c, n).T).reshape(-1, c, c)
    solved = np.linalg.solve(end, np.swapaxes(mixed, 1, 2))
    bound: Floats = (1.0 + _SHARE) * (own + sharpness[:, None] * np.einsum("pkc,pck->pk", mixed, solved))
    return bound


class Overlaps(NamedTuple):
    """Bounds on the largest overlap max_i |<u, u_i(W)>| of each leading left singular vector u of W + dW.

    If `exact`, `lower` and `upper` are equal. `left` holds the vectors u as columns.
    """

    lower: npt.NDArray[np.float64]
    upper: npt.NDArray[np.float64]
    exact: bool
    converged: bool
    left: Matrix


def overlaps(base: Operator, tuned: Operator, k: int, eps: Sequence[float], *, seed: int = 0) -> Overlaps:
    """The largest overlap of each of the k leading left singular vectors of `tuned` with one of `base`.

    `eps` are thresholds: the bounds are refined until they show on which side of each an overlap lies, if they can.
    """
    size = min(base.w.shape)
    if size <= EXACT_UP_TO:
        return _exact(base, tuned, k)
    found = _bounded(base, leading(tuned, k, vectors=True, seed=seed), eps)
    is_open = not found.converged or any(count_below(found, e)[1] for e in eps)
    return _exact(base, tuned, k) if is_open and size <= SETTLED_UP_TO else found


def count_below(found: Overlaps, eps: float) -> tuple[int, int]:
    """Return (number of intruders at eps, how many of them are undecided: lower bound < eps <= upper bound)."""
    below = found.lower < eps
    return int(below.sum()), int((below & (found.upper >= eps)).sum())


def _exact(base: Operator, tuned: Operator, k: int) -> Overlaps:
    """The exact overlaps, with W's left singular vectors whose singular value is above zero.

    For a tall W the left singular vectors are W V / s, so U^T u = (u^T W) V / s needs no product of two large matrices.
    If W + dW has fewer than k nonzero singular values, the remaining vectors are no new directions: their overlap is 1.
    """
    w, changed = (matrix.whole() for matrix in (base, tuned))
    s, vectors = _short_side(changed)
    left = vectors[:, :k] if _is_wide(changed) else _over(changed @ vectors[:, :k], s[:k])
    s_base, vectors = _short_side(w)
    all_inner = left.T @ vectors if _is_wide(w) else _over((left.T @ w) @ vectors, s_base)
    best = np.where(s[:k] > _RESOLVED * s[0], np.max(np.abs(all_inner), axis=1), 1.0)
    return Overlaps(best, best, exact=True, converged=True, left=left)


def _is_wide(matrix: Matrix) -> bool:
    return len(matrix) <= len(matrix.T)


def _short_side(matrix: Matrix) -> tuple[Matrix, Matrix]:
    """Return (singular values, largest first; singular vectors of the shorter side as columns, left ones if wide)."""
    squares, vectors = np.linalg.eigh(gram_of(matrix))
    return np.sqrt(np.maximum(squares[::-1], 0.0)), vectors[:, ::-1]


def _over(columns: Matrix, s: Matrix) -> Matrix:
    """Return each column divided by its singular value; zeros if the value cannot be told from zero."""
    return np.divide(columns, s, out=np.zeros_like(columns), where=s > _RESOLVED * s[0])


def _bounded(base: Operator, top: Triplets, eps: Sequence[float]) -> Overlaps:
    """Return bounds after as few Golub-Kahan steps as decide every overlap at every threshold."""
    start = np.concatenate([top.left, top.guard], axis=1).T
    k, most = top.left.shape[1], min(_VECTORS, *base.w.shape) // len(start) - 1
    basis, look = Bidiagonal(base, start, most), min(_FIRST_LOOK, most)
    while True:
        basis.step()
        if basis.steps < look:
            continue
        lower, upper = _widened(atoms(basis, k, [(e - _ROUNDING) ** 2 for e in eps]))
        if basis.steps == most or all(np.all((lower >= e) | (upper < e)) for e in eps):
            return Overlaps(lower, upper, exact=False, converged=top.converged, left=top.left)
        look = min(most, look + max(1, look // 3))


def _widened(found: Atoms) -> tuple[Matrix, Matrix]:
    """Return (lower, upper) bounds on overlaps from those on their squares, widened by an allowance for rounding."""
    lower, upper = np.sqrt(found.lower), np.sqrt(found.upper)
    return np.maximum(lower - _ROUNDING, 0.0), np.minimum(upper + _ROUNDING, 1.0)
