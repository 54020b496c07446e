"""A weighted sum of low-rank updates, from their factors as stored: its norm, its rank and its best factors.

S = sum c_i B_i A_i = B A with B = [c_1 B_1, c_2 B_2, ...] and A = [A_1; A_2; ...]. B and A are stacked a block at a
time. The squared norm of S is the sum of the entrywise product of B^T B and A A^T. If the parts almost cancel, that
sum is a difference of large numbers, and a QR of both stacked factors replaces it.

A first pass over the factors gives the Gram matrices, and these the maps L and R to the new factors U = B L and
V = R A. A second pass computes U and V a block at a time, rounds them to the stored dtype, and multiplies the rounding
errors E of U and F of V with the stacked factors. The loss S - (U + E)(V + F) follows from these small products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from typing import Any, Final, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradience.spectral.devices import float64
from gradience.spectral.grams import Floats, Matrix, bucket_of, inner_size, narrowed
from gradience.spectral.stored import rounded
from gradience.spectral.subspace import crossed
from gradience.spectral.update import core_singular_values, decomposed, gram_maps, stacked

EXACT: Final = 1e-6  # relative to sigma_1: below it, a direction is rounding of factors stored in float32
_CANCELLED: Final = 1e-10  # of sum |b_k|^2 |a_k|^2: below it, the sum over Gram matrices has lost half its digits
_NOTHING: Final = 1e-24  # of the same sum: below it, the parts cancel, and only their rounding is left
_BLOCK: Final = 1 << 18  # numbers of the stacked factors at a time
_HALF: Final = 2  # bytes: for a dtype of at most two, float32 products are precise enough

Pair: TypeAlias = tuple[Floats, Floats]
Part: TypeAlias = tuple[Matrix, Matrix, float]


def gram_norm(grams: Pair, factors: Callable[[], tuple[Matrix, Matrix]]) -> float:
    """Return the squared Frobenius norm of b @ a from its `pair_grams`; 0 if only rounding is left, inf on overflow.

    The factors, b (d_out, r) and a (r, d_in), are asked for only if cancellation makes the Gram matrices inaccurate.
    """
    gram_b, gram_a = grams
    # The sum of |b_k|^2 |a_k|^2: the squared norm if the terms were orthogonal.
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
    norm = gram_norm(grams, lambda: (b, a))
    size = float(np.sum(b * b, axis=0) @ np.sum(a * a, axis=1))
    is_nothing = math.isfinite(norm) and math.isfinite(size) and norm <= _NOTHING * size
    return 0.0 if is_nothing else norm


def squared_distance(one: tuple[Matrix, Matrix], two: tuple[Matrix, Matrix], *, grams: Pair | None = None) -> float:
    """Return the squared Frobenius norm of b_1 a_1 - b_2 a_2; its error is about 1e-15 of the first's squared norm.

    `grams` are the `pair_grams` of the first, if they are known.
    """
    (b1, a1), (b2, a2) = (_narrow(*pair) for pair in (one, two))
    gram_b, gram_a = pair_grams(b1, a1) if grams is None else grams
    other_b, other_a = pair_grams(b2, a2)
    inner = (b1.T @ b2) * (a1 @ a2.T)
    # Of equal products the three sums cancel, and rounding may leave less than nothing.
    return max(0.0, float(np.sum(gram_b * gram_a)) - 2.0 * float(np.sum(inner)) + float(np.sum(other_b * other_a)))


def numerical_rank(b: Matrix, a: Matrix, *, grams: Pair | None = None) -> int:
    """Return the number of singular values of b @ a above 1e-6 of the largest and above the rounding of its terms."""
    gram_b, gram_a = pair_grams(b, a) if grams is None else grams
    maps = gram_maps(gram_a, gram_b, len(gram_a))
    return _rank(core_singular_values(b, a) if maps is None else _sigma(maps.left, gram_b), (gram_b, gram_a))


def _sigma(left: Floats, gram_b: Floats) -> Floats:
    """Return the singular values of B A, the squared lengths of the columns of B left for the left map of full rank."""
    return np.asarray(np.sum(left * (gram_b @ left), axis=0))


def _rank(sigma: Floats, grams: Pair) -> int:
    gram_b, gram_a = grams
    rounding = len(gram_a) * np.finfo(np.float64).eps * math.sqrt(np.diagonal(gram_b) @ np.diagonal(gram_a))
    return int(np.count_nonzero(sigma > max(EXACT * sigma[0], rounding)))


def pair_grams(b: Matrix, a: Matrix) -> Pair:
    """Return B^T B and A A^T of the `narrowed` factors."""
    left, right = _narrow(b, a)
    return left.T @ left, right @ right.T


def _narrow(b: Matrix, a: Matrix) -> Pair:
    """Return the `narrowed` factors in float64."""
    b, a = narrowed(b, a)
    return b.astype(np.float64, copy=False), a.astype(np.float64, copy=False)


def is_narrow(parts: Sequence[Part]) -> bool:
    """Whether the stacked factors need no narrowing: the ranks add up to at most the shorter side, or at most 64."""
    rank = sum(len(a) for _, a, _ in parts)
    return inner_size(rank, len(parts[0][0]), parts[0][1].shape[1]) == rank


def sum_grams(parts: Sequence[Part]) -> Pair:
    """Return B^T B and A A^T of a sum c_1 b_1 a_1 + ... with B = [c_1 b_1, ...] and A = [a_1; ...], in blocks of i, j.

    The parts are (b_i, a_i, c_i), of ranks that may differ.
    """
    ranks = [len(a) for _, a, _ in parts]
    loads = {i: lambda b=b, a=a: (b, a) for i, (b, a, _) in enumerate(parts)}
    # A single part is in no pair, and still needs the products with itself.
    pairs = list(combinations(range(len(parts)), 2)) or [(0, 0)]
    products = crossed(loads, pairs, bucket_of(max(ranks)))
    weights = _weights(parts)
    gram_b, gram_a = (
        np.block(
            [
                [(side[i, j] if i <= j else side[j, i].T)[:r, :k] for j, k in enumerate(ranks)]
                for i, r in enumerate(ranks)
            ]
        )
        for side in products
    )
    return gram_b * np.outer(weights, weights), gram_a


def _weights(parts: Sequence[Part]) -> Floats:
    """The weight c_i of each column of the stacked B."""
    return np.concatenate([np.full(len(a), c) for _, a, c in parts])


class RoundedFactors(NamedTuple):
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


def balanced_sum(parts: Sequence[Part], grams: Pair, dtype: np.dtype[Any]) -> RoundedFactors:
    """Return the stacked factors rounded to the dtype, with columns of B and rows of A balanced by powers of two."""
    columns, rows = (np.sqrt(np.maximum(np.diagonal(gram), 0.0)) for gram in grams)
    step = balancing(columns, rows)
    return _stored(parts, grams, (np.diag(step), np.diag(1.0 / step)), dtype)


def low_rank_sum(parts: Sequence[Part], grams: Pair, rank: int | None, dtype: np.dtype[Any]) -> RoundedFactors | None:
    """Return the sum's best factors of that rank, rounded to the dtype; if rank is None, of its numerical rank.

    Return None if the stacked factors have at most that many columns, because they hold the sum exactly.
    """
    gram_b, gram_a = grams
    inner = len(gram_a)
    # At full rank, for the numerical rank follows from the singular values that they give.
    maps = gram_maps(gram_a, gram_b, inner)
    if maps is None:
        return _by_qr(parts, grams, rank, dtype)
    sigma = _sigma(maps.left, gram_b)
    kept = _rank(sigma, grams) if rank is None else rank
    if kept >= inner:
        return None
    return _stored(parts, grams, maps.cut(inner, kept), dtype, rest=float(np.sum(sigma[kept:] ** 2)))


def _by_qr(parts: Sequence[Part], grams: Pair, rank: int | None, dtype: np.dtype[Any]) -> RoundedFactors | None:
    plain = stacked(parts)
    low = decomposed(*plain)
    kept = _rank(low.sigma, grams) if rank is None else rank
    if kept >= len(grams[0]):
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        b, a = (factor.astype(dtype) for factor in low.factors(kept))
        return RoundedFactors(b, a, squared_distance(plain, (b, a), grams=grams))


def _stored(
    parts: Sequence[Part], grams: Pair, maps: tuple[Floats, Floats], dtype: np.dtype[Any], *, rest: float = 0.0
) -> RoundedFactors:
    """Return B left and right A rounded to the dtype, and their loss, `rest` of it the squared norm of S - U V."""
    left, right = maps
    weights = _weights(parts)[:, None]
    with float64():
        b, *of_e = _side([b.T for b, _, _ in parts], weights * left, dtype)
        a, *of_f = _side([a for _, a, _ in parts], right.T, dtype)
        # `_side` stacks the B_i as they are, so B's products with E lack the weights.
        lost = float(loss((grams[0], weights * of_e[0], of_e[1]), (grams[1], *of_f), left, right))
    return RoundedFactors(b.T, a, max(0.0, rest + lost) if math.isfinite(lost) else math.inf)


def _side(factors: Sequence[Matrix], turn: Floats, dtype: np.dtype[Any]) -> tuple[Matrix, Floats, Floats]:
    """Return turn^T X, rounded, for the stacked factor X (r, d), with X's memory order, and `new_factor`'s products."""
    (height, k), length, in_rows = turn.shape, factors[0].shape[1], factors[0].flags.c_contiguous
    kind = np.float32 if dtype.itemsize <= _HALF else np.float64
    width = 1 << (max(1, min(length, _BLOCK // height)) - 1).bit_length()  # so that XLA compiles few programs
    projected = np.empty((k, length), dtype) if in_rows else np.empty((length, k), dtype).T
    crosses, squares = np.zeros((height, k)), np.zeros((k, k))
    for start in range(0, length, width):
        block = np.zeros((height, width), kind) if in_rows else np.zeros((width, height), kind).T
        span = slice(start, min(start + width, length))
        np.concatenate([factor[:, span] for factor in factors], out=block[:, : span.stop - start], casting="unsafe")
        new, cross, square = new_factor(block if in_rows else block.T, turn.astype(kind), dtype.name, in_rows=in_rows)
        projected[:, span] = (np.asarray(new) if in_rows else np.asarray(new).T)[:, : span.stop - start]
        crosses += cross
        squares += square
    return projected, crosses, squares


@partial(jax.jit, static_argnames=("dtype", "in_rows"))
def new_factor(x: Array, turn: Array, dtype: str, *, in_rows: bool) -> tuple[Array, Array, Array]:
    """Return U = turn^T X rounded to the dtype, and for its rounding error E the products X E^T and E E^T.

    X is (r, d) and turn (r, k). Without `in_rows`, X and U are given and returned as their transposes.
    """
    x = x if in_rows else x.T
    # At its default, a GPU multiplies in TF32, and that error would be taken for the rounding's.
    exact = jnp.matmul(turn.T, x, precision="highest")
    new = rounded(exact, dtype)
    lost = new - exact
    cross, square = (jnp.matmul(y, lost.T, precision="highest") for y in (x, lost))
    new = new.astype(dtype)
    return new if in_rows else new.T, cross, square


@jax.jit
def loss(of_b: tuple[Array, ...], of_a: tuple[Array, ...], left: Array, right: Array) -> Array:
    """Return |U V - (U + E)(V + F)|^2 - 2 <S - U V, E F> for U = B left and V = right A, the best factors of S = B A.

    `of_b` are B^T B, B^T E and E^T E, and `of_a` are A A^T, A F^T and F F^T. As S - U V is orthogonal to U F and E V,
    that is |S - (U + E)(V + F)|^2 without |S - U V|^2.
    """
    gram_b, gram_a = (jnp.block([[own, cross], [cross.T, square]]) for own, cross, square in (of_b, of_a))
    r, k = left.shape
    change = jnp.block([[jnp.zeros((r, r)), left], [right, jnp.eye(k)]])  # [B E] change [A; F] = U F + E V + E F
    across = (jnp.eye(r) - left @ right) * (of_b[1] @ of_a[1].T)
    return jnp.sum(change * (gram_b @ change @ gram_a)) - 2.0 * jnp.sum(across)
