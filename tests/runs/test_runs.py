"""Many runs: each log found once and read as monitor reads it, kept until it changes, listed, compared and queried."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest
from tables import every

pytest.importorskip("duckdb", reason="needs the extra [fleet]")
pytest.importorskip("pyarrow", reason="needs the extra [fleet]")

import gradience
from gradience.cli.main import main
from gradience.errors import GradienceError, RecorderError
from gradience.folder.runs import names_of_runs
from gradience.tables.query import select
from gradience.verbs.monitor.run import monitor_run
from gradience.verbs.runs import collect as collecting
from gradience.verbs.runs.best import best_runs
from gradience.verbs.runs.collect import collect_runs, find_runs
from gradience.verbs.runs.run import list_runs, run_curves

SCHEMA = "gradience.vnext.telemetry/v1"
BROKEN = f'{{"schema": "{SCHEMA}", "event": "train_step"}}\n'
FALLING = [2.0 - 0.05 * step for step in range(30)]


def log(folder, losses, *, model="m", data=None, lr=1e-4, logged=True, accuracy=(), split="eval", step=True):
    """A log of ours with one training row a step, and at each tenth step an evaluation for each accuracy."""
    folder.mkdir(parents=True, exist_ok=True)
    head = {"schema": SCHEMA, "ts": 1.0, "run_id": folder.name}
    config = {"model_name": model, "dataset_name": data, "optimizer": {"name": "adamw", "lr": lr}, "lora": {"r": 8}}
    rows = [{**head, "event": "run_start", "step": None, "config": config}]
    for n, loss in enumerate(losses, 1):
        rate = {"lr": lr} if logged is True else {"lr": logged} if logged else {}
        rows.append({**head, "event": "train_step", "step": n, "ts": 1.0 + n, "loss": loss, **rate})
    for n, share in enumerate(accuracy, 1):
        metrics = {"loss": losses[min(10 * n, len(losses)) - 1] + 0.1, "accuracy": share, "f1": n / 10}
        rows.append({**head, "event": "eval", "step": 10 * n if step else None, "split": split, "metrics": metrics})
    rows.append({**head, "event": "run_end", "step": len(losses), "status": "ok"})
    (folder / "run.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def state(folder, losses):
    """A trainer_state.json as the Hugging Face Trainer leaves it in a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    history = [{"loss": loss, "step": n, "epoch": n / 10, "learning_rate": 1e-5} for n, loss in enumerate(losses, 1)]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history, "global_step": len(losses)}))


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Two runs of ours on one model, one on another, one of a Trainer, a table, and a log that is broken."""
    root = tmp_path_factory.mktemp("runs")
    log(root / "a" / "first", FALLING, accuracy=[0.6, 0.9, 0.8])
    log(root / "a" / "second", FALLING[:20], accuracy=[0.5, 0.7], lr=2e-4)
    log(root / "deep" / "er" / "and" / "er" / "third", [3.0] * 12, model="other", accuracy=[0.2])
    state(root / "hf" / "checkpoint-10", FALLING[:10])
    state(root / "hf" / "checkpoint-20", FALLING[:20])
    rows = "".join(f"{n},{3 - n / 10},0.1\n" for n in range(9))
    for name, text in {
        "hf/runs/events.csv": "step,loss\n1,2.0\n2,1.0\n",
        "table/log.csv": f"step,loss,learning_rate\n{rows}",
        "broken/run.jsonl": BROKEN,
    }.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    shutil.copytree(root / "a" / "first", root / ".hidden")
    return root


@pytest.fixture(scope="module")
def store(roots, tmp_path_factory):
    return collect_runs(roots, out=tmp_path_factory.mktemp("store") / "runs")


def listed(tmp_path, *columns):
    return list_runs(collect_runs(tmp_path / "a", out=tmp_path / "store"), columns=columns).rows


def test_every_log_below_is_found_once_and_a_runs_own_folders_belong_to_it(roots):
    found = [os.path.relpath(job.path, roots) for job in find_runs([roots, roots / "a"])]
    ours = [f"{name}/run.jsonl" for name in ("a/first", "a/second", "broken", "deep/er/and/er/third")]
    assert sorted(found) == [*ours, "hf", "table"]
    with pytest.raises(RecorderError, match="no such file"):
        list(find_runs([roots / "nowhere"]))


@pytest.mark.parametrize("name", ["logs", "runs", "wandb"])
def test_a_folder_named_as_a_loggers_is_passed_only_beside_a_run(name, tmp_path):
    log(tmp_path / name, FALLING[:3])
    assert [Path(job.path).parent.name for job in find_runs([tmp_path])] == [name]
    log(tmp_path, FALLING[:3])
    assert [Path(job.path).parent for job in find_runs([tmp_path])] == [tmp_path]


def test_a_row_is_what_monitor_reports(roots, store):
    path = roots / "a" / "first" / "run.jsonl"
    names = ["status", "steps", "first_loss", "last_loss", "best_eval_loss", "best_eval_step", "eval_accuracy", "r"]
    (row,) = list_runs(store, columns=[*names, "findings"], where=f"path = '{path}'").rows
    assert row[:3] == ["ok", 30, 2.0]
    assert row[3:8] == [pytest.approx(0.55), pytest.approx(0.65), 30, 0.8, 8]
    assert row[8] == ",".join(finding.id for finding in monitor_run(path).findings)
    foreign = list_runs(store, columns=["rows", "status", "objective"], where="path like '%/hf'").rows
    assert foreign == [[20, monitor_run(roots / "hf").status, "unknown"]]
    ((broken, error, status),) = list_runs(store, columns=["path", "error", "status"], where="error is not null").rows
    assert (broken.endswith("broken/run.jsonl"), "no event of a run" in error, status) == (True, True, "unreadable")


@pytest.mark.parametrize(("logged", "rate"), [(2e-5, 2e-5), (None, 1e-4)])
def test_the_rate_of_a_run_is_the_highest_logged_else_the_configured_one(logged, rate, tmp_path):
    log(tmp_path / "a", FALLING[:3], logged=logged)
    assert listed(tmp_path, "lr") == [[rate]]


def test_the_best_evaluation_is_of_the_split_that_is_shown(tmp_path):
    path = log(tmp_path / "a", FALLING[:10], accuracy=[0.5]) / "run.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:-2], {**rows[-2], "split": "train",
                    "metrics": {"loss": 0.01}}, *rows[-2:]]))  # fmt: skip
    assert listed(tmp_path, "split", "best_eval_loss") == [["eval", pytest.approx(FALLING[9] + 0.1)]]


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


def test_rows_evals_and_findings_are_tables_of_their_own(store):
    counts = select(store, "select (select count(*) from rows), (select count(*) from evals)").rows
    assert counts == [[30 + 20 + 12 + 20 + 9, 3 * (3 + 2 + 1)]]
    (one,) = select(store, "select loss, lr, grad_norm from rows where step = 2 and run = 'first'").rows
    assert one == [1.95, 1e-4, None]
    assert select(store, "select count(*) from findings join runs using (path, run)").rows[0][0] > 0


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
    for metric, by in (("eval/nosuch", None), ("eval/f1", "model, path")):
        with pytest.raises(GradienceError, match=r"no run has 'eval/nosuch'|no column"):
            best_runs(store, metric, by=by)


def test_only_logs_that_changed_are_read_again_or_all_on_request(tmp_path, monkeypatch):
    for name in ("one", "two", "gone"):
        log(tmp_path / "runs" / name, FALLING)
    read = []
    monkeypatch.setattr(collecting, "run_job", lambda job, do=collecting.run_job: read.append(job.path) or do(job))

    def again():
        read.clear()
        made = collect_runs(tmp_path / "runs", out=tmp_path / "store")
        return made, [Path(path).parent.name for path in read]

    assert [len(again()[1]) for _ in range(2)] == [3, 0]
    with (tmp_path / "runs" / "two" / "run.jsonl").open("a") as file:
        row = {"schema": SCHEMA, "ts": 99.0, "run_id": "two", "event": "train_step", "step": 31, "loss": 0.1}
        file.write(json.dumps(row) + "\n")
    shutil.rmtree(tmp_path / "runs" / "gone")
    store, names = again()
    assert names == ["two"]
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


def test_where_nothing_can_be_cached_the_tables_last_as_long_as_they_are_asked(roots, tmp_path, monkeypatch, capsys):
    (file := tmp_path / "file").touch()  # no folder can be made in it, whoever runs the test
    (scratch := tmp_path / "scratch").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    said = "the user's cache cannot be written: these tables are not kept; --out FOLDER keeps them\n"
    count = ["runs", "query", str(roots / "a"), "select count(*) as runs from runs", "--csv"]
    assert (main(count), *capsys.readouterr()) == (0, "runs\r\n2\r\n", said)
    assert (main([*count, "--out", str(tmp_path / "out")]), *capsys.readouterr()) == (0, "runs\r\n2\r\n", "")
    store = collect_runs(roots / "a")
    assert select(store, "select count(*) from runs").rows == [[2]]
    assert store.folder.parent == scratch
    del store
    assert not any(scratch.iterdir())


def test_curves_are_drawn_over_each_other_and_as_a_page(roots, tmp_path, capsys):
    report = run_curves(roots / "a", roots / "table")
    found = [(c.name, len(c.steps), c.values[0]) for c in report.curves]
    assert found == [("a/first", 30, 2.0), ("a/second", 20, 2.0), ("table", 9, 3.0)]
    report = run_curves(roots / "a", roots / "table", metric="eval/accuracy")
    points = [(c.steps, c.values) for c in report.curves]
    assert points == [([10, 20, 30], [0.6, 0.9, 0.8]), ([10, 20], [0.5, 0.7])]
    assert report.not_drawn == ["table"]
    with pytest.raises(RecorderError, match="no run has"):
        run_curves(roots / "a", metric="eval/nosuch")
    with pytest.raises(RecorderError, match="no run has 'eval/loss'"):  # an evaluation without a step is no point
        run_curves(log(tmp_path / "stepless", FALLING[:10], accuracy=[0.5], step=False), metric="eval/loss")
    pytest.importorskip("matplotlib")
    page, argv = tmp_path / "curves.html", ["runs", str(roots / "a"), "--out", str(tmp_path / "store")]
    assert main([*argv, "--html", str(page)]) == 0
    assert "a/first" not in capsys.readouterr().out  # the table's names begin where they differ
    assert ("<svg" in page.read_text(), "<script" in page.read_text()) == (True, False)
    assert main([*argv, "--html", str(page)]) == 2
    assert main([*argv, "--html", str(page), "--metric", "eval/accuracy", "--force"]) == 0
    assert "eval/accuracy" in page.read_text()


def test_a_page_has_the_best_runs_of_many_in_the_order_and_the_number_that_are_asked_for(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for number in range(29):  # the later, the lower the held-out loss
        log(tmp_path / "many" / f"run{number:02}", [2.0 - number / 100] * 10, accuracy=[0.5])
    page, argv = tmp_path / "curves.html", ["runs", str(tmp_path / "many"), "--out", str(tmp_path / "store"), "--force"]

    def drawn(*options):
        assert main([*argv, "--html", str(page), *options]) == 0
        text = page.read_text()
        return {f"run{n:02}" for n in range(29) if f"run{n:02}" in text}, re.findall(
            r"\d+ runs? left out: --where", text
        )

    assert drawn() == ({f"run{n:02}" for n in range(3, 29)}, ["3 runs left out: --where"])
    shown = capsys.readouterr().out
    assert "run00" in shown  # and the table all the same
    assert shown.endswith(f"\nwrote {page} (26 of 29 runs)\n")
    assert drawn("--sort", "path", "--limit", "2") == ({"run00", "run01"}, ["27 runs left out: --where"])
    assert drawn("--where", "best_eval_loss < 1.825") == ({"run28"}, [])
    assert main([*argv, "--html", str(page), "--where", "r = 99"]) == 2
    assert "no run where r = 99" in capsys.readouterr().err


def test_the_commands_print_what_the_library_returns(roots, tmp_path, capsys):
    out = ["--out", str(tmp_path / "store")]
    options = ["--columns", "run,steps", "--where", "r = 8", "--sort", "-steps", "--json"]
    assert main(["runs", str(roots), *out, *options]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == [["first", 30], ["second", 20], ["third", 12]]
    assert main(["runs", "query", str(roots), *out, "select count(*) as n from runs", "--csv"]) == 0
    assert capsys.readouterr().out.split() == ["n", "6"]
    assert main(["runs", "query", str(roots), *out, "copy runs to 'x'"]) == main(["runs"]) == 2
    kept = gradience.runs.collect(roots, out=tmp_path / "store")
    named = gradience.runs.list(kept, columns=["run"], where="model is not null").rows
    assert named == [["first"], ["second"], ["third"]]
    capsys.readouterr()
    places = [str(roots / name) for name in ("a", "hf")]
    assert main(["monitor", *places]) == 0  # of several logs it prints the table of runs
    table = capsys.readouterr().out
    assert main(["runs", *places, "--out", str(tmp_path / "two")]) == 0
    assert capsys.readouterr().out == table


def test_the_screens_fit_a_terminal_and_say_what_is_not_compared(tmp_path, capsys):
    root, out = tmp_path / "deep", ["--out", str(tmp_path / "store")]
    for name, loss, data in (("first", 1.0, "d"), ("second", 0.5, "d"), ("third", 0.1, "other")):
        log(root / name, [loss], data=data, accuracy=[0.5])
    for n in range(6):
        (root / f"broken{n}").mkdir()
        (root / f"broken{n}" / "run.jsonl").write_text(BROKEN)
    assert main(["runs", str(root), *out, "--limit", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:3])) <= 100
    assert [line.split()[0] for line in lines[:3]] == ["run", "first", "second"]
    assert lines[3] == "... and 1 more (--limit 3; --columns shows other columns)"
    at = lines.index("Settings that differ: data d | d | other")
    assert lines[at + 1 : at + 3] == [
        "The runs differ in data sets: their losses may not be comparable.", "6 logs not read:",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[at + 3 :] if line[2] != " "][:5] == [f"broken{n}:" for n in range(5)]
    assert lines[-1:] == ['  ... and 1 more (gradience runs query ROOT "select path, error from runs")']
    assert main(["runs", "best", str(root), *out]) == 0
    text = capsys.readouterr().out
    assert text.index("d, m: 2 runs") < text.index("Comparable with none of these:") < text.index("0.2  other, m:")
    assert "no noise known" in text
    assert text.splitlines()[-1].endswith("numbers of examples or (for losses) models are not compared.")


@every(
    ("runs", "names"),
    [
        ([], []),
        (
            [("x/a/run.jsonl", "import-0123456789"), ("x/a/run.jsonl", "b"), ("y/run.jsonl", "c")],
            ["x/a #01234567", "x/a #b", "y"],
        ),
    ],
)
def test_two_runs_of_one_log_have_names_of_their_own(runs, names):
    assert names_of_runs(runs) == names
