"""The measurements on one weight W, its merged counterpart M and the update dW: how much of dW is in M - W.

M is held against T(T(W) + dW) cast to its own dtype, where T rounds to float32, or to the dtype that M's numbers are
in: a tensor of float32 whose numbers all are bfloat16's was merged in bfloat16. Matrices are processed in spans of
rows, by several threads.

A float32 product B A depends on the order in which a machine adds up its r terms. The sum in any order is within
gamma = n u / (1 - n u) times sum_k |b_ik a_kj| of the exact one (Higham, Accuracy and Stability of Numerical
Algorithms, 3.1); n is r, and two for the scale, which some programs apply to a factor. Rounding is monotone. So M is
what some order gives if it lies between the roundings of both ends.

A tensor without an update is compared with its copy. Two tensors count as equal if one is a copy or a cast of the
other, which may go through a 16-bit dtype, as when a model was loaded in one dtype and saved in another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial, reduce
from typing import Final, NamedTuple

import numpy as np

from gradience.adapters.layout import Array
from gradience.spectral import in_threads
from gradience.verbs.verify.delta import HALVES, UNIT, Delta, Entries, narrower, rounded, working

_SPAN: Final = 1 << 18  # entries at a time: as many as fit a processor's cache
_PROBE: Final = 1 << 16  # entries of the rows on which factors are tried first
_SCALED: Final = 2  # roundings of a scale and of a factor that it is multiplied to
_RESCALED: Final = 4  # roundings of DoRA's merge in a weight's dtype: sum, norm, quotient, product
F16_HALF_STEP: Final = 2.0**-25  # half of the distance of float16's least numbers
_CAST: Final = 1 << 20  # entries that are cast at a time


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison: W and M as stored, matrices of one shape; their dtypes `base` and `merged`; and dW."""

    w: Array
    m: Array
    base: str
    merged: str
    delta: Delta

    def spans(self) -> Iterator[slice]:
        """Return slices of rows that cover the matrix."""
        rows = max(1, _SPAN // max(1, self.w.shape[1]))
        return (slice(start, start + rows) for start in range(0, len(self.w), rows))

    def probe(self) -> Array:
        """Return the indices of evenly spaced rows, which are compared first."""
        n = min(len(self.w), max(4, _PROBE // max(1, self.w.shape[1])))
        return np.unique(np.linspace(0, len(self.w) - 1, n).astype(np.int64))

    def pair(self, at: slice | Array) -> tuple[Array, Array]:
        """Return rows of W and M in the dtype used for computing."""
        kind = working(self.base, self.merged)
        return self.w[at].astype(kind, copy=False), self.m[at].astype(kind, copy=False)

    def held(self) -> str:
        """Return the dtype that M's numbers are in: the one of fewest bits that has them all."""
        halves = (half for half in HALVES if UNIT[half] > UNIT[self.merged])
        return next((half for half in halves if self._are_all_in(half)), self.merged)

    def _are_all_in(self, dtype: str) -> bool:
        return all(np.array_equal(rounded(m, dtype), m) for _, m in map(self.pair, self.spans()))

    def merge(self, dtype: str, w: Array, delta: Array | None = None) -> Array:
        """Return T(T(W) + dW) for T = `dtype`, cast to the merged dtype; without delta T(W), cast."""
        value = rounded(w, dtype) if narrower(dtype, self.base) else w
        value = value if delta is None else rounded(value + delta, dtype)
        return rounded(value, self.merged) if narrower(self.merged, dtype) else value


class EntrySums(NamedTuple):
    """Sums over all entries of products of e = M - W, d = dW and p, the merge that M is held against."""

    entries: int = 0
    changed: int = 0
    """The number of entries in which M differs from W in the merged dtype."""
    would_change: int = 0
    """The number of entries in which p differs from W in the merged dtype."""
    missed: int = 0
    """The number of entries of M that no order of adding up products gives."""
    ee: float = 0.0
    ed: float = 0.0
    dd: float = 0.0
    pd: float = 0.0
    """The sum of (p - W) d."""
    spread: float = 0.0
    """Sum of (M - p)^2 d^2: the variance of the sum of (M - p) d if the signs of M - p are random."""
    excess: float = 0.0
    """The largest relative error of dW that would explain M - (W + factor dW), beyond the roundings of the sum."""

    def plus(self, other: EntrySums) -> EntrySums:
        """Return the sums over both parts."""
        return EntrySums._make(
            [*(x + y for x, y in zip(self[:-1], other[:-1], strict=True)), max(self.excess, other.excess)]
        )

    @property
    def is_finite(self) -> bool:
        """Whether W, M and dW hold finite numbers only."""
        return math.isfinite(self.ee) and math.isfinite(self.dd)

    @property
    def coefficient(self) -> float | None:
        """The least-squares coefficient <M - W, dW> / norm(dW)^2; None if dW is zero."""
        return self.ed / self.dd if self.dd > 0.0 or np.isnan(self.dd) else None

    @property
    def expected(self) -> float | None:
        """The least-squares coefficient <p - W, dW> / norm(dW)^2 of the merge; None if dW is zero."""
        return self.pd / self.dd if self.dd > 0.0 or np.isnan(self.dd) else None

    @property
    def residual(self) -> float | None:
        """The relative residual norm(M - W - c dW) / norm(dW), c the coefficient; None if dW is zero."""
        if not self.dd > 0.0:
            return None
        return float(np.sqrt(max(0.0, self.ee - self.ed * self.ed / self.dd) / self.dd))


class Merge(NamedTuple):
    """A way to merge: p = T(T(W) + factor dW) for T = `dtype`, cast to the merged dtype."""

    dtype: str
    held: str
    """The dtype that M's numbers are in."""
    factor: float = 1.0


def measure(case: Case, merge: Merge) -> EntrySums:
    """Return the sums for one way to merge; d is dW, whatever the factor."""
    parts = in_threads([partial(_span, case, merge, at) for at in case.spans()])
    return reduce(EntrySums.plus, parts, EntrySums())


@np.errstate(over="ignore", invalid="ignore")  # weights may be infinite, or near the end of float32's range
def _span(case: Case, merge: Merge, at: slice) -> EntrySums:
    w, m = case.pair(at)
    d = case.delta.rows(at)
    e, before = m - w, case.merge(merge.dtype, w)
    p = case.merge(merge.dtype, w, _times(merge.factor, d))
    # In a merge p is M nearly everywhere: sums over p are those over M, corrected where the two differ.
    off, changed, ed = np.flatnonzero(p != m), int(np.count_nonzero(m != before)), _dot(e, d)
    there, made, added, own = (x.reshape(-1)[off] for x in (m, p, d, before))
    wrong = (there - made) * added
    missed, excess = _beyond(case, merge, at, off) if len(off) else (0, 0.0)
    return EntrySums(
        m.size,
        changed,
        changed + int(np.count_nonzero(made != own)) - int(np.count_nonzero(there != own)),
        missed,
        _dot(e, e),
        ed,
        _dot(d, d),
        ed - float(wrong.sum(dtype=np.float64)),
        _dot(wrong, wrong),
        excess,
    )


def _times(factor: float, d: Array) -> Array:
    return d if factor == 1.0 else np.asarray(factor, d.dtype) * d


def _beyond(case: Case, merge: Merge, at: slice, off: Entries) -> tuple[int, float]:
    """Return `missed` and `excess` over the entries `off` of some rows, in which M is not p."""
    w, m = (x.reshape(-1)[off] for x in case.pair(at))
    d, size = (merge.factor * x for x in case.delta.terms(at, off))
    terms = (case.delta.rank + _SCALED) * UNIT["F32"]
    reach = terms / (1.0 - terms) * np.abs(size)
    ends = [case.merge(merge.dtype, w, end.astype(w.dtype)) for end in (d - reach, d + reach)]
    hit = (np.minimum(*ends) <= m) & (m <= np.maximum(*ends))
    left = np.abs(m - w - d) - _allowed(case, merge, w, m)
    return m.size - int(np.count_nonzero(hit)), _largest_ratio(left, np.abs(d) + np.abs(size))


def _allowed(case: Case, merge: Merge, w: Array, m: Array) -> Array:
    """Return what the roundings of the sum may make of each entry.

    M may have gone through the dtype of its numbers and any finer one: u |M| for the unit roundoff u of each, and for
    each merge of several; u |W| where W itself is rounded; and the roundings of float32 arithmetic.
    """
    through = [dtype for dtype in {merge.held, *HALVES} if UNIT[dtype] <= UNIT[merge.held]]
    times = _RESCALED if case.delta.rescales else max(1.0, abs(merge.factor))
    unit = 1.01 * times * sum(UNIT[dtype] for dtype in through)
    weight = sum(UNIT[dtype] for dtype in through if narrower(dtype, case.base))
    step = F16_HALF_STEP * len(HALVES) if "F16" in through else 0.0
    fine = 2.0 * case.delta.slack * UNIT["F32"]
    return np.asarray((unit + fine) * np.abs(m) + (weight + fine) * np.abs(w) + step)


def _largest_ratio(left: Array, size: Array) -> float:
    """Return the largest left / size over positive entries of `left`; 0 if none is, infinity if one is not finite."""
    if not np.isfinite(left).all():
        return float("inf")
    over = left > 0.0
    with np.errstate(divide="ignore"):
        return float(np.max(left[over] / size[over], initial=0.0))


def distance(case: Case, merge: Merge, at: Array) -> float:
    """Return the sum of |M - p| over some rows."""
    w, m = case.pair(at)
    with np.errstate(over="ignore", invalid="ignore"):
        p = case.merge(merge.dtype, w, _times(merge.factor, case.delta.rows(at)))
        return float(np.abs(m - p).sum(dtype=np.float64))


def _dot(x: Array, y: Array) -> float:
    return float(np.vdot(x, y))


def is_cast(x: Array, m: Array, own: str, merged: str) -> bool:
    """Return whether M is X, cast to the merged dtype directly or through a 16-bit dtype."""
    return any(
        all(np.array_equal(after, _cast(before, through, merged)) for before, after in blocks(x, m, own, merged))
        for through in dict.fromkeys((merged, *HALVES))
    )


def _cast(x: Array, through: str, merged: str) -> Array:
    x = rounded(x, through)
    return rounded(x, merged) if narrower(merged, through) else x


def blocks(x: Array, m: Array, own: str, merged: str) -> Iterator[tuple[Array, Array]]:
    """Yield both arrays in blocks of entries, in the dtype in which they are compared."""
    kind = working(own, merged)
    x, m = x.reshape(-1), m.reshape(-1)
    for start in range(0, len(x), _CAST):
        yield x[start : start + _CAST].astype(kind), m[start : start + _CAST].astype(kind)


def relative_change(x: Array, m: Array, own: str, merged: str) -> float:
    """Return norm(M - X) / norm(X)."""
    size = change = 0.0
    for before, after in blocks(x, m, own, merged):
        size += float(np.vdot(before, before))
        change += float(np.vdot(after - before, after - before))
    return math.sqrt(change / size) if size > 0.0 else math.inf
