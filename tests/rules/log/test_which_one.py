"""Which of several candidates a rule on logs names, and what it does with a number that two readings share."""

from __future__ import annotations

from log_runs import FALL, line, run, said

from gradience.rules.log import statistics
from gradience.rules.log.recorded import everything_masked
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


def test_a_late_rise_is_measured_from_the_lower_start_and_its_loss_from_the_first_row():
    """One high first row: the median of the first three is the start, and what was learnt is counted from the first."""
    for end, answer in (
        (2.5, ("error", "around step 30; it ended above its start and did not recover.")),
        (1.98, None),  # 49 % of the way back to the first row
        (2.0, None),
        (2.01, ("error", "around step 30; it ended above its start and did not recover.")),
    ):
        losses = [3.0, 2.0, 2.0, *line(27, 2.0, 1.0), *[1.0] * 10, *line(5, 1.0, end), *[end] * 15]
        found = said("DIV104", run(losses))
        assert (found and (found.severity, found.message.partition("at the end, 1 ")[2])) == answer, end


def test_of_two_things_that_are_wrong_with_a_rate_or_a_norm_the_graver_is_told():
    found = said("LRS109", run(FALL, rates=0.0, lr=1e-4))  # 0 throughout, and never near its peak
    assert found.values == {"rows": 60, "step": 1, "throughout": True}
    falls_short = [1e-6 if row % 20 else 0.0 for row in range(60)]
    assert said("LRS109", run(FALL, rates=falls_short, lr=1e-4)).values == {"peak": 1e-6, "configured": 1e-4}
    stands = [*line(20, 1e-6, 2e-6), *[0.0] * 10, *[2e-6] * 30]
    assert said("LRS109", run(FALL, rates=stands, lr=1e-4)).values == {"rows": 10, "step": 21, "throughout": False}
    jumps = [20.0 if row in {40, 41, 42} else 1.0 + 0.01 * (row % 3) for row in range(60)]
    clipped = run(FALL, norms=jumps, training={"max_grad_norm": 0.5})
    assert said("GRD107", clipped).message.startswith(
        "The gradient norm grows to over 10 x its earlier level from step"
    )
    jumps = [9.0 if norm == 20.0 else norm for norm in jumps]
    clipped = run(FALL, norms=jumps, training={"max_grad_norm": 0.5})
    assert said("GRD107", clipped).message.startswith("The gradient norm jumps to 9 at step 41, from 1.01")


def test_of_too_many_rows_that_stand_out_the_highest_are_looked_at(monkeypatch):
    monkeypatch.setattr(statistics, "MOST_POINTS", 4)
    values = [1.0 + 0.001 * (row % 3) for row in range(80)]
    for row, height in ((25, 9.0), (33, 5.0), (41, 8.0), (49, 6.0), (57, 7.0)):
        values[row] = height
    curve = statistics.curve_of(values)
    assert curve.block == 20
    bar = statistics.Bar(6.0, 0.05, logarithmic=False)
    assert [row for row, _ in statistics.excesses(curve, bar)] == [25, 41, 49, 57]


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


def test_everything_is_masked_only_if_each_row_and_the_sum_say_so():
    for rows, unsupervised, supervised, masked in (
        (4, 4, 0, True),
        (4, 3, 0, False),
        (4, 4, 1, False),
        (0, 0, 0, False),
        (4, 4, None, False),
        (None, 4, 0, False),
    ):
        data = {"rows": rows, "rows_unsupervised": unsupervised, "supervised": supervised}
        assert everything_masked(run(FALL, data=data)) is masked, data


def test_what_is_lost_again_below_the_start_is_told_from_twenty_rows_on():
    for rows, severity in ((19, None), (20, "warning"), (30, "warning")):
        losses = [*line(8, 4.0, 1.0), *[1.0] * 5, *[3.0] * (rows - 13)]
        found = said("DIV104", run(losses))
        assert (found and found.severity) == severity, rows
        assert found is None or found.message.endswith("67% of what it had learnt is lost.")
