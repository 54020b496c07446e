"""A merged model is told from one that lacks the adapter, whatever dtypes it was merged in."""

from __future__ import annotations

import json

import pytest
import torch
from jsonschema import Draft202012Validator
from peft import LoraConfig
from safetensors.torch import load_file
from tables import grid, once

from gradience import AdapterError, verify_merged
from gradience.cli.main import main
from gradience.schema.export import json_schema

TARGETS = ["q_proj", "up_proj"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def verdicts(report) -> dict[str, str]:
    return {row.name: row.verdict for row in report.modules}


def plain(**options) -> LoraConfig:
    return LoraConfig(**({"r": 4, "lora_alpha": 6, "target_modules": TARGETS} | options))


@pytest.mark.parametrize("safe", [False, True], ids=["merge", "safe_merge"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merge_by_peft_is_exact_where_it_adds_dw_in_float32(make, dtype, safe):
    """safe_merge rounds dW to the weight's dtype first."""
    case = make(plain(), dtype=DTYPES[dtype])
    report = case.verify(case.merge(safe_merge=safe))
    assert report.verdict == "contained"
    assert set(verdicts(report).values()) == {"within_rounding" if safe and dtype != "float32" else "exact"}
    assert len(report.modules) == 4
    assert report.coefficient == pytest.approx(1.0, abs=0.02)
    assert report.others == []
    Draft202012Validator(json_schema("verify-merged")).validate(report.to_dict())


@grid(each=3, base=DTYPES, during=DTYPES, save=DTYPES)
def test_every_path_through_dtypes_is_contained_and_no_half_of_it(make, base, during, save):
    """Exact if the sum was rounded to the dtype that the file's numbers are in, or to float32 before it."""
    case = make(plain(), dtype=DTYPES[base])
    report = case.verify(case.merge(dtype=DTYPES[during], save=DTYPES[save]))
    assert report.verdict == "contained"
    direct = during == save or {during, save} == {"float32", "bfloat16"} or during == "float32"
    assert not direct or set(verdicts(report).values()) == {"exact"}
    assert report.others == []
    half = case.verify(case.write(changed(case, lambda w, d: w.float() + d / 2), "half", save=DTYPES[save]))
    assert set(verdicts(half).values()) == {"scaled"}


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize("base", ["float32", "bfloat16"])
def test_an_adapter_that_was_merged_in_16_bits_is_within_its_rounding(make, base, half):
    case = make(plain(), dtype=DTYPES[base])
    report = case.verify(case.merge(half_adapter=DTYPES[half]))
    assert set(verdicts(report).values()) == {"within_rounding"}
    assert {row.precision for row in report.modules} <= {"F16", "BF16"}


@once(
    dtype=DTYPES,
    options=[
        {"target_modules": ["c_attn"], "fan_in_fan_out": True},
        {"target_modules": ["pointwise"]},
        {"use_rslora": True},
        {"rank_pattern": {"layers.0.q_proj": 2}, "alpha_pattern": {r"layers\.\d\.up_proj": 3}},
        {"target_modules": ["q_proj"], "lora_bias": True},
    ],
)
def test_every_kind_of_lora_is_exact(make, dtype, options):
    case = make(plain(**options), dtype=DTYPES[dtype])
    report = case.verify(case.merge())
    assert set(verdicts(report).values()) == {"exact"}
    assert report.others == []


@once(
    dtype=["float32", "bfloat16"],
    options=[
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["conv"]},
        {"init_lora_weights": "pissa", "target_modules": ["q_proj"]},
        {"init_lora_weights": "olora", "target_modules": ["q_proj"]},
    ],
)
def test_updates_that_depend_on_the_base_or_were_computed_in_16_bits_are_within_rounding(make, dtype, options):
    case = make(plain(**options), dtype=DTYPES[dtype])
    report = case.verify(case.merge())
    assert report.verdict == "contained"
    assert set(verdicts(report).values()) <= {"exact", "within_rounding"}
    assert report.others == []


def changed(case, change):
    """Return the merged tensors with the adapted weights replaced by change(W, dW), dW in float32."""
    base, merged = case.stored(), case.merged()
    exact = {key: x.float() for key, x in case.merged(dtype=torch.float32).items()}
    new = {}
    for key, w in base.items():
        delta = exact[key] - w.float()
        new[key] = change(w, delta).to(w.dtype) if delta.abs().max() > 0 else merged[key]
    return new


def test_an_update_below_the_resolution_is_inconclusive(make):
    case = make(plain(), dtype=torch.bfloat16, strength=1e-4)
    report = case.verify(case.merge())
    assert report.verdict == "inconclusive"
    assert set(verdicts(report).values()) == {"unresolved"}
    assert report.modules[0].expected_coefficient < 0.1
    assert "rounding" in report.reasons[0]


def test_heads_and_biases_that_the_adapter_holds_are_looked_for(make):
    case = make(plain(modules_to_save=["classifier"], bias="lora_only"), dtype=torch.float32)
    right = case.verify(case.merge())
    assert right.verdict == "contained"
    kinds = {row.name: (row.kind, row.verdict) for row in right.modules}
    assert kinds["classifier.weight"] == kinds["classifier.bias"] == ("replacement", "exact")
    assert kinds["layers.0.q_proj.bias"] == ("replacement", "exact")
    lost = case.merged() | {"classifier.weight": case.stored()["classifier.weight"]}
    wrong = case.verify(case.write(lost, "lost"))
    assert verdicts(wrong)["classifier.weight"] == "absent"
    assert wrong.verdict == "not_contained"


def test_token_rows_are_looked_for(make):
    case = make(plain(trainable_token_indices={"embed_tokens": [3, 7]}))
    right = case.verify(case.merge())
    assert verdicts(right)["embed_tokens.weight"] == "exact"
    lost = case.merged() | {"embed_tokens.weight": case.stored()["embed_tokens.weight"]}
    assert verdicts(case.verify(case.write(lost, "lost")))["embed_tokens.weight"] == "absent"


def test_the_command_prints_verdict_and_table_and_its_code_says_the_verdict(make, capsys):
    case = make(plain(), dtype=torch.bfloat16)
    merged = case.merge()
    args = ["--base", str(case.base), "--adapter", str(case.adapter)]
    assert main(["verify", str(merged), *args]) == 0
    out = capsys.readouterr().out
    assert "Verdict: CONTAINED" in out
    assert "Exact, W + dW in: BF16 (4)" in out
    assert main(["verify", str(case.base), *args]) == 1
    assert "Verdict: NOT CONTAINED" in capsys.readouterr().out
    assert main(["verify", str(case.base), *args, "--fail-on", "never"]) == 0
    state = case.merged()
    del state["layers.0.q_proj.weight"]
    assert main(["verify", str(case.write(state, "lost")), *args]) == 3
    state = case.merged() | {"norm.weight": torch.zeros(24)}
    other = str(case.write(state, "norm"))
    capsys.readouterr()
    assert main(["verify", other, *args]) == 0
    assert "changed by 100.0%  norm.weight" in capsys.readouterr().out
    assert main(["verify", other, *args, "--fail-on", "changes"]) == 1
    capsys.readouterr()
    assert main(["verify", str(merged), *args, "--json"]) == 0
    Draft202012Validator(json_schema("verify-merged")).validate(json.loads(capsys.readouterr().out))


def test_unusable_input_is_one_line_and_code_two(make, capsys, tmp_path):
    case = make(plain())
    assert main(["verify", "no/such", "--base", str(case.base), "--adapter", str(case.adapter)]) == 2
    assert "the merged model: no such base" in capsys.readouterr().err
    for given, lacks in (([], "--adapter and --base"), (["--adapter", "a"], "--base"), (["--base", "b"], "--adapter")):
        assert main(["verify", str(case.base), *given]) == 2
        assert (
            f"needs {lacks}: a merged model is verified beside adapter and base (give 'gradience verify MERGED"
            in capsys.readouterr().err
        )
    with pytest.raises(AdapterError, match="no such file"):
        verify_merged(case.base, tmp_path / "nowhere", case.base)


def test_pissa_on_the_residual_base_is_exact_with_a_remark(make):
    case = make(plain(init_lora_weights="pissa", target_modules=["q_proj"]))
    factors = load_file(case.adapter / "adapter_model.safetensors")
    state = case.stored()
    for layer in range(2):
        stem = f"base_model.model.layers.{layer}.q_proj"
        update = factors[f"{stem}.lora_B.weight"] @ factors[f"{stem}.lora_A.weight"] * (6 / 4)
        state[f"layers.{layer}.q_proj.weight"] += update
    report = case.verify(case.write(state))
    assert report.verdict == "contained"
    assert all(row.without_base_change for row in report.modules)
    assert "what the adapter was trained on" in report.modules[0].reason


def test_a_start_that_changed_the_base_unknowably_is_inconclusive_not_wrong(make):
    case = make(plain(target_modules=["q_proj"]))
    merged = case.merge()
    case.configure(init_lora_weights="corda")
    assert case.verify(merged).verdict == "contained"
    report = case.verify(case.base)
    assert report.verdict == "inconclusive"
    assert "cannot be recomputed" in report.reasons[0]
