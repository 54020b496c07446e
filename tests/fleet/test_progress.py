"""The rate, the time left and the failures on stderr: drawn in place on a terminal, seldom written elsewhere."""

from __future__ import annotations

import io
import re

import pytest

from gradience.cli import tables as cli
from gradience.collect.fleet.audit import JobProgress


class Screen(io.StringIO):
    def isatty(self):
        return True


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


def test_a_terminal_is_drawn_in_place_with_rate_time_left_and_failures(monkeypatch, clock):
    text = told(monkeypatch, clock, Screen(), [(0.1, (1, 100, 0)), (10.0, (20, 100, 3)), (50.0, (100, 100, 3))])
    empty, drawn, last = text.split("\r\x1b[K")
    assert empty == ""
    shown = re.sub(r"\x1b\[[0-9;]*m", "", drawn).split()
    assert [shown[0], *shown[2:]] == ["fleet", "20/100", "00:42", "2.0", "a", "second,", "3", "failed"]
    assert last == "fleet: 100/100, 2.0 a second, 3 failed\n"


def test_a_file_gets_a_line_now_and_then_and_none_of_a_short_job(monkeypatch, clock):
    assert told(monkeypatch, clock, io.StringIO(), [(0.5, (1, 2, 0)), (1.9, (2, 2, 0))]) == ""
    clock[0] = 0.0
    text = told(
        monkeypatch, clock, io.StringIO(), [(5.0, (1, 9, 0)), (31.0, (3, 9, 0)), (40.0, (5, 9, 0)), (45.0, (9, 9, 1))]
    )
    assert [line.split(",")[0] for line in text.splitlines()] == ["fleet: 3/9", "fleet: 9/9"]
