"""trackio's database in its documented layout, read by trackio and without leaving a trace."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest

from gradience.errors import RecorderError

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


def test_every_run_is_imported_and_the_newest_is_shown(project, import_events):
    pytest.importorskip("trackio", reason="pip install trackio")
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


def test_rows_still_in_the_journal_are_read_too(project, tmp_path, import_events):
    pytest.importorskip("trackio", reason="pip install trackio")
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
