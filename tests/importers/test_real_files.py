"""Real files of others, counted a second time with json alone; what is read in memory is as private as a log."""

from __future__ import annotations

import json

from gradience.importers import import_run, read_source
from gradience.telemetry import TelemetryReader

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
