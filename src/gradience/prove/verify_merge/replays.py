"""Replays: the orders of arithmetic and the dtypes in which programs merge, carried out and described in words.

A `Case` is one comparison of weights. A correct replay usually misses M in few entries, because of the order of sums.
`missed_by` finds them, so that only they need be examined closely.

DoRA's merge is f V with V = W + s B A and f = magnitude / norm(V), one f for each row or column. The last bits of a
norm depend on the machine, as those of the products do. A replay matches if each row (or column) has an f that meets
two conditions. Some order of adding up squares can give f. And with f, some order of adding up products can give every
entry of M. PEFT: `tuners/lora/variants.py`, merge_unsafe, and `tuners/lora/dora.py`, get_weight_norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from gradience.adapters.layout import Array
from gradience.prove.verify_merge.delta import (
    HALVES,
    UNIT,
    Delta,
    Matrix,
    PlainDelta,
    Stored,
    narrower,
    rounded,
    working,
)
from gradience.schema.merge import MergeReplay
from gradience.spectral import scratch

Workers: TypeAlias = Callable[..., Iterable[Any]]

_WORDS: Final = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_SPAN: Final = 1 << 18  # entries at a time: as many as fit a processor's cache
_GROUP: Final = 4  # spans that a thread takes at a time
_PROBE: Final = 1 << 16  # entries of the rows on which replays are tried first
_MANY: Final = 16  # above one entry in 16, computing all entries is as quick as picking some (heuristic)
_HALF_STEP: Final = 0x7FFF  # in units in the last place of float32: just under half a step of bfloat16
_BELOW: Final = 0xFFFF  # the bits of float32 that bfloat16 lacks
_LEAST: Final = {"F16": 2.0**-25}  # half of float16's least step; bfloat16 and float32 have far smaller ones
_SMALLEST: Final = 2.0**-149
_WIDER: Final = 1.0 + 1e-6  # widens half a step, because the bounds are computed in float64, which rounds too
_silent = np.errstate(all="ignore")  # comparisons with NaN are false, as wanted; the setting is per thread


def replays(base: str, merged: str, *, scale: float) -> list[MergeReplay]:
    """Return the replays that could turn a tensor of dtype `base` into one of dtype `merged`, likeliest first."""
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
    """Return the replay with another factor of dW, in the same order of arithmetic."""
    return msgspec.structs.replace(replay, factor=factor, times=times)


def replayed(w: Array, delta: Array | None, replay: MergeReplay, *, base: str, merged: str) -> Array:
    """Return the result of a replayed merge: values of the dtype `merged`, held in the dtype of `w`.

    `w` holds values of the dtype `base`. Without delta, only the roundings are applied to it.
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
    total = " + ".join(["W", *[update] * replay.times])
    words = [f"{f'f ({total})' if replay.rescaled else total} in {_WORDS[replay.weight]}"]
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


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison: W and M as stored, matrices of one shape; their dtypes `base` and `merged`; and dW."""

    w: Matrix
    m: Matrix
    base: str
    merged: str
    delta: Delta
    workers: Workers = map
    """The function that maps over spans: `map`, or the map of a pool of threads."""

    def spans(self) -> Iterator[slice]:
        """Return slices of rows that cover the matrix."""
        rows = max(1, _SPAN // max(1, self.w.shape[1]))
        return (slice(start, start + rows) for start in range(0, len(self.w), rows))

    def groups(self) -> Iterator[list[slice]]:
        """Return the spans in groups of a few consecutive ones."""
        spans = self.spans()
        return iter(lambda: list(islice(spans, _GROUP)), [])

    def probe(self) -> Array:
        """Return the indices of evenly spaced rows, which are compared first."""
        n = min(len(self.w), max(4, _PROBE // max(1, self.w.shape[1])))
        return np.unique(np.linspace(0, len(self.w) - 1, n).astype(np.int64))

    def pair(self, at: slice | Array) -> tuple[Array, Array]:
        """Return rows of W and M in the dtype used for computing."""
        kind = working(self.base, self.merged)
        return self.w[at].astype(kind, copy=False), self.m[at].astype(kind, copy=False)

    def span(self, at: slice) -> tuple[Array, Array]:
        """Return rows of W and M as `pair` does, in arrays that this thread reuses for the next span."""
        kind = working(self.base, self.merged)
        return _converted(self.w, at, "w", kind), _converted(self.m, at, "m", kind)

    def replayed(self, w: Array, delta: Array | None, replay: MergeReplay) -> Array:
        """Return the result of a replay for rows of W; without delta, W rounded as the replay rounds it."""
        return replayed(w, delta, replay, base=self.base, merged=self.merged)


def _converted(x: Matrix, at: slice, name: str, kind: np.dtype[Any]) -> Array:
    rows = x.read(at, scratch.array(f"{name} stored", x.extent(at), x.dtype)) if isinstance(x, Stored) else x[at]
    if rows.dtype == kind:
        return rows
    out = scratch.array(name, rows.shape, kind)
    np.copyto(out, rows)
    return out


class Missed(NamedTuple):
    """The places in the flattened rows where M differs from the replay's p, and p there.

    If they are many, `where` is a slice of all places.
    """

    where: npt.NDArray[np.int64] | slice
    p: Array


class TensorRows(NamedTuple):
    """Rows of W and M in the dtype used for computing, and of dW as the replay adds it."""

    w: Array
    m: Array
    delta: Array


def missed_by(rows: TensorRows, replay: MergeReplay, *, base: str, merged: str, quick: bool = True) -> Missed:
    """Return where the replay does not give M, with sums in the order in which this machine adds them.

    `quick` may treat a NaN in M as equal to p, so the caller has to look for NaN.
    """
    if quick and rows.w.dtype == np.float32 and _is_rounded_once(replay, merged):
        found = _missed_in_bf16(rows, replay, base, merged)
        if found is not None:
            return found
    p = replayed(rows.w, rows.delta, replay, base=base, merged=merged)
    off = p != rows.m
    if np.count_nonzero(off) > p.size // _MANY:
        return Missed(slice(None), p.reshape(-1))
    where = np.flatnonzero(off)
    return Missed(where, p.reshape(-1)[where])


@cache  # it is called for every span
def _is_rounded_once(replay: MergeReplay, merged: str) -> bool:
    """Return whether the sum is rounded exactly once, to bfloat16."""
    return replay.times == 1 and _roundings(replay, merged) == ["BF16"]


def _roundings(replay: MergeReplay, merged: str) -> list[str]:
    """Return the dtypes that a replay's sum is rounded to, in order, beside the dtype it is computed in."""
    first = [replay.weight] if replay.weight in HALVES else []
    return [*first, merged] if narrower(merged, replay.weight) else first


