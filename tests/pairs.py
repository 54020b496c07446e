"""Pairs of statements that may never stand together about one run, in whatever reports of check, monitor and diagnose.

A statement is a finding, by its id, or a fact that a report states: `learns`, `unknown` and `no better` (the story
says that it learns, that this cannot be told, or that held-out data do not improve), `evaluated` (an
evaluation is shown), `rows` (a training curve is shown), `fine` (a verdict without anything wrong), `wrong` (a finding
that is a warning or graver).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from gradience.schema.diagnose import DiagnoseReport
from gradience.schema.document import SEVERITIES
from gradience.schema.reports import CheckReport, MonitorReport

_WARNING: Final = SEVERITIES.index("warning")
_ROWS: Final = 3  # rows of a training curve


class Pair(NamedTuple):
    """Two statements, and why both cannot hold of one run."""

    one: str
    other: str
    why: str


TOO_HIGH: Final = ("LR003", "LR004", "LR005", "DIV104")

PAIRS: Final = (
    *(Pair("LR001", high, "a rate is too low or too high") for high in TOO_HIGH),
    Pair("LR001", "PLT105", "a rate is too low, or the loss is flat at a rate high enough to learn"),
    *(Pair(high, "fine", "most such runs diverge, and this one turned out well") for high in ("LR003", "LR005")),
    Pair("NOL106", "learns", "the loss does not fall, or it does"),
    Pair("NOL106", "PLT105", "it never fell, or fell and then no more"),
    Pair("NOL106", "UND126", "nothing is learnt, or the held-out loss still falls"),
    Pair("NOL106", "OVF110", "nothing is learnt, or too much"),
    Pair("NOL106", "SAV303", "nothing was learnt, or it was and is not in the file"),
    Pair("TRN302", "learns", "the adapter was not trained, or the run learns"),
    Pair("TRN302", "SAV303", "the adapter was not trained, or it was and is not in the file"),
    Pair("OVF110", "UND126", "the held-out loss rises at the end, or still falls"),
    Pair("DIV104", "learns", "the loss ends far above where it was, or the run learns"),
    Pair("DIV104", "PLT105", "the loss runs away, or stands still"),
    Pair("DAT330", "NUM301", "no label was there to learn from, or numbers overflowed"),
    Pair("DAT330", "learns", "no label was there to learn from, or the run learns"),
    Pair("REP128", "evaluated", "nothing held out was measured, or it was"),
    Pair("REC310", "rows", "no training loss was logged, or a curve of it was"),
    Pair("GAP118", "rows", "no training loss was logged, or a curve of it was"),
    Pair("unknown", "learns", "it cannot be told whether it learns, or the run learns"),
    Pair("unknown", "NOL106", "it cannot be told whether it learns, or the loss does not fall"),
    Pair("unknown", "UND126", "it cannot be told whether it learns, or the held-out loss still falls"),
    Pair("unknown", "OVF110", "it cannot be told whether it learns, or it learnt too much"),
    Pair("no better", "learns", "held-out data do not improve, or the run learns"),
    Pair("no better", "OVF110", "held-out data never improved, or did and then got worse"),
    Pair("LRS133", "PLT105", "the rate still rose, or the loss is flat at a rate high enough to learn"),
    Pair("NUM131", "NUM102", "steps were skipped before they did harm, or NaN was averaged away"),
    Pair("MID318", "END312", "weights of a chosen step, or of where the run was cut off"),
    Pair("fine", "wrong", "a verdict of no problems, or a warning"),
)


def stated(*reports: CheckReport | MonitorReport | DiagnoseReport) -> set[str]:
    """All that reports on one run state, the reports within a diagnosis included."""
    found: set[str] = set()
    for report in reports:
        match report:
            case DiagnoseReport():
                found |= set(_of_causes(report))
                found |= set() if report.monitor is None else _findings(report.monitor) | set(_facts(report.monitor))
            case MonitorReport():
                found |= _findings(report) | set(_facts(report))
            case CheckReport():
                found |= _findings(report)
    return found


def contradictions(statements: set[str]) -> list[Pair]:
    """The pairs that stand together."""
    return [pair for pair in PAIRS if {pair.one, pair.other} <= statements]


def _findings(report: Any) -> set[str]:
    return set() if report is None else {finding.id for finding in report.findings}


def _of_causes(report: DiagnoseReport) -> Iterator[str]:
    for cause in report.findings:
        yield cause.id
        yield from (piece.id for piece in cause.pieces if piece.severity is not None)
        if SEVERITIES.index(cause.severity) >= _WARNING:
            yield "wrong"
    if report.verdict == "no_fault_found":
        yield "fine"


def _facts(report: MonitorReport) -> Iterable[str]:
    if any(part.says.startswith("learns") for part in report.story_parts):
        yield "learns"
    if any("cannot tell whether it learns" in part.says for part in report.story_parts):
        yield "unknown"
    if any(part.says.endswith("does not improve") for part in report.story_parts):
        yield "no better"
    if any(point.split != "train" for point in report.evals):
        yield "evaluated"
    if report.train.rows >= _ROWS:
        yield "rows"
