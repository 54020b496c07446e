"""The measurements on one weight W, its merged counterpart M and the update dW: how much of dW is in M - W.

All arithmetic is that of a merge: in float32, or in float64 if a tensor is stored so, and rounded to the dtypes of a
replay. Matrices are processed in spans of rows that fit a processor's cache, by several threads if asked.

A tensor without an update is compared with its copy. Two tensors count as equal if one is a copy or a cast of the
other. A cast may go through a 16-bit dtype, as when a model was loaded in one dtype and saved in another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from gradience.adapters import is_embedding
from gradience.adapters.layout import Array
from gradience.errors import AdapterError
from gradience.prove.verify_merge.delta import FLOATS, HALVES, UNIT, narrower, rounded, working
from gradience.prove.verify_merge.replays import Case, Missed, TensorRows, missed_by
from gradience.schema.merge import MergeReplay, ModuleVerdict
from gradience.spectral import scratch

_Found: TypeAlias = tuple[list[int], list[float]]

_CAST: Final = 1 << 20  # entries that are cast at a time
_F16_HALF_STEP: Final = 2.0**-25  # half of the distance of float16's least numbers


class Sums(NamedTuple):
    """Sums over all entries of products of e = M - W, d = dW and p, the result of the replay."""

    entries: int = 0
    changed: int = 0
    """The number of entries in which M differs from W in the merged dtype."""
    would_change: int = 0
    """The number of entries in which p differs from W in the merged dtype."""
    ee: float = 0.0
    ed: float = 0.0
    dd: float = 0.0
    pd: float = 0.0
    """The sum of (p - W) d."""
    spread: float = 0.0
    """Sum of (M - p)^2 d^2: the variance of the sum of (M - p) d if the signs of M - p are random."""

    @property
    def coefficient(self) -> float | None:
        """The least-squares coefficient <M - W, dW> / norm(dW)^2; None if dW is zero."""
        return self.ed / self.dd if self.dd > 0.0 or np.isnan(self.dd) else None

    @property
    def expected(self) -> float | None:
        """The least-squares coefficient <p - W, dW> / norm(dW)^2 of the replay; None if dW is zero."""
        return self.pd / self.dd if self.dd > 0.0 or np.isnan(self.dd) else None

    @property
    def residual(self) -> float | None:
        """The relative residual norm(M - W - c dW) / norm(dW), c the coefficient; None if dW is zero."""
        if not self.dd > 0.0:
            return None
        return float(np.sqrt(max(0.0, self.ee - self.ed * self.ed / self.dd) / self.dd))


def measure(case: Case, replay: MergeReplay) -> Sums:
    """Return the sums for one replay; d is dW with a factor of 1, whatever the replay's factor."""
    found = _measured(case, replay, stop=False)
    return found if found is not None else Sums()


def exact(case: Case, replay: MergeReplay) -> Sums | None:
    """Return the sums if the replay can give every entry of M, in some order of adding up products; else None."""
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
    """Return the result of `_span` for each span, up to and including the first None."""
    found: list[_Found | None] = []
    for at in some:
        found.append(_span(case, replay, at, stop=stop))
        if found[-1] is None:
            break
    return found


@np.errstate(over="ignore", invalid="ignore")  # weights may be infinite, or near the end of float32's range
def _span(case: Case, replay: MergeReplay, at: slice, *, stop: bool, quick: bool = True) -> _Found | None:
    """Return (counts, sums) over some rows, in the order of `Sums`; None if `stop` and the replay cannot give M."""
    w, m = case.span(at)
    used, d = case.delta.both(at, replay)
    missed = missed_by(TensorRows(w, m, used), replay, base=case.base, merged=case.merged, quick=quick)
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
    """Return (number of entries that p changes minus number that M changes, (M - p) d)."""
    return int(np.count_nonzero(p != before)) - int(np.count_nonzero(m != before)), (m - p) * d


def _unreachable(case: Case, replay: MergeReplay, at: slice | Array, pair: tuple[Array, Array], missed: Missed) -> int:
    """Return the number of entries of M that the replay cannot give, in any order of adding up products."""
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
    """Return the number of entries of M, in some rows, that the replay cannot give in any order of sums."""
    w, m = case.pair(at)
    missed = missed_by(TensorRows(w, m, case.delta.rows(at, replay)), replay, base=case.base, merged=case.merged)
    return _unreachable(case, replay, at, (w, m), missed)


def _dot(x: Array, y: Array) -> float:
    return float(np.vdot(x, y))


def _predicted(case: Case, replay: MergeReplay, at: Array) -> Array:
    return case.replayed(case.pair(at)[0], case.delta.rows(at, replay), replay)


