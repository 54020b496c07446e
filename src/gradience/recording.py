"""`TelemetryWriter` for a training loop: with what knows torch, so that it can watch what is trained."""

from __future__ import annotations

from typing import Any, Unpack

from gradience.telemetry.writer import TelemetryWriter, WatchHandle, WatchKeywords

__all__ = ["TelemetryWriter"]


def _wires(log: TelemetryWriter, model: Any, optimizer: Any, **options: Unpack[WatchKeywords]) -> WatchHandle:
    from gradience.hf.wires import Wires  # torch, which a loop in JAX does not have

    return Wires(log, model, optimizer, **options)


TelemetryWriter.watched_by = _wires
