"""The bounds that a merge is held against, the sums and the roundings, worked out on paper."""

from __future__ import annotations

import math
from itertools import product
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from tables import every

from gradience.adapters.layout import Module
from gradience.errors import AdapterError
from gradience.io.safetensors import DTYPES
from gradience.schema.audit import LeftoverReason
from gradience.verbs.verify.delta import PlainDelta, WholeDelta, narrower, rounded
from gradience.verbs.verify.judge import causes_of, copied as compare_copy, verdict_on
from gradience.verbs.verify.measure import Case, Merge, distance, is_cast, measure
from gradience.verbs.verify.rows import left_over, names_of, same_length, token_rows

U = 2.0**-24
F32 = Merge("F32", "F32")
KINDS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


@every(("dtype", "other"), list(product(KINDS, KINDS)))
def test_a_dtype_is_narrower_if_one_of_the_others_values_changes_in_it(dtype, other):
    kind = np.finfo if other in {"F64", "F32", "F16"} else ml_dtypes.finfo
    info = kind(KINDS[other])
    values = np.array([float(info.max), float(info.smallest_subnormal), 1.0 + float(info.eps)]).astype(KINDS[other])
    with np.errstate(over="ignore"):
        changed = values.astype(KINDS[dtype]).astype(np.float64) != values.astype(np.float64)
    assert narrower(dtype, other) is bool(changed.any())


@pytest.mark.parametrize("few", [True, False])
def test_terms_are_the_sums_of_products_in_float64_and_of_their_sizes(few):
    rng = np.random.default_rng(3)
    b, a = rng.standard_normal((5, 3)).astype(np.float32), rng.standard_normal((3, 40)).astype(np.float32)
    entries = np.array([3, 117]) if few else np.arange(0, 200, 3)
    total, size = PlainDelta(b, a, -2.5).terms(slice(0, 5), entries)
    np.testing.assert_allclose(total, (-2.5 * b.astype(float) @ a).reshape(-1)[entries], rtol=1e-13)
    np.testing.assert_allclose(size, (2.5 * np.abs(b).astype(float) @ np.abs(a)).reshape(-1)[entries], rtol=1e-13)


@every(("share", "missed"), [(0.99, 0), (1.05, 1)])
@every("sign", [1.0, -1.0])
def test_an_entry_is_missed_beyond_gamma_of_r_and_two_for_the_scale(share, missed, sign):
    """W is zero and M float64, so M = dW has no rounding of its own; r = 6 with u of float32."""
    rng = np.random.default_rng(4)
    b, a = rng.standard_normal((4, 6)).astype(np.float32), rng.standard_normal((6, 5)).astype(np.float32)
    delta, gamma = PlainDelta(b, a, 3.0), 8 * U / (1 - 8 * U)
    total, size = (x.reshape(4, 5) for x in delta.terms(slice(0, 4), np.arange(20)))
    total[2, 3] += sign * share * gamma * size[2, 3]
    assert measure(case(0 * total, total, "F64", "F64", delta), Merge("F64", "F64")).missed == missed


def test_a_whole_update_s_size_is_the_root_mean_square_of_its_row_unless_it_is_known():
    update = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)
    total, size = WholeDelta(update, 1, is_known=False).terms(slice(0, 2), np.array([1, 2]))
    assert (total.tolist(), size.tolist()) == ([4.0, 0.0], [math.sqrt(12.5), math.sqrt(2)])
    assert WholeDelta(update, 1, is_known=True).terms(slice(0, 2), np.array([1]))[1].tolist() == [0.0]
    assert WholeDelta(update, 1, is_known=True).rows(slice(1, 2)).tolist() == [[0.0, 2.0]]


def case(w, m, base="F32", merged="F32", delta=None):
    return Case(
        np.asarray(w),
        np.asarray(m),
        base,
        merged,
        delta or PlainDelta(np.zeros((len(w), 1)), np.zeros((1, len(w[0]))), 1.0),
    )


# --- rounding ----------------------------------------------------------------------------------------------------


def test_spans_cover_the_matrix_and_a_probe_is_spread_evenly():
    wide = case(np.zeros((10, 1 << 17)), np.zeros((10, 1 << 17)))
    assert [(at.start, at.stop) for at in wide.spans()] == [(start, start + 2) for start in range(0, 10, 2)]
    assert wide.probe().tolist() == [0, 3, 6, 9]
    narrow = case(np.zeros((100, 1 << 12)), np.zeros((100, 1 << 12)))
    assert (len(narrow.probe()), narrow.probe()[0], narrow.probe()[-1]) == (16, 0, 99)
    assert case(np.zeros((3, 4)), np.zeros((3, 4))).probe().tolist() == [0, 1, 2]


