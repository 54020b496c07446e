"""Weights whose config is lost are audited: the tensors tell the ranks, and it is said that the scale is not known."""

from __future__ import annotations

import numpy as np
from audited import save_adapter
from safetensors.numpy import save_file

from gradience.cli.main import main


def test_weights_without_a_config_are_audited_and_their_scale_is_said_to_be_unknown(tmp_path, capsys):
    draw = np.random.default_rng(0)
    save_adapter(tmp_path, [(0.01 * draw.normal(size=(16, 3)), draw.normal(size=(3, 24)))])
    (tmp_path / "adapter_config.json").unlink()
    assert main(["audit", str(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "but the scale s is not known; norms are" in shown
    assert "Update size" not in shown
    assert "gradience resize" not in shown
    assert main(["resize", str(tmp_path), "--rank", "2", "--dry-run"]) == 2
    assert main(["audit", str(tmp_path), "--base", str(tmp_path)]) == 2


def test_a_file_without_a_tensor_of_an_adapter_is_not_analysed_and_asks_for_no_config(tmp_path, capsys):
    save_file({"model.layers.0.self_attn.q_proj.weight": np.ones((4, 6), "float32")}, tmp_path / "model.safetensors")
    assert main(["audit", str(tmp_path)]) == 3
    assert "Verdict: NOT ANALYSED" in capsys.readouterr().out
    assert main(["diagnose", str(tmp_path / "model.safetensors")]) == 3
    assert "Verdict: COULD NOT JUDGE" in capsys.readouterr().out


def test_factors_that_are_not_lora_ask_for_their_config_and_settings_beside_them_stand_alone(tmp_path, capsys):
    scales = {"base_model.model.model.layers.0.self_attn.k_proj.ia3_l": np.ones((6, 1), "float32")}
    save_file(scales, tmp_path / "adapter_model.safetensors")
    assert main(["audit", str(tmp_path)]) == 2
    assert "adapter_config.json: No such file or directory (scaling needs it" in capsys.readouterr().err
    save_file({"prompt_embeddings": np.ones((8, 6), "float32")}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 8}')
    assert main(["diagnose", str(tmp_path)]) == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert "0 modules, not analysed" in shown
    assert "Verdict: COULD NOT JUDGE (settings alone); checked: config " in shown
    assert "; not there: log; not analysed: weights" in shown
    (tmp_path / "adapter_model.safetensors").unlink()
    assert main(["diagnose", str(tmp_path)]) == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert "Verdict: COULD NOT JUDGE (settings alone); checked: config 4 of " in shown
    assert "; not there: log, weights" in shown
