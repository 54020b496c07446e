"""Rows and reports of an audit with usual numbers, for the rules and views that read them; and adapters on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from gradience.rules.weights import health
from gradience.schema.audit import AUDIT_SCHEMA_ID, AuditReport, AuditSummary, LedgerEntry, ModuleAudit

__all__ = ["low_dimensional", "module", "report", "save_adapter"]

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
        "peft_dir": "d", "weights_path": "w", "config_path": "c", "format": "peft",
        "health": health(modules), "ledger": PAIRS, "modules": list(modules),
        "summary": AuditSummary(total_lora_params=1, n_layers=1, utilization_mean=0.5 if modules else None), **fields,
    }  # fmt: skip
    return AuditReport(schema=AUDIT_SCHEMA_ID, **usual)


def low_dimensional(rng: np.random.Generator, r: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Factors b (48, r) and a (r, 32) of an update that the first directions lead, as training leaves it."""
    return 0.02 * rng.standard_normal((48, r)) * 0.5 ** np.arange(r), rng.standard_normal((r, 32))


def save_adapter(folder: Path, pairs: Iterable[tuple[np.ndarray, np.ndarray]], **config: Any) -> Path:
    """Save a PEFT folder with the factors (b, a) of q_proj of each layer."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, np.ndarray] = {}
    for layer, (b, a) in enumerate(pairs):
        stem = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors |= {f"{stem}.lora_{side}.weight": np.asarray(x, np.float32) for side, x in (("A", a), ("B", b))}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    fields = {"peft_type": "LORA", "r": len(a), "lora_alpha": 2 * len(a), "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder
