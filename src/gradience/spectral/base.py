"""An update beside the weight that it changes: what a merge keeps of it, how large both are, and intruder dimensions.

Sums of a merge: products in float32 as a merge computes them, a few rows at a time. While these are in the cache they
are widened, changed, rounded and summed. bfloat16 goes to the kernel as its bits, which are widened in registers: XLA's
own cast of a bfloat16 takes twenty times as long. Rows are added up in float64.

Intruder dimensions are leading left singular vectors of W + dW that resemble none of W's (arXiv 2410.21228). Block
Lanczos for the leading vectors of W + dW, then block Golub-Kahan on W begun at these: all vectors share each product,
and what one finds serves the others. `atoms` bounds every overlap from both sides, so an intruder is shown without the
full SVD of W. Small matrices, and those of moderate size that the bounds leave open, are done exactly: the eigenvectors
of their Gram matrices in float64.

The squared overlaps of a vector y are the atoms of the spectral measure of W W^T seen from y. Let u, v be singular
vectors for sigma, and t = (P^T u, Q^T v), of length at most sqrt(2). All but the last block of rows of the augmented
matrix [0 C; C^T 0] - sigma are zero at t, since the recurrence holds there exactly. So y's overlap is at most what the
space of such t has of y: the Christoffel function, in blocks. For a whole interval [c - h, c + h] of sigma the rows are
within h |t| of zero at c, and

    overlap^2 <= |t|^2 (1 + s h^2) [(1 + s M^T M)^-1]_yy,    M those rows less c, for every s > 0

which the eigenvectors of the small matrix give in closed form. Rounding widens h. The same of W^T y on W^T W, divided
by sigma^2, has no part in the null space of W^T, and W W^T alone does not count a vector twice near zero: the better
bounds of small sigma. From below: the weight of a Ritz vector that has settled.
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

_PART: Final = 1 << 17  # numbers of W that are widened at a time: 512 KiB stay in a core's cache
_BFLOAT16: Final = np.dtype(ml_dtypes.bfloat16)
_BITS: Final = {"bfloat16": (8, 7), "float16": (5, 10)}
_F16_NORMAL: Final = 2.0**-14  # below it float16 counts in steps of 2^-24
_F16_STEP: Final = 2.0**-24

_SETTLED: Final = 1e-4  # residual of a Ritz value, of the value itself: it belongs to one singular vector
_RECURRENCE: Final = 2e-6  # of sigma_1: how well float32 products obey the recurrence, and the width of no interval
_APART: Final = 1e-3  # of sigma_1: below it float32 products tell few singular vectors apart
_INTERVALS: Final = 160  # from there to sigma_1, at first
_SHARE: Final = 0.05  # s h^2: what the width of an interval adds to the bound of its middle

EXACT_UP_TO: Final = 768  # of the smaller side: .3 s, where the bounds take .2 to 3
SETTLED_UP_TO: Final = 2048  # the same, where the bounds leave a vector open: 5 s
_VECTORS: Final = 640  # of a basis, at most
_FIRST_LOOK: Final = 3  # steps
_RESOLVED: Final = 1e-7  # of the largest singular value: what float32 weights tell from zero
_ROUNDING: Final = 1e-4  # of an overlap: float32 vectors of unit length, and bases orthogonal to as much


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


class Atoms(NamedTuple):
    """Bounds on max_i <u_i, y>^2 for each vector; `upper` is only as sharp as the given thresholds need."""

    lower: Floats
    upper: Floats


class _Measure(NamedTuple):
    """A small symmetric matrix by its eigenvectors: values (n,), first k rows (k, n), last block of rows (c, n)."""

    values: Floats
    first: Floats
    last: Floats


def atoms(basis: Bidiagonal, k: int, thresholds: Sequence[float]) -> Atoms:
    """Bounds for the first k vectors of the block at which the bases begin.

    `thresholds` of the squared overlap: the upper bound is searched until it is shown to be under the next one above
    the lower bound, or cannot be.
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
    """Of the augmented matrix, with eigenvalues +-sigma and zeros; of W W^T on P; of W^T W on Q, begun at W^T y."""

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

    Intervals where a bound is not under the next threshold are halved, as long as the bound at their middles is.
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
    """Return bounds (intervals, k) on the atoms within each interval [middle - half, middle + half] of sigma."""
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

    M^T M is (T - c) (1 - E E^T) (T - c), E the last block: in T's eigenvectors a diagonal matrix less one of rank c.
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
    """For each leading left vector of W + dW, bounds on max_i |<u, u_i(W)>|; equal where exact.

    `left` holds the vectors as columns.
    """

    lower: npt.NDArray[np.float64]
    upper: npt.NDArray[np.float64]
    exact: bool
    converged: bool
    left: Matrix


def overlaps(base: Operator, tuned: Operator, k: int, eps: Sequence[float], *, seed: int = 0) -> Overlaps:
    """The largest overlap of each of the k leading left singular vectors of `tuned` with one of `base`.

    `eps` are the thresholds that the bounds should separate where they can.
    """
    size = min(base.w.shape)
    if size <= EXACT_UP_TO:
        return _exact(base, tuned, k)
    found = _bounded(base, leading(tuned, k, vectors=True, seed=seed), eps)
    is_open = not found.converged or any(count_below(found, e)[1] for e in eps)
    return _exact(base, tuned, k) if is_open and size <= SETTLED_UP_TO else found


def count_below(found: Overlaps, eps: float) -> tuple[int, int]:
    """Return (intruders at eps, vectors the bounds leave open); an open one counts by its lower bound."""
    below = found.lower < eps
    return int(below.sum()), int((below & (found.upper >= eps)).sum())


def _exact(base: Operator, tuned: Operator, k: int) -> Overlaps:
    """The overlaps themselves, of left vectors that belong to a singular value above zero.

    A left vector of a tall matrix is W v / s, so that U^T u = (u^T W) V / s takes no product of two large matrices.
    Where W + dW has fewer singular values above zero than k, the rest are not new directions: its overlap is 1.
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
    """Singular values, largest first, and as columns the vectors of the shorter side, left ones if it is wide."""
    squares, vectors = np.linalg.eigh(gram_of(matrix))
    return np.sqrt(np.maximum(squares[::-1], 0.0)), vectors[:, ::-1]


def _over(columns: Matrix, s: Matrix) -> Matrix:
    """Each column divided by its singular value; nothing where that is zero."""
    return np.divide(columns, s, out=np.zeros_like(columns), where=s > _RESOLVED * s[0])


def _bounded(base: Operator, top: Triplets, eps: Sequence[float]) -> Overlaps:
    """Return bounds from as few steps as separate the thresholds."""
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
    """Return bounds on overlaps, from those on their squares, with room for rounding."""
    lower, upper = np.sqrt(found.lower), np.sqrt(found.upper)
    return np.maximum(lower - _ROUNDING, 0.0), np.minimum(upper + _ROUNDING, 1.0)
