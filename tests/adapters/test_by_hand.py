"""Updates, layouts and scales small enough to work out by hand, against the formula of each kind written out."""

from __future__ import annotations

import json
import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from tables import every

from gradience.adapters import kinds, layer_label, module_type
from gradience.adapters.config import AdapterConfig, ScalingRules, parse_config
from gradience.adapters.layout import (
    LARGEST_ENTRY,
    Context,
    Key,
    LeftoverTensor,
    all_finite,
    module_path,
    parse_key,
    pattern_name,
    within_range,
)
from gradience.adapters.open import open_adapter
from gradience.adapters.pairs import LoraPair, padded, peft_pair
from gradience.adapters.patterns import PatternTable
from gradience.adapters.traits import start_of
from gradience.errors import AdapterError
from gradience.schema.audit import LeftoverReason


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


B, A, W = drawn(6, 2, seed=1), drawn(2, 4, seed=2), drawn(6, 4, seed=3)
AB = B @ A


def load() -> tuple[np.ndarray, np.ndarray]:
    return B, A


# --- updates that need the base ----------------------------------------------------------------------------------


@every("block", [1, 9, 1 << 20])
@every("axis", [1, 0])
def test_dora_rescales_rows_or_columns_of_the_sum_to_the_magnitudes(axis, block, monkeypatch):
    monkeypatch.setattr(kinds, "_BLOCK", block)
    m = np.arange(1.0, 7.0 if axis else 5.0) / 3.0  # of float64
    whole = W + 0.5 * AB
    along = m[:, None] if axis else m[None, :]
    wanted = along * whole / np.linalg.norm(whole, axis=axis, keepdims=True) - W
    np.testing.assert_allclose(kinds.dora(load, 0.5, lambda: m, axis=axis)(W), wanted, atol=1e-12)
    # stored transposed, the other axis is the outputs'
    np.testing.assert_allclose(kinds.dora(load, 0.5, lambda: m, axis=axis)(W.T), wanted.T, atol=1e-12)


