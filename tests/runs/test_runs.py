"""Many runs: each log found once and read as monitor reads it, kept until it changes, listed, compared and queried."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

pytest.importorskip("duckdb", reason="needs the extra [fleet]")
pytest.importorskip("pyarrow", reason="needs the extra [fleet]")

import gradience
from gradience.cli.main import main
from gradience.collect.runs import RUNS_QUERIES, collect as collecting, list_runs, run_curves
from gradience.collect.runs.best import best_runs
from gradience.collect.runs.collect import collect_runs, find_runs
from gradience.errors import GradienceError, RecorderError
from gradience.tables.query import select

SCHEMA = "gradience.vnext.telemetry/v1"


def log(folder, losses, *, model="m", lr=1e-4, accuracy=None, name="run.jsonl"):
    """A log of ours with one training row a step, and an evaluation each tenth step."""
    folder.mkdir(parents=True, exist_ok=True)
    head = {"schema": SCHEMA, "ts": 1.0, "run_id": folder.name}
    config = {"model_name": model, "optimizer": {"name": "adamw", "lr": lr}, "lora": {"r": 8, "alpha": 16}}
    lines = [{**head, "event": "run_start", "step": None, "config": config}]
    for step, loss in enumerate(losses, 1):
        lines.append({**head, "event": "train_step", "step": step, "ts": 1.0 + step, "loss": loss, "lr": lr})
        if step % 10 == 0:
            metrics = {"loss": loss + 0.1, "accuracy": (accuracy or [0.5])[min(step // 10, len(accuracy or [1])) - 1]}
            lines.append(
                {**head, "event": "eval", "step": step, "split": "eval", "metrics": {**metrics, "f1": step / 100}}
            )
    lines.append({**head, "event": "run_end", "step": len(losses), "status": "ok"})
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def state(folder, losses):
    """A trainer_state.json as the Hugging Face Trainer leaves it in a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    history = [
        {"loss": loss, "step": step, "epoch": step / 10, "learning_rate": 1e-5} for step, loss in enumerate(losses, 1)
    ]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history, "global_step": len(losses)}))


