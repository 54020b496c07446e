"""A mixture of experts as transformers has it: PEFT turns its targets into parameters, and writes patterns for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig
from peft_models import made, merged_update

from gradience import compare_adapters, merge_adapters

EXPERTS = {"target_modules": "all-linear"}
ATTENTION = {"target_modules": ["q_proj", "k_proj"]}
OLD_NAMES = {"target_modules": ["w1", "w2", "w3", "q_proj"]}


def mixtral():
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    experts = {"num_local_experts": 3, "num_experts_per_tok": 2}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, **heads, **experts))


def saved(model, folder, seed, **config):
    return made(folder, LoraConfig(r=4 - seed, lora_alpha=8, **config), model, seed=seed).update()


@pytest.mark.parametrize("configs", [(EXPERTS, EXPERTS), (ATTENTION, EXPERTS), (OLD_NAMES, OLD_NAMES)], ids=str)
def test_experts_of_a_real_model_are_summed_one_by_one(configs, tmp_path):
    model = mixtral()
    parts = [saved(model, tmp_path / str(seed), seed, **config) for seed, config in enumerate(configs)]
    report = merge_adapters([tmp_path / "0", tmp_path / "1"], tmp_path / "out", weights=[0.7, 0.4])
    found = merged_update(model, tmp_path / "out")
    for name, value in found.items():
        truth = 0.7 * parts[0][name] + 0.4 * parts[1][name]
        np.testing.assert_allclose(value, truth, atol=1e-5 * max(1.0, np.abs(truth).max()), err_msg=name)
    assert sum(row.kind == "expert" for row in report.modules) == 2 * 2 * 3


def test_experts_are_compared_one_by_one(tmp_path):
    model = mixtral()
    parts = [saved(model, tmp_path / str(seed), seed, **EXPERTS) for seed in (0, 1)]
    rows = {row.name: row for row in compare_adapters(tmp_path / "0", tmp_path / "1").pairs[0].modules}
    row = rows["model.layers.1.mlp.experts.down_proj[2]"]
    x, y = (part["model.layers.1.mlp.experts.down_proj"][2] for part in parts)
    assert row.cosine == pytest.approx(np.sum(x * y) / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-5)
