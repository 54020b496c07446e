"""Which steps of a curve a finding marks."""

from __future__ import annotations

from typing import Any

from tables import every

from gradience.render.curves import marks_of
from gradience.render.diagnose import steps_of
from gradience.schema.diagnose import Cause, Piece


def cause(rule: str, source: str = "log", pieces: tuple[str, ...] = (), **values: Any) -> Cause:
    some = [Piece(source=source, id=one, severity=None, says="") for one in (rule, *pieces)]
    return Cause(id=rule, severity="warning", message="m", values=values, joined=False, pieces=some)


@every(
    ("values", "steps"),
    [
        ({"steps": [3, 5, True, "x", 2.0]}, [3, 5]),
        ({"steps": []}, []),
        ({"steps": 4}, []),
        ({"first_step": 7}, [7]),
        ({"first_step": True}, []),
        ({"steps": [1], "first_step": 7}, [1]),
        ({}, []),
    ],
)
def test_steps_are_whole_numbers(values, steps):
    assert steps_of(cause("DIV103", **values)) == steps


def test_marks_are_of_findings_in_the_log_by_step_and_by_the_beginning_of_an_id():
    found = [
        cause("DIV103", steps=[9, 2]),
        cause("NUM101", "weights", first_step=5),
        cause("OVF110", pieces=("DIV104",), first_step=4),
    ]
    assert [(mark.number, mark.step) for mark in marks_of(found)] == [(1, 2), (3, 4), (1, 9)]
    assert [(mark.number, mark.step) for mark in marks_of(found, "DIV")] == [(1, 2), (3, 4), (1, 9)]
    assert [mark.number for mark in marks_of(found, "OVF")] == [3]
    assert marks_of(found, "NUM") == []
