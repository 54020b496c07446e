"""Two programs of a caller: one writes a log, one reads it. mypy reads both, and pyright in `nox -s consumer`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def told(root: Path, program: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, root / "tests" / "consumers" / program, *words]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


def test_what_one_program_writes_another_draws_and_a_refusal_says_what_to_do(root, tmp_path):
    log = tmp_path / "run.jsonl"
    written = told(root, "logger.py", log, "2.5", "nan", "1.5", "inf")
    assert (written.returncode, written.stderr) == (0, "")
    read = told(root, "plotter.py", log)
    assert read.stdout.splitlines() == [
        '<svg xmlns="http://www.w3.org/2000/svg"><polyline points="1,2.5 3,1.5"/></svg>',
        "0.0001 0.0001 0.0001 0.0001",
        "",
    ]
    assert (read.returncode, read.stderr) == (0, "")
    refused = told(root, "plotter.py", tmp_path / "none.jsonl")
    assert (refused.returncode, refused.stdout) == (1, "")
    reason = f"cannot read {tmp_path / 'none.jsonl'}: No such file or directory"
    assert refused.stderr == f"{reason} (give the run.jsonl that a run wrote)\n"
