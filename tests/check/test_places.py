"""What a place stands for: a file, a run's folder, an adapter's folder, or nothing that can be checked."""

from __future__ import annotations

import json

import pytest

from gradience.errors import ConfigError
from gradience.rules.config import RULES
from gradience.schema.events import ConfigSnapshot, OptimizerSnapshot
from gradience.telemetry import TelemetryWriter
from gradience.verbs.check.run import CheckOptions, check_config, source_locations

ADAPTER = {"peft_type": "LORA", "r": 6, "lora_alpha": 12, "target_modules": ["q_proj"]}
STATE = {"log_history": [{"loss": 1.0, "step": 1}], "max_steps": 40}


@pytest.fixture
def folder(tmp_path):
    """A function that makes a folder with these JSON files."""

    def make(**files):
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return tmp_path

    return make


def test_an_adapter_s_folder_without_a_log_is_its_config(folder):
    found = CheckOptions(document=folder(adapter_config=ADAPTER)).read()
    assert (found.config.lora.r, found.config.training.max_steps) == (6, None)


def test_a_run_s_folder_is_its_adapter_and_what_its_log_shows(folder):
    found = CheckOptions(document=folder(adapter_config=ADAPTER, trainer_state=STATE)).read()
    assert (found.config.lora.r, found.config.training.max_steps) == (6, 40)
    assert CheckOptions(document=folder() / "trainer_state.json").read().config.training.max_steps == 40


def test_a_folder_with_neither_is_refused_with_what_to_give(folder):
    for archive, says in (
        (False, ": no run.jsonl, "),
        (True, ": adapters.npz is MLX's older format: gradience audit "),
    ):
        made = folder(other={})
        (made / "adapters.npz").write_bytes(b"") if archive else None
        with pytest.raises(ConfigError) as caught:
            CheckOptions(document=made).read()
        assert says in str(caught.value)
        assert caught.value.advice == "give a folder with trainer_state.json or adapter_config.json"


def test_the_adapter_and_the_training_of_a_folder_are_read_apart(folder):
    made = folder(adapter_config=ADAPTER, trainer_state=STATE)
    adapter, training = CheckOptions(peft_dir=made).read(), CheckOptions(training_dir=made).read()
    assert (adapter.config.lora.r, adapter.config.training.max_steps) == (6, None)
    assert (training.config.lora.r, training.config.training.max_steps) == (None, 40)
    assert {source.role for source in adapter.sources} == {"adapter"}
    assert "adapter" not in {source.role for source in training.sources}
    (made / "trainer_state.json").unlink()
    with pytest.raises(ConfigError, match=r"none of training_args\.json, .* in it"):
        CheckOptions(training_dir=made).read()


def test_an_adapter_may_be_that_of_the_last_checkpoint(folder, tmp_path):
    made = folder(trainer_state=STATE)
    (made / "checkpoint-1").mkdir()
    for name, content in (("adapter_config", ADAPTER), ("trainer_state", STATE)):
        (made / "checkpoint-1" / f"{name}.json").write_text(json.dumps(content))
    found = CheckOptions(peft_dir=made).read()
    assert (found.config.lora.r, {source.role for source in found.sources}) == (6, {"adapter"})
    (made / "checkpoint-1" / "adapter_config.json").unlink()
    with pytest.raises(ConfigError):
        CheckOptions(peft_dir=made).read()


def test_a_finding_is_placed_in_the_last_file_that_has_its_setting(tmp_path):
    text = "learning_rate: 0.5\nlora_r: 8\nlora_alpha: 16\n"
    first, last, other = (tmp_path / f"{name}.yaml" for name in ("first", "last", "other"))
    first.write_text(text)
    last.write_text("# of the last\n" + text)
    other.write_text("warmup_steps: 3\n")
    for training, place in ((last, (last, 2)), (other, (first, 1))):
        report = check_config(document=first, training=training, select=["LR"])
        gone = {item.id for item in report.not_run}
        assert report.derived["rules_judged"] == sum(rule.id not in gone for rule in RULES)
        assert len(gone) < len(RULES)
        (at,) = source_locations(report)
        assert at is not None
        assert (at.path, at.line) == (str(place[0]), place[1])


def test_the_folder_of_a_recorded_run_is_read_by_its_log(tmp_path):
    with TelemetryWriter(tmp_path / "run.jsonl") as log:
        log.run_start(ConfigSnapshot(optimizer=OptimizerSnapshot(lr=3e-4)))
    assert CheckOptions(document=tmp_path).read().config.optimizer.lr == 3e-4
