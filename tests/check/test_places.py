"""What a place stands for: a file, a run's folder, an adapter's folder, or nothing that can be checked."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from tables import every

from gradience.configs.document import DataPlan
from gradience.configs.settings import Layer
from gradience.errors import ConfigError
from gradience.judge.check import check_config, read_adapter_of, read_any, read_training_of, source_locations
from gradience.judge.check.data import _beside, _length, _limit, _tokenizer, _with_data
from gradience.rules.config import RULES
from gradience.schema.events import ConfigSnapshot, OptimizerSnapshot, TrainingSnapshot
from gradience.telemetry import TelemetryWriter

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
    found = read_any(folder(adapter_config=ADAPTER))
    assert (found.config.lora.r, found.config.training.max_steps) == (6, None)


def test_a_run_s_folder_is_its_adapter_and_what_its_log_shows(folder):
    found = read_any(folder(adapter_config=ADAPTER, trainer_state=STATE))
    assert (found.config.lora.r, found.config.training.max_steps) == (6, 40)
    assert read_any(folder() / "trainer_state.json").config.training.max_steps == 40


def test_a_folder_with_neither_is_refused_with_what_to_give(folder):
    with pytest.raises(ConfigError) as caught:
        read_any(folder(other={}))
    assert caught.value.advice == "give a folder with trainer_state.json or adapter_config.json"


def test_the_adapter_and_the_training_of_a_folder_are_read_apart(folder):
    made = folder(adapter_config=ADAPTER, trainer_state=STATE)
    adapter, training = read_adapter_of(made), read_training_of(made)
    assert (adapter.config.lora.r, adapter.config.training.max_steps) == (6, None)
    assert (training.config.lora.r, training.config.training.max_steps) == (None, 40)
    assert {source.role for source in adapter.sources} == {"adapter"}
    assert "adapter" not in {source.role for source in training.sources}


def test_an_adapter_may_be_that_of_the_last_checkpoint(folder, tmp_path):
    made = folder(trainer_state=STATE)
    (made / "checkpoint-1").mkdir()
    for name, content in (("adapter_config", ADAPTER), ("trainer_state", STATE)):
        (made / "checkpoint-1" / f"{name}.json").write_text(json.dumps(content))
    found = read_adapter_of(made)
    assert (found.config.lora.r, {source.role for source in found.sources}) == (6, {"adapter"})
    (made / "checkpoint-1" / "adapter_config.json").unlink()
    with pytest.raises(ConfigError):
        read_adapter_of(made)


@every(
    ("template", "format", "told"),
    [
        ("x", "messages", True),
        ("", "messages", False),
        ("x", "text", False),
        ("", "text", False),
        ("x", "tokenised", False),
    ],
)
def test_a_template_is_told_of_where_there_is_one_and_rows_are_conversations(template, format, told):  # noqa: A002
    encoder = SimpleNamespace(
        name="t",
        pad_is_end=True,
        end_ids={3, 2},
        names=lambda ids: [f"<{i}>" for i in ids],
        template=template,
        template_from="base",
        marks_answers=False,
        split_controls=list,
        by_trainer=None,
        is_retemplated=False,
    )
    seen = SimpleNamespace(arguments_text=SimpleNamespace(count=0), parts=SimpleNamespace(count=0))
    found = _tokenizer(encoder, SimpleNamespace(format=format), seen)
    assert found["end_tokens"] == ["<2>", "<3>"]
    assert found.get("template") == ("base" if told else None)
    assert ("template_marks_answers" in found, "template_tokens_split" in found) == (told, told)
    assert _tokenizer(None, SimpleNamespace(format=format), seen) == {}


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_is_beside_by_either_of_its_files(name, tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    (second / name).write_text("{}")
    assert _beside([first, second]) == second
    assert _beside([first]) is None


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


@pytest.mark.parametrize(("own", "length"), [(32, 32), (None, 64)])
def test_a_configuration_gets_the_rows_and_tokens_of_its_data_and_keeps_its_own_length(own, length):
    data = SimpleNamespace(
        rows=8, rows_read=4, tokens=SimpleNamespace(kept=100), packing=False, max_length=64, batching=SimpleNamespace()
    )
    data.batching.packed_sequences = 3
    layer = Layer(config=ConfigSnapshot(training=TrainingSnapshot(max_length=own)))
    for packing, examples in ((False, 8), (True, 6)):
        data.packing = packing
        training = _with_data(layer, data).config.training
        assert (training.max_length, training.extras) == (length, {"train_examples": examples, "train_tokens": 200})


def test_a_length_is_the_given_one_else_the_recipes_else_the_configurations_and_0_is_none():
    config = ConfigSnapshot(training=TrainingSnapshot(max_length=3))
    assert [_length(given, DataPlan(max_length=plan), config) for given, plan in ((1, 2), (0, 2), (None, 2))] == [
        1,
        0,
        2,
    ]
    assert (_length(None, DataPlan(), config), _length(None, DataPlan(), ConfigSnapshot())) == (3, None)
    with pytest.raises(ConfigError, match="expected tokens, 0 for no limit, got -1"):
        _length(-1, DataPlan(), config)
    sft, classes = SimpleNamespace(trainer="sft"), SimpleNamespace(trainer="classification")
    for given, shape, trl, limit in (
        (7, sft, True, 7),
        (0, sft, True, None),
        (None, sft, True, 1024),
        (None, sft, False, None),
        (None, classes, True, None),
    ):
        asked = SimpleNamespace(max_length=given, masking=SimpleNamespace(trl=trl))
        assert _limit(asked, shape)[0] == limit


def test_the_folder_of_a_recorded_run_is_read_by_its_log(tmp_path):
    with TelemetryWriter(tmp_path / "run.jsonl") as log:
        log.run_start(ConfigSnapshot(optimizer=OptimizerSnapshot(lr=3e-4)))
    assert read_any(tmp_path).config.optimizer.lr == 3e-4
