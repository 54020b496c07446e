"""Whole logs: read by the block as event by event, and counted to the last line."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tables import every, grid
from wire import HEAD, ROW, SCHEMA

from gradience.errors import RecorderError
from gradience.schema.events import UnknownEvent
from gradience.schema.reports import BadLine
from gradience.telemetry import TelemetryReader, TelemetryWriter, lines
from gradience.telemetry.lines import Block, read_blocks
from gradience.telemetry.reader import RunSummary, summarize, validate_log

# --- whole logs --------------------------------------------------------------------------------------------------


def drawn_row(rng: random.Random, step: int) -> dict[str, Any]:
    """A row with some of its columns, now and then odd ones."""
    chances = {"lr": 0.9, "grad_norm": 0.8, "epoch": 0.7, "kl": 0.6, "other": 0.3}
    row: dict[str, Any] = {"event": "train_step", "step": step, "loss": rng.random()}
    row |= {name: rng.random() for name, chance in chances.items() if rng.random() < chance}
    odd = [{"grad_norm": "NaN"}, {"lr": [0.5, 0.25]}, {"kl": rng.choice(["x", None, "0.25"])}, {"loss": None}]
    return row | (rng.choice(odd) if rng.random() < 0.07 else {})


class Drawn:
    """A log as a seed draws it: rows, evaluations, resumes, sessions, gaps, copies and foreign events."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)  # noqa: S311  # a test repeats itself
        self.lines: list[dict[str, Any]] = []
        self.step = self.seq = 0
        self.session: str | None = "s0"
        self.run = "a"
        self.add(event="run_start", step=None, config={})
        rare = [self.evaluate, self.measure, self.warn, self.foreign, self.begin_again, self.lose, self.change]
        for _ in range(self.rng.choice([120, 200])):
            moves = [1, 1, 1, 1, 1, 0, 3, -2] if self.rng.random() < 0.3 else [1]
            self.step = max(self.step + self.rng.choice(moves), 0)
            self.add(**drawn_row(self.rng, self.step))
            if self.rng.random() < 0.1:
                self.rng.choice(rare)()
        self.add(event="run_end", step=None, status="ok")

    def add(self, **fields: Any) -> None:
        own = {} if self.session is None else {"session": self.session, "seq": self.seq}
        self.lines.append({"schema": SCHEMA, "ts": 100.0 + len(self.lines), "run_id": self.run, **own, **fields})
        self.seq += 1

    def evaluate(self) -> None:
        metrics = {"loss": self.rng.random(), "f1": 0.5}
        self.add(event="eval", step=self.step, split=self.rng.choice("xy"), metrics=metrics)

    def measure(self) -> None:
        kind = self.rng.choice(["spectral", "other"])
        self.add(event="metrics", step=self.step, kind=kind, metrics={"update_norm": 1.0})

    def warn(self) -> None:
        self.add(event="alert", step=self.step, severity="info", code="c", message="m")

    def foreign(self) -> None:
        self.add(event="later", step=self.step)

    def begin_again(self) -> None:
        self.session, self.seq = self.rng.choice(["s0", "s1", "s2", None]), self.rng.choice([0, self.seq])
        back = self.rng.choice([None, max(self.step - 7, 0)])
        self.add(event="run_start", step=None, config={}, resumed_from_step=back)
        self.step = self.step if back is None else back

    def lose(self) -> None:
        self.seq = max(self.seq + self.rng.choice([-1, 1, 5]), 0)

    def change(self) -> None:
        self.run = self.rng.choice("ab")


def state(summary: RunSummary) -> dict[str, Any]:
    """All of a summary, in a form that compares: NaN equals itself, extras of rows left out."""

    def of(run: Any) -> dict[str, Any]:
        fields = (
            "run_id",
            "superseded",
            "first_ts",
            "last_ts",
            "last_step",
            "last_epoch",
            "lost_norms",
            "record",
            "end",
        )
        held = {name: repr(getattr(run, name)) for name in fields}
        for name in ("steps", "losses", "rates", "grad_norms"):
            held[name] = repr(list(getattr(run, name)))
        held["columns"] = {k: (list(c.steps), list(c.values)) for k, c in sorted(run.columns.items())}
        held["evals"] = repr(run.evals)
        held["others"] = repr((run.latest_metrics, run.alerts))
        return held

    return {
        "runs": [of(run) for run in summary.runs.values()],
        "counts": dict(summary.counts),
        "unknown": summary.unknown,
    }


@grid(each=3, seed=range(12), chunk=[300, 900, 4000, 1 << 16])
def test_a_log_read_by_the_block_is_the_log_read_event_by_event(seed, chunk, tmp_path, monkeypatch):
    log = tmp_path / "run.jsonl"
    log.write_text("".join(f"{json.dumps(line)}\n" for line in Drawn(seed).lines), encoding="utf-8")
    slow = RunSummary(log, frozenset({"kl"}))
    for event in TelemetryReader(log).read():
        assert not isinstance(event, BadLine)
        if isinstance(event, UnknownEvent):
            slow.take_unknown(event)
        else:
            slow.add(event)
    monkeypatch.setattr(lines, "_CHUNK", chunk)
    fast = summarize(log, {"kl"})
    assert state(fast) == state(slow)
    assert fast.lines == len(log.read_text().splitlines())


