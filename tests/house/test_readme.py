"""Every command that the README shows is run here, from a folder that looks like a fresh clone."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toy_run import Toy
from warmed import Warmed

from gradience.cli.main import main

MARKED = re.compile(r"<!-- run: (?P<name>[\w-]+) -->\n```(?:bash|python)\n(?P<code>.*?)```", re.DOTALL)
FENCED = re.compile(r"```bash\n(.*?)```", re.DOTALL)


def readme(root: Path) -> str:
    return (root / "README.md").read_text(encoding="utf-8")


def commands(root: Path) -> dict[str, str]:
    return {hit["name"]: hit["code"].strip() for hit in MARKED.finditer(readme(root))}


@pytest.fixture(scope="module")
def clone(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the clone's examples and what the first command left, where runs/ can be written."""
    return shutil.copytree(toy.clone, tmp_path_factory.mktemp("readme") / "clone")


def shell(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(["bash", "-c", command], cwd=cwd, env=env, capture_output=True, text=True, check=False)


IN_A_SHELL = {"check", "monitor", "validate"}  # the installed program; the other verbs, which import JAX, are called


def run(line: str, cwd: Path, warmed: Warmed) -> subprocess.CompletedProcess[str]:
    """Run one line of the README in the folder; `python` is a fork that has imported torch."""
    program, *words = shlex.split(line)
    if program == "python":
        return warmed.run(*words, cwd=cwd, HF_HUB_OFFLINE="1")
    if words[0] in IN_A_SHELL:
        return shell(line, cwd)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        return subprocess.CompletedProcess(line, main(words), out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def golden(root: Path, toy: Toy, clone: Path, warmed: Warmed) -> dict[str, subprocess.CompletedProcess[str]]:
    """The four steps and what may follow them, run in the README's order; of two lines, the first that fails."""
    found = {"toy": subprocess.CompletedProcess("toy", 0, toy.out, toy.err)}
    for name, code in commands(root).items():
        if name != "toy":
            lines = [run(line, clone, warmed) for line in code.splitlines()]
            found[name] = max(lines, key=lambda done: done.returncode != 0)
    return found


def test_the_four_steps_are_there_and_every_marked_command_succeeds(golden):
    assert list(golden)[:4] == ["toy", "check", "monitor", "audit"]
    assert {name: done.stderr for name, done in golden.items() if done.returncode} == {}


def test_every_shell_line_of_the_readme_is_run_by_a_test_or_by_ci(root, golden):
    lines = {line.strip() for block in FENCED.findall(readme(root)) for line in block.splitlines() if line.strip()}
    marked = {line.strip() for code in commands(root).values() for line in code.splitlines()}
    ci = (root / ".ci" / "run").read_text(encoding="utf-8")
    nox = (root / "noxfile.py").read_text(encoding="utf-8")
    rest = {line for line in lines - marked if not all(part in ci for part in line.split(" && "))}
    golden_line = next(line for line in rest if "golden_path" in line)
    installs = {"pip install -e '.[report]'", "pip install torch transformers peft safetensors datasets"}
    assert rest == {golden_line} | installs
    assert '"-e", ".[report]"' in nox  # what the two install lines say, the golden_path session does
    assert 'HUB_PACKAGES = ["torch", "transformers", "peft", "safetensors", "datasets"]' in nox


@pytest.mark.slow
def test_the_golden_path_line_works_from_a_bare_clone(root, tmp_path):
    if not os.environ.get("GRADIENCE_SLOW"):
        pytest.skip("installs everything anew; run by 'nox -s properties'")
    line = next(line for block in FENCED.findall(readme(root)) for line in block.splitlines() if "golden_path" in line)
    subprocess.run(["git", "clone", "-q", str(root), str(tmp_path / "clone")], check=True)
    done = shell(line, tmp_path / "clone")
    assert done.returncode == 0, done.stderr
    assert "GRADIENCE LoRA AUDIT" in done.stdout
