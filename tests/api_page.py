"""The page docs/api.md: one line for each public name, from its docstring; the site adds the docstrings whole.

After an intended change, `python tests/api_page.py` (`nox -s rules_page`) writes the page again.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import gradience

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "api.md"
_TOP: Final = """\
# Python API

Every verb is a function that returns a report. A report is a frozen [msgspec](https://jcristharif.com/msgspec/) Struct
with the content of `--json`, and printed the command's text. `help(gradience.audit_adapter)` shows a name's docstring;
`nox -s docs` builds a site with all of them. `python tests/api_page.py` writes this page.
"""
_LOOK: Final = "check_config CheckOptions check_data DataOptions monitor_run explain_difference audit_adapter"
_ACT: Final = "resize_adapter ResizeOptions convert_adapter ConvertOptions compare_adapters merge_check merge_adapters"
FOR_TRAINERS: Final = {"GradienceCallback": "callback.py", "preflight": "before.py"}  # of hf, which needs torch
GROUPS: Final = {
    "Look": f"{_LOOK} AuditOptions audit_arrays audit_pytree diagnose DiagnoseOptions write_report ReportOptions",
    "Act": f"{_ACT} MergeOptions verify_merged",
    "Measure": "bench_adapter BenchOptions bench_merge measure_drift DriftOptions make_receipt ReceiptOptions "
    "verify_served",
    "Record and read": "preflight GradienceCallback events TelemetryWriter TelemetryReader validate_log import_run",
    "Many runs and adapters": "runs fleet",
    "Rules and schemas": "list_rules json_schema",
    "Errors": "GradienceError AdapterError ConfigError OptionError OutputError RecorderError SchemaError",
}


def page() -> str:
    """The page, from the package as it is."""
    return "\n".join([_TOP, *_sections()])


def _sections() -> Iterator[str]:
    names = {*gradience.__all__, *FOR_TRAINERS} - {"__version__"}
    groups = {heading: words.split() for heading, words in GROUPS.items()}
    groups["More"] = sorted(names - {name for group in groups.values() for name in group})
    for heading, group in groups.items():
        if group:
            yield f"## {heading}\n\n| name | what it is or does |\n|---|---|"
            yield from (f"| `{name}` | {_line(name)} |" for name in group)
            yield ""


def _line(name: str) -> str:
    """The first line of a name's docstring; of what needs torch to import, it is read from its file."""
    if name in FOR_TRAINERS:
        tree = ast.parse((ROOT / "src/gradience/hf" / FOR_TRAINERS[name]).read_text(encoding="utf-8"))
        (node,) = (n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name)
        text = ast.get_docstring(node)
    else:
        text = inspect.getdoc(getattr(gradience, name))
    return (text or "").splitlines()[0].replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(f"{PAGE}\n")
    PAGE.write_text(page(), encoding="utf-8")
