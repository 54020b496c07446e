"""Laws of the verdict: each merge is met as itself, and no other amount of the update passes for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies as st

from gradience.adapters.layout import Module
from gradience.io.safetensors import DTYPES
from gradience.verbs.verify.delta import UNIT, PlainDelta, WholeDelta, rounded
from gradience.verbs.verify.judge import verdict_on
from gradience.verbs.verify.measure import Case

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


def with_merge(case: Case, dtype: str, factor: float = 1.0, times: int = 1) -> Case:
    """Return the case of a merge whose sum was rounded to a dtype, so many times."""
    m = rounded(case.w.astype(np.float32), dtype)
    for _ in range(times):
        m = rounded(m + np.float32(factor) * case.delta.rows(slice(None)), dtype)
    return Case(case.w, m.astype(DTYPES[case.merged]), case.base, case.merged, case.delta)


@given(SEEDS, FLOATS, FLOATS, FLOATS, st.sampled_from([1e-2, 0.1, 1.0]))
def test_every_merge_is_met_as_exact_within_rounding_or_rounded_away(seed, base, during, merged, strength):
    case = case_of(seed, base, merged, strength=strength)
    judged = verdict_on(with_merge(case, during), module_of(1.5, 3))
    met = {"exact"} if during in {merged, "F32"} else {"exact", "within_rounding"}
    assert judged.verdict in met or (judged.verdict == "unresolved" and judged.sums.changed == 0)


@given(SEEDS, FLOATS, FLOATS, st.floats(-3.0, 3.0), st.sampled_from([0.1, 1.0]))
def test_no_other_factor_passes_for_the_update(seed, base, merged, factor, strength):
    """In 480 entries of a 16-bit weight, a factor within 10 % of one may hide in the roundings."""
    if abs(factor - 1.0) < 0.1:
        return
    case = case_of(seed, base, merged, strength=strength)
    judged = verdict_on(with_merge(case, merged, factor), module_of(1.5, 3))
    assert judged.verdict not in {"exact", "within_rounding"}
    if judged.factor is not None:
        assert judged.factor == pytest.approx(factor, abs=0.1)


@given(SEEDS, FLOATS, FLOATS)
def test_a_weight_without_the_update_is_absent(seed, base, merged):
    case = case_of(seed, base, merged, strength=0.1)
    bare = Case(case.w, case.w.astype(np.float32).astype(DTYPES[merged]), base, merged, case.delta)
    assert verdict_on(bare, module_of(1.5, 3)).verdict == "absent"


@given(SEEDS, FLOATS, FLOATS, st.sampled_from(["BF16", "F16"]))
def test_a_product_in_16_bits_added_up_in_another_order_is_within_rounding(seed, base, merged, half):
    case = case_of(seed, base, merged, strength=0.3)
    b, a = (rounded(x.astype(np.float32), half).astype(np.float64) for x in (case.delta._b, case.delta._a))
    update = rounded((1.5 * b @ a).astype(np.float32), half)
    noise = np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], update.shape).astype(np.float32)
    update = rounded(update * (1 + noise * np.float32(UNIT[half])), half)  # some entries one step off
    m = rounded(case.w.astype(np.float32) + update, merged).astype(DTYPES[merged])
    judged = verdict_on(Case(case.w, m, base, merged, case.delta), module_of(1.5, 3))
    assert judged.verdict in {"exact", "within_rounding"}


@given(SEEDS, FLOATS, FLOATS)
def test_the_merge_of_another_adapter_is_other(seed, base, merged):
    case, other = (case_of(s, base, merged, strength=0.5) for s in (seed, seed + 1))
    swapped = Case(case.w, case.m, base, merged, other.delta)
    m = with_merge(swapped, merged).m
    assert verdict_on(Case(case.w, m, base, merged, case.delta), module_of(1.5, 3)).verdict == "other"


def sequential(b, a):
    """One product after the other, each rounded, as without fused multiply-add."""
    total = np.zeros((len(b), a.shape[1]), np.float32)
    for k in range(len(a)):
        total = total + b[:, k, None] * a[k]
    return total


def fused(b, a):
    """From the last product to the first, each rounded once with the sum, as with fused multiply-add."""
    total = np.zeros((len(b), a.shape[1]), np.float32)
    for k in reversed(range(len(a))):
        total = (total.astype(np.float64) + b[:, k, None].astype(np.float64) * a[k]).astype(np.float32)
    return total


def pairwise(b, a):
    """Halves added up on their own, as kernels with several accumulators do."""
    if len(a) == 1:
        return b * a
    half = len(a) // 2
    return pairwise(b[:, :half], a[:half]) + pairwise(b[:, half:], a[half:])


def rounded_once(b, a):
    return (b.astype(np.float64) @ a.astype(np.float64)).astype(np.float32)


ORDERS = st.sampled_from([sequential, fused, pairwise, rounded_once])


class OtherMachine(PlainDelta):
    """An update whose products another machine's BLAS adds up."""

    def __init__(self, delta: PlainDelta, order) -> None:
        super().__init__(delta._b, delta._a, delta.scale)
        self._order = order

    def rows(self, at):
        return self._order(self._b[at], self._a) * self.scale


