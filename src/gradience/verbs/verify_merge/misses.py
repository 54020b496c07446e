"""Where a replay's own arithmetic misses M: few entries, as a rule, so that only these are looked at closely."""

from __future__ import annotations

from functools import cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gradience.adapters.layout import Array
from gradience.schema.merge import MergeReplay
from gradience.verbs.verify_merge.delta import HALVES, narrower, rounded
from gradience.verbs.verify_merge.replays import replayed
from gradience.verbs.verify_merge.scratch import scratch

_MANY: Final = 16  # one entry of so many: from here on the whole is as quick as its entries (heuristic)
_HALF_STEP: Final = 0x7FFF  # in units in the last place of float32: just under half of bfloat16's
_BELOW: Final = 0xFFFF  # the bits that bfloat16 lacks


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


@cache  # asked for every span
def _is_rounded_once(replay: MergeReplay, merged: str) -> bool:
    """Return whether the sum is rounded to bfloat16 and no more."""
    return replay.times == 1 and _roundings(replay, merged) == ["BF16"]


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