@every("merged", ["F32", "BF16", "F16"])
@every("factor", [1.0, -2.0])
def test_an_error_of_dw_counts_beyond_what_the_sum_s_own_rounding_may_be(merged, factor):
    """A factor of n may be n merges, each of which rounds; bfloat16's numbers may have gone through float16 too."""
    rng = np.random.default_rng(1)
    b, a = rng.standard_normal((4, 2)).astype(np.float32), rng.standard_normal((2, 3)).astype(np.float32)
    w = rng.standard_normal((4, 3)).astype(np.float32)
    d = factor * (b @ a)
    m = (w + d * 1.5).astype(KINDS[merged])
    made = case(w, m, "F32", merged, PlainDelta(b, a, 1.0))
    unit = {"F32": U, "BF16": 2.0**-8 + 2.0**-11, "F16": 2.0**-11}[merged]
    rounded_w, step = (0.0, 0.0) if merged == "F32" else (unit, 2 * 2.0**-25)
    own = m.astype(np.float32)
    allowed = (1.01 * unit * abs(factor) + 2 * U) * np.abs(own) + (rounded_w + 2 * U) * np.abs(w) + step
    size = np.abs(d) + abs(factor) * np.abs(b) @ np.abs(a)
    found = measure(made, Merge(merged, merged, factor)).excess
    assert found == pytest.approx(np.max((np.abs(own - w - d) - allowed) / size), rel=1e-3)
    assert found > 0.01


def test_doras_merge_may_round_four_times_in_the_weights_dtype():
    w, d = np.ones((1, 2), np.float32), np.array([[0.5, 0.25]], np.float32)
    m = ((w + d) * (1 + 6 * 2.0**-8)).astype(KINDS["BF16"])
    once, more = (
        measure(
            case(w, m, "BF16", "BF16", WholeDelta(d, 1, is_known=False, rescales=yes)), Merge("BF16", "BF16")
        ).excess
        for yes in (False, True)
    )
    size = d + math.sqrt(np.mean(d**2))
    assert (once - more) == pytest.approx(3 * 1.01 * (2.0**-8 + 2.0**-11) * float(m[0, 0]) / size[0, 0], rel=0.35)


def test_the_distance_is_a_sum_of_absolute_values_and_a_cast_of_w_is_w():
    b, a = np.array([[1.0], [2.0]], np.float32), np.array([[1.0, -1.0]], np.float32)
    w = np.array([[0.1, 0.2], [0.3, 0.4]], np.float32)
    made = case(w, w, delta=PlainDelta(b, a, 1.0))
    assert distance(made, F32, np.array([0, 1])) == pytest.approx(6.0)
    assert distance(made, F32._replace(factor=0.5), np.array([1])) == pytest.approx(2.0)
    assert is_cast(w, w, "F32", "F32")
    assert is_cast(w, rounded(w, "BF16"), "F32", "F32")
    assert not is_cast(w, w + np.float32(1e-6), "F32", "F32")


# --- copies ------------------------------------------------------------------------------------------------------


def test_a_copy_that_is_the_bases_says_nothing():
    one, two = np.full((1, 2), 0.1, np.float32), np.full((1, 2), 0.2, np.float32)
    names = ("F32", "F32", "F32")
    assert compare_copy(one, one, one, names).verdict == "unresolved"
    assert compare_copy(one, two, two, names).verdict == "absent"
    assert compare_copy(one, two, one, names).verdict == "exact"
    changed = compare_copy(one, two, np.full((1, 2), 0.15, np.float32), names)
    assert (changed.verdict, changed.reason) == ("other", "norm(M - saved) / norm(saved): 0.5")
    assert compare_copy(one, two, rounded(one, "F16"), names).verdict == "exact"  # through a 16-bit dtype
    assert "NaN" in (compare_copy(one, two, one * np.nan, names).reason or "")


def test_token_rows_are_those_of_their_numbers():
    x = np.arange(8).reshape(4, 2)
    assert token_rows(x, (3, 0), 2).tolist() == [[6, 7], [0, 1]]
    for rows, n in ((None, 2), ((0,), 2), ((4,), 1)):
        with pytest.raises(AdapterError, match="token rows do not fit") as caught:
            token_rows(x, rows, n)
        assert f"{n} token rows" in str(caught.value)
        assert "4 rows" in str(caught.value)


def test_of_a_padded_vocabulary_the_first_rows_are_compared():
    held, m, note = same_length(np.zeros((5, 2)), np.ones((8, 2)), "model.embed_tokens.weight")
    assert (held.shape, m.shape, note) == ((5, 2), (5, 2), "3 rows are in one of them only")
    held, m, note = same_length(np.zeros((8, 2)), np.ones((5, 2)), "lm_head.embed_tokens.weight")
    assert (len(held), len(m), note) == (5, 5, "3 rows are in one of them only")
    with pytest.raises(AdapterError, match=r"of shape \[1\], in the adapter \[\]"):
        same_length(np.zeros(()), np.ones(1), "embed_tokens.weight")  # a scalar has no rows
    with pytest.raises(AdapterError, match=r"of shape \[0, 2\], in the adapter \[5, 2\]"):
        same_length(np.zeros((5, 2)), np.ones((0, 2)), "embed_tokens.weight")
    for shape, name in (((8, 3), "embed_tokens.weight"), ((8, 2), "m.q_proj.weight")):
        with pytest.raises(AdapterError, match=r"in the adapter \[5, 2\]"):
            same_length(np.zeros((5, 2)), np.ones(shape), name)


