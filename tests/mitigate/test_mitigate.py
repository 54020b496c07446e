"""Only the adapter's part along intruder dimensions is scaled; ranks, and all other tensors, stay."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from gradience import AdapterError, OutputError, mitigate_adapter
from gradience.cli.main import main
from gradience.schema.export import json_schema

TARGETS = ["q_proj", "conv"]


def intruders(w: np.ndarray, dw: np.ndarray, k: int, eps: float) -> np.ndarray:
    """Return the intruders of W + dW as columns, by dense SVDs."""
    w, dw = w.reshape(len(w), -1).astype(np.float64), dw.reshape(len(dw), -1)
    u_base, u = np.linalg.svd(w, full_matrices=False)[0], np.linalg.svd(w + dw, full_matrices=False)[0][:, :k]
    return u[:, np.max(np.abs(u_base.T @ u), axis=0) < eps]


@pytest.mark.parametrize("scale", [0.0, 0.25])
@pytest.mark.parametrize(
    "options", [{"target_modules": TARGETS}, {"target_modules": ["c_attn"], "fan_in_fan_out": True}], ids=str
)
def test_the_update_loses_its_share_along_the_intruders_and_nothing_else(make, tmp_path, options, scale):
    case = make(LoraConfig(r=1, lora_alpha=1, **options))
    report = mitigate_adapter(case.folder, case.base, tmp_path / "out", scale=scale, k=8, eps=0.7)
    before, after = case.update(case.folder), case.update(tmp_path / "out")
    assert report.before > 0
    assert report.alpha_after == sum(row.alpha_after for row in report.modules)
    for row in report.modules:
        name = f"{row.name}.weight"
        w, dw, new = (x[name] for x in (case.model.state_dict(), before, after))
        w = w.numpy()
        if "c_attn" in name:
            w, dw, new = w.T, dw.T, new.T
        u = intruders(w, dw, 8, 0.7)
        dw, new = (x.reshape(len(x), -1) for x in (dw, new))
        assert row.before == row.scaled == u.shape[1]
        assert row.after == intruders(w, new, 8, 0.7).shape[1]
        assert row.alpha_factor == pytest.approx(1.0 - row.relative_change)
        assert row.alpha_after == intruders(w, row.alpha_factor * dw, 8, 0.7).shape[1]
        wanted = dw - (1 - scale) * u @ (u.T @ dw)
        assert np.linalg.norm(new - wanted) < 1e-6 * np.linalg.norm(dw)
        assert row.relative_change == pytest.approx(np.linalg.norm(new - dw) / np.linalg.norm(dw), rel=1e-4)


def test_what_the_base_does_along_an_intruder_is_left_to_it(make, tmp_path):
    case = make(LoraConfig(r=1, lora_alpha=1, target_modules=["q_proj"]))
    mitigate_adapter(case.folder, case.base, tmp_path / "out", scale=0.0, k=8, eps=0.6)
    name = "layers.0.q_proj.weight"
    u = intruders(case.model.state_dict()[name].numpy(), case.update(case.folder)[name], 8, 0.6)
    assert u.shape[1] > 0
    np.testing.assert_allclose(u.T @ case.update(tmp_path / "out")[name], 0.0, atol=1e-5)


def test_fewer_intruders_are_left_and_the_rank_is_what_it_was(make, tmp_path):
    case = make(LoraConfig(r=1, lora_alpha=1, target_modules=["q_proj"]))
    report = mitigate_adapter(case.folder, case.base, tmp_path / "out", scale=0.0, k=8, eps=0.6)
    assert report.after < report.before
    old, new = (json.loads((f / "adapter_config.json").read_text()) for f in (case.folder, tmp_path / "out"))
    assert old == new


def test_at_scale_one_and_without_intruders_every_tensor_is_the_same(make, tmp_path):
    case = make(LoraConfig(r=2, lora_alpha=1, target_modules=["q_proj", "embed_tokens"]), strength=1e-3)
    report = mitigate_adapter(case.folder, case.base, tmp_path / "out", scale=0.5, k=4, eps=0.3)
    assert report.before == 0
    old, new = (load_file(f / "adapter_model.safetensors") for f in (case.folder, tmp_path / "out"))
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert [item.name for item in report.not_looked_at] == ["embed_tokens"]


def test_a_dry_run_writes_nothing_and_the_report_follows_its_schema(make, tmp_path):
    case = make(LoraConfig(r=1, lora_alpha=1, target_modules=TARGETS))
    before = sorted(tmp_path.rglob("*"))
    report = mitigate_adapter(case.folder, case.base, k=8, eps=0.6)
    assert sorted(tmp_path.rglob("*")) == before
    Draft202012Validator(json_schema("mitigate")).validate(report.to_dict())


def test_an_adapter_of_nothing_but_dora_is_refused(make):
    case = make(LoraConfig(r=2, target_modules=["q_proj"], use_dora=True))
    with pytest.raises(AdapterError, match="no module can be compared with its base"):
        mitigate_adapter(case.folder, case.base)


def test_a_base_of_another_shape_is_a_reason_and_no_traceback(make, tmp_path):
    case = make(LoraConfig(r=1, target_modules=["q_proj", "conv"]))
    path = case.base / "model.safetensors"
    tensors = load_file(path)
    tensors["layers.0.q_proj.weight"] = tensors["layers.0.q_proj.weight"].T.contiguous()
    save_file(tensors, path)
    report = mitigate_adapter(case.folder, case.base)
    assert [item.name for item in report.not_looked_at] == ["layers.0.q_proj"]


def test_the_source_is_never_replaced_and_an_output_only_by_force(make, tmp_path):
    case = make(LoraConfig(r=1, target_modules=["q_proj"]))
    with pytest.raises(OutputError, match="adapter that is read"):
        mitigate_adapter(case.folder, case.base, case.folder, force=True)
    with pytest.raises(OutputError, match="base model that is read"):
        mitigate_adapter(case.folder, case.base, case.base, force=True)
    mitigate_adapter(case.folder, case.base, tmp_path / "out")
    with pytest.raises(OutputError, match="exists already"):
        mitigate_adapter(case.folder, case.base, tmp_path / "out")
    mitigate_adapter(case.folder, case.base, tmp_path / "out", force=True)


def test_an_option_out_of_range_is_a_value_error(make):
    case = make(LoraConfig(r=1, target_modules=["q_proj"]))
    for options in ({"scale": 1.5}, {"k": 0}, {"eps": 0.0}):
        with pytest.raises(ValueError, match="expected"):
            mitigate_adapter(case.folder, case.base, **options)


def test_the_command_prints_counts_writes_the_folder_and_refuses_bad_input(make, tmp_path, capsys):
    case = make(LoraConfig(r=1, lora_alpha=1, target_modules=["q_proj"]))
    arguments = ["mitigate", str(case.folder), "--base", str(case.base), "--k", "8", "--eps", "0.6"]
    assert main([*arguments, "--scale", "0", "--out", str(tmp_path / "out")]) == 0
    assert "Intruder dimensions: " in capsys.readouterr().out
    assert (tmp_path / "out" / "gradience_provenance.json").is_file()
    assert main([*arguments, "--dry-run", "--json"]) == 0
    Draft202012Validator(json_schema("mitigate")).validate(json.loads(capsys.readouterr().out))
    assert main(arguments) == 2
    assert main(["mitigate", str(case.folder), "--base", "nowhere", "--dry-run"]) == 2
    assert main([*arguments, "--scale", "2", "--dry-run"]) == 2
    assert main([*arguments, "--scale", "nan", "--dry-run"]) == 2
