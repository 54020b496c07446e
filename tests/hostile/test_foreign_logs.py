"""Row 22, what other programs left: what is honest is read, at its size, and nothing is written beside it."""

from __future__ import annotations

import sqlite3

import pytest
from hostile.inputs import trainer_state

from gradience.errors import RecorderError
from gradience.importers import import_run


@pytest.mark.oracle("trackio")
@pytest.mark.parametrize(
    ("verb", "mode"), [("import t.db --out ../r.jsonl", "wal"), ("monitor t.db", "wal"), ("monitor t.db", "persist")]
)
def test_opening_a_database_writes_nothing_beside_it(run, tmp_path, verb, mode):
    live, there = tmp_path / "live", tmp_path / "there"
    live.mkdir()
    there.mkdir()
    db = sqlite3.connect(live / "t.db")
    db.execute(f"PRAGMA journal_mode = {mode}")
    db.execute("CREATE TABLE metrics (id INTEGER PRIMARY KEY, timestamp TEXT, run_name TEXT, step INTEGER, metrics)")
    for step in (1, 2, 3):
        db.execute("INSERT INTO metrics VALUES (NULL, '2025-01-01', 'r', ?, '{\"train/loss\": 1.0}')", (step,))
    db.commit()
    for path in live.iterdir():  # as a copy made while the run was going on
        if not path.name.endswith("-shm"):
            (there / path.name).write_bytes(path.read_bytes())
    db.close()
    before = {path.name: path.read_bytes() for path in there.iterdir()}
    told = run(*verb.split(), cwd=there)
    assert told.code == 0
    assert {path.name: path.read_bytes() for path in there.iterdir()} == before


def test_a_csv_takes_no_more_than_twice_its_size(run, tmp_path):
    """Its rows as Python objects would take 30 MB."""
    columns, rows = 60, 8000
    header = "step,loss" + "".join(f",c{n}" for n in range(columns - 2))
    (tmp_path / "t.csv").write_text(header + "\n" + "".join(f"{n}{',1' * (columns - 1)}\n" for n in range(rows)))
    told = run("import", "t.csv", "--out", "r.jsonl", limit_s=30)
    assert (told.code, told.err) == (0, "")
    assert told.memory_mb < 2 * (tmp_path / "t.csv").stat().st_size / 1e6 + 20
    assert len((tmp_path / "r.jsonl").read_bytes().splitlines()) == rows + 2


@pytest.mark.parametrize("row", ["1,1", "1"])
def test_a_source_of_too_many_rows_names_the_limit(tmp_path, monkeypatch, row):
    monkeypatch.setattr("gradience.importers.files.MAX_ROWS", 100)
    (tmp_path / "t.csv").write_text("step,loss\n" + f"{row}\n" * 101)
    with pytest.raises(RecorderError, match=r"more than 100 rows, the limit for a source"):
        import_run(tmp_path / "t.csv", tmp_path / "r.jsonl")
    assert not (tmp_path / "r.jsonl").exists()
    (tmp_path / "t.csv").write_text("step,loss\n1,1\n" + f"{row}\n" * 99)
    assert import_run(tmp_path / "t.csv", tmp_path / "r.jsonl").runs[0].last_step == 1


def test_a_trainer_state_of_one_long_line_is_read(run, tmp_path):
    history = [{"step": s, "loss": 1.0 / s} for s in range(1, 201)]
    path = trainer_state(tmp_path / "out" / "trainer_state.json", history, seen=["1.2345678901234567 " * 50_000] * 36)
    assert path.stat().st_size > 32 * 1024**2
    told = run("import", "out", "--out", "r.jsonl")
    assert (told.code, told.err) == (0, "")
    assert (tmp_path / "r.jsonl").read_text().count('"train_step"') == 200
