"""Files of a folder that no program's own names lead to are read, or it is said that they lie there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from audited import save_adapter

from gradience import GradienceError, TelemetryWriter, audit_adapter, check_config, diagnose
from gradience.folder import find, open_run

RECIPE = "learning_rate: 0.0003\nlora_r: 8\nlora_alpha: 16\n"


def adapter(folder: Path, seed: int = 0) -> None:
    draw = np.random.default_rng(seed)
    pairs = [(0.01 * draw.normal(size=(16, 4)), draw.normal(size=(4, 12))) for _ in range(2)]
    save_adapter(folder, pairs, task_type="CAUSAL_LM")


def test_a_recipe_alone_is_the_configuration_of_its_folder(tmp_path):
    (tmp_path / "train.yaml").write_text(RECIPE)
    (tmp_path / "compose.yaml").write_text("services: {}\n")  # states no setting
    report = check_config(document=tmp_path)
    assert (report.config.optimizer.lr, report.config.lora.r) == (3e-4, 8)
    assert [source.path for source in report.sources] == [str(tmp_path / "train.yaml")]


def test_of_two_recipes_none_is_guessed(tmp_path):
    for name in ("one.yaml", "two.yaml"):
        (tmp_path / name).write_text(RECIPE)
    assert open_run(tmp_path).settings.reason == "several recipes: one.yaml, two.yaml"


def test_training_arguments_without_a_log_are_read_beside_the_adapter(tmp_path):
    adapter(tmp_path)
    (tmp_path / "training_args.json").write_text(json.dumps({"learning_rate": 5e-4, "optim": "lion"}))
    report = check_config(document=tmp_path)
    assert (report.config.optimizer.lr, report.config.lora.r) == (5e-4, 4)
    assert audit_adapter(tmp_path).optimizer == "lion"


def test_a_second_weights_file_is_named(tmp_path):
    adapter(tmp_path)
    assert not any("may hold other weights" in note for note in audit_adapter(tmp_path).notes)
    shutil.copy(tmp_path / "adapter_model.safetensors", tmp_path / "adapters.safetensors")
    said = "adapter_model.safetensors is read; adapters.safetensors in the same folder may hold other weights"
    assert said in audit_adapter(tmp_path).notes


def test_an_archive_of_mlx_is_audited_by_its_folder_and_named_by_a_diagnosis(tmp_path):
    draw = np.random.default_rng(1)
    factors = {"l.q_proj.lora_a": draw.normal(size=(12, 4)), "l.q_proj.lora_b": draw.normal(size=(4, 16))}
    np.savez(tmp_path / "adapters.npz", **factors)
    assert [module.r for module in audit_adapter(tmp_path).modules] == [4]
    assert "adapters.npz" in find(tmp_path).weights.reason
    (weights,) = [source for source in diagnose(tmp_path).sources if source.source == "weights"]
    assert weights.reason == f"adapters.npz is MLX's older format: gradience audit {tmp_path / 'adapters.npz'} reads it"


def test_the_adapter_of_a_run_s_last_checkpoint_is_audited_and_that_is_said(tmp_path):
    for step in (9, 10):
        adapter(tmp_path / f"checkpoint-{step}", seed=step)
    report = audit_adapter(tmp_path)
    assert report.peft_dir == str(tmp_path / "checkpoint-10")
    said = "checkpoint-10 is audited: no adapter in the folder itself: checkpoint-10 is the last checkpoint"
    assert said in report.notes


def test_several_adapters_that_are_no_checkpoints_are_the_user_s_choice(tmp_path):
    for name in ("one", "two"):
        adapter(tmp_path / name)
    with pytest.raises(GradienceError, match="2 adapters in sub-folders"):
        audit_adapter(tmp_path)


def test_a_log_s_own_settings_and_those_of_files_are_one_configuration(tmp_path):
    """A checkpoint's own config goes before the root's."""
    with TelemetryWriter(tmp_path / "run.jsonl") as log:
        log.run_start(config={"optimizer": {"lr": 1e-3, "name": "adamw_torch"}, "lora": {"r": 2}})
    adapter(tmp_path / "checkpoint-5")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 32, "lora_alpha": 8}))
    config = open_run(tmp_path).settings.take().config
    assert (config.optimizer.lr, config.optimizer.name, config.lora.r) == (1e-3, "adamw_torch", 4)
