"""The leading part of a dense matrix, in float64: all of its SVD where that is small, else as much as is asked for.

A large matrix goes through block subspace iteration (Halko, Martinsson and Tropp, SIAM Review 53(2), 2011, algorithm
4.4), repeated until one more pass captures no more of the matrix. What is left out is then measured on the matrix
itself, not estimated.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from gradience.spectral.lowrank import Floats, LowRank

__all__ = ["Part", "leading_part", "part_with_energy", "rank_for_energy"]

_DENSE_UNDER: Final = 768  # rows or columns, whichever are fewer: a full SVD takes about a second
_OVERSAMPLING: Final = 16  # columns beyond the rank
_MOST_PASSES: Final = 40
_SETTLED: Final = 1e-4  # of the squared norm that is left out: a pass that gains no more is the last
_ROUNDING: Final = 1e-15  # of the squared norm of the matrix: the same where nothing is left out
_FIRST_RANK: Final = 32
_ROWS: Final = 1024  # subtracted at a time


class Part(NamedTuple):
    """`low`, and the Frobenius norms of the whole matrix and of what `low` leaves out of it."""

    low: LowRank
    norm: float
    rest: float


def leading_part(matrix: Floats, rank: int, *, seed: int = 0) -> Part:
    """Return the best approximation of a finite float64 matrix of the rank (or of the matrix's, if that is less)."""
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
    """Return the part of least rank that holds the given fraction of the squared Frobenius norm."""
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
    """Return the least k >= 1 with sigma_1^2 + ... + sigma_k^2 >= energy * total, or None where all are too few."""
    held = np.cumsum(sigma * sigma)
    enough = np.flatnonzero(held >= energy * total * (1.0 - 1e-12))  # rounding of the sum
    return int(enough[0]) + 1 if len(enough) else None
