"""The rules of docs/evolution.md, with a made-up log of v1.1: in Python, and by validators that are not ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from gradience.cli.main import main
from gradience.errors import SchemaError
from gradience.events import UnknownEvent
from gradience.schema.export import json_schema
from gradience.telemetry import TelemetryReader

V1 = "gradience.vnext.telemetry/v1"


def lines(version: str) -> list[dict[str, object]]:
    """A log as a later minor version may have it: a new field, event, kind, severity, status and task profile."""
    head = {"schema": version, "ts": 1.0, "run_id": "r", "session": "s"}
    config = {"task_profile": "tool_use", "model_name": "m", "mixture": {"code": 0.5}}
    return [
        {**head, "event": "run_start", "step": None, "seq": 0, "config": config},
        {**head, "event": "train_step", "step": 1, "seq": 1, "loss": 0.5, "tokens_seen": 4096},
        {**head, "event": "checkpoint", "step": 1, "seq": 2, "bytes": 10},
        {**head, "event": "train_step", "step": 2, "seq": 3, "loss": 0.25, "tokens_seen": 8192},
        {**head, "event": "alert", "step": 2, "seq": 4, "severity": "emergency", "code": "c", "message": "m"},
        {
            **head,
            "event": "recommendation",
            "step": 2,
            "seq": 5,
            "recommendations": [{"severity": "hint", "action": "a", "message": "m"}],
        },
        {**head, "event": "metrics", "step": 2, "seq": 6, "kind": "energy", "metrics": {"joules": 5}},
        {**head, "event": "run_end", "step": 2, "seq": 7, "status": "preempted"},
    ]


def write(path: Path, version: str) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines(version)))
    return path


@pytest.fixture
def later(tmp_path: Path) -> Path:
    return write(tmp_path / "later.jsonl", f"{V1}.1")


def test_a_later_minor_version_is_read_and_what_is_new_is_kept(later: Path):
    reader = TelemetryReader(later)
    start, row, checkpoint, _, alert, advice, energy, end = reader
    assert reader.issues == []
    assert (start.config.task_profile, start.config.extras) == ("unknown", {"mixture": {"code": 0.5}})
    assert (row.loss, row.extras, row.schema) == (0.5, {"tokens_seen": 4096}, f"{V1}.1")
    assert isinstance(checkpoint, UnknownEvent)
    assert (alert.severity, advice.recommendations[0].severity, end.status) == ("unknown",) * 3
    assert energy.metrics == {"joules": 5}
    new = "task_profile 'tool_use', severity 'emergency', severity 'hint' and 1 more are"
    assert reader.notes == [
        f"the log is {V1}.1, this reader knows {V1}: fields it does not know are kept unread",
        f"{new} not known to {V1}: read as unknown",
    ]


@pytest.mark.parametrize("version", ["gradience.vnext.telemetry/v2", "gradience.vnext.telemetry/v1x", f"{V1}."])
def test_another_major_version_is_refused_with_advice(tmp_path: Path, version: str):
    log = write(tmp_path / "run.jsonl", version)
    with pytest.raises(SchemaError, match=f"this log is '{version}', this reader knows '{V1}'") as error:
        list(TelemetryReader(log))
    assert "read it with a release of gradience that writes it" in error.value.advice
    assert main(["monitor", str(log)]) == 2
    assert main(["validate", str(log)]) == 2


def test_a_foreign_validator_takes_the_later_log_and_holds_v1_to_its_values(tmp_path: Path):
    validator = Draft202012Validator(json_schema("telemetry"))
    assert [validator.is_valid(line) for line in lines(f"{V1}.1")] == [True] * 8
    assert [validator.is_valid(line) for line in lines(V1)] == [False, True, True, True, False, False, True, False]
    assert not any(validator.is_valid(line) for line in lines("gradience.vnext.telemetry/v2"))
    wrong = [{**line, "run_id": 7} for line in lines(f"{V1}.1")]
    assert not any(validator.is_valid(line) for line in wrong)


def test_the_page_shows_what_validate_prints(root: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = lines(f"{V1}.1")
    given[0]["config"] = {}
    Path("later.jsonl").write_text("".join(json.dumps(given[i]) + "\n" for i in (0, 1, 2, 4, 7)))
    assert main(["validate", "later.jsonl"]) == 0
    printed = capsys.readouterr().out
    assert f"$ gradience validate later.jsonl\n{printed}```" in (root / "docs" / "evolution.md").read_text()
