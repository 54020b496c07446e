"""One weight, its merged twin and the update between them: what is read off, span by span."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from gradience.adapters.modules import Array
from gradience.schema.verify_merge import MergeReplay
from gradience.verify_merge.delta import Delta
from gradience.verify_merge.dtypes import UNIT, narrower, working
from gradience.verify_merge.replay import replayed

__all__ = ["Case", "Sums", "Workers", "distance", "exact", "excess", "is_weight", "measure"]

Workers: TypeAlias = Callable[..., Iterable[Any]]

_SPAN: Final = 1 << 18  # entries at a time: what a processor's cache holds
_PROBE: Final = 1 << 16  # entries of the rows on which replays are tried
_F16_STEP: Final = 2.0**-25  # half of float16's least step


@dataclass(frozen=True, slots=True)
class Case:
    """W and M as stored, matrices of one shape, with safetensors' names of their dtypes, and dW."""

    w: Array
    m: Array
    base: str
    merged: str
    delta: Delta
    workers: Workers = map
    """How spans are gone through: `map`, or that of a pool of threads."""

    def with_delta(self, delta: Delta) -> Case:
        """Return the same weights with another update."""
        return Case(self.w, self.m, self.base, self.merged, delta, self.workers)

    def spans(self) -> Iterator[slice]:
        """Return slices of rows that cover the matrix."""
        rows = max(1, _SPAN // max(1, self.w.shape[1]))
        return (slice(start, start + rows) for start in range(0, len(self.w), rows))

    def probe(self) -> Array:
        """Return the numbers of rows, evenly spread, that are looked at first."""
        n = min(len(self.w), max(4, _PROBE // max(1, self.w.shape[1])))
        return np.unique(np.linspace(0, len(self.w) - 1, n).astype(np.int64))

    def pair(self, at: slice | Array) -> tuple[Array, Array]:
        """Return rows of W and M in the dtype that is computed in."""
        kind = working(self.base, self.merged)
        return self.w[at].astype(kind, copy=False), self.m[at].astype(kind, copy=False)

    def replayed(self, w: Array, delta: Array | None, replay: MergeReplay) -> Array:
        """Return what a replay gives for rows of W; without delta, W on the same way."""
        return replayed(w, delta, replay, base=self.base, merged=self.merged)


class Sums(NamedTuple):
    """Sums over all entries: e = M - W, d = dW, p = what the replay gives."""

    entries: int = 0
    changed: int = 0
    """Entries in which M is not W in the merged dtype."""
    would_change: int = 0
    """Entries in which p is not."""
    wrong: int = 0
    """Entries in which M is not p."""
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
    """Return the sums if M is bit for bit what the replay gives."""
    return _measured(case, replay, stop=True)


def _measured(case: Case, replay: MergeReplay, *, stop: bool) -> Sums | None:
    case.delta.prepare(replay)
    total, counts = np.zeros(5), np.zeros(3, np.int64)
    for some, sums in case.workers(lambda at: _span(case, replay, at), case.spans()):
        if stop and some[-1]:
            return None
        counts += some
        total += sums
    return Sums(case.w.size, *(int(n) for n in counts), *(float(x) for x in total))


def _span(case: Case, replay: MergeReplay, at: slice) -> tuple[list[int], list[float]]:
    """Return the counts and the sums over some rows, as `Sums` has them."""
    w, m = case.pair(at)
    used = case.delta.rows(at, replay)
    p = case.replayed(w, used, replay)
    wrong = int(np.count_nonzero(m != p))
    shared = (replay.factor, replay.delta, replay.factors, replay.scales_factor) == (1.0, "F32", None, False)
    d = used if shared else case.delta.rows(at, MergeReplay(weight=replay.weight))
    before = case.replayed(w, None, replay)
    counts = [int(np.count_nonzero(m != before)), int(np.count_nonzero(p != before)), wrong]
    return counts, _span_sums(m - w, d, None if wrong == 0 else (p - w, m - p))


def _span_sums(e: Array, d: Array, apart: tuple[Array, Array] | None) -> list[float]:
    """Return ee, ed, dd, pd and the spread; `apart` holds p - W and M - p where M is not p."""
    ed = _dot(e, d)
    if apart is None:
        return [_dot(e, e), ed, _dot(d, d), ed, 0.0]
    realised, wrong = apart
    off = wrong * d
    return [_dot(e, e), ed, _dot(d, d), _dot(realised, d), _dot(off, off)]


def _dot(x: Array, y: Array) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.vdot(x, y))


def distance(case: Case, replay: MergeReplay, at: Array) -> tuple[int, float]:
    """Return in how many entries of some rows M is not what the replay gives, and by how much in sum."""
    w, m = case.pair(at)
    p = case.replayed(w, case.delta.rows(at, replay), replay)
    with np.errstate(invalid="ignore"):
        return int(np.count_nonzero(m != p)), float(np.abs(m - p).sum(dtype=np.float64))


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
