"""One low-rank update B A: its singular values and its best low-rank approximations, without ever forming it.

`grams` reads every entry of the factors and gives the r x r matrices A A^T and B^T B in float64. LAPACK on the host
solves r x r problems faster than any accelerator, and with the same accuracy on every backend. So these functions work
on numpy arrays; those of Gram matrices accept any leading axes.

Singular values from Gram matrices have an error of about sqrt(eps) * |A| * |B|. They are trusted only if sigma_1 is
not much smaller than |A| * |B|. QR of both factors is backward stable and covers all other updates. The best
approximation of a lower rank keeps the leading singular values (Eckart and Young, Psychometrika 1(3), 1936).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gradience.spectral import scratch
from gradience.spectral.grams import Floats, Matrix, inner_size, narrowed

_SAMPLES = 8

# If sigma_1^2 is below this share of |A|^2 |B|^2, Gram matrices may not give 1e-6 sigma_1 (tests/spectral shows it).
TRUSTED_SHARE: Final = 1e-2

_TILE: Final = 1 << 18  # elements cast to floats at a time (2 MiB as float64); measured with 2**14 to 2**20
_FLOOR: Final = 1e-7  # relative to sigma_1: a smaller singular value is rounding, and leaving it out costs no more

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
    return float(np.mean([_sample(rng, r, d_out, d_in) for _ in range(_SAMPLES)]))


@cache
def null_factor_stable_rank(r: int, d: int, *, seed: int = 0) -> float:
    """Return the mean stable rank of one Gaussian factor (d, r), r at most d, over eight samples."""
    rng = np.random.default_rng(seed)
    grams = (lower @ lower.T for lower in (_bartlett(rng, r, d) for _ in range(_SAMPLES)))
    return float(np.mean([float(gram_stable_rank(gram)) for gram in grams]))


def gram_stable_rank(gram: Floats) -> Floats:
    """Return the stable rank of a factor from its Gram matrix (..., r, r), finite: trace over largest eigenvalue."""
    largest = np.linalg.eigvalsh(gram)[..., -1]
    trace = np.trace(gram, axis1=-2, axis2=-1)
    return np.asarray(np.where(largest > 0.0, trace / np.where(largest > 0.0, largest, 1.0), 0.0))


def _sample(rng: np.random.Generator, r: int, d_out: int, d_in: int) -> float:
    least, most = sorted((d_out, d_in))
    if inner_size(r, d_out, d_in) < r:  # with B = L Q, Q A is as Gaussian as A: the distribution is the same
        core = _bartlett(rng, least, r) @ _bartlett(rng, least, most)
    else:
        core = _bartlett(rng, r, d_out).T @ _bartlett(rng, r, d_in)
    energy = np.linalg.svd(core, compute_uv=False) ** 2
    return float(energy.sum() / energy[0])


def _bartlett(rng: np.random.Generator, r: int, d: int) -> npt.NDArray[np.float64]:
    """Return a lower triangular L with L L^T distributed as the Gram matrix of a Gaussian (d, r) array."""
    lower = np.tril(rng.standard_normal((r, r)), -1)
    freedom = np.maximum(d - np.arange(r), 0)
    diagonal = np.diag(np.sqrt(rng.chisquare(np.maximum(freedom, 1)) * (freedom > 0)))
    return np.asarray(lower + diagonal)


class GramSpectrum(NamedTuple):
    """Singular values (..., r), largest first, and whether the Gram matrices give them accurately."""

    sigma: Floats
    trusted: npt.NDArray[np.bool_]


def gram_singular_values(gram_a: Floats, gram_b: Floats) -> GramSpectrum:
    """Return the singular values of B A from A A^T and B^T B, both (..., r, r) and finite.

    Rows of A and columns of B are balanced first (A -> D A, B -> B D^-1 leaves B A unchanged), and both Gram matrices
    are scaled to trace one. So neither the scale of single rows nor that of the whole update costs accuracy.
    """
    core = gram_core(gram_a, gram_b)
    return core_spectrum(core, np.asarray(np.linalg.eigvalsh(core.squared), np.float64))


def core_spectrum(core: GramCore, eigenvalues: Floats) -> GramSpectrum:
    """Return the singular values of B A from its core and the eigenvalues of `core.squared`, in ascending order."""
    squares = np.maximum(eigenvalues[..., ::-1], 0.0)
    trusted = squares[..., 0] >= TRUSTED_SHARE * core.largest  # of a zero update both are zero
    scale = np.sqrt(core.size_a) * np.sqrt(core.size_b)
    return GramSpectrum(np.sqrt(squares) * scale[..., None], trusted)


class GramCore(NamedTuple):
    """The symmetric r x r eigenproblem of B A, from two Gram matrices.

    `unit_b` is B^T B, balanced and divided by its trace `size_b`. A A^T, balanced and divided by its trace `size_a`,
    is root root^T. The eigenvalues of `squared` = root^T unit_b root are the squared singular values of B A divided by
    size_a * size_b. `balance` is the diagonal of D. `largest` is an upper bound on the eigenvalues.
    """

    squared: Floats
    root: Floats
    unit_b: Floats
    size_a: Floats
    size_b: Floats
    balance: Floats
    largest: Floats


def gram_core(gram_a: Floats, gram_b: Floats) -> GramCore:
    """Return the core of B A from A A^T and B^T B, both (..., r, r) and finite."""
    balance = _balance(_diagonal(gram_a), _diagonal(gram_b))
    outer = balance[..., :, None] * balance[..., None, :]
    unit_a, size_a = _unit_trace(gram_a * outer)
    unit_b, size_b = _unit_trace(gram_b / outer)
    values, vectors = np.linalg.eigh(unit_a)
    root = vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]
    largest = values[..., -1] * np.linalg.norm(unit_b, axis=(-2, -1))
    return GramCore(_transpose(root) @ unit_b @ root, root, unit_b, size_a, size_b, balance, largest)


def core_singular_values(b: npt.NDArray[Any], a: npt.NDArray[Any]) -> Floats:
    """Return the singular values of B A by QR of both factors in float64, b (d_out, r) and a (r, d_in).

    Each factor is scaled to a largest entry of one, so that squares neither overflow nor underflow.
    """
    unit_b, size_b = _unit_peak(b.astype(np.float64))
    unit_a, size_a = _unit_peak(a.astype(np.float64))
    core = np.asarray(np.linalg.qr(unit_b, mode="r")) @ np.asarray(np.linalg.qr(unit_a.T, mode="r")).T
    sigma: Floats = np.linalg.svd(core, compute_uv=False) * size_b * size_a
    return sigma


def _diagonal(gram: Floats) -> Floats:
    return np.diagonal(gram, axis1=-2, axis2=-1)


def _transpose(x: Floats) -> Floats:
    return np.swapaxes(x, -1, -2)


def _balance(diagonal_a: Floats, diagonal_b: Floats) -> Floats:
    """Return the diagonal of D that makes row i of A and column i of B equally long; 1 if either is zero."""
    both = (diagonal_a > 0.0) & (diagonal_b > 0.0)
    ratio = np.where(both, diagonal_b, 1.0) / np.where(both, diagonal_a, 1.0)
    balance: Floats = np.where(both, np.sqrt(np.sqrt(ratio)), 1.0)
    return balance


def _unit_trace(gram: Floats) -> tuple[Floats, Floats]:
    size = np.trace(gram, axis1=-2, axis2=-1)
    return gram / np.where(size > 0.0, size, 1.0)[..., None, None], size


def _unit_peak(x: Floats) -> tuple[Floats, float]:
    peak = float(np.max(np.abs(x), initial=0.0))
    return (x / peak, peak) if peak > 0.0 else (x, 1.0)


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
        b[:, :kept] = self.u[:, :kept] * np.copysign(root, scale)
        a[:kept] = self.v[:kept] * root[:, None]
        return b, a

    def error(self, rank: int) -> float:
        """Return the Frobenius error of the best approximation of that rank."""
        return float(np.linalg.norm(self.sigma[rank:]))


def decomposed(b: Matrix, a: Matrix, scale: float = 1.0) -> LowRank:
    """Return the SVD of scale * b @ a by QR of both factors; b (d_out, r), a (r, d_in), both finite."""
    left, core_b = np.linalg.qr(b.astype(np.float64))
    right, core_a = np.linalg.qr(a.T.astype(np.float64))
    u, sigma, v = np.linalg.svd(core_b @ core_a.T, full_matrices=False)
    return LowRank(left @ u * np.copysign(1.0, scale), sigma * abs(scale), v @ right.T)


def stacked(parts: Sequence[tuple[Matrix, Matrix, float]]) -> tuple[Floats, Floats]:
    """Return (b, a) with b @ a equal to the sum of scale * b_i @ a_i. Parts are (b_i, a_i, scale); the ranks add up."""
    b = np.concatenate([b.astype(np.float64) * scale for b, _, scale in parts], axis=1)
    a = np.concatenate([a.astype(np.float64) for _, a, _ in parts], axis=0)
    return b, a


class Maps(NamedTuple):
    """The maps to factors of a lower rank: b' = B @ left and a' = right @ A; left (r, k), right (k, r), in float64."""

    left: Floats
    right: Floats

    def cut(self, inner: int, rank: int) -> Maps:
        """Return the maps (inner, rank) and (rank, inner): the leading columns and rows of these, zero-padded."""
        kept = min(rank, self.left.shape[1])
        left, right = np.zeros((inner, rank)), np.zeros((rank, inner))
        left[:, :kept], right[:kept] = self.left[:inner, :kept], self.right[:kept, :inner]
        return Maps(left, right)


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
        gram_a, gram_b = (_gram(a), _gram(b.T)) if grams is None or len(grams[0]) != len(a) else grams
        maps = gram_maps(gram_a, gram_b, rank)
    else:
        maps = maps.cut(len(a), rank)
    if maps is None:
        return _by_qr(b, a, scale, rank)
    kind = np.float32 if half else np.float64
    left, right = maps.left.astype(kind), maps.right.astype(kind)
    new_b, new_a = np.empty((len(b), rank), kind), np.empty((rank, a.shape[1]), kind)
    for span, tile in _tiles(b, kind):
        np.matmul(tile, left, out=new_b[span])
    for span, tile in _tiles(a.T, kind):
        np.matmul(right, tile.T, out=new_a[:, span])
    return new_b, new_a


def gram_maps(gram_a: Floats, gram_b: Floats, rank: int) -> Maps | None:
    """Return the maps to the best factors of that rank from A A^T and B^T B, or None if only QR is accurate enough.

    Columns of `left` and rows of `right` beyond the numerical rank are zero.
    """
    core = gram_core(gram_a, gram_b)
    return core_maps(core, *np.linalg.eigh(core.squared), rank)


def core_maps(core: GramCore, squares: Floats, vectors: Floats, rank: int) -> Maps | None:
    """Return `gram_maps` from one update's core and its eigenvalues, in ascending order, with the eigenvectors."""
    r = len(squares)
    squares, vectors = np.maximum(squares[::-1], 0.0), vectors[:, ::-1]
    left, right = np.zeros((r, rank)), np.zeros((rank, r))
    if squares[0] < TRUSTED_SHARE * core.largest:
        return None
    kept = min(rank, int(np.count_nonzero(squares > _FLOOR**2 * squares[0])))
    unit = np.sqrt(squares[:kept])
    turned = core.root @ vectors[:, :kept]
    size_a, size_b = np.sqrt(core.size_a), np.sqrt(core.size_b)
    root = np.sqrt(unit * size_a * size_b)  # of sigma: each factor gets this root
    left[:, :kept] = turned * (root / (unit * size_b)) / core.balance[:, None]
    right[:kept] = (turned.T @ core.unit_b) * (root / (unit**2 * size_a))[:, None] * core.balance
    return Maps(left, right)


