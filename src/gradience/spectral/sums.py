"""A weighted sum of low-rank updates from their factors as stored: only blocks of them are stacked.

S = sum c_i B_i A_i = B A with B = [c_1 B_1, c_2 B_2, ...] and A = [A_1; A_2; ...]. Its Gram matrices come from one
pass, its best factors U V of a rank from a second, in which these are rounded and what the rounding costs is found: of
D = S - (U + E)(V + F), for E and F the roundings, the squared norm follows from small products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from gradience.spectral.crossed import crossed
from gradience.spectral.merging import Pair, core_rank, squared_distance
from gradience.spectral.narrow import inner_size
from gradience.spectral.reduced import core_maps, decomposed, stacked
from gradience.spectral.threads import scratch
from gradience.spectral.update import gram_core

Floats: TypeAlias = npt.NDArray[np.float64]
Matrix: TypeAlias = npt.NDArray[Any]
Part: TypeAlias = tuple[Matrix, Matrix, float]

_BLOCK: Final = 1 << 18  # numbers of the stacked factors at a time
_BESIDE: Final = 1e-10  # of the squared norm: where less is left out, its product with E F is under a rounding of E F's
_HALF: Final = 2  # bytes of a dtype for whose rounding float32 products do


def is_narrow(parts: Sequence[Part]) -> bool:
    """Whether the stacked factors are worth no other form: the sum of the ranks is within the sides."""
    rank = sum(len(a) for _, a, _ in parts)
    return inner_size(rank, len(parts[0][0]), parts[0][1].shape[1]) == rank


def sum_grams(parts: Sequence[Part]) -> Pair:
    """Return B^T B and A A^T of the sum's stacked factors; parts are (b, a, c)."""
    n = len(parts)
    loads = {i: lambda b=b, a=a: (b, a) for i, (b, a, _) in enumerate(parts)}
    found = crossed(loads, list(combinations(range(n), 2)) or [(0, 0)])
    weights = _weights(parts)
    sides = (
        np.block([[side[i, j] if i <= j else side[j, i].T for j in range(n)] for i in range(n)])
        for side in (found.b, found.a)
    )
    gram_b, gram_a = sides
    return gram_b * np.outer(weights, weights), gram_a


class Side(NamedTuple):
    """A new factor as it is stored, (k, d), and of its rounding E: E E^T (k, k) and U E^T (k, k), U the factor before.

    `crossed` is X E^T (r, k) with the stacked factor X, where that was asked for.
    """

    stored: Matrix
    squared: Floats
    own: Floats
    crossed: Floats | None


class Rounded(NamedTuple):
    """The sum's new factors as they are stored, and the squared norm of the sum less their product."""

    b: Matrix
    a: Matrix
    loss: float


def balancing(columns: Floats, rows: Floats) -> Floats:
    """Return the powers of two that make columns of B as long as rows of A, where neither is zero: no digit is lost."""
    both = (columns > 0.0) & (rows > 0.0)
    ratio = np.where(both, rows, 1.0) / np.where(both, columns, 1.0)
    return np.asarray(np.exp2(np.round(np.log2(ratio) / 2)))


def balanced_sum(parts: Sequence[Part], grams: Pair, dtype: np.dtype[Any]) -> Rounded:
    """Return the stacked factors, column k of B as long as row k of A up to a power of two, rounded to the dtype."""
    columns, rows = (np.sqrt(np.maximum(np.diagonal(gram), 0.0)) for gram in grams)
    step = balancing(columns, rows)
    b, a = _rounded(parts, step, 1.0 / step, dtype, crosses=False)
    gram_b, gram_a = grams
    turned = gram_b * np.outer(step, step), gram_a / np.outer(step, step)
    return Rounded(b.stored.T, a.stored, max(0.0, _loss((b, a), turned)))


