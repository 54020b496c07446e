"""What commands, their options and the library's functions do unless told otherwise, by value.

A default that moves is a decision. One that writes over a file, or that costs minutes, is off, and so are all that are
not listed: a number is 0, a flag is off, a word is empty.
"""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from tables import every

import gradience

DEFAULTS: dict[str, dict[str, Any]] = {  # beside None and empty sequences
    "audit_adapter": {"options": gradience.AuditOptions()},
    "audit_arrays": {"scale": 1.0, "top_singular_values": 0},
    "check_config": {"options": gradience.CheckOptions()},
    "check_data": {"options": gradience.DataOptions(), "check": gradience.CheckOptions()},
    "convert_adapter": {"options": gradience.ConvertOptions(), "force": False},
    "diagnose": {"options": gradience.DiagnoseOptions()},
    "import_run": {"force": False},
    "json_schema": {"name": "telemetry"},
    "merge_adapters": {"options": gradience.MergeOptions(), "force": False},
    "merge_check": {"exact": False, "seed": 0},
    "measure_drift": {"options": gradience.DriftOptions()},
    "monitor_run": {"gap_threshold": 1.5},
    "resize_adapter": {"options": gradience.ResizeOptions(), "force": False},
    "validate_log": {"max_issues": 100},
    "verify_served": {"timeout": 120.0},
    "write_report": {"options": gradience.ReportOptions(), "force": False},
    "TelemetryWriter": {
        "allow_text": False,
        "max_str_len": 256,
        "fsync": "auto",
        "siblings": True,
        "on_error": "warn",
    },
}
BENCHES: dict[str, dict[str, Any]] = {
    "bench_adapter": {},
    "bench_merge": {"methods": ("linear", "svd", "ties"), "weights": (None,)},
}
OF_A_BENCH = {"tolerance": "1%", "lower_is_better": False, "seed": 0, "seeds": 3, "timeout": 3600.0}


def defaults(name: str) -> dict[str, Any]:
    parameters = inspect.signature(getattr(gradience, name)).parameters.values()
    return {p.name: p.default for p in parameters if p.default not in (inspect.Parameter.empty, None, ())}


@every("name", DEFAULTS)
def test_a_function_has_these_defaults(name):
    found = defaults(name)
    found.pop("clock", None)
    assert found == DEFAULTS[name]


@pytest.mark.parametrize("name", BENCHES)
def test_the_benches_share_their_options(name):
    found = defaults(name)
    options = found.pop("options")
    assert {field: getattr(options, field) for field in OF_A_BENCH} == OF_A_BENCH
    assert found == BENCHES[name]


def test_every_function_with_a_default_is_listed():
    functions = {name for name in gradience.__all__ if inspect.isfunction(getattr(gradience, name))}
    assert {name for name in functions if defaults(name)} == (DEFAULTS.keys() | BENCHES.keys()) & functions


# --- within ------------------------------------------------------------------------------------------------------

