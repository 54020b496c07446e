"""Replays: the orders of arithmetic and the dtypes in which programs merge, carried out and put into words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from gradience.adapters.layout import Array
from gradience.schema.merge import MergeReplay
from gradience.verbs.verify_merge.delta import HALVES, UNIT, narrower, rounded

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
