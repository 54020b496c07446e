"""Lines of a session are numbered: lost ones and copies are counted, a copy sets nothing back."""

from __future__ import annotations

import pytest

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
