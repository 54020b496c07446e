"""The recorder: write typed events to a ``run.jsonl``, and read them back."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradience.telemetry.codec import decode, encode
    from gradience.telemetry.reader import TelemetryReader
    from gradience.telemetry.writer import TelemetryWriter

__all__ = ["TelemetryReader", "TelemetryWriter", "decode", "encode"]

_HOMES = {
    "TelemetryReader": "gradience.telemetry.reader",
    "TelemetryWriter": "gradience.telemetry.writer",
    "decode": "gradience.telemetry.codec",
    "encode": "gradience.telemetry.codec",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that a reader does not import the writer."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
