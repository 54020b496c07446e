"""Faults of single lines: where they are, how many are named, and what counts as whole."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import pytest
from tables import every
from wire import HEAD, ROW, SCHEMA

from gradience.errors import RecorderError, SchemaError
from gradience.schema.events import Recommendation, RecommendationItem, TrainStep, UnknownEvent
from gradience.telemetry import TelemetryReader
from gradience.telemetry.codec import decode, decode_block, decode_lines, encode, encode_row, parse
from gradience.telemetry.lines import find_faults, find_unnamed
from gradience.telemetry.reader import unnamed_note, validate_log

STEP = {**HEAD, "step": 1}


def line(**fields):
    return json.dumps({**STEP, "event": "train_step", **fields}).encode()


def write(path, *lines):
    path.write_bytes(b"".join(each + b"\n" for each in lines))
    return path


# --- events of unknown names -------------------------------------------------------------------------------------


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
    faults = find_faults({**STEP, "event": "train_step", "loss": "high", "lr": [1, "x", "y"], "step": -1})
    assert [fault.path for fault in faults] == ["$.step", "$.loss", "$.lr[1]", "$.lr[2]"]
    assert len(find_faults({**STEP, "event": "train_step", "lr": ["x"] * 100})) == 64
    several = {**STEP, "event": "train_step", "step": -1, "loss": "x", "lr": "y", "grad_norm": "z"}
    assert [len(find_faults(dict(several), most)) for most in (1, 2, 3, 4, 9)] == [1, 2, 3, 4, 4]
    (long,) = find_faults({**STEP, "event": "train_step", "loss": "x" * 200})
    assert len(long.got) == 80
    (missing,) = find_faults({k: v for k, v in STEP.items() if k != "step"} | {"event": "train_step"})
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


def test_a_log_that_begins_in_another_version_is_refused_and_one_line_of_another_is_a_fault(tmp_path):
    other = line(schema="gradience.vnext.telemetry/v2")
    with pytest.raises(SchemaError, match="telemetry/v2"):
        validate_log(write(tmp_path / "a.jsonl", other, line()))
    other = line(schema="gradience.vnext.telemetry/v2", loss="x")  # and a fault beside it
    report = validate_log(write(tmp_path / "b.jsonl", line(), other, line()))
    assert [(item.line, item.path, item.expected, item.got) for item in report.issues] == [
        (2, "$.schema", SCHEMA, "'gradience.vnext.telemetry/v2'"),
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
    assert error.value.message == f"cannot read {log}: line 2 is longer than 1 MiB, the limit for a line of any log"
    assert error.value.advice == "give the run.jsonl that a run wrote"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_no_file_rather_than_an_empty_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RecorderError, match="not a regular file"):
        list(TelemetryReader(tmp_path / "pipe"))


def test_bare_numbers_are_named_one_by_one_up_to_the_most():
    line = b'{"a": NaN, "b": [1, -Infinity], "c": {"d": Infinity}}'
    assert [(one.path, one.expected, one.got) for one in find_unnamed(line)] == [
        ("$.a", '"NaN"', "NaN without quotes"),
        ("$.b[1]", '"-Infinity"', "-Infinity without quotes"),
        ("$.c.d", '"Infinity"', "Infinity without quotes"),
    ]
    assert [one.path for one in find_unnamed(line, 2)] == ["$.a", "$.b[1]"]
    assert len(find_unnamed(b'{"a": [%b]}' % b",".join([b"NaN"] * 100))) == 64
    assert {one.reason for one in find_unnamed(line)} == {"Bare NaN and Infinity are not JSON"}


def test_what_is_unknown_on_any_level_is_kept_on_its_level():
    def item(**extras: Any) -> RecommendationItem:
        return RecommendationItem(severity="info", action="a", message="m", extras=extras)

    for extras in (({"x": 1}, {}), ({}, {"x": 0}), ({}, {})):
        event = Recommendation(**HEAD, step=1, recommendations=[item(**extra) for extra in extras])
        line = encode(event)
        assert json.loads(line)["recommendations"] == [
            {"severity": "info", "action": "a", "message": "m", **extra} for extra in extras
        ]
        assert decode(line) == event
    config = {
        "x": 1,
        "y": 2,
        "extras": {"x": 3, "z": 4},
        "lora": {"r": 8, "q": None},
        "optimizer": {"extras": {"a": 0}},
    }
    start = decode(json.dumps({**HEAD, "event": "run_start", "step": None, "config": config}).encode())
    assert start.config.extras == {"x": 1, "y": 2, "z": 4}  # of two of a name the one beside counts
    assert (start.config.lora.extras, start.config.optimizer.extras) == ({"q": None}, {"a": 0})
    lora = {"rank_pattern": {"q": 4.0, "k": 8, "v": 0.0}, "alpha_pattern": {"q": 4.5, "k": "NaN"}}
    start = decode(json.dumps({**HEAD, "event": "run_start", "step": None, "config": {"lora": lora}}).encode())
    assert repr(start.config.lora.rank_pattern) == "{'q': 4, 'k': 8, 'v': 0}"
    assert start.config.lora.alpha_pattern == lora["alpha_pattern"]
    for bad in ({"extras": 5, "x": 1}, 5, None, {"lora": {"rank_pattern": {"q": 4.0, "k": 8.5}}}):
        with pytest.raises(SchemaError, match=r"\$\.config"):
            decode(json.dumps({**HEAD, "event": "run_start", "step": None, "config": bad}).encode())
    start = decode(json.dumps({**HEAD, "event": "run_start", "step": None, "config": {}, "own": 0}).encode())
    assert (start.extras, start.config.extras) == ({"own": 0}, {})


def test_lines_decoded_at_once_are_as_many_as_there_are():
    row = json.dumps(ROW).encode()
    assert len(decode_block(row + b"\n" + row + b"\n", 2)) == 2
    assert decode_block(row + b"," + row + b"\n", 1) is None
    assert decode_lines(row + b"," + row + b"\n") is None
    assert len(decode_lines(row + b"\n" + row)) == 2
    skipped = row[:-1] + b', "note": "\xff"}\n'  # not UTF-8, and in a value that is not decoded
    for bad in (b'{"a":"\xff"}\n', b"{}\n", skipped):
        assert decode_block(bad, 1) is None
        assert decode_lines(bad) is None
    assert parse(b'{"a": 1e999, "b": -Infinity}') == ({"a": "Infinity", "b": "-Infinity"}, True)
    assert parse(b'{"a": 1}') == ({"a": 1}, False)


@pytest.mark.parametrize("written", [encode, encode_row])
def test_a_number_that_json_lacks_is_named_whichever_way_a_row_is_written(written):
    def row(step=1, **fields):
        return TrainStep(schema=SCHEMA, ts=1.0, run_id="r", step=step, **fields)

    assert json.loads(written(row(loss=math.nan, lr=-math.inf)))["loss"] == "NaN"
    assert json.loads(written(row(loss=0.5, grad_norm=math.inf)))["grad_norm"] == "Infinity"
    assert json.loads(written(row(loss=0.5))) == ROW
    assert json.loads(written(row(step=None, loss=math.nan))) == {**ROW, "step": None, "loss": "NaN"}
    assert b"null" not in encode(UnknownEvent(event="e", ts=1.0, run_id="r", step=1, payload={"x": [math.nan]}))
    odd = TrainStep(schema=SCHEMA, ts=1.0, run_id="r\x7f", step=1)
    assert rb'"run_id":"r\u007f"' in written(odd)
    with pytest.raises(SchemaError, match="extras of TrainStep may not use the name of a known key: loss, step"):
        encode(row(extras={"step": 1, "loss": 2.0, "x": 3}))
