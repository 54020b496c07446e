"""Loggers with a database: MLflow's, and its folder, and trackio's, read by their own packages without a trace."""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
from contextlib import closing
from importlib import import_module
from importlib.util import find_spec

import pytest

from gradience.errors import MissingPackageError, RecorderError
from gradience.importers import read_source

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow and SQLAlchemy


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A folder and a database with a run logged as the Trainer's callback does, and one that failed before."""
    mlflow = import_module("mlflow")
    patch = pytest.MonkeyPatch()
    patch.setenv("MLFLOW_ALLOW_FILE_STORE", "1")
    patch.setenv("MLFLOW_DISABLE_TELEMETRY", "1")
    folder = tmp_path_factory.mktemp("mlflow")
    places = {"folder": folder / "mlruns", "database": folder / "mlflow.db"}
    uris = {"folder": places["folder"].as_uri(), "database": f"sqlite:///{places['database']}"}
    if find_spec("sqlalchemy") is None or find_spec("alembic") is None:  # mlflow-skinny reads no database
        del places["database"]
    for kind in places:
        uri = uris[kind]
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment(f"demo-{kind}")
        mlflow.start_run(run_name="failed")
        mlflow.log_metrics({"loss": 3.0}, step=10)
        mlflow.end_run("FAILED")
        with mlflow.start_run(run_name="one"):
            mlflow.log_params({"learning_rate": 1e-3, "max_steps": 30})
            for step in (10, 20, 30):
                mlflow.log_metrics({"loss": 20 / step, "learning_rate": 1e-2 / step, "train/extra": 1.0}, step=step)
                if step != 20:
                    mlflow.log_metrics({"eval_loss": 19 / step, "eval_accuracy": 0.5}, step=step)
    patch.undo()
    return places


def holds(events):
    assert [(e.step, e.loss, e.lr) for e in events.of("train_step")] == [
        (10, 2.0, 1e-3),
        (20, 1.0, 5e-4),
        (30, 20 / 30, 1e-2 / 30),
    ]
    evals = [(e.step, e.metrics.loss, e.metrics.accuracy) for e in events.of("eval")]
    assert evals == [(10, 1.9, 0.5), (30, 19 / 30, 0.5)]
    assert (events.start.config.optimizer.lr, events.start.config.training.max_steps) == (1e-3, 30)
    assert (events.end.status, events.end.reason) == ("ok", "the planned steps were made")
    assert all(event.ts > 1.7e9 and event.extras["extra"] == 1.0 for event in events.of("train_step"))


@pytest.mark.oracle("mlflow")
def test_both_stores_are_read_without_a_trace(stores, import_events):
    metas = sorted(stores["folder"].glob("*/*/meta.yaml"), key=lambda path: "name: one" in path.read_text())
    places = [metas[-1].parent, metas[-1], *stores.values()]
    before = sorted(stores["folder"].parent.rglob("*"))
    for source in places:
        events, imported = import_events(source, run="one")
        holds(events)
        assert imported.format == "mlflow"
    assert sorted(stores["folder"].parent.rglob("*")) == before


@pytest.mark.oracle("mlflow")
def test_a_failed_run_has_its_status(stores, import_events):
    events, _ = import_events(stores["folder"], run="failed")
    assert (events.losses, events.end.status) == ([3.0], "error")
    assert events.end.reason == "MLflow recorded the status FAILED"


@pytest.mark.oracle("mlflow")
def test_the_latest_run_of_a_store_of_many_pages_is_read(stores, tmp_path, import_events):
    if "database" not in stores:
        pytest.skip("mlflow-skinny reads no database")
    path = tmp_path / "mlflow.db"
    shutil.copy(stores["database"], path)
    with closing(sqlite3.connect(path)) as base, base:
        columns = [name for (name,) in base.execute("SELECT name FROM pragma_table_info('runs')")]
        changed = [
            "printf('%032d', n)" if name == "run_uuid" else "n" if name == "start_time" else name for name in columns
        ]
        earlier = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 1000)"
        base.execute(f"{earlier} INSERT INTO runs SELECT {', '.join(changed)} FROM c, runs WHERE name = 'one'")  # noqa: S608  # constant
    holds(import_events(path)[0])


