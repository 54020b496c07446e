"""Damaged inputs over all verbs, the same in every run: `nox -s fuzz` takes more."""

from __future__ import annotations

import json
import os
import subprocess
import sys

INPUTS = 2000 if os.environ.get("GRADIENCE_SLOW") else 600


def test_damaged_inputs_end_in_a_report_or_one_line(root, tmp_path):
    out = tmp_path / "failures"
    command = [sys.executable, str(root / "tests" / "fuzz.py"), "--inputs", str(INPUTS), "--seed", "0", "--raw"]
    told = subprocess.run(
        [*command, "--workers", "1", "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    counts = json.loads((out / "counts.json").read_text())
    assert (told.returncode, counts["faults"]) == (0, {}), told.stdout
    assert counts["inputs"] == INPUTS
    assert len(counts["verbs"]) >= 14
