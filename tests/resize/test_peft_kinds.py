"""Whatever PEFT adapts, the resized adapter loads without a warning and merges to the best update of its rank."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from peft import AdaLoraConfig, LoHaConfig, LoraConfig, TaskType
from peft.tuners.lora.config import BdLoraConfig, KasaConfig
from resize_nets import Net, best, same
from safetensors.torch import load_file
from torch import nn

from gradience import AdapterError, audit_adapter, resize_adapter

LINEAR = ["q_proj", "up_proj"]
CONV = ["conv1d", "conv2d", "pointwise"]
SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}


def llama(**more):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **HEADS, **more))


def mixtral():
    config = transformers.MixtralConfig(**SIZES, **HEADS, num_local_experts=3, num_experts_per_tok=2)
    return transformers.MixtralForCausalLM(config)


class Experts(nn.Module):
    """Stacked experts as models register them."""

    def __init__(self, *, is_transposed):
        super().__init__()
        self.is_transposed = is_transposed
        self.gate_up_proj = nn.Parameter(torch.randn((4, 16, 20) if is_transposed else (4, 20, 16)))
        self.down_proj = nn.Parameter(torch.randn((4, 10, 16) if is_transposed else (4, 16, 10)))

    def forward(self, x):
        return x


class MoE(nn.Module):
    def __init__(self, *, is_transposed=False):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.ModuleList(nn.ModuleDict({"experts": Experts(is_transposed=is_transposed)}) for _ in range(2))

    def forward(self, x):
        return x


def ranks_of(report):
    """Return rank after by module path, the experts of a parameter together."""
    return {row.name.partition("[")[0]: row.rank_after for row in report.modules}


def assert_best(case, out, report, *, times=()):
    """Every weight that changed is the best approximation of the original change at the reported rank."""
    before, after = case.update(), case.update(out)
    ranks = ranks_of(report)
    changed = [name for name, update in before.items() if np.abs(update).max() > 0]
    assert len(changed) >= len(ranks)
    for name in changed:
        rank = ranks[name.removesuffix(".weight").replace(".in_proj_weight", "")]
        wanted = (
            np.stack([best(one, rank) for one in before[name]])
            if before[name].ndim == 3 and name.endswith("_proj")
            else best(before[name], rank)
        )
        assert same(after[name], wanted, before[name]), name
    for name in before.keys() - set(changed):
        assert not np.abs(after[name]).max() > 0


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": LINEAR},
        {"target_modules": ["c_attn"], "fan_in_fan_out": True},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": CONV},
        {"target_modules": LINEAR, "use_rslora": True},
        {"target_modules": LINEAR, "rank_pattern": {"1.q_proj": 3, "q_proj": 2}, "alpha_pattern": {"0.up_proj": 32}},
        {"target_modules": LINEAR, "rank_pattern": {r"layers\.1\..*": 3, "q_proj": 6}, "use_rslora": True},
        {"target_modules": LINEAR, "lora_bias": True},
        {"target_modules": LINEAR, "layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": LINEAR, "init_lora_weights": "gaussian"},
        {"target_modules": LINEAR, "init_lora_weights": "orthogonal"},
        {"target_modules": LINEAR, "init_lora_weights": "mica"},
        {"target_modules": LINEAR, "lora_alpha": -3},
        {"target_parameters": ["q_proj.weight"], "target_modules": []},
    ],
    ids=str,
)
@pytest.mark.parametrize("criterion", [{"rank": 2}, {"energy": 0.91}], ids=str)
def test_lora_of_any_layer_becomes_the_best_update_of_its_rank(make, tmp_path, options, criterion):
    case = make(Net(), LoraConfig(**({"r": 4, "lora_alpha": 6} | options)))
    report = resize_adapter(case.folder, tmp_path / "out", **criterion)
    if not options.get("lora_bias"):
        assert_best(case, tmp_path / "out", report)
    else:
        assert case.update(tmp_path / "out").keys() == case.update().keys()
    assert report.params_after < report.params_before


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "more",
    [
        {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
        {
            "target_parameters": ["experts.down_proj", "experts.gate_up_proj"],
            "rank_pattern": {"experts.gate_up_proj": 6},
            "alpha_pattern": {"experts.down_proj": 7},
            "use_rslora": True,
        },
    ],
    ids=str,
)
@pytest.mark.parametrize("criterion", [{"rank": 2}, {"energy": 0.9}], ids=str)
def test_experts_share_a_rank_and_each_is_the_best_of_it(make, tmp_path, more, transposed, criterion):
    case = make(MoE(is_transposed=transposed), LoraConfig(r=3, lora_alpha=5, **more))
    report = resize_adapter(case.folder, tmp_path / "out", **criterion)
    assert_best(case, tmp_path / "out", report)
    assert len({row.rank_after for row in report.modules if row.name.startswith("layers.0.experts.down")}) == 1


@pytest.mark.parametrize("targets", [["q_proj", "v_proj", "w1", "w2", "w3"], "all-linear"], ids=str)
def test_mixtral_with_its_old_names_becomes_the_best_update(make, tmp_path, targets):
    case = make(mixtral(), LoraConfig(r=4, lora_alpha=3, target_modules=targets))
    report = resize_adapter(case.folder, tmp_path / "out", energy=0.95)
    assert_best(case, tmp_path / "out", report)


def test_replicated_layers_keep_a_rank_each(make, tmp_path):
    case = make(llama(), LoraConfig(r=4, target_modules=["q_proj"], layer_replication=[[0, 2], [1, 2], [0, 1]]))
    report = resize_adapter(case.folder, tmp_path / "out", rank=2)
    assert {row.rank_after for row in report.modules} == {2}
    audit = audit_adapter(tmp_path / "out", top_singular_values=4)
    whole = audit_adapter(case.folder, top_singular_values=4)
    for old, new in zip(whole.modules, audit.modules, strict=True):
        np.testing.assert_allclose(new.top_singular_values, old.top_singular_values[:2], rtol=1e-5)


def test_multihead_attention_shares_one_rank(make, tmp_path):
    case = make(Net(), LoraConfig(r=4, target_modules=["mha"]))
    report = resize_adapter(case.folder, tmp_path / "out", energy=0.9)
    assert len({row.rank_after for row in report.modules}) == 1
    before, after, rank = case.update(), case.update(tmp_path / "out"), report.modules[0].rank_after
    assert 1 < rank < 4
    for name in ("mha.in_proj_weight", "mha.out_proj.weight"):
        assert same(after[name], best(before[name], rank), before[name])


def test_dora_with_its_base_is_fitted_anew_and_its_error_is_the_one_that_results(make, tmp_path):
    for targets, turned in ((LINEAR, False), (["c_attn"], True), (["embed_tokens"], False), (CONV, False)):
        config = LoraConfig(r=4, lora_alpha=6, target_modules=targets, use_dora=True, fan_in_fan_out=turned)
        case = make(Net(), config, name=targets[0])
        out = tmp_path / f"out-{targets[0]}"
        report = resize_adapter(case.folder, out, rank=2, base=case.base)
        before, after = case.update(), case.update(out)
        for row in report.modules:
            name = f"{row.name}.weight"
            error = np.linalg.norm(after[name] - before[name]) / np.linalg.norm(before[name])
            assert error == pytest.approx(row.relative_error, rel=1e-3)
            assert error < naive_dora_error(case, row.name, before[name], turned=turned or targets == ["embed_tokens"])


def naive_dora_error(case, module, truth, *, turned):
    """Return the error of cutting s B A and leaving the magnitudes as they are."""
    tensors = {n: t.double().numpy() for n, t in load_file(case.folder / "adapter_model.safetensors").items()}
    stem = f"base_model.model.{module}"
    embedding = f"{stem}.lora_embedding_A" in tensors
    a, b = (tensors[f"{stem}.lora_embedding_{x}" if embedding else f"{stem}.lora_{x}.weight"] for x in "AB")
    m = tensors[f"{stem}.lora_magnitude_vector"]
    w = case.model.state_dict()[f"{module}.weight"].double().numpy()
    flat = (w.T if turned else w).reshape(b.shape[0], -1)
    v = flat + best(6 / 4 * b.reshape(len(b), -1) @ a.reshape(len(a), -1), 2)
    new = m.reshape(-1, 1) * v / np.linalg.norm(v, axis=1, keepdims=True) - flat
    truth = (truth.T if turned else truth).reshape(new.shape)
    return np.linalg.norm(new - truth) / np.linalg.norm(truth)


def test_dora_without_a_base_is_refused_unless_nothing_is_cut(make, tmp_path):
    case = make(Net(), LoraConfig(r=4, target_modules=LINEAR, use_dora=True))
    with pytest.raises(AdapterError, match="is DoRA") as caught:
        resize_adapter(case.folder, tmp_path / "out", rank=2)
    assert "--base" in caught.value.advice
    assert not (tmp_path / "out").exists()
    resize_adapter(case.folder, tmp_path / "out", rank=4)
    assert_identical(case.folder, tmp_path / "out")


def assert_identical(one, two):
    old, new = (load_file(folder / "adapter_model.safetensors") for folder in (one, two))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)


@pytest.mark.parametrize(
    "config", [{"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}, {"kasa": True}, {"bd": True}]
)
def test_kinds_that_another_rank_would_mangle_are_refused_with_a_way_on(make, tmp_path, config):
    more = dict(config)
    if more.pop("kasa", False):
        more["kasa_config"] = KasaConfig()
    if more.pop("bd", False):
        more["use_bdlora"] = BdLoraConfig(target_modules_bd_a=["q_proj"], target_modules_bd_b=["up_proj"], nblocks=2)
    case = make(Net(), LoraConfig(r=4, target_modules=LINEAR, **more))
    with pytest.raises(AdapterError, match="cannot resize") as caught:
        resize_adapter(case.folder, tmp_path / "out", rank=2)
    assert "convert" in caught.value.advice


@pytest.mark.parametrize(
    "config",
    [AdaLoraConfig(init_r=6, target_modules=LINEAR, total_step=10), LoHaConfig(r=3, target_modules=LINEAR)],
    ids=["adalora", "loha"],
)
def test_types_without_factors_of_their_own_are_refused_with_a_way_on(make, tmp_path, config):
    case = make(Net(), config)
    with pytest.raises(AdapterError, match=config.peft_type.value) as caught:
        resize_adapter(case.folder, tmp_path / "out", rank=2)
    assert "convert" in caught.value.advice


@pytest.mark.parametrize(
    "more",
    [
        {"bias": "all"},
        {"modules_to_save": ["classifier"]},
        {"bias": "lora_only", "lora_bias": False},
    ],
    ids=str,
)
def test_every_other_tensor_is_kept_bit_for_bit(make, tmp_path, more):
    case = make(Net(), LoraConfig(r=4, target_modules=LINEAR, **more))
    resize_adapter(case.folder, tmp_path / "out", rank=2)
    old, new = (load_file(folder / "adapter_model.safetensors") for folder in (case.folder, tmp_path / "out"))
    assert list(old) == list(new)
    kept = [name for name in old if "lora_A" not in name and "lora_B" not in name]
    assert kept
    assert all(torch.equal(old[name], new[name]) for name in kept)


def test_token_rows_heads_and_a_resized_embedding_are_kept_bit_for_bit(make, tmp_path):
    lora = LoraConfig(
        r=4, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [1, 5]}, task_type=TaskType.CAUSAL_LM
    )
    case = make(llama(tie_word_embeddings=False), lora)
    resize_adapter(case.folder, tmp_path / "out", rank=2)
    old, new = (load_file(folder / "adapter_model.safetensors") for folder in (case.folder, tmp_path / "out"))
    rows = [name for name in old if "trainable_tokens" in name]
    assert rows
    assert all(torch.equal(old[name], new[name]) for name in rows)


def test_every_key_of_the_config_is_kept(make, tmp_path):
    case = make(Net(), LoraConfig(r=4, target_modules=LINEAR, lora_dropout=0.1, revision="abc"))
    path = case.folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"a_key_of_tomorrow": {"x": 1}}))
    resize_adapter(case.folder, tmp_path / "out", rank=2)
    old, new = (json.loads((folder / "adapter_config.json").read_text()) for folder in (case.folder, tmp_path / "out"))
    assert old.keys() == new.keys()
    changed = {name for name in old if old[name] != new[name]}
    assert changed == {"r", "lora_alpha"}
