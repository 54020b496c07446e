"""Whole models of transformers: experts, replicated layers, saved heads, tokens, embeddings, names."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import save_file
from torch import nn

from gradience.adapters.files import find_files
from gradience.adapters.open import read_adapter
from gradience.io.safetensors import SafetensorsFile

TOLERANCE = 1e-5
SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}


def llama(**more):
    config = transformers.LlamaConfig(**SIZES, **HEADS, **more)
    return transformers.LlamaForCausalLM(config)


def mixtral():
    config = transformers.MixtralConfig(**SIZES, **HEADS, num_local_experts=3, num_experts_per_tok=2)
    return transformers.MixtralForCausalLM(config)


def read(folder):
    return read_adapter(find_files(folder), SafetensorsFile)


def roles(adapter):
    """Return how many tensors have each role."""
    counts: dict[str, int] = {}
    for role in adapter.roles.values():
        counts[role] = counts.get(role, 0) + 1
    return counts


class Experts(nn.Module):
    """Stacked experts as models register them, in an order of their own."""

    def __init__(self, *, is_transposed=False, square=False):
        super().__init__()
        self.is_transposed = is_transposed
        inner = 16 if square else 10
        shape = (4, 16, 2 * inner) if is_transposed else (4, 2 * inner, 16)
        self.gate_up_proj = nn.Parameter(torch.randn(shape))
        self.down_proj = nn.Parameter(torch.randn((4, inner, 16) if is_transposed else (4, 16, inner)))

    def forward(self, x):
        return x


class MoE(nn.Module):
    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.ModuleList(nn.ModuleDict({"experts": Experts(**options)}) for _ in range(2))

    def forward(self, x):
        return x


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "more",
    [
        {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
        {"target_parameters": ["experts.down_proj"]},
        {"target_parameters": ["gate_up_proj", "down_proj"], "target_modules": []},
        {
            "target_parameters": ["experts.down_proj", "experts.gate_up_proj"],
            "rank_pattern": {"experts.gate_up_proj": 6},
            "alpha_pattern": {"experts.down_proj": 7},
            "use_rslora": True,
        },
    ],
    ids=str,
)
def test_stacked_experts_are_what_peft_merges(make, worst_error, more, transposed):
    case = make(MoE(is_transposed=transposed), LoraConfig(r=3, lora_alpha=5, **more))
    assert worst_error(case) < TOLERANCE
    names = [m.name for m in case.read().modules]
    assert "layers.1.experts.down_proj[3]" in names
    assert len(names) == 2 * 4 * len(more["target_parameters"])


@pytest.mark.parametrize(
    "targets",
    [["q_proj", "gate", "w1", "w2", "w3"], "all-linear"],
    ids=str,
)
def test_mixtral_with_its_old_names_is_what_peft_merges(make, worst_error, targets):
    case = make(mixtral(), LoraConfig(r=2, lora_alpha=3, target_modules=targets))
    assert worst_error(case) < TOLERANCE
    experts = [m for m in case.read().modules if m.expert is not None]
    assert {m.base_name.rpartition(".")[2] for m in experts} == {"gate_up_proj", "down_proj"}
    assert {m.r for m in experts if "gate_up" in m.name} == {4}
    assert len(experts) == 2 * 3 * 2


def test_gpt_oss_is_what_peft_merges(make, worst_error):
    config = transformers.GptOssConfig(
        **SIZES, **HEADS, head_dim=8, num_local_experts=3, num_experts_per_tok=2, layer_types=["full_attention"] * 2
    )
    model = transformers.GptOssForCausalLM(config)
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    case = make(model, LoraConfig(r=2, target_modules=["q_proj"], target_parameters=targets))
    assert worst_error(case) < TOLERANCE


def test_embedding_and_head_are_what_peft_merges_and_their_copies_are_known(make, worst_error):
    case = make(llama(), LoraConfig(r=4, target_modules=["q_proj", "embed_tokens", "lm_head"]))
    assert worst_error(case) < TOLERANCE
    adapter = case.read()
    assert roles(adapter) == {"lora_pair": 8, "base_copy": 2}
    assert not adapter.skipped


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_every_tensor_of_a_classifier_with_biases_has_a_role(make, worst_error, bias):
    config = transformers.BertConfig(**SIZES, num_attention_heads=2, num_labels=3)
    model = transformers.BertForSequenceClassification(config)
    lora = LoraConfig(r=4, target_modules=["query", "value"], bias=bias, task_type=TaskType.SEQ_CLS)
    case = make(model, lora)
    assert worst_error(case) < TOLERANCE
    found = roles(case.read())
    assert found.keys() <= {"lora_pair", "bias", "full_module", "base_copy"}
    assert found["lora_pair"] == 8
    assert found["full_module"] == (3 if bias == "all" else 2)  # the classifier; "all" saves its bias twice
    assert found["bias"] >= 4


@pytest.mark.filterwarnings(r"ignore:PiSSA changes the base weights:UserWarning:peft\.peft_model")
def test_a_converted_pissa_adapter_is_the_whole_update(tmp_path):
    model = llama()
    base = {k: v.clone() for k, v in model.state_dict().items()}
    wrapped = get_peft_model(
        copy.deepcopy(model), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="pissa")
    )
    wrapped.peft_config["default"].init_lora_weights = True
    wrapped.save_pretrained(tmp_path / "initial")
    wrapped.peft_config["default"].init_lora_weights = "pissa"
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    wrapped.save_pretrained(tmp_path / "done", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    merged = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "done").merge_and_unload().state_dict()
    adapter = read(tmp_path / "done")
    assert {m.r for m in adapter.modules} == {8}
    assert not adapter.notes
    for module in adapter.modules:
        b, a = module.load()
        truth = (merged[module.base_name] - base[module.base_name]).numpy()
        np.testing.assert_allclose(module.scale * b @ a, truth, atol=1e-4 * np.abs(truth).max())
        assert module.dense is None


def test_a_live_state_dict_of_one_adapter_reads_like_a_saved_one(tmp_path):
    wrapped = get_peft_model(llama(), LoraConfig(r=4, target_modules=["q_proj"], use_dora=True))
    wrapped.save_pretrained(tmp_path / "saved")
    (tmp_path / "raw").mkdir()
    wrapped.peft_config["default"].save_pretrained(tmp_path / "raw")
    raw = {
        f"_orig_mod.{k}".replace("_orig_mod.base_model.model.", "base_model.model._orig_mod."): v.contiguous()
        for k, v in wrapped.state_dict().items()
        if "lora_" in k
    }
    save_file(raw, tmp_path / "raw" / "adapter_model.safetensors")
    saved, live = read(tmp_path / "saved"), read(tmp_path / "raw")
    assert [(m.name, m.kind, m.shape, m.scale) for m in live.modules] == [
        (m.name, m.kind, m.shape, m.scale) for m in saved.modules
    ]
