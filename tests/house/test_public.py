"""The package at a prompt: its names, its version, and the other project of this name (help: installs.py)."""

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
        if name.split('.')[0] in {'torch', 'transformers'}:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Absent())
from gradience import GradienceCallback
"""


def test_the_callback_is_shown_where_it_can_be_had_and_asks_for_its_extra_elsewhere():
    assert set(dir(gradience)) - {"GradienceCallback", "preflight"} == set(gradience.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = gradience.nothing
    assert ("GradienceCallback" in dir(gradience)) == (sys.modules.get("transformers") is not None or _installed())
    done = subprocess.run([sys.executable, "-c", BASE], capture_output=True, text=True, check=False)
    assert "in the clone: pip install -e '.[hf]'" in done.stderr


def _installed() -> bool:
    from importlib.util import find_spec

    return all(find_spec(name) for name in ("torch", "transformers"))


def test_the_version_is_that_of_the_distribution():
    assert gradience.__version__ == version("gradience")


def test_rules_and_schemas_are_functions_too():
    report = gradience.list_rules("lr00")
    assert [card.id for card in report.rules][:2] == ["LR001", "LR003"]
    with pytest.raises(gradience.ConfigError, match="unknown rule 'XX'"):
        gradience.list_rules("XX")
    assert gradience.json_schema("audit")["title"]
    with pytest.raises(SchemaError, match="no schema is called 'audits'") as error:
        gradience.json_schema("audits")
    assert "audit, bench, check" in error.value.advice


# The name


@pytest.fixture
def other(tmp_path, monkeypatch):
    """The other project of this name, installed beside ours."""
    info = tmp_path / "gradience-0.11.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: gradience\nVersion: 0.11.0\nSummary: Spectral telemetry.\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_another_project_of_this_name_is_told_from_this_one(other):
    from gradience.errors import other_project

    assert "another project named gradience (0.11.0) is installed" in other_project()
    assert "pip uninstall gradience, then install this one from its clone or wheel" in other_project()


def test_this_one_is_not_taken_for_another():
    from gradience.errors import other_project

    assert other_project() is None


def test_version_names_the_other_project(other, capsys):
    from gradience.cli.main import main

    assert main(["--version"]) == 0
    assert "another project named gradience (0.11.0)" in " ".join(capsys.readouterr().out.split())


def test_the_summary_is_that_of_the_project_file(root):
    import tomllib

    from gradience.errors import SUMMARY

    assert tomllib.loads((root / "pyproject.toml").read_text())["project"]["description"] == SUMMARY


def test_no_installation_line_installs_the_other_project(root):
    pages = [root / "README.md", *(root / "docs").rglob("*.md")]
    lines = [line for page in pages for line in page.read_text(encoding="utf-8").splitlines()]
    assert [line for line in lines if "pip install 'gradience" in line or "pip install gradience[" in line] == []
    said = [line for line in lines if "pip install gradience" in line]
    assert said
    assert all("another project" in line for line in said)
