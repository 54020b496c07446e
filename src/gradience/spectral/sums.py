"""A sum of low-rank updates as one pair of stacked factors: its norm and its rank, by Gram matrices in float64.

norm(B A)^2 is the sum over entries of B^T B times A A^T, which only multiplies the long axes. Where the parts all but
cancel, that is a difference of large numbers, and QR of both factors decides.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from gradience.spectral.lowrank import Floats, Matrix
from gradience.spectral.update import TRUSTED_SHARE, core_singular_values, gram_core

__all__ = ["EXACT", "numerical_rank", "squared_distance", "squared_norm"]

EXACT: Final = 1e-6  # of sigma_1: a direction below it is rounding, for factors stored in float32
_CANCELLED: Final = 1e-10  # of the sum of the columns' squares: below it the Gram route has lost half its digits
_NOTHING: Final = 1e-24  # likewise: what is left of parts that cancel is their own rounding


def squared_norm(b: Matrix, a: Matrix) -> float:
    """Return the squared Frobenius norm of b @ a, b (d_out, r), a (r, d_in).

    It is 0 where it is rounding alone, and inf where it is out of range.
    """
    gram_b, gram_a = _grams(b, a)
    size = float(np.diagonal(gram_b) @ np.diagonal(gram_a))
    total = float(np.sum(gram_b * gram_a))
    if not (math.isfinite(size) and math.isfinite(total)):
        return math.inf
    if total > _CANCELLED * size or size == 0.0:
        return total
    exact = float(np.sum(core_singular_values(b, a) ** 2))
    return exact if exact > _NOTHING * size else 0.0


def squared_distance(one: tuple[Matrix, Matrix], two: tuple[Matrix, Matrix]) -> float:
    """Return the squared Frobenius norm of b_1 a_1 - b_2 a_2, good to 1e-15 of that of the first."""
    b = np.concatenate([one[0].astype(np.float64), two[0].astype(np.float64)], axis=1)
    a = np.concatenate([one[1].astype(np.float64), -two[1].astype(np.float64)], axis=0)
    gram_b, gram_a = _grams(b, a)
    return max(0.0, float(np.sum(gram_b * gram_a)))


def numerical_rank(b: Matrix, a: Matrix) -> int:
    """Return the number of singular values of b @ a above 1e-6 of the largest, and above the rounding of its parts."""
    gram_b, gram_a = _grams(b, a)
    core = gram_core(gram_a, gram_b)
    squares = np.linalg.eigvalsh(core.squared)[::-1] * core.size_a * core.size_b
    if squares[0] < TRUSTED_SHARE * core.largest * core.size_a * core.size_b:
        squares = core_singular_values(b, a) ** 2
    rounding = (len(gram_a) * np.finfo(np.float64).eps) ** 2 * float(np.diagonal(gram_b) @ np.diagonal(gram_a))
    return int(np.count_nonzero(squares > max(EXACT**2 * squares[0], rounding)))


def _grams(b: Matrix, a: Matrix) -> tuple[Floats, Floats]:
    """Return B^T B and A A^T."""
    left, right = b.astype(np.float64, copy=False), a.astype(np.float64, copy=False)
    return left.T @ left, right @ right.T
