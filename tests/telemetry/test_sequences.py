"""Lines of a session are numbered: lost ones and copies are counted, a copy sets nothing back."""

from __future__ import annotations

import pytest

from gradience.schema import SCHEMA_ID
from gradience.telemetry.scan import PlainRow, RowBlock
from gradience.telemetry.series import RunSeries


@pytest.mark.parametrize(
    ("numbers", "missing", "duplicates"),
    [
        ([0, 1, 2, 3], 0, 0),
        ([5, 6], 0, 0),  # the first that is seen begins
        ([0, 1, 4], 2, 0),
        ([0, 1, 2, 1, 3], 0, 1),
        ([0, 0, 1], 0, 1),
        ([0, 3, 1, 4], 2, 1),
        ([0, None, 1], 0, 0),
    ],
)
def test_numbers_of_one_session(numbers, missing, duplicates):
    run = RunSeries("r")
    for number in numbers:
        run._take_seq("s", number)
    assert (run.record.missing, run.record.duplicates, run.record.interleaved) == (missing, duplicates, 0)


def test_a_return_to_a_session_is_counted_and_sessions_have_numbers_of_their_own():
    run = RunSeries("r")
    for session, number in (("a", 0), ("b", 0), ("a", 1), ("b", 2), (None, 9)):
        run._take_seq(session, number)
    assert (run.record.interleaved, run.record.missing, run.record.duplicates) == (2, 1, 0)
    assert run.record.sessions == {"a", "b"}


@pytest.mark.parametrize(
    ("session", "rows", "taken"),
    [
        ("b", [(6, 1), (7, 2)], True),
        ("b", [(6, 1)], True),
        ("b", [(5, 1), (6, 2)], False),  # a step that was there
        ("b", [(7, 1), (6, 2)], False),
        ("b", [(6, 1), (6, 2)], False),
        ("b", [(6, 2), (7, 3)], False),  # a line is missing
        ("b", [(6, 1), (7, 3)], False),
        ("b", [(6, None)], False),
        ("a", [(6, 1), (7, 2)], False),  # after another session wrote
        ("c", [(6, 0)], False),  # a session that begins
        (None, [(6, None)], False),
    ],
)
def test_rows_are_taken_as_a_block_where_nothing_is_to_be_counted(session, rows, taken):
    run = RunSeries("r")
    run.steps.append(5)
    run._take_seq("a", 0)
    run._take_seq("b", 0)
    plain = [
        PlainRow(schema=SCHEMA_ID, ts=1.0, run_id="r", step=step, loss=0.5, session=session, seq=seq)
        for step, seq in rows
    ]
    assert run.take_rows(RowBlock("r", plain, {})) is taken
    assert list(run.steps) == [5, *(step for step, _ in rows if taken)]
    assert run._next_seq == {"a": 1, "b": rows[-1][1] + 1 if taken else 1}
