"""Tables and lists of every report: columns stand under their titles, and what is cut is counted."""

from __future__ import annotations

import doctest
from operator import itemgetter

from hypothesis import given, strategies as st
from msgspec.structs import replace
from tables import every

from gradience import blocks
from gradience.blocks import listed, markdown, skipped, table, text
from gradience.blocks.text import printed, shortened
from gradience.render import check
from gradience.schema.document import NotRun

CELLS = st.text("abc", min_size=1, max_size=9)


@every("module", [blocks, check, markdown, text], ids=lambda module: module.__name__)
def test_the_examples_in_the_module_hold(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6), st.integers(0, 4), st.integers(1, 3))
def test_cells_stand_under_the_titles_of_their_columns(rows, indent, gap):
    columns = (("number", ">9", itemgetter(0)), ("name", "<9", itemgetter(1)))
    first, *lines = printed([replace(table(columns, rows, indent=indent), gap=gap)])
    end, start = first.index("number") + len("number"), first.index("name")
    for line, (number, name) in zip(lines, rows, strict=True):
        assert line[:end].strip() == number
        assert line[end - 1] == number[-1]
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


def not_run(*reasons: str) -> list[NotRun]:
    return [NotRun(id=f"R{i}", reason=reason) for i, reason in enumerate(reasons)]


def test_skipped_checks_are_one_line_that_tells_missing_input_from_what_the_user_left_out():
    items = not_run("no lr", "not selected", "ignored on request", "no base")
    (line,) = printed(skipped(items, verbose=False))
    counts = "Skipped (missing input or not applicable): 2; left out by --select or --ignore: 2"
    assert line == f"{counts} (--verbose lists them with their reasons)"
    (only,) = printed(skipped(not_run("not selected"), verbose=False))
    assert only.startswith("Left out by --select or --ignore: 1 (")
    assert list(printed(skipped(items, verbose=True)))[1:] == [
        "  R0: no lr",
        "  R1: not selected",
        "  R2: ignored on request",
        "  R3: no base",
    ]
    assert skipped([], verbose=True) == []
