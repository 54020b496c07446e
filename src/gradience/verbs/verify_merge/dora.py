"""DoRA's merge replayed: f V with V = W + s B A and f = magnitude / norm(V), one f for each row or column.

The last bits of a norm are the machine's, as those of the products are. A replay is met where each row (or column) has
one f within what any order of adding up squares can give, with which every entry of M is what some order of adding up
products gives. PEFT: `tuners/lora/variants.py`, merge_unsafe, and `tuners/lora/dora.py`, get_weight_norm.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from gradience.adapters.layout import Array
from gradience.schema.merge import MergeReplay
from gradience.verbs.verify_merge.delta import HALVES, UNIT, PlainDelta, narrower, rounded
from gradience.verbs.verify_merge.measure import Case

_LEAST: Final = {"F16": 2.0**-25}  # half of float16's least step; bfloat16 and float32 have far smaller ones
_SMALLEST: Final = 2.0**-149
_WIDER: Final = 1.0 + 1e-6  # of half a step: the bounds are computed in float64, which rounds too
_silent = np.errstate(all="ignore")  # of NaN and infinity no comparison holds; a setting of the thread that calls


class Dora(NamedTuple):
    """s B A in the base's orientation, and the magnitudes: of each row if `axis` is 1, of each column if 0."""

    plain: PlainDelta
    magnitude: Array
    axis: int


class _Bounds(NamedTuple):
    low: Array
    high: Array


def is_merge(case: Case, dora: Dora, replay: MergeReplay) -> bool:
    """Return whether every entry of M is one that the replay gives, in some order of adding up."""
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
    """Return the 16-bit dtype that V, its norm and f are of; None for float32, where one of the terms is."""
    return replay.weight if replay.weight in HALVES and replay.delta == replay.weight else None


def _roundings(case: Case, replay: MergeReplay) -> list[str]:
    """Return the dtypes that f V is rounded to, one after the other."""
    chain = [_half(replay) or "F32"]
    for dtype in (replay.weight, case.merged):
        if narrower(dtype, chain[-1]):
            chain.append(dtype)
    return chain


def _could_hold(case: Case, replay: MergeReplay) -> bool:
    """Return whether M holds only numbers of the dtypes that it is rounded to."""
    chain = _roundings(case, replay)
    if not any(narrower(dtype, case.merged) for dtype in chain):
        return True
    pairs = (case.pair(at)[1] for at in case.spans())
    return all(np.array_equal(rounded(m, dtype), m) for m in pairs for dtype in chain)


def _sums(case: Case, dora: Dora, replay: MergeReplay, at: slice) -> _Bounds:
    """Return the least and the largest V of some rows, over all orders of adding up products."""
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
    """Return the least and the largest f, for sums of squares of so many terms that are added up in float32.

    A sum of n squares is within gamma_n of the exact one, whatever the order (Higham, 3.1); the root and the quotient
    round once more each. In 16 bits norm and f are rounded to nearest, which keeps the order.
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
    """Return for each entry of some rows the least and the largest f with which it is rounded to M."""
    m = case.pair(at)[1].astype(np.float64)
    chain = _roundings(case, replay)
    binade = np.ldexp(0.5, np.frexp(m)[1])
    step = np.maximum(sum(UNIT[dtype] for dtype in chain) * binade, max(_LEAST.get(d, _SMALLEST) for d in chain))
    ends = [(m + off) / v for off in (-step * _WIDER, step * _WIDER) for v in sums]
    low, high = np.min(ends, axis=0), np.max(ends, axis=0)
    # Where V may be zero or of either sign, any f will do that reaches M.
    crosses = (sums.low <= 0.0) & (sums.high >= 0.0)
    reach = np.maximum(np.abs(factors.low), np.abs(factors.high)) * np.maximum(np.abs(sums.low), np.abs(sums.high))
    reached = np.abs(m) <= reach * _WIDER + step
    return _Bounds(
        np.where(crosses, np.where(reached, -np.inf, np.inf), low),
        np.where(crosses, np.where(reached, np.inf, -np.inf), high),
    )
