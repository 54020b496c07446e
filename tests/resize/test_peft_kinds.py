"""Whatever PEFT adapts, the resized adapter loads without a warning and merges to the best update of its rank."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
import torch
import transformers
from hand_made import WEIGHTS, best, config_of
from jsonschema import Draft202012Validator
from peft import LoHaConfig, LoraConfig
from peft_models import Net, same
from safetensors.torch import load_file
from tables import once

from gradience import AdapterError, audit_adapter, resize_adapter
from gradience.schema.export import json_schema

LINEAR = ["q_proj", "up_proj"]
SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}


def llama(**more):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **HEADS, **more))


def mixtral():
    config = transformers.MixtralConfig(**SIZES, **HEADS, num_local_experts=3, num_experts_per_tok=2)
    return transformers.MixtralForCausalLM(config)


EXPERTS = {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
UNEQUAL = {
    "target_modules": [],
    "target_parameters": ["experts.down_proj", "experts.gate_up_proj"],
    "rank_pattern": {"experts.gate_up_proj": 6},
    "alpha_pattern": {"experts.down_proj": 7},
    "use_rslora": True,
}
KINDS = {  # fields of the config, and the model if it is no `Net`
    "linear": ({"target_modules": LINEAR}, None),
    "stored (in, out)": ({"target_modules": ["c_attn"], "fan_in_fan_out": True}, None),
    "embedding": ({"target_modules": ["embed_tokens", "q_proj"]}, None),
    "convolutions": ({"target_modules": ["conv1d", "conv2d", "pointwise"]}, None),
    "multihead attention": ({"target_modules": ["attention"]}, None),
    "rslora": ({"target_modules": LINEAR, "use_rslora": True}, None),
    "patterns": (
        {"target_modules": LINEAR, "rank_pattern": {"1.q_proj": 3, "q_proj": 2}, "alpha_pattern": {"0.up_proj": 32}},
        None,
    ),
    "expressions": (
        {"target_modules": LINEAR, "rank_pattern": {r"layers\.1\..*": 3, "q_proj": 6}, "use_rslora": True},
        None,
    ),
    "some layers": ({"target_modules": LINEAR, "layers_to_transform": [1], "layers_pattern": "layers"}, None),
    "orthogonal": ({"target_modules": LINEAR, "init_lora_weights": "orthogonal"}, None),
    "mica": ({"target_modules": LINEAR, "init_lora_weights": "mica"}, None),
    "turned": ({"target_modules": LINEAR, "lora_alpha": -3}, None),
    "a parameter": ({"target_modules": [], "target_parameters": ["q_proj.weight"]}, None),
    "experts": (EXPERTS, None),
    "experts stored turned": (UNEQUAL, lambda: Net(is_transposed=True)),
    "mixtral's old names": ({"target_modules": ["q_proj", "v_proj", "w1", "w2", "w3"]}, mixtral),
    "mixtral, all linear": ({"target_modules": "all-linear"}, mixtral),
}


def assert_best(case, out, report):
    """Every weight that changed is the best approximation of the original change at the reported rank."""
    before, after = case.update(), case.update(out)
    ranks = {row.name.partition("[")[0]: row.rank_after for row in report.modules}  # experts of a parameter together
    changed = [name for name, update in before.items() if np.abs(update).max() > 0]
    assert len(changed) >= len(ranks)
    for name in changed:
        rank, whole = ranks[name.removesuffix(".weight").replace(".in_proj_weight", "")], before[name]
        stacked = whole.ndim == 3 and name.endswith("_proj")
        wanted = np.stack([best(one, rank) for one in whole]) if stacked else best(whole, rank)
        assert same(after[name], wanted, whole), name
    assert not any(np.abs(after[name]).max() > 0 for name in before.keys() - set(changed))


@once(kind=KINDS, criterion=[{"rank": 2}, {"energy": 0.91}])
def test_an_adapter_of_any_layer_becomes_the_best_update_of_its_rank(make, tmp_path, kind, criterion):
    fields, model = KINDS[kind]
    case = make(LoraConfig(**({"r": 4, "lora_alpha": 6} | fields)), model and model())
    report = resize_adapter(case.folder, tmp_path / "out", **criterion)
    assert_best(case, tmp_path / "out", report)
    assert report.params_after < report.params_before


def test_replicated_layers_keep_a_rank_each(make, tmp_path):
    case = make(LoraConfig(r=4, target_modules=["q_proj"], layer_replication=[[0, 2], [1, 2], [0, 1]]), llama())
    report = resize_adapter(case.folder, tmp_path / "out", rank=2)
    assert {row.rank_after for row in report.modules} == {2}
    whole, cut = (audit_adapter(folder, top_singular_values=4).modules for folder in (case.folder, tmp_path / "out"))
    for old, new in zip(whole, cut, strict=True):
        np.testing.assert_allclose(new.top_singular_values, old.top_singular_values[:2], rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (LoraConfig(r=4, target_modules=LINEAR, init_lora_weights="pissa"), "pissa"),
        (LoHaConfig(r=3, target_modules=LINEAR), "LOHA"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_kinds_that_another_rank_would_mangle_are_refused_with_a_way_on(make, tmp_path, config, says):
    with pytest.raises(AdapterError, match=f"cannot resize .*{says}") as caught:
        resize_adapter(make(config).folder, tmp_path / "out", rank=2)
    assert "convert" in caught.value.advice


@pytest.mark.parametrize(
    ("more", "model"),
    [
        ({"bias": "all", "modules_to_save": ["classifier"], "lora_bias": True}, None),
        ({"bias": "lora_only"}, None),
        ({"task_type": "CAUSAL_LM", "trainable_token_indices": {"embed_tokens": [1, 5]}}, llama),
    ],
    ids=["heads and biases", "biases of the adapted", "tokens"],
)
def test_every_other_tensor_and_key_of_the_config_is_kept(make, tmp_path, more, model):
    targets = ["q_proj"] if model else LINEAR
    case = make(LoraConfig(r=4, target_modules=targets, lora_dropout=0.1, revision="abc", **more), model and model())
    path, out = case.folder / "adapter_config.json", tmp_path / "out"
    path.write_text(json.dumps(case.config | {"a_key_of_tomorrow": {"x": 1}}))
    resize_adapter(case.folder, out, rank=2)
    old, new = (load_file(folder / WEIGHTS) for folder in (case.folder, out))
    assert list(old) == list(new)
    kept = [name for name in old if "lora_A" not in name and not name.endswith("lora_B.weight")]
    assert kept
    assert all(torch.equal(old[name], new[name]) for name in kept)
    before, after = case.config, config_of(out)
    assert {key for key in before if before[key] != after[key]} == {"r", "lora_alpha"}
    assert before.keys() == after.keys()
    del after["a_key_of_tomorrow"]  # PEFT warns of it
    (out / "adapter_config.json").write_text(json.dumps(after))
    case.update(out)


def test_the_suggested_ranks_are_exactly_the_ones_that_result(make, tmp_path):
    def falling(model):
        """Give lora_B the spectrum of training, another one in each module; random numbers have no suggestion."""
        factors = [p for name, p in model.named_parameters() if "lora_B" in name]
        for place, factor in enumerate(factors, 1):
            factor.data *= torch.exp(-torch.arange(factor.shape[1]) * (1.2 - 0.2 * place))

    case = make(LoraConfig(r=8, lora_alpha=12, target_modules=LINEAR), edit=falling)
    audit = audit_adapter(case.folder, suggest_per_layer=True)
    report = resize_adapter(case.folder, tmp_path / "out", like_suggested=True)
    assert audit.like_suggested.params_saved == report.params_before - report.params_after
    for hint in (audit.like_suggested, audit.per_layer):
        assert hint.relative_error == pytest.approx(report.relative_error, rel=1e-9)
    wanted = {row.name: row.rank for row in audit.per_layer.modules}
    assert {row.name: row.rank_after for row in report.modules} == wanted
    assert {row.name: row.r for row in audit_adapter(tmp_path / "out").modules} == wanted
    assert len(set(wanted.values())) > 1
    assert report.rank_pattern == audit.per_layer.rank_pattern
    for row, hint in zip(report.modules, audit.per_layer.modules, strict=True):
        assert row.relative_error == pytest.approx(hint.relative_error, rel=1e-9)
    attention = make(LoraConfig(r=8, target_modules=["attention"]), name="attention")
    ranks = [row.rank for row in audit_adapter(attention.folder, suggest_per_layer=True).per_layer.modules]
    report = resize_adapter(attention.folder, like_suggested=True)
    assert {row.rank_after for row in report.modules} == {max(ranks)}  # one config for both of its pairs


def test_torchs_own_file_becomes_a_safetensors_file(make, tmp_path):
    folder = make(LoraConfig(r=4, target_modules=LINEAR)).folder
    resize_adapter(folder, tmp_path / "one", rank=2)
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    resize_adapter(folder, tmp_path / "two", rank=2)
    assert (tmp_path / "one" / WEIGHTS).read_bytes() == (tmp_path / "two" / WEIGHTS).read_bytes()


def test_a_dry_run_writes_nothing_and_says_the_same_and_the_record_has_no_path(pair, tmp_path):
    dry = resize_adapter(pair.folder, rank=2)
    assert list(tmp_path.iterdir()) == []
    real = resize_adapter(pair.folder, tmp_path / "out", rank=2)
    assert msgspec.structs.replace(real, out=None) == dry
    Draft202012Validator(json_schema("resize")).validate(msgspec.to_builtins(real))
    text = (tmp_path / "out" / "gradience_provenance.json").read_text()
    record = json.loads(text)
    assert (record["operation"], record["options"]) == ("resize", {"criterion": "rank", "value": 2.0, "dtype": None})
    assert [source["name"] for source in record["sources"]] == ["adapter_config.json", WEIGHTS]
    assert {module["rank_after"] for module in record["modules"]} == {2}
    assert str(pair.folder) not in text
