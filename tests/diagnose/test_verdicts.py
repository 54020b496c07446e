"""The verdict of a diagnosis follows from its gravest cause or from what was judged; and the line that says it."""

from __future__ import annotations

import doctest
from types import SimpleNamespace
from typing import Any

from tables import every

from gradience.schema.diagnose import Cause, DiagnosedSource, Piece, SourceCoverage
from gradience.verbs.diagnose import run as diagnose
from gradience.verbs.diagnose.run import headline, is_complete, verdict_of


@every(
    ("severities", "complete", "verdict"),
    [
        ((), True, "no_fault_found"),
        ((), False, "could_not_judge"),
        (("info",), True, "no_fault_found"),
        (("info",), False, "could_not_judge"),
        (("info", "warning"), True, "needs_attention"),
        (("warning",), False, "needs_attention"),
        (("error", "info"), True, "broken"),
        (("critical",), False, "broken"),
    ],
)
def test_the_gravest_cause_decides(severities, complete, verdict):
    causes = [Cause(id="X1", severity=one, message="It is so.") for one in severities]
    assert verdict_of(causes, complete=complete) == verdict


@every(("rule", "verdict"), [("OVF110", "worth_a_look"), ("GAP111", "worth_a_look"), ("UND126", "no_fault_found")])
def test_what_a_reader_has_to_decide_is_worth_a_look(rule, verdict):
    piece = Piece(source="log", id=rule, severity="info", says="It is so.")
    cause = Cause(id=rule, severity="info", message="It is so.", pieces=[piece])
    assert verdict_of([cause], complete=True) == verdict
    assert verdict_of([cause], complete=False) == "could_not_judge"


@every(
    ("states", "judged", "complete"),
    [
        (("read", "absent"), {"config": 1, "log": 0}, True),
        (("read", "unreadable"), {"config": 1, "log": 0}, False),
        (("read", "absent"), {"config": 0, "log": 0}, False),
        (("read",), {"join": 5, "log": 0}, False),
    ],
)
def test_enough_was_judged_if_something_was_and_all_could_be_read(states, judged, complete):
    sources: Any = [SimpleNamespace(state=state) for state in states]
    coverage: Any = [SimpleNamespace(source=source, judged=n) for source, n in judged.items()]
    assert is_complete(sources, coverage) is complete


SOURCES = [
    DiagnosedSource(source="config", state="read"),
    DiagnosedSource(source="log", state="unreadable"),
    DiagnosedSource(source="weights", state="absent"),
]
COVERAGE = [SourceCoverage(source="config", judged=23, total=34)]


def causes(*severities):
    return [Cause(id="LR001", severity=severity, message="m") for severity in severities]


@every(
    ("verdict", "severities", "line"),
    [
        ("no_fault_found", ["info"], "no problems found (checked: config 23 of 34); 1 info; "),
        ("no_fault_found", [], "no problems found (checked: config 23 of 34); "),
        ("broken", ["info", "error", "error"], "broken (2 errors, 1 info); checked: config 23 of 34; "),
        ("needs_attention", ["warning"], "needs attention (1 warning); checked: config 23 of 34; "),
        ("could_not_judge", [], "could not judge; checked: config 23 of 34; "),
    ],
)
def test_no_problem_stands_beside_what_was_checked_and_a_problem_beside_its_severity(verdict, severities, line):
    found = headline(verdict, SOURCES, causes(*severities), COVERAGE)
    assert found == line + "not there: weights; there but not readable: log"


def test_the_example_in_the_module_holds():
    assert doctest.testmod(diagnose).failed == 0
