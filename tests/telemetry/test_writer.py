from __future__ import annotations

import enum
import json
import os
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import msgspec
import numpy as np
import pytest

from gradience.errors import RecorderError
from gradience.schema import (
    SCHEMA_ID,
    ConfigSnapshot,
    EvalMetrics,
    OptimizerSnapshot,
    RecommendationItem,
    RunEnd,
    RunStart,
    TrainStep,
)
from gradience.telemetry import TelemetryReader, TelemetryWriter
from gradience.telemetry.codec import MAX_LINE_BYTES


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


@pytest.fixture
def writer(log: Path):
    with TelemetryWriter(log, on_error="raise", clock=lambda: 1.5) as writer:
        yield writer
        writer.close()


def lines(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_bytes().split(b"\n")[:-1]]


# What a line says


def test_every_method_writes_the_event_it_names(log: Path, writer: TelemetryWriter) -> None:
    writer.run_start(ConfigSnapshot(optimizer=OptimizerSnapshot(lr=0.1)), meta={"framework": "none"})
    writer.train_step(1, loss=0.5, lr=[0.1, 0.2], grad_norm=2, epoch=0.5, kl=0.1)
    writer.eval(1, split="test", metrics={"loss": 0.5, "f1": 0.25})
    writer.eval(2, split="test", metrics=EvalMetrics(accuracy=1.0))
    writer.metrics(2, kind="other", metrics={"a": 1})
    writer.alert(severity="info", code="c", message="m", step=2, context={"x": None})
    writer.recommendation([RecommendationItem(severity="info", action="a", message="m")], step=2)
    writer.run_end(status="aborted", reason="because")
    head = {"schema": SCHEMA_ID, "ts": 1.5, "run_id": writer.run_id, "session": writer.session}
    bodies = [
        {"event": "run_start", "step": None, "config": {"optimizer": {"lr": 0.1}}, "meta": {"framework": "none"}},
        {"event": "train_step", "step": 1, "loss": 0.5, "lr": [0.1, 0.2], "grad_norm": 2, "epoch": 0.5, "kl": 0.1},
        {"event": "eval", "step": 1, "split": "test", "metrics": {"loss": 0.5, "f1": 0.25}},
        {"event": "eval", "step": 2, "split": "test", "metrics": {"accuracy": 1.0}},
        {"event": "metrics", "step": 2, "kind": "other", "metrics": {"a": 1}},
        {"event": "alert", "step": 2, "severity": "info", "code": "c", "message": "m", "context": {"x": None}},
        {
            "event": "recommendation",
            "step": 2,
            "recommendations": [{"severity": "info", "action": "a", "message": "m"}],
        },
        {"event": "run_end", "step": None, "status": "aborted", "reason": "because"},
    ]
    assert lines(log) == [head | {"seq": seq} | body for seq, body in enumerate(bodies)]


