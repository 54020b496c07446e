"""One low-rank update B A: its best low-rank approximations, without ever forming it, and what random factors give.

The best approximation of a lower rank keeps the leading singular values (Eckart and Young, Psychometrika 1(3), 1936).
Singular values and vectors are computed in float64 by JAX. The factors of an approximation are products of the stored
factors with small matrices; numpy forms them, a tile at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array, lax

from gradience.spectral import one_blas_thread, scratch
from gradience.spectral.batch import Maps, batched_maps, by_qr_alone, stable_ranks
from gradience.spectral.devices import float64
from gradience.spectral.grams import Factors, Floats, Matrix, bucket_of, gram, inner_size, narrowed

_SAMPLES = 8

_TILE: Final = 1 << 18  # elements cast to floats at a time (2 MiB as float64); measured with 2**14 to 2**20

_DENSE_UNDER: Final = 768  # the shorter side: up to it, a full SVD takes about a second
_OVERSAMPLING: Final = 16  # columns beyond the rank
_MOST_PASSES: Final = 40
_SETTLED: Final = 1e-4  # the iteration ends if a pass captures no more than this share of the squared remainder
_ROUNDING: Final = 1e-15  # the same, as a share of the matrix's squared norm, for a remainder of zero
_FIRST_RANK: Final = 32
_ROWS: Final = 1024  # rows in which a product is subtracted at a time


@cache
def null_stable_rank(r: int, d_out: int, d_in: int, *, seed: int = 0) -> float:
    """Return the mean stable rank of B A for Gaussian B (d_out, r) and A (r, d_in), over eight samples."""
    rng = np.random.default_rng(seed)
    return _mean_stable_rank([_core(rng, r, d_out, d_in) for _ in range(_SAMPLES)])


@cache
def null_factor_stable_rank(r: int, d: int, *, seed: int = 0) -> float:
    """Return the mean stable rank of one Gaussian factor (d, r), r at most d, over eight samples."""
    rng = np.random.default_rng(seed)
    return _mean_stable_rank([_bartlett(rng, r, d) for _ in range(_SAMPLES)])


def _mean_stable_rank(matrices: Sequence[Floats]) -> float:
    """Return the mean stable rank of square matrices, padded with zeros so that XLA compiles few shapes."""
    size = len(matrices[0])
    padded = np.zeros((len(matrices), bucket_of(size), bucket_of(size)))
    padded[:, :size, :size] = matrices
    with one_blas_thread(), float64():
        return float(np.mean(np.asarray(stable_ranks(padded))))


def _core(rng: np.random.Generator, r: int, d_out: int, d_in: int) -> Floats:
    """Return a small matrix with the singular values of B A for Gaussian B (d_out, r) and A (r, d_in)."""
    least, most = sorted((d_out, d_in))
    if inner_size(r, d_out, d_in) < r:  # with B = L Q, Q A is as Gaussian as A: the distribution is the same
        return np.asarray(_bartlett(rng, least, r) @ _bartlett(rng, least, most))
    return np.asarray(_bartlett(rng, r, d_out).T @ _bartlett(rng, r, d_in))


def _bartlett(rng: np.random.Generator, r: int, d: int) -> npt.NDArray[np.float64]:
    """Return a lower triangular L with L L^T distributed as the Gram matrix of a Gaussian (d, r) array."""
    lower = np.tril(rng.standard_normal((r, r)), -1)
    freedom = np.maximum(d - np.arange(r), 0)
    # chisquare refuses 0 degrees of freedom; the entry is zero there.
    diagonal = np.diag(np.sqrt(rng.chisquare(np.maximum(freedom, 1)) * (freedom > 0)))
    return np.asarray(lower + diagonal)


def core_singular_values(b: Matrix, a: Matrix) -> Floats:
    """Return the singular values of B A by QR of both factors in float64, b (d_out, r) and a (r, d_in); r values.

    Those beyond the shorter side are zero.
    """
    if not len(a):
        return np.zeros(0)
    result = by_qr_alone(Factors(b, a, 1.0))
    return np.asarray(result.sigma[: len(a)]) * math.prod(float(size) for size in result.sizes)


class LowRank(NamedTuple):
    """The SVD u diag(sigma) v: u (d_out, n) with orthonormal columns, sigma (n,) largest first, v (n, d_in)."""

    u: Floats
    sigma: Floats
    v: Floats

    def factors(self, rank: int, scale: float = 1.0) -> tuple[Floats, Floats]:
        """Return (b, a) such that scale * b @ a is the best approximation of that rank.

        Each factor gets the root of every singular value. If rank exceeds n, both factors are zero-padded.
        """
        kept = min(rank, len(self.sigma))
        root = np.sqrt(self.sigma[:kept] / abs(scale)) if scale else np.zeros(kept)
        b = np.zeros((len(self.u), rank))
        a = np.zeros((rank, self.v.shape[1]))
        # The product is multiplied by the scale again, so one factor takes the sign of a negative one.
        b[:, :kept] = self.u[:, :kept] * np.copysign(root, scale)
        a[:kept] = self.v[:kept] * root[:, None]
        return b, a

    def error(self, rank: int) -> float:
        """Return the Frobenius error of the best approximation of that rank."""
        return float(np.linalg.norm(self.sigma[rank:]))


def decomposed(b: Matrix, a: Matrix, scale: float = 1.0) -> LowRank:
    """Return the SVD of scale * b @ a by QR of both factors; b (d_out, r), a (r, d_in), both finite."""
    with one_blas_thread(), float64():
        u, sigma, v = (np.asarray(x) for x in svd_by_qr(b.astype(np.float64), a.astype(np.float64)))
    return LowRank(u * np.copysign(1.0, scale), sigma * abs(scale), v)


@jax.jit
def svd_by_qr(b: Array, a: Array) -> tuple[Array, Array, Array]:
    """Return the singular value decomposition u diag(sigma) v of b @ a."""
    (left, core_b), (right, core_a) = jnp.linalg.qr(b), jnp.linalg.qr(a.T)
    u, sigma, v = jnp.linalg.svd(core_b @ core_a.T, full_matrices=False)
    return left @ u, sigma, v @ right.T


def stacked(parts: Sequence[tuple[Matrix, Matrix, float]]) -> tuple[Floats, Floats]:
    """Return (b, a) with b @ a equal to the sum of scale * b_i @ a_i. Parts are (b_i, a_i, scale); the ranks add up."""
    b = np.concatenate([b.astype(np.float64) * scale for b, _, scale in parts], axis=1)
    a = np.concatenate([a.astype(np.float64) for _, a, _ in parts], axis=0)
    return b, a


def reduced(
    b: Matrix,
    a: Matrix,
    scale: float,
    rank: int,
    *,
    grams: tuple[Floats, Floats] | None = None,
    maps: Maps | None = None,
    half: bool = False,
) -> tuple[Matrix, Matrix]:
    """Return (b', a') such that scale * b' @ a' is the best approximation of scale * b @ a of that rank.

    Each new factor gets the root of every singular value. The error is within 1e-6 of the dense optimum, relative to
    the update's norm. Beside the results, memory for a few tiles is used.

    Args:
        b: the left factor (d_out, r), finite, of any real dtype.
        a: the right factor (r, d_in), likewise.
        scale: of the product; not part of b' and a'.
        rank: the rank of the result.
        grams: A A^T and B^T B, both (r, r) in float64, if they are known.
        maps: those of `gram_maps` at this rank or a higher one, if they are known.
        half: the result will be stored in 16 bits, so float32 products are precise enough.
    """
    b, a = narrowed(b, a)
    if maps is None:
        if grams is None or len(grams[0]) != len(a):
            grams = gram(a)[: len(a), : len(a)], gram(b.T)[: len(a), : len(a)]
        gram_a, gram_b = grams
        maps = gram_maps(gram_a, gram_b, rank)
    else:
        maps = maps.cut(len(a), rank)
    if maps is None:
        return decomposed(b, a, scale).factors(rank, scale)
    kind = np.float32 if half else np.float64
    left, right = maps.left.astype(kind), maps.right.astype(kind)
    new_b, new_a = np.empty((len(b), rank), kind), np.empty((rank, a.shape[1]), kind)
    for span, tile in _tiles(b, kind):
        np.matmul(tile, left, out=new_b[span])
    for span, tile in _tiles(a.T, kind):
        np.matmul(right, tile.T, out=new_a[:, span])
    return new_b, new_a


def gram_maps(gram_a: Floats, gram_b: Floats, rank: int) -> Maps | None:
    """Return the maps to the best factors of that rank from A A^T and B^T B, or None if only QR is accurate enough."""
    r = len(gram_a)
    grams = np.zeros((2, 1, bucket_of(r), bucket_of(r)))
    grams[0, 0, :r, :r], grams[1, 0, :r, :r] = gram_b, gram_a
    with one_blas_thread(), float64():
        result, left, right = jax.device_get(batched_maps(*grams))
    return Maps(left[0], right[0]).cut(r, rank) if result.trusted[0] else None


def _tiles(x: Matrix, kind: type[np.float32 | np.float64]) -> Iterator[tuple[slice, Matrix]]:
    """Yield the rows of x (d, r) in tiles: each tile's span of rows, and its numbers as floats of that kind.

    A tile has x's memory order, and is valid until the next tile.
    """
    length, r = x.shape
    rows = max(1, _TILE // max(1, r))
    for start in range(0, length, rows):
        span = slice(start, min(start + rows, length))
        count = span.stop - start
        tile = scratch.like(x, "reduced", (count, r), kind)
        tile[...] = x[span]
        yield span, tile


class Approximation(NamedTuple):
    """A matrix's low-rank approximation `low`, and the Frobenius norms of the matrix and of the remainder."""

    low: LowRank
    norm: float
    rest: float


