"""The verdict in one line: what was checked, what was found, and what is not there."""

from __future__ import annotations

import doctest

from tables import every

from gradience.judge import diagnose
from gradience.judge.diagnose import headline
from gradience.schema.diagnose import Cause, DiagnosedSource, SourceCoverage

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
