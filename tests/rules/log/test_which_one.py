"""Which of several candidates a rule on logs names, and what it does with a number that two readings share."""

from __future__ import annotations

from log_runs import FALL, line, run, said

from gradience.rules.log import statistics
from gradience.rules.log.story import story_parts
from gradience.schema.document import Finding
from gradience.schema.reports import TrainSummary


def test_what_is_grave_enough_to_be_told_and_denies_it_leaves_no_room_for_learning():
    facts = run(FALL)
    values = {"rows": 1, "of": 1, "first": "x", "first_step": 1, "lowest": 1.0, "lowest_step": 1, "step": 1}
    shown = {
        (rule, severity): story_parts(
            facts, [Finding(id=rule, severity=severity, message="m", values=values)], TrainSummary(rows=60)
        )
        for rule in ("NUM101", "NUM102", "DIV104", "NOL106", "DIV103", "SCL129")
        for severity in ("info", "warning", "error", "critical")
    }
    silent = {case for case, parts in shown.items() if not any(part.says == "learns" for part in parts)}
    assert silent == {
        (rule, severity)
        for rule in ("NUM101", "NUM102", "DIV104", "NOL106")
        for severity in ("warning", "error", "critical")
    } | {("NOL106", "info")}


def test_rows_of_a_long_log_stand_out_as_those_of_a_short_one(monkeypatch):
    """A level that rises between two blocks, one that falls, and single rows: in blocks as row by row."""
    values = [1.0 + 0.001 * (row % 3) for row in range(120)]
    values[30:60] = [2.0 + 0.001 * (row % 3) for row in range(30)]
    values[70] = values[90] = values[119] = 4.0
    for logarithmic in (False, True):
        bar = statistics.Bar(6.0, 0.05, logarithmic)
        monkeypatch.undo()
        one_by_one = statistics.excesses(statistics.curve_of(values), bar)
        monkeypatch.setattr(statistics, "MOST_POINTS", 12)
        curve = statistics.curve_of(values)
        assert curve.block == 10
        assert statistics.excesses(curve, bar) == one_by_one
        assert [row for row, _ in one_by_one][-3:] == [70, 90, 119]
        assert 30 in dict(one_by_one)


def test_what_is_lost_again_below_the_start_is_told_from_twenty_rows_on():
    for rows, severity in ((19, None), (20, "warning"), (30, "warning")):
        losses = [*line(8, 4.0, 1.0), *[1.0] * 5, *[3.0] * (rows - 13)]
        found = said("DIV104", run(losses))
        assert (found and found.severity) == severity, rows
        assert found is None or found.message.endswith("67% of what it had learnt is lost.")
