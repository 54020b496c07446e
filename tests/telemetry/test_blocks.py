"""Plain rows read by the block: gaps among them, and further values that some of them lack."""

from __future__ import annotations

import json
import math

import pytest
from tables import every

from gradience.errors import RecorderError, SchemaError
from gradience.schema.values import plain
from gradience.telemetry import TelemetryReader
from gradience.telemetry.codec import decode
from gradience.telemetry.reader import validate_log
from gradience.telemetry.redact import below, hide_in

ROWS = 3000  # some blocks of 64 KiB


def write(path, change):
    """A log of plain rows of one session; `change` makes something of a row's number and fields, or drops it."""
    head = {"schema": "gradience.vnext.telemetry/v1", "ts": 1.0, "run_id": "r", "session": "s"}
    start = {**head, "event": "run_start", "step": None, "config": {}, "seq": 0}
    rows = [{**head, "event": "train_step", "step": n, "loss": 1.0 / n, "seq": n} for n in range(1, ROWS + 1)]
    changed = (change(n, row) for n, row in enumerate(rows, 1))
    kept = [start, *(row for row in changed if row is not None)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in kept), encoding="utf-8")
    return path


@pytest.mark.parametrize("gone", [2, 1500, 2999])
def test_a_line_that_is_missing_among_thousands_is_counted(tmp_path, gone):
    log = write(tmp_path / "run.jsonl", lambda n, row: None if n == gone else row)
    run = TelemetryReader(log).summarize().last
    assert (run.record.missing, run.record.duplicates, len(run.steps)) == (1, 0, ROWS - 1)


def test_a_line_that_is_doubled_among_thousands_is_counted(tmp_path):
    log = write(tmp_path / "run.jsonl", lambda n, row: {**row, "seq": 1499} if n == 1500 else row)
    record = TelemetryReader(log).summarize().last.record
    assert (record.duplicates, record.missing) == (1, 1)


@pytest.mark.parametrize("stride", [1, 2, 700])
def test_a_value_that_some_rows_lack_is_kept_where_it_is(tmp_path, stride):
    log = write(tmp_path / "run.jsonl", lambda n, row: {**row, "reward": n / 2} if n % stride == 0 else row)
    summary = TelemetryReader(log).summarize(["reward"])
    column = summary.last.columns["reward"]
    assert list(column.steps) == list(range(stride, ROWS + 1, stride))
    assert list(column.values) == [step / 2 for step in column.steps]
    assert summary.counts["train_step"] == ROWS
    assert len(summary.last.losses) == ROWS


def test_rows_without_a_rate_have_nan_there_and_the_last_epoch_is_kept(tmp_path):
    log = write(tmp_path / "run.jsonl", lambda n, row: {**row, "lr": 0.5, "epoch": n / 100} if n % 3 == 1 else row)
    run = TelemetryReader(log).summarize().last
    assert [math.isnan(rate) for rate in run.rates] == [step % 3 != 1 for step in run.steps]
    assert run.last_epoch == 29.98
    assert (run.first_ts, run.last_ts, run.last_step) == (1.0, 1.0, ROWS)


def test_sessions_that_begin_after_thousands_of_rows_without_one_are_counted(tmp_path):
    head = {"schema": "gradience.vnext.telemetry/v1", "ts": 1.0, "run_id": "r", "event": "train_step", "loss": 1.0}
    late = [{**head, "step": ROWS + n, "session": "ab"[n % 2], "seq": n // 2} for n in range(4)]
    log = tmp_path / "run.jsonl"
    log.write_text("".join(f"{json.dumps(row)}\n" for row in [*({**head, "step": n} for n in range(ROWS)), *late]))
    record = TelemetryReader(log).summarize().last.record
    assert (record.sessions, record.interleaved, record.missing) == ({"a", "b"}, 2, 0)


def test_steps_that_go_back_among_thousands_are_counted(tmp_path):
    log = write(tmp_path / "run.jsonl", lambda n, row: {**row, "step": 10} if n == 2000 else row)
    record = TelemetryReader(log).summarize().last.record
    assert (record.out_of_order, record.duplicates) == (1, 0)


def test_what_is_no_text_says_where():
    line = b'{"schema":"gradience.vnext.telemetry/v1","ts":1,"run_id":"a\xff","event":"run_end","step":null}'
    with pytest.raises(SchemaError, match=r"^not UTF-8: invalid start byte at byte 59$"):
        decode(line)


def test_arrays_count_among_the_levels():
    np = pytest.importorskip("numpy")
    value = np.zeros((1,) * 32)
    for _ in range(32):
        value = [value]
    assert plain(value, "x")
    with pytest.raises(RecorderError, match="nested more than 64 levels"):
        plain([[value]], "x")


def test_a_key_that_is_no_text_hides_like_its_parent():
    assert below("api_key", 1) == "api_key"
    assert hide_in({"api_key": {1: "a"}, "b": {2: "c"}}) == {"api_key": {1: "<redacted: secret key>"}, "b": {2: "c"}}


@every(
    ("before", "after", "torn"),
    [
        (["b"], "a", True),
        (["b"], "b", False),
        (["b"], "c", True),
        (["b"], None, False),
        (["b", None], "b", False),  # a row that names no session ends none
        (["b", None], "c", True),
        (["b", "other"], "b", False),  # nor does an event by itself
        (["b"], ["b", "c"], False),  # of several sessions that follow the first counts
        (["b"], ["c", "b"], True),
    ],
)
def test_a_broken_line_is_a_torn_tail_where_another_session_than_the_last_goes_on(tmp_path, before, after, torn):
    head = {"schema": "gradience.vnext.telemetry/v1", "ts": 1.0, "run_id": "r", "event": "train_step", "loss": 1.0}
    sessions = ["a"] * 10 + before + (after * 5 if isinstance(after, list) else [after] * 10)
    rows = [json.dumps({**head, "step": n, "session": s}) for n, s in enumerate(sessions)]
    log = tmp_path / "run.jsonl"
    place = 10 + len(before)
    if before[-1] == "other":
        rows[place - 1] = json.dumps({**head, "event": "metrics", "step": 1, "kind": "k", "metrics": {}})
    log.write_text("\n".join([*rows[:place], '{"schema": "gra', *rows[place:]]) + "\n")
    (issue,) = TelemetryReader(log).summarize().issues
    assert (issue.line, issue.torn) == (place + 1, torn)
    assert issue.reason.startswith("torn tail of an earlier session: ") is torn


def test_a_line_that_is_too_long_is_counted_among_the_lines(tmp_path):
    log = tmp_path / "run.jsonl"
    row = json.dumps({"schema": "gradience.vnext.telemetry/v1", "ts": 1, "run_id": "r", "event": "run_end", "step": 1})
    log.write_text(f"{row}\n{'x' * (64 * 1024 + 1)}\n{row}\n")
    assert (validate_log(log).lines, TelemetryReader(log).summarize().lines) == (3, 3)
