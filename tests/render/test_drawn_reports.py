"""What the terminal and the pages show of reports that a seed drew, line by line."""

from __future__ import annotations

import inspect
import json
from importlib.util import find_spec
from pkgutil import resolve_name

import pytest
from drawn_reports import EACH, GOLDEN, PAGES, VIEWS, report_of, shown

from gradience.schema.document import Report
from gradience.schema.export import json_schema  # noqa: F401  # which imports every report
from gradience.verbs import PRINTED

EXPECTED: dict[str, list[str]] = json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_shows_these_lines_of_drawn_reports(name: str) -> None:
    """`python tests/drawn_reports.py` writes them anew after a change that was meant."""
    if name in PAGES and find_spec("matplotlib") is None:
        pytest.skip("needs matplotlib")
    seeds = [int(key.rpartition(" ")[2]) for key in EXPECTED if key.rpartition(" ")[0] == name]
    assert len(seeds) == EACH
    for seed in seeds:
        assert shown(name, seed) == EXPECTED[f"{name} {seed}"]


def test_str_of_a_report_is_the_text_of_its_command() -> None:
    views = {name: resolve_name(f"gradience.{view}") for name, view in PRINTED.items()}
    assert {
        name: next(iter(inspect.signature(view).parameters.values())).annotation for name, view in views.items()
    } == {name: name for name in views}
    reports = {kind.__name__ for kind in Report.__subclasses__() if kind.__module__.startswith("gradience.")}
    assert reports - views.keys() == {"PreflightReport", "RunsCurvesReport"}  # printed by itself, and a page
    for kind, view in (VIEWS[name] for name in ("check", "fleet audit", "resize")):
        report = report_of(kind, "6")
        assert str(report) == view(report) != repr(report)
