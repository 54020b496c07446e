"""The verdict and its findings: right, with reasons, and quiet on normal things."""

from __future__ import annotations

import pytest

from gradience.rules.weights.rules import adapter_findings, at_risk, base_findings, health, low_utilization
from gradience.schema.audit import (
    AUDIT_SCHEMA_ID,
    AuditReport,
    AuditSummary,
    BaseComparison,
    BaseReport,
    LedgerEntry,
    MergeSurvival,
    ModuleAudit,
    NotAnalysed,
)


def module(name: str = "m", r: int = 8, **fields) -> ModuleAudit:
    given = {
        "module_type": "attn", "shape": [16, 12], "params": 224, "scaling": 2.0, "spectral_norm": 1.0,
        "frobenius_norm": 1.5, "stable_rank": 1.5, "null_stable_rank": 6.0, **fields,
    }  # fmt: skip
    return ModuleAudit(name=name, r=r, **given)


def report(**fields) -> AuditReport:
    given = {
        "peft_dir": "d", "weights_path": "w", "format": "peft", "health": health([module()]),
        "summary": AuditSummary(total_lora_params=1, n_layers=1), **fields,
    }  # fmt: skip
    return AuditReport(schema=AUDIT_SCHEMA_ID, **given)


@pytest.mark.parametrize(
    ("states", "verdict"),
    [
        (["ok"] * 4, "trained"),
        (["ok", "zero", "ok", "ok"], "partial"),
        (["zero"] * 4, "untrained"),
        (["ok", "non_finite", "zero", "ok"], "broken"),
    ],
)
def test_the_worst_state_decides(states, verdict):
    found = health([module(str(i), state=state) for i, state in enumerate(states)])
    assert found.verdict == verdict
    assert found.reason


def test_nothing_to_read_is_broken_but_something_unread_is_not_analysed():
    assert health([]).verdict == "broken"
    assert health([], peft_type="IA3").verdict == "not_analysed"
    skipped = [NotAnalysed(name="x.lora_a", reason="a kind that is not analysed yet")]
    assert health([], not_analysed=skipped).verdict == "not_analysed"


@pytest.mark.parametrize(
    ("n", "r", "stable_rank", "verdict"),
    [(4, 8, 5.9, "random_like"), (3, 8, 5.9, "trained"), (4, 2, 5.9, "trained"), (4, 8, 5.3, "trained")],
)
def test_random_like_needs_several_modules_and_room_in_the_null(n, r, stable_rank, verdict):
    assert health([module(str(i), r=r, stable_rank=stable_rank) for i in range(n)]).verdict == verdict


@pytest.mark.parametrize(("relative", "verdict"), [(9e-5, "near_untrained"), (1.1e-4, "trained"), (None, "trained")])
def test_near_untrained_needs_a_base_and_a_tiny_norm(relative, verdict):
    assert health([module()], relative_frobenius=relative).verdict == verdict


def test_a_classifier_head_next_to_lora_is_worth_one_hint():
    ledger = [
        LedgerEntry(role="full_module", tensors=2, params=10, bytes=76, share=0.76),
        LedgerEntry(role="lora_pair", tensors=2, params=5, bytes=24, share=0.24),
    ]
    found = adapter_findings(report(modules=[module()], ledger=ledger))
    assert [(f.id, f.severity) for f in found] == [("LED205", "info")]
    assert "76%" in found[0].message


def test_an_ordinary_adapter_has_no_finding():
    ledger = [LedgerEntry(role="lora_pair", tensors=2, params=5, bytes=24, share=1.0)]
    assert adapter_findings(report(modules=[module()], ledger=ledger), alpha=16.0, r=8) == []


def test_a_lone_factor_is_an_error():
    lone = [NotAnalysed(name="layers.0.q", reason="lora_A without its partner")]
    assert [f.severity for f in adapter_findings(report(modules=[module()], not_analysed=lone))] == ["error"]


@pytest.mark.parametrize(("mean", "told"), [(0.249, True), (0.25, False), (None, False)])
def test_low_utilization_is_told_under_a_quarter(mean, told):
    assert (low_utilization(mean) is not None) == told


@pytest.mark.parametrize(
    ("dtype", "relative", "cosine", "risky"),
    [
        ("bfloat16", 2.9e-3, 0.95, True),
        ("bfloat16", 4e-3, 0.95, False),
        ("bfloat16", 4e-3, 0.85, True),
        ("float16", 2.9e-3, 0.99, False),
        ("float16", 2e-4, 0.99, True),
        ("bfloat16", 0.0, None, False),
    ],
)
def test_a_merge_is_at_risk_by_size_or_by_what_it_realises(dtype, relative, cosine, risky):
    comparison = BaseComparison(
        weight="w", dtype="BF16", update="factors", spectral_norm=1.0, frobenius_norm=1.0, update_spectral_norm=1.0,
        update_frobenius_norm=1.0, survival=MergeSurvival(dtype=dtype, changed=0.5, cosine=cosine, gain=1.0),
    )  # fmt: skip
    assert at_risk(module(base=comparison, relative_frobenius=relative)) == risky


@pytest.mark.parametrize(("stored", "severity"), [("BF16", "warning"), ("F32", "info")])
def test_a_lossy_merge_is_a_warning_where_the_base_is_stored_in_16_bits(stored, severity):
    comparison = BaseComparison(
        weight="w", dtype=stored, update="factors", spectral_norm=1.0, frobenius_norm=1.0, update_spectral_norm=1.0,
        update_frobenius_norm=1.0, survival=MergeSurvival(dtype="bfloat16", changed=0.1, cosine=0.4, gain=1.0),
    )  # fmt: skip
    rows = [module(base=comparison, relative_frobenius=1e-3)]
    base = BaseReport(path="b", files=1, compared=1)
    found = base_findings(report(modules=rows, base=base))
    assert [(f.id, f.severity) for f in found] == [("MRG210", severity)]
    assert base_findings(report(modules=rows)) == []


def test_every_finding_carries_evidence():
    ledger = [LedgerEntry(role="bias", tensors=2, params=10, bytes=76, share=1.0)]
    everything = report(
        modules=[module(config_r=4, alpha=8.0)],
        ledger=ledger,
        health=health([]),
        unmatched_patterns=["a", "b", "c", "d"],
        not_analysed=[NotAnalysed(name="x", reason="lora_B without its partner")],
        summary=AuditSummary(total_lora_params=1, n_layers=1, utilization_mean=0.1),
    )
    found = adapter_findings(everything, alpha=8.0, r=64)
    assert {f.id for f in found} == {"NUM201", "NUM209", "UTL204", "SCL206", "SCL207", "SCL208", "LED205"}
    assert all(f.evidence and f.confidence is not None for f in found)
