"""Rows 16 and 22, what other programs left: a lie in it costs little, and what is honest is read."""

from __future__ import annotations

import json
import sqlite3
import struct
from contextlib import closing

import pytest
from hostile.inputs import trainer_state
from tables import SLOW, few, grid

from gradience.errors import RecorderError
from gradience.importers import import_run

LIMIT = 5


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor(dims, dtype=1, *, content=None, values=()):
    """Return a TensorProto: its dtype, the shape it claims, and what it holds."""
    shape = b"".join(field(2, b"\x08" + varint(d & (2**64 - 1))) for d in dims)
    held = b"" if content is None else field(4, content)
    floats = field(5, b"".join(struct.pack("<f", v) for v in values)) if values else b""
    return b"\x08" + varint(dtype) + field(2, shape) + held + floats


def event(step, tag, proto, plugin=b"scalars"):
    meta = field(9, field(1, field(1, plugin)))
    value = field(1, tag.encode()) + meta + field(8, proto)
    return b"\x09" + struct.pack("<d", 1.7e9 + step) + b"\x10" + varint(step) + field(5, field(1, value))


def simple(step, tag, number):
    value = field(1, tag.encode()) + b"\x15" + struct.pack("<f", number)
    return b"\x09" + struct.pack("<d", 1.7e9 + step) + b"\x10" + varint(step) + field(5, field(1, value))


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def event_file(path, *events):
    head = b"\x09" + struct.pack("<d", 1.7e9) + field(3, b"brain.Event:2")
    data = b""
    for record in (head, *events):
        length = struct.pack("<Q", len(record))
        data += length + struct.pack("<I", crc32c(length)) + record + struct.pack("<I", crc32c(record))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


TENSORS = {
    "a shape of 10^12": tensor([10**6, 10**6], values=[1.0]),
    "a shape of 10^9": tensor([10**9], values=[1.0]),
    "a shape of 10^9 with content": tensor([10**9], content=struct.pack("<f", 1.0)),
    "less content than the shape": tensor([3], content=struct.pack("<f", 1.0)),
    "content of half a number": tensor([1], content=b"\0\0"),
    "a negative axis": tensor([-1], values=[1.0]),
    "axes of 2^62": tensor([2**62, 4], values=[1.0]),
    "a hundred axes": tensor([1] * 100, values=[1.0]),
    "a dtype of no name": tensor([], dtype=99, values=[1.0]),
    "text for a scalar": tensor([], dtype=7) + field(8, b"words"),
    "no value": tensor([]),
    "a scalar beside nothing": b"",
}


@pytest.mark.parametrize("case", TENSORS)
def test_a_tensor_that_lies_about_its_shape_is_left_out_or_one_line_of_error(run, tmp_path, case):
    events = [simple(step, "train/loss", 1.0 / step) for step in (1, 2, 3)]
    event_file(tmp_path / "events.out.tfevents.1.host", *events, event(4, "eval/loss", TENSORS[case]))
    told = run("import", "events.out.tfevents.1.host", "--out", "r.jsonl", limit_s=LIMIT, limit_mb=3000)
    assert told.code in {0, 2}
    assert len(told.errors) == (told.code == 2)
    assert told.memory_mb < 300


def database(path, statements=(), rows=3, *, metrics="'{\"train/loss\": 1.0}'"):
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(
            "CREATE TABLE metrics (id INTEGER PRIMARY KEY, timestamp TEXT, run_name TEXT, step INTEGER, metrics)"
        )
        for step in range(rows):
            db.execute(f"INSERT INTO metrics VALUES (NULL, '2025-01-01T00:00:0{step}', 'r', {step}, {metrics})")  # noqa: S608
        for statement in statements:
            db.execute(statement)
    return path


COUNT = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) "
LOOK = "'2025-01-01' AS timestamp, 'r' AS run_name, n AS step, '{\"loss\": 1.0}' AS metrics FROM c"
VIEWS = {
    "a view that never ends": ["DROP TABLE metrics", f"CREATE VIEW metrics AS {COUNT}SELECT n AS id, {LOOK}"],
    "a view that never yields": [
        "DROP TABLE metrics",
        f"CREATE VIEW metrics AS {COUNT}SELECT n AS id, {LOOK} WHERE n < 0",
    ],
    "a join without end": [
        "CREATE TABLE configs (id INTEGER, run_name TEXT, config)",
        *["INSERT INTO configs SELECT id, run_name, metrics FROM metrics"] * 12,
        "ALTER TABLE metrics RENAME TO m",
        "CREATE VIEW metrics AS SELECT m.* FROM m, " + ", ".join(f"configs c{n}" for n in range(12)),  # noqa: S608  # a lie
    ],
    "configs that never end": [
        f"CREATE VIEW configs AS {COUNT}SELECT n AS id, 'r' AS run_name, '{{}}' AS config FROM c"  # noqa: S608  # a lie
    ],
    "a blob of 900 MB that is not there": [
        "ALTER TABLE metrics RENAME TO m",
        "CREATE VIEW metrics AS SELECT id, timestamp, run_name, step, zeroblob(900000000) AS metrics FROM m",
    ],
    "a text of 900 MB that is not there": [
        "ALTER TABLE metrics RENAME TO m",
        "CREATE VIEW metrics AS SELECT id, timestamp, printf('%900000000s', 'r') AS run_name, step, metrics FROM m",
    ],
    "a computed column": [
        "ALTER TABLE metrics RENAME TO m",
        "CREATE TABLE metrics (id, timestamp, run_name, step, metrics AS (zeroblob(900000000)))",
        "INSERT INTO metrics SELECT id, timestamp, run_name, step FROM m",
    ],
}


