"""Two updates of one shape side by side: inner product, distance, and the angles between their subspaces.

Both are stacked, dW_1 = s_1 B_1 A_1 with B = [B_1 B_2] and A = [A_1; A_2], and their long axes are summed away
in one pass (`grams_of`). With X^T X = B^T B and Y^T Y = A A^T, the r x r matrices s_i X_i Y_i^T have the singular
values of the dW_i, their inner products and the angles between their subspaces: nothing d x d is formed. Where the
factors of an update all but cancel, X and Y come from a QR of the stacked factors instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from gradience.spectral.grams import Factors, Grams, grams_of
from gradience.spectral.reduced import LowRank, decomposed

Floats: TypeAlias = npt.NDArray[np.float64]
Matrix: TypeAlias = npt.NDArray[Any]

_HELD: Final = 1 << 23  # numbers of Gram matrices held at a time (64 MiB)
# sigma_1^2 below this share of sum |b_k|^2 |a_k|^2: columns are good to 1e-8 of their length, sigma_1 no more to 1e-6.
_TRUSTED: Final = 1e-4
_FLOOR: Final = 1e-6  # of sigma_1: a direction below it is rounding, for factors stored in float32


class Stacked(NamedTuple):
    """An update that will be stacked on another: `load` returns (b, a), b (d_out, rank), a (rank, d_in)."""

    load: Callable[[], tuple[Matrix, Matrix]]
    rank: int
    scale: float


class PairGeometry(NamedTuple):
    """How two updates of one shape lie to each other; norms are Frobenius norms, `distance` that of dW_2 - dW_1.

    `left[i, j]` is the inner product of their i-th and j-th left singular vectors (of the output side), `right` the
    same of the right ones; both only over directions above 1e-6 of the largest singular value.
    """

    finite: bool
    norms: tuple[float, float]
    inner: float
    distance: float
    left: Floats
    right: Floats

    @property
    def cosine(self) -> float | None:
        """<dW_1, dW_2> / (norm dW_1 norm dW_2), Frobenius; None where one is zero or not finite."""
        size = self.norms[0] * self.norms[1]
        if not self.finite or size == 0.0:
            return None
        return max(-1.0, min(1.0, self.inner / size))


def pair_geometries(pairs: Sequence[tuple[Stacked, Stacked]]) -> Iterator[PairGeometry]:
    """Yield the geometry of each pair, in order; loads are called from several threads, a few pairs at a time."""
    for some in _portions(pairs):
        grams = grams_of([_together(one, two) for one, two in some])
        for pair, gram in zip(some, grams, strict=True):
            yield _geometry(pair, gram)


def _portions(pairs: Sequence[tuple[Stacked, Stacked]]) -> Iterator[list[tuple[Stacked, Stacked]]]:
    """Yield consecutive pairs whose Gram matrices fit the memory that is allowed them."""
    portion: list[tuple[Stacked, Stacked]] = []
    held = 0
    for one, two in pairs:
        size = 2 * (2 * (one.rank + two.rank)) ** 2  # ranks are padded to at most twice
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


def _geometry(pair: tuple[Stacked, Stacked], grams: Grams) -> PairGeometry:
    r = grams.r
    gram_b, gram_a = grams.gram_b[:r, :r], grams.gram_a[:r, :r]
    if not (np.isfinite(gram_a).all() and np.isfinite(gram_b).all() and all(math.isfinite(p.scale) for p in pair)):
        none = np.zeros((0, 0))
        return PairGeometry(
            finite=False, norms=(math.nan, math.nan), inner=math.nan, distance=math.nan, left=none, right=none
        )
    x, y = _root(gram_b), _root(gram_a)
    low = _parts(pair, x, y)
    if not all(
        _trusted(part, one, gram_b[s, s], gram_a[s, s]) for part, one, s in zip(low, pair, _spans(pair), strict=True)
    ):
        factors = _together(*pair)()
        x = np.asarray(np.linalg.qr(factors.b.astype(np.float64), mode="r"))
        y = np.asarray(np.linalg.qr(factors.a.T.astype(np.float64), mode="r"))
        low = _parts(pair, x, y)
    return _compared(low)


def _spans(pair: tuple[Stacked, Stacked]) -> tuple[slice, slice]:
    first = pair[0].rank
    return slice(0, first), slice(first, first + pair[1].rank)


def _parts(pair: tuple[Stacked, Stacked], x: Floats, y: Floats) -> tuple[LowRank, LowRank]:
    one, two = (decomposed(x[:, s], y[:, s].T, p.scale) for p, s in zip(pair, _spans(pair), strict=True))
    return one, two


def _root(gram: Floats) -> Floats:
    """Return X with X^T X = gram; columns are brought to length one first: none drowns in another's rounding."""
    length = np.sqrt(np.maximum(np.diagonal(gram), 0.0))
    safe = np.where(length > 0.0, length, 1.0)
    values, vectors = np.linalg.eigh(gram / np.outer(safe, safe))
    return np.asarray(np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T * length)


def _trusted(low: LowRank, one: Stacked, gram_b: Floats, gram_a: Floats) -> bool:
    bound = float(np.diagonal(gram_a) @ np.diagonal(gram_b)) * one.scale**2
    return bound == 0.0 or bool(low.sigma[0] ** 2 >= _TRUSTED * bound)


def _compared(low: tuple[LowRank, LowRank]) -> PairGeometry:
    one, two = low
    left, right = one.u.T @ two.u, one.v @ two.v.T
    inner = float(one.sigma @ (left * right) @ two.sigma)
    dense = (two.u * two.sigma) @ two.v - (one.u * one.sigma) @ one.v
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
    """Return phi(i, j) = norm(U_i^T V_j)_F^2 / min(i, j) from all inner products U^T V, in [0, 1].

    1 where one span holds the other, 0 where they are orthogonal. LoRA, Hu et al. 2021 (arXiv 2106.09685),
    section 7.2, equation 4.
    """
    fewest = min(i, j)
    return min(1.0, float(np.sum(cross[:i, :j] ** 2)) / fewest) if fewest else 0.0


def chance_overlap(i: int, j: int, d: int) -> float:
    """Return the mean of phi(i, j) for independent, uniformly random subspaces of R^d: max(i, j) / d."""
    return max(i, j) / d if d else 0.0


def chance_overlap_sd(i: int, j: int, d: int) -> float:
    """Return the standard deviation of phi(i, j) for such subspaces.

    The variance of norm(U_i^T V_j)_F^2 is 2 i j (d - i) (d - j) / (d^2 (d - 1) (d + 2)): second moments of a
    uniformly random projection.
    """
    fewest = min(i, j)
    if d <= 1 or not fewest:
        return 0.0
    variance = 2.0 * i * j * max(d - i, 0) * max(d - j, 0) / (d**2 * (d - 1) * (d + 2))
    return math.sqrt(variance) / fewest


def principal_cosines(cross: Floats) -> Floats:
    """Return the cosines of the principal angles between two spans, largest first, from U^T V."""
    if 0 in cross.shape:
        return np.zeros(0)
    return np.asarray(np.clip(np.linalg.svd(cross, compute_uv=False), 0.0, 1.0))
