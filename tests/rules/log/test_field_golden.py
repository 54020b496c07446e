"""Short logs drawn from what was seen of published runs: what must be said of each, and what would be false.

Each file of `tests/golden/field` is a trainer state with a label beside its rows: `must` and `mustnot` are classes of
statements. A class is found by the ids of its rules, or by how the story begins.
"""

from __future__ import annotations

import json
from pathlib import Path

from tables import every

from gradience.verbs.monitor.run import monitor_run

LOGS = sorted((Path(__file__).parents[2] / "golden" / "field").glob("*.json"))
RULES = {
    "DIVERGED": {"DIV104"},
    "REPEATED": {"REP128"},
    "SCALE": {"SCL129"},
    "SATURATED": {"PRF130"},
    "SKIPPED": {"NUM131"},
    "CLIPPED": {"CLP125"},
    "PLATEAU": {"PLT105"},
    "NO_LEARNING": {"NOL106", "LRS109", "GRD108"},
    "AT_CHANCE": {"CHN112"},
    "OVERFIT": {"OVF110"},
    "UNFINISHED": {"UND126"},
    "SPIKE": {"DIV103"},
}
GRAVE_RULES = {"GAP": {"GAP111"}, "NAN": {"NUM101", "NUM102"}}  # counted as warning or worse only
OF_THE_FILE = {"END114", "TRN115", "DUP117", "GAP118"}


def classes_said(path):
    report = monitor_run(path)
    ids = {finding.id for finding in (*report.findings, *report.readings)}
    grave = {finding.id for finding in report.findings if finding.severity != "info"}
    said = {name for name, rules in RULES.items() if rules & ids}
    said |= {name for name, rules in GRAVE_RULES.items() if rules & grave}
    said |= {"LEARNS"} if any(part.says.startswith("learns") for part in report.story_parts) else set()
    return said | ({"ANY_WARNING"} if grave - OF_THE_FILE else set())


@every("log", LOGS, ids=lambda path: path.stem)
def test_what_an_engineer_says_of_a_log_is_said_and_nothing_false(log):
    label = json.loads(log.read_text(encoding="utf-8"))["label"]
    said = classes_said(log)
    assert set(label["must"]) - said == set()
    assert set(label["mustnot"]) & said == set()
