"""Shares, times left, bounds and exit codes that are shown, worked out by hand."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

from tables import every

from gradience.blocks.plots import histogram_lines
from gradience.cli import bar, output
from gradience.render.monitor import fed_rows


def test_the_share_of_padding_is_of_all_positions_and_of_the_supervised_of_all_tokens():
    data = {"watched": 2, "batches": 9, "rows": 8, "tokens": 300, "padding": 100, "supervised": 60}
    rows = dict(fed_rows(data))
    assert rows["Watched"] == "2 of 9 micro-batches, 8 rows"
    assert rows["Tokens"].endswith("and 25.0% of the batches is padding")
    assert rows["Supervised"] == "20.0% of the tokens; 0 rows without a supervised token"


def test_a_limit_at_the_end_of_the_bars_is_drawn_and_one_beyond_is_not():
    assert [histogram_lines([1, 1], 10, limit=limit, height=1)[0][-1] for limit in (20, 21)] == ["\u2502", "\u2588"]


@every(
    ("fail_on", "severity", "code"),
    [("warning", "info", 0), ("warning", "warning", 1), ("warning", "error", 1), (None, "critical", 0)],
)
def test_a_finding_at_the_severity_asked_for_fails(fail_on, severity, code):
    assert output.exit_code([SimpleNamespace(severity=severity)], fail_on) == code  # type: ignore[list-item]


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_with_the_time_left_by_the_rate_so_far(monkeypatch):
    now, screen = [0.0], Screen()
    monkeypatch.setattr(bar.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(bar.sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    draw = bar.on_terminal("base")
    assert draw is not None
    for now[0], done in ((0.5, 1), (1.99, 5)):
        draw(done, 100, "q_proj")
    assert screen.getvalue() == ""  # what ends within two seconds shows no bar
    draw(100, 100, "")
    assert screen.getvalue() == ""
    for now[0], done in ((2.5, 6), (12.0, 26)):
        draw(done, 100, "q_proj\x1b]0;title")
        assert screen.getvalue()
    shown = re.sub(r"\x1b\[[0-9;]*[mK]", "", screen.getvalue().rpartition("\r")[2])
    assert re.fullmatch(
        r"base \S+ +26/100 00:36 q_proj\\u001b]0;title *", shown.replace("\u2501", "-").replace("\u2578", "-")
    )
    draw(100, 100, "")
    assert screen.getvalue().endswith("\r\x1b[K")
    monkeypatch.setenv("TERM", "dumb")
    assert bar.on_terminal("base") is None
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(bar.sys, "stderr", io.StringIO())
    assert bar.on_terminal("base") is None
