from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from tables import every

from gradience.cli.main import main
from gradience.schema.export import json_schema

CASES = Path(__file__).parents[1] / "golden" / "cases"
GOOD = CASES / "good" / "whole.jsonl"
BAD = CASES / "bad" / "run_start_types.jsonl"


def test_a_valid_log_is_one_verdict_and_what_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(GOOD)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"{GOOD}: valid, 7 lines",
        "  events: run_start 1, train_step 1, eval 1, metrics 1, alert 1, recommendation 1, run_end 1",
    ]
    assert err == ""


def test_a_log_that_is_not_valid_exits_with_2_and_names_each_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(BAD)]) == 2
    text = capsys.readouterr().out
    out = text.splitlines()
    assert out[:3] == [
        f"{BAD}: not valid, 12 faults in 3 lines",
        "  line 1, $.config: expected a value (required), got nothing",
        "  line 2, $.config: expected object, got array",
    ]
    profiles = "easy_classification, hard_reasoning, generation, unknown"
    assert f"line 3, $.config.task_profile: expected one of {profiles}, got 'easy'" in " ".join(text.split())
    assert sum(line.startswith("  line ") for line in out) == 12


def test_a_line_that_is_no_json_is_named_by_its_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "run.jsonl"
    log.write_bytes(b"\n{\x1b]0;x\x07\n")
    assert main(["validate", str(log)]) == 2
    out = capsys.readouterr().out
    assert "line 2 (byte 1): not JSON" in out
    assert "\x1b" not in out


def test_faults_beyond_the_limit_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--max-issues", "2", str(BAD)]) == 2
    out = capsys.readouterr().out.splitlines()
    assert out[3:] == ["  ... and 10 more (--max-issues shows them)"]
    assert main(["validate", "--max-issues", "0", "--json", str(BAD)]) == 2
    report = json.loads(capsys.readouterr().out)
    assert (report["valid"], report.get("issues", []), report["issues_total"]) == (False, [], 12)


@every(("path", "code"), [(GOOD, 0), (BAD, 2)])
def test_json_is_one_document_that_follows_its_schema(path: Path, code: int, capsys) -> None:
    assert main(["validate", "--json", str(path)]) == code
    report = json.loads(capsys.readouterr().out)
    Draft202012Validator(json_schema("validate")).validate(report)
    assert report["valid"] == (code == 0)
    assert all({"line", "path", "expected", "got"} <= issue.keys() for issue in report.get("issues", []))


@every("content", [None, b""], ids=["missing", "empty"])
def test_a_log_that_is_not_there_or_empty_is_one_line_and_a_2(tmp_path: Path, content, capsys) -> None:
    log = tmp_path / "run.jsonl"
    if content is not None:
        log.write_bytes(content)
    assert main(["validate", str(log)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert str(log) in err


def test_a_log_of_another_major_version_names_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "run.jsonl"
    log.write_bytes(GOOD.read_bytes().replace(b"telemetry/v1", b"telemetry/v2"))
    assert main(["validate", str(log)]) == 2
    err = capsys.readouterr().err
    assert "gradience.vnext.telemetry/v2" in err
    assert "gradience.vnext.telemetry/v1" in err


def test_unknown_events_are_legal_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(CASES / "good" / "unknown_events.jsonl")]) == 0
    out = capsys.readouterr().out
    assert "checkpoint 1, spectral.v9 1" in out
    assert "3 events of a name unknown" in out


def test_a_repaired_torn_tail_is_a_fault_with_its_explanation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(CASES / "bad" / "torn_and_repaired.jsonl")]) == 2
    out = capsys.readouterr().out
    assert "line 3 (byte" in out
    assert "torn tail of an earlier session" in out
    assert "what a killed process leaves" in out
