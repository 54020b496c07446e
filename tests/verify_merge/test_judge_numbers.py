"""The numbers that a verdict on a merge rests on: factors of mistakes, evidence, and the sums by their formulas."""

from __future__ import annotations

import numpy as np
import pytest
from tables import every

from gradience.adapters.layout import Module
from gradience.io.safetensors import DTYPES
from gradience.prove.verify_merge.delta import PlainDelta
from gradience.prove.verify_merge.judge import causes_of, verdict_on
from gradience.prove.verify_merge.measure import Case, Merge, measure


def module(scale=2.0, r=4, *, rslora=False):
    load = lambda: (np.zeros(0), np.zeros(0))  # noqa: E731
    return Module("m", "linear", (0, 0), r, scale * r, scale, 0, load, rslora=rslora)


@every(("factor", "found"), [(2.0, True), (2.039, True), (2.045, False), (1.97, True), (1.95, False), (3.0, False)])
def test_a_factor_within_two_per_cent_has_the_mistake_s_cause(factor, found):
    assert (causes_of(module(scale=1.0, r=1), factor) is not None) is found


def case(w, m, *, scale=1.0, seed=0, r=2, base="F32", merged="F32"):
    rng = np.random.default_rng(seed)
    b, a = (rng.standard_normal(shape).astype(np.float32) for shape in ((len(w), r), (r, w.shape[1])))
    made = Case(w, m, base, merged, PlainDelta(b, a, scale))
    return made, (scale * b.astype(np.float64) @ a)


def test_the_sums_are_those_of_dense_float64():
    rng = np.random.default_rng(1)
    w = rng.standard_normal((12, 10)).astype(np.float32)
    other = rng.standard_normal((12, 10)).astype(np.float32)
    made, d = case(w, w + other)
    sums = measure(made, Merge("F32", "F32"))
    e = (w + other).astype(np.float64) - w
    assert sums.entries == sums.changed == sums.would_change == 120
    assert sums.ee == pytest.approx(np.sum(e * e), rel=1e-5)
    assert sums.ed == pytest.approx(np.sum(e * d), rel=1e-4)
    assert sums.dd == pytest.approx(np.sum(d * d), rel=1e-5)
    assert sums.pd == pytest.approx(np.sum(d * d), rel=1e-4)
    assert sums.spread == pytest.approx(np.sum(((e - d) * d) ** 2), rel=1e-4)


@pytest.mark.parametrize(("entries", "verdict"), [(35, "unresolved"), (36, "absent")])
def test_thirty_six_entries_that_a_merge_would_change_are_evidence(entries, verdict):
    """The update reaches so many entries of a weight in bfloat16 and is rounded away in all others."""
    w = np.full((1, 400), 4096.0, np.float32)
    w[0, :entries] = 0.01
    b, a = np.full((1, 1), 0.05, np.float32), np.full((1, 400), 0.05, np.float32)
    a[0, entries:] = 1.0
    made = Case(w.astype(DTYPES["BF16"]), w.astype(DTYPES["BF16"]), "BF16", "BF16", PlainDelta(b, a, 1.0))
    assert verdict_on(made, module(1.0, 1)).verdict == verdict


@every(
    ("base", "through", "stored", "held"),
    [("F32", "F32", "F32", "F32"), ("BF16", "F32", "F32", "F32"), ("F32", "BF16", "F32", "BF16"),
     ("F32", "F16", "F32", "F16"), ("F32", "BF16", "F16", "BF16"), ("F16", "F16", "F16", "F16")],
)  # fmt: skip
def test_the_dtype_of_a_merge_is_that_of_its_numbers(base, through, stored, held):
    w = np.random.default_rng(0).standard_normal((9, 9)).astype(DTYPES[base])
    m = (w.astype(np.float32) * 1.01).astype(DTYPES[through]).astype(DTYPES[stored])
    assert case(w, m, base=base, merged=stored)[0].held() == held
