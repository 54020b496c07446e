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
    from gradience.judge.audit import audit_adapter
    from gradience.judge.audit.arrays import audit_arrays, audit_pytree
    from gradience.judge.check import CheckOptions, check_config
    from gradience.judge.check.data import check_data
    from gradience.judge.check.options import DataOptions
    from gradience.judge.diagnose import diagnose
    from gradience.judge.monitor import monitor_run
    from gradience.judge.options import AuditOptions, DiagnoseOptions, ReportOptions
    from gradience.judge.why import explain_difference
    from gradience.prove.bench import bench_adapter, bench_merge
    from gradience.prove.drift import measure_drift
    from gradience.prove.options import BenchOptions, DriftOptions, ReceiptOptions
    from gradience.prove.receipt import make_receipt, verify_served
    from gradience.prove.verify_merge import verify_merged
    from gradience.recording import TelemetryWriter
    from gradience.report import write_report
    from gradience.rewrite.compare import compare_adapters
    from gradience.rewrite.convert import convert_adapter
    from gradience.rewrite.merge import merge_adapters
    from gradience.rewrite.merge.check import merge_check
    from gradience.rewrite.options import ConvertOptions, MergeOptions, ResizeOptions
    from gradience.rewrite.resize import resize_adapter
    from gradience.rules import list_rules
    from gradience.schema.export import json_schema
    from gradience.telemetry.reader import TelemetryReader, validate_log

_HOMES = {
    "AdapterError": "gradience.errors",
    "AuditOptions": "gradience.judge.options",
    "BenchOptions": "gradience.prove.options",
    "CheckOptions": "gradience.judge.check",
    "ConfigError": "gradience.errors",
    "ConvertOptions": "gradience.rewrite.options",
    "DataOptions": "gradience.judge.check.options",
    "DiagnoseOptions": "gradience.judge.options",
    "DriftOptions": "gradience.prove.options",
    "GradienceCallback": "gradience.hf",
    "GradienceError": "gradience.errors",
    "MergeOptions": "gradience.rewrite.options",
    "OptionError": "gradience.errors",
    "OutputError": "gradience.errors",
    "RecorderError": "gradience.errors",
    "ReceiptOptions": "gradience.prove.options",
    "ReportOptions": "gradience.judge.options",
    "ResizeOptions": "gradience.rewrite.options",
    "SchemaError": "gradience.errors",
    "TelemetryReader": "gradience.telemetry.reader",
    "TelemetryWriter": "gradience.recording",
    "audit_adapter": "gradience.judge.audit",
    "audit_arrays": "gradience.judge.audit.arrays",
    "audit_pytree": "gradience.judge.audit.arrays",
    "bench_adapter": "gradience.prove.bench",
    "bench_merge": "gradience.prove.bench",
    "check_config": "gradience.judge.check",
    "check_data": "gradience.judge.check.data",
    "compare_adapters": "gradience.rewrite.compare",
    "convert_adapter": "gradience.rewrite.convert",
    "diagnose": "gradience.judge.diagnose",
    "explain_difference": "gradience.judge.why",
    "import_run": "gradience.importers",
    "json_schema": "gradience.schema.export",
    "list_rules": "gradience.rules",
    "make_receipt": "gradience.prove.receipt",
    "measure_drift": "gradience.prove.drift",
    "merge_adapters": "gradience.rewrite.merge",
    "merge_check": "gradience.rewrite.merge.check",
    "monitor_run": "gradience.judge.monitor",
    "preflight": "gradience.hf",
    "resize_adapter": "gradience.rewrite.resize",
    "validate_log": "gradience.telemetry.reader",
    "verify_merged": "gradience.prove.verify_merge",
    "verify_served": "gradience.prove.receipt",
    "write_report": "gradience.report",
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
