"""A weighted sum of low-rank updates, from their factors as stored: its norm, its rank and its best factors.

S = sum c_i B_i A_i = B A with B = [c_1 B_1, c_2 B_2, ...] and A = [A_1; A_2; ...]. B and A are stacked a block at a
time. The squared norm of S is the sum of the entrywise product of B^T B and A A^T. If the parts almost cancel, that
sum is a difference of large numbers, and a QR of both stacked factors replaces it.

A first pass over the factors gives the Gram matrices. A second pass gives the best factors U V of a rank, rounds them
to the stored dtype, and measures the loss: for rounding errors E of U and F of V, the squared norm of
S - (U + E)(V + F) follows from small products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from gradience.spectral import scratch
from gradience.spectral.grams import Floats, Matrix, inner_size, narrowed
from gradience.spectral.subspace import crossed
from gradience.spectral.update import (
    TRUSTED_SHARE,
    GramCore,
    core_maps,
    core_singular_values,
    decomposed,
    gram_core,
    stacked,
)

EXACT: Final = 1e-6  # relative to sigma_1: below it, a direction is rounding of factors stored in float32
_CANCELLED: Final = 1e-10  # of sum |b_k|^2 |a_k|^2: below it, the sum over Gram matrices has lost half its digits
_NOTHING: Final = 1e-24  # of the same sum: below it, the parts cancel, and only their rounding is left


Pair: TypeAlias = tuple[Floats, Floats]

_BLOCK: Final = 1 << 18  # numbers of the stacked factors at a time
_BESIDE: Final = 1e-10  # of |S|^2: if |S - U V|^2 is no larger, the inner product of S - U V with E F is negligible
_HALF: Final = 2  # bytes: for a dtype of at most two, float32 products are precise enough


def gram_norm(grams: Pair, factors: Callable[[], tuple[Matrix, Matrix]]) -> float:
    """Return the squared Frobenius norm of b @ a from its `pair_grams`; 0 if only rounding is left, inf on overflow.

    The factors, b (d_out, r) and a (r, d_in), are asked for only if cancellation makes the Gram matrices inaccurate.
    """
    gram_b, gram_a = grams
    size = float(np.diagonal(gram_b) @ np.diagonal(gram_a))
    total = float(np.sum(gram_b * gram_a))
    if not (math.isfinite(size) and math.isfinite(total)):
        return math.inf
    if total > _CANCELLED * size or size == 0.0:
        return total
    exact = float(np.sum(core_singular_values(*factors()) ** 2))
    return exact if exact > _NOTHING * size else 0.0


def norm_beyond_the_sides(b: Matrix, a: Matrix, grams: Pair) -> float:
    """Return the squared Frobenius norm of b @ a when the inner size exceeds a side; `grams` are its `pair_grams`.

    `gram_norm` alone would miss a cancellation here: `narrowed` replaces the factors by (product, identity), so the
    Gram matrices no longer show that the terms cancel.
    """
    found = gram_norm(grams, lambda: (b, a))
    size = float(np.sum(b * b, axis=0) @ np.sum(a * a, axis=1))
    is_nothing = math.isfinite(found) and math.isfinite(size) and found <= _NOTHING * size
    return 0.0 if is_nothing else found


def squared_distance(one: tuple[Matrix, Matrix], two: tuple[Matrix, Matrix], *, grams: Pair | None = None) -> float:
    """Return the squared Frobenius norm of b_1 a_1 - b_2 a_2; its error is about 1e-15 of the first's squared norm.

    `grams` are the `pair_grams` of the first, if they are known.
    """
    (b1, a1), (b2, a2) = (_narrow(*pair) for pair in (one, two))
    gram_b, gram_a = pair_grams(b1, a1) if grams is None else grams
    other_b, other_a = pair_grams(b2, a2)
    inner = (b1.T @ b2) * (a1 @ a2.T)
    return max(0.0, float(np.sum(gram_b * gram_a)) - 2.0 * float(np.sum(inner)) + float(np.sum(other_b * other_a)))


def numerical_rank(b: Matrix, a: Matrix, *, grams: Pair | None = None) -> int:
    """Return the number of singular values of b @ a above 1e-6 of the largest and above the rounding of its terms."""
    gram_b, gram_a = pair_grams(b, a) if grams is None else grams
    core = gram_core(gram_a, gram_b)
    return core_rank(core, np.linalg.eigvalsh(core.squared), (gram_b, gram_a), lambda: (b, a))


def core_rank(core: GramCore, eigenvalues: Matrix, grams: Pair, factors: Callable[[], tuple[Matrix, Matrix]]) -> int:
    """Return the numerical rank of b @ a from the core of its `pair_grams` and the core's ascending eigenvalues."""
    gram_b, gram_a = grams
    squares = eigenvalues[::-1] * core.size_a * core.size_b
    if squares[0] < TRUSTED_SHARE * core.largest * core.size_a * core.size_b:
        squares = core_singular_values(*factors()) ** 2
    rounding = (len(gram_a) * np.finfo(np.float64).eps) ** 2 * float(np.diagonal(gram_b) @ np.diagonal(gram_a))
    return int(np.count_nonzero(squares > max(EXACT**2 * squares[0], rounding)))


def pair_grams(b: Matrix, a: Matrix) -> Pair:
    """Return B^T B and A A^T of the `narrowed` factors."""
    left, right = _narrow(b, a)
    return left.T @ left, right @ right.T


