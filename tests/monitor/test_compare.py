"""Several runs side by side: every number is that of the run's own report."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

import jsonschema
import pytest
from hypothesis import example, given, strategies as st
from logs import config, falling, record

from gradience.cli.main import main
from gradience.errors import RecorderError
from gradience.importers.sources import MAX_RUNS
from gradience.judge.monitor import monitor_run
from gradience.judge.monitor.compare import _settings, compare_runs
from gradience.judge.monitor.source import names_of, runs_in
from gradience.render.compare import compare_text
from gradience.schema import ConfigSnapshot
from gradience.telemetry.writer import TelemetryWriter

EVALS = [(10, 1.6), (20, 1.4), (30, 1.3), (40, 1.25)]


@pytest.fixture
def pair(tmp_path):
    """Two runs that differ in learning rate and rank, and in how far they come."""
    first = tmp_path / "runs" / "a" / "run.jsonl"
    second = tmp_path / "runs" / "b" / "run.jsonl"
    for path in (first, second):
        path.parent.mkdir(parents=True)
    record(first, evals=EVALS, setup=config(lr=1e-3, r=8))
    record(second, falling(20, fall=0.2), evals=EVALS[:2], setup=config(lr=2e-4, r=16))
    return [first, second]


def test_each_column_is_what_the_runs_own_report_says(pair):
    for path, column in zip(pair, compare_runs(pair).runs, strict=True):
        report = monitor_run(path)
        assert column.story == report.story
        assert (column.first_loss, column.last_loss) == (report.train.first_loss, report.train.last_loss)
        assert [ref.id for ref in column.findings] == [finding.id for finding in report.findings]


def test_only_what_differs_in_the_configuration_is_listed(pair):
    differences = {item.key: item.values for item in compare_runs(pair).differences}
    assert differences == {
        "optimizer.lr": [1e-3, 2e-4],
        "lora.r": [8, 16],
        "lora.alpha": [16, 32],
    }


def test_the_order_of_target_modules_is_no_difference(tmp_path):
    for name, targets in (("a", ["q", "v"]), ("b", ["v", "q"])):
        lora = {"event": "run_start", "step": None, "config": {"lora": {"target_modules": targets}}}
        line = {"schema": "gradience.vnext.telemetry/v1", "ts": 1.0, "run_id": "r", **lora}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    assert compare_runs([tmp_path / "a.jsonl", tmp_path / "b.jsonl"]).differences == []


def test_what_a_run_did_not_record_is_no_difference(tmp_path):
    first = record(tmp_path / "a.jsonl", evals=EVALS, setup=config(lr=1e-3, r=8))
    bare = record(tmp_path / "b.jsonl", evals=EVALS, setup=ConfigSnapshot())
    other = record(tmp_path / "c.jsonl", evals=EVALS, setup=config(lr=2e-4, r=8))
    report = compare_runs([first, bare])
    assert report.differences == []
    assert not any("differ in" in note for note in report.notes)
    (note,) = (note for note in report.notes if "only some of the runs" in note)
    assert int(note.rsplit(" ", 1)[1]) == len(_recorded(first))
    three = compare_runs([first, bare, other])
    assert {item.key: item.values for item in three.differences} == {"optimizer.lr": [1e-3, None, 2e-4]}


def _recorded(path):
    return _settings([monitor_run(path)])


def test_runs_are_aligned_by_step_and_a_shorter_one_is_empty_beyond_its_end(pair):
    aligned = compare_runs(pair).aligned
    assert aligned[-1].step == 40
    assert [row.step for row in aligned] == sorted(row.step for row in aligned)
    assert all((row.train[1] is None) == (row.step > 20) for row in aligned)
    assert aligned[-1].held_out == [1.25, None]


def test_the_best_held_out_loss_comes_with_its_step(tmp_path):
    path = record(tmp_path / "run.jsonl", evals=[(10, 1.5), (20, 1.2), (40, 1.4)])
    column = compare_runs([path, path]).runs[0]
    assert (column.best_eval_loss, column.best_eval_step, column.eval_loss) == (1.2, 20, 1.4)


def test_one_log_given_twice_gets_two_names(tmp_path):
    path = record(tmp_path / "run.jsonl")
    assert len({run.name for run in compare_runs([path, path]).runs}) == 2


def test_all_runs_of_one_log_are_compared_when_asked(tmp_path):
    path = record(tmp_path / "run.jsonl", run_id="first")
    record(path, falling(fall=0.1), run_id="second")
    assert [run.run_id for run in compare_runs([path]).runs] == ["second"]
    both = compare_runs([path], all_runs=True).runs
    assert [run.run_id for run in both] == ["first", "second"]
    assert both[0].last_loss < both[1].last_loss


def test_a_run_of_a_log_is_shown_by_its_id(tmp_path, capsys):
    path = record(tmp_path / "run.jsonl", run_id="first")
    record(path, falling(fall=0.1), run_id="second")
    assert main(["monitor", str(path), "--run", "first", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run_id"] == "first"


def test_an_unknown_run_is_refused_naming_those_there_are(tmp_path):
    path = record(tmp_path / "run.jsonl", run_id="first")
    with pytest.raises(RecorderError, match="no run is called 'x'") as caught:
        monitor_run(path, run="x")
    assert "first" in caught.value.advice


def test_a_folder_of_runs_is_its_runs_and_a_runs_folder_is_one(pair):
    runs = pair[0].parents[1]
    assert runs_in(runs) == pair
    assert runs_in(pair[0].parent) == [pair[0].parent]


def test_what_another_program_left_stands_in_the_same_table(pair, shared_data):
    other = pair[0].parents[1] / "trainer"
    other.mkdir()
    shutil.copy(shared_data / "trainer_states" / "sft-60-steps.json", other / "trainer_state.json")
    names = [run.name for run in compare_runs([pair[0].parents[1]]).runs]
    assert names == ["a", "b", "trainer"]


def test_a_log_that_cannot_be_read_is_listed_and_the_others_are_shown(pair):
    bad = pair[0].parents[1] / "c" / "run.jsonl"
    bad.parent.mkdir()
    bad.write_text('{"schema":"gradience.vnext.telemetry/v9","event":"run_start"}\n')
    report = compare_runs([pair[0].parents[1]])
    assert [run.name for run in report.runs] == ["a", "b"]
    assert [Path(item.file).parent.name for item in report.unread] == ["c"]
    assert "v9" in compare_text(report)


def test_a_missing_log_among_those_named_is_an_error(pair, capsys):
    assert main(["monitor", str(pair[0]), "nowhere.jsonl"]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--all-runs", "--run", "x", "a"], ["a", "b", "--follow"]])
def test_words_that_do_not_go_together_are_refused(words, capsys):
    assert main(["monitor", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_other_data_is_a_reason_to_doubt_the_comparison(tmp_path):
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path, data in zip(paths, ["x", "y"], strict=True):
        record(path, setup=config(dataset_name=data))
    assert any("data sets" in note for note in compare_runs(paths).notes)


def test_the_document_validates_against_its_committed_schema(pair, capsys, root):
    assert main(["monitor", *map(str, pair), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    schema = json.loads((root / "schemas" / "compare-report-v2.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(document)


def test_fail_on_looks_at_every_run(pair):
    record(pair[1], losses=falling(30) + [math.nan] * 5)
    assert main(["monitor", *map(str, pair), "--fail-on", "error"]) == 1
    assert main(["monitor", str(pair[0]), str(pair[0]), "--fail-on", "error"]) == 0


def test_many_runs_are_a_row_each(tmp_path):
    for number in range(6):
        record(tmp_path / f"seed{number}.jsonl")
    text = compare_text(compare_runs([tmp_path]))
    assert [line.split()[0] for line in text.splitlines()[4:10]] == [f"seed{n}" for n in range(6)]
    assert "Configuration: the same in all runs" in text


def test_escape_sequences_in_names_do_not_reach_the_terminal(tmp_path):
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        record(path, setup=config(dataset_name=f"evil\x1b[31m{path.stem}"))
    assert "\x1b" not in compare_text(compare_runs(paths))


def test_more_runs_than_are_read_are_said(tmp_path):
    for number in range(MAX_RUNS + 1):
        record(tmp_path / f"seed{number:03}.jsonl", [1.0, 0.9])
    report = compare_runs([tmp_path])
    assert len(report.runs) == MAX_RUNS
    assert "there may be more" in report.notes[0]


rows = st.lists(st.tuples(st.integers(0, 60), st.floats(0.1, 9.0)), min_size=1, max_size=40)


@given(rows)
@example([(0, 1.0), (1, 2.0), (12, 5.0)])
def test_the_aligned_loss_is_the_median_of_its_steps_in_whatever_order_they_were_logged(logged):
    with TemporaryDirectory() as name:
        path = Path(name) / "run.jsonl"
        log = TelemetryWriter(path, fsync="never")
        for step, loss in logged:
            log.train_step(step, loss=loss)
        log.close()
        before = -1
        for row in compare_runs([path]).aligned:
            here = [loss for step, loss in logged if before < step <= row.step]
            assert row.train == [pytest.approx(statistics.median(here)) if here else None]
            before = row.step


parts = st.text("ab-._/", min_size=1, max_size=8).map(lambda text: Path("runs") / f"x{text}")


@given(st.lists(parts, min_size=1, max_size=5, unique=True))
def test_different_paths_have_different_names_that_are_not_empty(paths):
    names = names_of(paths)
    assert len(set(names)) == len(paths)
    assert all(names)
