"""A log that vanished while it was written goes on with its opening, once, and the line that was written in vain."""

from __future__ import annotations

import os

import pytest

from gradience.telemetry import logfile
from gradience.telemetry.logfile import LogFile


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
