"""Several runs in one table: every number is that of the run's own report."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from logs import config, falling, record
from msgspec.structs import replace

from gradience.cli.main import main
from gradience.errors import GradienceError, RecorderError
from gradience.folder.runs import names_of, runs_in
from gradience.importers.sources import MAX_RUNS
from gradience.schema import ConfigSnapshot
from gradience.verbs.monitor.run import monitor_run
from gradience.verbs.runs.rows import read_rows

EVALS = [(10, 1.6), (20, 1.4), (30, 1.3), (40, 1.25)]


def said(capsys, *paths):
    assert main(["monitor", *map(str, paths)]) == 0
    return capsys.readouterr().out


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


def test_each_row_is_what_the_runs_own_report_says(pair):
    for path, row in zip(pair, read_rows(*pair), strict=True):
        report = monitor_run(path)
        assert (row.story, row.status, row.steps) == (report.story, report.status, report.train.last_step)
        assert (row.first_loss, row.last_loss) == (report.train.first_loss, report.train.last_loss)
        assert row.findings == ",".join(finding.id for finding in report.findings)


def test_the_best_held_out_loss_comes_with_its_step(tmp_path):
    (row,) = read_rows(record(tmp_path / "run.jsonl", evals=[(10, 1.5), (20, 1.2), (40, 1.4)]))
    assert (row.best_eval_loss, row.best_eval_step, row.eval_loss) == (1.2, 20, 1.4)


def test_only_settings_that_differ_are_listed_with_their_values(pair, capsys):
    text = said(capsys, *pair)
    assert "Settings that differ: r 8 | 16; alpha 16 | 32\n" in text
    same = said(capsys, pair[0], pair[0])
    assert "Settings: the same in all runs, as far as recorded\n" in same


def test_what_a_run_did_not_record_is_no_difference(tmp_path, capsys):
    first = record(tmp_path / "a.jsonl", evals=EVALS, setup=config(r=8))
    bare = record(tmp_path / "b.jsonl", evals=EVALS, setup=ConfigSnapshot())
    other = record(tmp_path / "c.jsonl", evals=EVALS, setup=config(r=16))
    assert "the same in all runs" in said(capsys, first, bare)
    assert "r 8 | - | 16" in said(capsys, first, bare, other)


def test_of_many_runs_only_the_names_of_settings_are_listed(tmp_path, capsys):
    for n in range(5):
        record(tmp_path / f"seed{n}.jsonl", setup=config(r=8 * (n + 1)))
    text = said(capsys, tmp_path)
    assert [line.split()[0] for line in text.splitlines()[1:6]] == [f"seed{n}" for n in range(5)]
    assert "Settings that differ: r; alpha\n" in text


@pytest.mark.parametrize("verb", ["monitor", "diagnose"])
def test_of_several_runs_the_table_is_first_and_then_the_one_that_is_asked_for_or_the_last(verb, tmp_path, capsys):
    path = record(tmp_path / "run.jsonl", run_id="first")
    record(path, [*falling(30), *[math.nan] * 5], run_id="broken")
    record(path, falling(fall=0.1), run_id="last")
    for place in (path, tmp_path):
        assert main([verb, str(place)]) == 0
        table, report = capsys.readouterr().out.split("\n\n", 1)
        lines = table.splitlines()[1:4]
        assert [line.split("#")[1].split()[0] for line in lines] == ["first", "broken", "last"]
        assert ["not finite" in line for line in lines] == [False, True, False]
        assert "Story: " in report
        assert "not finite" not in report
    assert main([verb, str(path), "--run", "first", "--json"]) == 0
    assert '"run_id":"first"' in capsys.readouterr().out.replace(": ", ":")


def test_of_a_folder_of_runs_the_table_is_all_that_can_be_told_until_one_is_chosen(pair, capsys):
    assert main(["diagnose", str(pair[0].parents[1])]) == 2
    table, report = capsys.readouterr().out.split("\n\n", 1)
    assert [line.split()[0] for line in table.splitlines()[:3]] == ["run", "a", "b"]
    assert "2 runs in it (a, b): --run chooses" in report


def test_an_unknown_run_is_refused_naming_those_there_are(tmp_path):
    path = record(tmp_path / "run.jsonl", run_id="first")
    with pytest.raises(RecorderError, match="no run is called 'x'") as caught:
        monitor_run(path, run="x")
    assert "first" in caught.value.advice


def test_a_folder_of_runs_is_its_runs_and_a_runs_folder_is_one(pair):
    runs = pair[0].parents[1]
    assert runs_in(runs) == pair
    assert runs_in(pair[0].parent) == [pair[0].parent]


def test_what_another_program_left_stands_in_the_same_table(pair, shared_data, capsys):
    other = pair[0].parents[1] / "trainer"
    other.mkdir()
    shutil.copy(shared_data / "trainer_states" / "sft-60-steps.json", other / "trainer_state.json")
    lines = said(capsys, pair[0].parents[1]).splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["run", "a", "b", "trainer"]


def test_a_log_that_cannot_be_read_is_listed_and_the_others_are_shown(pair, capsys):
    bad = pair[0].parents[1] / "c" / "run.jsonl"
    bad.parent.mkdir()
    bad.write_text('{"schema":"gradience.vnext.telemetry/v9","event":"run_start"}\n')
    text = said(capsys, pair[0].parents[1])
    assert "1 log not read:\n  c: " in text
    assert "v9" in text
    for path in pair:
        path.unlink()
    with pytest.raises(GradienceError, match="v9"):
        read_rows(pair[0].parents[1])


def test_a_missing_log_among_those_named_is_an_error(pair, capsys):
    assert main(["monitor", str(pair[0]), "nowhere.jsonl"]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [[], ["a", "b", "--run", "x"], ["a", "b", "--follow"], ["a", "b", "--json"], ["a", "b", "--format", "sarif"]],
)
def test_words_that_do_not_go_together_are_refused(words, capsys):
    assert main(["monitor", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("field", "words"), [("dataset_name", "data sets"), ("model_name", "models")])
def test_other_data_or_models_are_a_reason_to_doubt_the_comparison(field, words, tmp_path, capsys):
    paths = [record(tmp_path / f"{name}.jsonl", setup=replace(config(), **{field: name})) for name in "ab"]
    assert f"The runs differ in {words}: their losses may not be comparable.\n" in said(capsys, *paths)
    assert "may not be comparable" not in said(capsys, paths[0], paths[0])


def test_where_no_log_names_its_data_that_is_said(pair, capsys):
    assert "No log names its data set" in said(capsys, *pair)


def test_a_few_long_stories_are_told_in_full(pair, capsys):
    record(pair[1], losses=falling(30) + [math.nan] * 5)
    story = read_rows(pair[1])[-1].story
    assert len(story) > 60
    assert story in said(capsys, *pair)


def test_fail_on_looks_at_every_run(pair):
    record(pair[1], losses=falling(30) + [math.nan] * 5)
    assert main(["monitor", *map(str, pair), "--fail-on", "error"]) == 1
    assert main(["monitor", str(pair[0]), str(pair[0]), "--fail-on", "error"]) == 0


def test_more_runs_than_are_looked_for_are_refused(tmp_path):
    for n in range(MAX_RUNS):
        record(tmp_path / f"seed{n:03}.jsonl", [1.0, 0.9])
    with pytest.raises(RecorderError, match=f"{MAX_RUNS} runs or more"):
        read_rows(tmp_path)


def test_escape_sequences_in_names_do_not_reach_the_terminal(tmp_path, capsys):
    paths = [record(tmp_path / f"{n}.jsonl", setup=config(dataset_name=f"evil\x1b[31m{n}")) for n in "ab"]
    assert "\x1b" not in said(capsys, *paths)


parts = st.text("ab-._/", min_size=1, max_size=8).map(lambda text: Path("runs") / f"x{text}")


@given(st.lists(parts, min_size=1, max_size=5, unique=True))
def test_different_paths_have_different_names_that_are_not_empty(paths):
    names = names_of(paths)
    assert len(set(names)) == len(paths)
    assert all(names)
