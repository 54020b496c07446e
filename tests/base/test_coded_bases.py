"""Bases in codes: each golden file is a weight as a format's own library wrote it, and as that library decodes it.

`tests/coded_weights.py` writes them. What a merge leaves is found again by trying every code.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ml_dtypes import bfloat16, float8_e4m3fn
from safetensors.numpy import save_file
from tables import every, few

from gradience import check_config, verify_merged
from gradience.base.coded import weight_of
from gradience.base.forms import DamagedCodesError, UnreadCodesError, declared
from gradience.base.weights import BaseWeights
from gradience.cli.main import main
from gradience.io.safetensors import DTYPES, SafetensorsFile, copied, planned, write_safetensors
from gradience.spectral.base import UpdatedWeight, merge_sums
from gradience.spectral.codes import CODINGS, Codes, whole, words_of
from gradience.spectral.krylov import spectral_norm
from gradience.verbs.audit.run import audit_adapter

GOLDEN = Path(__file__).parents[1] / "golden" / "codes"
MODULE = "model.layers.0.self_attn.q_proj"
NAME = f"{MODULE}.weight"
FORMS = {
    **dict.fromkeys(["fp8-tensor", "fp8-channel", "fp8-block", "fp8-blocks", "fp8-torchao"], "FP8"),
    **dict.fromkeys(["int8", "int8-zeros", "int8-packed", "int8-torchao"], "INT8"),
    **dict.fromkeys(["int4", "int4-zeros"], "INT4"),
    **dict.fromkeys(["nvfp4", "nvfp4-modelopt"], "NVFP4"),
    **dict.fromkeys(["mxfp4", "mxfp4-int8", "mxfp4-experts"], "MXFP4"),
    "nf4": "NF4",
    "nf4-nested": "NF4",
    "fp4": "FP4",
    "int8-bnb": "INT8 (bitsandbytes)",
    "awq": "AWQ int4",
    "gptq-2": "GPTQ int2",
    "gptq-4": "GPTQ int4",
    "gptq-8": "GPTQ int8",
    **dict.fromkeys(["gptq-order", "gptq-order-v2"], "GPTQ int4"),
}
SINGLE = [name for name in FORMS if name != "mxfp4-experts"]
RNG = np.random.default_rng(0)
B, A = RNG.standard_normal((32, 4)).astype(np.float32), RNG.standard_normal((4, 64)).astype(np.float32)


def golden(name):
    return SafetensorsFile(GOLDEN / f"{name}.safetensors")


def given(name, array):
    """A tensor to write."""
    array = np.ascontiguousarray(array)
    dtype = next(key for key, kind in DTYPES.items() if kind == array.dtype)
    return planned(name, dtype, array.shape, lambda: array)


def laid_out(name, folder, *, floats=False, **changed):
    """A base of one weight from a golden file, in codes or as its library decodes it; `changed` replaces tensors."""
    folder.mkdir(exist_ok=True)
    source = golden(name)
    fresh = {f"{MODULE}.{key}": value for key, value in changed.items()}
    tensors = [copied(source, key) for key in source.tensors if key not in {*fresh, "expected"}]
    tensors += [given(key, value) for key, value in fresh.items() if value is not None]
    if floats:
        tensors = [given(NAME, source.read("expected"))]
    write_safetensors(folder / "model.safetensors", tensors, metadata={})
    config = json.loads(source.metadata["quantization_config"])
    (folder / "config.json").write_text(json.dumps({} if floats else {"quantization_config": config}))
    return folder


def opened(folder):
    return BaseWeights([folder / "model.safetensors"])


@pytest.fixture
def adapter(tmp_path):
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 0.02, "target_modules": ["q_proj"]}
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    stem = f"base_model.model.{MODULE}"
    factors = {f"{stem}.lora_A.weight": A, f"{stem}.lora_B.weight": B}
    save_file(factors, tmp_path / "adapter" / "adapter_model.safetensors")
    return tmp_path / "adapter"


@every("name", FORMS)
def test_codes_stand_for_what_their_own_library_makes_of_them(name, tmp_path):
    weights = opened(laid_out(name, tmp_path / "base"))
    expected = golden(name).read("expected")
    for expert in range(2) if expected.ndim == 3 else [None]:
        weight = weight_of(weights, NAME, expert)
        want = expected if expert is None else expected[expert]
        assert weight.coded.form == FORMS[name]
        assert weight.shape == want.shape
        # bfloat16, where the library gives no more; bitsandbytes divides by 127 after the product, which is not exact
        assert weight.floats().astype(want.dtype) == pytest.approx(want, rel=2e-7 if name == "int8-bnb" else 0, abs=0)
        assert set(weight.coded.names) == weights.names - {f"{NAME}_format"}


@every("name", FORMS)
def test_headers_tell_the_parameter_that_codes_stand_for(tmp_path, name):
    shape = (2, 64, 32) if name == "mxfp4-experts" else (32, 64)  # gpt-oss's codes hold the transpose
    dtype = "F16" if name.startswith(("gptq", "awq")) else "BF16"
    assert declared(opened(laid_out(name, tmp_path / name))) == {NAME: (shape, dtype)}


@every("name", few(SINGLE, each=2))
def test_an_audit_beside_codes_is_that_beside_the_weights_they_stand_for(name, tmp_path, adapter):
    found = [
        audit_adapter(adapter, base=laid_out(name, tmp_path / f"b{floats}", floats=floats), norms_cache=False,
                      intruders=True)
        for floats in (False, True)
    ]  # fmt: skip
    (codes,), (floats,) = (report.modules for report in found)
    assert codes.base.spectral_norm == pytest.approx(floats.base.spectral_norm, rel=1e-4)
    assert codes.base.frobenius_norm == pytest.approx(floats.base.frobenius_norm, rel=1e-4)
    for of in ("udr", "sdi", "relative_frobenius"):
        assert getattr(codes, of) == pytest.approx(getattr(floats, of), rel=1e-4, abs=1e-4)
    assert codes.base.held == pytest.approx(floats.base.held, abs=1e-4)
    assert codes.base.survival.cosine == pytest.approx(floats.base.survival.cosine, abs=1e-3)
    assert codes.base.intruders == floats.base.intruders
    assert (found[0].base.codes, found[1].base.codes, floats.base.in_codes) == ({FORMS[name]: 1}, {}, None)


def candidates(codes):
    """Every weight that each entry could be with the scales and zero points as they are: (codes, m, n)."""
    bits = CODINGS[codes.coding].bits
    found = []
    for code in range(2**bits):
        filled = np.full_like(np.asarray(codes.packed).view(np.uint8), sum(code << at for at in range(0, 8, bits)))
        found.append(np.asarray(whole(replace(codes, packed=filled.view(codes.packed.dtype)))))
    return np.stack([one for one in found if np.isfinite(one).all()]).astype(np.float64)


@every("name", few(SINGLE, each=2))
def test_codes_keep_of_an_update_what_the_nearest_of_all_codes_keep(name, tmp_path):
    strength = 0.01
    codes = weight_of(opened(laid_out(name, tmp_path / "base")), NAME).coded.codes
    w, delta = np.asarray(whole(codes)).astype(np.float64), strength * (B @ A).astype(np.float64) / 4
    can = candidates(codes)
    realised = np.take_along_axis(can, np.abs(can - w - delta).argmin(0)[None], 0)[0] - w
    found = merge_sums(
        UpdatedWeight(codes, B, A), scale=strength / 4, target="bfloat16", delta_dtype="float32"
    ).in_codes
    assert found.changed == pytest.approx(np.count_nonzero(realised), abs=2)  # ties
    assert found.inner == pytest.approx(np.sum(realised * delta), rel=0.02, abs=1e-6)
    assert found.realised == pytest.approx(np.sum(realised**2), rel=0.02, abs=1e-6)
    assert 0 < found.changed < w.size


def test_a_large_weight_in_codes_has_the_norm_and_the_sums_of_its_floats():
    """More rows than a tile, columns that fill no word and no group, groups in no order."""
    m, n = 300, 1003
    values = RNG.integers(0, 256, (m, 502)).astype(np.uint8)
    scales, zeros = RNG.uniform(1.0, 2.0, (11, m)).astype(np.float32), RNG.integers(5, 9, (11, m)).astype(np.float32)
    groups = RNG.permutation(np.arange(n) // 100).astype(np.int32)
    b, a = RNG.standard_normal((m, 2)).astype(np.float32), RNG.standard_normal((2, n)).astype(np.float32)
    plain = Codes(words_of(values), scales, "uint4", n, 100, zeros=zeros)
    for codes in (plain, replace(plain, groups=groups), replace(plain, zeros=None, coding="float4_e2m1fn")):
        row = (np.stack([values & 15, values >> 4], -1).reshape(m, -1)[:, :n]).astype(np.int64)
        value = CODINGS[codes.coding].values[row].astype(np.float64)
        group = np.arange(n) // 100 if codes.groups is None else groups
        w = (value - (0.0 if codes.zeros is None else zeros.T[:, group])) * scales.T[:, group]
        np.testing.assert_allclose(np.asarray(whole(codes)), w, rtol=1e-6, atol=1e-12)  # in C: `approx` takes 15 s here
        assert spectral_norm(codes).value == pytest.approx(np.linalg.norm(w, 2), rel=1e-5)
        found, floats = (
            merge_sums(UpdatedWeight(x, b, a), scale=0.1, target="float16", delta_dtype="float32")
            for x in (codes, w.astype(np.float32))
        )
        assert found.weight == pytest.approx(np.sum(w**2), rel=1e-5)
        assert found.inner == pytest.approx(floats.inner, rel=1e-5)
        assert (floats.in_codes, found.in_codes.entries) == (None, m * n)


def test_experts_in_codes_of_their_own_are_stacked(tmp_path):
    held, rows = {}, []
    for part, name in (("gate_proj", "gptq-4"), ("up_proj", "gptq-8")):
        file = golden(name)
        held |= {
            key.replace(MODULE, f"m.experts.1.{part}"): file.read(key) for key in file.tensors if key != "expected"
        }
        rows.append(file.read("expected"))
    save_file(held, tmp_path / "model.safetensors")
    with pytest.raises(DamagedCodesError, match="in different codes"):
        weight_of(opened(tmp_path), "m.experts.gate_up_proj", 1)
    alike = {key.replace("gate_proj", "up_proj"): x for key, x in held.items() if "gate_proj" in key}
    save_file(held | alike, tmp_path / "model.safetensors")
    found = weight_of(opened(tmp_path), "m.experts.gate_up_proj", 1)
    assert (found.floats() == np.concatenate([rows[0], rows[0]])).all()
    assert found.key == "m.experts.1.gate_proj.qweight and m.experts.1.up_proj.qweight"


STATE = "weight.quant_state.bitsandbytes__"


def told(name="nf4", **changed):
    """bitsandbytes' words beside a golden weight, some of them changed."""
    form = name.partition("-")[0]
    words = json.loads(golden(name).read(f"{MODULE}.{STATE}{form}").tobytes()) | changed
    return {f"{STATE}{form}": np.frombuffer(json.dumps(words).encode(), np.uint8)}


