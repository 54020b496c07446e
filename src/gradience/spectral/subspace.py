"""Pairs of updates of one shape: inner product, distance, and the angles between their subspaces.

The factors of two updates dW_i = s_i B_i A_i are stacked, B = [B_1 B_2] and A = [A_1; A_2]. Let X^T X = B^T B and
Y^T Y = A A^T. Then the small matrices s_i X_i Y_i^T have the singular values of the dW_i, their inner products, and
the angles between their subspaces. So nothing d x d is formed. X and Y come from the Gram matrices. If the terms of an
update almost cancel, they come from a QR of the stacked factors.

`crossed` computes the Gram matrices of several updates in one pass, on the calling thread. It casts the factors to
float64 in one block: the product of the block with its own transpose holds all products, at half the work of general
products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from gradience.spectral import each_in_threads, scratch
from gradience.spectral.grams import Factors, Floats, Matrix, grams_of, on_cpu
from gradience.spectral.update import LowRank, decomposed

Places: TypeAlias = tuple[int, int]
Load: TypeAlias = Callable[[], tuple[Matrix, Matrix]]

_BLOCK: Final = 1 << 18  # numbers cast to float64 at a time (2 MiB); measured with 2**16 to 2**19
_LEAST_WIDTH: Final = 256  # columns in a block, whatever its height: each product has a fixed cost
_KEPT: Final = 1 << 25  # bytes of factors held at a time; the two of a pair are always held

_HELD: Final = 1 << 23  # numbers of Gram matrices held at a time (64 MiB)
_AHEAD: Final = 2  # rows for each thread: one being computed, one waiting to be taken
# Columns of X and Y are accurate to 1e-8 of their length. If sigma_1^2 is below this share of sum |b_k|^2 |a_k|^2, that
# no longer gives sigma_1 to 1e-6.
_TRUSTED: Final = 1e-4
_FLOOR: Final = 1e-6  # relative to sigma_1: below it, a direction is rounding of factors stored in float32


class Crossed(NamedTuple):
    """B_i^T B_j and A_i A_j^T by (i, j): for each pair, i < j, and for each update of a pair with itself, i = j."""

    b: dict[Places, Floats]
    a: dict[Places, Floats]

    def together(self, pair: Places) -> tuple[Floats, Floats]:
        """The Gram matrices B^T B and A A^T of a pair's stacked factors, B = [B_i B_j] and A = [A_i; A_j]."""
        gram_b, gram_a = (_stacked(side, pair) for side in self)
        return gram_b, gram_a


def _stacked(side: Mapping[Places, Floats], pair: Places) -> Floats:
    i, j = pair
    cross = side[i, j]
    return np.block([[side[i, i], cross], [cross.T, side[j, j]]])


def crossed(loads: Mapping[int, Load], pairs: Sequence[Places]) -> Crossed:
    """The products of the factors of each pair (i, j), i < j.

    Each of `loads` returns (b, a), b (d_out, r_i) and a (r_i, d_in), of any real dtype. Up to 32 MiB of factors are
    held at a time, and at least those of one pair. If all factors do not fit, some are loaded more than once.
    """
    found = Crossed({}, {})
    with np.errstate(all="ignore"):  # entries that are not finite warn here; the caller finds them in the products
        for held, some in _held_pairs(loads, pairs):
            wanted = [*some, *((i, i) for i in held if (i, i) not in found.b)]
            found.b.update(_products({i: b.T for i, (b, _) in held.items()}, wanted))
            found.a.update(_products({i: a for i, (_, a) in held.items()}, wanted))
    return found


def _held_pairs(
    loads: Mapping[int, Load], pairs: Sequence[Places]
) -> Iterator[tuple[dict[int, tuple[Matrix, Matrix]], list[Places]]]:
    """Yield runs of consecutive pairs with the factors of their updates, as many as may be held at a time."""
    held: dict[int, tuple[Matrix, Matrix]] = {}
    some: list[Places] = []
    for pair in pairs:
        if some and not held.keys() >= set(pair) and sum(b.nbytes + a.nbytes for b, a in held.values()) >= _KEPT:
            yield held, some
            held, some = {i: held[i] for i in pair if i in held}, []
        held |= {i: loads[i]() for i in pair if i not in held}
        some.append(pair)
    if some:
        yield held, some


