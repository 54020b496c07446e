"""PEFT to MLX-LM and back: MLX-LM itself loads what is written, and computes what PEFT computes."""

from __future__ import annotations

import json
from importlib import import_module

import numpy as np
import pytest
import torch
import transformers
from peft import LoHaConfig, LoraConfig
from safetensors.numpy import load_file, save_file

from gradience.adapters.files import find_files
from gradience.adapters.open import read_adapter
from gradience.errors import AdapterError
from gradience.io.safetensors import SafetensorsFile
from gradience.verbs.convert.run import convert_adapter

TARGETS = ["q_proj", "v_proj", "up_proj"]
SOME = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS}
SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
MIXED = {"rank_pattern": {"1.self_attn.q_proj": 2}, "alpha_pattern": {"up_proj": 3}}
TOKENS = np.array([[1, 5, 7, 2, 30]])


def llama():
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **HEADS, tie_word_embeddings=False))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return model


@pytest.mark.oracle("mlx")
@pytest.mark.parametrize(
    ("config", "options"),
    [
        (LoraConfig(**SOME), {}),
        (LoraConfig(**SOME, **MIXED, use_rslora=True), {}),
        (LoraConfig(**SOME, layers_to_transform=[1]), {}),
        (LoraConfig(r=4, lora_alpha=6, target_modules=[*TARGETS, "embed_tokens", "lm_head"]), {"drop": True}),
        (LoraConfig(**SOME, use_dora=True), {}),
        (LoraConfig(**SOME, **MIXED, use_dora=True), {}),
        (LoraConfig(**SOME, init_lora_weights="pissa"), {"base": True}),
        (LoHaConfig(r=2, target_modules=TARGETS), {}),
    ],
    ids=["plain", "mixed ranks and scales", "one layer", "embedding", "dora", "dora mixed", "pissa", "loha"],
)
def test_mlx_lm_computes_with_what_is_written_what_peft_computes(make, outputs, config, options):
    mx = import_module("mlx.core")
    loaders = import_module("mlx_lm.utils")
    case = make(config, llama())
    case.model.save_pretrained(case.base)
    written = case.folder.parent / "mlx"
    convert_adapter(
        case.folder, written, to="mlx", base=case.base if options.get("base") else None, drop="drop" in options
    )
    model, _ = loaders.load_model(case.base)
    plain = np.array(model(mx.array(TOKENS)).astype(mx.float32))
    adapted = loaders.load_adapters(model, str(written))
    adapted.eval()
    got = np.array(adapted(mx.array(TOKENS)).astype(mx.float32))
    truth = outputs(case.model, case.folder, TOKENS)
    assert np.abs(truth - plain).max() > 0.1
    np.testing.assert_allclose(got, truth, atol=1e-5)


@pytest.mark.parametrize("more", [{}, MIXED, {"use_dora": True}, {"use_rslora": True}], ids=str)
def test_a_round_trip_through_mlx_is_the_same_update(make, more):
    case = make(LoraConfig(**SOME, **more), llama())
    there, back = case.folder.parent / "mlx", case.folder.parent / "back"
    convert_adapter(case.folder, there, to="mlx")
    with pytest.raises(AdapterError, match="MLX-LM's already"):
        convert_adapter(there, to="mlx")
    convert_adapter(there, back)
    assert case.error(back) < (1e-6 if more == MIXED else 1e-12)  # a folded scale is rounded once
    if more != MIXED:
        before, after = (load_file(f / "adapter_model.safetensors") for f in (case.folder, back))
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            np.testing.assert_array_equal(after[name], tensor)


def test_an_adapter_of_mlx_lm_becomes_one_that_adds_the_same(shared_data, tmp_path):
    source = shared_data / "adapters" / "mlx-qwen-r8"
    report = convert_adapter(source, tmp_path / "peft")
    old, new = (read_adapter(find_files(f), SafetensorsFile) for f in (source, tmp_path / "peft"))
    assert new.format == "peft"
    assert not new.notes
    assert [m.name for m in old.modules] == [m.name for m in new.modules] == [row.target for row in report.modules]
    for before, after in zip(old.modules, new.modules, strict=True):
        assert after.scale == pytest.approx(before.scale, rel=1e-12)
        for x, y in zip(before.load(), after.load(), strict=True):
            np.testing.assert_array_equal(x, y)
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (config["task_type"], config["r"], config["lora_alpha"]) == ("CAUSAL_LM", 8, 80)


def test_prefixes_are_renamed_on_the_dots(make):
    case = make(LoraConfig(**SOME), llama())
    report = convert_adapter(case.folder, to="mlx", renames=["model=language_model.model", "model.lay=never"])
    assert all(row.target == f"language_model.{row.name}" for row in report.modules)
    with pytest.raises(AdapterError, match="no prefix to replace"):
        convert_adapter(case.folder, to="mlx", renames=["model"])


def test_whole_weights_of_mlx_are_refused(tmp_path):
    save_file({"model.layers.0.q_proj.weight": np.zeros((4, 4), np.float32)}, tmp_path / "adapters.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"fine_tune_type": "full", "num_layers": 1}))
    with pytest.raises(AdapterError, match="whole weights"):
        convert_adapter(tmp_path)


@pytest.mark.oracle("mlx")
def test_gpt2_is_what_peft_computes_under_its_other_names_and_turned_weights(make, tmp_path, outputs):
    mx = import_module("mlx.core")
    loaders = import_module("mlx_lm.utils")
    torch.manual_seed(0)
    special = {"bos_token_id": 0, "eos_token_id": 1}
    config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16, **special)
    model = transformers.GPT2LMHeadModel(config)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    case = make(LoraConfig(r=4, lora_alpha=6, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True), model)
    weights = {k.removeprefix("transformer."): v.numpy() for k, v in model.transformer.state_dict().items()}
    base = tmp_path / "base"
    model.save_pretrained(base)
    save_file({k: np.ascontiguousarray(v) for k, v in weights.items()}, base / "model.safetensors")
    fields = json.loads((base / "config.json").read_text()) | {"n_ctx": 16}
    (base / "config.json").write_text(json.dumps(fields))
    convert_adapter(case.folder, tmp_path / "mlx", to="mlx", renames=["transformer=model"])
    loaded = loaders.load_adapters(loaders.load_model(base)[0], str(tmp_path / "mlx"))
    loaded.eval()
    truth = outputs(model, case.folder, TOKENS)
    np.testing.assert_allclose(np.array(loaded(mx.array(TOKENS)).astype(mx.float32)), truth, atol=1e-5)
    convert_adapter(tmp_path / "mlx", tmp_path / "back", renames=["model=transformer"], base=base)
    assert json.loads((tmp_path / "back" / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    np.testing.assert_array_equal(outputs(model, tmp_path / "back", TOKENS), truth)
