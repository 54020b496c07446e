"""The bounds that a replay is held against: they hold what any order of sums gives, and little more."""

from __future__ import annotations

import math
from itertools import permutations, product
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from tables import every

from gradience.errors import AdapterError
from gradience.prove.verify_merge.delta import PlainDelta, WholeDelta, narrower, rounded, working
from gradience.prove.verify_merge.measure import compare_copy, distance, excess, is_weight, same_length, token_rows
from gradience.prove.verify_merge.replays import Case, Dora, is_merge
from gradience.prove.verify_merge.rows import VerifiedRows, find_place, names_of
from gradience.schema.audit import LeftoverReason
from gradience.schema.merge import MergeReplay

U = 2.0**-24
F32 = MergeReplay(weight="F32")
KINDS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


@every(("dtype", "other"), list(product(KINDS, KINDS)))
def test_a_dtype_is_narrower_if_one_of_the_others_values_changes_in_it(dtype, other):
    kind = np.finfo if other in {"F64", "F32", "F16"} else ml_dtypes.finfo
    info = kind(KINDS[other])
    values = np.array([float(info.max), float(info.smallest_subnormal), 1.0 + float(info.eps)]).astype(KINDS[other])
    with np.errstate(over="ignore"):
        changed = values.astype(KINDS[dtype]).astype(np.float64) != values.astype(np.float64)
    assert narrower(dtype, other) is bool(changed.any())


def test_computing_is_in_float32_unless_a_tensor_is_in_float64():
    assert [working("F32", "BF16"), working("F16"), working("F32", "F64")] == [np.float32, np.float32, np.float64]


@pytest.mark.parametrize("r", [1, 3, 8])
def test_an_entry_of_dw_lies_within_gamma_of_its_sum_whatever_the_order(r):
    rng = np.random.default_rng(r)
    b, a = rng.standard_normal((5, r)).astype(np.float32), rng.standard_normal((r, 4)).astype(np.float32)
    delta = PlainDelta(b, a, 3.0)
    low, high = delta.bounds(slice(0, 5), F32)
    exact, size = b.astype(float) @ a, np.abs(b).astype(float) @ np.abs(a)
    gamma = r * U / (1 - r * U)
    assert np.all(low <= high)
    assert np.all(np.abs(high - 3.0 * (exact + gamma * size)) <= 4 * U * np.abs(3.0 * exact) + 4 * U * size * gamma)
    assert np.all(np.abs(low - 3.0 * (exact - gamma * size)) <= 4 * U * np.abs(3.0 * exact) + 4 * U * size * gamma)
    some = delta.bounds(slice(0, 5), F32, np.array([3, 17]))
    assert np.array_equal(some[0], low.reshape(-1)[[3, 17]])
    if r == 3:
        for order in permutations(range(r)):
            total = np.zeros((5, 4), np.float32)
            for k in order:
                total += b[:, k : k + 1] * a[k]
            assert np.all((low <= total * np.float32(3)) & (total * np.float32(3) <= high))


def test_a_negative_scale_turns_the_bounds_around():
    b, a = np.ones((2, 3), np.float32), np.ones((3, 2), np.float32)
    low, high = PlainDelta(b, a, -2.5).bounds(slice(0, 2), F32)
    assert np.all(low <= high)
    assert low[0, 0] == pytest.approx(-7.5)
    assert PlainDelta(b, a, -2.5).size(slice(0, 1))[0].tolist() == pytest.approx([7.5, 7.5])


def test_a_whole_update_s_size_is_the_root_mean_square_of_its_row():
    delta = WholeDelta(np.array([[3.0, 4.0], [0.0, 2.0]], np.float32), 1, is_known=True)
    assert delta.size(slice(0, 2)).tolist() == [[math.sqrt(12.5)] * 2, [math.sqrt(2)] * 2]
    assert delta.rows(slice(1, 2), MergeReplay(weight="F32", factor=-2.0)).tolist() == [[0.0, -4.0]]
    assert delta.both(slice(1, 2), MergeReplay(weight="F32", factor=3.0))[1].tolist() == [[0.0, 2.0]]


# --- DoRA --------------------------------------------------------------------------------------------------------


def case(w, m, base="F32", merged="F32", delta=None):
    return Case(
        np.asarray(w),
        np.asarray(m),
        base,
        merged,
        delta or PlainDelta(np.zeros((len(w), 1)), np.zeros((1, len(w[0]))), 1.0),
    )


