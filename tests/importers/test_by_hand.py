"""How a source ended, what a step holds, and whose row a row is: worked out on paper, each bound from either side."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from tables import every

from gradience.configs.settings import Layer
from gradience.errors import RecorderError, few
from gradience.importers import _only as chosen
from gradience.importers.events import Tally, _status as status_of, _Stream, _stream_of, _stride, arrange
from gradience.importers.files import LoggedRow, SourceRun, count_of
from gradience.importers.sources import _add_later_rows, _is_ours, _note_unread, _same_run, format_of
from gradience.importers.table import MAX_COLUMNS, _join_rates, _lines, cell_value, find_columns, flatten
from gradience.importers.trainer_state import (
    _interval,
    _only,
    _several_note,
    _union,
    add_results,
    find_states,
    read_state,
    samples_per_step,
)
from gradience.schema.events import ConfigSnapshot, TrainingSnapshot

PLAN = "the planned steps were made"


def run(**fields):
    return SourceRun(Path("log.jsonl"), **fields)


@every(("reached", "status"), [(6566, "ok"), (6560, "ok"), (6559, "unknown"), (7000, "ok"), (None, "unknown")])
def test_a_thousandth_of_the_plan_may_be_missing(reached, status):
    found, reason = status_of(run(planned=6566), Tally(), reached)
    assert found == status
    assert reason == (PLAN if status == "ok" else "the source ends before its 6566 planned steps")


@pytest.mark.parametrize(("planned", "reached", "status"), [(999, 999, "ok"), (999, 998, "unknown"), (1, 1, "ok")])
def test_a_short_plan_is_made_whole_or_not(planned, reached, status):
    assert status_of(run(planned=planned), Tally(), reached)[0] == status


def test_the_plan_is_the_source_s_own_or_that_of_its_config():
    layer = Layer(config=ConfigSnapshot(training=TrainingSnapshot(max_steps=10)))
    assert status_of(run(layer=layer), Tally(), 10) == ("ok", PLAN)
    assert status_of(run(layer=layer, planned=20), Tally(), 10)[1] == "the source ends before its 20 planned steps"
    for planned in (None, -1):
        layer = Layer(config=ConfigSnapshot(training=TrainingSnapshot(max_steps=planned)))
        assert status_of(run(layer=layer), Tally(), 10) == ("unknown", "the source does not say how training ended")


@every(
    ("summary", "trained", "status"),
    [(-1.0, 0, "unknown"), (9.0, 10, "unknown"), (10.0, 10, "ok"), (math.inf, 10, "ok")],
)
def test_a_summary_ends_the_run_unless_it_was_trained_on(summary, trained, status):
    assert status_of(run(), Tally(summary=summary, trained=trained), 10)[0] == status
    assert status_of(run(finished=True), Tally(trained=5), None)[0] == "ok"


def rounded(batch, steps, seconds):
    return {
        "train_samples_per_second": round(batch * steps / seconds, 3),
        "train_steps_per_second": round(steps / seconds, 3),
        "train_runtime": round(seconds, 4),
    }


@every("batch", [1, 2, 8, 12, 64, 96, 256])
def test_the_batch_is_found_again_in_a_summary_rounded_as_the_trainer_rounds(batch):
    for steps, seconds in ((100, 71.37), (1000, 3333.3), (37, 5.5)):
        summary = rounded(batch, steps, seconds)
        assert samples_per_step(summary, steps=steps) == batch
        assert samples_per_step(summary, steps=steps, micro_batch=batch) == batch


def test_the_last_step_of_an_epoch_may_be_smaller():
    """1000 examples in batches of 32: 32 steps an epoch, the last of 8; over 3 epochs 31.25 sequences a step."""
    summary = {"train_samples_per_second": 3000 / 10.0, "train_steps_per_second": 9.6, "train_runtime": 10.0}
    assert samples_per_step(summary, steps=96) is None
    assert samples_per_step(summary, steps=96, epochs=3.0) == 32
    assert samples_per_step(summary, steps=96, epochs=96.0) is None  # one step an epoch: any batch would do
    assert samples_per_step(summary, steps=96, epochs=3.0, micro_batch=5) is None


@every(
    ("low", "high", "unit", "found"),
    [
        (7.9, 8.1, 1, 8),
        (8.0, 8.0, 1, 8),
        (8.1, 8.9, 1, None),
        (7.0, 9.0, 1, 8),  # of several the power of two
        (5.0, 7.0, 1, None),
        (3.0, 9.0, 1, None),  # 4 and 8
        (7.0, 9.0, 3, 9),
        (5.9, 6.1, 4, None),
        (0.0, 1.0, 1, None),
        (9.0, 8.0, 1, None),
        (1.0, 2.0**20, 1, None),
        (8.0, 8.0, 0, None),
    ],
)
def test_one_multiple_between_two_bounds_is_the_batch(low, high, unit, found):
    assert _only(low, high, unit) == found


def test_an_interval_is_a_number_above_zero():
    assert [_interval(v) for v in (5, 0.1, 0, -1, True, "5", math.inf, math.nan, None)] == [5.0, 0.1] + [None] * 7
    assert [count_of(v) for v in (5, 5.0, 0, -1, True, None)] == [5, 5, None, None, None, None]


def test_a_list_names_the_first_and_how_many_more():
    assert [few(range(n), 2) for n in (1, 2, 3, 5)] == ["0", "0, 1", "0, 1 and 1 more", "0, 1 and 3 more"]


def row(step, place=1, **values):
    return LoggedRow(place, step, values or {"loss": 1.0})


def test_the_stride_is_the_commonest_distance_of_training_rows():
    assert _stride([row(s) for s in (10, 20, 30, 35, 5)]) == 5
    assert _stride([row(s) for s in (10, 20, 30, 33)] + [row(31, eval_loss=1.0)]) == 10
    assert _stride([row(4)]) == _stride([]) == 1


def streams(*lasts):
    return [_Stream(last=last, turn=turn) for turn, last in enumerate(lasts)]


@every(
    ("step", "lasts", "whose"),
    [
        (20, (10, 15), 0),  # one stride on
        (20, (10, 20), 0),  # its own step is no next one
        (40, (10,), 0),  # three strides: two rows lost
        (41, (10,), None),
        (30, (10, 15), 1),  # 15 from it, the other 20: nearer to a stride of 10
        (20, (10, 10), 0),  # of equals the one that wrote longest ago
    ],
)
def test_a_row_is_of_the_writer_whose_next_step_it_is(step, lasts, whose):
    some = streams(*lasts)
    found = _stream_of(row(step), some, 10)
    assert (None if found is None else some.index(found)) == whose


def test_an_evaluation_is_of_the_writer_at_its_step_or_of_the_last_one():
    some = streams(10, 20, 30)
    assert _stream_of(row(20, eval_loss=1.0), some, 10) is some[1]
    assert _stream_of(row(25, eval_loss=1.0), some, 10) is some[2]
    assert _stream_of(row(None), [], 10) is None


def test_beyond_eight_writers_a_row_goes_to_one_behind_it():
    assert _stream_of(row(500), streams(*range(7)), 1) is None
    some = streams(*range(8))
    assert _stream_of(row(500), some, 1) is some[7]
    assert _stream_of(row(0), streams(*range(1, 9)), 1) is None


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


def test_a_run_is_chosen_by_its_name_or_id_and_the_others_are_named():
    raws = [run(name="one"), run(run_id="two"), run(name="three", run_id="3")]
    assert chosen(Path("f"), raws, None) == raws
    assert chosen(Path("f"), raws, "one") == raws[:1]
    assert chosen(Path("f"), raws, "two") == raws[1:2]
    assert chosen(Path("f"), raws, "3") == chosen(Path("f"), raws, "three") == raws[2:]
    with pytest.raises(RecorderError) as caught:
        chosen(Path("f"), raws, "x" * 70)
    assert str(caught.value) == f"f: no run is called {'x' * 60!r}"
    assert caught.value.advice == "there are one, log.jsonl, three"


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


def test_runs_in_one_folder_are_named_by_three_files_each():
    def several(*names):
        return [SimpleNamespace(raw=SimpleNamespace(path=Path("/run", name))) for name in names]

    said = _several_note(Path("/run"), [several("a", "b", "c", "d"), several("e")])
    assert said.startswith("2 runs in one folder")
    assert said.endswith("the first is shown: a + b + c; e")


@pytest.mark.parametrize(("other", "furthest"), [(9, "other"), (1, "best")])
def test_rows_of_several_checkpoints_are_put_together_and_the_furthest_one_gives_the_settings(other, furthest):
    planned = {"best": 7, "other": 8}

    def state(name: str, reached: int, *steps: int):
        rows = [LoggedRow(1, step, {"loss": 1.0}) for step in steps]
        raw = SimpleNamespace(
            path=Path("/run", name),
            rows=rows,
            files=[],
            notes=[],
            skipped=[name],
            planned=planned.get(name),
            reached=reached,
            layer=name,
            best={"best_step": name},
        )
        return SimpleNamespace(raw=raw, reached=reached)

    found = _union(Path("/run"), [state("best", 5, 1, 5), state("other", other, 1, 3), state("same", 1, 3, 5)])
    assert [row.step for row in found.rows] == [1, 3, 5]
    assert (found.files, found.skipped) == ([Path("/run/other")], ["best", "other"])
    assert found.notes == ["1 rows come from other: best lacks them"]
    assert (found.layer, found.best, found.reached, found.planned) == (
        furthest,
        {"best_step": furthest},
        max(5, other),
        planned[furthest],
    )
    del planned["other"]
    assert _union(Path("/run"), [state("best", 5, 1), state("other", other, 3)]).planned == 7


def test_a_line_of_a_table_is_shorter_than_the_limit_and_a_whole_number_has_17_digits(monkeypatch):
    monkeypatch.setattr("gradience.importers.table.MAX_LINE", 8)
    assert list(_lines(Path("t.csv"), io.StringIO("123456\n123"))) == ["123456\n", "123"]
    with pytest.raises(RecorderError, match=r"t.csv: line 2 has more than 0 MiB"):
        list(_lines(Path("t.csv"), io.StringIO("1\n1234567\n")))
    assert [cell_value(cell) for cell in ("1" * 17, "1" * 18, "-" + "1" * 16, "-" + "1" * 17)] == [
        int("1" * 17),
        "1" * 18,
        -int("1" * 16),
        "-" + "1" * 17,
    ]


@pytest.mark.parametrize(("stated", "reached"), [(9, 9), (3, 3), (None, 5)])
def test_a_state_reached_the_step_that_it_states_else_that_of_its_last_row(stated, reached, tmp_path):
    path = tmp_path / "trainer_state.json"
    history = [{"step": 5, "loss": 1.0}, {"step": 2, "loss": 2.0}]
    path.write_text(json.dumps({"log_history": history, "max_steps": 20, "global_step": stated}))
    found = read_state(path)
    assert (found.reached, found.raw.reached, found.raw.planned) == (reached, stated, 20)


@pytest.mark.parametrize(
    ("reached", "planned", "after"),
    [((5, 9), (None, 8), (9, 8)), ((9, 5), (7, 8), (9, 7)), ((None, None), (7, None), (0, 7))],
)
def test_rows_beyond_the_last_checkpoint_are_those_of_later_steps(reached, planned, after, monkeypatch):
    def run(name, place, *steps):
        rows = [LoggedRow(1, step, {"loss": 1.0}) for step in steps]
        return SourceRun(Path("/run", name), rows=rows, reached=reached[place], planned=planned[place])

    raw, log = run("trainer_state.json", 0, 1, 5), run("trainer_log.jsonl", 1, 1, 5, 6, 9)
    monkeypatch.setattr("gradience.importers.sources.read_json_lines", lambda _: log)
    _add_later_rows(raw, {"llama-factory": [log.path]})
    assert [row.step for row in raw.rows] == [1, 5, 6, 9]
    assert (raw.reached, raw.planned, raw.files) == (*after, [log.path])


def test_a_log_of_lines_is_of_the_program_that_wrote_most_of_them(tmp_path):
    swift, factory = {"global_step/max_steps": "1/9", "loss": 1.0}, {"current_steps": 1, "total_steps": 9, "loss": 1.0}
    path = tmp_path / "log.jsonl"
    for rows, kind in (((swift, factory, factory), "llama-factory"), ((factory, swift, swift), "ms-swift")):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert format_of(path) == kind


def test_five_files_that_were_not_read_are_named():
    path = Path("/run/trainer_state.json")
    others = [Path("/run", f"{name}.csv") for name in "abcdefg"]
    for unread, said in ((others, "a.csv, b.csv, c.csv, d.csv, e.csv"), (others[5:], "f.csv, g.csv")):
        runs = [SourceRun(Path("/run/x.csv"), files=[Path("/run/x.csv")]), SourceRun(path, files=[path])]
        _note_unread(runs, {"table": [*unread, Path("/run/x.csv")], "trainer-state": [path]}, why=" (why)")
        assert runs[-1].notes == [f"read trainer_state.json (why); also there and not read: {said}"]
    _note_unread(runs[:1], {"table": [Path("/run/x.csv")]}, why="")
    assert runs[0].notes == []


def test_rows_of_a_table_are_flattened_three_levels_deep_and_a_rate_joins_the_row_of_its_step():
    assert flatten({"a": {"b": {"c": {"d": 1}}}, "e": {}}) == {"a.b.c": {"d": 1}, "e": {}}
    rows = [
        LoggedRow(1, 1, {"learning_rate": 0.5, "epoch": 1.0}),
        LoggedRow(2, 1, {"loss": 2.0, "epoch": 3.0}),
        LoggedRow(3, 2, {"learning_rate": 0.25}),
        LoggedRow(4, 3, {"loss": 1.0, "learning_rate": 0.125}),
        LoggedRow(5, 3, {"learning_rate": 0.75}),
        LoggedRow(6, 1, {"learning_rate": 0.5, "x": 1}),
    ]
    raw = SourceRun(Path("t.csv"), rows=rows)
    _join_rates(raw)
    assert [(row.place, row.values) for row in raw.rows] == [
        (2, {"learning_rate": 0.5, "epoch": 3.0, "loss": 2.0}),
        *((row.place, row.values) for row in rows[2:]),
    ]


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


def test_logs_are_of_one_run_by_close_losses_at_a_common_step_and_ours_by_two_keys():
    def run(**losses):
        rows = [LoggedRow(1, int(step[1:]), {"loss": loss}) for step, loss in losses.items()]
        return SourceRun(Path("x"), rows=rows)

    assert _same_run(run(s1=1.0, s2=4.0), run(s2=4.004, s3=9.0))
    assert not _same_run(run(s1=1.0, s2=4.0), run(s2=4.0041, s3=9.0))
    assert not _same_run(run(s1=1.0), run(s2=1.0))
    assert _same_run(run(), run(s2=1.0))
    rows = ({"event": 1, "run_id": 2}, {"event": 1}, {"run_id": 2}, {"schema": "gradience.x"}, {"schema": "other.x"})
    assert [_is_ours(row) for row in rows] == [True, False, False, True, False]