READ = ("cli.", "collect.")  # whose defaults a user meets, beside those of options
WITHIN: dict[str, dict[str, Any]] = {
    "cli.audit": {
        "ViewOptions.top_wasteful": 3,
        "_AuditOptions.intruder_k": 10,
        "_AuditOptions.intruder_eps": 0.5,
        "_AuditOptions.norms_cache": True,
        "audit.device": "auto",
    },
    "cli.bench": {
        "_BenchOptions.tolerance": "1%",
        "_BenchOptions.seeds": 3,
        "_BenchOptions.timeout": 3600.0,
        "merge.method": "linear,svd,ties",
    },
    "cli.check": {"_DataOptions.samples": 10000},
    "cli.fleet": {
        "audit.engine": "local",
        "show.top": 10,
    },
    "cli.runs": {
        "ListOptions.limit": 20,
        "ListOptions.sort": "path",
        "ListOptions.metric": "train/loss",
        "best_run.metric": "eval/loss",
        "best_run.limit": 5,
    },
    "cli.output": {"tell.end": "\n"},
    "cli.merge": {
        "_MergeOptions.method": "linear",
        "merge_check.top": 3,
        "merge_check.device": "auto",
        "verify_merge.fail_on": "verdict",
        "compare.top": 5,
        "compare.device": "auto",
    },
    "cli.drift": {"_DriftOptions.rows": 32},
    "cli.receipt": {"_ReceiptOptions.rows": 16, "verify_served.timeout": 120.0},
    "cli.rewrite": {"_ConvertOptions.to": "peft"},
    "cli.schema": {"schema.name": "telemetry", "validate.max_issues": 100},
    "judge.options": {
        "AuditOptions.intruder_k": 10,
        "AuditOptions.intruder_eps": 0.5,
        "AuditOptions.norms_cache": True,
    },
    "prove.options": {
        "BenchOptions.tolerance": "1%",
        "BenchOptions.seeds": 3,
        "BenchOptions.timeout": 3600.0,
        "ReceiptOptions.rows": 16,
        "DriftOptions.rows": 32,
    },
    "judge.check.options": {"DataOptions.samples": 10000},
    "collect.fleet.audit": {"audit_fleet.engine": "local"},
    "collect.fleet.show": {"show_fleet.top": 10, "show_fleet.cosine": 0.99, "show_fleet.most_pairs": 100},
    "collect.runs.rows": {"read_rows.gap_threshold": 1.5},
    "rewrite.options": {
        "Target.flips": 0.02,
        "ConvertOptions.to": "peft",
        "MergeOptions.method": "linear",
    },
    "collect.runs.best": {"best_runs.top": 5},
    "collect.runs": {
        "run_curves.metric": "train/loss",
        "list_runs.columns": (
            "path",
            "run",
            "model",
            "data",
            "status",
            "verdict",
            "r",
            "lr",
            "steps",
            "first_loss",
            "last_loss",
            "best_eval_loss",
            "eval_accuracy",
            "findings",
        ),
        "list_runs.sort": "path",
    },
}


def named(of: Any) -> Iterator[tuple[str, Any]]:
    """The defaults of a function's parameters, of a record's fields, and of a class's methods."""
    found: dict[str, Any] = {}
    if inspect.isfunction(of):
        found = {p.name: p.default for p in inspect.signature(of).parameters.values()}
    elif inspect.isclass(of):
        found = dict(getattr(of, "_field_defaults", {}))
        if hasattr(of, "__struct_fields__") and not issubclass(of, type):
            last = of.__struct_defaults__
            found |= dict(zip(of.__struct_fields__[len(of.__struct_fields__) - len(last) :], last, strict=True))
        if dataclasses.is_dataclass(of):
            found |= {field.name: field.default for field in dataclasses.fields(of)}
        for method in filter(inspect.isfunction, vars(of).values()):
            head = "" if method.__name__ == "__init__" else f"{method.__name__}."
            found |= {f"{head}{name}": value for name, value in named(method)}
    yield from found.items()


def is_given(value: Any) -> bool:
    """Whether a default is a number, a flag, a word or several of these, and not that of nothing."""
    is_plain = isinstance(value, bool | int | float) or (type(value) is str and " " not in value and "/v" not in value)
    return bool(value) and (is_plain or (type(value) is tuple and all(map(is_given, value))))


def test_what_is_not_nothing_unless_told_otherwise_is_listed_by_value():
    found: dict[str, dict[str, Any]] = {}
    for place in pkgutil.walk_packages(gradience.__path__, "gradience."):
        module = place.name.removeprefix("gradience.")
        if module.startswith(READ) or module.endswith("options"):
            for name, each in vars(import_module(place.name)).items():
                if getattr(each, "__module__", "") == place.name:
                    held = {f"{name}.{key}": value for key, value in named(each) if is_given(value)}
                    found.setdefault(module, {}).update(held)
    assert {module: held for module, held in found.items() if held != WITHIN.get(module, {})} == {}
    assert WITHIN.keys() <= found.keys()
