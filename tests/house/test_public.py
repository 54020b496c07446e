"""The package at a prompt: help, star import and inspection without torch; reports as summaries and tables."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import gradience
from gradience.errors import SchemaError

BASE = """
import sys
class Absent:  # what a base install does not have
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {'torch', 'transformers', 'peft', 'datasets', 'accelerate', 'matplotlib'}:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Absent())
sys.modules.update(torch=None, transformers=None)
"""


def in_a_base_install(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BASE + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_help_lists_the_verbs_in_a_base_install():
    said = in_a_base_install("import gradience\nhelp(gradience)")
    for name in ("audit_adapter", "list_rules", "TelemetryWriter", "0.1.0"):
        assert name in said


def test_star_import_and_members_work_in_a_base_install():
    said = in_a_base_install(
        "from gradience import *\nimport gradience, inspect\n"
        "print(audit_adapter.__name__, *(name for name, _ in inspect.getmembers(gradience)))"
    )
    assert said.split() == ["audit_adapter", *sorted(gradience.__all__)]


def test_the_callback_is_shown_where_it_can_be_had_and_asks_for_its_extra_elsewhere():
    assert ("GradienceCallback" in dir(gradience)) == (sys.modules.get("transformers") is not None or _installed())
    with pytest.raises(AssertionError, match=r"pip install 'gradience\[hf\]'"):
        in_a_base_install("from gradience import GradienceCallback")


def _installed() -> bool:
    from importlib.util import find_spec

    return all(find_spec(name) for name in ("torch", "transformers"))


def test_the_version_is_that_of_the_distribution():
    assert gradience.__version__ == version("gradience")


def test_rules_and_schemas_are_functions_too():
    report = gradience.list_rules("lr00")
    assert [card.id for card in report.rules][:2] == ["LR001", "LR002"]
    with pytest.raises(gradience.ConfigError, match="unknown rule 'XX'"):
        gradience.list_rules("XX")
    assert gradience.json_schema("audit")["title"]
    with pytest.raises(SchemaError, match="no schema is called 'audits'") as error:
        gradience.json_schema("audits")
    assert "audit, check" in error.value.advice
