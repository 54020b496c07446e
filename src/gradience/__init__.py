"""Gradience: flight recorder and mechanic for LoRA fine-tuning."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradience.audit import audit_adapter
    from gradience.check import check_config
    from gradience.compare import compare_adapters
    from gradience.convert import convert_adapter
    from gradience.diagnosis import diagnose
    from gradience.errors import AdapterError, ConfigError, GradienceError, OutputError, RecorderError, SchemaError
    from gradience.hf.callback import GradienceCallback
    from gradience.imports import import_run
    from gradience.merge import merge_adapters, merge_check
    from gradience.mitigate import mitigate_adapter
    from gradience.monitor import monitor_run
    from gradience.monitor.compare import compare_runs
    from gradience.report.write import write_report
    from gradience.resize import resize_adapter
    from gradience.telemetry.reader import TelemetryReader
    from gradience.telemetry.writer import TelemetryWriter
    from gradience.validate import validate_log
    from gradience.verify_merge import verify_merged

_HOMES = {
    "AdapterError": "gradience.errors",
    "ConfigError": "gradience.errors",
    "GradienceCallback": "gradience.hf",
    "GradienceError": "gradience.errors",
    "OutputError": "gradience.errors",
    "RecorderError": "gradience.errors",
    "SchemaError": "gradience.errors",
    "TelemetryReader": "gradience.telemetry.reader",
    "TelemetryWriter": "gradience.telemetry.writer",
    "audit_adapter": "gradience.audit",
    "check_config": "gradience.check",
    "compare_adapters": "gradience.compare",
    "compare_runs": "gradience.monitor.compare",
    "convert_adapter": "gradience.convert",
    "diagnose": "gradience.diagnosis",
    "import_run": "gradience.imports",
    "mitigate_adapter": "gradience.mitigate",
    "merge_adapters": "gradience.merge",
    "merge_check": "gradience.merge",
    "monitor_run": "gradience.monitor",
    "resize_adapter": "gradience.resize",
    "validate_log": "gradience.validate",
    "verify_merged": "gradience.verify_merge",
    "write_report": "gradience.report.write",
}

__all__ = [
    "AdapterError",
    "ConfigError",
    "GradienceCallback",
    "GradienceError",
    "OutputError",
    "RecorderError",
    "SchemaError",
    "TelemetryReader",
    "TelemetryWriter",
    "audit_adapter",
    "check_config",
    "compare_adapters",
    "compare_runs",
    "convert_adapter",
    "diagnose",
    "import_run",
    "merge_adapters",
    "merge_check",
    "mitigate_adapter",
    "monitor_run",
    "resize_adapter",
    "validate_log",
    "verify_merged",
    "write_report",
]


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that `import gradience` costs nothing (PEP 562)."""
    if name not in _HOMES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
