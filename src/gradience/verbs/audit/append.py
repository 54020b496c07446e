"""An audit joins the log of the run that made the adapter."""

from __future__ import annotations

from pathlib import Path

from gradience.errors import RecorderError
from gradience.schema.audit import AuditReport
from gradience.telemetry.reader import TelemetryReader
from gradience.telemetry.writer import TelemetryWriter
from gradience.verbs.audit import lora_audit_metrics


def append_audit(log: Path, report: AuditReport) -> None:
    """Add a `metrics` event of kind `lora_audit` to the log, under its last run's run_id.

    Raises:
        RecorderError: the log is missing, holds no run, or is being written by another process.
    """
    run = TelemetryReader(log).summarize().last
    if run is None:
        raise RecorderError(f"{log} holds no run to append to", advice="give the run.jsonl of the run")
    with TelemetryWriter(log, run_id=run.run_id, siblings=False, on_error="raise") as writer:
        writer.metrics(run.last_step, kind="lora_audit", metrics=lora_audit_metrics(report))
        writer.close()
