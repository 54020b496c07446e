"""Laws of the verdict: each replay is met as itself, and no other amount of the update passes for it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradience.adapters.layout import Module
from gradience.io.safetensors import DTYPES
from gradience.schema.merge import MergeReplay
from gradience.verbs.verify_merge.delta import UNIT, PlainDelta, narrower, rounded
from gradience.verbs.verify_merge.judge import Judge
from gradience.verbs.verify_merge.measure import Case, replayed, replays, with_factor

FLOATS = st.sampled_from(["F32", "BF16", "F16"])
SEEDS = st.integers(0, 2**32 - 1)


def module_of(scale: float, r: int) -> Module:
    return Module("m", "linear", (0, 0), r, scale * r, scale, 0, lambda: (np.zeros(0), np.zeros(0)))


def case_of(seed: int, base: str, merged: str, *, strength: float, scale: float = 1.5, r: int = 3) -> Case:
    """Return a weight of a dtype with an update of a size beside it, and zeros for the merged one."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((24, 20)).astype(DTYPES[base])
    b, a = (rng.standard_normal(shape, np.float32) for shape in ((24, r), (r, 20)))
    return Case(w, np.zeros(w.shape, DTYPES[merged]), base, merged, PlainDelta(b * np.float32(strength), a, scale))


def with_merge(case: Case, replay: MergeReplay) -> Case:
    w, at = case.w.astype(np.float32), slice(None)
    m = replayed(w, case.delta.rows(at, replay), replay, base=case.base, merged=case.merged)
    return Case(case.w, m.astype(DTYPES[case.merged]), case.base, case.merged, case.delta)


@given(SEEDS, FLOATS, FLOATS, st.sampled_from([1e-2, 0.1, 1.0]), st.data())
def test_every_replay_is_met_bit_for_bit_or_rounded_away(seed, base, merged, strength, data):
    case = case_of(seed, base, merged, strength=strength)
    replay = data.draw(st.sampled_from(replays(base, merged, scale=1.5)))
    judged = Judge().verdict(with_merge(case, replay), module_of(1.5, 3))
    assert judged.verdict == "exact" or (judged.verdict == "unresolved" and judged.sums.changed == 0)


@given(SEEDS, FLOATS, FLOATS, st.floats(-3.0, 3.0), st.sampled_from([0.1, 1.0]))
def test_no_other_factor_passes_for_the_update(seed, base, merged, factor, strength):
    """In 480 entries of a 16-bit weight, a factor within 10 % of one may hide in the roundings."""
    if abs(factor - 1.0) < 0.1:
        return
    case = case_of(seed, base, merged, strength=strength)
    judged = Judge().verdict(with_merge(case, MergeReplay(weight=merged, factor=factor)), module_of(1.5, 3))
    assert judged.verdict not in {"exact", "within_rounding"}
    if judged.factor is not None:
        assert judged.factor == pytest.approx(factor, abs=0.1)


@given(SEEDS, FLOATS, FLOATS)
def test_a_weight_without_the_update_is_absent(seed, base, merged):
    case = case_of(seed, base, merged, strength=0.1)
    bare = Case(case.w, case.w.astype(np.float32).astype(DTYPES[merged]), base, merged, case.delta)
    assert Judge().verdict(bare, module_of(1.5, 3)).verdict == "absent"


@given(SEEDS, FLOATS, FLOATS, st.sampled_from(["BF16", "F16"]))
def test_a_product_in_16_bits_added_up_in_another_order_is_within_rounding(seed, base, merged, half):
    case = case_of(seed, base, merged, strength=0.3)
    b, a = (rounded(x.astype(np.float32), half).astype(np.float64) for x in (case.delta._b, case.delta._a))
    update = rounded((1.5 * b @ a).astype(np.float32), half)
    noise = np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], update.shape).astype(np.float32)
    update = rounded(update * (1 + noise * np.float32(UNIT[half])), half)  # some entries one step off
    m = rounded(case.w.astype(np.float32) + update, merged).astype(DTYPES[merged])
    judged = Judge().verdict(Case(case.w, m, base, merged, case.delta), module_of(1.5, 3))
    assert judged.verdict in {"exact", "within_rounding"}


@given(SEEDS, FLOATS, FLOATS)
def test_the_replay_of_another_adapter_is_other(seed, base, merged):
    case, other = (case_of(s, base, merged, strength=0.5) for s in (seed, seed + 1))
    swapped = Case(case.w, case.m, base, merged, other.delta)
    m = with_merge(swapped, MergeReplay(weight=merged)).m
    assert Judge().verdict(Case(case.w, m, base, merged, case.delta), module_of(1.5, 3)).verdict == "other"


@given(st.sampled_from(list(UNIT)), st.sampled_from(["F32", "BF16", "F16"]), SEEDS)
def test_narrower_says_whether_rounding_can_change_a_value(dtype, other, seed):
    x = np.random.default_rng(seed).standard_normal(4096)
    x[:2048] *= 1e-7  # float16 has too few of the small numbers that bfloat16 has
    x = x.astype(DTYPES[other]).astype(np.float64)
    assert np.array_equal(rounded(x, dtype), x) is not narrower(dtype, other)


@given(SEEDS, FLOATS)
def test_the_factor_of_a_replay_is_told_from_its_repetition(seed, base):
    case = case_of(seed, base, base, strength=0.5)
    twice = with_factor(MergeReplay(weight=base), 1.0, times=2)
    judged = Judge().verdict(with_merge(case, twice), module_of(1.5, 3))
    assert judged.verdict == "scaled"
    assert math.isclose(judged.factor, 2.0)
