"""The quick search for entries that a replay misses finds what rounding every entry finds."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st

from gradience.adapters.layout import Module
from gradience.prove.verify_merge import measure
from gradience.prove.verify_merge.delta import PlainDelta, rounded
from gradience.prove.verify_merge.judge import Judge
from gradience.prove.verify_merge.replays import Case, TensorRows, missed_by
from gradience.schema.merge import MergeReplay

BF16 = ml_dtypes.bfloat16
SEEDS = st.integers(0, 2**32 - 1)


def cast(x):
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(BF16).astype(np.float32)


def test_rounding_to_bfloat16_is_that_of_ml_dtypes_for_every_upper_half_and_around_each_tie():
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    bits = np.concatenate([upper + low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    x = bits.view(np.float32)
    for some in (x, x[np.isfinite(x)]):
        np.testing.assert_array_equal(rounded(some, "BF16"), cast(some))


def pair(seed, base):
    """Return W, and dW with entries that make ties, zeros of either sign, overflow and changes of sign."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((40, 50)).astype(np.float32)
    w = cast(w) if base == "BF16" else w
    d = (rng.standard_normal(w.shape) * 10.0 ** rng.integers(-6, 1, w.shape)).astype(np.float32)
    tie = rng.random(w.shape) < 0.2
    d[tie] = (np.abs(w) * 2.0**-8 * rng.choice([-1, 1, 3], w.shape))[tie]  # half a step, or near it
    d[0], d[1] = -w[0], -2 * w[1]
    w[2], d[2] = np.float32(3.3e38), np.float32(3e37)
    w[3], d[3] = np.float32(np.inf), 0.0
    return w, d


@given(SEEDS, st.sampled_from(["F32", "BF16"]), st.sampled_from([("BF16", "BF16"), ("F32", "BF16"), ("BF16", "F32")]))
def test_the_quick_search_misses_what_rounding_every_entry_misses(seed, base, through):
    weight, merged = through
    w, d = pair(seed, base)
    with np.errstate(over="ignore", invalid="ignore"):
        m = cast((cast(w) if weight == "BF16" else w) + d)
        rng = np.random.default_rng(seed)
        off = rng.choice(m.size, 40, replace=False)
        bits = m.view(np.int32).reshape(-1)
        bits[off] += (rng.choice([-1, 1], 40) << 16).astype(np.int32)  # one step of bfloat16
        m[0, ::7] = -m[0, ::7]  # the other zero is the same number
        if merged == "F32":
            bits[off[:5]] += 1  # no number of bfloat16
        quick, full = (
            missed_by(TensorRows(w, m, d), MergeReplay(weight=weight), base=base, merged=merged, quick=q)
            for q in (True, False)
        )
    np.testing.assert_array_equal(quick.where, full.where)
    np.testing.assert_array_equal(quick.p, full.p)
    assert 30 <= len(quick.where) <= 60


def test_where_most_entries_are_missed_all_are_given():
    w, d = pair(0, "BF16")
    missed = missed_by(TensorRows(w[4:], w[4:] + 1, d[4:]), MergeReplay(weight="BF16"), base="BF16", merged="BF16")
    assert missed.where == slice(None)
    np.testing.assert_array_equal(missed.p, cast(w[4:] + d[4:]).reshape(-1))


@pytest.mark.parametrize("both", [False, True], ids=["in M", "in W and M"])
def test_nan_is_never_exact_in_bfloat16(both):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((8, 9)).astype(BF16)
    delta = PlainDelta(rng.standard_normal((8, 2), np.float32), rng.standard_normal((2, 9), np.float32), 1.0)
    if both:
        w[3, 4] = np.nan
    m = (w.astype(np.float32) + delta.rows(slice(None), MergeReplay(weight="BF16"))).astype(BF16)
    m[3, 4] = np.nan
    module = Module("m", "linear", (8, 9), 2, 2.0, 1.0, 0, lambda: (delta._b, delta._a))
    judged = Judge().verdict(Case(w, m, "BF16", "BF16", delta), module)
    assert judged.verdict == "other"
    assert "NaN" in judged.reason


def test_what_was_merged_twice_is_rounded_twice():
    w, d = np.ones((4, 8), np.float32), np.zeros((4, 8), np.float32)
    d[1, 2] = 0.75 * 2.0**-7  # rounds up to a step of bfloat16
    m = w.copy()
    m[1, 2] += 2.0**-6
    found = [
        missed_by(TensorRows(w, m, d), MergeReplay(weight="BF16", times=times), base="BF16", merged="BF16").where
        for times in (1, 2)
    ]
    assert [where.tolist() for where in found] == [[10], []]


def test_a_thread_leaves_the_spans_behind_the_first_that_is_no_merge(monkeypatch):
    seen = []

    def span(_case, _replay, at, *, stop):
        seen.append(at.start)
        return None if at.start == 1 and stop else ([0, 0], [0.0] * 5)

    monkeypatch.setattr(measure, "_span", span)
    some = [slice(start, start + 1) for start in range(4)]
    assert measure._group(None, None, some, stop=True)[-1] is None
    assert seen == [0, 1]
    assert len(measure._group(None, None, some, stop=False)) == 4
