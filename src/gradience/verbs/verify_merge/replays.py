"""Replays: the orders of arithmetic and the dtypes in which programs merge, carried out and put into words.

Where a replay's own arithmetic misses M there are few entries, as a rule: `missed_by` finds them, so that only these
are looked at closely.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from gradience.adapters.layout import Array
from gradience.schema.merge import MergeReplay
from gradience.verbs.verify_merge.delta import HALVES, UNIT, narrower, rounded
from gradience.verbs.verify_merge.stored import scratch

_WORDS: Final = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_MANY: Final = 16  # one entry of so many: from here on the whole is as quick as its entries (heuristic)
_HALF_STEP: Final = 0x7FFF  # in units in the last place of float32: just under half of bfloat16's
_BELOW: Final = 0xFFFF  # the bits that bfloat16 lacks


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


class Missed(NamedTuple):
    """Places in the flattened rows where M is not the replay's p, and p there; or all places, where they are many."""

    where: npt.NDArray[np.int64] | slice
    p: Array


class Rows(NamedTuple):
    """Rows of W and M in the dtype that is computed in, and dW as the replay adds it."""

    w: Array
    m: Array
    delta: Array


def missed_by(rows: Rows, replay: MergeReplay, *, base: str, merged: str, quick: bool = True) -> Missed:
    """Return where the replay, with the sums as this machine adds them up, does not give M.

    `quick` takes a NaN in M for one in p: whoever asks has to look for NaN.
    """
    if quick and rows.w.dtype == np.float32 and replay.times == 1 and _roundings(replay, merged) == ["BF16"]:
        found = _missed_in_bf16(rows, replay, base, merged)
        if found is not None:
            return found
    p = replayed(rows.w, rows.delta, replay, base=base, merged=merged)
    off = p != rows.m
    if np.count_nonzero(off) > p.size // _MANY:
        return Missed(slice(None), p.reshape(-1))
    where = np.flatnonzero(off)
    return Missed(where, p.reshape(-1)[where])


def _roundings(replay: MergeReplay, merged: str) -> list[str]:
    """Return the dtypes that the sum of a replay is rounded to, but for the one it is computed in."""
    first = [replay.weight] if replay.weight in HALVES else []
    return [*first, merged] if narrower(merged, replay.weight) else first


def _missed_in_bf16(rows: Rows, replay: MergeReplay, base: str, merged: str) -> Missed | None:
    """Return the same for a sum that is rounded to bfloat16 once; None if they are many.

    A float32 number rounds to M where their bits, as integers, are less than half a step of bfloat16 apart. Ties, zeros
    and changes of sign are left to the rounding itself.
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
