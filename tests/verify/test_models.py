"""Real model classes, saved by transformers: tied heads, shards, stacked experts, grown vocabularies, prefixes."""

from __future__ import annotations

import json
import warnings
from importlib import import_module
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import VOCABULARY, causal, gpt2, mixtral

from gradience import verify_merged


def trained(model, config: LoraConfig, folder: Path):
    """Save an adapter with numbers as training might leave them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, config)
        generator = torch.Generator().manual_seed(1)
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.1).to(parameter.dtype)
        wrapped.save_pretrained(folder)


def merged(model, adapter: Path, out: Path, **options) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out, **options)


def run(tmp_path: Path, build, config: LoraConfig, *, dtype=torch.bfloat16, grow: int = 0, **options):
    """Save base, adapter and PEFT's merge of a model class, and return the report."""

    def grown():
        model = build().to(dtype)
        if grow:
            torch.manual_seed(2)
            model.resize_token_embeddings(VOCABULARY + grow, mean_resizing=False)
        return model

    build().to(dtype).save_pretrained(tmp_path / "base", **options)
    trained(grown(), config, tmp_path / "adapter")
    merged(grown(), tmp_path / "adapter", tmp_path / "merged", **options)
    return verify_merged(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")


ATTENTION = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")


def test_shards_are_read_one_after_the_other(tmp_path):
    report = run(tmp_path, causal, ATTENTION, max_shard_size="5KB")
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 1
    assert report.verdict == "contained"
    assert report.counts == {"exact": 6}
    assert report.others == []


def test_a_grown_vocabulary_comes_with_the_adapter(tmp_path):
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    report = run(tmp_path, causal, config, grow=5)
    rows = {row.name: row.verdict for row in report.modules}
    assert report.verdict == "contained"
    assert rows["model.embed_tokens.weight"] == rows["lm_head.weight"] == "exact"


@pytest.mark.parametrize("grow", [0, 5])
def test_lora_on_the_embedding_uses_the_adapters_copy_of_it(tmp_path, grow):
    config = LoraConfig(r=4, target_modules=["q_proj", "embed_tokens", "lm_head"], task_type="CAUSAL_LM")
    report = run(tmp_path, causal, config, grow=grow)
    assert report.verdict == "contained"
    assert report.counts == {"exact": 3, "within_rounding": 1}  # PEFT keeps an embedding's factors in the base's dtype


def test_a_grown_vocabulary_without_its_rows_is_compared_as_far_as_both_go(tmp_path):
    config = LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM")
    run(tmp_path, causal, config, grow=5)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    kept = {key: x for key, x in load_file(path).items() if "base_layer" not in key and "embed_tokens" not in key}
    save_file(kept, path)
    report = verify_merged(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert [row.verdict for row in report.modules] == ["exact"]
    assert "60, 65, 65: the first 60 are compared" in report.modules[0].reason


def tied_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=32))


def test_a_tied_head_is_the_embedding_with_most_rows(tmp_path):
    """A head of GPT-2 is tied to `wte`, beside which it has `wpe`."""
    config = LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM")
    report = run(tmp_path, tied_gpt2, config)
    assert [row.verdict for row in report.modules] == ["exact"]
    assert "shares the embedding's matrix" in report.modules[0].reason
    assert report.others == []


def test_gpt2_stores_its_weights_turned_and_its_files_may_lack_the_prefix(tmp_path):
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    report = run(tmp_path, gpt2, config, dtype=torch.float32)
    assert report.counts == {"exact": 4}
    bare = {key.removeprefix("transformer."): x for key, x in load_file(tmp_path / "base/model.safetensors").items()}
    save_file(bare, tmp_path / "base" / "model.safetensors")
    report = verify_merged(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert report.counts == {"exact": 4}
    assert report.others == []


def test_stacked_experts_are_found_where_transformers_writes_them_apart(tmp_path):
    config = LoraConfig(
        r=2, lora_alpha=3, target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"]
    )
    report = run(tmp_path, mixtral, config)
    assert report.verdict == "contained"
    assert len(report.modules) == 1 + 2 * 2
    assert report.others == []
    lost = verify_merged(tmp_path / "base", tmp_path / "adapter", tmp_path / "base")
    assert lost.counts == {"absent": 5}


def test_replicated_layers_are_compared_with_the_layer_they_repeat(tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], layer_replication=[[0, 2], [1, 2]], task_type="CAUSAL_LM")
    causal().save_pretrained(tmp_path / "base")
    trained(causal(), config, tmp_path / "adapter")
    state, factors = causal().state_dict(), load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for layer, copied in ((2, 1), (1, 1), (0, 0)):  # what a merge into layers with weights of their own gives
        stem = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        update = factors[f"{stem}.lora_B.weight"] @ factors[f"{stem}.lora_A.weight"] * (config.lora_alpha / config.r)
        name = "model.layers.{}.self_attn.q_proj.weight"
        state[name.format(layer)] = state[name.format(copied)] + update
    (tmp_path / "merged").mkdir()
    save_file({key: x.clone() for key, x in state.items()}, tmp_path / "merged" / "model.safetensors")
    report = verify_merged(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert report.counts == {"exact": 3}
    assert {row.name: row.base_tensor for row in report.modules}["model.layers.2.self_attn.q_proj"] == (
        "model.layers.1.self_attn.q_proj.weight"
    )


@pytest.mark.oracle("mlx")
def test_a_fuse_by_mlx_lm_is_met(tmp_path):
    mlx = import_module("mlx.core")
    nn = import_module("mlx.nn")
    from mlx_lm.tuner.lora import LoRALinear

    layer = nn.Linear(32, 48, bias=False)
    layer.weight = (mlx.random.normal((48, 32)) * 0.1).astype(mlx.bfloat16)
    lora = LoRALinear.from_base(layer, r=4, scale=3.3)
    lora.lora_a, lora.lora_b = mlx.random.normal((32, 4)) * 0.1, mlx.random.normal((4, 48)) * 0.1
    name = "model.layers.0.self_attn.q_proj"
    for folder in ("base", "adapter", "merged"):
        (tmp_path / folder).mkdir()
    mlx.save_safetensors(str(tmp_path / "base" / "model.safetensors"), {f"{name}.weight": layer.weight})
    mlx.save_safetensors(str(tmp_path / "merged" / "model.safetensors"), {f"{name}.weight": lora.fuse().weight})
    factors = {f"{name}.lora_a": lora.lora_a, f"{name}.lora_b": lora.lora_b}
    mlx.save_safetensors(str(tmp_path / "adapter" / "adapters.safetensors"), factors)
    parameters = {"rank": 4, "scale": 3.3, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    document = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": parameters}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(document))
    report = verify_merged(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert report.verdict == "contained"
