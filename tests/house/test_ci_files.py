"""The GitHub Action and the pre-commit hook run as their programs would run them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
GOOD = """base_model: llama-3.1-8b
adapter: lora
lora_r: 16
lora_alpha: 32
lora_target_linear: true
learning_rate: 0.0002
"""
BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="needs bash")


@pytest.fixture
def place(tmp_path):
    """A folder with two configurations, and commands `gradience` and `python` on the PATH."""
    (tmp_path / "good.yaml").write_text(GOOD, encoding="utf-8")
    (tmp_path / "too fast.yaml").write_text(GOOD.replace("0.0002", "0.5"), encoding="utf-8")
    own = tmp_path / "bin"
    own.mkdir()
    (own / "gradience").write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m gradience "$@"\n', encoding="utf-8"
    )
    (own / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    for made in own.iterdir():
        made.chmod(0o755)
    return tmp_path


def _bash(place: Path, command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    given = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path), **env}
    return subprocess.run(command, cwd=place, env=given, capture_output=True, text=True, check=False)


def test_the_action_checks_every_file_and_fails_by_the_gravest(place):
    install, check = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))["runs"]["steps"]
    bash = [str(BASH), "--noprofile", "--norc", "-e", "-o", "pipefail", "-c"]  # as GitHub starts it
    assert _bash(place, [*bash, install["run"]], SOURCE="a b").stdout.split("\n")[-2] == "a b"
    assert install["env"] == {"SOURCE": "${{ github.action_path }}"}
    assert check["env"] == {"FILES": "${{ inputs.files }}", "FAIL_ON": "${{ inputs.fail-on }}"}

    def checked(files: str, fail_on: str = "warning") -> subprocess.CompletedProcess[str]:
        return _bash(place, [*bash, check["run"]], FILES=files, FAIL_ON=fail_on)

    both = checked("too fast.yaml\ngood.yaml\n")
    assert both.returncode == 1
    assert "file=too fast.yaml,line=6,title=gradience LR" in both.stdout
    assert checked("too fast.yaml", "critical").returncode == 0
    assert checked("absent.yaml\ngood.yaml").returncode == 2


def test_the_hook_checks_every_file_that_pre_commit_names(place):
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    command = shlex.split(hook["entry"])  # as pre-commit splits it; it appends the names
    failed = _bash(place, [*command, "too fast.yaml", "good.yaml"])
    assert (failed.returncode, "file=too fast.yaml,line=6" in failed.stdout) == (1, True)


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{cited["version"]}"' in text
    assert f'license = "{cited["license"]}"' in text
    assert cited["authors"]
