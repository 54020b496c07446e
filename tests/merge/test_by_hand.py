"""Adapters small enough to merge by hand: reports, errors and refusals, number by number and word by word."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hand_made import PREFIX, adapter, config_of, diagonal as along, tensors_of
from tables import every

from gradience import AdapterError, merge_adapters, merge_check


def written(folder):
    """The dense update of each module, at the config's scale of 1."""
    tensors = tensors_of(folder)
    names = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    return {name: tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"] for name in names}


# --- the report of a merge ---------------------------------------------------------------------------------------


def test_what_a_cut_leaves_out_and_how_far_it_is_from_the_sum(tmp_path):
    one = adapter(tmp_path / "a", {"q": along(4.0, 2.0), "v": along(1.0)}, base_model_name_or_path="m")
    two = adapter(tmp_path / "b", {"q": along(2.0, start=2)}, lora_alpha=2, base_model_name_or_path="m")
    seen = []
    report = merge_adapters(
        [one, two], tmp_path / "out", method="svd", rank=1, weights=[1.0, 0.5], progress=lambda *at: seen.append(at)
    )
    # q is diag(4, 2, 2) and keeps 4; v, of rank 1 where the config says 2, is 2 and is kept whole
    assert seen == [(1, 2, "q"), (2, 2, "v")]
    q, v = report.modules
    assert (q.name, q.kind, q.ranks, q.rank) == ("q", "linear", [2, 1], 1)
    assert (v.name, v.ranks, v.rank) == ("v", [1, 0], 1)
    assert q.relative_error == pytest.approx(math.sqrt(8 / 24), rel=1e-6)
    assert q.distance_from_sum == pytest.approx(math.sqrt(8 / 24), rel=1e-6)
    assert v.relative_error == pytest.approx(0.0, abs=1e-6)
    assert report.relative_error == report.distance_from_sum == pytest.approx(math.sqrt(8 / 28), rel=1e-6)
    assert (report.r, report.lora_alpha, report.params) == (1, 1.0, 2 * 11)
    assert (report.weights, report.method, report.rank, report.density, report.seed) == (
        [1.0, 0.5],
        "svd",
        1,
        None,
        None,
    )
    assert (report.largest_dense_bytes, report.dtype, report.out) == (0, "F32", str(tmp_path / "out"))
    assert [(item.module, item.adapters) for item in report.only_in] == [("v", ["a"])]
    assert [(side.name, side.modules, side.rank, side.scaling) for side in report.adapters] == [
        ("a", 2, [1, 2], [1.0, 2.0]),
        ("b", 1, [1, 1], [2.0, 2.0]),
    ]
    assert (report.carried, report.dropped, report.notes, report.heads_from) == ([], [], [], None)
    np.testing.assert_allclose(written(tmp_path / "out")["q"], np.diag([4.0, 0, 0, 0, 0, 0])[:, :5], atol=1e-6)


def test_linear_gives_all_modules_one_rank_as_far_as_their_factors_go(tmp_path):
    one = adapter(tmp_path / "a", {"q": along(4.0, 2.0, 1.0), "k": along(1.0), "v": along(1.0, 1.0)})
    two = adapter(tmp_path / "b", {"q": along(4.0, 2.0, 1.0), "k": along(1.0, start=1), "v": along(1.0)})
    report = merge_adapters([one, two], tmp_path / "out", weights=[1.0, 1.0])
    assert {row.name: row.rank for row in report.modules} == {"k": 2, "q": 3, "v": 3}
    assert (report.r, report.rank_pattern, report.alpha_pattern) == (3, {"k": 2}, {"k": 2})
    cat = merge_adapters([one, two], method="cat", weights=[1.0, 1.0])
    assert {row.name: row.rank for row in cat.modules} == {"k": 2, "q": 6, "v": 3}


def test_only_methods_over_entries_hold_a_dense_update(tmp_path):
    one, two = (
        adapter(tmp_path / n, {"q": along(size), "v": along(1.0, d_out=3, d_in=4)})
        for n, size in (("a", 4.0), ("b", 2.0))
    )
    ties = merge_adapters([one, two], method="ties")
    assert ties.largest_dense_bytes == 6 * 5 * 8
    # means of 3 and 1, where the sums are 6 and 2
    assert (ties.relative_error, ties.distance_from_sum) == (pytest.approx(0.0, abs=1e-6), pytest.approx(0.5, rel=1e-6))
    assert merge_adapters([one, two], method="dare_linear", density=1.0).largest_dense_bytes == 6 * 5 * 8
    assert merge_adapters([one, two]).largest_dense_bytes == 0


@every("method", ["linear", "svd", "cat", "ties"])
@every("r", [2, 40])  # together within the sides, and beyond them and 64
def test_an_update_of_zero_keeps_a_rank_and_has_no_error(method, r, tmp_path):
    zero = np.zeros((6, r)), np.ones((r, 5))
    one, two = (adapter(tmp_path / name, dict.fromkeys(held, zero)) for name, held in (("a", "qv"), ("b", "q")))
    report = merge_adapters([one, two], tmp_path / "out", method=method)
    kept = min(r, 5)
    assert [(row.name, row.rank, row.relative_error, row.distance_from_sum) for row in report.modules] == [
        ("q", {"linear": 1, "svd": 1, "cat": 2 * r, "ties": kept}[method], None, None),
        ("v", {"linear": 1, "svd": 1, "cat": r, "ties": kept}[method], None, None),  # only one adapter has it
    ]
    assert report.relative_error is None
    assert not any(update.any() for update in written(tmp_path / "out").values())


@every(
    ("dtypes", "stored"),
    [(("f4", "f4"), "F32"), (("f2", "f2"), "F16"), (("f2", "f4"), "F32"), (("f8", "f8"), "F32")],
)
def test_factors_keep_a_dtype_that_all_have_if_adapters_are_saved_in_it(dtypes, stored, tmp_path):
    folders = [adapter(tmp_path / n, {"q": along(2.0, dtype=dtype)}) for n, dtype in zip("ab", dtypes, strict=True)]
    assert merge_adapters(folders).dtype == stored
    assert merge_adapters(folders, dtype="bfloat16").dtype == "BF16"


# --- configs -----------------------------------------------------------------------------------------------------


def test_the_config_is_the_first_adapters_with_what_the_merge_decides(tmp_path):
    first = {
        "task_type": "CAUSAL_LM",
        "use_rslora": True,
        "init_lora_weights": "gaussian",
        "inference_mode": False,
        "loftq_config": {"bits": 4},
        "eva_config": {"rho": 2.0},
        "corda_config": {"corda_method": "kpm"},
        "lora_ga_config": {"scale": "stable"},
        "r": 4,
        "lora_alpha": 2,
        "lora_dropout": 0.1,
        "bias": "none",
    }
    one = adapter(tmp_path / "a", {"q": along(4.0, 2.0, 1.0, 1.0)}, **first)
    two = adapter(tmp_path / "b", {"v": along(2.0)}, use_dora=False, lora_alpha=1)
    merge_adapters([one, two], tmp_path / "out", weights=[1.0, 1.0], force_mix=True)
    found = config_of(tmp_path / "out")
    assert found == {
        "task_type": "CAUSAL_LM",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "loftq_config": {},
        "eva_config": None,
        "corda_config": None,
        "lora_ga_config": None,
        "r": 4,
        "lora_alpha": 4,
        "rank_pattern": {"v": 1},
        "alpha_pattern": {"v": 1},
        "lora_dropout": 0.1,
        "peft_type": "LORA",
        "target_modules": ["q", "v"],
        "target_parameters": None,
        "modules_to_save": None,
        "bias": "none",
        "trainable_token_indices": None,
    }
    merge_adapters([two, one], tmp_path / "turned", weights=[1.0, 1.0], force_mix=True)
    assert not any(key.endswith(("q_config", "a_config")) for key in config_of(tmp_path / "turned"))


TARGETS = [  # (first config, second, the fields of the result that choose modules)
    ({"target_modules": ["l.0.q"]}, {"target_modules": ["l.0.q"]}, {"target_modules": ["l.0.q"]}),
    ({"target_modules": ["q"]}, {"target_modules": ["0.q"]}, {"target_modules": ["0.q", "q"]}),
    ({"target_modules": "l.*q"}, {"target_modules": "l.*q"}, {"target_modules": "l.*q"}),
    ({"target_modules": "l.*q"}, {"target_modules": ["q"]}, {"target_modules": ["l.0.q"], "exclude_modules": None}),
    ({"target_modules": ["q"], "layers_to_transform": [0]}, {"target_modules": ["q"]},
     {"target_modules": ["l.0.q"], "layers_to_transform": None, "layers_pattern": None, "exclude_modules": None}),
    ({"target_modules": ["q"], "layers_to_transform": [0], "layers_pattern": "l"},
     {"target_modules": ["0.q"], "layers_to_transform": [0], "layers_pattern": "l"},
     {"target_modules": ["0.q", "q"], "layers_to_transform": [0], "layers_pattern": "l"}),
    ({"exclude_modules": ["z"]}, {"exclude_modules": ["z"]}, {"target_modules": ["l.0.q"], "exclude_modules": ["z"]}),
    ({"exclude_modules": []}, {"target_modules": ["q"]}, {"target_modules": ["l.0.q", "q"], "exclude_modules": []}),
]  # fmt: skip


@every(("first", "second", "fields"), TARGETS)
def test_targets_reach_what_both_reach_by_name_or_one_by_one(first, second, fields, tmp_path):
    one, two = (adapter(tmp_path / n, {"l.0.q": along(1.0)}, **given) for n, given in (("a", first), ("b", second)))
    merge_adapters([one, two], tmp_path / "out")
    found = config_of(tmp_path / "out")
    assert {name: found[name] for name in fields} == fields


# --- whole tensors -----------------------------------------------------------------------------------------------

HEAD = {"classifier.weight": np.ones((2, 3))}
SAVED = {"modules_to_save": ["classifier"]}


@every(("count", "shown"), [(4, ""), (5, " and 1 more")])
def test_whole_tensors_that_differ_are_named_four_at_the_most(count, shown, tmp_path):
    names = [f"head.{k}" for k in range(count)]
    one, two = (
        adapter(
            tmp_path / name,
            {"q": along(1.0)},
            extra={f"{each}.weight": np.full(3, value) for each in names},
            modules_to_save=["head"],
        )
        for name, value in (("a", 1.0), ("b", 2.0))
    )
    with pytest.raises(AdapterError) as error:
        merge_adapters([one, two])
    listed = ", ".join(f"{PREFIX}{each}.weight" for each in names[:4])
    assert error.value.message == (
        f"the adapters hold different values of {listed}{shown}: whole tensors (a head, a bias, token rows) have no sum"
    )


def test_whole_tensors_of_one_adapter_are_carried_and_fields_agree_or_are_joined(tmp_path):
    one = adapter(tmp_path / "a", {"q": along(1.0)}, extra=HEAD, **SAVED)
    two = adapter(tmp_path / "b", {"q": along(1.0)}, extra={"score.weight": np.ones(3)}, modules_to_save=["score"])
    report = merge_adapters([one, two], tmp_path / "out")
    assert report.carried == [f"{PREFIX}classifier.weight", f"{PREFIX}score.weight"]
    assert config_of(tmp_path / "out")["modules_to_save"] == ["classifier", "score"]
    chosen = merge_adapters([one, two], tmp_path / "of-b", heads_from="B")
    assert (chosen.carried, chosen.dropped) == ([f"{PREFIX}score.weight"], [f"{PREFIX}classifier.weight"])
    assert config_of(tmp_path / "of-b")["modules_to_save"] == ["score"]


@every(
    "other",
    [np.ones((3, 2)), np.zeros((2, 3)), np.zeros((2, 3), np.int64)],  # of zeros the bytes of both types agree
)
def test_heads_agree_where_dtypes_shapes_and_bytes_do(other, tmp_path):
    head = np.zeros((2, 3)) if other.dtype == np.int64 else HEAD["classifier.weight"]
    one, two, three = (
        adapter(tmp_path / n, {"q": along(1.0)}, extra={"classifier.weight": value}, **SAVED)
        for n, value in (("a", head), ("b", head.copy()), ("c", other))
    )
    assert merge_adapters([one, two]).carried == [f"{PREFIX}classifier.weight"]
    with pytest.raises(AdapterError, match="different values"):
        merge_adapters([one, three])


def test_token_rows_copies_of_the_base_and_biases_are_carried(tmp_path):
    names = ["e.trainable_tokens_delta", "q.base_layer.weight", "v.bias"]
    one, two = (
        adapter(tmp_path / n, {"q": along(1.0)}, extra={name: np.zeros(3) for name in names}, bias="all") for n in "ab"
    )
    assert merge_adapters([one, two]).carried == [f"{PREFIX}{name}" for name in names]


@every(("first", "second", "kept"), [("none", "all", "all"), ("all", None, "all"), (None, None, "none")])
def test_a_field_has_the_only_value_that_is_given(first, second, kept, tmp_path):
    folders = [
        adapter(tmp_path / n, {"q": along(1.0)}, **({"bias": bias} if bias else {}))
        for n, bias in (("a", first), ("b", second))
    ]
    merge_adapters(folders, tmp_path / "out")
    assert config_of(tmp_path / "out")["bias"] == kept
    merge_adapters(folders, tmp_path / "of-b", heads_from="B")
    assert config_of(tmp_path / "of-b")["bias"] == (second or "none")


def test_two_values_of_a_field_are_refused(tmp_path):
    one, two = (adapter(tmp_path / bias, {"q": along(1.0)}, bias=bias) for bias in ("all", "lora_only"))
    with pytest.raises(AdapterError) as error:
        merge_adapters([one, two])
    assert error.value.message == "the adapters disagree on bias: 'all' and another"
    assert error.value.advice == "take one adapter's with --heads-from A (or B, ...)"


# --- refusals ----------------------------------------------------------------------------------------------------


@every(
    ("field", "value", "none"),
    [
        ("fan_in_fan_out", True, False),
        ("ensure_weight_tying", True, False),
        ("layer_replication", [[0, 2], [1, 3]], []),
    ],
)
def test_a_field_that_must_be_the_same_is_named_with_both_values(field, value, none, tmp_path):
    square = {"q": along(1.0, d_out=5)}
    one = adapter(tmp_path / "a", square, **{field: value})
    two = adapter(tmp_path / "b", square, **{field: none})
    with pytest.raises(AdapterError) as error:
        merge_adapters([one, two])
    assert error.value.message == f"cannot merge these adapters: {field} differs: a has {value!r} and b has None"
    assert error.value.advice == "see 'gradience merge --check'"
    assert f"{field} differs: a has {value!r} and b has None" in merge_check(one, two).notes
    merge_adapters([one, adapter(tmp_path / "c", square, **{field: value})])
    merge_adapters([two, adapter(tmp_path / "d", square)])


def test_other_shapes_and_other_layouts_are_refused_by_name(tmp_path):
    one = adapter(tmp_path / "a", {"q": along(1.0), "v": along(1.0)})
    two = adapter(tmp_path / "b", {"q": along(1.0, d_out=4, d_in=3), "v": along(1.0, d_out=7)})
    with pytest.raises(AdapterError) as error:
        merge_adapters([one, two])
    assert error.value.message == "q is of different shapes in these adapters"
    assert error.value.advice == "are they of one base model?"
    three = adapter(tmp_path / "c", {"q": along(1.0), "v": along(1.0, d_out=7)})
    with pytest.raises(AdapterError, match="v is of different shapes"):
        merge_adapters([one, three])  # though q is of one
    checked = merge_check(one, three)
    assert (checked.different_shapes, [row.name for row in checked.modules]) == (["v"], ["q"])
    with pytest.raises(AdapterError) as error:
        merge_check(one, two)
    assert error.value.message == "no module has the same shape in all adapters: q is 6 x 5 in a, 4 x 3 in b"
    assert error.value.advice == "are they of one base model?"


@every("poison", [math.nan, math.inf])
@every("side", [0, 1])
def test_a_number_that_is_not_finite_in_either_factor_stops_the_merge(poison, side, tmp_path):
    factors = [part.copy() for part in along(1.0)]
    factors[side][0, 0] = poison
    one, two = adapter(tmp_path / "a", {"q": along(1.0)}), adapter(tmp_path / "b", {"q": factors})
    with pytest.raises(AdapterError) as error:
        merge_adapters([one, two])
    assert error.value.message == "q holds NaN or infinite numbers in one of the adapters"
    assert error.value.advice == "'gradience audit' says which"


# --- a check -----------------------------------------------------------------------------------------------------


def test_a_check_of_diagonal_updates_is_worked_out_by_hand(tmp_path):
    one = adapter(tmp_path / "a", {"q": along(3.0), "v": along(4.0)})
    two = adapter(tmp_path / "b", {"q": along(-1.0, 2.0), "k": along(1.0)}, lora_alpha=4)  # scale 2, of k 4
    seen = []
    report = merge_check(one, two, weights=[1.0, 0.5], progress=lambda *at: seen.append(at))
    assert seen == [(1, 1, "q")]
    a, b = report.adapters
    # a is (3; 4; 0), b (-2, 4; 0; 4): M = a + b / 2
    assert (a.weight, a.adapter.frobenius_norm, a.weighted_norm) == (1.0, pytest.approx(5.0), pytest.approx(5.0))
    assert (b.weight, b.adapter.frobenius_norm, b.weighted_norm) == (0.5, pytest.approx(6.0), pytest.approx(3.0))
    assert a.kept.coefficient == pytest.approx((25 - 3) / 25)
    assert b.kept.coefficient == pytest.approx((18 - 6) / 36)
    whole = 25 + 9 - 6
    assert a.kept.other == pytest.approx(1 - 22**2 / (25 * whole))
    assert b.kept.other == pytest.approx(1 - 12**2 / (36 * whole))
    (pair,) = report.pairs
    assert (pair.first, pair.second) == ("a", "b")
    assert pair.cosine == pytest.approx(-6 / 30)
    (module,) = report.modules
    assert (module.name, module.state, module.layer) == ("q", "ok", None)
    assert module.norms == pytest.approx([3.0, math.sqrt(5)])
    assert module.lowest_cosine == pytest.approx(-3 / (3 * math.sqrt(5)))
    assert [kept.coefficient for kept in module.kept] == pytest.approx([6 / 9, (10 - 6) / 20])
    assert report.signs is not None
    assert (report.signs.entries, report.signs.of, report.signs.conflict) == (30, 30, pytest.approx(1 / 30))
    assert report.signs.cancelled == pytest.approx(1 - 4 / 6)
    assert [(item.module, item.adapters) for item in report.only_in] == [("k", ["b"]), ("v", ["a"])]
    assert report.different_shapes == []


def test_a_module_that_is_not_finite_counts_in_no_number_of_the_adapters(tmp_path):
    broken = along(1.0)
    broken[1][0, 0] = math.nan
    whole = [adapter(tmp_path / n, {"q": along(3.0), "v": along(*s)}) for n, s in (("a", (1.0,)), ("b", (-1.0, 2.0)))]
    names = ("layers.3.x", "layers.4.x")
    one = adapter(tmp_path / "c", {"q": along(3.0), "v": along(1.0), **dict.fromkeys(names, broken)})
    two = adapter(tmp_path / "d", {"q": along(3.0), "v": along(-1.0, 2.0), **dict.fromkeys(names, along(1.0))})
    truth, report = merge_check(*whole), merge_check(one, two)
    found = {module.name: (module.layer, module.state) for module in report.modules}
    odd = {names[0]: (3, "non_finite"), names[1]: (4, "non_finite")}
    assert found == {"q": (None, "ok"), "v": (None, "ok"), **odd}
    assert report.signs == truth.signs
    assert [pair.cosine for pair in report.pairs] == [pair.cosine for pair in truth.pairs]
    assert [side.kept for side in report.adapters] == [side.kept for side in truth.adapters]
    assert "2 modules hold NaN or infinite numbers and are left out (first: layers.3.x)" in report.notes


def test_norms_of_a_negative_weight_are_positive_and_a_zero_update_has_no_cosine(tmp_path):
    one = adapter(tmp_path / "a", {"q": along(3.0), "v": along(0.0)})
    two = adapter(tmp_path / "b", {"q": along(4.0, start=1), "v": along(1.0)})
    report = merge_check(one, two, weights=[-2.0, -1.0])
    q, v = report.modules
    assert (q.norms, q.lowest_cosine) == (pytest.approx([6.0, 4.0]), pytest.approx(0.0))
    assert (v.norms, v.lowest_cosine) == (pytest.approx([0.0, 1.0]), None)
    assert [side.weight for side in report.adapters] == [-2.0, -1.0]
    assert [side.weighted_norm for side in report.adapters] == pytest.approx([6.0, math.sqrt(17)])


NOTHING = (None, None)


@every(
    ("first", "second", "weights", "kept", "cosine"),
    [
        ((1.0,), (-1.0,), [1.0, 1.0], [(0.0, None), (0.0, None)], -1.0),
        ((0.0,), (1.0,), [1.0, 1.0], [(None, 1.0), (1.0, 0.0)], None),
        ((0.0,), (0.0,), [1.0, 1.0], [NOTHING, NOTHING], None),
        ((1.0,), (2.0,), [2.0, 0.0], [(2.0, 0.0), (1.0, 0.0)], None),
        ((2.0,), (-0.6, 0.8), [1.0, 2.0], [(0.4, 0.8), (0.8, 0.8)], -0.6),
        ((2.0,), (-0.6, 0.8), [-1.0, 2.0], [(-1.6, 0.2), (3.2, 1 - 3.2**2 / 12.8)], 0.6),
    ],
)
def test_parts_of_a_sum_and_the_cosine_of_what_is_weighted(first, second, weights, kept, cosine, tmp_path):
    sides = [adapter(tmp_path / n, {"q": along(*sizes)}) for n, sizes in (("a", first), ("b", second))]
    report = merge_check(*sides, weights=weights)
    found = [part for side in report.adapters for part in (side.kept.coefficient, side.kept.other)]
    assert found == [pytest.approx(part, abs=1e-6) for pair in kept for part in pair]
    assert report.pairs[0].cosine == pytest.approx(cosine)


@every(
    ("first", "second", "conflict"),
    [((3.0, 1.0), (-1.0,), 1 / 30), ((-1.0,), (-2.0, -2.0), 0.0), ((2.0, 2.0), (3.0,), 0.0)],
)
def test_an_entry_that_one_update_leaves_alone_is_no_conflict(first, second, conflict, tmp_path):
    one, two = (adapter(tmp_path / n, {"q": along(*sizes)}) for n, sizes in (("a", first), ("b", second)))
    assert merge_check(one, two).signs.conflict == merge_check(two, one).signs.conflict == pytest.approx(conflict)


def test_adapters_of_different_numbers_of_experts_are_refused_with_the_parameter(tmp_path):
    config = {"r": 1, "lora_alpha": 1, "target_parameters": ["experts.down_proj"], "target_modules": []}
    one, two, three = (
        adapter(tmp_path / name, {"experts": (np.ones((6, n)), np.ones((n, 5)))}, **config)
        for name, n in (("a", 2), ("b", 2), ("c", 3))
    )
    seen = []
    merged = merge_adapters([one, two], progress=lambda *at: seen.append(at)).modules
    assert [row.name for row in merged] == ["experts.down_proj[0]", "experts.down_proj[1]"]
    assert seen == [(place, 2, row.name) for place, row in enumerate(merged, 1)]
    with pytest.raises(AdapterError) as error:
        merge_adapters([one, three])
    assert error.value.message == "the adapters have different numbers of experts in experts.down_proj"
    assert error.value.advice == "are they of one base model?"
    merge_adapters([adapter(tmp_path / "plain", {"q": along(1.0)}), one], tmp_path / "out", force_mix=True)
    found = config_of(tmp_path / "out")
    assert (found["target_parameters"], found["target_modules"]) == (["experts.down_proj"], ["q"])


def test_one_module_in_two_layouts_is_refused_with_both(tmp_path):
    plain = adapter(tmp_path / "a", {"q": along(1.0)})
    b, a = along(1.0)
    conv = adapter(tmp_path / "b", {"q": (b[:, :, None, None], a[:, :, None, None])})
    with pytest.raises(AdapterError) as error:
        merge_adapters([plain, conv])
    name = f"{PREFIX}q.lora_A.weight"
    assert error.value.message == f"q is laid out as {name} (r, 5) in one adapter and as {name} (r, 5, 1, 1) in another"
    assert error.value.advice == "are they of one base model?"


@every(("exact", "most", "entries"), [(False, 55, 55), (False, 54, 50), (False, 1, 40), (True, 1, 60)])
def test_signs_of_a_large_module_are_counted_in_eight_rows_and_more_unless_all_are_asked_for(
    exact, most, entries, tmp_path, monkeypatch
):
    monkeypatch.setattr("gradience.verbs.merge.check._SAMPLE", most)
    one, two = (adapter(tmp_path / name, {"q": along(1.0, 1.0, 1.0, d_out=12)}) for name in "ab")
    (row,) = merge_check(one, two, exact=exact).modules
    assert (row.signs.entries, row.signs.of) == (entries, 60)


def test_each_module_and_each_seed_draws_rows_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("gradience.verbs.merge.check._SAMPLE", 1)  # eight of twelve rows
    one, two = (
        adapter(tmp_path / name, {f"m{i}": along(sign, sign, sign, d_out=12) for i in range(6)})
        for name, sign in (("a", 1.0), ("b", -1.0))
    )
    first, again, other = ([m.signs.conflict for m in merge_check(one, two, seed=s).modules] for s in (0, 0, 1))
    assert first == again != other
    assert len(set(first)) > 1


@every("size", [1.0, 1e-3, 1e-6])
def test_ratios_are_the_same_whatever_the_size_of_the_updates(size, tmp_path):
    one = adapter(tmp_path / "a", {"q": along(4.0 * size, 2.0 * size)})
    two = adapter(tmp_path / "b", {"q": along(2.0 * size, start=2)})
    merged = merge_adapters([one, two], method="svd", rank=1, weights=[1.0, 1.0])
    assert merged.relative_error == merged.modules[0].relative_error == pytest.approx(math.sqrt(8 / 24), rel=1e-5)
    checked = merge_check(one, two)
    assert checked.pairs[0].cosine == pytest.approx(0.0, abs=1e-6)
    assert [side.kept.coefficient for side in checked.adapters] == pytest.approx([0.5, 0.5], rel=1e-5)
    assert [side.kept.other for side in checked.adapters] == pytest.approx([4 / 24, 20 / 24], rel=1e-5)


def test_signs_are_counted_between_those_that_have_the_module(tmp_path):
    one = adapter(tmp_path / "a", {"q": along(1.0), "v": along(1.0)})
    two = adapter(tmp_path / "b", {"q": along(-1.0), "v": along(1.0)})
    three = adapter(tmp_path / "c", {"v": along(1.0)})
    report = merge_check(one, two, three)
    assert [(p.first, p.second) for p in report.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    conflicts = {row.name: (row.signs.conflict, row.signs.of) for row in report.modules}
    assert conflicts == {"q": (1 / 30, 30), "v": (0.0, 30)}
    assert [row.kept[2].coefficient for row in report.modules] == [None, 1.0]


def test_parameters_that_differ_are_named_by_both_lists(tmp_path):
    stack = {"experts": (np.ones((6, 2)), np.ones((2, 5)))}
    config = {"r": 1, "lora_alpha": 1, "target_modules": []}
    one, two, three = (
        adapter(tmp_path / name, stack, target_parameters=listed, **config)
        for name, listed in zip(
            "abc", (["experts.down_proj", "x"], ["x", "experts.down_proj"], ["experts.up_proj"]), strict=True
        )
    )
    assert not [note for note in merge_check(one, two).notes if "target_parameters" in note]  # in any order
    said = "target_parameters differs (['experts.down_proj', 'x'] and ['experts.up_proj'])"
    for paths in ([one, three], [one, two, three]):
        with pytest.raises(AdapterError, match=re.escape(f"{said}, and with it which tensors are of which parameter")):
            merge_adapters(paths)