FALLING = [2.0 - 0.05 * step for step in range(30)]


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Two runs of ours on one model, one on another, one of a Trainer, a table, and a log that is broken."""
    root = tmp_path_factory.mktemp("runs")
    log(root / "a" / "first", FALLING, accuracy=[0.6, 0.9, 0.8])
    log(root / "a" / "second", FALLING[:20], accuracy=[0.5, 0.7], lr=2e-4)
    log(root / "deep" / "er" / "and" / "er" / "third", [3.0] * 12, model="other", accuracy=[0.2])
    state(root / "hf" / "checkpoint-10", FALLING[:10])
    state(root / "hf" / "checkpoint-20", FALLING[:20])
    (root / "hf" / "runs").mkdir()
    (root / "hf" / "runs" / "events.csv").write_text("step,loss\n1,2.0\n2,1.0\n")
    (root / "table").mkdir()
    (root / "table" / "log.csv").write_text(
        "step,loss,learning_rate\n" + "".join(f"{n},{3 - n / 10},0.1\n" for n in range(9))
    )
    (root / "broken").mkdir()
    (root / "broken" / "run.jsonl").write_text(f'{{"schema": "{SCHEMA}", "event": "train_step"}}\n')
    (root / ".hidden").mkdir()
    shutil.copy(root / "a" / "first" / "run.jsonl", root / ".hidden" / "run.jsonl")
    return root


@pytest.fixture(scope="module")
def store(roots, tmp_path_factory):
    return collect_runs(roots, out=tmp_path_factory.mktemp("store") / "runs")


def test_every_log_below_is_found_once_and_a_runs_own_folders_belong_to_it(roots):
    found = [os.path.relpath(job.path, roots) for job in find_runs([roots, roots / "a"])]
    assert sorted(found) == [
        *("a/first/run.jsonl", "a/second/run.jsonl", "broken/run.jsonl", "deep/er/and/er/third/run.jsonl"),
        *("hf", "table"),
    ]
    with pytest.raises(RecorderError, match="no such file"):
        list(find_runs([roots / "nowhere"]))


@pytest.mark.parametrize("logged", [2e-5, None])
def test_the_rate_of_a_run_is_the_highest_logged_else_the_configured_one(logged, tmp_path):
    path = log(tmp_path / "a", FALLING[:3], lr=1e-4) / "run.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["event"] == "train_step":
            line["lr"] = logged
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    store = collect_runs(tmp_path / "a", out=tmp_path / "store")
    assert list_runs(store, columns=["lr"]).rows == [[logged or 1e-4]]


def test_the_best_evaluation_is_of_the_split_that_is_shown(tmp_path):
    path = log(tmp_path / "a", FALLING[:10]) / "run.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    at = next(place for place, line in enumerate(lines) if line["event"] == "eval")
    lines.insert(at, {**lines[at], "split": "train", "metrics": {"loss": 0.01}})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    store = collect_runs(tmp_path / "a", out=tmp_path / "store")
    assert list_runs(store, columns=["split", "best_eval_loss"]).rows == [["eval", pytest.approx(FALLING[9] + 0.1)]]


@pytest.mark.parametrize(("error", "reads"), [(RuntimeError("ours"), 2), (RecorderError("not a log", advice="-"), 1)])
def test_a_log_is_read_again_where_it_may_be_whole(error, reads, tmp_path, monkeypatch):
    """Where the log itself is at fault, it would be read in vain until it changes."""
    log(tmp_path / "a", FALLING[:3])
    read = []

    def broken(place):
        read.append(place)
        raise error

    monkeypatch.setattr(collecting, "read_run", broken)
    for _ in range(2):
        collect_runs(tmp_path / "a", out=tmp_path / "store")
    assert len(read) == reads


@pytest.mark.parametrize("name", ["logs", "runs", "wandb"])
def test_a_folder_named_as_a_loggers_is_passed_only_beside_a_run(name, tmp_path):
    log(tmp_path / name, FALLING[:3])
    assert [Path(job.path).parent.name for job in find_runs([tmp_path])] == [name]
    log(tmp_path, FALLING[:3])
    assert [Path(job.path).parent for job in find_runs([tmp_path])] == [tmp_path]


def test_an_evaluation_without_a_step_is_no_point_of_a_curve(tmp_path):
    path = log(tmp_path / "a", FALLING[:10]) / "run.jsonl"
    path.write_text(path.read_text().replace('"event": "eval", "step": 10', '"event": "eval", "step": null'))
    with pytest.raises(RecorderError, match="no run has 'eval/loss'"):
        run_curves(path, metric="eval/loss")


def test_rows_evals_and_findings_are_tables_of_their_own(store):
    counts = select(store, "select (select count(*) from rows), (select count(*) from evals)").rows
    assert counts == [[30 + 20 + 12 + 20 + 9, 3 * (3 + 2 + 1)]]
    (one,) = select(store, "select loss, lr, grad_norm from rows where step = 2 and run = 'first'").rows
    assert one == [1.95, 1e-4, None]
    assert select(store, "select count(*) from findings join runs using (path, run)").rows[0][0] > 0


def test_a_broken_log_is_a_row_with_its_error(store):
    ((path, error, status),) = list_runs(store, columns=["path", "error", "status"], where="error is not null").rows
    assert path.endswith("broken/run.jsonl")
    assert "holds no event of a run" in error
    assert status == "unreadable"


def test_a_list_is_sorted_filtered_and_cut_to_columns(store):
    sort = list_runs(store, columns=["run", "lr"], where="model is not null", sort="-lr").rows
    assert sort == [["second", 2e-4], ["first", 1e-4], ["third", 1e-4]]
    assert [row[1] for row in list_runs(store, columns=["run", "lr"], sort="lr").rows][-1] is None
    for options in ({"columns": ["nosuch"]}, {"sort": "x; drop"}, {"columns": []}, {"where": "nosuch = 1"}):
        with pytest.raises(GradienceError):
            list_runs(store, **options)


def test_the_best_run_by_a_metric_is_by_its_best_value(store):
    best = best_runs(store, "eval/accuracy", by="model")
    assert best.goal == "most"
    assert [(b.group, b.runs, b.run, b.value, b.step, b.last) for b in best.best] == [
        ("m", 2, "first", 0.9, 20, 0.8),
        ("other", 1, "third", 0.2, 10, 0.2),
    ]
    least = best_runs(store, "train/loss")
    assert (least.goal, [b.runs for b in least.best]) == ("least", [2, 2, 1])  # without a model, m, other
    assert [b.run for b in least.best[1:]] == ["first", "third"]
    assert best_runs(store, "eval/f1", goal="least").best[0].value == 0.1
    with pytest.raises(GradienceError, match=r"no run has 'eval/nosuch'.*"):
        best_runs(store, "eval/nosuch")
    with pytest.raises(GradienceError, match="no column"):
        best_runs(store, "eval/f1", by="model, path")


@pytest.mark.parametrize("name", RUNS_QUERIES)
def test_each_named_query_of_runs_runs(name, store):
    assert select(store, RUNS_QUERIES[name].sql).columns


def test_only_logs_that_changed_are_read_again(tmp_path, monkeypatch):
    for name in ("one", "two", "gone"):
        log(tmp_path / "runs" / name, FALLING)
    read = []
    monkeypatch.setattr(collecting, "run_job", lambda job, do=collecting.run_job: read.append(job.path) or do(job))
    collect_runs(tmp_path / "runs", out=tmp_path / "store")
    assert len(read) == 3
    collect_runs(tmp_path / "runs", out=tmp_path / "store")
    assert len(read) == 3
    with (tmp_path / "runs" / "two" / "run.jsonl").open("a") as file:
        file.write(
            json.dumps({"schema": SCHEMA, "ts": 99.0, "run_id": "two", "event": "train_step", "step": 31, "loss": 0.1})
            + "\n"
        )
    shutil.rmtree(tmp_path / "runs" / "gone")
    store = collect_runs(tmp_path / "runs", out=tmp_path / "store")
    assert [Path(path).parent.name for path in read[3:]] == ["two"]
    assert list_runs(store, columns=["run", "steps"]).rows == [["one", 30], ["two", 31]]
    assert select(store, "select count(distinct run), count(*) from rows").rows == [[2, 61]]


def test_many_logs_are_read_by_worker_processes_with_the_same_rows(roots, store, tmp_path, monkeypatch):
    monkeypatch.setattr(collecting, "_ALONE", 0)
    other = collect_runs(roots, out=tmp_path / "store", workers=2)
    for table in ("runs", "rows", "evals", "findings"):
        sql = f"select * from {table} order by all"  # noqa: S608  # names of the line above
        assert select(other, sql).rows == select(store, sql).rows


def test_the_cache_is_the_users_and_one_for_each_choice_of_folders(roots, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(roots)
    assert collect_runs("a").folder == collect_runs(roots / "a").folder
    assert collect_runs("table").folder != collect_runs("a").folder
    assert len(list((tmp_path / "gradience" / "runs").iterdir())) == 2


def test_curves_are_drawn_over_each_other_and_as_a_page(roots, tmp_path, capsys):
    report = run_curves(roots / "a", roots / "table")
    assert [(c.name, len(c.steps), c.values[0]) for c in report.curves] == [
        ("a/first", 30, 2.0),
        ("a/second", 20, 2.0),
        ("table", 9, 3.0),
    ]
    accuracy = run_curves(roots / "a", metric="eval/accuracy").curves
    assert [(c.steps, c.values) for c in accuracy] == [([10, 20, 30], [0.6, 0.9, 0.8]), ([10, 20], [0.5, 0.7])]
    with pytest.raises(RecorderError, match="no run has"):
        run_curves(roots / "a", metric="eval/nosuch")
    pytest.importorskip("matplotlib")
    page, argv = tmp_path / "curves.html", ["runs", str(roots / "a"), "--out", str(tmp_path / "store")]
    assert main([*argv, "--html", str(page)]) == 0
    assert "a/first" not in capsys.readouterr().out  # the table's names begin where they differ
    assert "<svg" in page.read_text()
    assert "<script" not in page.read_text()
    assert main([*argv, "--html", str(page)]) == 2
    assert main([*argv, "--html", str(page), "--metric", "eval/accuracy", "--force"]) == 0
    assert "eval/accuracy" in page.read_text()


def test_the_commands_print_what_the_library_returns(roots, tmp_path, capsys):
    out = ["--out", str(tmp_path / "store")]
    assert (
        main(["runs", str(roots), *out, "--columns", "run,steps", "--where", "r = 8", "--sort", "-steps", "--json"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["rows"] == [["first", 30], ["second", 20], ["third", 12]]
    assert main(["runs", "best", str(roots), *out, "--metric", "eval/accuracy", "--by", "model"]) == 0
    assert "Highest eval/accuracy by model" in capsys.readouterr().out
    assert main(["runs", "query", str(roots), *out, "select count(*) as n from runs", "--csv"]) == 0
    assert capsys.readouterr().out.split() == ["n", "6"]
    assert main(["runs", "query", str(roots), *out, "copy runs to 'x'"]) == 2
    assert main(["runs"]) == 2
    kept = gradience.runs.collect(roots, out=tmp_path / "store")
    assert gradience.runs.list(kept, columns=["run"], where="model is not null").rows == [
        ["first"], ["second"], ["third"],
    ]  # fmt: skip


def test_monitor_of_several_prints_the_table_of_runs(roots, tmp_path, capsys):
    places = [str(roots / name) for name in ("a", "hf")]
    assert main(["monitor", *places]) == 0
    table = capsys.readouterr().out
    assert main(["runs", *places, "--out", str(tmp_path / "store")]) == 0
    assert capsys.readouterr().out == table
