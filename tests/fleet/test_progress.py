"""The rate and the failures on stderr, seldom written where it is no terminal."""

from __future__ import annotations

import io

import pytest

from gradience.cli import tables as cli
from gradience.collect.fleet.audit import JobProgress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(cli.time, "monotonic", lambda: now[0])
    return now


def told(monkeypatch, clock, stream, moments):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", stream)
    tell = cli.rate_on_stderr("fleet")
    for seconds, tally in moments:
        clock[0] = seconds
        tell(JobProgress(*tally))
    return stream.getvalue()


def test_a_file_gets_a_line_now_and_then_and_none_of_a_short_job(monkeypatch, clock):
    assert told(monkeypatch, clock, io.StringIO(), [(0.5, (1, 2, 0)), (1.9, (2, 2, 0))]) == ""
    clock[0] = 0.0
    text = told(
        monkeypatch, clock, io.StringIO(), [(5.0, (1, 9, 0)), (31.0, (3, 9, 0)), (40.0, (5, 9, 0)), (45.0, (9, 9, 1))]
    )
    assert text.splitlines() == ["fleet: 3/9, 0.1 a second", "fleet: 9/9, 0.2 a second, 1 failed"]
