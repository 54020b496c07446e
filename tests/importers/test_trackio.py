"""trackio's database in its documented layout; read without leaving a trace."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest

from gradience.errors import RecorderError
from gradience.importers.databases import read_trackio, tables_of

METRICS = "id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT, timestamp TEXT, run_name TEXT, step INTEGER, metrics TEXT"
CONFIGS = "id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT, run_name TEXT, config TEXT, created_at TEXT"


def write(path, runs, *, old=False):
    with closing(sqlite3.connect(path)) as base, base:
        base.execute(f"CREATE TABLE metrics ({METRICS.replace('run_id TEXT, ', '') if old else METRICS})")
        if not old:
            base.execute(f"CREATE TABLE configs ({CONFIGS})")
        for number, (name, rows) in enumerate(runs.items()):
            for step, values in rows:
                clock = f"2024-01-0{number + 1}T00:00:{step:02}+00:00"
                blob = json.dumps(values).encode()
                given = (clock, name, step, blob) if old else (f"id-{name}", clock, name, step, blob)
                columns = "timestamp, run_name, step, metrics" if old else "run_id, timestamp, run_name, step, metrics"
                base.execute(f"INSERT INTO metrics ({columns}) VALUES ({','.join('?' * len(given))})", given)  # noqa: S608
            if not old:
                config = json.dumps({"learning_rate": 1e-3, "max_steps": 3, "peft_config": {"default": {"r": 8}}})
                base.execute(
                    "INSERT INTO configs (run_id, run_name, config) VALUES (?, ?, ?)", (f"id-{name}", name, config)
                )
    return path


RUNS = {
    "one": [(s, {"train/loss": 2.0 / s}) for s in (1, 2)],
    "two": [(1, {"train/loss": "NaN", "train/grad_norm": 1.0}), (2, {"train/loss": 1.0}), (3, {"eval/loss": 0.9})],
}


def test_every_run_is_imported_and_the_newest_is_shown(tmp_path, import_events):
    events, imported = import_events(write(tmp_path / "demo.db", RUNS))
    assert [run.run_id for run in imported.runs] == ["id-one", "id-two"]
    assert events.losses == ["NaN", 1.0]
    assert events.of("train_step")[0].ts == 1704153601.0
    assert (events.of("eval")[0].metrics.loss, events.of("eval")[0].step) == (0.9, 3)
    config = events.start.config
    assert (config.optimizer.lr, config.training.max_steps, config.lora.r) == (1e-3, 3, 8)
    assert events.end.status == "ok"


def test_one_run_can_be_chosen_by_name_or_id(tmp_path, import_events):
    path = write(tmp_path / "demo.db", RUNS)
    assert import_events(path, run="one")[0].losses == import_events(path, run="id-one")[0].losses == [2.0, 1.0]


def test_an_older_file_tells_runs_by_name(tmp_path, import_events):
    events, imported = import_events(write(tmp_path / "demo.db", RUNS, old=True))
    assert [run.name for run in imported.runs] == ["one", "two"]
    assert events.losses == ["NaN", 1.0]


def test_reading_leaves_the_database_and_its_folder_as_they_were(tmp_path, import_events):
    path = write(tmp_path / "demo.db", RUNS)
    before = path.read_bytes()
    import_events(path)
    assert [p.name for p in tmp_path.iterdir()] == ["demo.db"]
    assert path.read_bytes() == before


def test_rows_still_in_the_journal_are_read_too(tmp_path, import_events):
    path = write(tmp_path / "demo.db", RUNS)
    with closing(sqlite3.connect(path)) as base:
        base.execute("PRAGMA journal_mode=WAL")
        base.execute(
            "INSERT INTO metrics (run_id, timestamp, run_name, step, metrics) VALUES (?,?,?,?,?)",
            ("id-two", "2024-01-02T01:00:00+00:00", "two", 4, '{"train/loss": 0.5}'),
        )
        base.commit()
        assert import_events(path)[0].losses == ["NaN", 1.0, 0.5]


def test_another_database_is_refused_by_name(tmp_path, import_events):
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as base, base:
        base.execute("CREATE TABLE things (id INTEGER)")
    with pytest.raises(RecorderError, match="no table `metrics`"):
        import_events(path)


def test_a_bad_row_is_counted(tmp_path, import_events):
    path = write(tmp_path / "demo.db", {"one": [(1, {"train/loss": 1.0}), (2, [1, 2])]})
    _, imported = import_events(path)
    assert [(bad.line, bad.reason) for bad in imported.skipped] == [(2, "its metrics are no JSON object")]


def test_the_optimizer_s_steps_count_where_trackio_has_a_counter_of_its_own(tmp_path, import_events):
    rows = [
        (0, {"train/loss": 2.0, "train/learning_rate": 1e-4, "train/global_step": 10}),
        (1, {"eval/loss": 1.9, "train/global_step": 10}),
        (2, {"train/loss": 1.5, "train/learning_rate": 5e-5, "train/global_step": 20}),
    ]
    events, _ = import_events(write(tmp_path / "demo.db", {"one": rows}))
    assert [(e.step, e.loss, e.lr) for e in events.of("train_step")] == [(10, 2.0, 1e-4), (20, 1.5, 5e-5)]
    assert [(e.step, e.metrics.loss) for e in events.of("eval")] == [(10, 1.9)]


def test_a_schema_that_sqlite_quotes_byte_for_byte_is_an_error_with_the_file(tmp_path):
    path = tmp_path / "t.db"
    with closing(sqlite3.connect(path)) as base:
        base.execute("CREATE TABLE metrics (name text)")
        base.commit()
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE", b"CREATE \xbdABLE"))
    with pytest.raises(RecorderError, match=r"t\.db: "):
        read_trackio(path)
    assert tables_of(path) == set()