@given(SEEDS, FLOATS, FLOATS, ORDERS, st.sampled_from([1, 2, 8, 64, 300]), st.booleans())
def test_a_merge_in_any_order_of_sums_is_exact(seed, base, merged, order, r, scales_factor):
    case = case_of(seed, base, merged, strength=0.3, r=r)
    b, a, scale = case.delta._b, case.delta._a, case.delta.scale
    given_delta = PlainDelta(scale * b, a, 1.0) if scales_factor else case.delta  # (s B) A instead of s (B A)
    elsewhere = Case(case.w, case.m, base, merged, OtherMachine(given_delta, order))
    judged = verdict_on(Case(case.w, with_merge(elsewhere, merged).m, base, merged, case.delta), module_of(1.5, r))
    assert judged.verdict == "exact"


@given(SEEDS, FLOATS, ORDERS, st.integers(0, 3), st.sampled_from([0.01, 0.3]))
def test_the_verdict_does_not_depend_on_the_order_in_which_this_machine_sums(seed, dtype, order, off, strength):
    """`off` is how many units in the last place every entry of M is away from a merge."""
    case = case_of(seed, dtype, dtype, strength=strength, r=16)
    m = with_merge(case, dtype).m.astype(np.float32)
    m = (m * np.float32(1.0 + 2 * off * UNIT[dtype])).astype(DTYPES[dtype])
    here, there = (Case(case.w, m, dtype, dtype, d) for d in (case.delta, OtherMachine(case.delta, order)))
    one, two = (verdict_on(each, module_of(1.5, 16)) for each in (here, there))
    assert (one.verdict, one.precision) == (two.verdict, two.precision)


@given(SEEDS, st.sampled_from(["F32", "BF16", "F16"]))
def test_one_entry_beyond_what_any_order_gives_is_not_exact(seed, dtype):
    case = case_of(seed, dtype, dtype, strength=0.05)
    m = with_merge(case, dtype).m
    largest = np.unravel_index(np.argmax(np.abs(m.astype(np.float32))), m.shape)
    m[largest] = np.float32(m[largest]) * np.float32(1.0 + 8 * UNIT[dtype])  # where orders of sums differ by least
    assert verdict_on(Case(case.w, m, dtype, dtype, case.delta), module_of(1.5, 3)).verdict != "exact"


def test_an_update_that_no_machine_computes_to_the_last_bit_is_within_rounding_never_exact():
    """DoRA, PiSSA and their kin: even where M happens to be bit for bit what this machine computes."""
    case = case_of(0, "F32", "F32", strength=0.3)
    dense = case.delta.rows(slice(None))
    judged = [
        verdict_on(
            with_merge(replace(case, delta=WholeDelta(dense, 3, is_known=known)), "F32"),
            module_of(1.5, 3),
        )
        for known in (True, False)
    ]
    assert [one.verdict for one in judged] == ["exact", "within_rounding"]