@pytest.mark.oracle("mlflow")
def test_what_mlflow_cannot_read_is_an_error_in_one_line(tmp_path):
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "loss").write_text("x\n")
    (tmp_path / "meta.yaml").write_text("run_id: abc\nrun_name: one\nstatus: 4\n")
    with pytest.raises(RecorderError, match="mlflow cannot read it: ") as caught:
        read_source(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.oracle("mlflow")
def test_metrics_that_are_larger_than_a_source_may_be_are_refused_unread(tmp_path):
    (tmp_path / "metrics").mkdir()
    (tmp_path / "meta.yaml").write_text("run_id: abc\n")
    for name in ("loss", "lr"):
        with (tmp_path / "metrics" / name).open("wb") as file:
            file.truncate(300 << 20)  # sparse; neither is too large alone
    with pytest.raises(RecorderError, match="is larger than 512 MiB"):
        read_source(tmp_path)


def test_without_the_package_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    (tmp_path / "metrics").mkdir()
    (tmp_path / "meta.yaml").write_text("run_id: abc\n")
    with pytest.raises(MissingPackageError, match="reading this needs mlflow") as caught:
        read_source(tmp_path)
    assert caught.value.advice == "pip install mlflow"


METRICS = "id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT, timestamp TEXT, run_name TEXT, step INTEGER, metrics TEXT"
CONFIGS = "id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT, run_name TEXT, config TEXT, created_at TEXT"
RUNS = {
    "two": [(0, {"train/loss": "NaN", "train/grad_norm": 1.0, "train/global_step": 10})],
    "one": [
        (0, {"train/loss": 2.0, "train/learning_rate": 1e-4, "train/global_step": 10}),
        (1, {"eval/loss": 1.9, "train/global_step": 10}),
        (2, [1, 2]),
        (3, {"train/loss": 1.5, "train/learning_rate": 5e-5, "train/global_step": 20}),
    ],
}
SETTINGS = {"learning_rate": 1e-3, "max_steps": 20, "peft_config": {"default": {"r": 8}}}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    path = tmp_path_factory.mktemp("trackio") / "demo.db"
    with closing(sqlite3.connect(path)) as base, base:
        base.execute(f"CREATE TABLE metrics ({METRICS})")
        base.execute(f"CREATE TABLE configs ({CONFIGS})")
        columns = "run_id, timestamp, run_name, step, metrics"
        for name, rows in RUNS.items():
            for step, values in rows:
                row = (f"id-{name}", f"2024-01-01T00:00:{step:02}+00:00", name, step, json.dumps(values))
                base.execute(f"INSERT INTO metrics ({columns}) VALUES (?,?,?,?,?)", row)  # noqa: S608  # constant
            row = (f"id-{name}", name, json.dumps(SETTINGS))
            base.execute("INSERT INTO configs (run_id, run_name, config) VALUES (?,?,?)", row)
    return path


@pytest.mark.oracle("trackio")
def test_every_run_is_imported_and_the_newest_is_shown(project, import_events):
    before = project.read_bytes()
    events, imported = import_events(project)
    assert [(run.run_id, run.name) for run in imported.runs] == [("id-two", "two"), ("id-one", "one")]
    assert [(e.step, e.loss, e.lr, e.ts) for e in events.of("train_step")] == [
        (10, 2.0, 1e-4, 1704067200.0),
        (20, 1.5, 5e-5, 1704067203.0),
    ]
    assert [(e.step, e.metrics.loss) for e in events.of("eval")] == [(10, 1.9)]
    config = events.start.config
    assert (config.optimizer.lr, config.training.max_steps, config.lora.r) == (1e-3, 20, 8)
    assert (events.end.status, events.end.reason) == ("ok", "the planned steps were made")
    assert [(bad.line, bad.reason) for bad in imported.skipped] == [(4, "its metrics are no JSON object")]
    assert ([path.name for path in project.parent.iterdir()], project.read_bytes()) == (["demo.db"], before)


@pytest.mark.oracle("trackio")
def test_rows_still_in_the_journal_are_read_too(project, tmp_path, import_events):
    path = tmp_path / "demo.db"
    path.write_bytes(project.read_bytes())
    with closing(sqlite3.connect(path)) as base:
        base.execute("PRAGMA journal_mode=WAL")
        row = ("id-two", "2024-01-02T01:00:00+00:00", "two", 4, '{"train/loss": 0.5, "train/global_step": 30}')
        base.execute("INSERT INTO metrics (run_id, timestamp, run_name, step, metrics) VALUES (?,?,?,?,?)", row)
        base.commit()
        assert import_events(path)[0].losses == ["NaN", 0.5]


def test_another_database_is_no_log(tmp_path, import_events):
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as base, base:
        base.execute("CREATE TABLE things (id INTEGER)")
    with pytest.raises(RecorderError, match="no format known here"):
        import_events(path)
