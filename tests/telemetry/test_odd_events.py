"""What a resume leaves, to the step, and how values, lines and writers that are seldom seen are taken."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tables import every

from gradience.errors import RecorderError, SchemaError
from gradience.schema.values import described, plain
from gradience.telemetry import TelemetryReader, TelemetryWriter
from gradience.telemetry.lines import Block, find_faults, read_blocks
from gradience.telemetry.reader import validate_log
from gradience.telemetry.redact import Redaction, names_beside, redact_document
from gradience.telemetry.secrets import hide_secrets
from gradience.telemetry.series import RunSeries

HEAD: dict[str, Any] = {"schema": "gradience.vnext.telemetry/v1", "ts": None, "run_id": "r"}
LONE = chr(0xD800)  # half of a surrogate pair, which UTF-8 cannot hold


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


def event(name: str, step: Any, **fields: Any) -> dict[str, Any]:
    return {**HEAD, "event": name, "step": step, **fields}


def row(step: int, **fields: Any) -> dict[str, Any]:
    return event("train_step", step, loss=step / 8, **fields)


def evaluation(step: int | None, **metrics: Any) -> dict[str, Any]:
    return event("eval", step, split="eval", metrics={"loss": 1.0, **metrics})


def read(log: Path, *events: dict[str, Any], values: tuple[str, ...] = ("reward",)) -> RunSeries:
    log.write_text("".join(json.dumps(each) + "\n" for each in events))
    (run,) = TelemetryReader(log).summarize(values).runs.values()
    return run


def test_a_resume_leaves_what_was_logged_up_to_its_step_and_counts_the_rest(log):
    run = read(
        log,
        event("run_start", None, config={}),
        *(row(step, lr=step / 4, grad_norm="NaN", reward=float(step)) for step in (1, 2, 3, 4)),
        *(evaluation(step) for step in (2, 3, None)),
        *(event("metrics", step, kind=f"k{step}", metrics={}) for step in (2, 3)),
        event("metrics", None, kind="timeless", metrics={}),
        event("recommendation", 4, recommendations=[{"severity": "info", "action": "a", "message": "1"}]),
        event("recommendation", 4, recommendations=[{"severity": "info", "action": "a", "message": "2"}]),
        event("run_end", None, status="ok"),
        event("run_start", 2, config={}, resumed_from_step=2),
    )
    assert (list(run.steps), list(run.losses), list(run.rates)) == ([1, 2], [0.125, 0.25], [0.25, 0.5])
    assert (list(run.columns["reward"].steps), list(run.columns["reward"].values)) == ([1, 2], [1.0, 2.0])
    assert (run.lost_norms, len(run.grad_norms), run.superseded) == ({1, 2}, 2, 3)
    assert run.record.replaced == [(3, 0.375), (4, 0.5)]
    assert run.record.resumed_from == [2]
    assert run.latest_eval("eval").step is None  # of any time
    assert [each.step for each in run.evals] == [2, None]
    assert run.latest_metrics.keys() == {"k2", "timeless"}
    assert [item.message for item in run.recommendations] == ["1", "2"]
    assert (run.last_step, run.end) == (2, None)


def test_the_newest_evaluation_is_of_the_split_that_is_named_and_of_no_other_like_it(log):
    others = ({**evaluation(step), "split": split} for step, split in ((3, "evaluation"), (4, "eval_2"), (5, "val")))
    run = read(log, {**evaluation(1), "split": "eval"}, {**evaluation(2), "split": "eval"}, *others)
    assert [event.step for event in map(run.latest_eval, ("eval", "evaluation", "val"))] == [2, 3, 5]
    assert run.latest_eval("ev") is run.latest_eval("") is None


def test_the_last_step_is_the_highest_of_any_event_and_that_of_a_resume_without_rows(log):
    assert read(log, row(3), evaluation(7), row(4)).last_step == 7
    assert read(log, event("run_start", 5, config={}, resumed_from_step=5)).last_step == 5
    assert read(log, event("run_start", 9, config={})).last_step is None
    assert read(log, row(0)).last_step == read(log, evaluation(0)).last_step == 0
    assert read(log, evaluation(None)).last_step is None
    assert read(log, row(1), event("run_start", 0, config={}, resumed_from_step=0), row(1)).last_step == 1


def test_an_epoch_of_0_is_the_last_one_and_norms_and_rates_stay_apart_through_a_resume(log):
    assert read(log, row(0, epoch=0)).last_epoch == read(log, row(0, epoch=2.0), row(1, epoch=0.0)).last_epoch == 0
    rows = [row(step, lr=step / 4, grad_norm=2.0 * step) for step in range(5)]
    run = read(log, *rows, event("run_start", 2, config={}, resumed_from_step=2))
    assert (list(run.rates), list(run.grad_norms)) == ([0.0, 0.25, 0.5], [0.0, 2.0, 4.0])
    run = read(log, *rows, event("run_start", 0, config={}, resumed_from_step=0))
    assert (list(run.steps), list(run.losses), run.superseded, run.last_step) == ([0], [0.0], 4, 0)


def test_a_value_that_is_not_finite_makes_a_column_and_no_row_of_it(log):
    run = read(log, row(1, reward="Infinity"), row(2, reward="NaN"), row(3, reward="x"), row(4, reward="0.5"))
    assert (list(run.columns["reward"].steps), list(run.columns["reward"].values)) == ([4], [0.5])
    run = read(log, row(1), row(2, reward=None), *(row(step, reward=1.0 if step % 2 else None) for step in range(3, 9)))
    assert (list(run.columns["reward"].steps), list(run.columns["reward"].values)) == ([3, 5, 7], [1.0] * 3)
    assert [math.isnan(norm) for norm in run.grad_norms] == [True] * 8
    assert run.lost_norms == set()


def test_a_name_of_a_further_value_may_hold_what_no_attribute_can(log):
    names = ('say "x"', "a\\b", "tab\there", "", "value_0", "é", "class")
    run = read(log, *(row(step, **dict.fromkeys(names, step / 4)) for step in range(40)), values=names)
    values = [step / 4 for step in range(40)]
    assert {name: list(column.values) for name, column in run.columns.items()} == dict.fromkeys(names, values)


def test_a_null_where_none_may_be_is_mended_as_any_other_fault():
    document = event("run_start", None, config={}, meta=None, resumed_from_step="x")
    assert [fault.path for fault in find_faults(document)] == ["$.meta", "$.resumed_from_step"]


def test_a_key_that_utf_8_cannot_hold_is_made_one_that_it_can():
    assert plain({f"{LONE}a": f"{LONE}b"}, "x") == described({f"{LONE}a": f"{LONE}b"}) == {"?a": "?b"}


def test_a_log_without_a_line_of_its_writer_may_vanish_in_silence(log):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        writer = TelemetryWriter(log, on_error="raise")
        log.unlink()
        writer.close()
    assert writer.lost == 0


def test_blocks_lie_where_they_say_in_the_file(log):
    lines = [json.dumps(row(step, text="x" * (step % 97))) for step in range(2000)]
    lines[700] = "y" * 70_000  # too long: a piece by itself
    log.write_text("\n".join([*lines, "half"]))
    whole, numbers = log.read_bytes(), []
    for piece in read_blocks(log):
        numbers.append(piece.number)
        if isinstance(piece, Block):
            assert whole[piece.offset :].startswith(piece.data)
            assert piece.number == whole[: piece.offset].count(b"\n")
            assert [whole[line.offset :].startswith(line.data) for line in piece.lines()] == [True] * piece.count
        else:
            assert (piece.number, piece.length, piece.offset) == (701, 70_000, whole.index(b"yyy"))
    assert len(numbers) > 3
    assert numbers == sorted(numbers)


def test_a_line_is_a_torn_tail_also_where_the_next_block_begins_the_next_session(log):
    first = [json.dumps(row(step)) for step in range(500)]
    begun = json.dumps(event("run_start", None, config={}, meta={"text": "x" * 40_000}))
    lines = [*first, '{"event": "train', begun, *(json.dumps(row(step)) for step in range(5))]
    log.write_text("\n".join(lines) + "\n")
    assert sum(map(len, lines[:501])) < 65_536 < sum(map(len, lines[:502]))
    reader = TelemetryReader(log)
    assert len(list(reader)) == 506
    (issue,) = reader.issues
    assert reader.summarize().issues == [issue]  # where the next block is decoded as a whole
    assert (issue.line, issue.torn) == (501, True)
    assert issue.reason.startswith("torn tail of an earlier session: ")
    lines[500] = json.dumps(event("train_step", "x"))  # whole, and not an event
    log.write_text("\n".join(lines) + "\n")
    list(reader)
    assert [(bad.line, bad.torn, bad.path) for bad in reader.issues] == [(501, False, "$.step")]


def test_a_line_is_a_torn_tail_also_where_rows_by_the_thousand_go_on_in_another_session(log):
    for between, torn in (("b", True), ("a", False)):
        first = [json.dumps(row(step, session="a")) for step in range(1500)]
        other = json.dumps({**evaluation(1500), "session": between})
        last = [json.dumps(row(step, session="a")) for step in range(1500, 3000)]
        log.write_text("\n".join([*first, other, '{"event": "train', *last]) + "\n")
        reader = TelemetryReader(log)
        assert len(list(reader)) == 3001
        (issue,) = reader.issues
        assert reader.summarize().issues == [issue]
        assert (issue.line, issue.torn) == (1502, torn)


def test_faults_are_counted_and_lines_with_a_bare_number_too(log):
    lines = [json.dumps(row(1)), json.dumps({**row(2), "loss": math.nan}), json.dumps(event("train_step", "x", lr="y"))]
    log.write_text("\n".join(lines) + "\n")
    summary = TelemetryReader(log).summarize()
    assert (summary.lines, summary.bare_tokens, summary.issues_total, summary.counts.total()) == (3, 1, 1, 2)
    report = validate_log(log)
    assert (report.lines, report.issues_total, report.events) == (3, 3, {"train_step": 1})
    assert [(bad.line, bad.path) for bad in report.issues] == [(2, "$.loss"), (3, "$.step"), (3, "$.lr")]
    assert [bad.line for bad in validate_log(log, max_issues=2).issues] == [2, 3]


def test_the_second_of_a_pair_is_judged_by_the_first_where_it_may_be_its_secret():
    for items, names in (
        (["token", "words"], ["k", "k"]),
        (["token", "abc12"], ["k", "k"]),
        (["token", "abc123"], ["k", "token"]),
        (["token", 123456], ["k", "k"]),
        (["password", "words"], ["k", "password"]),
        (["password", 1], ["k", "password"]),
        (["key", "abc123"], ["k", "k"]),
        (["password", "abc123", "x"], ["k", "k", "k"]),
        (["--token", "abc123", "--lr", "1"], ["k", "token", "k", "k"]),
        (["--token=x", "abc123", "y"], ["k", "k", "k"]),
    ):
        assert names_beside(items, "k") == names


def test_a_line_may_have_64_kib_and_no_byte_more(log):
    short = len(json.dumps(row(1, text="")))
    for length, last in ((65_535, ""), (65_536, ""), (65_536, "\n"), (65_537, ""), (65_537, "\n")):
        log.write_text(json.dumps(row(1)) + "\n" + json.dumps(row(1, text="x" * (length - short))) + last)
        reader = TelemetryReader(log)
        assert len(list(reader)) == (2 if length <= 65_536 else 1), (length, last)
        assert [(bad.line, bad.reason) for bad in reader.issues] == (
            [] if length <= 65_536 else [(2, "a line of 65537 bytes; one may have 65536")]
        )


def test_a_step_of_0_is_a_whole_number_however_it_is_given(log):
    with TelemetryWriter(log, on_error="raise") as writer:
        for step in (0, 0.0, np.int64(0), np.float32(0.0), "x", False):
            if isinstance(step, (str, bool)):
                with pytest.raises(RecorderError, match="`step`: expected a number"):
                    writer.metrics(step, kind="k", metrics={})
            else:
                writer.metrics(step, kind="k", metrics={})
        for step, got in ((7.0001, "7.0001"), (1e-9, "1e-09"), (np.float32(0.5), "0.5"), (math.nan, "'NaN'")):
            with pytest.raises(RecorderError, match=f"^`step`: expected a whole number, got {got}$") as error:
                writer.metrics(step, kind="k", metrics={})
            assert error.value.advice == "see the event's fields in gradience.events"
    steps = [json.loads(text)["step"] for text in log.read_text().splitlines()]
    assert [(type(step), step) for step in steps[:4]] == [(int, 0)] * 4


def test_a_long_key_is_judged_by_its_end():
    value = "0a1b2c3d4e" * 4
    assert hide_secrets(value, "x" * 200 + ".wandb") == "<redacted: api key>"
    assert hide_secrets(value, "wandb" + "x" * 128) == value


def test_a_key_is_scanned_before_it_is_cut():
    token = "hf_" + "aB3dE5gH7j" * 3
    for before in (90, 110, 118):
        (key,) = redact_document({"x" * before + " " + token: 1}, Redaction())
        assert len(key) <= 128
        assert "hf_" not in key
    (key,) = redact_document({"x" * 128: 1}, Redaction())
    assert key == "x" * 128


def test_a_log_of_another_version_is_refused_by_its_first_line_and_a_later_line_is_a_fault(log):
    other = json.dumps({**row(1), "schema": "gradience.vnext.telemetry/v2"})
    log.write_text(f"{other}\n{json.dumps(row(2))}\n")
    for read_all in (
        validate_log,
        lambda path: TelemetryReader(path).summarize(),
        lambda path: [*TelemetryReader(path)],
    ):
        with pytest.raises(SchemaError, match="this log is 'gradience"):
            read_all(log)
    log.write_text(f"{json.dumps(row(2))}\n{other}\n")
    (issue,) = validate_log(log).issues
    assert (issue.line, issue.path, issue.expected) == (2, "$.schema", HEAD["schema"])
    with pytest.raises(SchemaError, match="this log is 'gradience"):
        TelemetryReader(log).summarize()


def test_a_run_that_was_ended_is_not_ended_again(log):
    for status in ("error", "aborted", "ok"):
        with TelemetryWriter(log, on_error="raise") as writer:
            writer.run_end(status=status)
    assert [json.loads(text)["status"] for text in log.read_text().splitlines()] == ["error", "aborted", "ok"]


def test_a_fault_deep_in_a_line_says_what_was_expected_there():
    items = [{"severity": "info", "action": "a", "message": "m"}, {"severity": "bad", "action": "a", "message": "m"}]
    (fault,) = find_faults(event("recommendation", 1, recommendations=items))
    assert (fault.path, fault.got) == ("$.recommendations[1].severity", "'bad'")
    assert fault.expected == "one of info, warning, error, critical, unknown"
    (fault,) = find_faults(event("run_end", None, status="good"))
    assert (fault.path, fault.expected) == ("$.status", "one of ok, aborted, error, interrupted, unknown")
    (fault,) = find_faults(event("run_start", None, config={"task_profile": "poetry"}))
    assert fault.path == "$.config.task_profile"
    assert fault.expected == "one of easy_classification, hard_reasoning, generation, unknown"


@every(
    ("name", "fields"),
    [
        ("alert", ("severity", "code", "message")),
        ("eval", ("split", "metrics")),
        ("metrics", ("kind", "metrics")),
        ("run_start", ("config",)),
        ("run_end", ("status",)),
        ("recommendation", ("recommendations",)),
    ],
)
def test_each_field_that_an_event_needs_is_one_fault_where_it_is_of_a_wrong_type(name, fields):
    wrong = dict.fromkeys(("ts", "run_id", "step", *fields), True)
    assert sorted(str(fault.path) for fault in find_faults({**event(name, 1), **wrong})) == sorted(
        f"$.{field}" for field in wrong
    )