def _by_qr(b: Matrix, a: Matrix, scale: float, rank: int) -> tuple[Floats, Floats]:
    return decomposed(b, a, scale).factors(rank, scale)


def _gram(x: Matrix) -> Floats:
    """Return X X^T of an (r, d) array, in float64, a tile at a time."""
    total = np.zeros((len(x), len(x)))
    for _, tile in _tiles(x.T, np.float64):
        total += tile.T @ tile
    return total


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


class Part(NamedTuple):
    """A matrix's low-rank approximation `low`, and the Frobenius norms of the matrix and of the remainder."""

    low: LowRank
    norm: float
    rest: float


def leading_part(matrix: Floats, rank: int, *, seed: int = 0) -> Part:
    """Return the best approximation of that rank of a finite float64 matrix; the rank is cut to the shorter side."""
    fewest = min(matrix.shape)
    norm = float(np.linalg.norm(matrix))
    if fewest <= _DENSE_UNDER or 4 * (rank + _OVERSAMPLING) >= fewest:
        u, sigma, v = np.linalg.svd(matrix, full_matrices=False)
    else:
        u, sigma, v = _iterated(matrix, rank + _OVERSAMPLING, norm, seed)
    low = LowRank(u[:, :rank], sigma[:rank], v[:rank])
    return Part(low, norm, _rest(matrix, low))