def test_arrays_integers_flags_enums_sets_and_paths_become_json(log, writer) -> None:
    class Kind(enum.Enum):
        A = "a"

    writer.train_step(
        np.int64(7),
        a=np.arange(3),
        b=np.int32(2),
        c=np.bool_(True),  # noqa: FBT003  # a value
        d=Kind.A,
        e={"y", "x"},
        f={1: (2,)},
        g=Path("x"),
    )
    row = lines(log)[0]
    assert row["step"] == 7
    assert [row[key] for key in "abcdefg"] == [[0, 1, 2], 2, True, "a", ["x", "y"], {"1": [2]}, "x"]


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda w: w.train_step(1, loss="low"), r"`loss`: expected a number, got str"),
        (lambda w: w.train_step(1, loss=True), r"`loss`: expected a number, got bool"),
        (lambda w: w.train_step(1, grad_norm=np.ones(2)), r"`grad_norm`: expected a number, got numpy.ndarray"),
        (lambda w: w.train_step(1, lr=[0.1, None]), r"`lr\[1\]`: expected a number, got NoneType"),
        (lambda w: w.train_step(1, loss=10**400), r"loss"),
        (lambda w: w.train_step(1.5), r"`step`: expected a whole number"),
        (lambda w: w.train_step("1"), r"`step`: expected a number, got str"),
        (lambda w: w.train_step(-1), r"\$\.step"),
        (lambda w: w.train_step(1, note=object()), r"`note`: expected a JSON value, got object"),
        (lambda w: w.train_step(1, a={"b": [0, 1j]}), r"`a\.b\[1\]`: expected a JSON value, got complex"),
        (lambda w: w.train_step(1, session="mine"), r"extras of TrainStep .* known key: session"),
        (lambda w: w.eval(1, split="t", metrics={"accuracy": "high"}),
         r"`metrics\.accuracy`: expected a number, .*, got 'high'"),
        (lambda w: w.eval(1, split=None, metrics={}), r"`split`: expected a text, got NoneType"),
        (lambda w: w.metrics(1, kind="k", metrics={"x": {"y": object}}), r"`metrics\.x\.y`: expected a JSON value"),
        (lambda w: w.alert(severity="fatal", code="c", message="m"), r"\$\.severity"),
        (lambda w: w.alert(severity="info", code="c", message="m", context={"x": 1j}),
         r"`context\.x`: expected a JSON"),
        (lambda w: w.run_start(meta={"when": warnings}), r"`meta\.when`: expected a JSON value, got module"),
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused_by_the_name_of_its_field_and_nothing_is_written(log, writer, call, named) -> None:
    with pytest.raises(RecorderError, match=named) as error:
        call(writer)
    assert error.value.advice
    assert log.read_bytes() == b""


def test_a_line_holds_64_kib_and_not_a_byte_more(log: Path) -> None:
    with TelemetryWriter(log, allow_text=True, max_str_len=10**6, on_error="raise", clock=lambda: 1.5) as writer:
        writer.train_step(0, pad="")
        room = MAX_LINE_BYTES - (len(log.read_bytes()) - 1)
        writer.train_step(1, pad="x" * room)
        with pytest.raises(RecorderError, match=r"event of 65537 bytes; a line may have 65536"):
            writer.train_step(2, pad="x" * (room + 1))
    reader = TelemetryReader(log)
    assert [event.step for event in reader] == [0, 1, None]
    assert reader.issues == []


