"""The live audit says what an audit of the saved adapter says, and what it cost."""

from __future__ import annotations

import math

import pytest


def test_the_probe_agrees_with_the_audit_of_the_same_adapter(training, callback, log, tmp_path):
    from gradience import audit_adapter

    targets = ["q_proj", "embed_tokens", "down_proj"]
    model = training.llama(target_modules=targets, use_rslora=True, rank_pattern={"q_proj": 2})
    training.trainer(tmp_path, callback(spectral_every=3), model=model, learning_rate=1e-2).train()
    model.save_pretrained(tmp_path / "peft")
    first, last = log(tmp_path).kind("spectral")
    report = audit_adapter(tmp_path / "peft")
    assert (first.step, last.step) == (3, 6)
    assert last.metrics["elapsed_s"] > 0
    ours = {row["name"]: row for row in last.metrics["modules"]}
    assert set(ours) == {module.name for module in report.modules}
    for module in report.modules:
        for key in ("r", "stable_rank", "utilization", "energy_rank_90", "frobenius_norm", "spectral_norm"):
            assert ours[module.name][key] == pytest.approx(getattr(module, key), rel=1e-5), (module.name, key)
    for key in ("stable_rank_mean", "utilization_mean", "energy_rank_90_p90", "total_lora_params", "n_layers"):
        assert last.metrics[key] == pytest.approx(getattr(report.summary, key)), key


def test_half_precision_factors_are_read_in_their_own_dtype(training):
    from gradience.hf.probe import spectral_metrics

    model = training.llama()
    for name, p in model.named_parameters():
        if "lora_" in name:
            training.torch.nn.init.normal_(p)
    whole = spectral_metrics(model)["stable_rank_mean"]
    half = spectral_metrics(model.to(training.torch.bfloat16))["stable_rank_mean"]
    assert half == pytest.approx(whole, rel=0.02)
    assert half != whole


def test_an_untrained_and_a_broken_module_are_values(training):
    from gradience.hf.probe import spectral_metrics

    model = training.llama()
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    layer.lora_B["default"].weight.data.fill_(math.nan)
    found = spectral_metrics(model)
    assert (found["n_layers"], found["n_zero"], found["n_non_finite"]) == (4, 3, 1)
    assert {row["state"] for row in found["modules"]} == {"zero", "non_finite"}


def test_a_model_without_an_adapter_says_so(training, callback, log, tmp_path):
    base = training.llama().unload().requires_grad_()
    training.trainer(tmp_path, callback(spectral_every=2), model=base, max_steps=2).train()
    (found,) = log(tmp_path).kind("spectral")
    assert found.metrics["not_analysed"] == "no whole LoRA factors here"


def test_more_modules_than_a_line_holds_are_counted(training, monkeypatch):
    from gradience.hf import probe

    monkeypatch.setattr(probe, "_MODULE_BYTES", 150)
    model = training.llama()
    found = probe.spectral_metrics(model)
    assert len(found["modules"]) + found["modules_omitted"] == 4
    assert found["modules_omitted"] > 0


def test_a_live_module_has_the_numbers_of_its_adapter(training):
    from gradience.hf.probe import live_modules

    model = training.llama(r=4, lora_alpha=12, target_modules=["q_proj"])
    found = live_modules(model)
    assert {(m.r, m.alpha, m.scale) for m in found} == {(4, 12.0, 3.0)}
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    (a, b) = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    assert found[0].name == "model.layers.0.self_attn.q_proj"
    assert (found[0].shape, found[0].params) == ((len(b), a.shape[1]), a.numel() + b.numel())