def leading_part(matrix: Floats, rank: int, *, seed: int = 0) -> Approximation:
    """Return the best approximation of that rank of a finite float64 matrix; the rank is cut to the shorter side."""
    fewest = min(matrix.shape)
    with one_blas_thread(), float64():
        if fewest <= _DENSE_UNDER or 4 * (rank + _OVERSAMPLING) >= fewest:
            parts = whole_svd(matrix)
        else:
            shape = matrix.shape[1], rank + _OVERSAMPLING
            parts = leading_svd(matrix, np.random.default_rng(seed).standard_normal(shape))
        u, sigma, v = (np.asarray(x) for x in parts)
    low = LowRank(u[:, :rank], sigma[:rank], v[:rank])
    return Approximation(low, float(np.linalg.norm(matrix)), _rest(matrix, low))


@jax.jit
def whole_svd(matrix: Array) -> tuple[Array, Array, Array]:
    """Return the singular value decomposition u diag(sigma) v of a matrix."""
    u, sigma, v = jnp.linalg.svd(matrix, full_matrices=False)
    return u, sigma, v


_State: TypeAlias = tuple[Array, Array, Array, Array]  # passes, basis, the squares it captures, and those before


@jax.jit
def leading_svd(matrix: Array, start: Array) -> tuple[Array, Array, Array]:
    """Return as many leading singular values and vectors as start (n, columns) has columns; the last are inaccurate.

    Subspace iteration ends when a pass captures almost nothing more. Halko, Martinsson & Tropp, SIAM Review 53(2),
    2011.
    """
    square = jnp.sum(matrix**2)

    def more(state: _State) -> _State:
        passes, basis, captured, _ = state
        turned, _ = jnp.linalg.qr(matrix.T @ basis)
        basis, _ = jnp.linalg.qr(matrix @ turned)
        return passes + 1, basis, jnp.sum((basis.T @ matrix) ** 2), captured

    def goes_on(state: _State) -> Any:
        passes, _, captured, before = state
        left = jnp.maximum(square - captured, 0.0)
        return (passes < _MOST_PASSES) & (captured - before > _SETTLED * left + _ROUNDING * square)

    basis, _ = jnp.linalg.qr(matrix @ start)
    first: _State = jnp.int32(0), basis, jnp.sum((basis.T @ matrix) ** 2), jnp.zeros_like(square)
    _, basis, _, _ = lax.while_loop(goes_on, more, first)
    u, sigma, v = jnp.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ u, sigma, v


