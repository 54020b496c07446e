"""The time of a training by a log of the same base, as `check` says it: the numbers by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tables import every

from gradience.configs.document import read_settings
from gradience.folder.runs import read_run
from gradience.schema.memory import Time
from gradience.verbs.check.time import foretell_time
from gradience.verbs.check.view import check_text

SETTINGS = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 300, "bf16": True}
ADAPTER = {
    "peft_type": "LORA",
    "r": 8,
    "lora_alpha": 16,
    "target_modules": ["q_proj"],
    "base_model_name_or_path": "org/m",
}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A state of the Trainer whose summary has 3 s a step, beside its settings."""
    history: list[dict[str, float]] = [{"step": step, "loss": 2.0} for step in range(20, 320, 20)]
    summary = {"step": 300, "train_runtime": 900.0, "train_loss": 2.0, "total_flos": 1.0}
    state = {"global_step": 300, "max_steps": 300, "log_history": [*history, summary]}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    (tmp_path / "training_args.json").write_text(json.dumps(SETTINGS))
    (tmp_path / "adapter_config.json").write_text(json.dumps(ADAPTER))
    return tmp_path / "trainer_state.json"


def told(log: Path, adapter: dict[str, Any] | None = None, **changed: Any) -> Time | None:
    document = {**SETTINGS, "peft_config": None, **ADAPTER, **(adapter or {}), **changed}
    return foretell_time(read_settings(document).config, [read_run(log)])


@every(
    ("changed", "seconds_per_step", "seconds"),
    [
        ({}, 3.0, 900.0),
        ({"per_device_train_batch_size": 8}, 6.0, 1800.0),
        ({"gradient_accumulation_steps": 1, "max_steps": 1000}, 1.5, 1500.0),
    ],
)
def test_the_time_of_a_step_goes_with_its_rows(log, changed, seconds_per_step, seconds):
    time = told(log, **changed)
    assert (time.seconds_per_step, time.seconds, time.reason) == (seconds_per_step, seconds, "")
    assert (time.by, time.logged_seconds_per_step) == ("trainer_state.json", 3.0)


@every(
    ("changed", "reason"),
    [
        ({"base_model_name_or_path": "org/other"}, "its base is org/m"),
        ({"base_model_name_or_path": None}, "it does not say what its base is, or the settings do not"),
        ({"max_length": 512}, "its max_length is not stated, and not 512"),
        ({"bf16": False, "fp16": True}, "its dtype is bfloat16, and not float16"),
        ({"gradient_checkpointing": True}, "its gradient_checkpointing is not stated, and not True"),
        ({"use_dora": True}, "its use_dora is False, and not True"),
        ({"gradient_accumulation_steps": None}, "its batch or its accumulation is not known, or that of the settings"),
    ],
)
def test_no_time_is_told_by_a_log_of_other_settings(log, changed, reason):
    time = told(log, **changed)
    assert (time.seconds_per_step, time.seconds, time.reason) == (None, None, reason)


def test_without_a_log_that_has_its_time_there_is_none(log):
    log.write_text(json.dumps({"global_step": 1, "log_history": [{"step": 1, "loss": 2.0}]}))
    assert told(log) is None


def test_check_says_it_beside_the_memory(log, tmp_path):
    from gradience import check_config

    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "flux"}')
    place = tmp_path
    said = check_text(check_config(peft_dir=place, training_dir=place, base=place / "base"))
    assert "Time: about 15 min 0 s for 300 steps, 3 s a step (as in trainer_state.json)" in said
    assert "Time:" not in check_text(check_config(peft_dir=place, training_dir=place))


@every(
    ("changed", "says"),
    [
        ({"max_steps": 300}, "Time: about 12 min 0 s for 300 steps, 2.4 s a step (as given); without evaluations"),
        ({"max_steps": -1}, "Time: not known: the planned steps are not stated (max_steps)"),
    ],
)
def test_a_given_time_of_a_step_tells_that_of_the_planned_steps_without_base_or_log(changed, says):
    from gradience import check_config

    report = check_config({"lr": 1e-4, **changed}, seconds_per_step=2.4)
    assert report.time.seconds == (720.0 if changed["max_steps"] > 0 else None)
    assert says in check_text(report).splitlines()


def test_a_given_time_goes_before_that_of_a_log(log, tmp_path):
    from gradience import check_config

    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "flux"}')
    time = check_config(training_dir=tmp_path, base=tmp_path / "base", seconds_per_step=0.5).time
    assert (time.seconds, time.by) == (150.0, "")
