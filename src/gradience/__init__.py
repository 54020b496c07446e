"""Gradience: flight recorder and mechanic for LoRA fine-tuning."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradience import fleet, runs
    from gradience.errors import AdapterError, ConfigError, GradienceError, OutputError, RecorderError, SchemaError
    from gradience.hf.callback import GradienceCallback
    from gradience.importers.run import import_run
    from gradience.telemetry.reader import TelemetryReader
    from gradience.telemetry.validate import validate_log
    from gradience.telemetry.writer import TelemetryWriter
    from gradience.verbs.audit import audit_adapter
    from gradience.verbs.check import check_config
    from gradience.verbs.check.data import check_data
    from gradience.verbs.compare import compare_adapters
    from gradience.verbs.convert import convert_adapter
    from gradience.verbs.diagnose import diagnose
    from gradience.verbs.merge import merge_adapters, merge_check
    from gradience.verbs.mitigate import mitigate_adapter
    from gradience.verbs.monitor import monitor_run
    from gradience.verbs.monitor.compare import compare_runs
    from gradience.verbs.report.write import write_report
    from gradience.verbs.resize import resize_adapter
    from gradience.verbs.verify_merge import verify_merged

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
    "audit_adapter": "gradience.verbs.audit",
    "check_config": "gradience.verbs.check",
    "check_data": "gradience.verbs.check.data",
    "compare_adapters": "gradience.verbs.compare",
    "compare_runs": "gradience.verbs.monitor.compare",
    "convert_adapter": "gradience.verbs.convert",
    "diagnose": "gradience.verbs.diagnose",
    "import_run": "gradience.importers.run",
    "mitigate_adapter": "gradience.verbs.mitigate",
    "merge_adapters": "gradience.verbs.merge",
    "merge_check": "gradience.verbs.merge",
    "monitor_run": "gradience.verbs.monitor",
    "resize_adapter": "gradience.verbs.resize",
    "validate_log": "gradience.telemetry.validate",
    "verify_merged": "gradience.verbs.verify_merge",
    "write_report": "gradience.verbs.report.write",
}

_ROOMS = frozenset({"fleet", "runs"})  # modules that are used by their name: gradience.fleet.open

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
    "check_data",
    "compare_adapters",
    "compare_runs",
    "convert_adapter",
    "diagnose",
    "fleet",
    "import_run",
    "merge_adapters",
    "merge_check",
    "mitigate_adapter",
    "monitor_run",
    "resize_adapter",
    "runs",
    "validate_log",
    "verify_merged",
    "write_report",
]


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that `import gradience` costs nothing (PEP 562)."""
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
