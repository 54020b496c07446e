"""Intruder dimensions: leading left singular vectors of W + dW that resemble none of W's (arXiv 2410.21228).

Block Lanczos for the leading vectors of W + dW, then block Golub-Kahan on W begun at these: all vectors share each
product, and what one finds serves the others. `atoms` bounds every overlap from both sides, so an intruder is shown
without the full SVD of W. Small matrices, and those of moderate size that the bounds leave open, are done exactly: the
eigenvectors of their Gram matrices in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gradience.spectral.atoms import Atoms, atoms
from gradience.spectral.dense import gram_of
from gradience.spectral.krylov import Bidiagonal, Matrix, Operator
from gradience.spectral.lanczos import Triplets, leading

EXACT_UP_TO: Final = 768  # of the smaller side: .3 s, where the bounds take .2 to 3
SETTLED_UP_TO: Final = 2048  # the same, where the bounds leave a vector open: 5 s
_VECTORS: Final = 640  # of a basis, at most
_FIRST_LOOK: Final = 3  # steps
_RESOLVED: Final = 1e-7  # of the largest singular value: what float32 weights tell from zero
_ROUNDING: Final = 1e-4  # of an overlap: float32 vectors of unit length, and bases orthogonal to as much


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
    w, changed = (_whole(matrix) for matrix in (base, tuned))
    s, vectors = _short_side(changed)
    left = vectors[:, :k] if _is_wide(changed) else _over(changed @ vectors[:, :k], s[:k])
    s_base, vectors = _short_side(w)
    all_inner = left.T @ vectors if _is_wide(w) else _over((left.T @ w) @ vectors, s_base)
    best = np.where(s[:k] > _RESOLVED * s[0], np.max(np.abs(all_inner), axis=1), 1.0)
    return Overlaps(best, best, exact=True, converged=True, left=left)


def _whole(matrix: Operator) -> Matrix:
    return np.asarray(matrix.w, np.float64) + np.asarray(matrix.b, np.float64) @ np.asarray(matrix.a, np.float64)


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
