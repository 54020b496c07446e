"""Events that were lost are counted, once each, and what became of a log that vanished is said."""

from __future__ import annotations

import contextlib
import errno
import os
import warnings

import pytest
from tables import every

from gradience.errors import RecorderError
from gradience.telemetry import TelemetryReader, TelemetryWriter
from gradience.telemetry.logfile import LogFile, lock_file


@pytest.fixture
def log(tmp_path):
    return tmp_path / "run.jsonl"


@pytest.mark.parametrize(
    "write",
    [
        lambda writer: writer.metrics(1, kind="k", metrics={"x": object()}),
        lambda writer: writer.eval(1, split="s", metrics={"x": object()}),
        lambda writer: writer.alert(severity="info", code="c", message="m", context={"x": object()}),
        lambda writer: writer.run_start(meta={"x": object()}),
        lambda writer: writer.train_step(1, x=object()),
        lambda writer: writer.train_step(1, note="x" * 10, more=["y"] * 9_999 + ["z" * 200] * 1),
    ],
)
def test_an_event_that_cannot_be_written_is_counted_once(log, write):
    for on_error in ("warn", "raise"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with TelemetryWriter(log, on_error=on_error) as writer:
                for lost in (1, 2):
                    with contextlib.nullcontext() if on_error == "warn" else pytest.raises(RecorderError):
                        write(writer)
                    assert writer.lost == lost
        end = list(TelemetryReader(log))[-1]
        assert end.run_id == writer.run_id
        assert end.reason == "2 events could not be recorded"


@pytest.mark.parametrize(
    ("happens", "says", "lost"),
    [
        (lambda log: log.unlink(), "was removed while it was written, and 2 of its events are lost", 2),
        (lambda log: log.rename(log.with_suffix(".old")), "was moved away while it was written", 0),
        (lambda log: os.truncate(log, 0), "was cut while it was written, and 2 of its events are lost", 2),
    ],
    ids=["removed", "moved", "cut"],
)
def test_what_became_of_a_log_is_said_and_the_run_goes_on_in_a_new_one(log, happens, says, lost):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        writer = TelemetryWriter(log, fsync="always")
        writer.run_start()
        writer.train_step(1, loss=1.0)
        happens(log)
        writer.train_step(2, loss=0.5)
        assert [str(one.message).removeprefix(f"{log} ") for one in caught] == [says]
        assert writer.lost == lost
        writer.train_step(3, loss=0.25)
        writer.close()
    names = [type(event).__name__ for event in TelemetryReader(log)]
    assert names == ["RunStart", "TrainStep", "TrainStep"]


def test_where_warnings_are_errors_a_removed_log_is_begun_anew_and_a_held_one_is_written_beside(log, monkeypatch):
    said = []
    monkeypatch.setattr("gradience.telemetry.logfile.logger.warning", lambda text, *args: said.append(text % args))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with TelemetryWriter(log, fsync="always") as writer:
            writer.run_start()
            log.unlink()
            writer.train_step(1, loss=1.0)
            with TelemetryWriter(log) as second:
                second.train_step(1, loss=2.0)
    assert [type(event).__name__ for event in TelemetryReader(log)] == ["RunStart", "TrainStep", "RunEnd"]
    assert [type(event).__name__ for event in TelemetryReader(second.path)] == ["TrainStep", "RunEnd"]
    assert (writer.lost, second.lost) == (1, 0)
    assert [line.partition(str(log))[2] for line in said] == [
        " was removed while it was written, and 1 of its events are lost",
        f" is being written by another process; this run is recorded in {second.path}",
        ": 1 events could not be recorded",
    ]


def test_each_refusal_says_what_it_is_and_what_to_do(log, monkeypatch):
    def refused(make):
        with pytest.raises(RecorderError) as error:
            make()
        return error.value.message, error.value.advice

    folder = "choose a path in a folder you can write to"
    held = f"{log} is being written by another process"
    file = LogFile(log, sibling=None, fsync="auto")
    assert refused(lambda: LogFile(log, sibling=None, fsync="auto")) == (held, "wait until that run has ended")
    with pytest.warns(RuntimeWarning, match=f"^{held}; this run is recorded in {log.with_name('b.jsonl')}$"):
        beside = LogFile(log, sibling="b.jsonl", fsync="auto")
    with pytest.warns(RuntimeWarning, match=held):
        both = refused(lambda: LogFile(log, sibling="b.jsonl", fsync="auto"))
    assert both == (f"{log.with_name('b.jsonl')} is being written by another process", "choose another path")
    beside.close()
    file.close()
    closed = (f"the writer of {log} is closed", "open a new TelemetryWriter")
    assert refused(lambda: file.append(b"x", durable=False)) == closed
    names = {"a\0b": "embedded null byte", f"{log.name}/x": "Not a directory", ".": "Is a directory"}
    for name, why in names.items():
        path = log.parent / name
        said, advice = refused(lambda path=path: LogFile(path, sibling=None, fsync="auto"))
        kind = (
            f"cannot make the folder {path.parent}: File exists"
            if "/" in name
            else f"cannot open {path} for writing: {why}"
        )
        assert (said, advice) == (kind, folder)
    os.mkfifo(log.with_name("pipe"))
    pipe = refused(lambda: LogFile(log.with_name("pipe"), sibling=None, fsync="auto"))
    assert pipe == (f"{log.with_name('pipe')} is not a regular file: a pipe or device could hold training up", folder)

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    log.write_bytes(b"half")
    with monkeypatch.context() as patch:
        patch.setattr("gradience.telemetry.logfile.os.pread", fail)
        torn = refused(lambda: LogFile(log, sibling=None, fsync="auto"))
    assert torn == (f"cannot open {log} for writing: Input/output error", folder)
    file = LogFile(log, sibling=None, fsync="auto")  # it was not left locked
    file.append(b"x", durable=False)
    with monkeypatch.context() as patch:
        patch.setattr("gradience.telemetry.logfile.os.fstat", fail)
        assert refused(file.close) == (f"cannot close {log}: Input/output error", "check the disk")


@every("fault", [errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOLCK, errno.ENOSYS, errno.EBADF])
def test_a_lock_that_another_holds_is_no_error_and_a_file_system_without_locks_is(monkeypatch, fault):
    def refuse(_fd):
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr("gradience.telemetry.logfile._lock", refuse)
    if fault in {errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK}:
        assert not lock_file(0)
    else:
        with pytest.raises(OSError, match=os.strerror(fault)):
            lock_file(0)


def test_a_writer_without_what_knows_torch_says_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(TelemetryWriter, "watched_by", None)
    with TelemetryWriter(tmp_path / "run.jsonl") as log, pytest.raises(RecorderError, match="knows torch") as caught:
        log.watch(None, None)
    assert caught.value.advice == "from gradience import TelemetryWriter"


def test_events_that_vanished_and_those_refused_are_said_in_one_number(log):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        writer = TelemetryWriter(log, fsync="never")
        writer.run_start()
        writer.train_step(1, x=object())
        log.unlink()
        writer.close()
    assert [str(one.message) for one in caught][1:] == [
        f"{log} was removed while it was written, and 1 of its events are lost",
        f"gradience: {log}: 2 events could not be recorded",
    ]
