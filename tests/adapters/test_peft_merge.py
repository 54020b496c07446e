"""PEFT's own merge is the truth: what we read off the files is merged minus base, for every kind."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from adapter_files import written
from peft import AdaLoraConfig, LoHaConfig, LoKrConfig, LoraConfig, VeraConfig
from peft.tuners.lora.config import BdLoraConfig, KasaConfig
from peft.tuners.lora.variants import QALoraLinearVariant
from torch import nn
from transformers.pytorch_utils import Conv1D

from gradience.adapters.open import open_adapter

pytestmark = pytest.mark.filterwarnings("ignore")

TOLERANCE = 1e-5


class Net(nn.Module):
    """Two of each layer that an adapter may wrap, with names as real models have them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(50, 12)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"q_proj": nn.Linear(12, 20), "up_proj": nn.Linear(12, 24)}) for _ in range(2)
        )
        self.c_attn = Conv1D(36, 12)
        self.conv1d = nn.Conv1d(6, 8, 3)
        self.conv2d = nn.Conv2d(6, 8, 3)
        self.pointwise = nn.Conv2d(6, 10, 1)
        self.conv3d = nn.Conv3d(6, 8, 3)
        self.mha = nn.MultiheadAttention(12, 2)

    def forward(self, x):
        return x


LINEAR = ["q_proj", "up_proj"]
CONV = ["conv1d", "conv2d", "pointwise", "conv3d"]


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": LINEAR},
        {"target_modules": ["c_attn"]},  # PEFT sets fan_in_fan_out itself, and saves it
        {"target_modules": ["embed_tokens"]},
        {"target_modules": CONV},
        {"target_modules": LINEAR, "rank_pattern": {"1.q_proj": 3, "q_proj": 2}, "alpha_pattern": {"0.up_proj": 32}},
        {"target_modules": LINEAR, "rank_pattern": {r"layers\.1\..*": 3, "q_proj": 2}, "use_rslora": True},
        {"target_modules": LINEAR, "use_dora": True},
        {"target_modules": ["embed_tokens"], "use_dora": True},
        {"target_modules": CONV, "use_dora": True},
        {"target_modules": LINEAR, "lora_bias": True},
        {"target_modules": LINEAR, "init_lora_weights": "pissa"},
        {"target_modules": LINEAR, "init_lora_weights": "pissa", "use_rslora": True},
        {"target_modules": LINEAR, "init_lora_weights": "olora"},
        {"target_modules": LINEAR, "init_lora_weights": "mica"},
        {"target_parameters": ["q_proj.weight"], "target_modules": []},
    ],
    ids=str,
)
def test_lora_is_what_peft_merges(make, worst_error, options):
    assert worst_error(make(Net(), LoraConfig(r=4, lora_alpha=6, **options))) < TOLERANCE


KERNELS = ["conv2d", "pointwise", "conv1d"]
EFFECTIVE = {"target_modules": ["conv2d", "conv1d"], "use_effective_conv2d": True}
BLOCKS = BdLoraConfig(target_modules_bd_a=["q_proj"], target_modules_bd_b=["up_proj"], nblocks=2)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, target_modules=LINEAR, kasa_config=KasaConfig()),
        LoraConfig(r=4, lora_alpha=6, target_modules=LINEAR, use_bdlora=BLOCKS),
        LoHaConfig(r=3, alpha=5, target_modules=[*LINEAR, *KERNELS], alpha_pattern={"q_proj": 3}),
        LoHaConfig(r=3, alpha=5, **EFFECTIVE),
        LoKrConfig(r=2, alpha=5, target_modules=LINEAR, rank_pattern={"q_proj": 9}),
        LoKrConfig(r=1, alpha=5, target_modules=LINEAR, decompose_both=True),
        LoKrConfig(r=1, alpha=5, target_modules=KERNELS),
        LoKrConfig(r=1, alpha=5, target_modules=["conv2d"], use_effective_conv2d=True),  # PEFT cannot merge Conv1d so
        VeraConfig(r=4, target_modules=LINEAR),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_another_kind_is_what_peft_merges_without_a_base(make, worst_error, config):
    case = make(Net(), config)
    assert not case.read().base_dependent
    assert worst_error(case) < TOLERANCE


def test_multihead_attention_is_half_of_what_peft_merges_into_out_proj(make):
    """PEFT 0.21.2 adds out_proj's update twice (PR #3774); in_proj's once."""
    case = make(Net(), LoraConfig(r=4, target_modules=["mha"]))
    adapter = case.read()
    modules = {m.base_name: m for m in adapter.modules}
    for name, times in {"mha.in_proj_weight": 1.0, "mha.out_proj.weight": 2.0}.items():
        b, a = modules[name].load()
        truth = case.merged[name] - case.base[name]
        np.testing.assert_allclose(times * modules[name].scale * b @ a, truth, atol=1e-5 * np.abs(truth).max())
    assert any("out_proj" in note for note in adapter.notes)


def test_vera_of_several_widths_needs_the_base_and_is_then_what_peft_merges(make, worst_error):
    net = Net()
    net.layers[0]["down_proj"] = nn.Linear(30, 12)
    case = make(net, VeraConfig(r=4, target_modules=[*LINEAR, "down_proj"]))
    adapter = case.read()
    assert not adapter.modules
    assert len(adapter.base_dependent) == 5
    assert all("several widths" in item.reason for item in adapter.skipped)
    assert worst_error(case) < TOLERANCE


def test_vera_of_two_towers_under_one_name_needs_the_base(make, worst_error):
    net = Net()
    net.layers[0]["q_proj"] = nn.Linear(30, 40)
    case = make(net, VeraConfig(r=4, target_modules=["q_proj"]))
    assert len(case.read().base_dependent) == 2
    assert worst_error(case) < TOLERANCE


def test_adalora_pruned_by_its_budget_is_what_peft_merges(make, worst_error):
    def prune(model):
        kept = {
            f"layers.{i}.{name}.lora_E": [True, False, True, i == 0, False, True] for i in range(2) for name in LINEAR
        }
        model.peft_config["default"].rank_pattern = kept

    config = AdaLoraConfig(init_r=6, target_r=4, lora_alpha=9, target_modules=LINEAR, total_step=10)
    case = make(Net(), config, edit=prune)
    modules = case.read().modules
    assert {m.r for m in modules} == {3, 4}
    assert all(m.config_r == m.r for m in modules)
    assert worst_error(case) < TOLERANCE


def test_qalora_is_what_peft_adds_to_each_input(tmp_path):
    """PEFT has no merge for it: its forward pass of unit inputs gives the columns of the update."""
    lora_a, lora_b = nn.Linear(3, 4, bias=False), nn.Linear(4, 10, bias=False)
    stub = SimpleNamespace(
        lora_A={"x": lora_a},
        lora_B={"x": lora_b},
        lora_dropout={"x": nn.Identity()},
        scaling={"x": 1.5},
        qalora_group_size={"x": 4},
        training=False,
        in_features=12,
    )
    truth = QALoraLinearVariant.forward(stub, "x", torch.eye(12), torch.zeros(12, 10)).T.detach().numpy()
    pair = {f"q.lora_{x}.weight": layer.weight.detach().numpy() for x, layer in (("A", lora_a), ("B", lora_b))}
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "use_qalora": True, "qalora_group_size": 4}
    (module,) = open_adapter(written(tmp_path / "a", pair, config))[1].modules
    np.testing.assert_allclose(module.dense(np.zeros((10, 12))), truth, rtol=1e-5, atol=1e-6)
