"""Faults of single lines: where they are, how many are named, and what counts as whole."""

from __future__ import annotations

import json
import os

import pytest
from tables import every

from gradience.errors import RecorderError, SchemaError
from gradience.schema.events import UnknownEvent
from gradience.telemetry import TelemetryReader
from gradience.telemetry.codec import decode
from gradience.telemetry.lines import find_faults
from gradience.telemetry.reader import unnamed_note, validate_log

HEAD = {"schema": "gradience.vnext.telemetry/v1", "ts": 1, "run_id": "r", "step": 1}


def line(**fields):
    return json.dumps({**HEAD, "event": "train_step", **fields}).encode()


def write(path, *lines):
    path.write_bytes(b"".join(each + b"\n" for each in lines))
    return path


# --- events of unknown names -------------------------------------------------------------------------------------


def test_an_event_of_an_unknown_name_keeps_everything_but_its_envelope():
    event = decode(line(event="probe", depth={"a": [1.5]}, session="s"))
    assert isinstance(event, UnknownEvent)
    assert (event.event, event.run_id, event.step, event.ts) == ("probe", "r", 1, 1)
    assert event.payload == {"depth": {"a": [1.5]}, "session": "s"}


@every(
    ("fields", "message"),
    [
        ({"run_id": ""}, "Expected `str` of length >= 1 - at `$.run_id`"),
        ({"schema": "other/v1"}, "Invalid enum value 'other/v1' - at `$.schema`"),
        ({"step": -1}, "$.step"),
        ({"step": "1"}, "$.step"),
        ({"run_id": None}, "$.run_id"),
    ],
)
def test_an_event_of_an_unknown_name_needs_a_whole_envelope(fields, message):
    with pytest.raises(SchemaError) as error:
        decode(line(event="probe", **fields))
    assert message in str(error.value)


# --- faults ------------------------------------------------------------------------------------------------------


def test_every_fault_of_a_line_is_named_up_to_64_and_shown_to_80_characters():
    faults = find_faults({**HEAD, "event": "train_step", "loss": "high", "lr": [1, "x", "y"], "step": -1})
    assert [fault.path for fault in faults] == ["$.step", "$.loss", "$.lr[1]", "$.lr[2]"]
    assert len(find_faults({**HEAD, "event": "train_step", "lr": ["x"] * 100})) == 64
    several = {**HEAD, "event": "train_step", "step": -1, "loss": "x", "lr": "y", "grad_norm": "z"}
    assert [len(find_faults(dict(several), most)) for most in (1, 2, 3, 4, 9)] == [1, 2, 3, 4, 4]
    (long,) = find_faults({**HEAD, "event": "train_step", "loss": "x" * 200})
    assert len(long.got) == 80
    (missing,) = find_faults({k: v for k, v in HEAD.items() if k != "step"} | {"event": "train_step"})
    assert (missing.path, missing.expected, missing.got) == ("$.step", "a value (required)", "nothing")


# --- counts ------------------------------------------------------------------------------------------------------


def test_a_reader_lists_a_hundred_bad_lines_and_counts_all(tmp_path):
    log = write(tmp_path / "run.jsonl", *[b"no"] * 103, line())
    reader = TelemetryReader(log)
    assert len(list(reader)) == 1
    assert (len(reader.issues), reader.issues_total) == (100, 103)
    summary = reader.summarize()
    assert (len(summary.issues), summary.issues_total, summary.lines) == (100, 103, 104)
    report = validate_log(log)
    assert (report.valid, report.lines, len(report.issues), report.issues_total) == (False, 104, 100, 103)
    assert [len(validate_log(log, max_issues=n).issues) for n in (0, 1, 200)] == [0, 1, 103]
    three = line(step=-1, loss="x", epoch="y")
    log = write(tmp_path / "three.jsonl", line(), three, three)
    for most in range(8):
        report = validate_log(log, max_issues=most)
        assert [bad.line for bad in report.issues] == [2, 2, 2, 3, 3, 3][:most]
        assert (report.issues_total, report.valid, report.lines) == (6, False, 3)


def test_bare_tokens_and_torn_tails_are_noted(tmp_path):
    log = tmp_path / "run.jsonl"
    log.write_bytes(line().replace(b'"step": 1', b'"step": 1, "loss": NaN') + b"\n" + line()[:-9])
    report = validate_log(log)
    assert (report.valid, report.issues_total) == (False, 2)
    assert [issue.torn for issue in report.issues] == [False, True]
    assert report.notes == [
        "1 line holds a bare NaN or Infinity, which is not JSON; read anyway",
        "a torn tail is what a killed process leaves: the events around it are whole",
    ]
    assert unnamed_note(2) == "2 lines hold a bare NaN or Infinity, which is not JSON; read anyway"


def test_each_item_of_a_list_has_its_fault_once():
    document = {**HEAD, "event": "recommendation", "recommendations": [1, {"severity": "bad"}, "x"]}
    faults = [(fault.path, fault.expected) for fault in find_faults(document)]
    assert faults[0] == ("$.recommendations[0]", "object")
    assert [path for path, _ in faults] == [
        "$.recommendations[0]",
        "$.recommendations[1].severity",
        "$.recommendations[1].action",
        "$.recommendations[1].message",
        "$.recommendations[2]",
    ]


def test_a_log_that_begins_in_another_version_is_refused_and_one_line_of_another_is_a_fault(tmp_path):
    other = line(schema="gradience.vnext.telemetry/v2")
    with pytest.raises(SchemaError, match="telemetry/v2"):
        validate_log(write(tmp_path / "a.jsonl", other, line()))
    other = line(schema="gradience.vnext.telemetry/v2", loss="x")  # and a fault beside it
    report = validate_log(write(tmp_path / "b.jsonl", line(), other, line()))
    assert [(item.line, item.path, item.expected, item.got) for item in report.issues] == [
        (2, "$.schema", HEAD["schema"], "'gradience.vnext.telemetry/v2'"),
        (2, "$.loss", 'a number, "NaN", "Infinity" or "-Infinity"', "'x'"),
    ]


def test_a_line_without_end_is_measured_up_to_a_limit_and_named(tmp_path, monkeypatch):
    most = 1 << 20
    monkeypatch.setattr("gradience.telemetry.lines._LONGEST_LINE", most)
    (bad,) = TelemetryReader(write(tmp_path / "most.jsonl", line(), b"x" * most, line())).summarize().issues
    assert (bad.line, bad.offset, bad.reason) == (2, len(line()) + 1, f"a line of {most} bytes; one may have 65536")
    log = write(tmp_path / "more.jsonl", line(), b"x" * (2 * most), line())
    with pytest.raises(RecorderError) as error:
        TelemetryReader(log).summarize()
    assert str(error.value) == f"cannot read {log}: line 2 is longer than 1 MiB, the limit for a line of any log"
    assert error.value.advice == "give the run.jsonl that a run wrote"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_no_file_rather_than_an_empty_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RecorderError, match="not a regular file"):
        list(TelemetryReader(tmp_path / "pipe"))