def test_a_report_counts_what_it_does_not_list(tmp_path):
    log = tmp_path / "run.jsonl"
    unknown = [json.dumps({**HEAD, "event": f"e{n}", "step": None}) for n in range(1001)]
    log.write_text("\n".join([json.dumps(ROW), "bad", '{"a":1}', *unknown, unknown[0], '{"torn']))
    report = validate_log(log, max_issues=1)
    assert (report.file, report.lines, len(report.issues), report.valid) == (str(log), 1006, 1, False)
    assert report.issues_total == len(validate_log(log).issues) > 3
    assert report.unknown_events["..."] == 1
    assert report.unknown_events["e0"] == 2
    assert len(report.unknown_events) == 1001
    assert report.events == {"train_step": 1}
    assert validate_log(log).notes == [
        f"1002 events of a name unknown to {SCHEMA} here: legal, not checked further",
        "a torn tail is what a killed process leaves: the events around it are whole",
    ]
    log.write_text("\n \n")
    empty = validate_log(log)
    assert (empty.valid, empty.lines, empty.notes) == (False, 0, ["the file holds no line that is not blank"])


def test_a_resume_sets_aside_what_lies_beyond_its_step_and_keeps_what_lies_at_it(tmp_path):
    def measured(step: int | None, kind: str) -> dict[str, Any]:
        return {**HEAD, "event": "metrics", "step": step, "kind": kind, "metrics": {"update_norm": step or 0}}

    lines = [{**ROW, "step": n, "loss": n / 10, "lr": n / 20, "grad_norm": n / 4, "kl": n} for n in range(1, 6)]
    lines += [{**HEAD, "event": "eval", "step": step, "split": "x", "metrics": {"loss": 1.0}} for step in (3, 4, None)]
    lines += [measured(3, "a"), measured(4, "b"), measured(None, "c")]
    lines += [measured(3, "spectral"), measured(4, "spectral")]
    lines += [{**ROW, "step": 4, "grad_norm": "NaN"}, {**ROW, "step": 3, "lr": [0.5, 0.75], "grad_norm": "NaN"}]
    lines += [{**HEAD, "event": "throughput", "step": step, "steps": 1} for step in (3, 4)]
    lines += [{**HEAD, "event": "run_start", "step": None, "config": {}, "resumed_from_step": 3}]
    log = tmp_path / "run.jsonl"
    log.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    run = summarize(log, {"kl"}).last
    assert list(run.steps) == [1, 2, 3, 3]
    assert list(run.losses) == [0.1, 0.2, 0.3, 0.5]
    assert list(run.rates) == [0.05, 0.1, 0.15, 0.75]
    assert [repr(norm) for norm in run.grad_norms] == ["0.25", "0.5", "0.75", "nan"]
    assert [event.step for event in run.paces] == [3]
    assert [event.step for event in run.evals] == [3, None]
    assert sorted(run.latest_metrics) == ["a", "c"]
    assert run.record.replaced == [(4, 0.4), (5, 0.5), (4, 0.5)]
    assert run.superseded == 3 + 1
    assert run.lost_norms == {3}
    assert list(run.columns["kl"].steps) == [1, 2, 3]
    assert list(run.columns["spectral/update_norm"].values) == [3.0]
    assert (run.last_step, run.record.resumed_from, run.end) == (3, [3], None)


def test_a_row_of_floats_alone_is_refused_or_written_as_any_other(tmp_path):
    floats = {"loss": 0.5, "lr": 0.1, "grad_norm": 1.0, "epoch": 0.25}
    with TelemetryWriter(tmp_path / "run.jsonl", on_error="raise") as writer:
        writer.train_step(3, **floats)
        writer.train_step(np.int64(4), **floats)
        writer.train_step(5.0, **floats)
        writer.train_step(0, **floats)
        for step in (-1, 1.5, 2**53):
            with pytest.raises(RecorderError):
                writer.train_step(step, **floats)
    rows = [event for event in TelemetryReader(tmp_path / "run.jsonl") if event.step is not None]
    assert [event.step for event in rows] == [3, 4, 5, 0]
    assert {(event.loss, event.lr, event.grad_norm, event.epoch) for event in rows} == {(0.5, 0.1, 1.0, 0.25)}


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


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


def row(step: int, **fields: Any) -> dict[str, Any]:
    return {**HEAD, "event": "train_step", "step": step, "loss": step / 8, **fields}


def evaluation(step: int | None, **metrics: Any) -> dict[str, Any]:
    return {**HEAD, "event": "eval", "step": step, "split": "eval", "metrics": {"loss": 1.0, **metrics}}


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


def test_a_line_may_have_64_kib_and_no_byte_more(log):
    short = len(json.dumps(row(1, text="")))
    for length, last in ((65_535, ""), (65_536, ""), (65_536, "\n"), (65_537, ""), (65_537, "\n")):
        log.write_text(json.dumps(row(1)) + "\n" + json.dumps(row(1, text="x" * (length - short))) + last)
        reader = TelemetryReader(log)
        assert len(list(reader)) == (2 if length <= 65_536 else 1), (length, last)
        assert [(bad.line, bad.reason) for bad in reader.issues] == (
            [] if length <= 65_536 else [(2, "a line of 65537 bytes; one may have 65536")]
        )
