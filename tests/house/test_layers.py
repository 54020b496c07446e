"""The house: start-up costs, public names, and what may be committed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tables import every

import gradience
from gradience.cli.main import COMMANDS, GROUPS

RUN = Path(__file__).parents[1] / "golden" / "readme"
ML = ("numpy", "jax", "torch", "transformers", "peft", "datasets", "tensorboard")
HEAVY = (*ML, "matplotlib", "duckdb", "pyarrow", "xxhash", "jsonschema", "yaml")


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {line.split(".")[0] for line in done.stdout.splitlines()}


def modules_after_commands(*commands: tuple[str, ...], code: int = 0) -> set[str]:
    """What commands, one after the other in one interpreter, have loaded; each must end with that exit code."""
    ends = f"{{main(list(one)) for one in {commands!r}}}"
    return modules_after(f"from gradience.cli.main import main\nassert {ends} == {{{code}}}")


def test_help_imports_nothing_heavy() -> None:
    below = [(group, name, "--help") for group, (_, names) in GROUPS.items() for name in names]
    assert modules_after_commands(("--help",), *((verb, "--help") for verb in COMMANDS), *below).isdisjoint(HEAVY)


def test_a_mistyped_command_imports_nothing_heavy() -> None:
    assert modules_after_commands(("adit",), code=2).isdisjoint(HEAVY)


def test_reading_settings_and_logs_imports_nothing_heavy(tmp_path: Path) -> None:
    trained, log = tmp_path / "trainer_state.json", str(RUN / "run.jsonl")
    trained.write_text('{"log_history": [{"step": 1, "loss": 0.5}]}')
    loaded = modules_after_commands(
        ("check", "--training-dir", str(RUN / "training")),
        ("monitor", log),
        ("validate", log),
        ("import", str(trained), "--out", str(tmp_path / "run.jsonl")),
    )
    assert loaded.isdisjoint(HEAVY)


def test_importing_the_package_costs_nothing_but_the_standard_library() -> None:
    loaded = modules_after("import gradience")
    assert loaded.isdisjoint((*HEAVY, "msgspec", "cyclopts"))


@every("name", [n for n in gradience.__all__ if n != "GradienceCallback"])
def test_every_public_name_resolves_and_is_documented(name: str) -> None:
    assert getattr(gradience, name).__doc__


def committed(root: Path) -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [root / name for name in done.stdout.split("\0") if name]


def test_nothing_committed_names_a_machine_path_or_a_registry_host(root: Path) -> None:
    pattern = re.compile(rb"/(?:work|root)/[a-z]|/tmp/[a-z]+/bin|registry\\.npmjs|pypi\\.org")
    own = Path(__file__).name
    found = [p.name for p in committed(root) if p.is_file() and p.name != own and pattern.search(p.read_bytes())]
    assert found == []


def test_the_readme_and_ci_run_the_same_test_command(root: Path) -> None:
    made, tests = "python3 -m venv .venv && .venv/bin/python -m pip install nox", ".venv/bin/python -m nox -s tests"
    assert f"\n{made} || exit\npart {tests}\n" in (root / ".ci" / "run").read_text(encoding="utf-8")
    for page in ("README.md", "CONTRIBUTING.md"):
        assert f"\n{made} && {tests}\n" in (root / page).read_text(encoding="utf-8")
