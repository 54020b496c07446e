"""A run's log from its start to its end, without a training: how it is resumed, and what its end is called."""

from __future__ import annotations

import sys

import pytest
from tables import every

pytest.importorskip("torch", reason="needs the hf extra: pip install 'gradience[hf]'")

from gradience.hf.recorder import RunRecorder, last_run_id  # needs torch
from gradience.schema import ConfigSnapshot, RunEnd, RunStart
from gradience.telemetry import TelemetryReader, TelemetryWriter


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A function that begins a run and returns its recorder and a reader of its last line."""
    monkeypatch.delattr(sys, "last_value", raising=False)

    def begin(**options):
        recorder = RunRecorder(**options)
        recorder.start(tmp_path / "run.jsonl", ConfigSnapshot(), {}, training=object(), step=0)
        return recorder, lambda: [(end.status, end.reason) for end in TelemetryReader(recorder.log).of(RunEnd)][-1]

    return begin


@every(
    ("step", "planned", "stopped", "end"),
    [
        (10, 10, None, ("ok", None)),
        (9, 10, None, ("ok", "stopped at step 9 of 10")),
        (0, 10, None, ("ok", None)),
        (9, -1, None, ("ok", None)),
        (9, 10, "stop_on: NUM101", ("aborted", "stopped at step 9 of 10 by stop_on: NUM101")),
        (10, 10, "stop_on: NUM101", ("aborted", "stopped at step 10 of 10 by stop_on: NUM101")),
        (9, -1, "x", ("aborted", "stopped at step 9 by x")),
    ],
)
def test_a_run_that_came_to_its_end_before_it_was_planned_says_where(step, planned, stopped, end, begun):
    recorder, ended = begun()
    recorder.finish(step, planned, stopped)
    assert ended() == end


NO_MEMORY = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


@every(
    ("error", "text", "left"),
    [
        (None, False, ("aborted", "training was left before its end")),
        (ValueError("a prompt"), False, ("error", "ValueError")),
        (ValueError("a prompt"), True, ("error", "ValueError: a prompt")),
        (KeyboardInterrupt(), False, ("interrupted", "KeyboardInterrupt")),
        (SystemExit(1), False, ("error", "SystemExit")),
        (NO_MEMORY, False, ("error", "RuntimeError: out of memory")),
    ],
)
def test_a_run_that_was_left_says_by_what(error, text, left, begun, monkeypatch):
    recorder, ended = begun(allow_text=text)
    recorder.close_interrupted(error)
    assert ended() == left
    monkeypatch.setattr(sys, "last_value", OSError("of an earlier cell"), raising=False)
    if error is None:
        recorder.start(recorder.log, ConfigSnapshot(), {}, training=object(), step=0)
        recorder.close_interrupted()
        assert ended() == left  # that error was there before the run began
        monkeypatch.setattr(sys, "last_value", OSError("of this cell"), raising=False)
        other, ended = begun()
        monkeypatch.setattr(sys, "last_value", OSError("of this cell"), raising=False)
        other.close_interrupted()
        assert ended() == ("error", "OSError")


def test_a_run_is_resumed_at_a_step_after_0(tmp_path):
    log, starts = tmp_path / "run.jsonl", []
    for step in (0, 5, 0):
        recorder = RunRecorder()
        recorder.start(log, ConfigSnapshot(), {}, training=object(), step=step)
        recorder.finish(step, 10, None)
        starts.append(recorder.run_id)
    assert starts[0] == starts[1] != starts[2]
    assert [event.resumed_from_step for event in TelemetryReader(log).of(RunStart)] == [None, 5, None]
    again = RunRecorder()
    again.run_id = starts[0]  # the run that it recorded before another one was added to the log
    again.start(log, ConfigSnapshot(), {}, training=object(), step=5)
    again.finish(5, 10, None)
    assert again.run_id == starts[2]


@every("tail", [b"", b'{"event":"train_step","run_id":"torn', b"\x00\xff\n", b"{}\n"])
def test_the_run_to_resume_is_found_behind_a_damaged_tail(tail, tmp_path):
    path = tmp_path / "run.jsonl"
    assert last_run_id(path) is None
    for name in ("first", "second"):
        with TelemetryWriter(path, name) as writer:
            writer.run_start()
    with path.open("ab") as file:
        file.write(tail)
    assert last_run_id(path) == "second"
