"""The story says what the findings say, no less and no more."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st
from log_runs import facts_of, logged_rows
from logs import record

from gradience.rules.log import detect
from gradience.rules.log.story import line_of, story_parts
from gradience.schema import TrainSummary
from gradience.verbs.monitor.run import monitor_run
from gradience.verbs.monitor.view import monitor_text

OVERFIT = [(4, 1.6), (8, 1.5), (12, 1.7), (16, 1.9), (20, 2.2), (24, 2.4)]


def story(path, **more):
    path.mkdir(exist_ok=True)
    return monitor_run(record(path / "run.jsonl", **more)).story


def test_a_healthy_run_learns_and_its_numbers_are_those_of_the_report(tmp_path):
    report = monitor_run(record(tmp_path / "run.jsonl"))
    assert report.story == "learns; loss 2 -> 1.02; no held-out signal"
    assert report.train.last_loss == pytest.approx(1.02, abs=0.005)


def test_the_story_is_the_first_line_under_the_title_and_its_parts_joined(tmp_path):
    report = monitor_run(record(tmp_path / "run.jsonl"))
    assert monitor_text(report).splitlines()[3] == f"Story: {report.story}"
    assert "; ".join(part.says for part in report.story_parts) == report.story


def test_an_audit_tells_how_many_ranks_hold_the_energy(tmp_path):
    audit = {"energy_rank_90_p50": 3.0, "modules": [{"name": "q", "r": 16}]}
    assert "90 % of the update's energy in 3 of 16 ranks (median module)" in story(tmp_path, audit=audit)


def test_every_part_names_a_finding_of_the_report_or_none(tmp_path):
    report = monitor_run(record(tmp_path / "run.jsonl", evals=OVERFIT, end=None))
    ids = {finding.id for finding in report.findings}
    assert {"OVF110", "END114"} <= {part.finding for part in report.story_parts if part.finding} <= ids


losses = st.floats(-10, 10) | st.sampled_from([0.0, math.nan, math.inf, 0.6931])
status = st.sampled_from(["ok", "no_run_end", "error", "unknown"])


@given(st.lists(losses, max_size=60), st.floats(0, 50), status)
def test_every_grave_finding_is_in_the_story_of_any_series(values, norm, status):
    n = len(values)
    run = facts_of(logged_rows(range(n), values, [norm] * n, [1e-4] * n), status=status, last_step=n or None)
    findings = detect(run).told
    parts = story_parts(run, findings, TrainSummary(rows=n, first_loss=0.0, last_loss=0.0))
    grave = {finding.id for finding in findings if finding.severity != "info"}
    assert grave <= {part.finding for part in parts}
    assert "\n" not in line_of(parts)