SHORT = {"weight_scale": np.ones((31, 1), np.float32)}
UNFIT = [
    ("fp8-channel", SHORT, "weight_scale, F32 of shape [31, 1], does not fit a weight of shape [32, 64]"),
    ("fp8-channel", {"weight_scale": np.full((32, 1), np.nan, np.float32)}, "is NaN or infinite"),
    ("mxfp4", {"weight_scale": np.full((32, 2), 255, np.uint8)}, "is NaN or infinite"),
    ("nvfp4", {"weight_global_scale": np.zeros(1, np.float32)}, "is NaN or infinite"),
    ("nvfp4-modelopt", {"weight_scale_2": np.full(1, 3e38, np.float32)}, "is NaN or infinite"),
    ("nf4", {"weight.absmax": np.full(32, np.nan, np.float32)}, "is NaN or infinite"),
    ("int4-zeros", {"weight_zero_point": np.full((32, 2), np.inf, np.float32)}, "is NaN or infinite"),
    ("mxfp4", {"weight_scale": np.full((32, 3), 100, np.uint8)},
     "weight_scale, U8 of shape [32, 3], does not fit a weight of shape [32, 64]"),
    ("int4", {"weight_shape": np.array([32, 640])}, "640 codes in 8 words of 32 bits"),
    ("int4", {"weight_shape": np.array([33, 64])}, "codes of shape [32, 8] for a weight of [33, 64]"),
    ("int8-zeros", {"weight_zero_point": np.zeros((32, 2), np.int8)}, "weight_zero_point, I8 of shape [32, 2], does"),
    ("gptq-4", {"g_idx": np.full(64, 2, np.int32)}, "g_idx names group 2 of 2"),
    ("gptq-4", {"g_idx": np.zeros(63, np.int32)}, "g_idx, I32 of shape [63], does not fit"),
    ("gptq-4", {"qweight": np.zeros((8, 31), np.int32)}, "qweight [8, 31]"),
    ("awq", {"qzeros": np.zeros((3, 4), np.int32)}, "qzeros [3, 4], scales [2, 32]"),
    ("int8-torchao", {"_weight_scale": np.ones(5, np.float32)}, "weight_scale, F32 of shape [5], does not fit"),
    ("nf4", {"weight.quant_map": None}, "quant_map is not beside its codes"),
    ("nf4", {"weight": np.zeros((8, 1), np.uint8)}, "codes of shape [8, 1] for a weight of [32, 64]"),
    ("nf4", {"weight.quant_map": np.arange(3, dtype=np.float32)}, "weight.quant_map, F32 of shape [3], does not fit"),
    ("nf4", {"weight.quant_map": np.linspace(-1, 1, 16, dtype=np.float32)}, "holds other levels than NF4's"),
    ("fp4", {"weight.quant_map": golden("nf4").read(f"{NAME}.quant_map")}, "holds other levels than FP4's"),
    ("fp4", {"weight.absmax": np.ones((8, 4), np.float32)}, "weight.absmax, F32 of shape [8, 4], does not fit"),
    ("nf4", told(blocksize=0), "Invalid enum value 0 - at `$.blocksize`"),
    ("nf4", told(blocksize=10**30), "at `$.blocksize`"),
    ("nf4", told(blocksize=65), "Invalid enum value 65 - at `$.blocksize`"),
    ("nf4", told(shape=[32, 64, 1]), "of length <= 2 - at `$.shape`"),
    ("nf4", told(shape=[2**40, 2**40]), "2147483648 - at `$.shape[0]`"),
    ("nf4", told(nested_blocksize=256, nested_offset=0.1), "one says that the scales are codes themselves"),
    ("nf4", told(more="x" * 5000), "quant_state is U8 of shape [5"),
    ("nf4", {f"{STATE}nf4": np.frombuffer(b"[" * 999, np.uint8)}, "nested more than 64 levels deep"),
    ("nf4-nested", told("nf4-nested", nested_blocksize=400_000_000), "Invalid enum value 400000000"),
    ("nf4-nested", told("nf4-nested", nested_offset=1e300), "at `$.nested_offset`"),
    ("nf4-nested", {"weight.nested_quant_map": np.zeros(256, np.float32)}, "nested_quant_map does not ascend"),
    ("nf4-nested", {"weight.nested_absmax": None}, "nested_absmax is not beside its codes"),
    ("nvfp4", {"weight_scale": np.ones((1, 4), float8_e4m3fn)}, "F8_E4M3 of shape [1, 4], does not fit"),
    ("nvfp4", {"weight_global_scale": np.ones(32, np.float32)}, "F32 of shape [32], does not fit"),
    ("nvfp4", {"weight_global_scale": None}, "weight_global_scale is not beside its codes"),
    ("mxfp4", {"weight_packed": np.zeros((32, 4, 8), np.uint8)}, "does not fit a weight of shape [4, 16]"),
    ("fp8-channel", {"weight_scale": None}, "weight_scale is not beside its codes"),
    ("fp8-channel", {"weight_scale": np.ones((1, 32), np.float32)}, "F32 of shape [1, 32], does not fit"),
    ("fp8-blocks", {"weight_scale_inv": np.ones((2, 4), np.float32)}, "F32 of shape [2, 4], does not fit"),
    ("fp8-tensor", {"weight_scale": np.ones(1, np.int64)}, "weight_scale, I64 of shape [1], does not fit"),
    ("int8-bnb", {"SCB": np.ones((32, 1, 1), np.float32)}, "SCB, F32 of shape [32, 1, 1], does not fit"),
    ("gptq-4", {"qzeros": np.zeros((1, 2, 4), np.int32)}, "qzeros of shape [1, 2, 4], which is no matrix"),
    ("gptq-4", {"qzeros": np.zeros(8, np.int32)}, "qzeros of shape [8], which is no matrix"),
    ("gptq-4", {"scales": None}, "scales is not beside its codes"),
]  # fmt: skip


