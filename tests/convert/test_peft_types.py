"""Every type that PEFT merges into weights, as a plain LoRA: PEFT's own merge is the truth before and after."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hand_made import config_of
from peft import AdaLoraConfig, HiraConfig, LoHaConfig, LoKrConfig, LoraConfig, MissConfig, VeraConfig
from peft.tuners.lora.config import BdLoraConfig, KasaConfig
from peft_models import merged_update
from safetensors.numpy import load_file

from gradience.errors import AdapterError
from gradience.verbs.convert.run import convert_adapter

TOLERANCE = 1e-5
LINEAR = ["q_proj", "up_proj"]
SOME = {"r": 4, "lora_alpha": 6, "target_modules": LINEAR}
BLOCKS = BdLoraConfig(target_modules_bd_a=["q_proj"], target_modules_bd_b=["up_proj"], nblocks=2)


@pytest.mark.parametrize(
    "config",
    [
        AdaLoraConfig(init_r=6, target_r=4, lora_alpha=9, target_modules=LINEAR, total_step=10),
        AdaLoraConfig(init_r=6, lora_alpha=9, target_modules=["c_attn"], total_step=10),
        LoHaConfig(r=3, alpha=5, target_modules=LINEAR, alpha_pattern={"q_proj": 3}),
        LoHaConfig(r=9, alpha=5, target_modules=LINEAR),  # 81 products, more than the rank that 16 inputs allow
        LoKrConfig(r=2, alpha=5, target_modules=LINEAR),
        LoKrConfig(r=8, alpha=5, target_modules=LINEAR),
        LoKrConfig(r=1, alpha=5, target_modules=LINEAR, decompose_both=True),
        VeraConfig(r=4, target_modules=LINEAR),
        LoraConfig(**SOME, use_bdlora=BLOCKS),
        LoraConfig(**SOME, use_rslora=True, rank_pattern={"1.q_proj": 3}, alpha_pattern={"0.up_proj": 32}),
        LoraConfig(r=4, target_modules=["embed_tokens", "conv2d", "pointwise", "c_attn"], use_rslora=True),
    ],
    ids=lambda config: str(config.peft_type.value),
)
def test_without_a_base_the_update_is_what_peft_merged(make, config):
    case = make(config)
    report = convert_adapter(case.folder, case.folder.parent / "new")
    assert case.error(case.folder.parent / "new") < TOLERANCE
    assert report.relative_error == 0.0
    assert {row.method for row in report.modules} <= {"factors", "copied"}


@pytest.mark.parametrize(
    ("config", "most"),
    [
        (LoHaConfig(r=2, alpha=5, target_modules=["conv2d", "pointwise"]), 4),
        (LoHaConfig(r=2, alpha=5, target_modules=["conv2d", "pointwise"], use_effective_conv2d=True), 4),
        (LoKrConfig(r=1, alpha=5, target_modules=["conv2d", "pointwise"]), 2),
        (VeraConfig(r=4, target_modules=[*LINEAR, "classifier"]), 4),
        (MissConfig(r=4, target_modules=LINEAR), 4),
        (MissConfig(r=4, mini_r=2, target_modules=LINEAR, init_weights="mini"), 4),
        (LoraConfig(**SOME, init_lora_weights="pissa"), 8),
        (LoraConfig(**SOME, init_lora_weights="pissa", use_rslora=True), 8),
        (LoraConfig(r=4, target_modules=["c_attn"], init_lora_weights="pissa", fan_in_fan_out=True), 8),
        (LoraConfig(**SOME, init_lora_weights="olora"), 8),
        (LoraConfig(**SOME, kasa_config=KasaConfig()), 8),
    ],
    ids=lambda value: str(getattr(value, "peft_type", value)),
)
def test_with_the_base_the_update_is_what_peft_merged_at_the_rank_that_it_has(make, config, most):
    case = make(config)
    report = convert_adapter(case.folder, case.folder.parent / "new", base=case.base)
    assert case.error(case.folder.parent / "new") < TOLERANCE
    assert max(row.rank_after for row in report.modules) == most
    assert report.relative_error < 1e-6


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(**SOME, use_dora=True),
        LoraConfig(r=4, target_modules=["c_attn"], use_dora=True, fan_in_fan_out=True),
        LoraConfig(r=4, target_modules=["conv2d"], use_dora=True),
        LoraConfig(r=4, target_modules=["embed_tokens"], use_dora=True),
        HiraConfig(r=2, target_modules=LINEAR),
        HiraConfig(r=2, target_modules=["embed_tokens"]),
        MissConfig(r=4, target_modules=LINEAR, init_weights="bat"),
    ],
    ids=lambda config: str(config.peft_type.value),
)
def test_a_full_rank_update_needs_a_rank_or_an_energy_and_is_whole_with_all_of_it(make, config):
    case = make(config)
    with pytest.raises(AdapterError, match="full rank"):
        convert_adapter(case.folder, base=case.base)
    convert_adapter(case.folder, case.folder.parent / "new", base=case.base, energy=1.0)
    assert case.error(case.folder.parent / "new") < TOLERANCE


@pytest.mark.parametrize("rank", [1, 5])
def test_a_cut_conversion_is_the_best_of_its_rank_and_its_error_is_the_one_reported(make, rank):
    case = make(LoraConfig(**SOME, use_dora=True))
    report = convert_adapter(case.folder, case.folder.parent / "new", base=case.base, rank=rank)
    after, config = merged_update(case.model, case.folder.parent / "new"), config_of(case.folder.parent / "new")
    assert config["lora_alpha"] / config["r"] == 6 / 4  # its own scale
    for row in report.modules:
        truth = case.update[f"{row.target}.weight"]
        sigma = np.linalg.svd(truth, compute_uv=False)
        best = np.linalg.norm(sigma[rank:]) / np.linalg.norm(sigma)
        measured = np.linalg.norm(after[f"{row.target}.weight"] - truth) / np.linalg.norm(truth)
        assert (row.rank_after, row.method) == (rank, "dense")
        np.testing.assert_allclose([measured, row.relative_error], best, rtol=1e-4)
    left = sum(np.sum((after[name] - truth) ** 2) for name, truth in case.update.items())
    whole = sum(np.sum(truth**2) for truth in case.update.values())
    assert report.relative_error == pytest.approx(np.sqrt(left / whole), rel=1e-4)


def test_ranks_that_adalora_pruned_are_not_written(make):
    def prune(model):
        for name, parameter in model.named_parameters():
            if "lora_E" in name:
                parameter.data[2:] = 0.0
            if "lora_E" in name and "layers.1" in name:
                parameter.data[:] = 0.0

    config = AdaLoraConfig(init_r=6, lora_alpha=9, target_modules=LINEAR, total_step=10)
    case = make(config, edit=prune)
    report = convert_adapter(case.folder, case.folder.parent / "new")
    assert case.error(case.folder.parent / "new") < TOLERANCE
    assert {row.target.split(".")[1]: row.rank_after for row in report.modules} == {"0": 2, "1": 1}
    assert {row.relative_error for row in report.modules if "layers.1" in row.target} == {None}


def test_products_of_a_rank_too_high_for_an_audit_are_converted(make):
    model = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(48, 40)})
    model.forward = lambda x: x
    for config in (
        LoHaConfig(r=34, alpha=5, target_modules=["q_proj"]),  # 34 * 34 products, 1024 is an audit's limit
        LoKrConfig(r=99, alpha=5, target_modules=["q_proj"]),
    ):
        case = make(config, model, name=config.peft_type.value)
        new = case.folder.parent / f"{case.folder.name}-new"
        report = convert_adapter(case.folder, new)
        assert case.error(new) < TOLERANCE
        assert report.modules[0].rank_after == 40


@pytest.mark.parametrize(
    "config",
    [
        LoHaConfig(r=2, target_modules=LINEAR, modules_to_save=["classifier"]),
        AdaLoraConfig(init_r=4, target_modules=LINEAR, total_step=10, modules_to_save=["classifier"], bias="all"),
        VeraConfig(r=4, target_modules=LINEAR, bias="vera_only"),
        LoraConfig(**SOME, use_rslora=True, lora_bias=True, trainable_token_indices={"embed_tokens": [1, 5]}),
    ],
    ids=lambda config: str(config.peft_type.value),
)
def test_what_is_beside_the_updates_is_carried_bit_for_bit(make, config):
    case = make(config)
    report = convert_adapter(case.folder, case.folder.parent / "new")
    assert case.error(case.folder.parent / "new") < TOLERANCE
    before = load_file(case.folder / "adapter_model.safetensors")
    after = load_file(case.folder.parent / "new" / "adapter_model.safetensors")
    assert report.carried
    for name in report.carried:
        np.testing.assert_array_equal(after[name], before[name])