def _rest(matrix: Floats, low: LowRank) -> float:
    """Return the Frobenius norm of matrix - u diag(sigma) v, some rows at a time."""
    left = low.u * low.sigma
    starts = range(0, len(matrix), _ROWS)
    return float(np.sqrt(sum(np.sum((matrix[i : i + _ROWS] - left[i : i + _ROWS] @ low.v) ** 2) for i in starts)))


def part_with_energy(matrix: Floats, energy: float, *, seed: int = 0) -> Approximation:
    """Return the best approximation of least rank that holds the given fraction of the squared Frobenius norm."""
    total = float(np.sum(matrix * matrix))
    rank, fewest = min(_FIRST_RANK, *matrix.shape), min(matrix.shape)
    while True:
        low, norm, _ = leading_part(matrix, rank, seed=seed)
        enough = rank_for_energy(low.sigma, energy, total)
        if enough is not None or rank == fewest:
            kept = rank if enough is None else enough
            cut = LowRank(low.u[:, :kept], low.sigma[:kept], low.v[:kept])
            return Approximation(cut, norm, _rest(matrix, cut))
        rank = min(2 * rank, fewest)


def rank_for_energy(sigma: Floats, energy: float, total: float) -> int | None:
    """Return the least k >= 1 with sigma_1^2 + ... + sigma_k^2 >= energy * total, or None if no k reaches it."""
    sums = np.cumsum(sigma * sigma)
    enough = np.flatnonzero(sums >= energy * total * (1.0 - 1e-12))  # slack for the rounding of the sums
    return int(enough[0]) + 1 if len(enough) else None
