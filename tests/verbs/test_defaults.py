"""What the library's functions do unless told otherwise, by value: a default that moves is a decision.

A default that writes over a file, or that costs minutes, is off.
"""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest

import gradience

DEFAULTS: dict[str, dict[str, Any]] = {  # beside None and empty sequences
    "audit_adapter": {
        "top_singular_values": 0,
        "suggest_per_layer": False,
        "intruders": False,
        "intruder_k": 10,
        "intruder_eps": 0.5,
        "norms_cache": True,
        "seed": 0,
    },
    "audit_arrays": {"scale": 1.0, "top_singular_values": 0},
    "check_data": {"samples": 10_000, "seed": 0, "show_rows": False},
    "compare_runs": {"gap_threshold": 1.5, "all_runs": False},
    "convert_adapter": {"to": "peft", "drop": False, "force": False},
    "diagnose": {"gap_threshold": 1.5},
    "import_run": {"force": False},
    "json_schema": {"name": "telemetry"},
    "merge_adapters": {"method": "linear", "seed": 0, "force": False},
    "merge_check": {"exact": False, "seed": 0},
    "mitigate_adapter": {"scale": 0.5, "k": 10, "eps": 0.5, "seed": 0, "force": False},
    "monitor_run": {"gap_threshold": 1.5},
    "resize_adapter": {"like_suggested": False, "pieces": "two-sided", "seed": 0, "force": False},
    "validate_log": {"max_issues": 100},
    "verify_merged": {"threads": 1},
    "write_report": {"force": False},
    "TelemetryWriter": {
        "allow_text": False,
        "max_str_len": 256,
        "fsync": "auto",
        "siblings": True,
        "on_error": "warn",
    },
}
BENCHES = {
    "bench_adapter": {},
    "bench_merge": {"methods": ("linear", "svd", "ties"), "weights": (None,)},
    "bench_mitigate": {"scales": (0.0, 0.5)},
}
OF_A_BENCH = {"tolerance": "1%", "lower_is_better": False, "seed": 0, "seeds": 3, "timeout": 3600.0, "longest": 1024}


def defaults(name: str) -> dict[str, Any]:
    parameters = inspect.signature(getattr(gradience, name)).parameters.values()
    return {p.name: p.default for p in parameters if p.default not in (inspect.Parameter.empty, None, ())}


@pytest.mark.parametrize("name", DEFAULTS)
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


# --- flags -------------------------------------------------------------------------------------------------------

ROOMS = ("adapters", "base", "io", "rules", "spectral", "telemetry", "verbs.merge", "verbs.resize", "verbs.sides")
ON = {
    *("AdapterConfig.init_lora_weights", "AdapterConfig.init_weights", "AdapterConfig.save_projection"),  # PEFT's own
    *("Format.has_config", "Format.module_paths", "Format.convertible"),
    *("DenseSpectrum.is_whole", "DenseSpectrum.converged"),
    *("each_in_threads.waits", "Line.ended", "TelemetryWriter.siblings", "matched.overlapping"),
}


def modules() -> Iterator[ModuleType]:
    for room in ROOMS:
        package = import_module(f"gradience.{room}")
        yield package
        for found in pkgutil.walk_packages(getattr(package, "__path__", ()), f"{package.__name__}."):
            yield import_module(found.name)


def flags(of: Any) -> Iterator[tuple[str, bool]]:
    """The flags of a function's parameters, of a record's fields, and of a class's methods, with their defaults."""
    if inspect.isfunction(of):
        named = {p.name: p.default for p in inspect.signature(of).parameters.values()}
    elif inspect.isclass(of):
        named = dict(getattr(of, "_field_defaults", {}))
        if hasattr(of, "__struct_fields__"):
            last = of.__struct_defaults__
            named |= dict(zip(of.__struct_fields__[-len(last) :], last, strict=False))
        if dataclasses.is_dataclass(of):
            named |= {field.name: field.default for field in dataclasses.fields(of)}
        for method in filter(inspect.isfunction, vars(of).values()):
            named |= dict(flags(method))
    else:
        return
    yield from ((name, value) for name, value in named.items() if isinstance(value, bool))


def test_a_flag_is_off_unless_asked_for_but_for_these():
    found = {
        (f"{name}.{flag}", value)
        for module in modules()
        for name, each in vars(module).items()
        if getattr(each, "__module__", "") == module.__name__
        for flag, value in flags(each)
    }
    assert len(found) > 50
    assert {name for name, value in found if value} == ON
