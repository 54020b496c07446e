"""What the monitor says of the audit that a log holds."""

from __future__ import annotations

import pytest
from log_runs import facts_of, logged_rows
from tables import every

from gradience.rules.log import detect


def judged(payload):
    return detect(facts_of(logged_rows([], [], []), audit=payload, status="ok"))


@pytest.mark.parametrize(
    ("verdict", "rule", "severity"),
    [("broken", "NUM201", "error"), ("untrained", "TRN202", "error"), ("random_like", "RND203", "warning")],
)
def test_the_verdict_of_the_audit_is_a_finding_of_the_run(verdict, rule, severity):
    assert [(f.id, f.severity) for f in judged({"verdict": verdict}).findings] == [(rule, severity)]


def test_a_log_without_an_audit_is_told_once():
    for payload, why in (
        (None, "no lora_audit in the log ('gradience audit --append run.jsonl' adds one)"),
        ({"n_layers": 0}, "the audit in the log found no LoRA weights"),
        ({"n_layers": 4, "total_lora_params": 0}, "the audit in the log found no LoRA weights"),
        ({"n_layers": 4, "total_lora_params": 5}, None),
        ({}, None),
    ):
        told = [(item.id, item.reason) for item in judged(payload).not_run if "audit" in item.reason]
        assert told == ([("TRN202", why), ("UTL204", why)] if why else [])


@every(
    ("payload", "message"),
    [
        ({"utilization_mean": 0.25}, None),
        ({"utilization_mean": 0.249}, "Utilization 24.9%, under 25%: likely over-provisioned."),
        (
            {"utilization_mean": 0.142, "suggested_r_global_median": 2, "suggested_r_global_90": 3},
            (
                "Utilization 14.2%, under 25%: likely over-provisioned. Compress to r=2 (most modules) or r=3 (the "
                "tail) after training, do not train with it; verify with eval."
            ),
        ),
        ({"utilization_mean": 0.142, "verdict": "random_like"}, None),
    ],
)
def test_low_utilization_is_read_with_the_ranks_to_compress_to(payload, message):
    found = [(f.severity, f.message) for f in judged({"n_layers": 2, **payload}).told if f.id == "UTL204"]
    assert found == ([("info", message)] if message else [])


def test_other_writers_audits_with_odd_values_do_no_harm():
    assert judged({"modules": [1, {"r": "8"}], "by_type": {"attn": 3}, "verdict": 7}).findings == []
