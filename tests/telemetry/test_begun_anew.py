"""A log that vanished while it was written goes on with its opening, once, and the line that was written in vain."""

from __future__ import annotations

import os

import pytest

from gradience.telemetry import logfile
from gradience.telemetry.logfile import LogFile


@pytest.mark.parametrize(
    ("left", "held"),
    [(0, b"opening\nline\n"), (3, b"bef\nopening\nline\n"), (7, b"before\nopening\nline\n")],
)
def test_a_line_that_was_written_behind_a_cut_follows_the_opening_and_is_there_once(tmp_path, left, held):
    path = tmp_path / "run.jsonl"
    log = LogFile(path, sibling=None, fsync="never")
    log.append(b"before", durable=False)
    log.append(b"another", durable=False)
    log.opening = b"opening"
    os.truncate(path, left)
    with pytest.warns(RuntimeWarning, match="was cut while it was written, and 2 of its events are lost"):
        log.append(b"line", durable=True)
    assert path.read_bytes() == held
    log.append(b"after", durable=True)  # and no warning
    log.close()
    assert path.read_bytes() == held + b"after\n"


def test_a_line_that_was_cut_off_with_the_others_is_written_again(tmp_path, monkeypatch):
    path = tmp_path / "run.jsonl"
    log = LogFile(path, sibling=None, fsync="always")
    log.opening = b"opening"
    monkeypatch.setattr(logfile, "_fsync", lambda _: os.truncate(path, 0))  # behind the write
    with pytest.warns(RuntimeWarning, match="was cut"):
        log.append(b"line", durable=True)
    monkeypatch.undo()
    assert path.read_bytes() == b"opening\nline\n"
    log.close()