def low_rank_sum(parts: Sequence[Part], grams: Pair, rank: int | None, dtype: np.dtype[Any]) -> Rounded | None:
    """Return the sum's best factors of the rank, rounded to the dtype; without one at the rank that the sum has.

    None where the stacked factors have no more columns: they hold it as they are.
    """
    gram_b, gram_a = grams
    held = len(gram_a)
    if rank is not None and rank >= held:
        return None
    core = gram_core(gram_a, gram_b)
    if rank is None:
        rank = core_rank(core, np.linalg.eigvalsh(core.squared), grams, lambda: stacked(parts))
    if rank >= held:
        return None
    squares, vectors = np.linalg.eigh(core.squared)
    maps = core_maps(core, squares, vectors, rank)
    if maps is None:
        return _by_qr(parts, grams, rank, dtype)
    sigma = np.sqrt(np.maximum(squares[::-1], 0.0) * core.size_a * core.size_b)
    rest = float(np.sum(sigma[rank:] ** 2))
    crosses = rest > _BESIDE * float(np.sum(sigma**2))
    b, a = sides = _rounded(parts, maps.left, maps.right.T, dtype, crosses=crosses)
    kept = np.diag(sigma[:rank])  # U^T U and V V^T, to which S - U V is orthogonal
    loss = rest + _loss(sides, (kept, kept))
    if b.crossed is not None and a.crossed is not None:  # S - U V with E F
        across = _weights(parts)[:, None] * b.crossed
        loss -= 2.0 * float(np.sum(across * a.crossed) - np.sum(b.own * a.own))
    return Rounded(b.stored.T, a.stored, max(0.0, loss))


def _by_qr(parts: Sequence[Part], grams: Pair, rank: int, dtype: np.dtype[Any]) -> Rounded:
    plain = stacked(parts)
    with np.errstate(over="ignore"):
        b, a = (factor.astype(dtype) for factor in decomposed(*plain).factors(rank))
    with np.errstate(invalid="ignore"):
        return Rounded(b, a, squared_distance(plain, (b, a), grams=grams))


def _weights(parts: Sequence[Part]) -> Floats:
    """The weight of each column of the stacked B."""
    return np.concatenate([np.full(len(a), c) for _, a, c in parts])


def _rounded(
    parts: Sequence[Part], left: Floats, right: Floats, dtype: np.dtype[Any], *, crosses: bool
) -> tuple[Side, Side]:
    """Return B left and A^T right of the stacked factors, transposed and rounded to the dtype."""
    weighted = (_weights(parts) * left.T).T
    b, a = [b.T for b, _, _ in parts], [a for _, a, _ in parts]
    return _side(b, weighted, dtype, crosses=crosses), _side(a, right, dtype, crosses=crosses)


def _side(factors: Sequence[Matrix], turn: Floats, dtype: np.dtype[Any], *, crosses: bool) -> Side:
    """Return turn^T X of the stacked factors X (r, d), lying as they do; `turn` is (r, k), or the diagonal of one."""
    kind: type[np.float32 | np.float64] = np.float32 if dtype.itemsize <= _HALF else np.float64
    turn = turn.astype(kind)
    height, k, length = len(turn), turn.shape[-1], factors[0].shape[1]
    in_rows = factors[0].flags.c_contiguous
    stored = np.empty((k, length), dtype) if in_rows else np.empty((length, k), dtype).T
    squared, own, products = np.zeros((k, k)), np.zeros((k, k)), np.zeros((height, k))
    width = max(1, min(length, _BLOCK // height))
    for start in range(0, length, width):
        span = slice(start, min(start + width, length))
        count = span.stop - start
        block = scratch.like(factors[0], "sums", (height, count), kind)
        row = 0
        for factor in factors:
            block[row : row + len(factor)] = factor[:, span]
            row += len(factor)
        new = _turned(block, turn, in_rows=in_rows)
        stored[:, span] = new
        lost: Matrix = stored[:, span].astype(kind) - new
        if lost.any():
            squared += lost @ lost.T
            own += new @ lost.T
            if crosses:
                products += block @ lost.T
    return Side(stored, squared, own, products if crosses else None)


def _turned(block: Matrix, turn: Matrix, *, in_rows: bool) -> Matrix:
    if turn.ndim == 1:
        return np.asarray(block * turn[:, None])
    return np.asarray(turn.T @ block if in_rows else (block.T @ turn).T)


def _loss(sides: tuple[Side, Side], grams: Pair) -> float:
    """Return the squared norm of U V - (U + E) (V + F), from U^T U and V V^T, both (k, k)."""
    (_, of_e, left, _), (_, of_f, right, _) = sides  # left is U^T E, right V F^T
    found = (
        float(np.sum(grams[0] * of_f)),
        float(np.sum(grams[1] * of_e)),
        float(np.sum(of_e * of_f)),
        2.0 * float(np.sum(left * right.T)),  # U F with E V
        2.0 * float(np.sum(left * of_f)),  # U F with E F
        2.0 * float(np.sum(of_e * right)),  # E V with E F
    )
    return math.fsum(found) if all(map(math.isfinite, found)) else math.inf
