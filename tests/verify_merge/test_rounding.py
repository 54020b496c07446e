"""Rounding to bfloat16 by integers, and what is no number."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from gradience.adapters.layout import Module
from gradience.prove.verify_merge.delta import PlainDelta, rounded
from gradience.prove.verify_merge.judge import verdict_on
from gradience.prove.verify_merge.measure import Case

BF16 = ml_dtypes.bfloat16


def cast(x):
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(BF16).astype(np.float32)


def test_rounding_to_bfloat16_is_that_of_ml_dtypes_for_every_upper_half_and_around_each_tie():
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    bits = np.concatenate([upper + low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    x = bits.view(np.float32)
    for some in (x, x[np.isfinite(x)]):
        np.testing.assert_array_equal(rounded(some, "BF16"), cast(some))


@pytest.mark.parametrize("both", [False, True], ids=["in M", "in W and M"])
def test_nan_is_never_exact_in_bfloat16(both):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((8, 9)).astype(BF16)
    delta = PlainDelta(rng.standard_normal((8, 2), np.float32), rng.standard_normal((2, 9), np.float32), 1.0)
    if both:
        w[3, 4] = np.nan
    m = (w.astype(np.float32) + delta.rows(slice(None))).astype(BF16)
    m[3, 4] = np.nan
    module = Module("m", "linear", (8, 9), 2, 2.0, 1.0, 0, lambda: (delta._b, delta._a))
    judged = verdict_on(Case(w, m, "BF16", "BF16", delta), module)
    assert judged.verdict == "other"
    assert "NaN" in judged.reason
