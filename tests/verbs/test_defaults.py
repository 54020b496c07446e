"""What commands, their options and the library's functions do unless told otherwise, by value.

A default that moves is a decision. One that writes over a file, or that costs minutes, is off, and so are all that are
not listed: a number is 0, a flag is off, a word is empty.
"""

from __future__ import annotations

import dataclasses
import inspect
from importlib import import_module
from typing import Any, get_type_hints

import gradience
from gradience.cli.main import BELOW, COMMANDS, GROUPS
from gradience.ranges import VerbOptions

RECORDS: dict[str, dict[str, Any]] = {  # of options, and what their fields are unless told otherwise
    "AuditOptions": {"intruder_k": 10, "intruder_eps": 0.5, "norms_cache": True},
    "BenchOptions": {"tolerance": "1%", "timeout": 3600.0},
    "CheckOptions": {},
    "ConvertOptions": {"to": "peft"},
    "DataOptions": {"samples": 10000},
    "DiagnoseOptions": {},
    "DriftOptions": {"rows": 32},
    "MergeOptions": {"method": "linear"},
    "ReceiptOptions": {"rows": 16},
    "ReportOptions": {},
    "ResizeOptions": {},
}
FUNCTIONS: dict[str, dict[str, Any]] = {  # beside their records of options
    "audit_arrays": {"scale": 1.0},
    "bench_merge": {"methods": ("linear", "svd", "ties"), "weights": (None,)},
    "json_schema": {"name": "telemetry"},
    "monitor_run": {"gap_threshold": 1.5},
    "validate_log": {"max_issues": 100},
    "verify_served": {"timeout": 120.0},
    "TelemetryWriter": {"max_str_len": 256, "fsync": "auto", "siblings": True, "on_error": "warn"},
}
OF_COMMANDS: dict[str, dict[str, Any]] = {  # beside the library's records
    "audit": {"device": "auto", "top_wasteful": 3},
    "bench merge": {"method": "linear,svd,ties"},
    "compare": {"device": "auto", "top": 5},
    "fleet show": {"top": 10},
    "runs": {"metric": "train/loss"},
    "runs best": {"limit": 5},
    "schema": {"name": "telemetry"},
    "validate": {"max_issues": 100},
    "verify": {"fail_on": "verdict", "timeout": 120.0},
}
NOTHING = (inspect.Parameter.empty, None, (), False, 0, "")


def given(of: Any) -> dict[str, Any]:
    """The defaults of a function, or of a record's fields, that are not those of nothing."""
    if dataclasses.is_dataclass(of):
        found = {field.name: field.default for field in dataclasses.fields(of)}
    else:
        found = {p.name: p.default for p in inspect.signature(of).parameters.values()}
    plain = {name: value for name, value in found.items() if isinstance(value, bool | int | float | str | tuple)}
    return {name: value for name, value in plain.items() if value not in NOTHING}


def of_command(target: str) -> dict[str, Any]:
    """The defaults of a command and of its own records."""
    module, _, name = target.partition(":")
    command = getattr(import_module(module), name)
    records = {kind for hint in get_type_hints(command).values() for kind in getattr(hint, "__mro__", ())}
    own = [kind for kind in records if dataclasses.is_dataclass(kind) and VerbOptions not in kind.__mro__]
    return {name: value for each in (command, *own) for name, value in given(each).items()}


def test_records_and_functions_have_these_defaults_and_no_others():
    public = {name: getattr(gradience, name) for name in gradience.__all__ if name[0] != "_"}
    records = {name: given(each) for name, each in public.items() if name.endswith("Options")}
    assert records == RECORDS
    functions = {name: given(each) for name, each in public.items() if inspect.isfunction(each) or name in FUNCTIONS}
    assert {name: held for name, held in functions.items() if held} == FUNCTIONS


def test_commands_have_these_defaults_and_no_others():
    targets = {name: target for name, (target, _) in COMMANDS.items()}
    targets |= {f"{verb} {name}": target for verb, below in BELOW.items() for name, (target, _) in below.items()}
    targets |= {
        f"{group} {name}": target for group, (_, below) in GROUPS.items() for name, (target, _) in below.items()
    }
    found = {name: of_command(target) for name, target in targets.items()}
    assert {name: held for name, held in found.items() if held} == OF_COMMANDS