def _narrow(b: Matrix, a: Matrix) -> Pair:
    """Return the `narrowed` factors in float64."""
    b, a = narrowed(b, a)
    return b.astype(np.float64, copy=False), a.astype(np.float64, copy=False)


Part: TypeAlias = tuple[Matrix, Matrix, float]


def is_narrow(parts: Sequence[Part]) -> bool:
    """Whether the stacked factors need no narrowing: the ranks add up to at most the shorter side, or at most 64."""
    rank = sum(len(a) for _, a, _ in parts)
    return inner_size(rank, len(parts[0][0]), parts[0][1].shape[1]) == rank


def sum_grams(parts: Sequence[Part]) -> Pair:
    """Return B^T B and A A^T of the sum's stacked factors; parts are (b_i, a_i, c_i)."""
    n = len(parts)
    loads = {i: lambda b=b, a=a: (b, a) for i, (b, a, _) in enumerate(parts)}
    found = crossed(loads, list(combinations(range(n), 2)) or [(0, 0)])
    weights = _weights(parts)
    sides = (
        np.block([[side[i, j] if (i, j) in side else side[j, i].T for j in range(n)] for i in range(n)])
        for side in (found.b, found.a)
    )
    gram_b, gram_a = sides
    return gram_b * np.outer(weights, weights), gram_a


class Side(NamedTuple):
    """A new factor as it is stored, (k, d), and inner products of its rounding error E.

    `squared` is E E^T (k, k), and `own` is U E^T (k, k) for the factor U before rounding. `crossed` is X E^T (r, k) for
    the stacked factor X (r, d), if it was asked for.
    """

    stored: Matrix
    squared: Floats
    own: Floats
    crossed: Floats | None


class Rounded(NamedTuple):
    """The sum's new factors as they are stored, and the squared Frobenius norm of the sum minus their product."""

    b: Matrix
    a: Matrix
    loss: float


def balancing(columns: Floats, rows: Floats) -> Floats:
    """Return the powers of two by which to scale columns of B, and divide rows of A, to make them about equally long.

    The arguments are their lengths. A power of two loses no digit. It is 1 if a column or its row is zero.
    """
    both = (columns > 0.0) & (rows > 0.0)
    ratio = np.where(both, rows, 1.0) / np.where(both, columns, 1.0)
    return np.asarray(np.exp2(np.round(np.log2(ratio) / 2)))


def balanced_sum(parts: Sequence[Part], grams: Pair, dtype: np.dtype[Any]) -> Rounded:
    """Return the stacked factors rounded to the dtype, with columns of B and rows of A balanced by powers of two."""
    columns, rows = (np.sqrt(np.maximum(np.diagonal(gram), 0.0)) for gram in grams)
    step = balancing(columns, rows)
    b, a = _rounded(parts, step, 1.0 / step, dtype, crosses=False)
    gram_b, gram_a = grams
    turned = gram_b * np.outer(step, step), gram_a / np.outer(step, step)
    return Rounded(b.stored.T, a.stored, max(0.0, _loss((b, a), turned)))


def low_rank_sum(parts: Sequence[Part], grams: Pair, rank: int | None, dtype: np.dtype[Any]) -> Rounded | None:
    """Return the sum's best factors of that rank, rounded to the dtype; if rank is None, of its numerical rank.

    Return None if the stacked factors have at most that many columns, because they hold the sum exactly.
    """
    gram_b, gram_a = grams
    held = len(gram_a)
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
    kept = np.diag(sigma[:rank])  # U^T U and V V^T; S - U V is orthogonal to U F and to E V
    loss = rest + _loss(sides, (kept, kept))
    if b.crossed is not None and a.crossed is not None:  # the inner product of S - U V with E F
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
    """The weight c_i of each column of the stacked B."""
    return np.concatenate([np.full(len(a), c) for _, a, c in parts])


def _rounded(
    parts: Sequence[Part], left: Floats, right: Floats, dtype: np.dtype[Any], *, crosses: bool
) -> tuple[Side, Side]:
    """Return the new factors B left and A^T right of the stacked factors, as rows and rounded to the dtype."""
    weighted = (_weights(parts) * left.T).T
    b, a = [b.T for b, _, _ in parts], [a for _, a, _ in parts]
    return _side(b, weighted, dtype, crosses=crosses), _side(a, right, dtype, crosses=crosses)


def _side(factors: Sequence[Matrix], turn: Floats, dtype: np.dtype[Any], *, crosses: bool) -> Side:
    """Return turn^T X, rounded, for the stacked factor X (r, d), with X's memory order.

    `turn` is (r, k), or a vector (r,) that stands for a diagonal matrix.
    """
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
    """Return the squared Frobenius norm of U V - (U + E) (V + F); `grams` are U^T U and V V^T, both (k, k)."""
    (_, of_e, left, _), (_, of_f, right, _) = sides  # left is U^T E, right is V F^T
    found = (
        float(np.sum(grams[0] * of_f)),
        float(np.sum(grams[1] * of_e)),
        float(np.sum(of_e * of_f)),
        2.0 * float(np.sum(left * right.T)),  # <U F, E V>
        2.0 * float(np.sum(left * of_f)),  # <U F, E F>
        2.0 * float(np.sum(of_e * right)),  # <E V, E F>
    )
    return math.fsum(found) if all(map(math.isfinite, found)) else math.inf
