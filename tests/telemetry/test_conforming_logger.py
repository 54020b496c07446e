"""The page on conforming loggers, and the example: run, and validated."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gradience.schema import RunEnd, TrainStep
from gradience.telemetry import TelemetryReader
from gradience.telemetry.reader import validate_log


def blocks(root: Path, language: str) -> list[str]:
    page = (root / "docs" / "conforming-logger.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


@pytest.fixture
def recorded(root: Path, tmp_path: Path) -> Path:
    script = root / "examples" / "vnext" / "custom_logger.py"
    done = subprocess.run(
        [sys.executable, str(script), "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "test accuracy 0.83" in done.stdout
    return tmp_path / "run.jsonl"


def test_the_python_block_of_the_page_accepts_the_example_and_rejects_a_fault(root: Path, recorded: Path) -> None:
    (code,) = blocks(root, "python")
    shutil.copytree(root / "schemas", recorded.parent / "schemas")

    def run() -> int:
        command = [sys.executable, "-W", "ignore", "-c", code]
        return subprocess.run(command, cwd=recorded.parent, capture_output=True, check=False).returncode

    assert run() == 0
    recorded.write_bytes(recorded.read_bytes().replace(b'"split":"test"', b'"split":1'))
    assert run() != 0


def test_the_javascript_logger_of_the_page_conforms_and_repairs_a_torn_tail(root: Path, tmp_path: Path) -> None:
    if not (node := shutil.which("node")):
        pytest.skip("needs node, which is not installed")
    script, log = tmp_path / "logger.mjs", tmp_path / "run.jsonl"
    script.write_text(blocks(root, "js")[0])
    subprocess.run([node, str(script), str(log)], check=True)
    assert validate_log(log).valid
    row = next(TelemetryReader(log).of(TrainStep))
    assert (row.loss, row.grad_norm, row.seq) == (0.7, "NaN", 1)
    log.write_bytes(log.read_bytes()[:-20])
    subprocess.run([node, str(script), str(log)], check=True)
    reader = TelemetryReader(log)
    assert len(list(reader.of(RunEnd))) == 1
    (bad,) = reader.issues
    assert bad.reason.startswith("torn tail of an earlier session")


def test_the_faults_the_page_shows_are_what_the_command_prints(root: Path, recorded: Path) -> None:
    from gradience.render.findings import validate_text

    (shown,) = blocks(root, "console")
    lines = [json.loads(line) for line in recorded.read_bytes().split(b"\n")[:5]]
    lines[1]["loss"] = "nan"
    lines[4] |= {"event": "run_end", "status": "done"}
    recorded.write_text("".join(json.dumps(line) + "\n" for line in lines))
    printed = validate_text(validate_log(recorded)).split("\n")[1:3]
    assert shown.split("\n")[2:4] == printed
