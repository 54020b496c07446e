"""The recorder: typed events in and out of a ``run.jsonl``."""

from __future__ import annotations

from gradience.telemetry.codec import decode, encode
from gradience.telemetry.reader import TelemetryReader
from gradience.telemetry.writer import TelemetryWriter

__all__ = ["TelemetryReader", "TelemetryWriter", "decode", "encode"]