@every("axis", [0, 1])
@every("off", [1.0, 1.0 + 2e-5])
def test_doras_merge_is_by_rows_or_by_columns(axis, off):
    """Magnitudes of outputs lie along rows of W; of an embedding along columns, which makes another merge."""
    rng = np.random.default_rng(0)
    w, b, a = (rng.standard_normal(shape).astype(np.float32) for shape in ((6, 6), (6, 2), (2, 6)))
    magnitude = rng.uniform(1, 2, 6).astype(np.float32)
    v = w + (b @ a) * np.float32(0.5)
    f = magnitude / np.linalg.norm(v, axis=axis)
    merged = (f[:, None] if axis == 1 else f) * v
    merged[2] *= np.float32(off)
    plain = PlainDelta(b, a, 0.5)
    found = [is_merge(case(w, merged, delta=plain), Dora(plain, magnitude, one), F32) for one in (0, 1)]
    assert found == [axis == 0 and off == 1.0, axis == 1 and off == 1.0]


# --- rounding ----------------------------------------------------------------------------------------------------


def test_spans_cover_the_matrix_and_a_probe_is_spread_evenly():
    wide = case(np.zeros((10, 1 << 17)), np.zeros((10, 1 << 17)))
    assert [(at.start, at.stop) for at in wide.spans()] == [(start, start + 2) for start in range(0, 10, 2)]
    assert wide.probe().tolist() == [0, 3, 6, 9]
    narrow = case(np.zeros((100, 1 << 12)), np.zeros((100, 1 << 12)))
    assert (len(narrow.probe()), narrow.probe()[0], narrow.probe()[-1]) == (16, 0, 99)
    assert case(np.zeros((3, 4)), np.zeros((3, 4))).probe().tolist() == [0, 1, 2]


@every(("merged", "times"), [("F32", 1), ("BF16", 1), ("BF16", 2), ("F16", 1)])
@every("factor", [1.0, -2.0])
def test_an_error_of_dw_counts_beyond_what_the_sum_s_own_rounding_may_be(merged, times, factor):
    rng = np.random.default_rng(1)
    b, a = rng.standard_normal((4, 2)).astype(np.float32), rng.standard_normal((2, 3)).astype(np.float32)
    w = rng.standard_normal((4, 3)).astype(np.float32)
    d = factor * (b @ a)
    m = (w + d * 1.5).astype(KINDS[merged])
    found = excess(case(w, m, "F32", merged, PlainDelta(b, a, 1.0)), MergeReplay(weight="F32", times=times), factor)
    half = 0.0 if merged == "F32" else {"BF16": 2.0**-8, "F16": 2.0**-11}[merged]
    unit, step = U + half, 2 * 2.0**-25 * (merged == "F16")
    own = m.astype(np.float32)
    allowed = (1.01 * unit * times + 2 * U) * np.abs(own) + (half + 2 * U) * np.abs(w) + step
    size = np.abs(d) + abs(factor) * np.outer(np.linalg.norm(b, axis=1), np.linalg.norm(a, axis=0))
    assert found == pytest.approx(np.max((np.abs(own - w - d) - allowed) / size), rel=1e-3)
    assert found > 0.01


def test_the_distance_is_a_sum_of_absolute_values_and_a_cast_of_w_is_w():
    b, a = np.array([[1.0], [2.0]], np.float32), np.array([[1.0, -1.0]], np.float32)
    w = np.array([[0.1, 0.2], [0.3, 0.4]], np.float32)
    made = case(w, w, delta=PlainDelta(b, a, 1.0))
    assert distance(made, F32, np.array([0, 1])) == pytest.approx(6.0)
    assert distance(made, F32, np.array([1])) == pytest.approx(4.0)
    assert [is_weight(made, through) for through in ("F32", "BF16")] == [True, False]
    cast = case(w, rounded(w, "BF16"))
    assert [is_weight(cast, through) for through in ("F32", "BF16")] == [False, True]


# --- copies ------------------------------------------------------------------------------------------------------


@every(
    ("off", "verdict"),
    [(0.0, "exact"), (1.9 * U, "within_rounding"), (2.1 * U, "other"), (-1.9 * U, "within_rounding")],
)
def test_a_copy_may_be_two_roundings_off(off, verdict):
    held = np.full((2, 2), 1.0)
    m = held * (1.0 + off) + (2.0**-25 if verdict == "other" else 0.0)
    assert compare_copy(held, None, m, ("F64", None, "F32")).verdict == verdict


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