def _missed_in_bf16(rows: TensorRows, replay: MergeReplay, base: str, merged: str) -> Missed | None:
    """Return where the replay does not give M, for a sum rounded once, to bfloat16; None if there are many places.

    A float32 number rounds to M if their bits, as integers, are less than half a step of bfloat16 apart. Ties, zeros
    and changes of sign are decided by rounding these entries.
    """
    w = rounded(rows.w, replay.weight) if narrower(replay.weight, base) else rows.w
    total = np.add(w, rows.delta, out=scratch.array("sum", w.shape, w.dtype))
    bits_of_m = rows.m.view(np.int32)
    apart = np.subtract(total.view(np.int32), bits_of_m, out=total.view(np.int32))
    apart += _HALF_STEP
    off = np.greater(apart.view(np.uint32), 2 * _HALF_STEP, out=scratch.array("off", w.shape, np.bool_))
    if merged != "BF16":
        off |= (bits_of_m & _BELOW) != 0
    where = np.flatnonzero(off)
    if len(where) > w.size // _MANY:
        return None
    w, m, delta = (x.reshape(-1)[where] for x in (w, rows.m, rows.delta))
    p = rounded(w + delta, "BF16")
    wrong = p != m
    return Missed(where[wrong], p[wrong])


class Dora(NamedTuple):
    """s B A in the base's orientation, and DoRA's magnitudes: of rows if `axis` is 1, of columns if it is 0."""

    plain: PlainDelta
    magnitude: Array
    axis: int


class _Bounds(NamedTuple):
    low: Array
    high: Array


def is_merge(case: Case, dora: Dora, replay: MergeReplay) -> bool:
    """Return whether the replay of DoRA's merge can give every entry of M, in some order of adding up."""
    dora.plain.prepare(replay)
    if not _could_hold(case, replay):
        return False
    return _by_rows(case, dora, replay) if dora.axis == 1 else _by_columns(case, dora, replay)


def _by_rows(case: Case, dora: Dora, replay: MergeReplay) -> bool:
    @_silent
    def holds(at: slice) -> bool:
        sums = _sums(case, dora, replay, at)
        low, high = _squares(sums)
        factors = _factors(_Bounds(low.sum(axis=1), high.sum(axis=1)), dora.magnitude[at], low.shape[1], replay)
        allowed = _allowed(case, replay, at, sums, _Bounds(factors.low[:, None], factors.high[:, None]))
        return _overlap(factors, _Bounds(allowed.low.max(axis=1), allowed.high.min(axis=1)))

    return all(case.workers(holds, case.spans()))


@_silent
def _by_columns(case: Case, dora: Dora, replay: MergeReplay) -> bool:
    rows, columns = case.w.shape
    low, high = np.zeros(columns), np.zeros(columns)
    for at in case.spans():
        squares = _squares(_sums(case, dora, replay, at))
        low, high = low + squares.low.sum(axis=0), high + squares.high.sum(axis=0)
    factors = _factors(_Bounds(low, high), dora.magnitude, rows, replay)
    least, most = factors
    for at in case.spans():
        allowed = _allowed(case, replay, at, _sums(case, dora, replay, at), factors)
        least, most = np.maximum(least, allowed.low.max(axis=0)), np.minimum(most, allowed.high.min(axis=0))
        if not _overlap(factors, _Bounds(least, most)):
            return False
    return True


