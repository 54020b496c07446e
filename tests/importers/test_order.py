"""Copies, swapped rows, resumes, restarts and two writers are distinguished, and noted."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from gradience.importers.events import arrange
from gradience.importers.files import LoggedRow, SourceRun


@pytest.fixture
def log(tmp_path, write_lines):
    """A function that writes a LLaMA-Factory log of (step, loss) pairs."""

    def write(pairs, name="trainer_log.jsonl"):
        rows = [{"current_steps": s, "total_steps": 100, "loss": loss, "lr": 1e-4} for s, loss in pairs]
        return write_lines(tmp_path / name, rows)

    return write


def test_copies_are_written_once_with_their_lines(log, import_events):
    events, imported = import_events(log([(5, 2.0), (10, 1.5), (10, 1.5), (15, 1.0), (5, 2.0)]))
    assert events.steps == [5, 10, 15]
    assert "2 rows are copies of an earlier one, written once (lines 3, 5)" in imported.notes


def test_swapped_rows_are_sorted_and_named(log, import_events):
    events, imported = import_events(log([(5, 2.0), (15, 1.0), (10, 1.5), (20, 0.9)]))
    assert events.steps == [5, 10, 15, 20]
    assert "1 row is out of order, put in the order of steps (line 3)" in imported.notes


def test_a_replay_is_a_resume_from_the_step_before_it(log, import_events):
    first = [(s, 1 / s) for s in range(5, 55, 5)]
    second = [(s, 1.1 / s) for s in range(40, 80, 5)]
    events, imported = import_events(log(first + second))
    starts = events.of("run_start")
    assert [start.resumed_from_step for start in starts] == [None, 35]
    assert len({start.session for start in starts}) == 2
    assert len({event.run_id for event in events}) == 1
    assert any(note.startswith("steps go back from 50 to 35 at line 11") for note in imported.notes)


def test_a_start_over_is_another_run_and_the_last_is_shown(log, import_events):
    events, imported = import_events(log([(s, 1 / s) for s in range(5, 55, 5)] + [(s, 2 / s) for s in range(5, 30, 5)]))
    assert [len(list(run.events)) for run in imported.runs] == [12, 7]
    assert events.losses[0] == 2 / 5
    assert any("2 runs in one log" in note for note in imported.notes)
    assert [run.made.end.status for run in imported.runs] == ["unknown", "unknown"]


@pytest.mark.parametrize("shift", [0, 1000])
def test_two_processes_in_one_log_are_told_apart(log, import_events, shift):
    one = [(s, 1 / s) for s in range(5, 105, 5)]
    two = [(s + shift, 2 / s) for s in range(5, 55, 5)]
    mixed = [pair for i, own in enumerate(one) for pair in (own, *two[i : i + 1])]
    events, imported = import_events(log(mixed))
    assert events.losses == [loss for _, loss in one]
    assert [event.loss for event in imported.runs[0].events if hasattr(event, "loss")] == [loss for _, loss in two]
    assert any("2 writers at once" in note and "a guess" in note for note in imported.notes)


def test_an_evaluation_made_twice_at_the_end_is_no_restart(import_events, tmp_path, write_state, rows):
    again = [{"step": 20, "eval_loss": 1.0, "eval_runtime": r} for r in (1.0, 2.0)]
    events, imported = import_events(write_state(tmp_path, rows([10, 20]) + again))
    assert len(imported.runs) == 1
    assert len(events.of("eval")) == 2


STEPS = st.lists(st.tuples(st.integers(0, 12), st.floats(0, 9, width=16)), max_size=40)


@given(STEPS)
def test_no_row_is_lost_whatever_the_order_of_steps(pairs):
    raw = SourceRun("log", rows=[LoggedRow(i, step, {"loss": loss}) for i, (step, loss) in enumerate(pairs, 1)])
    runs = arrange(raw)
    kept = sorted((row.step, row.values["loss"]) for run in runs for segment in run for row in segment.rows)
    assert kept == sorted(set(pairs))
    for run in runs:
        for segment in run:
            steps = [row.step for row in segment.rows]
            assert steps == sorted(steps)
