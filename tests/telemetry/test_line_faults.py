"""Faults of single lines: where they are, how many are named, and what counts as whole."""

from __future__ import annotations

import json
import os

import pytest
from tables import every

from gradience.errors import RecorderError, SchemaError
from gradience.schema import MAX_INT
from gradience.schema.events import TrainStep, UnknownEvent
from gradience.schema.flat import expectation
from gradience.schema.values import MAX_ELEMENTS, MAX_VALUES, number, number_of, plain, rates, step_of
from gradience.telemetry import TelemetryReader
from gradience.telemetry.codec import Place, decode, find
from gradience.telemetry.lines import find_faults, find_unnamed
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


# --- numbers -----------------------------------------------------------------------------------------------------


@every(("step", "whole"), [(4.0, True), (4.5, False), (float(MAX_INT), True), (float(2**53), False), (0.0, True)])
def test_a_whole_float_is_an_integer_up_to_two_to_the_53(step, whole):
    if whole:
        event = decode(line(step=step))
        assert isinstance(event, TrainStep)
        assert event.step == int(step)
    else:
        with pytest.raises(SchemaError, match="step"):
            decode(line(step=step))


@every(
    ("value", "step"),
    [
        (0, 0), (-1, None), (MAX_INT, MAX_INT), (MAX_INT + 1, None), (12.0, 12), (12.5, None), ("12", 12), ("12.0", 12),
        (" 12 ", 12), ("1" * 16, int("1" * 16) if int("1" * 16) <= MAX_INT else None), ("1" * 17, None), ("x", None),
        (True, None), (None, None), ("-3", None), ("1e3", None),
    ],
)  # fmt: skip
def test_a_step_is_a_whole_number_from_zero(value, step):
    assert step_of(value) == step


@every(
    ("value", "found"),
    [
        ("4.16", 4.16), (" .5 ", 0.5), ("1e-3", 1e-3), ("+1.", 1.0), ("nan", "NaN"), ("-inf", "-Infinity"),
        ("Infinity", "Infinity"), ("4 apples", None), ("", None), (True, None), (None, None), ([1], None),
        ("1" * 64, float("1" * 64)), ("1" * 65, None), (10**400, None), ("1_0", None),
    ],
)  # fmt: skip
def test_a_number_may_be_written_as_text_of_at_most_64_characters(value, found):
    assert number_of(value) == found


def test_integers_of_at_most_4096_bits_are_written_whole():
    assert number(2**4095, "x") == 2**4095
    assert plain(2**4095, "x") == 2**4095
    for read in (plain, number):
        with pytest.raises(RecorderError, match="`x`: expected"):
            read(2**4096, "x")


def test_an_event_has_ten_thousand_values_64_levels_and_arrays_of_4096_at_most():
    np = pytest.importorskip("numpy")
    assert (MAX_VALUES, MAX_ELEMENTS) == (10_000, 4096)
    assert len(plain([0] * MAX_VALUES, "x")) == MAX_VALUES
    with pytest.raises(RecorderError, match="`x` holds more values than the 10000 of one event"):
        plain([0] * (MAX_VALUES + 1), "x")
    with pytest.raises(RecorderError, match="holds more values"):
        plain({"a": [0] * 6000, "b": [0] * 4000}, "x")  # and the two lists themselves
    assert len(plain(np.zeros(MAX_ELEMENTS), "x")) == MAX_ELEMENTS
    with pytest.raises(RecorderError, match="`x`: expected at most 4096 values"):
        plain(np.zeros(MAX_ELEMENTS + 1), "x")
    nested = 0
    for _ in range(65):
        nested = [nested]
    assert plain(nested, "x") == nested
    with pytest.raises(RecorderError, match="is nested more than 64 levels deep"):
        plain([nested], "x")


def test_rates_are_a_number_or_one_for_each_group_and_the_wrong_one_is_named():
    assert rates(0.5) == 0.5
    assert rates([0.5, float("nan")]) == [0.5, "NaN"]
    assert rates(()) == []
    with pytest.raises(RecorderError, match=r"`lr\[1\]`: expected a number, got str"):
        rates([0.5, "high"])


# --- faults ------------------------------------------------------------------------------------------------------


def test_every_fault_of_a_line_is_named_up_to_64_and_shown_to_80_characters():
    faults = find_faults({**HEAD, "event": "train_step", "loss": "high", "lr": [1, "x", "y"], "step": -1})
    assert [fault.path for fault in faults] == ["$.step", "$.loss", "$.lr[1]", "$.lr[2]"]
    assert len(find_faults({**HEAD, "event": "train_step", "lr": ["x"] * 100})) == 64
    assert len(find_faults({**HEAD, "event": "train_step", "lr": ["x"] * 100}, 3)) == 3
    (long,) = find_faults({**HEAD, "event": "train_step", "loss": "x" * 200})
    assert len(long.got) == 80
    (missing,) = find_faults({k: v for k, v in HEAD.items() if k != "step"} | {"event": "train_step"})
    assert (missing.path, missing.expected, missing.got) == ("$.step", "a value (required)", "nothing")


def test_bare_tokens_are_found_at_every_depth():
    found = find_unnamed(b'{"a": NaN, "b": [1, -Infinity], "c": {"d": Infinity}}')
    assert [(fault.path, fault.expected, fault.got) for fault in found] == [
        ("$.a", '"NaN"', "NaN without quotes"),
        ("$.b[1]", '"-Infinity"', "-Infinity without quotes"),
        ("$.c.d", '"Infinity"', "Infinity without quotes"),
    ]
    assert len(find_unnamed(b'{"a": [%b]}' % b",".join([b"NaN"] * 100))) == 64


@every(
    ("path", "place"),
    [
        ("$.a", ({"a": [1, {"b": 2}]}, "a", False)),
        ("$.a[1].b", ({"b": 2}, "b", False)),
        ("$.a[...]", ({"a": [1, {"b": 2}]}, "a", True)),
        ("$.a[5].b", None),
        ("$.x.b", None),
        ("$", None),
    ],
)
def test_a_path_leads_to_its_container(path, place):
    assert find({"a": [1, {"b": 2}]}, path) == (None if place is None else Place(*place))
    assert expectation(f"Expected `int` - at `{path}`").path == path


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


def test_a_validation_counts_events_by_name_and_unknown_ones_apart(tmp_path):
    names = [line(event=f"x{n}") for n in range(1002)]
    report = validate_log(write(tmp_path / "run.jsonl", line(), line(), *names, line(event="x1")))
    assert report.valid
    assert report.events == {"train_step": 2}
    assert (len(report.unknown_events), report.unknown_events["..."], report.unknown_events["x1"]) == (1001, 2, 2)
    assert report.notes == [
        "1003 events of a name unknown to gradience.vnext.telemetry/v1 here: legal, not checked further"
    ]


def test_a_log_of_blank_lines_is_not_valid(tmp_path):
    for blank in ([b""], [b"", b" "]):  # one byte is a file that is not empty
        report = validate_log(write(tmp_path / "run.jsonl", *blank))
        assert (report.valid, report.lines) == (False, 0)
        assert report.notes == ["the file holds no line that is not blank"]


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