@every(("name", "changed", "says"), UNFIT)
def test_what_does_not_fit_the_codes_is_named(name, changed, says, tmp_path, adapter):
    base = laid_out(name, tmp_path / "base", **changed)
    with pytest.raises(DamagedCodesError) as error:
        weight_of(opened(base), NAME)
    assert says in str(error.value)
    (finding,) = (f for f in audit_adapter(adapter, base=base).findings if f.id == "BAS211")
    assert says in finding.message
    assert finding.action.startswith("Get the base's files again")


HQQ = {"W_q": np.zeros((32, 32), np.uint8), "meta": np.ones(2, np.float32), "weight": None, "weight_scale": None}


@every(
    ("name", "changed", "tensors"),
    [
        ("int3-unread", {}, "codes of 3 bits"),
        (
            "fp8-channel",
            {"weight_packed": np.zeros((32, 48), np.uint8), "weight_scale": np.ones((32, 2), np.uint8), "weight": None},
            "codes of 6 bits",
        ),  # MXFP6 has the names of MXFP4
        ("nvfp4", {"weight_packed": np.zeros((32, 64), np.uint8)}, "codes of 8 bits"),
        ("fp8-channel", HQQ, "W_q (U8), meta (F32)"),
    ],
)
def test_a_format_that_is_not_read_is_named_and_no_error(name, changed, tensors, tmp_path, adapter, capsys):
    base = laid_out(name, tmp_path / "base", **changed)
    with pytest.raises(UnreadCodesError) as error:
        weight_of(opened(base), NAME)
    assert tensors in str(error.value)
    assert main(["audit", str(adapter), "--base", str(base)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "quant_method 'compressed-tensors'" in said
    assert "Give the base model" not in said
    report = audit_adapter(adapter, base=base)
    assert [(f.id, f.severity) for f in report.findings if f.id.startswith("BAS")] == [("BAS217", "info")]
    (base / "config.json").unlink()
    assert "no config.json names" in audit_adapter(adapter, base=base).base.not_compared[0].reason


GEMV = {
    "qweight": np.zeros((64, 16), np.int32),
    "qzeros": np.zeros((64, 4), np.int32),
    "scales": np.ones((64, 32), np.float16),
}  # AutoAWQ's padding for 128 inputs in groups of 32
LAYOUTS = [
    ("awq", GEMV, {}, "stored in AWQ's layout 'gemv', which is not read here"),
    ("awq", {}, {"version": "gemv_fast"}, "stored in the layout 'gemv_fast', which is not read here"),
    ("gptq-4", {}, {"checkpoint_format": "marlin"}, "stored in the layout 'marlin', which is not read here"),
    ("int8-bnb", {"weight_format": np.array(2, np.uint8)}, {}, "stored in bitsandbytes' layout 2, of one kind of GPU"),
    ("fp8-channel", {"weight_scale": None}, {"quant_method": ""}, "stored as F8_E4M3 with no scale beside it"),
]  # fmt: skip


@every(("name", "changed", "config", "says"), LAYOUTS)
def test_another_layout_of_known_names_is_named_and_not_called_damaged(name, changed, config, says, tmp_path):
    base = laid_out(name, tmp_path / "base", **changed)
    words = json.loads((base / "config.json").read_text())
    words["quantization_config"] |= config
    (base / "config.json").write_text(json.dumps(words))
    with pytest.raises(UnreadCodesError) as error:
        weight_of(opened(base), NAME)
    assert str(error.value).startswith(says)


SAID = [5, [], "fp8", {"weight_block_size": [0, 16]}, {"weight_block_size": [10**40, 16]}, {"group_size": "x"},
        {"weight_block_size": [1, 2, 3]}, {"quant_method": 7, "version": [], "checkpoint_format": {}}]  # fmt: skip


@every("said", SAID)
def test_what_a_config_says_of_codes_in_no_known_words_is_as_if_it_were_not_said(said, tmp_path):
    base = laid_out("fp8-channel", tmp_path / "base")
    (base / "config.json").write_text(json.dumps({"quantization_config": said}))
    expected = golden("fp8-channel").read("expected")
    assert (weight_of(opened(base), NAME).floats().astype(expected.dtype) == expected).all()


def test_columns_in_an_order_that_is_not_given_are_not_read(tmp_path):
    base = laid_out("gptq-order", tmp_path / "base", g_idx=None)
    (base / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq", "desc_act": True}}))
    with pytest.raises(DamagedCodesError, match="g_idx is not beside its codes"):
        weight_of(opened(base), NAME)


def test_rows_of_odd_length_are_read_from_bytes_that_hold_two_codes(tmp_path):
    """bitsandbytes packs the whole weight, so that the second row begins in the middle of a byte."""
    levels, codes = golden("nf4").read(f"{NAME}.quant_map"), RNG.integers(0, 16, (3, 33))
    flat = np.append(codes.reshape(-1), 0)
    changed = {"weight": (flat[::2] << 4 | flat[1::2]).astype(np.uint8)[:, None],
               "weight.absmax": np.array([0.5, 2.0], np.float32)}  # fmt: skip
    weight = weight_of(opened(laid_out("nf4", tmp_path / "base", **changed, **told(shape=[3, 33]))), NAME)
    scales = np.where(np.arange(99) < 64, 0.5, 2.0).reshape(3, 33)
    assert weight.floats() == pytest.approx(levels[codes] * scales, rel=1e-6)


def test_the_levels_of_fp4_do_not_ascend_by_code_and_a_change_goes_to_the_nearest(tmp_path):
    """In units of the scale: from 0.25 up by 0.06 to 1/3, from 0.5 by 0.05 nowhere, from -1 by 0.4 to -2/3."""
    scales, packed = np.full(32, 2.0, np.float32), np.zeros((1024, 1), np.uint8)
    packed[:2, 0] = 0x75, 0xB0  # codes 7, 5, 11 and 0: 1/4, 1/2, -1 and 0
    base = laid_out("fp4", tmp_path / "base", **{"weight": packed, "weight.absmax": scales})
    weight = weight_of(opened(base), NAME).coded
    delta = np.zeros((32, 64), np.float32)
    delta[0, :4] = 0.12, 0.1, 0.8, 0.004
    moved = np.asarray(weight.moved(delta))
    assert moved[0, :4] == pytest.approx([2 / 3 - 0.5, 0.0, 2 / 3, 0.0], abs=1e-5)
    assert np.count_nonzero(moved) == 2


# Without what may be left out, codes stand for other weights; a float is no code, so it is read as one or not at all.
def test_a_weight_that_is_not_there_is_not_said_to_be_in_codes(tmp_path):
    weights = opened(laid_out("awq", tmp_path / "base", bias=np.ones(32, np.float32)))
    assert weight_of(weights, "model.layers.1.self_attn.q_proj.weight") is None
    save_file({f"{MODULE}.bias": np.ones(32, np.float32)}, tmp_path / "base" / "model.safetensors")
    assert weight_of(opened(tmp_path / "base"), NAME) is None


@every("name", ["fp8-blocks", "gptq-order", "nvfp4", "int4"])
def test_a_merge_beside_a_base_in_codes_is_verified_with_what_its_codes_stand_for(name, tmp_path, adapter):
    """Merged into W as decoded, or as rounded first to the dtype it is computed in; an untouched weight is compared."""
    base, other = laid_out(name, tmp_path / "base"), "model.layers.0.self_attn.v_proj.weight"
    source = golden(name)
    names = [key for key in source.tensors if key != "expected"]
    more = [copied(source, key)._replace(name=key.replace("q_proj", "v_proj")) for key in names]
    write_safetensors(base / "model.safetensors", [*(copied(source, key) for key in names), *more], metadata={})
    w, dtype = weight_of(opened(base), NAME).floats(), np.float16 if name == "gptq-order" else bfloat16
    update = (0.005 * B @ A).astype(np.float32)
    for merged, verdict, odd in (
        ((w + update).astype(dtype), "contained", []),
        ((w.astype(dtype).astype(np.float32) + update).astype(dtype), "contained", []),
        (w.astype(dtype), "not_contained", []),
        ((w + update).astype(dtype), "contained", [other]),
    ):
        untouched = w[::-1] if odd else w
        (tmp_path / "merged").mkdir(exist_ok=True)
        tensors = [given(NAME, merged), given(other, untouched.astype(dtype))]
        write_safetensors(tmp_path / "merged" / "model.safetensors", tensors, metadata={})
        report = verify_merged(base, adapter, tmp_path / "merged")
        assert (report.verdict, [one.name for one in report.others]) == (verdict, odd)
    again = verify_merged(base, adapter, base)
    assert (again.verdict, again.counts) == ("not_contained", {"absent": 1})


@every("name", few(SINGLE, each=2))
def test_check_counts_an_adapter_beside_codes_as_beside_floats(tmp_path, name):
    adapter = tmp_path / "adapter"
    adapter.mkdir(exist_ok=True)
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    base = laid_out(name, tmp_path / name)
    held = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"], **held})
    )
    report = check_config(peft_dir=adapter, base=base)
    assert (report.coverage.modules, report.coverage.lora_params, report.coverage.notes) == (1, 4 * (32 + 64), [])
