"""One weight, its merged twin and the update between them: what M holds of the update.

All arithmetic is that of a merge: float32, or float64 where a tensor is stored so, rounded to the dtypes of a replay.
Matrices are gone through in spans of rows that a processor's cache holds, by several threads if asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from gradience.adapters.layout import Array
from gradience.schema.merge import MergeReplay
from gradience.spectral import scratch
from gradience.verbs.verify_merge.delta import UNIT, Delta, Matrix, Stored, narrower, working
from gradience.verbs.verify_merge.replays import Missed, Rows, missed_by, replayed

Workers: TypeAlias = Callable[..., Iterable[Any]]
_Found: TypeAlias = tuple[list[int], list[float]]

_SPAN: Final = 1 << 18  # entries at a time: what a processor's cache holds
_GROUP: Final = 4  # spans that a thread takes at a time
_PROBE: Final = 1 << 16  # entries of the rows on which replays are tried
_F16_STEP: Final = 2.0**-25  # half of float16's least step


@dataclass(frozen=True, slots=True)
class Case:
    """W and M as stored, matrices of one shape, with safetensors' names of their dtypes, and dW."""

    w: Matrix
    m: Matrix
    base: str
    merged: str
    delta: Delta
    workers: Workers = map
    """How spans are gone through: `map`, or that of a pool of threads."""

    def spans(self) -> Iterator[slice]:
        """Return slices of rows that cover the matrix."""
        rows = max(1, _SPAN // max(1, self.w.shape[1]))
        return (slice(start, start + rows) for start in range(0, len(self.w), rows))

    def groups(self) -> Iterator[list[slice]]:
        """Return the same, several at a time."""
        spans = self.spans()
        return iter(lambda: list(islice(spans, _GROUP)), [])

    def probe(self) -> Array:
        """Return the indices of rows, evenly spread, that are compared first."""
        n = min(len(self.w), max(4, _PROBE // max(1, self.w.shape[1])))
        return np.unique(np.linspace(0, len(self.w) - 1, n).astype(np.int64))

    def pair(self, at: slice | Array) -> tuple[Array, Array]:
        """Return rows of W and M in the dtype that is computed in."""
        kind = working(self.base, self.merged)
        return self.w[at].astype(kind, copy=False), self.m[at].astype(kind, copy=False)

    def span(self, at: slice) -> tuple[Array, Array]:
        """Return the same in arrays that this thread uses again for the next span."""
        kind = working(self.base, self.merged)
        return _converted(self.w, at, "w", kind), _converted(self.m, at, "m", kind)

    def replayed(self, w: Array, delta: Array | None, replay: MergeReplay) -> Array:
        """Return the result of a replay for rows of W; without delta, that of W alone."""
        return replayed(w, delta, replay, base=self.base, merged=self.merged)


def _converted(x: Matrix, at: slice, name: str, kind: np.dtype[Any]) -> Array:
    rows = x.read(at, scratch.array(f"{name} stored", x.extent(at), x.dtype)) if isinstance(x, Stored) else x[at]
    if rows.dtype == kind:
        return rows
    out = scratch.array(name, rows.shape, kind)
    np.copyto(out, rows)
    return out


class Sums(NamedTuple):
    """Sums over all entries: e = M - W, d = dW, p = what the replay gives."""

    entries: int = 0
    changed: int = 0
    """Entries in which M is not W in the merged dtype."""
    would_change: int = 0
    """Entries in which p is not."""
    ee: float = 0.0
    ed: float = 0.0
    dd: float = 0.0
    pd: float = 0.0
    """Sum of (p - W) d."""
    spread: float = 0.0
    """Sum of (M - p)^2 d^2: the variance of the sum of (M - p) d if the signs of M - p are by chance."""

    @property
    def coefficient(self) -> float | None:
        """Least squares: <M - W, dW> / norm(dW)^2; None where dW is zero."""
        return self.ed / self.dd if self.dd > 0.0 or np.isnan(self.dd) else None

    @property
    def expected(self) -> float | None:
        """The same of the replay."""
        return self.pd / self.dd if self.dd > 0.0 or np.isnan(self.dd) else None

    @property
    def residual(self) -> float | None:
        """norm(M - W - c dW) / norm(dW)."""
        if not self.dd > 0.0:
            return None
        return float(np.sqrt(max(0.0, self.ee - self.ed * self.ed / self.dd) / self.dd))


def measure(case: Case, replay: MergeReplay) -> Sums:
    """Return the sums, against one replay. d is dW of factor 1, whatever the replay's factor."""
    found = _measured(case, replay, stop=False)
    return found if found is not None else Sums()


def exact(case: Case, replay: MergeReplay) -> Sums | None:
    """Return the sums if every entry of M is one that the replay gives, in some order of adding up products."""
    return _measured(case, replay, stop=True)


def _measured(case: Case, replay: MergeReplay, *, stop: bool) -> Sums | None:
    case.delta.prepare(replay)
    total, counts = np.zeros(5), np.zeros(2, np.int64)
    for several in case.workers(lambda some: _group(case, replay, some, stop=stop), case.groups()):
        for found in several:
            if found is None:
                return None
            counts += found[0]
            total += found[1]
    return Sums(case.w.size, *(int(n) for n in counts), *(float(x) for x in total))


def _group(case: Case, replay: MergeReplay, some: Iterable[slice], *, stop: bool) -> list[_Found | None]:
    """Return what `_span` gives for each, until it gives None."""
    found: list[_Found | None] = []
    for at in some:
        found.append(_span(case, replay, at, stop=stop))
        if found[-1] is None:
            break
    return found


@np.errstate(over="ignore", invalid="ignore")  # of weights that are infinite, or at the end of float32's range
def _span(case: Case, replay: MergeReplay, at: slice, *, stop: bool, quick: bool = True) -> _Found | None:
    """Return the counts and the sums over some rows, as `Sums` has them; None if M is not the replay's and `stop`."""
    w, m = case.span(at)
    used, d = case.delta.both(at, replay)
    missed = missed_by(Rows(w, m, used), replay, base=case.base, merged=case.merged, quick=quick)
    e = np.subtract(m, w, out=scratch.array("sum", w.shape, w.dtype))
    ee = _dot(e, e)
    if quick and math.isnan(ee):
        return _span(case, replay, at, stop=stop, quick=False)
    fits = not isinstance(missed.where, slice) and len(missed.where) == 0
    if stop and not fits and _unreachable(case, replay, at, (w, m), missed):
        return None
    before = case.replayed(w, None, replay)
    changed = int(np.count_nonzero(np.not_equal(m, before, out=scratch.array("off", m.shape, np.bool_))))
    ed, dd = _dot(e, d), _dot(d, d)
    if fits:
        return [changed, changed], [ee, ed, dd, ed, 0.0]
    there = [x.reshape(-1)[missed.where] for x in (m, d, before)]
    more, wrong = _differences(missed.p, *there)
    return [changed, changed + more], [ee, ed, dd, ed - float(wrong.sum(dtype=np.float64)), _dot(wrong, wrong)]


def _differences(p: Array, m: Array, d: Array, before: Array) -> tuple[int, Array]:
    """Return how many more entries p changes than M does, and (M - p) d."""
    return int(np.count_nonzero(p != before)) - int(np.count_nonzero(m != before)), (m - p) * d


def _unreachable(case: Case, replay: MergeReplay, at: slice | Array, pair: tuple[Array, Array], missed: Missed) -> int:
    """Return in how many entries M is nothing that the replay gives, in any order of adding up products."""
    where = missed.where
    if not isinstance(where, slice) and len(where) == 0:
        return 0
    entries = None if isinstance(where, slice) else where
    w, m = (x.reshape(-1)[where] for x in pair)
    ends = (x.reshape(-1) for x in case.delta.bounds(at, replay, entries))
    low, high = (case.replayed(w, end, replay) for end in ends)
    hit = (missed.p == m) | ((low <= m) & (m <= high))
    return m.size - int(np.count_nonzero(hit))


@np.errstate(over="ignore", invalid="ignore")
def mismatches(case: Case, replay: MergeReplay, at: Array) -> int:
    """Return in how many entries of some rows M is nothing that the replay gives, in any order of sums."""
    w, m = case.pair(at)
    missed = missed_by(Rows(w, m, case.delta.rows(at, replay)), replay, base=case.base, merged=case.merged)
    return _unreachable(case, replay, at, (w, m), missed)


def _dot(x: Array, y: Array) -> float:
    return float(np.vdot(x, y))


def _predicted(case: Case, replay: MergeReplay, at: Array) -> Array:
    return case.replayed(case.pair(at)[0], case.delta.rows(at, replay), replay)


def distance(case: Case, replay: MergeReplay, at: Array) -> float:
    """Return the sum over some rows of |M - what the replay gives|."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.abs(case.pair(at)[1] - _predicted(case, replay, at)).sum(dtype=np.float64))


def is_weight(case: Case, through: str) -> bool:
    """Return whether M is W, once it was cast to a dtype on its way to the merged one."""
    order = MergeReplay(weight=through)
    return all(np.array_equal(m, case.replayed(w, None, order)) for w, m in map(case.pair, case.spans()))


def excess(case: Case, replay: MergeReplay, factor: float) -> float:
    """Return the largest error of dW, relative to its size, that is left of M - (W + factor dW).

    First what the sum's own roundings may be is taken off each entry: the unit roundoff u of the merged dtype, and of
    the replay's where that is another, times the sum, u W where W itself is rounded, and float32's own arithmetic.
    """
    scaled = MergeReplay(weight=replay.weight, factor=factor)
    through = {replay.weight, case.merged}
    unit = sum(UNIT[dtype] for dtype in through)
    weight = sum(UNIT[dtype] for dtype in through if narrower(dtype, case.base))
    step = _F16_STEP * len(through) if "F16" in through else 0.0
    fine = 2.0 * case.delta.slack * UNIT["F32"]
    worst = 0.0
    for at in case.spans():
        w, m = case.pair(at)
        d = case.delta.rows(at, scaled)
        allowed = (1.01 * unit * replay.times + fine) * np.abs(m) + (weight + fine) * np.abs(w) + step
        size = np.abs(d) + abs(factor) * case.delta.size(at)
        left = np.abs(m - w - d) - allowed
        worst = max(worst, _largest_ratio(left, size))
    return worst


def _largest_ratio(left: Array, size: Array) -> float:
    """Return the largest left / size; where nothing is left 0, infinity or NaN as they come."""
    if not np.isfinite(left).all():
        return float("inf")
    over = left > 0.0
    if not over.any():
        return 0.0
    with np.errstate(divide="ignore"):
        return float(np.max(left[over] / size[over]))
