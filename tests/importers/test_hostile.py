"""Whatever a source holds: a valid log, or one line of error and exit code 2. Never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from tables import SLOW

from gradience.cli.main import main
from gradience.telemetry.reader import validate_log

WORDS = "step loss learning_rate lr grad_norm epoch eval_loss eval_runtime eval_n total_flos train_loss train_runtime "
WORDS += (
    "current_steps total_steps global_step/max_steps ts event extras schema run_id seq session log_history eval_a_loss"
)
KEYS = st.sampled_from([*WORDS.split(), "", "\ud800", "x" * 300, "hub_token"])
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.integers(0, 50),
    st.floats(),
    st.sampled_from(["NaN", "1/10", "12", "1e400", "\ud800", "a" * 300, "/home/me/x", "hf_" + "a" * 34, "2024-01-01"]),
)
VALUES = st.one_of(LEAVES, st.lists(LEAVES, max_size=3), st.dictionaries(KEYS, LEAVES, max_size=3))
ROWS = st.lists(st.one_of(st.dictionaries(KEYS, VALUES, max_size=6), LEAVES), max_size=8)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def attempt(place):
    """A function that imports a source, and returns the exit code; everything it promises is checked."""

    def run(source, *options):
        out = place / "out.jsonl"
        out.unlink(missing_ok=True)
        said, failed = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(failed):
            code = main(["import", str(source), "--out", str(out), *options])
        if code == 0:
            report = validate_log(out)
            assert report.valid, (report.issues, source.read_bytes()[:2000])
            assert b"hf_a" not in out.read_bytes()
        else:
            assert code == 2
            assert not out.exists()
            assert said.getvalue() == ""
            assert failed.getvalue().startswith("gradience: ")
            assert failed.getvalue().count("\n") == 1
        assert [p.name for p in place.iterdir() if p.name.startswith(".import-")] == []
        return code

    return run


def dump(value):
    return json.dumps(value).encode()  # with NaN as the bare token, and half pairs as escapes


@given(rows=ROWS)
def test_any_rows(place, attempt, rows):
    path = place / "log.jsonl"
    path.write_bytes(b"\n".join(map(dump, rows)))
    attempt(path)
    for kind in ("table", "llama-factory", "ms-swift"):
        attempt(path, "--format", kind)
    path.write_bytes(dump({"log_history": rows}))
    attempt(path)


CELLS = st.one_of(LEAVES.map(str), st.sampled_from(["", '"', "1", "2", "0.5", "nan", "a\nb", "\0", ";"]))


@given(
    rows=st.lists(st.lists(CELLS, max_size=5), max_size=6), head=st.sampled_from(["step,loss", "step;loss;x", "a,b"])
)
def test_any_csv(place, attempt, rows, head):
    path = place / "log.csv"
    text = "\n".join([head, *(",".join(row) for row in rows)])
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    attempt(path)
    attempt(path, "--map", "loss=loss,step=step")


@given(data=st.data())
def test_any_damage_to_a_file(place, attempt, sound, data):
    name = data.draw(st.sampled_from(sorted(sound)))
    content = bytearray(sound[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    folder = place / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / name).write_bytes(content)
    attempt(folder / name)
    attempt(folder)


@pytest.fixture(scope="module")
def sound(place):
    """Whole files of every format that needs no package."""
    rows = [{"step": s, "loss": 1 / s, "learning_rate": 1e-4, "epoch": s / 9} for s in range(1, 10)]
    state = {"global_step": 9, "max_steps": 9, "log_history": rows}
    lines = [{"current_steps": r["step"], "total_steps": 9, "loss": r["loss"]} for r in rows]
    base = place / "sound.db"
    with closing(sqlite3.connect(base)) as db, db:
        db.execute("CREATE TABLE metrics (id INTEGER PRIMARY KEY, timestamp, run_name, step, metrics, run_id)")
        for row in rows:
            db.execute("INSERT INTO metrics VALUES (NULL,'','r',?,?,'i')", (row["step"], json.dumps(row)))
    return {
        "trainer_state.json": json.dumps(state, indent=2).encode(),
        "trainer_log.jsonl": b"\n".join(map(dump, lines)),
        "metrics.csv": b"step,loss\n" + b"".join(b"%d,%f\n" % (r["step"], r["loss"]) for r in rows),
        "history.json": dump(rows),
        "adapter_config.json": dump({"peft_type": "LORA", "r": 8}),
        "demo.db": base.read_bytes(),
        "run-a.wandb": (Path(__file__).parent / "golden" / "offline.wandb").read_bytes(),
        "log.txt": b"".join(b"Step %d | loss:%f lr:0.1 \n" % (r["step"], r["loss"]) for r in rows),
        "slurm.out": b"".join(b" iteration %d/ 9 | lm loss: %f |\n" % (r["step"], r["loss"]) for r in rows),
        "training_statistics.json": dump({"training": {"combined": {"loss": [1, 2]}}, "validation": {"out": {}}}),
    }


STARTS_TRACKIO = (b"SQLite", b"step,loss\n1", b"[1]")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 5000,
        b"{}",
        b"[1]",
        b"{" * 100_000,
        b"[" * 100_000,
        b'{"log_history": []}',
        b"step,loss\n",
        b"step,loss\n1,1\n".decode().encode("utf-16"),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        b"SQLite format 3\0" + b"\0" * 100,
        b"PK\3\4 a zip",
        b"caf\xe9,step,loss\n1,2,3\n",
        b'{"schema": "gradience.vnext.telemetry/v1", "event": "run_end"}\n',
    ],
    ids=repr,
)
def test_what_is_no_run_is_one_line(place, attempt, content):
    path = place / "thing"
    path.write_bytes(content)
    assert attempt(path) == 2
    trackio = ["trackio"] if content.startswith(STARTS_TRACKIO) or SLOW else []  # a second to import
    for kind in ("trainer-state", "llama-factory", "ms-swift", "table", "mlflow", "text", "ludwig", "wandb", *trackio):
        attempt(path, "--format", kind)


def test_what_is_no_file_is_one_line(place, attempt):
    (place / "empty").mkdir(exist_ok=True)
    os.mkfifo(place / "pipe")
    for source in (place / "empty", place / "pipe", place / "missing", place / ("n" * 300)):
        assert attempt(source) == 2
    (place / "pipe").unlink()


def test_a_row_too_long_for_a_line_is_counted(place, attempt):
    path = place / "long.jsonl"
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5, **{f"k{i}": "y" * 200 for i in range(500)}}]
    path.write_bytes(b"\n".join(map(dump, rows)))
    assert attempt(path) == 0
    lines = [json.loads(line) for line in (place / "out.jsonl").read_text().splitlines()]
    assert [line.get("step") for line in lines if line["event"] == "train_step"] == [1]
