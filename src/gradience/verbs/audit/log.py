"""An audit as the payload of a log line."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from gradience.schema.audit import AuditReport, ModuleAudit

_EVENT_BYTES: Final = 56 * 1024  # of the 64 KiB a log line may have
_KEPT: Final = (  # SCIENCE.md, section 1; what else a module's row holds stays in the report
    *("name", "module_type", "layer", "r", "alpha", "scaling", "params", "state"),
    *("stable_rank", "effective_rank", "participation_ratio", "utilization"),
    *("energy_rank_90", "energy_rank_95", "energy_rank_99", "spectral_norm", "frobenius_norm"),
    *("udr", "sdi", "relative_frobenius"),
)


def lora_audit_metrics(report: AuditReport) -> dict[str, Any]:
    """Return the report as the payload of a `metrics` event of kind `lora_audit`: summary and modules.

    A log line holds 64 KiB. Where the modules do not fit, the least utilised are kept and
    `modules_omitted` counts the rest.
    """
    payload: dict[str, Any] = msgspec.to_builtins(report.summary)
    payload["verdict"] = report.health.verdict
    rows = [_row(module) for module in sorted(report.modules, key=_wastefulness)]
    room = _EVENT_BYTES - len(msgspec.json.encode(payload))
    kept: list[dict[str, Any]] = []
    for row in rows:
        room -= len(msgspec.json.encode(row)) + 1
        if room < 0:
            break
        kept.append(row)
    payload["modules"] = kept
    if len(kept) < len(rows):
        payload["modules_omitted"] = len(rows) - len(kept)
    return payload


def _row(module: ModuleAudit) -> dict[str, Any]:
    row: dict[str, Any] = msgspec.to_builtins(module)
    return {key: row[key] for key in _KEPT if key in row}


def _wastefulness(module: ModuleAudit) -> float:
    return 2.0 if module.utilization is None else module.utilization