def test_a_row_of_norm_zero_is_not_finite_and_warns_of_nothing():
    w, zero = np.diag([0.0, 0.0, 2.0]), (np.zeros((3, 1)), np.zeros((1, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = kinds.dora(lambda: zero, 1.0, lambda: np.array([0.0, 1.0, 6.0]), axis=1)(w)
    assert np.isnan(found[:2]).any(axis=1).all()
    assert found[2].tolist() == [0.0, 0.0, 4.0]


def test_a_magnitude_of_another_length_is_refused_with_both_sizes():
    with pytest.raises(AdapterError) as error:
        kinds.dora(load, 1.0, lambda: np.ones(4), axis=1)(W)
    assert str(error.value) == "a magnitude of 4 entries does not fit a base weight of shape (6, 4)"
    with pytest.raises(AdapterError) as error:
        kinds.dora(load, 1.0, lambda: np.ones(6), axis=1)(np.ones((5, 4)))
    assert str(error.value) == "an update of shape (6, 4) does not fit a base weight of shape (5, 4)"
    assert error.value.advice == "give the base model that the adapter was trained on"


@pytest.mark.parametrize("w", [W, W.T], ids=["tall", "wide"])
def test_pissa_gives_back_the_principal_part_it_took(w):
    factors = load if w is W else kinds.flipped(load)
    u, s, v = np.linalg.svd(w, full_matrices=False)
    wanted = 0.5 * np.matmul(*factors()) - (u[:, :2] * s[:2]) @ v[:2]
    made = kinds.pissa(factors, 0.5, 2)
    np.testing.assert_allclose(np.matmul(*made(w)), wanted, atol=1e-10)
    np.testing.assert_allclose(kinds.product(made)(w), wanted, atol=1e-10)
    assert made(w)[0].shape[1] == 4


def test_olora_gives_back_its_orthonormal_columns():
    q, _ = np.linalg.qr(W[:, :2])
    np.testing.assert_allclose(np.matmul(*kinds.olora(load, 0.5, 2)(W)), 0.5 * AB - 0.5 * q @ q.T @ W, atol=1e-12)


def test_kasa_gives_back_the_least_singular_values_and_must_leave_some():
    u, s, v = np.linalg.svd(W, full_matrices=False)
    wanted = 0.5 * AB - (u[:, -3:] * s[-3:]) @ v[-3:]
    np.testing.assert_allclose(np.matmul(*kinds.kasa(load, 0.5, 3)(W)), wanted, atol=1e-12)
    for r in (4, 5):
        with pytest.raises(AdapterError) as error:
            kinds.kasa(load, 0.5, r)(W)
        assert str(error.value) == f"KaSA of rank {r} leaves nothing of a base weight of shape (6, 4)"


def test_vera_asks_for_its_factors_at_the_base_s_shape():
    seen = []
    found = kinds.vera(lambda shape: seen.append(shape) or load())(np.zeros((6, 2, 2)))
    assert seen == [(6, 4)]
    assert [x.dtype for x in found] == [np.float64, np.float64]
    assert kinds.as_float32(np.ones(1, np.float16)).dtype == np.float32


def test_a_base_of_one_row_has_its_own_width():
    seen = []
    kinds.vera(lambda shape: seen.append(shape) or load())(np.zeros((1, 5)))
    assert seen == [(1, 5)]


def test_factors_are_turned_to_the_base_that_they_fit():
    b, a = kinds.flipped(load)()
    np.testing.assert_array_equal(b @ a, A.T @ B.T)


# --- layouts -----------------------------------------------------------------------------------------------------


def test_a_pair_of_a_layer_a_kernel_and_experts_has_these_shapes():
    layer = peft_pair("m", 3, (6, 20), kernel=(2, 2))
    assert (layer.a_name, layer.b_name) == ("base_model.model.m.lora_A.weight", "base_model.model.m.lora_B.weight")
    assert (layer.rank, layer.inner, layer.out, layer.kernel, layer.experts, layer.transposed) == (
        3,
        5,
        6,
        (2, 2),
        1,
        False,
    )
    assert layer.shapes(2) == ((2, 5, 2, 2), (6, 2, 1, 1))
    assert layer.params_per_rank == 20 + 6
    stack = LoraPair("a", "b", 2, 5, 6, experts=3)
    assert (stack.kernel, stack.transposed, LoraPair("a", "b", 2, 5, 6).experts) == ((), False, 1)
    assert stack.shapes(4) == ((12, 5), (6, 12))
    assert stack.params_per_rank == 3 * 11
    embedding = peft_pair("e", 2, (6, 5), embedding=True)
    assert (embedding.a_name, embedding.transposed) == ("base_model.model.e.lora_embedding_A", True)


def test_experts_are_outermost_in_a_and_innermost_in_b():
    pair = LoraPair("a", "b", 2, 5, 6, experts=3)
    b, a = drawn(6, 6), drawn(6, 5, seed=9)
    split_b, split_a = pair.split(b, a)
    for e in range(3):
        np.testing.assert_array_equal(split_b[e], b[:, [e, 3 + e]])
        np.testing.assert_array_equal(split_a[e], a[2 * e : 2 * e + 2])
    joined_b, joined_a = pair.joined(split_b, split_a, 2)
    np.testing.assert_array_equal(joined_b, b)
    np.testing.assert_array_equal(joined_a, a)
    wide_b, wide_a = pair.joined(split_b, split_a, 3)
    assert (wide_b.shape, wide_a.shape) == ((6, 9), (9, 5))
    again = LoraPair("a", "b", 3, 5, 6, experts=3).split(wide_b, wide_a)
    np.testing.assert_array_equal(again[0] @ again[1], split_b @ split_a)
    layer = LoraPair("a", "b", 2, 3, 6, kernel=(2, 2))
    b, a = drawn(6, 2, 1, 1), drawn(2, 3, 2, 2, seed=9)
    wide_b, wide_a = layer.joined(*layer.split(b, a), 4)
    assert (wide_b.shape, wide_a.shape) == ((6, 4, 1, 1), (4, 3, 2, 2))
    np.testing.assert_array_equal(wide_a, np.concatenate([a, np.zeros((2, 3, 2, 2))]))
    np.testing.assert_array_equal(wide_b, np.concatenate([b, np.zeros((6, 2, 1, 1))], axis=1))


@pytest.mark.parametrize("transposed", [False, True])
def test_what_belongs_to_a_transposed_pair_is_swapped(transposed):
    pair = LoraPair("a", "b", 2, 5, 6, transposed=transposed)
    assert pair.swapped("b", "a") == (("a", "b") if transposed else ("b", "a"))


def test_padding_adds_zeros_at_the_end_of_each_axis():
    one = np.ones((1, 2))
    assert padded(one, (1, 2)) is one
    assert padded(one, (2, 3)).tolist() == [[1, 1, 0], [0, 0, 0]]
    assert padded(one.astype(np.float16), (2, 3)).dtype == np.float16


@every(
    ("name", "key"),
    [
        ("base_model.model.h.0.q.lora_A.weight", Key("h.0.q", "lora_A", "", "weight")),
        ("h.0.q.lora_B.one.two.weight", Key("h.0.q", "lora_B", "one.two", "weight")),
        ("q.lora_B.bias", Key("q", "lora_B", "", "bias")),
        ("e.lora_embedding_A.default", Key("e", "lora_embedding_A", "default", "")),
        ("_orig_mod.q.lora_A.weight", Key("q", "lora_A", "", "weight")),
        ("_fsdp_wrapped_module.x._checkpoint_wrapped_module.q.lora_A.weight", Key("x.q", "lora_A", "", "weight")),
        ("m.lora_A.q.lora_B.weight", Key("m.lora_A.q", "lora_B", "", "weight")),
        ("lora_A.weight", None),
        ("q.weight", None),
    ],
)
def test_a_name_is_taken_apart_from_its_end(name, key):
    assert parse_key(name) == key


def test_paths_of_wrapped_modules():
    assert module_path("m.base_layer.base_layer.q") == "m.q"
    assert pattern_name("m.base_layer.out_proj") == "m"
    assert pattern_name("m.out_proj") == "m.out_proj"


def test_the_part_nearest_the_leaf_decides_and_sections_count_from_zero():
    assert [
        module_type(f"layers.0.{tail}") for tail in ("mamba.conv1d", "conv.mamba.x", "moe.attn.x", "attn.moe.x")
    ] == [*("conv", "ssm", "attn", "mlp")]
    assert [module_type(name) for name in ("x.q.output", "x.output.q")] == ["mlp", "attn"]  # of words that say little
    named = ("layers.0.q_proj:other", "embed_tokens:other", "layers.0.w[3]:x.1", "layers.0.up_proj[3]")
    assert [module_type(name) for name in named] == ["attn", "embedding", "other", "mlp"]
    assert [layer_label(name) for name in ("down_blocks.0.to_q", "mid_block.to_q")] == ["down.0", "mid"]


@every(
    ("value", "dtype", "within"),
    [
        (LARGEST_ENTRY, np.float64, True),
        (-LARGEST_ENTRY * 1.01, np.float64, False),
        (math.inf, np.float32, False),
        (math.nan, np.float16, False),
        (3.4e38, np.float32, True),
    ],
)
def test_numbers_of_an_update_are_within_the_range_of_float32(value, dtype, within):
    assert within_range(np.ones(2), np.asarray([0.0, value], dtype)) is within


@every("dtype", [np.float16, np.dtype(">f2"), ml_dtypes.bfloat16, np.float32, ml_dtypes.float8_e5m2])
def test_every_pattern_of_16_bits_is_finite_or_not_as_numpy_says(dtype):
    kind = np.dtype(dtype)
    if kind.itemsize == 2:
        each = np.arange(1 << 16, dtype=np.uint16).view(kind)
        truth = np.isfinite(each[::31].astype(np.float32))  # of bfloat16 itself it warns
        assert [all_finite(each[i : i + 1]) for i in range(0, 1 << 16, 31)] == truth.tolist()
    for value in (np.inf, -np.inf, np.nan):
        assert not all_finite(np.asarray([[1.0, value], [0.0, -2.0]], kind))
    assert all_finite(np.asarray([[1.0, -3.0], [0.0, -2.0]], kind).T)
    assert all_finite(np.zeros((0, 2), kind))


# --- scales ------------------------------------------------------------------------------------------------------


@every(
    ("fields", "name", "r", "scale", "config_r"),
    [
        ({"r": 8, "lora_alpha": 16}, "q", 8, 2.0, 8),
        ({"r": 8, "lora_alpha": 16}, "q", 4, 4.0, 8),
        ({"r": 8, "lora_alpha": 16}, "q", None, 2.0, 8),
        ({"r": 8, "lora_alpha": 16, "use_rslora": True}, "q", 16, 4.0, 8),
        ({"r": 8, "lora_alpha": 16, "rank_pattern": {"q": 2}}, "q", None, 8.0, 2),
        ({"r": 8, "lora_alpha": 16, "rank_pattern": {"q": True, "k": [True]}}, "q", None, 2.0, 8),
        ({"r": 8, "lora_alpha": 16, "alpha_pattern": {"q": 0.5}}, "l.q", 2, 0.25, 8),
        ({"r": 8, "lora_alpha": 16, "alpha_pattern": {"q": 0.0}}, "q", 2, 0.0, 8),
        ({"r": 0, "lora_alpha": 16}, "q", None, 16.0, 0),
        ({"r": 0, "lora_alpha": 16, "use_rslora": True}, "q", None, 16.0, 0),
    ],
)
def test_a_scale_is_alpha_over_the_rank_on_disk_or_its_root(fields, name, r, scale, config_r):
    found = ScalingRules(AdapterConfig(**fields)).of(name, r)
    assert (found.scale, found.config_r, found.path) == (scale, config_r, name)


def test_keys_of_equal_values_do_not_contest_and_unused_keys_are_named():
    config = AdapterConfig(rank_pattern={"q": 2, "1.q": 2, "k": 3}, alpha_pattern={"v": 1.0, "0.v": 2.0, "z": 1.0})
    rules = ScalingRules(config)
    assert (rules.of("1.q").rank_pattern, rules.of("0.v").alpha_pattern) == ("q", "v")
    assert rules.contested == ["0.v"]
    assert rules.unmatched() == (["k"], ["z"])
    assert rules.of("x", 4, default_alpha=2.0).scale == 0.5
    many = [f"k{n}" for n in range(17)]
    many[1], many[8], many[16] = "q", "1.q", "[q]"
    assert PatternTable(many).matching("1.q") == ["q", "1.q", "[q]"]


@every(
    ("text", "message"),
    [
        ('{"lora_alpha": 1.1e30}', "c: lora_alpha is 1.1e+30, over the limit of 1e+30"),
        ('{"alpha": -2e30}', "c: alpha is -2e+30, over the limit of 1e+30"),
        ('{"alpha_pattern": {"q": 1e31}}', "c: alpha_pattern of 'q' is 1e+31, over the limit of 1e+30"),
        ('{"alpha_pattern": {"q": 1, "k": -1e31}}', "c: alpha_pattern of 'k' is -1e+31, over the limit of 1e+30"),
        ('{"r": 0}', "c is not an adapter config: r is 0, expected at least 1"),
        ('{"peft_type": "LOKR", "r": 0}', "c is not an adapter config: r is 0, expected at least 1"),
    ],
)
def test_a_config_beyond_its_limits_is_refused_with_them(text, message):
    with pytest.raises(AdapterError) as error:
        parse_config(text, "c")
    assert str(error.value) == message


def test_the_start_that_a_name_means():
    for name, *traits in (
        ("pissa", True, True, True),
        ("PiSSA_niter_4", True, False, True),
        ("olora", True, True, True),
        ("corda", True, False, True),
        ("lora_ga", True, False, False),
        ("loftq", True, False, True),
        ("eva", False, False, True),
        ("orthogonal", False, False, True),
        ("eva_x", False, False, False),
    ):
        start = start_of(name)
        assert start.name == ("default" if name == "eva_x" else name.lower().removesuffix("_niter_4"))
        assert [start.changes_base, start.recomputable, start.doubled] == traits, name


# --- patterns that only a backtracking matcher reads ---------------------------------------------------------------


@pytest.mark.parametrize(("length", "shown"), [(80, "(" + "a" * 79), (81, "(" + "a" * 76 + "...")])
def test_a_pattern_is_shown_in_eighty_characters(length, shown):
    with pytest.raises(AdapterError) as error:
        PatternTable(["(" + "a" * (length - 1)])
    assert str(error.value).startswith(f"the pattern {shown!r} in the adapter config is not a regular expression: ")


# --- files -------------------------------------------------------------------------------------------------------


def saved(folder: Path, name: str, **config: object) -> Path:
    """An adapter of one module with a head, in a file of that name."""
    folder.mkdir()
    prefix = "base_model.model."
    tensors = {"q.lora_A.weight": A, "q.lora_B.weight": B, "norm.weight": np.ones(3), "head.weight": np.ones(3)}
    held = {prefix + key: np.ascontiguousarray(value, np.float32) for key, value in tensors.items()}
    if name.endswith(".safetensors"):
        save_file(held, folder / name)
    else:
        torch = pytest.importorskip("torch")
        torch.save({key: torch.from_numpy(value) for key, value in held.items()}, folder / name)
    given = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "modules_to_save": ["head"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(given))
    return folder


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt"])
def test_an_adapter_is_the_same_in_each_kind_of_file(name, tmp_path):
    _, found = open_adapter(saved(tmp_path / "a", name))
    (module,) = found.modules
    np.testing.assert_allclose(np.matmul(*module.load()), AB, rtol=1e-5)
    assert {key.removeprefix("base_model.model."): role for key, role in found.roles.items()} == {
        "q.lora_A.weight": "lora_pair",
        "q.lora_B.weight": "lora_pair",
        "norm.weight": "unknown",
        "head.weight": "full_module",
    }


def test_of_a_type_that_is_not_analysed_only_whole_tensors_have_a_role(tmp_path):
    _, found = open_adapter(saved(tmp_path / "a", "adapter_model.safetensors", peft_type="IA3"))
    assert found.modules == []
    why = "peft_type IA3: its update is what PEFT's merge makes of the base: give it with --base"
    assert found.skipped == [LeftoverTensor("*", why, LeftoverReason.NEEDS_BASE)]
    assert {key.removeprefix("base_model.model."): role for key, role in found.roles.items()} == {
        "q.lora_A.weight": "not_analysed",
        "q.lora_B.weight": "not_analysed",
        "norm.weight": "not_analysed",
        "head.weight": "full_module",
    }


def test_weights_under_other_names_are_counted_and_named(tmp_path):
    folder = saved(tmp_path / "a", "one.safetensors")
    assert len(open_adapter(folder)[1].modules) == 1
    (folder / "two.safetensors").write_bytes((folder / "one.safetensors").read_bytes())
    with pytest.raises(AdapterError) as error:
        open_adapter(folder)
    listed = "one.safetensors, two.safetensors"
    assert str(error.value) == f"2 weights files, none named as PEFT does, in {folder} ({listed})"


@every(
    ("ranges", "refused"),
    [
        ([[0, 100_000]], None),
        ([[0, 100_001]], "is not a list of [start, end): [(0, 100001)]"),
        ([[2, 1]], "is not a list of [start, end): [(2, 1)]"),
        ([[-1, 1]], "is not a list of [start, end): [(-1, 1)]"),
        ([[0, 60_000], [0, 40_000]], None),
        ([[0, 60_000], [0, 40_001]], "makes more than 100 000 layers"),
    ],
)
def test_layers_are_replicated_up_to_a_hundred_thousand(ranges, refused, tmp_path):
    folder = saved(tmp_path / "a", "adapter_model.safetensors", layer_replication=ranges)
    if refused is None:
        assert len(open_adapter(folder)[1].modules) == 1
    else:
        with pytest.raises(AdapterError) as error:
            open_adapter(folder)
        assert str(error.value) == f"layer_replication in the adapter config {refused}"


def test_each_thread_keeps_the_tensors_that_it_read_itself():
    ctx = Context(None, AdapterConfig(), ScalingRules(AdapterConfig()))
    ctx.kept["stack"] = 1
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: ctx.kept).result() == {}
    assert ctx.kept == {"stack": 1}