@pytest.mark.parametrize("case", VIEWS if SLOW else [*VIEWS][:-1:2])  # the last takes seconds
def test_a_database_that_computes_its_rows_is_refused_soon(run, tmp_path, case):
    pytest.importorskip("trackio", reason="pip install trackio")
    database(tmp_path / "t.db", VIEWS[case])
    told = run("import", "t.db", "--out", "r.jsonl", limit_s=LIMIT, limit_mb=3000)
    assert told.code in {0, 2}
    assert len(told.errors) == (told.code == 2)
    assert told.memory_mb < 300


@grid(each=4, verb=["import t.db --out ../r.jsonl", "monitor t.db"], mode=["wal", "delete", "truncate", "persist"])
def test_opening_a_database_writes_nothing_beside_it(run, tmp_path, verb, mode):
    pytest.importorskip("trackio", reason="pip install trackio")
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


def test_a_database_in_a_folder_that_cannot_be_written_is_read(run, tmp_path):
    pytest.importorskip("trackio", reason="pip install trackio")
    there = tmp_path / "there"
    there.mkdir()
    database(there / "t.db")
    there.chmod(0o500)
    try:
        assert run("import", "there/t.db", "--out", "r.jsonl").code == 0
    finally:
        there.chmod(0o700)


TABLES = [(60, 8000, 20), *([(2, 50_000, 25)] if SLOW else [])]


@pytest.mark.parametrize(("columns", "rows", "more_mb"), TABLES)
def test_a_csv_takes_no_more_than_twice_its_size(run, tmp_path, columns, rows, more_mb):
    """Its rows as Python objects would take 30 MB and 25 MB."""
    header = "step,loss" + "".join(f",c{n}" for n in range(columns - 2))
    cells = ",1" * (columns - 1)
    (tmp_path / "t.csv").write_text(header + "\n" + "".join(f"{n}{cells}\n" for n in range(rows)))
    size = (tmp_path / "t.csv").stat().st_size / 1e6
    told = run("import", "t.csv", "--out", "r.jsonl", limit_s=30)
    assert (told.code, told.err) == (0, "")
    assert told.memory_mb < 2 * size + more_mb
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


@pytest.mark.parametrize("columns", [100, 400, 2000])
def test_a_header_of_many_columns_is_read(run, tmp_path, columns):
    names = [f"train/metrics/a_rather_long_name_of_a_metric_{n}" for n in range(columns)]
    rows = ["step,loss," + ",".join(names), *(f"{s},{1 / s}," + ",".join("1" * columns) for s in (1, 2, 3))]
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    told = run("import", "t.csv", "--out", "r.jsonl")
    assert (told.code, told.err) == (0, "")


@pytest.mark.parametrize("source", few(["out", "out/trainer_state.json", "log.json"], each=2))
def test_a_trainer_state_of_one_long_line_is_read(run, tmp_path, source):
    history = [{"step": s, "loss": 1.0 / s} for s in range(1, 201)]
    path = trainer_state(tmp_path / "out" / "trainer_state.json", history, seen=["1.2345678901234567 " * 50_000] * 36)
    assert path.stat().st_size > 32 * 1024**2
    (tmp_path / "log.json").hardlink_to(path)
    told = run("import", source, "--out", "r.jsonl")
    assert (told.code, told.err) == (0, "")
    assert (tmp_path / "r.jsonl").read_text().count('"train_step"') == 200


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "step,loss\n" + "1,1," + "x" * 50_000 + "\n"),
        ("t.csv", "step," + "l" * 50_000 + "\n1,1\n"),
        ("t.jsonl", json.dumps({"step": 1, "l" * 50_000: 1}) + "\n"),
        ("t.json", json.dumps([{"s" * 50_000: 1}])),
    ],
    ids=["a long cell", "a long column", "a long key", "a long key in a list"],
)
def test_a_line_of_error_has_a_length_that_fits_a_screen(run, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    told = run("import", name, "--out", "r.jsonl")
    assert len(told.errors) == (told.code == 2)
    assert len(told.err) < 1000


@pytest.mark.parametrize(
    "argv",
    [
        ["check", "--" + "x" * 50_000],
        ["x" * 50_000],
        ["rules", "R" * 50_000],
        ["monitor", "r" * 50_000],
        ["merge", "a", "b", "--weights", "1," * 20_000 + "x", "--out", "o"],
        ["import", "t.csv", "--map", "x" * 50_000],
    ],
    ids=["an option", "a command", "a rule", "a path", "weights", "a map"],
)
def test_a_line_of_error_about_the_command_line_fits_a_screen(run, tmp_path, argv):
    (tmp_path / "t.csv").write_text("step,loss\n1,1\n")
    told = run(*argv)
    assert told.code == 2
    assert len(told.errors) == 1
    assert len(told.err) < 1000
