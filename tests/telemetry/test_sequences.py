"""Lines of a session are numbered: lost ones and copies are counted, a copy sets nothing back."""

from __future__ import annotations

import re

from tables import every

from gradience.schema.events import EvalMetrics, TrainStep
from gradience.telemetry import TelemetryReader, TelemetryWriter
from gradience.telemetry.series import RunSeries, _rise


@every(
    ("numbers", "missing", "duplicates"),
    [
        ([0, 1, 2, 3], 0, 0),
        ([5, 6], 0, 0),  # the first that is seen begins
        ([0, 1, 4], 2, 0),
        ([0, 1, 2, 1, 3], 0, 1),
        ([0, 0, 1], 0, 1),
        ([0, 3, 1, 4], 2, 1),
        ([0, None, 1], 0, 0),
    ],
)
def test_numbers_of_one_session(numbers, missing, duplicates):
    run = RunSeries("r")
    for number in numbers:
        run._take_seq("s", number)
    assert (run.record.missing, run.record.duplicates, run.record.interleaved) == (missing, duplicates, 0)


def test_a_return_to_a_session_is_counted_and_sessions_have_numbers_of_their_own():
    run = RunSeries("r")
    for session, number in (("a", 0), ("b", 0), ("a", 1), ("b", 2), (None, 9)):
        run._take_seq(session, number)
    assert (run.record.interleaved, run.record.missing, run.record.duplicates) == (2, 1, 0)
    assert run.record.sessions == {"a", "b"}


@every(
    ("session", "rows", "taken"),
    [
        ("b", [(6, 1), (7, 2)], True),
        ("b", [(6, 1)], True),
        ("b", [(5, 1), (6, 2)], False),  # a step that was there
        ("b", [(7, 1), (6, 2)], False),
        ("b", [(6, 1), (6, 2)], False),
        ("b", [(6, 2), (7, 3)], False),  # a line is missing
        ("b", [(6, 1), (7, 3)], False),
        ("b", [(6, None)], False),
        ("a", [(6, 1), (7, 2)], False),  # after another session wrote
        ("c", [(6, 0)], False),  # a session that begins
        (None, [(6, None)], False),
    ],
)
def test_rows_are_taken_as_a_block_where_nothing_is_to_be_counted(session, rows, taken):
    assert not _rise([])
    run = RunSeries("r")
    run.steps.append(5)
    run._take_seq("a", 0)
    run._take_seq("b", 0)
    plain = [TrainStep(ts=1.0, run_id="r", step=step, loss=0.5, session=session, seq=seq) for step, seq in rows]
    assert run.take_rows(plain) is taken
    assert list(run.steps) == [5, *(step for step, _ in rows if taken)]
    assert run._next_seq == {"a": 1, "b": rows[-1][1] + 1 if taken else 1}


def test_rows_of_a_block_may_lack_what_they_need_not_have():
    run = RunSeries("r")
    values = [(4.0, 0.25, None, 3.0), (2.0, 0.5, 0.1, None), (None, None, None, None)]
    rows = [
        TrainStep(ts=ts, run_id="r", step=step, loss=0.0, epoch=epoch, lr=lr, grad_norm=norm)
        for step, (ts, epoch, lr, norm) in enumerate(values)
    ]
    assert run.take_rows(rows)
    assert (run.first_ts, run.last_ts, run.last_epoch, run.last_step) == (2.0, 4.0, 0.5, 2)
    assert (repr(list(run.rates)), repr(list(run.grad_norms))) == ("[nan, 0.1, nan]", "[3.0, nan, nan]")
    assert (list(run.steps), list(run.losses), run.lost_norms) == ([0, 1, 2], [0.0] * 3, set())
    bare = TrainStep(ts=None, run_id="r", step=3, loss=1.0)
    assert run.take_rows([bare])
    assert (run.first_ts, run.last_ts, run.last_epoch, run.last_step) == (2.0, 4.0, 0.5, 3)
    assert not run.take_rows([bare])
    assert list(run.steps) == [0, 1, 2, 3]


def test_every_event_has_the_next_number_whichever_way_it_is_written(tmp_path):
    with TelemetryWriter(tmp_path / "run.jsonl") as writer:
        writer.train_step(0, loss=1.0, lr=0.1, grad_norm=2.0, epoch=0.5)  # floats alone: the short way
        writer.train_step(1, loss=1.0)
        writer.train_step(2, loss=1.0, lr=0.1, grad_norm=2.0, epoch=0.5)
        writer.eval(2, split="test", metrics={"loss": 1.0})
        writer.train_step(3, loss=1.0, lr=0.1, grad_norm=2.0, epoch=0.5)
    events = list(TelemetryReader(tmp_path / "run.jsonl"))
    assert [(event.seq, event.step) for event in events] == [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (5, None)]
    assert TelemetryReader(tmp_path / "run.jsonl").summarize().last.record.missing == 0


def test_what_is_given_is_what_is_read_and_a_secret_is_in_no_line(tmp_path):
    log = tmp_path / "run.jsonl"
    secret = "hf_" + "aB3" * 12
    with TelemetryWriter(log, f"run {secret}") as writer:
        assert writer.run_id == "run <redacted: hub token>"
        assert re.fullmatch("[0-9a-f]{12}", writer.session)
        writer.run_start(resumed_from_step=3, meta={"n": 1})
        writer.train_step(4, loss=1.0, lr=0.1, grad_norm=2.0, epoch=0.5)
        writer.eval(4, split="test", metrics={"loss": 0.5, "ppl": 2.0, "accuracy": 0.75, "n": 8, "f1": 0.25})
        typed = EvalMetrics(loss=0.5, ppl=2.0, accuracy=0.75, n=8, extras={"f1": 0.25})
        writer.eval(4, split="test", metrics=typed)
    start, row, evaluation, again, _ = TelemetryReader(log)
    assert (start.step, start.resumed_from_step, start.meta) == (3, 3, {"n": 1})
    assert (row.loss, row.lr, row.grad_norm, row.epoch, row.extras) == (1.0, 0.1, 2.0, 0.5, {})
    measured = evaluation.metrics
    assert measured == again.metrics
    assert (measured.loss, measured.ppl, measured.accuracy, measured.n, measured.extras) == (
        0.5,
        2.0,
        0.75,
        8,
        {"f1": 0.25},
    )
    assert secret not in log.read_text()
