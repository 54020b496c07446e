"""Real files of others, counted a second time with json alone; what is read in memory is as private as a log."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from gradience.importers import import_run, read_source
from gradience.telemetry import TelemetryReader
from gradience.telemetry.reader import validate_log

STATES = ("2023-no-grad-norm", "grpo-1134-steps", "sft-60-steps", "sft-mistral-final", "sft-plateau", "six-eval-sets")
LOGS = ("llama-factory-2023", "llama-factory-2024", "llama-factory-throughput")


def kind(row):
    """The kind of a row, worked out without the importer."""
    if "total_flos" in row:
        return "metrics"
    return "train_step" if "loss" in row else "eval"


@pytest.mark.parametrize("name", STATES)
def test_every_row_of_a_trainer_state_becomes_an_event(shared_data, import_events, name):
    path = shared_data / "trainer_states" / f"{name}.json"
    state = json.loads(path.read_text())
    events, imported = import_events(path)
    counted = Counter(map(kind, state["log_history"]))
    of_summary = sum("train_runtime" in row for row in state["log_history"])
    assert imported.runs[0].made.tally.counts == counted + Counter(run_start=1, run_end=1, throughput=of_summary)
    assert imported.skipped == []
    trained = [row for row in state["log_history"] if kind(row) == "train_step"]
    for event, row in zip(events.of("train_step"), trained, strict=True):
        known = [row.get(name) for name in ("step", "loss", "learning_rate", "epoch", "grad_norm")]
        assert [event.step, event.loss, event.lr, event.epoch, event.grad_norm] == known
        assert event.ts is None
        assert event.extras == {k: v for k, v in row.items() if k not in {*COLUMNS, "step"}}
    assert events.start.config.optimizer.lr == max(row["learning_rate"] for row in trained)
    assert events.start.config.training.max_steps == state["max_steps"]
    assert (events.end.status, events.end.step) == ("ok", state["global_step"])


COLUMNS = {"loss", "learning_rate", "grad_norm", "epoch"}


def test_six_data_sets_are_six_splits_with_their_names(shared_data, import_events):
    path = shared_data / "trainer_states" / "six-eval-sets.json"
    events, _ = import_events(path)
    evals = events.of("eval")
    assert Counter(e.split for e in evals) == {f"g{i}": 31 for i in range(6)}
    rows = [r for r in json.loads(path.read_text())["log_history"] if any(k.startswith("eval_") for k in r)]
    for event, row in zip(evals, rows, strict=True):
        assert event.metrics.loss == row[f"eval_{event.split}_loss"]
        assert event.metrics.accuracy == row[f"eval_{event.split}_accuracy"]
        assert event.metrics.extras["samples_per_second"] == row[f"eval_{event.split}_samples_per_second"]


@pytest.mark.parametrize("name", LOGS)
def test_every_row_with_a_loss_of_a_llama_factory_log_becomes_an_event(shared_data, import_events, name):
    path = shared_data / "trainer_logs" / f"{name}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    trained = [row for row in lines if row.get("loss") is not None]
    events, imported = import_events(path)
    assert imported.format == "llama-factory"
    assert events.steps == [row["current_steps"] for row in trained]
    assert events.losses == [row["loss"] for row in trained]
    rates = [row.get("lr", row.get("learning_rate")) for row in trained]
    assert [event.lr for event in events.of("train_step")] == rates
    assert events.start.config.training.max_steps == lines[-1]["total_steps"]
    assert events.end.status == "ok"
    assert len(trained) == len(lines) - 1
    assert any(f"line {len(lines)}" in note for note in imported.notes)


@pytest.mark.parametrize("name", ["roberta-agnews-r4-bias-all", "roberta-portuguese-r8"])
def test_an_output_folder_gives_the_adapters_config_with_the_rows(shared_data, import_events, name):
    folder = shared_data / "adapters" / name
    adapter = json.loads((folder / "adapter_config.json").read_text())
    events, imported = import_events(folder)
    lora, config = events.start.config.lora, events.start.config
    assert (lora.r, lora.alpha, lora.task_type) == (adapter["r"], adapter["lora_alpha"], "SEQ_CLS")
    assert sorted(lora.target_modules) == sorted(adapter["target_modules"])
    assert config.model_name == adapter["base_model_name_or_path"]
    assert [path.name for path in imported.files] == ["trainer_state.json", "adapter_config.json"]


@pytest.mark.parametrize("name", [f"trainer_states/{STATES[1]}.json", f"trainer_logs/{LOGS[0]}.jsonl"])
def test_what_is_written_is_valid_and_the_same_each_time(shared_data, tmp_path, name):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    report = import_run(shared_data / name, one)
    import_run(shared_data / name, two)
    valid = validate_log(one)
    assert valid.valid
    assert valid.events == report.runs[0].events
    assert one.read_bytes() == two.read_bytes()
    assert str(shared_data).encode() not in one.read_bytes()


TOKEN = "hf_" + "aB3" * 12
LONG = "prompt " * 60


def _leaky(tmp_path, rows, write_state):
    more = {"sample": LONG, "api_key": "Zx9" * 9, f"score of {TOKEN}": 1.0, "nested": {"path": "/home/me/data/x.json"}}
    held_out = {"step": 4, "eval_loss": 0.5, "eval_runtime": 1.0, "eval_note": f"login {TOKEN}"}
    path = write_state(tmp_path / "out", [*rows([1, 2, 3]), *rows([4], **more), held_out])
    (path.parent / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "base_model_name_or_path": f"org/{TOKEN}"})
    )
    return path.parent


def test_the_events_in_memory_are_those_of_the_log_that_an_import_writes(tmp_path, rows, write_state):
    folder = _leaky(tmp_path, rows, write_state)
    (import_events,) = read_source(folder).runs
    import_run(folder, tmp_path / "run.jsonl")
    assert list(TelemetryReader(tmp_path / "run.jsonl")) == list(import_events.events)
    (row,) = [event for event in import_events.events if event.step == 4 and "api_key" in event.extras]
    assert row.extras["api_key"] == "<redacted: secret key>"
    assert row.extras["nested"] == {"path": "x.json"}
