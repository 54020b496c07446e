"""MLflow's file store, written by MLflow, and its database in the layout of its own models."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from gradience.errors import RecorderError
from gradience.importers import read_source
from gradience.importers.sources import format_of


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A file store with one run, logged as the Trainer's callback does: rows, evaluations, parameters."""
    mlflow = pytest.importorskip("mlflow")
    patch = pytest.MonkeyPatch()
    patch.setenv("MLFLOW_ALLOW_FILE_STORE", "1")
    folder = tmp_path_factory.mktemp("mlflow") / "mlruns"
    mlflow.set_tracking_uri(folder.as_uri())
    mlflow.set_experiment("demo")
    with mlflow.start_run(run_name="one"):
        mlflow.log_params({"learning_rate": 1e-3, "max_steps": 30})
        for step in (10, 20, 30):
            mlflow.log_metrics({"loss": 20 / step, "learning_rate": 1e-2 / step, "train/extra": 1.0}, step=step)
            if step != 20:
                mlflow.log_metrics({"eval_loss": 19 / step, "eval_accuracy": 0.5}, step=step)
    patch.undo()
    return folder


def holds(events):
    assert [(e.step, e.loss, e.lr) for e in events.of("train_step")] == [
        (10, 2.0, 1e-3),
        (20, 1.0, 5e-4),
        (30, 20 / 30, 1e-2 / 30),
    ]
    assert [(e.step, e.metrics.loss, e.metrics.accuracy) for e in events.of("eval")] == [
        (10, 1.9, 0.5),
        (30, 19 / 30, 0.5),
    ]
    assert (events.start.config.optimizer.lr, events.start.config.training.max_steps) == (1e-3, 30)
    assert events.end.status == "ok"
    assert all(event.ts > 1.7e9 for event in events.of("train_step"))


def test_a_file_store_is_read_from_any_of_its_folders(store, import_events):
    meta = next(store.glob("*/*/meta.yaml"))
    for source in (store, meta.parent.parent, meta.parent, meta):
        events, imported = import_events(source)
        holds(events)
        assert imported.format == "mlflow"
        assert events.of("train_step")[0].extras["extra"] == 1.0


def test_bad_readings_are_counted_and_a_failed_run_is_said(tmp_path, import_events):
    (tmp_path / "metrics").mkdir()
    (tmp_path / "meta.yaml").write_text("run_id: abc\nrun_name: one\nstatus: 4\n")
    (tmp_path / "metrics" / "loss").write_text("1700000000000 2.0 1\nx\n1700000001000 1e400 y\n1700000002000 1.0 2\n")
    events, imported = import_events(tmp_path)
    assert (events.steps, events.losses) == ([1, 2], [2.0, 1.0])
    assert [skipped.line for skipped in imported.skipped] == [2, 3]
    assert any("the run failed" in note for note in imported.notes)
    assert events.end.status == "unknown"


def test_metrics_that_are_larger_than_a_source_may_be_are_refused_unread(tmp_path):
    (tmp_path / "metrics").mkdir()
    (tmp_path / "meta.yaml").write_text("run_id: abc\n")
    for name in ("loss", "lr"):
        with (tmp_path / "metrics" / name).open("wb") as file:
            file.truncate(300 << 20)  # sparse; neither is too large alone
    with pytest.raises(RecorderError, match="is larger than 512 MiB"):
        read_source(tmp_path)


@pytest.fixture
def database(tmp_path):
    """A database with the tables of mlflow.store.tracking.dbmodels.models, which needs SQLAlchemy to write them."""
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path)) as base, base:
        base.execute("CREATE TABLE experiments (experiment_id INTEGER PRIMARY KEY, name TEXT)")
        base.execute("CREATE TABLE runs (run_uuid TEXT, name TEXT, status TEXT, start_time INT, lifecycle_stage TEXT)")
        base.execute("CREATE TABLE metrics (key TEXT, value, timestamp INT, run_uuid TEXT, step INT, is_nan INT)")
        base.execute("CREATE TABLE params (key TEXT, value TEXT, run_uuid TEXT)")
        base.executemany(
            "INSERT INTO runs VALUES (?, ?, ?, ?, ?)",
            [
                ("b", "one", "FINISHED", 2, "active"),
                ("a", "older", "KILLED", 1, "active"),
                ("c", "x", "", 3, "deleted"),
            ],
        )
        for step in (10, 20, 30):
            rows = {"loss": 20 / step, "learning_rate": 1e-2 / step}
            rows |= {} if step == 20 else {"eval_loss": 19 / step, "eval_accuracy": 0.5}
            clock = 1_700_000_000_000 + step
            base.executemany(
                "INSERT INTO metrics VALUES (?, ?, ?, 'b', ?, 0)", [(k, v, clock, step) for k, v in rows.items()]
            )
        base.execute("INSERT INTO metrics VALUES ('loss', 0, 1700000000000, 'a', 1, 1)")
        base.executemany("INSERT INTO params VALUES (?, ?, 'b')", [("learning_rate", "0.001"), ("max_steps", "30")])
    return path


def test_a_database_is_read_without_a_trace_its_newest_run_shown(database, import_events):
    before = database.read_bytes()
    events, imported = import_events(database)
    holds(events)
    assert (imported.format, [run.name for run in imported.runs]) == ("mlflow", ["older", "one"])
    assert import_events(database, run="older")[0].losses == ["NaN"]
    assert (database.read_bytes(), [p.name for p in database.parent.iterdir()]) == (before, ["mlflow.db"])


def test_a_view_in_a_table_s_place_is_refused(database, import_events):
    with closing(sqlite3.connect(database)) as base, base:
        base.execute("ALTER TABLE metrics RENAME TO real")
        base.execute("CREATE VIEW metrics AS SELECT * FROM real")
    assert format_of(database) == "trackio"
    with pytest.raises(RecorderError, match="`metrics` is a view"):
        import_events(database, kind="mlflow")
