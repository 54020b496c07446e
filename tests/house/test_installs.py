"""The base install keeps its promises; `nox -s installs` tries every extra in fresh environments.

Here everything that the install would not bring is hidden from a process, which costs 5 s of processor time each and no
download.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest


@pytest.mark.slow  # and by CI
@pytest.mark.parametrize("extra", ["base", "fleet"])
def test_what_an_install_promises_works_and_the_rest_says_what_to_install_before_any_work(root: Path, extra: str):
    command = [sys.executable, str(root / "tests" / "installs.py"), extra, "--hide"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.startswith(f"{extra}: 0 promises not kept, ")


def test_what_is_hidden_is_missed(root: Path):
    script = root / "tests" / "installs.py"
    code = (
        f"import runpy, sys; tried = runpy.run_path({str(script)!r}); tried['hide_others']('')\n"
        "from gradience.errors import require\n"
        "try: import duckdb\n"
        "except ModuleNotFoundError: print('hidden')\n"
        "try: require('msgspec', 'duckdb', 'xxhash', extra='fleet', what='it')\n"
        "except Exception as error: print(error.message, '|', error.advice)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    said = "it needs duckdb and xxhash, which are not installed | in the clone: pip install -e '.[fleet]'"
    assert done.stdout.splitlines() == ["hidden", said], done.stderr


def test_each_supported_python_has_a_classifier_and_the_lowest_is_required(root: Path):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    stem = "Programming Language :: Python :: 3."
    minors = sorted(int(line.removeprefix(stem)) for line in project["classifiers"] if line.startswith(stem))
    assert minors == list(range(minors[0], minors[-1] + 1))
    assert project["requires-python"] == f">=3.{minors[0]}"
