"""Stacked experts: MLX-LM and PEFT compute the same logits with each other's adapters of a mixture of experts."""

from __future__ import annotations

import json
import warnings
from importlib import import_module

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig
from peft_models import merged_update
from safetensors.numpy import load_file, save_file

from gradience.errors import AdapterError
from gradience.verbs.convert.run import convert_adapter

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
TOKENS = np.array([[1, 5, 7, 2, 30]])
EXPERTS, INNER, RANK, SCALE = 4, 12, 3, 2.0
RNG = np.random.default_rng(0)


def moe():
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        **SIZES, **HEADS, num_experts=EXPERTS, num_experts_per_tok=2, moe_intermediate_size=INNER, mlp_only_layers=[]
    )
    model = transformers.Qwen3MoeForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return model


def mlx_adapter(folder, *, router=True, parts=("gate_proj", "up_proj", "down_proj")):
    """Write an adapter as MLX-LM saves one of a Qwen3 mixture of experts."""
    folder.mkdir()
    tensors = {}
    for layer in range(2):
        stem = f"model.layers.{layer}"
        shapes = {f"{stem}.self_attn.q_proj": (16, 16)} | ({f"{stem}.mlp.gate": (16, EXPERTS)} if router else {})
        for name, (inner, out) in shapes.items():
            tensors[f"{name}.lora_a"] = RNG.normal(0, 0.3, (inner, RANK))
            tensors[f"{name}.lora_b"] = RNG.normal(0, 0.3, (RANK, out))
        for part in parts:
            inner, out = (INNER, 16) if part == "down_proj" else (16, INNER)
            tensors[f"{stem}.mlp.switch_mlp.{part}.lora_a"] = RNG.normal(0, 0.3, (EXPERTS, RANK, inner))
            tensors[f"{stem}.mlp.switch_mlp.{part}.lora_b"] = RNG.normal(0, 0.3, (EXPERTS, out, RANK))
    save_file({k: v.astype(np.float32) for k, v in tensors.items()}, folder / "adapters.safetensors")
    parameters = {"rank": RANK, "scale": SCALE, "dropout": 0.1, "keys": [k.rpartition(".")[0] for k in tensors]}
    config = {"fine_tune_type": "lora", "num_layers": -1, "model": None, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return tensors


def expected(tensors, name, expert):
    """Return scale * b @ a of an expert, as MLX-LM's LoRASwitchLinear fuses it."""
    return SCALE * tensors[f"{name}.lora_b"][expert] @ tensors[f"{name}.lora_a"][expert]


@pytest.mark.parametrize(
    "parts", [("gate_proj", "up_proj", "down_proj"), ("down_proj",), ("up_proj",), ("gate_proj", "down_proj")], ids=str
)
def test_peft_merges_what_mlx_lm_fuses_into_each_expert(tmp_path, parts):
    tensors = mlx_adapter(tmp_path / "mlx", router=False, parts=parts)
    report = convert_adapter(tmp_path / "mlx", tmp_path / "peft")
    assert bool(report.notes) is (len(parts) == 3)  # that ranks were padded
    update = merged_update(moe(), tmp_path / "peft")
    for layer in range(2):
        stem = f"model.layers.{layer}.mlp"
        halves = {"gate_proj": slice(0, INNER), "up_proj": slice(INNER, None), "down_proj": slice(None)}
        for part, rows in halves.items():
            weight = update[f"{stem}.experts.{'down_proj' if part == 'down_proj' else 'gate_up_proj'}"]
            for expert in range(EXPERTS):
                truth = expected(tensors, f"{stem}.switch_mlp.{part}", expert) if part in parts else 0.0
                np.testing.assert_allclose(weight[expert, rows], truth, atol=1e-5)


@pytest.mark.oracle("mlx")
def test_mlx_lm_and_peft_compute_the_same_there_and_back(tmp_path, outputs):
    mx = import_module("mlx.core")
    loaders = import_module("mlx_lm.utils")
    model = moe()
    model.save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    fields = {"num_experts": EXPERTS, "rope_theta": 10000.0}  # as transformers 4 spelt them, and MLX-LM reads them
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    def theirs(folder):
        loaded = loaders.load_adapters(loaders.load_model(tmp_path / "base")[0], str(folder))
        loaded.eval()
        return np.array(loaded(mx.array(TOKENS)).astype(mx.float32))

    mlx_adapter(tmp_path / "mlx")
    truth = theirs(tmp_path / "mlx")
    with torch.no_grad():
        assert np.abs(model(input_ids=torch.tensor(TOKENS)).logits.numpy() - truth).max() > 0.5
    convert_adapter(tmp_path / "mlx", tmp_path / "peft")
    np.testing.assert_allclose(outputs(model, tmp_path / "peft", TOKENS), truth, atol=1e-5)
    convert_adapter(tmp_path / "peft", tmp_path / "again", to="mlx")
    np.testing.assert_allclose(theirs(tmp_path / "again"), truth, atol=1e-5)
    report = convert_adapter(tmp_path / "again", tmp_path / "back")
    np.testing.assert_allclose(outputs(model, tmp_path / "back", TOKENS), truth, atol=1e-5)
    assert {row.rank_after for row in report.modules if row.kind == "expert"} == {2 * RANK}  # it does not grow


def test_an_adapter_of_experts_loads_in_peft_without_a_warning_and_says_what_it_padded(tmp_path):
    mlx_adapter(tmp_path / "mlx")
    report = convert_adapter(tmp_path / "mlx", tmp_path / "peft")
    assert any("padded with zeros to rank 6" in note for note in report.notes)
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (6, 12, 0.0)
    assert "model.layers.1.mlp.experts.down_proj" in config["target_parameters"]
    assert "model.layers.0.mlp.gate.weight" in config["target_parameters"]
    assert all("experts" not in key and "gate" not in key for key in config["rank_pattern"])
    merged_update(moe(), tmp_path / "peft")  # a warning on loading is an error


def test_experts_that_peft_trained_become_mlx_layers_of_the_same_rank(make, tmp_path):
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = make(LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"], target_parameters=targets), moe())
    report = convert_adapter(case.folder, tmp_path / "mlx", to="mlx")
    written = load_file(tmp_path / "mlx" / "adapters.safetensors")
    assert {row.rank_after for row in report.modules} == {2}
    for layer in range(2):
        stem = f"model.layers.{layer}.mlp"
        fused = case.update[f"{stem}.experts.gate_up_proj"]
        for part, truth in (("gate_proj", fused[:, :INNER]), ("up_proj", fused[:, INNER:])):
            a, b = (written[f"{stem}.switch_mlp.{part}.lora_{x}"] for x in "ab")
            np.testing.assert_allclose(3.0 * b @ a, truth, atol=1e-5)


def test_experts_are_not_cut_and_unknown_ones_are_refused(tmp_path):
    mlx_adapter(tmp_path / "mlx")
    with pytest.raises(AdapterError, match="converted whole"):
        convert_adapter(tmp_path / "mlx", rank=1)
    file = tmp_path / "mlx" / "adapters.safetensors"
    save_file({k.replace("switch_mlp", "experts"): v for k, v in load_file(file).items()}, file)
    with pytest.raises(AdapterError, match="switch_mlp"):
        convert_adapter(tmp_path / "mlx")


def test_experts_that_mlx_lm_lays_out_otherwise_are_refused(make, tmp_path):
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = make(LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"], target_parameters=targets), moe())
    path = case.folder / "adapter_config.json"
    for kind, name, refused in (
        ("", "mistralai/Mixtral-8x7B-v0.1", True),
        ("", "openai/gpt-oss-20b", True),
        ("", "Qwen/Qwen3-30B-A3B", False),
        ("mixtral", "my/model", True),
        ("qwen3_moe", "org/mixtral-like", False),
    ):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": name}))
        base = case.base if kind else None
        if base is not None:
            (base / "config.json").write_text(json.dumps({"model_type": kind}))
        if not refused:
            assert convert_adapter(case.folder, to="mlx", base=base).modules
            continue
        with pytest.raises(AdapterError, match="below block_sparse_moe, and gpt-oss's gate and up by turns"):
            convert_adapter(case.folder, tmp_path / "out", to="mlx", base=base)
        assert not (tmp_path / "out").exists()
