"""What is printed from other people's files is harmless, stands under its title, fits, and is counted where cut."""

from __future__ import annotations

import doctest
import io
import math
import re
import unicodedata
from operator import itemgetter
from types import SimpleNamespace

from hypothesis import given, strategies as st
from msgspec.structs import replace
from tables import every

from gradience import blocks
from gradience.blocks import clean, count, listed, markdown, number, percent, skipped, table, text
from gradience.blocks.plots import curve_lines, histogram_lines
from gradience.blocks.text import printed, shortened
from gradience.commands import bar, output
from gradience.schema.document import NotRun
from gradience.verbs.check import view as check
from gradience.verbs.monitor.view import fed_rows

CELLS = st.text("abc", min_size=1, max_size=9)
POINTS = st.lists(st.tuples(st.floats(0, 1e9), st.floats()), max_size=80).map(sorted)


@every("module", [blocks, check, markdown, text], ids=lambda module: module.__name__)
def test_the_examples_in_the_module_hold(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


@given(st.text())
def test_clean_text_holds_no_control_and_no_line_break(text):
    assert all(unicodedata.category(ch) not in {"Cc", "Cf", "Cs", "Zl", "Zp"} for ch in clean(text))


@every(
    ("dirty", "shown"),
    [
        *((same, same) for same in ("model-v2", "größe", "模型", "a b", "org/name", "[bold]x[/bold]")),
        *(("\x1b[2Jx", "x"), ("a\x1b]0;title\x07b", "ab"), ("a\u202eb", "ab"), ("a\r\nb", "a b"), ("\x9b1mx", "1mx")),
    ],
)
def test_clean_takes_escape_sequences_out_whole_and_leaves_the_rest(dirty, shown):
    assert clean(dirty) == shown


@every(("value", "shown"), [(0, "0"), (999, "999"), (1000, "1.0K"), (294_912, "294.9K"), (2_000_000_000, "2.0B")])
def test_counts_are_short_and_missing_numbers_have_a_name(value, shown):
    assert count(value) == shown
    assert (number(None), number("NaN"), percent(None), percent(0.184)) == ("-", "NaN", "-", "18.4%")


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6), st.integers(0, 4), st.integers(1, 3))
def test_cells_stand_under_the_titles_of_their_columns(rows, indent, gap):
    columns = (("number", ">9", itemgetter(0)), ("name", "<9", itemgetter(1)))
    first, *lines = printed([replace(table(columns, rows, indent=indent), gap=gap)])
    end, start = first.index("number") + len("number"), first.index("name")
    for line, (cell, name) in zip(lines, rows, strict=True):
        assert (line[:end].strip(), line[end - 1]) == (cell, cell[-1])
        assert line[start:].rstrip() == name


@given(st.lists(CELLS, max_size=9), st.integers(0, 9))
def test_a_list_that_is_cut_counts_exactly_what_is_left_out(items, most):
    lines = list(shortened(items, most))
    if len(items) <= most:
        assert lines == items
    else:
        assert lines[:-1] == items[:most]
        assert f"and {len(items) - most} more (" in lines[-1]
    assert list(shortened(items, None)) == items
    assert (f" and {len(items) - most} more" in listed(items, most)) == (len(items) > most)


def test_skipped_checks_are_one_line_that_tells_missing_input_from_what_the_user_left_out():
    reasons = ("no lr", "not selected", "ignored on request", "no base")
    items = [NotRun(id=f"R{i}", reason=reason) for i, reason in enumerate(reasons)]
    (line,) = printed(skipped(items, verbose=False))
    counts = "Skipped (missing input or not applicable): 2; left out by --select or --ignore: 2"
    assert line == f"{counts} (--verbose lists them with their reasons)"
    (only,) = printed(skipped(items[1:2], verbose=False))
    assert only.startswith("Left out by --select or --ignore: 1 (")
    told = [f"  R{i}: {reason}" for i, reason in enumerate(reasons)]
    assert list(printed(skipped(items, verbose=True)))[1:] == told
    assert skipped([], verbose=True) == []


@given(POINTS, POINTS, st.integers(20, 120), st.integers(1, 20), st.booleans())
def test_any_points_give_a_curve_of_the_size_asked_for(curve, marks, width, height, dots):
    lines = curve_lines(curve, marks=marks, width=width, height=height, dots=dots)
    finite = [y for _, y in (*curve, *marks) if math.isfinite(y)]
    assert len(lines) == (height + 1 if finite else 0)
    assert all(len(line) <= max(width, 30) for line in lines[:-1])
    assert all(len(line) <= max(width, 50) for line in lines[-1:])  # two numbers have to fit


def test_a_falling_curve_goes_from_the_top_left_to_the_bottom_right_without_a_hole():
    lines = curve_lines([(i, 10.0 - i) for i in range(11)], marks=[(10, 0.0)], width=31, height=5, dots=False)
    assert lines[0].index("*") < lines[3].index("*") < lines[4].index("o")
    assert (lines[0][:11], lines[4][:10], lines[5].split()) == ("      10 |*", "       0 |", ["0", "10"])
    assert all("*" in line for line in curve_lines([(0, 1.0), (1, 0.0)], width=30, height=6, dots=False)[:6])
    braille = curve_lines([(i, float(i)) for i in range(8)], width=20, height=1)[0]
    assert sum((ord(ch) - 0x2800).bit_count() for ch in braille if ord(ch) >= 0x2800) >= 4


def test_a_limit_at_the_end_of_the_bars_is_drawn_and_one_beyond_is_not():
    assert [histogram_lines([1, 1], 10, limit=limit, height=1)[0][-1] for limit in (20, 21)] == ["\u2502", "\u2588"]


def test_the_share_of_padding_is_of_all_positions_and_of_the_supervised_of_all_tokens():
    data = {"watched": 2, "batches": 9, "rows": 8, "tokens": 300, "padding": 100, "supervised": 60}
    rows = dict(fed_rows(data))
    assert rows["Watched"] == "2 of 9 micro-batches, 8 rows"
    assert rows["Tokens"].endswith("and 25.0% of the batches is padding")
    assert rows["Supervised"] == "20.0% of the tokens; 0 rows without a supervised token"
    assert (fed_rows({}), fed_rows({**data, "rows": "x"})) == ([], [])
    assert "Labels" in dict(fed_rows({**data, "supervised": None, "label_min": 0, "label_max": 2}))


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
    for now[0], done in ((0.5, 1), (1.99, 5), (1.99, 100)):
        draw(done, 100, "q_proj")
    assert screen.getvalue() == ""  # what ends within two seconds shows no bar
    for now[0], done in ((2.5, 6), (12.0, 26)):
        draw(done, 100, "q_proj\x1b]0;title")
        assert screen.getvalue()
    shown = re.sub(r"\x1b\[[0-9;]*[mK]", "", screen.getvalue().rpartition("\r")[2])
    plain = shown.replace("\u2501", "-").replace("\u2578", "-")
    assert re.fullmatch(r"base \S+ +26/100 00:36 q_proj\\u001b]0;title *", plain)
    draw(100, 100, "")
    assert screen.getvalue().endswith("\r\x1b[K")
    for term, stream in (("dumb", screen), ("xterm", io.StringIO())):
        monkeypatch.setenv("TERM", term)
        monkeypatch.setattr(bar.sys, "stderr", stream)
        assert bar.on_terminal("base") is None
