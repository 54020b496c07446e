"""An audit as a line of the log of the run that made the adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from gradience.errors import RecorderError
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


def append_audit(log: Path, report: AuditReport) -> None:
    """Add a `metrics` event of kind `lora_audit` to the log, under its last run's run_id.

    Raises:
        RecorderError: the log is missing, holds no run, or is being written by another process.
    """
    from gradience.telemetry.reader import TelemetryReader  # noqa: PLC0415  # the recorder, only if a log is written
    from gradience.telemetry.writer import TelemetryWriter  # noqa: PLC0415  # the same

    run = TelemetryReader(log).summarize().last
    if run is None:
        raise RecorderError(f"{log} holds no run to append to", advice="give the run.jsonl of the run")
    with TelemetryWriter(log, run_id=run.run_id, siblings=False, on_error="raise") as writer:
        writer.metrics(run.last_step, kind="lora_audit", metrics=lora_audit_metrics(report))
        writer.close()