def _iterated(matrix: Floats, columns: int, norm: float, seed: int) -> tuple[Floats, Floats, Floats]:
    basis = np.linalg.qr(matrix @ np.random.default_rng(seed).standard_normal((matrix.shape[1], columns)))[0]
    captured = 0.0
    for _ in range(_MOST_PASSES):
        core = basis.T @ matrix
        before, captured = captured, float(np.sum(core * core))
        left = max(0.0, norm * norm - captured)
        if captured - before <= _SETTLED * left + _ROUNDING * norm * norm:
            break
        turned = np.linalg.qr(core.T)[0]
        basis = np.linalg.qr(matrix @ turned)[0]
    else:
        core = basis.T @ matrix
    u, sigma, v = np.linalg.svd(core, full_matrices=False)
    return basis @ u, sigma, v


def _rest(matrix: Floats, low: LowRank) -> float:
    """Return the Frobenius norm of matrix - u diag(sigma) v, some rows at a time."""
    left = low.u * low.sigma
    starts = range(0, len(matrix), _ROWS)
    return float(np.sqrt(sum(np.sum((matrix[i : i + _ROWS] - left[i : i + _ROWS] @ low.v) ** 2) for i in starts)))


def part_with_energy(matrix: Floats, energy: float, *, seed: int = 0) -> Part:
    """Return the best approximation of least rank that holds the given fraction of the squared Frobenius norm."""
    total = float(np.sum(matrix * matrix))
    rank, fewest = min(_FIRST_RANK, *matrix.shape), min(matrix.shape)
    while True:
        low, norm, _ = leading_part(matrix, rank, seed=seed)
        enough = rank_for_energy(low.sigma, energy, total)
        if enough is not None or rank == fewest:
            kept = rank if enough is None else enough
            cut = LowRank(low.u[:, :kept], low.sigma[:kept], low.v[:kept])
            return Part(cut, norm, _rest(matrix, cut))
        rank = min(2 * rank, fewest)


def rank_for_energy(sigma: Floats, energy: float, total: float) -> int | None:
    """Return the least k >= 1 with sigma_1^2 + ... + sigma_k^2 >= energy * total, or None if no k reaches it."""
    held = np.cumsum(sigma * sigma)
    enough = np.flatnonzero(held >= energy * total * (1.0 - 1e-12))  # slack for the rounding of the sums
    return int(enough[0]) + 1 if len(enough) else None