@every("axis", [0, 1])
@every(("share", "found"), [(0.0, True), (0.9, True), (-0.9, True), (1.2, False)])
def test_a_norm_may_be_off_by_the_roundings_of_its_own_number_of_squares(axis, share, found):
    """V has 4000 rows and 2 columns, or the other way round: gamma of 4000 squares is 2000 times that of 2."""
    rng = np.random.default_rng(0)
    shape = (4000, 2) if axis == 0 else (2, 4000)
    w = rng.uniform(1, 2, shape).astype(np.float32)
    gamma = 4000 * U / (1 - 4000 * U)
    magnitude = np.array([3.0, 5.0], np.float32)
    squares = np.sum(w.astype(float) ** 2, axis=axis) * (1 + share * gamma)
    f = magnitude / np.sqrt(squares)
    merged = ((f if axis == 0 else f[:, None]) * w).astype(np.float32)
    plain = PlainDelta(np.zeros((shape[0], 1)), np.zeros((1, shape[1])), 1.0)
    assert is_merge(case(w, merged, delta=plain), Dora(plain, magnitude, axis), F32) is found


def test_a_merge_through_bfloat16_holds_numbers_of_it_only():
    rng = np.random.default_rng(1)
    w, magnitude = rng.uniform(1, 2, (3, 40)).astype(np.float32), np.array([3.0, 5.0, 7.0], np.float32)
    plain, replay = PlainDelta(np.zeros((3, 1)), np.zeros((1, 40)), 1.0), MergeReplay(weight="BF16")
    stored = rounded(w, "BF16")
    f = (magnitude / np.linalg.norm(stored.astype(float), axis=1)).astype(np.float32)
    merged = rounded(f[:, None] * stored, "BF16")
    assert is_merge(case(w, merged, delta=plain), Dora(plain, magnitude, 1), replay)
    merged[1, 7] = np.nextafter(merged[1, 7], np.float32(9))
    assert not is_merge(case(w, merged, delta=plain), Dora(plain, magnitude, 1), replay)


class Weights:
    """Stands for a model's files."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        self._found = {
            name.replace("__", "."): SimpleNamespace(info=SimpleNamespace(shape=s), name=name)
            for name, s in shapes.items()
        }
        self.files = [SimpleNamespace(tensors=list(self._found))]

    def find(self, name):
        return self._found.get(name)


def test_the_embedding_that_an_output_shares_is_the_one_with_most_rows():
    weights = Weights(
        model__embed_tokens__weight=(9, 2), model__embed_positions__weight=(5, 8), model__q__weight=(50, 50)
    )
    place = find_place(weights, "lm_head.weight")
    assert place is not None
    assert (place.tensors[0].name, place.shared) == ("model__embed_tokens__weight", True)
    assert find_place(weights, "model.k.weight") is None
    assert find_place(weights, "model.q.weight").shared is False


def test_what_is_left_of_an_adapter_is_listed_but_for_what_waits_for_the_base_or_is_of_training():
    causes = [LeftoverReason.SHAPE, LeftoverReason.TRAINING_ONLY, LeftoverReason.SHAPE]
    skipped = [
        SimpleNamespace(name=name, reason=f"why {name}", cause=cause) for name, cause in zip("abc", causes, strict=True)
    ]
    adapter = SimpleNamespace(base_dependent=[SimpleNamespace(name="c")], skipped=skipped)
    found = VerifiedRows.skipped(SimpleNamespace(_adapter=adapter))
    assert [(row.name, row.verdict, row.reason) for row in found] == [("a", "not_compared", "why a")]


@pytest.mark.parametrize(
    ("off", "verdict"),
    [
        (2.0**-23 + 2.0**-25, "within_rounding"),  # two roundings of 1, and half of float16's least step
        (2.0**-23 + 2.0**-25 + 2.0**-40, "other"),
        (-(2.0**-23) - 2.0**-25, "within_rounding"),
    ],
)
def test_a_copy_at_the_bound_itself_is_within_rounding(off, verdict):
    held = np.ones((2, 2))
    assert compare_copy(held, None, held + off, ("F64", None, "F32")).verdict == verdict


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
