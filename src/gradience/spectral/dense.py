"""An update that is a whole matrix, such as DoRA's: its leading part, and its spectrum.

Of a small matrix every singular value, from the Gram matrix of its shorter side in float64. Of a large one the leading
values and bounds on the rest: sums of squares of the leading values bound every energy rank from both sides.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from gradience.spectral.grams import Floats, Matrix
from gradience.spectral.krylov import Operator, as_float32, leading
from gradience.spectral.update import LowRank

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


EXACT_UP_TO: Final = 2048  # of the shorter side: a second for all singular values
_LEADING: Final = 64
_SLACK: Final = 1e-4  # relative, on the largest value of what the leading part leaves out


class DenseSpectrum(NamedTuple):
    """`sigma` largest first: all singular values, or the leading ones where `is_whole` is false.

    `energy` is the sum of all squared values, `next_square` a bound on the square of every value that `sigma` lacks;
    `converged` whether the iterations reached their tolerance.
    """

    sigma: Floats
    energy: float
    size: int
    next_square: float = 0.0
    is_whole: bool = True
    converged: bool = True

    def energy_rank(self, share: float) -> tuple[int, int]:
        """The least and the most that k can be, k the fewest values that hold this share of the energy.

        Values beyond the leading ones fall, so their sums rise at least as a straight line does to the whole energy
        (the most), and by Ky Fan's inequality no faster than `next_square` a value (the least).
        """
        held = np.cumsum(self.sigma**2)
        wanted = share * self.energy * (1.0 - self.size * np.finfo(np.float64).eps)
        reached = np.flatnonzero(held >= wanted)
        if self.is_whole:
            most = int(reached[0]) + 1 if len(reached) else self.size
            return most, most
        rest = max(self.energy - float(held[-1]), 0.0)
        if len(reached):
            most = int(reached[0]) + 1
        else:
            slope = rest / (self.size - len(self.sigma))
            most = min(self.size, len(self.sigma) + math.ceil((wanted - float(held[-1])) / slope))
        counts = np.arange(1, most + 1)
        highest = held[np.minimum(counts, len(held)) - 1] + np.minimum(counts * self.next_square, rest)
        return int(np.flatnonzero(highest >= wanted)[0]) + 1 if highest[-1] >= wanted else most, most


def dense_spectrum(matrix: Matrix, *, values: int = _LEADING, seed: int = 0) -> DenseSpectrum:
    """The spectrum of a finite matrix (m, n), in float64; of a large one at least so many `values`.

    Values under about 1e-8 of the largest are rounding: they come from squares.
    """
    size = min(matrix.shape)
    if size <= EXACT_UP_TO:
        squares = np.maximum(np.linalg.eigvalsh(gram_of(matrix))[::-1], 0.0)
        return DenseSpectrum(np.sqrt(squares), float(squares.sum()), size)
    part = leading_part(matrix.astype(np.float64), max(values, _LEADING), seed=seed)
    whole = Operator.of(as_float32(matrix))
    top, rest = (leading(x, seed=seed) for x in (whole, _less(whole, part.low)))
    sigma = part.low.sigma.copy()
    sigma[0] = max(sigma[0], float(top.sigma[0]))
    return DenseSpectrum(
        sigma,
        part.norm**2,
        size,
        next_square=(float(rest.sigma[0]) * (1.0 + _SLACK)) ** 2,
        is_whole=False,
        converged=top.converged and rest.converged,
    )


def gram_of(matrix: Matrix) -> Floats:
    """The Gram matrix of the shorter side of a matrix (m, n), in float64: X X^T of a wide one, X^T X of a tall one."""
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    total = np.zeros((len(short), len(short)))
    for start in range(0, short.shape[1], _ROWS):
        tile = short[:, start : start + _ROWS].astype(np.float64)
        total += tile @ tile.T
    return total


def _less(matrix: Operator, low: LowRank) -> Operator:
    """The matrix without its leading part, which is subtracted as factors."""
    return matrix.plus(-low.u * low.sigma, low.v)
