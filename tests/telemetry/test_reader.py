from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from golden_logs import CASES

from gradience.errors import RecorderError, SchemaError
from gradience.schema import BadLine, RunEnd, RunStart, TrainStep
from gradience.telemetry import TelemetryReader, TelemetryWriter
from gradience.telemetry.reader import validate_log

START = b'{"schema":"gradience.vnext.telemetry/v1","ts":1,"run_id":"r","event":"run_start","step":null,"config":{}}'
ROW = b'{"schema":"gradience.vnext.telemetry/v1","ts":1,"run_id":"r","event":"train_step","step":1,"loss":0.5}'
END = b'{"schema":"gradience.vnext.telemetry/v1","ts":1,"run_id":"r","event":"run_end","step":null,"status":"ok"}'
MUTANTS = 10_000 if os.environ.get("GRADIENCE_SLOW") else 120


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


def read(path: Path) -> list[object]:
    return list(TelemetryReader(path).read())


@pytest.mark.parametrize(
    ("make", "said", "advice"),
    [
        (lambda path: None, "cannot read {}: No such file or directory", "give the run.jsonl that a run wrote"),
        (lambda path: path.touch(), "{} is empty: no event was ever written", "give the run.jsonl that a run wrote"),
        (lambda path: path.mkdir(), "{} is a folder, not a log", "give the file, such as {}/run.jsonl"),
    ],
    ids=["missing", "empty", "folder"],
)
def test_what_cannot_be_a_log_is_refused_with_advice(log: Path, make, said: str, advice: str) -> None:
    make(log)
    with pytest.raises(RecorderError) as error:
        TelemetryReader(log)
    assert (error.value.message, error.value.advice) == (said.format(log), advice.format(log))


def test_a_byte_order_mark_is_no_fault(log: Path) -> None:
    log.write_bytes(b"\xef\xbb\xbf" + START + b"\n" + ROW + b"\n")
    assert [type(item) for item in read(log)] == [RunStart, TrainStep]
    assert TelemetryReader(log).summarize().issues == []
    log.write_bytes(START + b"\n\xef\xbb\xbf" + ROW + b"\n")
    assert [type(item) for item in read(log)] == [RunStart, BadLine]  # but in the middle of a file


def test_windows_line_ends_are_no_fault(log: Path) -> None:
    log.write_bytes(b"\r\n".join([START, ROW, END, b""]))
    assert [type(item) for item in read(log)] == [RunStart, TrainStep, RunEnd]
    assert validate_log(log).valid


def test_bare_nan_is_read_and_noted_once(log: Path) -> None:
    log.write_bytes((ROW.replace(b"0.5", b"NaN") + b"\n") * 3 + ROW.replace(b"0.5", b"-Infinity") + b"\n")
    reader = TelemetryReader(log)
    assert [event.loss for event in reader] == ["NaN", "NaN", "NaN", "-Infinity"]
    assert reader.notes == ["4 lines hold a bare NaN or Infinity, which is not JSON; read anyway"]
    assert reader.issues == []
    assert reader.summarize().bare_tokens == 4
    log.write_bytes(ROW + b"\n")
    assert ([event.loss for event in reader], reader.notes) == ([0.5], [])  # a further pass has its own notes
    log.write_bytes(ROW.replace(b"0.5", b"NaN").replace(b'"step":1', b'"step":-1') + b"\n")
    faults = [(bad.line, bad.path) for bad in validate_log(log).issues]
    assert faults == [(1, "$.loss"), (1, "$.step")]  # what it holds is checked too


def test_a_log_cut_at_each_byte_keeps_all_whole_lines(log: Path) -> None:
    data = b"\n".join([START, ROW, END, b""])
    for cut in range(1, len(data) + 1):
        log.write_bytes(data[:cut])
        items = read(log)
        whole = data[:cut].count(b"\n")
        events = [item for item in items if not isinstance(item, BadLine)]
        complete = data[cut : cut + 1] == b"\n"  # only its newline is missing
        assert (len(events), len(items) - len(events)) == (
            whole + complete,
            int(not complete and not data[:cut].endswith(b"\n")),
        )
        assert all(item.torn for item in items if isinstance(item, BadLine))


def test_latest_config_and_eval_are_those_of_the_newest_run(log: Path) -> None:
    with TelemetryWriter(log, "a") as writer:
        writer.run_start()
        writer.eval(5, split="test", metrics={"accuracy": 0.9})
    with TelemetryWriter(log, "b") as writer:
        writer.run_start()
        writer.eval(1, split="test", metrics={"accuracy": 0.1, "f1": 0.2})
        writer.eval(9, split="test", metrics={"accuracy": 0.3})
        writer.run_start(resumed_from_step=4)
    reader = TelemetryReader(log)
    assert reader.latest_eval("test").metrics.extras == {"f1": 0.2}  # the one of step 9 is superseded
    assert reader.latest_eval("train") is None
    assert reader.latest_config() is not None


def test_thousands_of_mutated_logs_neither_crash_nor_hang(log: Path) -> None:
    data = (CASES / "good" / "released-0.1.0.jsonl").read_bytes()
    rng = random.Random(1)  # noqa: S311  # a test repeats itself
    bad = 0
    for _ in range(MUTANTS):
        mutant = bytearray(data)
        for _ in range(rng.randrange(1, 20)):
            at = rng.randrange(len(mutant))
            mutant[at : at + rng.choice([0, 1, 30])] = rng.choice([b"", b"\n", b'"', b"}", b"[", rng.randbytes(3)])
        log.write_bytes(mutant)
        try:
            bad += any(isinstance(item, BadLine) for item in read(log))
            TelemetryReader(log).summarize()
            validate_log(log)
        except SchemaError:
            assert b"telemetry/" in mutant
    assert bad > MUTANTS // 2