def distance(case: Case, replay: MergeReplay, at: Array) -> float:
    """Return the sum of |M - p| over some rows, p the result of the replay."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.abs(case.pair(at)[1] - _predicted(case, replay, at)).sum(dtype=np.float64))


def is_weight(case: Case, through: str) -> bool:
    """Return whether M equals W cast to the dtype `through` and then to the merged dtype."""
    order = MergeReplay(weight=through)
    return all(np.array_equal(m, case.replayed(w, None, order)) for w, m in map(case.pair, case.spans()))


def excess(case: Case, replay: MergeReplay, factor: float) -> float:
    """Return the largest relative error of dW that would explain M - (W + factor dW).

    An allowance for the roundings of the sum is subtracted from each entry's error first. It is u |M| for the unit
    roundoff u of the merged dtype, and of the replay's dtype if that differs; u |W| if W itself is rounded; and the
    roundings of float32 arithmetic.
    """
    scaled = MergeReplay(weight=replay.weight, factor=factor)
    through = {replay.weight, case.merged}
    unit = sum(UNIT[dtype] for dtype in through)
    weight = sum(UNIT[dtype] for dtype in through if narrower(dtype, case.base))
    step = _F16_HALF_STEP * len(through) if "F16" in through else 0.0
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
    """Return the largest left / size over positive entries of `left`; 0 if none is, infinity if one is not finite."""
    if not np.isfinite(left).all():
        return float("inf")
    over = left > 0.0
    if not over.any():
        return 0.0
    with np.errstate(divide="ignore"):
        return float(np.max(left[over] / size[over]))


class Copied(NamedTuple):
    """The verdict on a copied tensor, and its reason. The fields are those of `VerifiedModule`."""

    verdict: ModuleVerdict
    reason: str | None = None


def compare_copy(held: Array, w: Array | None, m: Array, dtypes: tuple[str, str | None, str]) -> Copied:
    """Return the verdict on whether the merged model's tensor holds the adapter's values.

    Args:
        held: the adapter's tensor.
        w: the base's tensor, of the same shape; None if the base has none.
        m: the merged model's tensor.
        dtypes: the dtypes of these three, by safetensors' names.
    """
    own, base, merged = dtypes
    if not np.isfinite(m.astype(np.float32)).all():
        return Copied("other", reason="the merged tensor holds NaN or infinite numbers")
    is_held = is_cast(held, m, own, merged)
    is_base = w is not None and base is not None and base in FLOATS and is_cast(w, m, base, merged)
    if is_held:
        return Copied("unresolved", reason="the adapter's values are the base's") if is_base else Copied("exact")
    if is_base:
        return Copied("absent")
    bound = 2.0 * UNIT[merged]
    if all(np.all(np.abs(y - x) <= bound * np.abs(x) + _F16_HALF_STEP) for x, y in _blocks(held, m, own, merged)):
        return Copied("within_rounding")
    return Copied("other", reason=f"norm(M - saved) / norm(saved): {relative_change(held, m, own, merged):.3g}")


def is_cast(x: Array, m: Array, own: str, merged: str) -> bool:
    """Return whether M is X, cast to the merged dtype directly or through a 16-bit dtype."""
    return any(
        all(np.array_equal(y, _cast(part, through, merged)) for part, y in _blocks(x, m, own, merged))
        for through in dict.fromkeys((merged, *HALVES))
    )


def _cast(x: Array, through: str, merged: str) -> Array:
    x = rounded(x, through)
    return rounded(x, merged) if narrower(merged, through) else x


def _blocks(x: Array, m: Array, own: str, merged: str) -> Iterator[tuple[Array, Array]]:
    """Yield both arrays in blocks of entries, in the dtype in which they are compared."""
    kind = working(own, merged)
    x, m = x.reshape(-1), m.reshape(-1)
    for start in range(0, len(x), _CAST):
        yield x[start : start + _CAST].astype(kind), m[start : start + _CAST].astype(kind)


def relative_change(x: Array, m: Array, own: str, merged: str) -> float:
    """Return norm(M - X) / norm(X)."""
    size = change = 0.0
    for before, after in _blocks(x, m, own, merged):
        size += float(np.vdot(before, before))
        change += float(np.vdot(after - before, after - before))
    return math.sqrt(change / size) if size > 0.0 else math.inf


def token_rows(x: Array, rows: Sequence[int] | None, n: int) -> Array:
    """Return the rows of x with the given numbers.

    Raises:
        AdapterError: there are not exactly `n` numbers, or x has too few rows.
    """
    if rows is None or len(rows) != n or (rows and max(rows) >= len(x)):
        raise AdapterError(f"{n} token rows do not fit trainable_token_indices and a tensor of {len(x)} rows")
    return x[list(rows)]


def same_length(held: Array, m: Array, name: str) -> tuple[Array, Array, str | None]:
    """Return both arrays cut to the same number of rows, and a note, if the vocabulary was padded or extended.

    Raises:
        AdapterError: the shapes differ in another way.
    """
    if held.shape == m.shape:
        return held, m, None
    n = min(len(held), len(m)) if held.ndim and m.ndim else 0
    if held.shape[1:] != m.shape[1:] or not is_embedding(name.rpartition(".")[0]) or n == 0:
        raise AdapterError(f"of shape {list(m.shape)}, in the adapter {list(held.shape)}")
    return held[:n], m[:n], f"{max(len(held), len(m)) - n} rows are in one of them only"