def test_typed_events_are_numbered_in_the_session_unless_they_have_one(log, writer) -> None:
    mine = TrainStep(schema=SCHEMA_ID, ts=None, run_id=writer.run_id, step=1)
    writer.write(mine)
    for own in ({"session": "theirs", "seq": 9}, {"seq": 9}, {"session": "theirs"}):
        writer.write(msgspec.structs.replace(mine, **own))
    numbered = [(line.get("session"), line.get("seq")) for line in lines(log)]
    assert numbered == [(writer.session, 0), ("theirs", 9), (None, 9), ("theirs", None)]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"fsync": "sometimes"}, "'always', 'auto' or 'never'"),
        ({"on_error": "ignore"}, "'warn' or 'raise', not 'ignore'"),
    ],
)
def test_an_option_out_of_its_range_is_a_value_error(log: Path, wrong, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TelemetryWriter(log, **wrong)
    assert not log.exists()


def test_an_event_of_another_run_is_refused_and_the_line_after_it_is_not(log) -> None:
    mine = TrainStep(schema=SCHEMA_ID, ts=None, run_id="mine", step=1)
    with TelemetryWriter(log, "mine", on_error="raise") as writer:
        with pytest.raises(RecorderError, match="`run_id`: expected 'mine', the run of this log, got 'theirs'"):
            writer.write(msgspec.structs.replace(mine, run_id="theirs"))
        writer.write(mine)
        assert writer.lost == 1
    assert [line["run_id"] for line in lines(log)] == ["mine"] * 2


# The file


def test_a_new_log_is_private_and_its_folder_is_made(tmp_path: Path) -> None:
    log = tmp_path / "a" / "b" / "run.jsonl"
    TelemetryWriter(log).close()
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_torn_tail_is_closed_before_anything_is_added(log: Path) -> None:
    log.write_bytes(b'{"schema": "grad')
    with TelemetryWriter(log):
        pass
    first, second, _ = log.read_bytes().split(b"\n")
    assert first == b'{"schema": "grad'
    assert json.loads(second)["event"] == "run_end"
    for held in (b"x", b"\n", b"x\n", b"", b"\nx"):
        log.write_bytes(held)
        with TelemetryWriter(log):
            pass
        ended = held if held[-1:] in {b"", b"\n"} else held + b"\n"
        assert log.read_bytes()[: len(ended) + 9] == ended + b'{"event":'


def test_a_line_is_on_the_disk_when_the_mode_says_so(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)

    def syncs(mode: str) -> list[int]:
        counts = []
        with TelemetryWriter(log, fsync=mode) as writer:
            writer.run_start()
            for call in (
                lambda: writer.train_step(0, loss=1.0, lr=0.1, grad_norm=1.0, epoch=0.0),
                lambda: writer.train_step(1),
                lambda: writer.recommendation([]),
                lambda: writer.eval(1, split="t", metrics={}),
                lambda: writer.metrics(1, kind="k", metrics={}),
                lambda: writer.alert(severity="info", code="c", message="m"),
                writer.run_end,
            ):
                synced.clear()
                call()
                counts.append(len(synced))
        return counts

    assert syncs("always") == [1] * 7
    assert syncs("auto") == [0, 0, 0, 1, 0, 1, 1]
    assert syncs("never") == [0] * 7


def test_a_line_written_in_part_is_ended_before_the_next(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.write, []

    def short(fd: int, data: bytes) -> int:
        calls.append(data)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(fd, data[:10]) if len(calls) == 1 else real(fd, data)

    writer = TelemetryWriter(log, on_error="raise")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short)
        with pytest.raises(RecorderError):
            writer.train_step(1)
        writer.train_step(2)
    writer.close()
    assert [line[:9] for line in log.read_bytes().split(b"\n")] == [b'{"event":', b'{"event":', b""]
    assert [event.step for event in TelemetryReader(log)] == [2]


def test_a_short_write_is_completed(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    with TelemetryWriter(log) as writer, monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: real(fd, data[:7]))
        writer.train_step(1)
    assert log.read_bytes().count(b"\n") == 2  # and no blank line between the two
    assert [event.step for event in TelemetryReader(log)] == [1, None]


# What it does where it cannot write


def said(caught) -> list[str]:
    return [str(warning.message) for warning in caught]


def test_an_array_whose_data_were_given_away_costs_its_event_only(log: Path) -> None:
    import jax.numpy as jnp

    gone = jnp.float32(1.0) + 0
    gone.delete()
    with pytest.warns(RuntimeWarning, match="gradience") as caught, TelemetryWriter(log) as writer:  # noqa: PT031  # several lines warn
        writer.train_step(1, loss=gone)
        writer.train_step(2, loss=jnp.float32(0.5), lr=jnp.array([0.5]), n=jnp.arange(2))
    assert "`loss`: expected a number, got jax" in said(caught)[0]
    row, _ = lines(log)
    assert (row["step"], row["loss"], row["lr"], row["n"]) == (2, 0.5, [0.5], [0, 1])


# One writer


def test_a_second_writer_of_a_log_writes_beside_it_and_warns(log: Path) -> None:
    with TelemetryWriter(log) as first:
        with pytest.warns(RuntimeWarning, match="is being written by another process") as caught:
            second = TelemetryWriter(log)
        assert caught[0].filename == __file__
        with second:
            second.train_step(1)
        first.train_step(2)
    assert second.path == log.with_name(f"run.{second.session}.jsonl")
    assert [line["step"] for line in lines(second.path)] == [1, None]
    assert [line["step"] for line in lines(log)] == [2, None]


def test_threads_share_a_writer_and_seq_follows_the_file(log: Path) -> None:
    with TelemetryWriter(log, fsync="never") as writer:
        threads = [
            threading.Thread(target=lambda k=k: [writer.train_step(i, thread=k) for i in range(200)]) for k in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    written = lines(log)
    assert [line["seq"] for line in written] == list(range(1201))
    assert all([line["step"] for line in written if line.get("thread") == k] == list(range(200)) for k in range(6))


FORK = """
import os, sys
from gradience.errors import RecorderError
from gradience.telemetry import TelemetryWriter
log = sys.argv[1]
with TelemetryWriter(log, "r", on_error="raise") as writer:
    writer.run_start()
    writer._guard.acquire()  # as if another thread were writing at the moment of the fork
    pid = os.fork()
    if pid == 0:
        try:
            writer.train_step(1)
        except RecorderError as error:
            print(error.message, "|", error.advice, "|", os.getppid(), flush=True)
        sys.exit(3)  # unwinds through the with statement of the copy
    writer._guard.release()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    try:
        TelemetryWriter(log, siblings=False)
    except RecorderError as error:
        print(error.message, flush=True)
    writer.train_step(2)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_neither_writes_into_nor_closes_nor_unlocks_its_parents_run(log: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(log)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stderr == ""
    refused, locked = done.stdout.splitlines()
    advice = "open a TelemetryWriter with a path of its own in the child process"
    assert re.fullmatch(rf"{log} belongs to process (\d+), of which this is a fork \| {advice} \| \1", refused)
    assert locked.endswith("is being written by another process")
    assert [(line["event"], line["step"]) for line in lines(log)] == [
        ("run_start", None),
        ("train_step", 2),
        ("run_end", None),
    ]


# How a run ends


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ValueError("the prompt was: secret"), "error", "ValueError"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
        (SystemExit(1), "error", "SystemExit"),
        (SystemExit(0), "ok", "SystemExit"),
        (SystemExit(), "ok", "SystemExit"),
    ],
)
def test_an_exception_ends_the_run_with_its_type_alone(log, error, status, reason) -> None:
    with pytest.raises(type(error)), TelemetryWriter(log):
        raise error
    assert (lines(log)[-1]["status"], lines(log)[-1]["reason"]) == (status, reason)


def test_events_of_a_log_can_be_copied_to_another(log: Path, tmp_path: Path) -> None:
    with TelemetryWriter(log, "r") as writer:
        writer.run_start(ConfigSnapshot(model_name="m"))
        writer.train_step(1, loss=0.5, kl=0.1)
    copy = tmp_path / "copy.jsonl"
    with TelemetryWriter(copy, "r") as writer:
        for event in TelemetryReader(log):
            writer.write(event)
        writer.close()
    assert list(TelemetryReader(copy)) == list(TelemetryReader(log))
    kinds = (RunStart, TrainStep, RunEnd)
    assert [isinstance(*pair) for pair in zip(TelemetryReader(copy), kinds, strict=True)] == [True] * 3


# Guards


def test_rows_are_synced_after_more_than_five_seconds_and_not_after_five(log, monkeypatch) -> None:
    synced: list[int] = []
    now = [100.0]
    monkeypatch.setattr(os, "fsync", synced.append)
    monkeypatch.setattr("gradience.telemetry.logfile.time.monotonic", lambda: now[0])
    writer = TelemetryWriter(log)
    for seconds, expected in ((0.0, 1), (5.0, 1), (5.001, 2), (10.001, 2), (10.002, 3)):
        now[0] = 100.0 + seconds
        writer.train_step(1)
        assert len(synced) == expected, seconds
    writer.close()
    assert len(synced) == 3  # nothing was written since
    writer = TelemetryWriter(log)
    for step in (1, 2):
        writer.train_step(step)
    writer.close()
    assert len(synced) == 5