def _products(factors: Mapping[int, Matrix], wanted: Sequence[Places]) -> dict[Places, Floats]:
    """The products X_i X_j^T, in float64, of arrays X_i (r_i, d), for each wanted (i, j)."""
    spans, height = {}, 0
    for i, factor in factors.items():
        spans[i] = slice(height, height + len(factor))
        height += len(factor)
    first = next(iter(factors.values()))
    length = first.shape[1]
    width = min(length, max(_LEAST_WIDTH, _BLOCK // max(height, 1)))
    block = scratch.like(first, "crossed", (height, width), np.float64)
    crosses = sum(i != j for i, j in wanted)
    whole = 2 * crosses == len(factors) * (len(factors) - 1)  # every pair is wanted: one symmetric product has all
    totals = {(0, 0): np.zeros((height, height))} if whole else {}
    for start in range(0, length, width):
        part = block[:, : min(width, length - start)]
        for i, factor in factors.items():
            part[spans[i]] = factor[:, start : start + width]
        if whole:
            totals[0, 0] += part @ part.T
            continue
        for i, j in wanted:
            product = part[spans[i]] @ part[spans[j]].T
            totals[i, j] = totals[i, j] + product if (i, j) in totals else product
    if not whole:
        return totals
    return {(i, j): totals[0, 0][spans[i], spans[j]] for i, j in wanted}


class Stacked(NamedTuple):
    """An update scale * b @ a to be stacked with another; `load` returns (b, a), b (d_out, rank), a (rank, d_in)."""

    load: Callable[[], tuple[Matrix, Matrix]]
    rank: int
    scale: float


class PairGeometry(NamedTuple):
    """The geometry of two updates of one shape; `norms` are Frobenius norms, `distance` is that of dW_2 - dW_1.

    `left[i, j]` is the inner product of the i-th left singular vector of dW_1 and the j-th of dW_2 (output side).
    `right[i, j]` is that of the right singular vectors. Both cover the directions whose singular value is above 1e-6
    of the update's largest.
    """

    finite: bool
    norms: tuple[float, float]
    inner: float
    distance: float
    left: Floats
    right: Floats

    @property
    def cosine(self) -> float | None:
        """<dW_1, dW_2> / (norm dW_1 norm dW_2), Frobenius; None if one of them is zero or not finite."""
        size = self.norms[0] * self.norms[1]
        if not self.finite or size == 0.0:
            return None
        return max(-1.0, min(1.0, self.inner / size))


class RowGeometry(NamedTuple):
    """A row of updates of one shape: B^T B and A A^T of each by its place, and the geometry of each pair."""

    own: dict[int, tuple[Floats, Floats]]
    pairs: dict[Places, PairGeometry]


Row: TypeAlias = Sequence[Stacked | None]


def row_geometries(rows: Sequence[Row], pairs: Sequence[Places]) -> Iterator[RowGeometry]:
    """Yield the geometry of each row, for those of the pairs (i, j), i < j, whose two updates are in the row.

    Several threads call the loads, each load once if the row's factors fit into the memory allowed for them.
    """
    if on_cpu():
        yield from each_in_threads([partial(_row, row, _pairs_in(row, pairs)) for row in rows], ahead=_AHEAD)
        return
    jobs = [(row, pair) for row in rows for pair in _pairs_in(row, pairs)]
    found = _on_device([_both(row, pair) for row, pair in jobs])
    for row in rows:
        geometry = RowGeometry({}, {})
        for i, j in _pairs_in(row, pairs):
            gram_b, gram_a = next(found)
            first = _rank_of(row, i)
            geometry.own.setdefault(i, (gram_b[:first, :first], gram_a[:first, :first]))
            geometry.own.setdefault(j, (gram_b[first:, first:], gram_a[first:, first:]))
            geometry.pairs[i, j] = _geometry(_both(row, (i, j)), gram_b, gram_a)
        yield geometry


def _pairs_in(row: Row, pairs: Sequence[Places]) -> list[Places]:
    return [(i, j) for i, j in pairs if row[i] is not None and row[j] is not None]


def _both(row: Row, pair: Places) -> tuple[Stacked, Stacked]:
    one, two = (row[place] for place in pair)
    if one is None or two is None:
        raise ValueError(f"the row has not both of {pair}")
    return one, two


def _rank_of(row: Row, place: int) -> int:
    return 0 if (one := row[place]) is None else one.rank


def _row(row: Row, pairs: Sequence[Places]) -> RowGeometry:
    """The geometry of one row, computed by BLAS on this thread."""
    found = crossed({place: one.load for place, one in enumerate(row) if one is not None}, pairs)
    own = {i: (found.b[i, i], found.a[i, i]) for i, j in found.b if i == j}
    return RowGeometry(own, {pair: _geometry(_both(row, pair), *found.together(pair)) for pair in pairs})


def _on_device(pairs: Sequence[tuple[Stacked, Stacked]]) -> Iterator[tuple[Floats, Floats]]:
    """Yield B^T B and A A^T of each pair's stacked factors, computed on the accelerator."""
    for some in _portions(pairs):
        for grams in grams_of([_together(one, two) for one, two in some]):
            yield grams.gram_b[: grams.r, : grams.r], grams.gram_a[: grams.r, : grams.r]


def _portions(pairs: Sequence[tuple[Stacked, Stacked]]) -> Iterator[list[tuple[Stacked, Stacked]]]:
    """Yield runs of consecutive pairs whose Gram matrices together fit into the memory allowed for them."""
    portion: list[tuple[Stacked, Stacked]] = []
    held = 0
    for one, two in pairs:
        size = 2 * (2 * (one.rank + two.rank)) ** 2  # padding at most doubles a rank from 4 up
        if portion and held + size > _HELD:
            yield portion
            portion, held = [], 0
        portion.append((one, two))
        held += size
    if portion:
        yield portion


def _together(one: Stacked, two: Stacked) -> Callable[[], Factors]:
    def load() -> Factors:
        (b1, a1), (b2, a2) = one.load(), two.load()
        return Factors(_joined(b1, b2, axis=1), _joined(a1, a2, axis=0), 1.0)

    return load


def _joined(one: Matrix, two: Matrix, *, axis: int) -> Matrix:
    if one.dtype != two.dtype:
        wide: Any = np.float64 if np.float64 in (one.dtype, two.dtype) else np.float32
        one, two = one.astype(wide), two.astype(wide)
    return np.concatenate([one, two], axis=axis)


def _geometry(pair: tuple[Stacked, Stacked], gram_b: Floats, gram_a: Floats) -> PairGeometry:
    """The geometry of a pair from B^T B and A A^T of its stacked factors."""
    if not (np.isfinite(gram_a).all() and np.isfinite(gram_b).all() and all(math.isfinite(p.scale) for p in pair)):
        none = np.zeros((0, 0))
        return PairGeometry(
            finite=False, norms=(math.nan, math.nan), inner=math.nan, distance=math.nan, left=none, right=none
        )
    low = _parts(pair, _root(gram_b), _root(gram_a))
    spans = slice(0, pair[0].rank), slice(pair[0].rank, None)
    if not all(_trusted(part, one, gram_b[s, s], gram_a[s, s]) for part, one, s in zip(low, pair, spans, strict=True)):
        factors = _together(*pair)()
        x = np.asarray(np.linalg.qr(factors.b.astype(np.float64), mode="r"))
        y = np.asarray(np.linalg.qr(factors.a.T.astype(np.float64), mode="r"))
        low = _parts(pair, x, y)
    return _compared(*low)


def _parts(pair: tuple[Stacked, Stacked], x: Floats, y: Floats) -> tuple[LowRank, LowRank]:
    """Return the SVDs of both updates, their vectors as coordinates in the common bases of X and Y.

    X and Y are upper triangular, so the first update has coordinates in its first r basis vectors only.
    """
    one, two = pair
    r = one.rank
    u, sigma, v = np.linalg.svd(x[:r, :r] @ y[:r, :r].T, full_matrices=False)
    first = LowRank(u * np.copysign(1.0, one.scale), sigma * abs(one.scale), v)
    return first, decomposed(x[:, r:], y[:, r:].T, two.scale)


def _root(gram: Floats) -> Floats:
    """Return an upper triangular X with X^T X = gram, up to the rounding errors of gram.

    The columns are scaled to length one first, so that a short one is not lost in the rounding errors of a long one.
    """
    length = np.sqrt(np.maximum(np.diagonal(gram), 0.0))
    safe = np.where(length > 0.0, length, 1.0)
    unit = gram / np.outer(safe, safe)
    np.fill_diagonal(unit, 1.0)
    try:
        return np.asarray(np.linalg.cholesky(unit).T * length)
    except np.linalg.LinAlgError:  # columns are linearly dependent: rounding made gram indefinite
        values, vectors = np.linalg.eigh(unit)
        root = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T * length
        return np.asarray(np.linalg.qr(root, mode="r"))


def _trusted(low: LowRank, one: Stacked, gram_b: Floats, gram_a: Floats) -> bool:
    bound = float(np.diagonal(gram_a) @ np.diagonal(gram_b)) * one.scale**2
    return bound == 0.0 or bool(low.sigma[0] ** 2 >= _TRUSTED * bound)


def _compared(one: LowRank, two: LowRank) -> PairGeometry:
    rows, columns = len(one.u), one.v.shape[1]
    left, right = one.u.T @ two.u[:rows], one.v @ two.v[:, :columns].T
    inner = float(one.sigma @ (left * right) @ two.sigma)
    dense = (two.u * two.sigma) @ two.v
    dense[:rows, :columns] -= (one.u * one.sigma) @ one.v
    k, n = _rank(one), _rank(two)
    return PairGeometry(
        finite=True,
        norms=(float(np.linalg.norm(one.sigma)), float(np.linalg.norm(two.sigma))),
        inner=inner,
        distance=float(np.linalg.norm(dense)),
        left=left[:k, :n],
        right=right[:k, :n],
    )


def _rank(low: LowRank) -> int:
    largest = low.sigma[0] if len(low.sigma) else 0.0
    return int(np.count_nonzero(low.sigma > _FLOOR * largest)) if largest > 0.0 else 0


def overlap(cross: Floats, i: int, j: int) -> float:
    """Return the subspace overlap phi(i, j) = norm(U_i^T V_j)_F^2 / min(i, j), in [0, 1].

    `cross` is U^T V, all inner products. The overlap is 1 if one span contains the other, and 0 if they are orthogonal.
    LoRA, Hu et al. 2021 (arXiv 2106.09685), section 7.2, equation 4.
    """
    fewest = min(i, j)
    return min(1.0, float(np.sum(cross[:i, :j] ** 2)) / fewest) if fewest else 0.0


def chance_overlap(i: int, j: int, d: int) -> float:
    """Return the mean of phi(i, j) for independent, uniformly random subspaces of R^d: max(i, j) / d."""
    return max(i, j) / d if d else 0.0


def chance_overlap_sd(i: int, j: int, d: int) -> float:
    """Return the standard deviation of phi(i, j) for independent, uniformly random subspaces of R^d.

    The variance of norm(U_i^T V_j)_F^2 is 2 i j (d - i) (d - j) / (d^2 (d - 1) (d + 2)). It follows from the second
    moments of a uniformly random projection.
    """
    fewest = min(i, j)
    if d <= 1 or not fewest:
        return 0.0
    variance = 2.0 * i * j * max(d - i, 0) * max(d - j, 0) / (d**2 * (d - 1) * (d + 2))
    return math.sqrt(variance) / fewest


def principal_cosines(cross: Floats) -> Floats:
    """Return the cosines of the principal angles between the spans of U and V, largest first, from U^T V."""
    return np.asarray(np.clip(np.linalg.svd(cross, compute_uv=False), 0.0, 1.0))
