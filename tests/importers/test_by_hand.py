"""How a source ended, what a step holds, and whose row a row is: worked out on paper, each bound from either side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradience.errors import RecorderError
from gradience.importers.events import arrange
from gradience.importers.files import LoggedRow, SourceRun
from gradience.importers.table import MAX_COLUMNS, find_columns
from gradience.importers.trainer_state import add_results, find_states, read_state, samples_per_step


def run(**fields):
    return SourceRun(Path("log.jsonl"), **fields)


def test_the_last_step_of_an_epoch_may_be_smaller():
    """1000 examples in batches of 32: 32 steps an epoch, the last of 8; over 3 epochs 31.25 sequences a step."""
    summary = {"train_samples_per_second": 3000 / 10.0, "train_steps_per_second": 9.6, "train_runtime": 10.0}
    assert samples_per_step(summary, steps=96) is None
    assert samples_per_step(summary, steps=96, epochs=3.0) == 32
    assert samples_per_step(summary, steps=96, epochs=96.0) is None  # one step an epoch: any batch would do
    assert samples_per_step(summary, steps=96, epochs=3.0, micro_batch=5) is None


def arranged(steps):
    raw = run(rows=[LoggedRow(place, step, {"loss": place / 7}) for place, step in enumerate(steps, 1)])
    return arrange(raw), raw.notes


def test_three_jumps_with_few_rows_between_them_are_two_writers():
    runs, notes = arranged([10, 20, 10, 30, 20, 40, 30, 40])  # 3 jumps, 8 rows
    assert [[r.step for s in segments for r in s.rows] for segments in runs] == [[10, 20, 30, 40]] * 2
    assert notes[0].startswith("2 writers at once")
    runs, notes = arranged([10, 20, 30, 40, 20, 30, 40, 50, 30, 40, 50, 60])  # two resumes
    assert [segment.resumed_from for segment in runs[0]] == [None, 10, 20]
    assert notes == [
        f"steps go back from {last} to {kept} at line {place}: taken for a resume; replayed rows superseded"
        for last, kept, place in ((40, 10, 5), (50, 20, 9))
    ]


def test_five_resumes_are_named_and_the_others_counted():
    steps = list(range(10, 70, 10))
    for _ in range(7):
        steps += range(30, 70, 10)
    runs, notes = arranged(steps)
    assert len(runs[0]) == 8
    assert notes[5:] == ["... and 2 more such resumes"]


def test_rates_are_rounded_to_three_decimals_and_no_more():
    assert samples_per_step({"train_samples_per_second": 4.8, "train_steps_per_second": 0.05}, steps=None) == 96
    halves = {
        "train_samples_per_second": 95.0,
        "train_steps_per_second": 10.0,
    }  # 9.5 a step, 2 steps an epoch: 10 to 18
    assert samples_per_step(halves, steps=2, epochs=1.0, micro_batch=19) is None
    assert samples_per_step(halves, steps=2, epochs=1.0, micro_batch=18) == 18
    assert samples_per_step(halves, steps=2, epochs=1.0, micro_batch=9) == 18


def test_a_table_at_the_limit_of_columns_is_read_and_one_beyond_is_counted():
    names = ["step", "loss", *(f"x{i}" for i in range(MAX_COLUMNS - 2))]
    assert find_columns(names)["step"] == "step"
    with pytest.raises(RecorderError) as caught:
        find_columns([*names, "one_more"])
    assert str(caught.value).startswith("10001 columns, over the limit of 10000")


@pytest.mark.parametrize(("stated", "reached"), [(9, 9), (3, 3), (None, 5)])
def test_a_state_reached_the_step_that_it_states_else_that_of_its_last_row(stated, reached, tmp_path):
    path = tmp_path / "trainer_state.json"
    history = [{"step": 5, "loss": 1.0}, {"step": 2, "loss": 2.0}]
    path.write_text(json.dumps({"log_history": history, "max_steps": 20, "global_step": stated}))
    found = read_state(path)
    assert (found.reached, found.raw.reached, found.raw.planned) == (reached, stated, 20)


def test_of_many_checkpoints_the_last_are_read_and_results_end_a_run_by_their_summary(tmp_path, monkeypatch):
    monkeypatch.setattr("gradience.importers.trainer_state.MAX_STATES", 2)
    for step in (10, 2, 1):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert [path.parent.name for path in find_states(tmp_path)] == ["checkpoint-2", "checkpoint-10"]
    for results, finished in (
        ({"train_runtime": 9.0, "train_loss": 1.0}, True),
        ({"train_runtime": 9.0}, False),
        ({"train_loss": 1.0}, False),
    ):
        raw = SourceRun(tmp_path / "trainer_state.json")
        (tmp_path / "train_results.json").write_text(json.dumps(results))
        add_results(raw, tmp_path)
        assert raw.finished is finished