# --- what a verdict rests on -------------------------------------------------------------------------------------


def test_what_is_left_of_an_adapter_is_listed_but_for_what_waits_for_the_base_or_is_of_training():
    causes = [LeftoverReason.SHAPE, LeftoverReason.TRAINING_ONLY, LeftoverReason.SHAPE]
    skipped = [
        SimpleNamespace(name=name, reason=f"why {name}", cause=cause) for name, cause in zip("abc", causes, strict=True)
    ]
    adapter = SimpleNamespace(base_dependent=[SimpleNamespace(name="c")], skipped=skipped)
    found = [row.told for row in left_over(adapter)]
    assert [(row.name, row.verdict, row.reason) for row in found] == [("a", "not_compared", "why a")]


@pytest.mark.parametrize(
    ("off", "verdict"),
    [
        (0.0, "exact"),
        (2.0**-23 + 2.0**-25, "within_rounding"),  # two roundings of 1, and half of float16's least step
        (2.0**-23 + 2.0**-25 + 2.0**-40, "other"),
        (-(2.0**-23) - 2.0**-25, "within_rounding"),
    ],
)
def test_a_copy_at_the_bound_itself_is_within_rounding(off, verdict):
    held = np.ones((2, 2))
    assert compare_copy(held, None, held + off, ("F64", "", "F32")).verdict == verdict


@every(
    ("replicated", "expert", "base_name", "names"),
    [
        (False, None, "m.0.q.weight", ("m.0.q.weight", "m.0.q.weight")),
        (True, None, "m.0.q.weight", ("m.0.q.weight", "m.1.q.weight")),  # the layer that it repeats, and its own
        (True, None, "m.0.q.in_proj_weight", ("m.0.q.in_proj_weight", "m.1.q.in_proj_weight")),
        (True, 2, "m.0.experts.w", ("m.0.experts.w", "m.0.experts.w")),
        (False, None, None, ("m.1.q:one.weight", "m.1.q:one.weight")),
    ],
)
def test_a_replicated_layer_has_a_name_in_either_model(replicated, expert, base_name, names):
    one = SimpleNamespace(name="m.1.q:one", base_name=base_name, expert=expert)
    adapter = SimpleNamespace(config=SimpleNamespace(layer_replication=[(0, 1)] if replicated else None))
    assert names_of(one, adapter) == names


# --- verdicts ----------------------------------------------------------------------------------------------------


def module(scale=2.0, r=4, *, rslora=False):
    load = lambda: (np.zeros(0), np.zeros(0))  # noqa: E731
    return Module("m", "linear", (0, 0), r, scale * r, scale, 0, load, rslora=rslora)


@every(("factor", "found"), [(2.0, True), (2.039, True), (2.045, False), (1.97, True), (1.95, False), (3.0, False)])
def test_a_factor_within_two_per_cent_has_the_mistake_s_cause(factor, found):
    assert (causes_of(module(scale=1.0, r=1), factor) is not None) is found


def drawn(w, m, *, scale=1.0, seed=0, r=2, base="F32", merged="F32"):
    rng = np.random.default_rng(seed)
    b, a = (rng.standard_normal(shape).astype(np.float32) for shape in ((len(w), r), (r, w.shape[1])))
    made = Case(w, m, base, merged, PlainDelta(b, a, scale))
    return made, (scale * b.astype(np.float64) @ a)


def test_the_sums_are_those_of_dense_float64():
    rng = np.random.default_rng(1)
    w = rng.standard_normal((12, 10)).astype(np.float32)
    other = rng.standard_normal((12, 10)).astype(np.float32)
    made, d = drawn(w, w + other)
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
    assert drawn(w, m, base=base, merged=stored)[0].held() == held


def cast(x):
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(KINDS["BF16"]).astype(np.float32)


def test_rounding_to_bfloat16_is_that_of_ml_dtypes_for_every_upper_half_and_around_each_tie():
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    bits = np.concatenate([upper + low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    x = bits.view(np.float32)
    for some in (x, x[np.isfinite(x)]):
        np.testing.assert_array_equal(rounded(some, "BF16"), cast(some))


@pytest.mark.parametrize("both", [False, True], ids=["in M", "in W and M"])
def test_nan_is_never_exact_in_bfloat16(both):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((8, 9)).astype(KINDS["BF16"])
    delta = PlainDelta(rng.standard_normal((8, 2), np.float32), rng.standard_normal((2, 9), np.float32), 1.0)
    if both:
        w[3, 4] = np.nan
    m = (w.astype(np.float32) + delta.rows(slice(None))).astype(KINDS["BF16"])
    m[3, 4] = np.nan
    judged = verdict_on(Case(w, m, "BF16", "BF16", delta), module(1.0, 2))
    assert judged.verdict == "other"
    assert "NaN" in judged.reason
