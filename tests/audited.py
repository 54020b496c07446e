"""Rows and reports of an audit with usual numbers, for the rules and views that read them."""

from __future__ import annotations

from typing import Any

from gradience.rules.weights import health
from gradience.schema.audit import AUDIT_SCHEMA_ID, AuditReport, AuditSummary, LedgerEntry, ModuleAudit

__all__ = ["module", "report"]

PAIRS = [LedgerEntry(role="lora_pair", tensors=2, params=5, bytes=24, share=1.0)]


def module(name: str = "m", r: int = 8, **fields: Any) -> ModuleAudit:
    """The row of a trained module whose update leads in one direction."""
    usual = {
        "module_type": "attn", "shape": [16, 12], "params": r * 28, "scaling": 2.0, "spectral_norm": 1.0,
        "frobenius_norm": 1.5, "stable_rank": 1.5, "null_stable_rank": 6.0, **fields,
    }  # fmt: skip
    return ModuleAudit(name=name, r=r, **usual)


def report(*modules: ModuleAudit, **fields: Any) -> AuditReport:
    """The report on these modules; its verdict is theirs."""
    usual = {
        "peft_dir": "d", "weights_path": "w", "format": "peft", "health": health(modules), "ledger": PAIRS,
        "modules": list(modules),
        "summary": AuditSummary(total_lora_params=1, n_layers=1, utilization_mean=0.5 if modules else None), **fields,
    }  # fmt: skip
    return AuditReport(schema=AUDIT_SCHEMA_ID, **usual)
