"""Gradience: flight recorder and mechanic for LoRA fine-tuning."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradience import events, fleet, runs
    from gradience.errors import (
        AdapterError,
        ConfigError,
        GradienceError,
        OptionError,
        OutputError,
        RecorderError,
        SchemaError,
    )
    from gradience.hf.before import preflight as preflight
    from gradience.hf.callback import GradienceCallback as GradienceCallback
    from gradience.importers import import_run
    from gradience.recording import TelemetryWriter
    from gradience.rules import list_rules
    from gradience.schema.export import json_schema
    from gradience.telemetry.reader import TelemetryReader, validate_log
    from gradience.verbs.audit.arrays import audit_arrays, audit_pytree
    from gradience.verbs.audit.options import AuditOptions
    from gradience.verbs.audit.run import audit_adapter
    from gradience.verbs.bench.drift import measure_drift
    from gradience.verbs.bench.options import BenchOptions, DriftOptions
    from gradience.verbs.bench.run import bench_adapter, bench_merge
    from gradience.verbs.check.data import check_data
    from gradience.verbs.check.options import DataOptions
    from gradience.verbs.check.run import CheckOptions, check_config
    from gradience.verbs.compare.run import compare_adapters
    from gradience.verbs.convert.options import ConvertOptions
    from gradience.verbs.convert.run import convert_adapter
    from gradience.verbs.diagnose.options import DiagnoseOptions
    from gradience.verbs.diagnose.run import diagnose
    from gradience.verbs.merge.check import merge_check
    from gradience.verbs.merge.options import MergeOptions
    from gradience.verbs.merge.run import merge_adapters
    from gradience.verbs.monitor.run import monitor_run
    from gradience.verbs.receipt.options import ReceiptOptions
    from gradience.verbs.receipt.run import make_receipt, verify_served
    from gradience.verbs.report.options import ReportOptions
    from gradience.verbs.report.run import write_report
    from gradience.verbs.resize.options import ResizeOptions
    from gradience.verbs.resize.run import resize_adapter
    from gradience.verbs.verify.run import verify_merged
    from gradience.verbs.why.run import explain_difference

_HOMES = {
    "AdapterError": "gradience.errors",
    "AuditOptions": "gradience.verbs.audit.options",
    "BenchOptions": "gradience.verbs.bench.options",
    "CheckOptions": "gradience.verbs.check.run",
    "ConfigError": "gradience.errors",
    "ConvertOptions": "gradience.verbs.convert.options",
    "DataOptions": "gradience.verbs.check.options",
    "DiagnoseOptions": "gradience.verbs.diagnose.options",
    "DriftOptions": "gradience.verbs.bench.options",
    "GradienceCallback": "gradience.hf",
    "GradienceError": "gradience.errors",
    "MergeOptions": "gradience.verbs.merge.options",
    "OptionError": "gradience.errors",
    "OutputError": "gradience.errors",
    "RecorderError": "gradience.errors",
    "ReceiptOptions": "gradience.verbs.receipt.options",
    "ReportOptions": "gradience.verbs.report.options",
    "ResizeOptions": "gradience.verbs.resize.options",
    "SchemaError": "gradience.errors",
    "TelemetryReader": "gradience.telemetry.reader",
    "TelemetryWriter": "gradience.recording",
    "audit_adapter": "gradience.verbs.audit.run",
    "audit_arrays": "gradience.verbs.audit.arrays",
    "audit_pytree": "gradience.verbs.audit.arrays",
    "bench_adapter": "gradience.verbs.bench.run",
    "bench_merge": "gradience.verbs.bench.run",
    "check_config": "gradience.verbs.check.run",
    "check_data": "gradience.verbs.check.data",
    "compare_adapters": "gradience.verbs.compare.run",
    "convert_adapter": "gradience.verbs.convert.run",
    "diagnose": "gradience.verbs.diagnose.run",
    "explain_difference": "gradience.verbs.why.run",
    "import_run": "gradience.importers",
    "json_schema": "gradience.schema.export",
    "list_rules": "gradience.rules",
    "make_receipt": "gradience.verbs.receipt.run",
    "measure_drift": "gradience.verbs.bench.drift",
    "merge_adapters": "gradience.verbs.merge.run",
    "merge_check": "gradience.verbs.merge.check",
    "monitor_run": "gradience.verbs.monitor.run",
    "preflight": "gradience.hf",
    "resize_adapter": "gradience.verbs.resize.run",
    "validate_log": "gradience.telemetry.reader",
    "verify_merged": "gradience.verbs.verify.run",
    "verify_served": "gradience.verbs.receipt.run",
    "write_report": "gradience.verbs.report.run",
}

__version__: str

_ROOMS = frozenset({"events", "fleet", "runs"})  # modules used by their name, as in gradience.fleet.open

# What a base install can import. `GradienceCallback` needs the extra `hf`, and `dir` shows it where that is installed.
__all__ = [
    "AdapterError",
    "AuditOptions",
    "BenchOptions",
    "CheckOptions",
    "ConfigError",
    "ConvertOptions",
    "DataOptions",
    "DiagnoseOptions",
    "DriftOptions",
    "GradienceError",
    "MergeOptions",
    "OptionError",
    "OutputError",
    "ReceiptOptions",
    "RecorderError",
    "ReportOptions",
    "ResizeOptions",
    "SchemaError",
    "TelemetryReader",
    "TelemetryWriter",
    "__version__",
    "audit_adapter",
    "audit_arrays",
    "audit_pytree",
    "bench_adapter",
    "bench_merge",
    "check_config",
    "check_data",
    "compare_adapters",
    "convert_adapter",
    "diagnose",
    "events",
    "explain_difference",
    "fleet",
    "import_run",
    "json_schema",
    "list_rules",
    "make_receipt",
    "measure_drift",
    "merge_adapters",
    "merge_check",
    "monitor_run",
    "resize_adapter",
    "runs",
    "validate_log",
    "verify_merged",
    "verify_served",
    "write_report",
]


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that `import gradience` costs nothing (PEP 562)."""
    if name == "__version__":
        return import_module("importlib.metadata").version("gradience")
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    from importlib.util import find_spec  # only a person at a prompt asks

    has_trainer = all(find_spec(name) for name in ("torch", "transformers"))
    return sorted([*__all__, *(["GradienceCallback", "preflight"] if has_trainer else [])])
