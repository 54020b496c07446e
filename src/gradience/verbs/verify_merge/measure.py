"""One weight, its merged twin and the update between them: replays of a merge, and what M holds of the update.

All arithmetic is that of a merge: float32, or float64 where a tensor is stored so, rounded to the dtypes of a replay.
Matrices are gone through in spans of rows that a processor's cache holds, by several threads if asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
import numpy as np

from gradience.adapters.layout import Array
from gradience.schema.merge import MergeReplay
from gradience.verbs.verify_merge.delta import HALVES, UNIT, Delta, narrower, rounded, working

_WORDS: Final = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def replays(base: str, merged: str, *, scale: float) -> list[MergeReplay]:
    """Return the ways to merge that could have made a tensor of one dtype out of another's, likeliest first."""
    return list(dict.fromkeys(_replays(base, merged, scale)))


def _replays(base: str, merged: str, scale: float) -> Iterator[MergeReplay]:
    computed = "F64" if "F64" in {base, merged} else "F32"
    halves = sorted(HALVES, key=lambda dtype: dtype not in {base, merged})
    weights = [base, computed, merged, *halves]
    for weight in weights:
        yield MergeReplay(weight=weight)
        if weight in HALVES:
            yield MergeReplay(weight=weight, delta=weight)
    for weight in weights:
        for half in halves:
            yield MergeReplay(weight=weight, delta=half, factors=half)
            yield MergeReplay(weight=weight, delta=half, factors=half, rounds_product=True)
        if scale != 1.0:
            yield MergeReplay(weight=weight, scales_factor=True)
            if weight in HALVES:
                yield MergeReplay(weight=weight, delta=weight, scales_factor=True)


def with_factor(replay: MergeReplay, factor: float, *, times: int = 1) -> MergeReplay:
    """Return the same order of arithmetic for another factor of dW."""
    return msgspec.structs.replace(replay, factor=factor, times=times)


def replayed(w: Array, delta: Array | None, replay: MergeReplay, *, base: str, merged: str) -> Array:
    """Return the result of a merge, cast to the merged dtype, in the dtype of `w`; without delta the weight alone.

    `w` holds values of the dtype `base`.
    """
    value, held = w, base
    if narrower(replay.weight, base):
        value, held = rounded(w, replay.weight), replay.weight
    if delta is not None:
        for _ in range(replay.times):
            value, held = rounded(value + delta, replay.weight), replay.weight
    return rounded(value, merged) if narrower(merged, held) else value


def in_words(replay: MergeReplay, merged: str) -> str:
    """Return a replay as a formula and its dtypes.

    >>> in_words(MergeReplay(weight="BF16", delta="BF16"), "BF16")
    'W + dW in bfloat16, dW rounded to bfloat16'
    """
    update = "dW" if replay.factor == 1.0 else f"{replay.factor:g} dW"
    words = [" + ".join(["W", *[update] * replay.times]) + f" in {_WORDS[replay.weight]}"]
    if replay.delta in HALVES:
        words.append(f"dW rounded to {_WORDS[replay.delta]}{' before and after scaling' * replay.rounds_product}")
    if replay.factors is not None:
        words.append(f"factors in {_WORDS[replay.factors]}")
    if replay.scales_factor:
        words.append("(s B) A")
    if replay.without_base_change:
        words.append("dW = s B A alone")
    if UNIT[merged] != UNIT[replay.weight]:
        words.append(f"saved as {_WORDS[merged]}")
    return ", ".join(words)


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
        """Return the indices of rows, evenly spread, that are compared first."""
        n = min(len(self.w), max(4, _PROBE // max(1, self.w.shape[1])))
        return np.unique(np.linspace(0, len(self.w) - 1, n).astype(np.int64))

    def pair(self, at: slice | Array) -> tuple[Array, Array]:
        """Return rows of W and M in the dtype that is computed in."""
        kind = working(self.base, self.merged)
        return self.w[at].astype(kind, copy=False), self.m[at].astype(kind, copy=False)

    def replayed(self, w: Array, delta: Array | None, replay: MergeReplay) -> Array:
        """Return the result of a replay for rows of W; without delta, that of W alone."""
        return replayed(w, delta, replay, base=self.base, merged=self.merged)


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
    for found in case.workers(lambda at: _span(case, replay, at, stop=stop), case.spans()):
        if found is None:
            return None
        counts += found[0]
        total += found[1]
    return Sums(case.w.size, *(int(n) for n in counts), *(float(x) for x in total))


@np.errstate(over="ignore", invalid="ignore")  # of weights that are infinite, or at the end of float32's range
def _span(case: Case, replay: MergeReplay, at: slice, *, stop: bool) -> tuple[list[int], list[float]] | None:
    """Return the counts and the sums over some rows, as `Sums` has them; None if M is not the replay's and `stop`."""
    w, m = case.pair(at)
    used = case.delta.rows(at, replay)
    p = case.replayed(w, used, replay)
    if stop and _mismatches(case, replay, at, p):
        return None
    shared = (replay.factor, replay.delta, replay.factors, replay.scales_factor) == (1.0, "F32", None, False)
    d = used if shared else case.delta.rows(at, MergeReplay(weight=replay.weight))
    before = case.replayed(w, None, replay)
    counts = [int(np.count_nonzero(m != before)), int(np.count_nonzero(p != before))]
    return counts, _span_sums(m - w, d, None if np.array_equal(m, p) else (p - w, m - p))


def _mismatches(case: Case, replay: MergeReplay, at: slice | Array, p: Array) -> int:
    """Return in how many entries of some rows M is nothing that the replay gives, in any order of adding up products.

    `p` is what this machine's own order gives.
    """
    w, m = case.pair(at)
    if np.array_equal(m, p):
        return 0
    low, high = (case.replayed(w, delta, replay) for delta in case.delta.bounds(at, replay))
    return m.size - int(np.count_nonzero((low <= m) & (m <= high)))


@np.errstate(over="ignore", invalid="ignore")  # of weights at the end of float32's range
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


def mismatches(case: Case, replay: MergeReplay, at: Array) -> int:
    """Return in how many entries of some rows M is not what the replay gives."""
    return _mismatches(case, replay, at, _predicted(case, replay, at))


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