def _overlap(one: _Bounds, other: _Bounds) -> bool:
    return bool(np.all(np.maximum(one.low, other.low) <= np.minimum(one.high, other.high)))


def _half(replay: MergeReplay) -> str | None:
    """Return the 16-bit dtype of V, its norm and f; None for float32, which they have if W or dW is float32."""
    return replay.weight if replay.weight in HALVES and replay.delta == replay.weight else None


def _roundings_held(case: Case, replay: MergeReplay) -> list[str]:
    """Return the dtypes that f V, DoRA's factor times W + dW, goes through: that of the product, then each narrower."""
    chain = [_half(replay) or "F32"]
    for dtype in (replay.weight, case.merged):
        if narrower(dtype, chain[-1]):
            chain.append(dtype)
    return chain


def _could_hold(case: Case, replay: MergeReplay) -> bool:
    """Return whether every dtype that the replay rounds to can represent all numbers in M."""
    chain = _roundings_held(case, replay)
    if not any(narrower(dtype, case.merged) for dtype in chain):
        return True
    pairs = (case.pair(at)[1] for at in case.spans())
    return all(np.array_equal(rounded(m, dtype), m) for m in pairs for dtype in chain)


def _sums(case: Case, dora: Dora, replay: MergeReplay, at: slice) -> _Bounds:
    """Return the least and the largest possible V in some rows, over all orders of adding up products."""
    w, half = case.pair(at)[0], _half(replay)
    w = rounded(w, replay.weight) if narrower(replay.weight, case.base) else w
    ends = (w + end for end in dora.plain.bounds(at, replay))
    low, high = ((rounded(end, half) if half else end).astype(np.float64) for end in ends)
    return _Bounds(low, high)


def _squares(sums: _Bounds) -> _Bounds:
    one, other = sums.low * sums.low, sums.high * sums.high
    crosses = (sums.low <= 0.0) & (sums.high >= 0.0)
    return _Bounds(np.where(crosses, 0.0, np.minimum(one, other)), np.maximum(one, other))


def _factors(squares: _Bounds, magnitude: Array, terms: int, replay: MergeReplay) -> _Bounds:
    """Return the least and the largest possible f, for sums of `terms` squares that are added up in float32.

    A sum of n squares is within a relative gamma_n of the exact one, in any order (Higham, 3.1). The square root and
    the quotient round once each. In 16 bits, norm and f are rounded to nearest, which is monotone.
    """
    unit, half = UNIT["F32"], _half(replay)
    gamma = terms * unit / (1.0 - terms * unit)
    norms = np.sqrt(squares.low * (1.0 - gamma)) * (1.0 - unit), np.sqrt(squares.high * (1.0 + gamma)) * (1.0 + unit)
    m = magnitude
    for dtype in (replay.factors, half):
        m = m if dtype is None else rounded(m.astype(np.float32), dtype)
    ends = []
    for norm, off in zip(norms, (1.0 + unit, 1.0 - unit), strict=True):
        short = norm if half is None else rounded(norm.astype(np.float32), half).astype(np.float64)
        quotient = m.astype(np.float64) / short
        ends.append(quotient * off if half is None else rounded(quotient.astype(np.float32), half).astype(np.float64))
    return _Bounds(np.minimum(*ends), np.maximum(*ends))


def _allowed(case: Case, replay: MergeReplay, at: slice, sums: _Bounds, factors: _Bounds) -> _Bounds:
    """Return for each entry in some rows the least and the largest f for which f V rounds to M."""
    m = case.pair(at)[1].astype(np.float64)
    chain = _roundings_held(case, replay)
    binade = np.ldexp(0.5, np.frexp(m)[1])
    step = np.maximum(sum(UNIT[dtype] for dtype in chain) * binade, max(_LEAST.get(d, _SMALLEST) for d in chain))
    ends = [(m + off) / v for off in (-step * _WIDER, step * _WIDER) for v in sums]
    low, high = np.min(ends, axis=0), np.max(ends, axis=0)
    # If V may be zero or have either sign, M / V gives no bound: any f is allowed if M is within reach, else none.
    crosses = (sums.low <= 0.0) & (sums.high >= 0.0)
    reach = np.maximum(np.abs(factors.low), np.abs(factors.high)) * np.maximum(np.abs(sums.low), np.abs(sums.high))
    reached = np.abs(m) <= reach * _WIDER + step
    return _Bounds(
        np.where(crosses, np.where(reached, -np.inf, np.inf), low),
        np.where(crosses, np.where(reached, np.inf, -np.inf), high),
    )
