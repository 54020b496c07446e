"""Damaged inputs over all verbs, the same in every run: `nox -s fuzz` takes more."""

from __future__ import annotations

import json
import os
import subprocess
import sys

SLOW = bool(os.environ.get("GRADIENCE_SLOW"))
INPUTS = 2000 if SLOW else 600
EACH = INPUTS if SLOW else 5  # of a verb and a kind of file: half of 600 are more of `check` and `monitor`


def test_damaged_inputs_end_in_a_report_or_one_line(root, tmp_path):
    out = tmp_path / "failures"
    command = [sys.executable, str(root / "tests" / "fuzz.py"), "--seed", "0", "--raw"]
    told = subprocess.run(
        [*command, "--inputs", str(INPUTS), "--each", str(EACH), "--workers", "1", "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    counts = json.loads((out / "counts.json").read_text())
    assert (told.returncode, counts["faults"]) == (0, {}), told.stdout
    assert counts["inputs"] >= (INPUTS if SLOW else 200)
    assert len(counts["verbs"]) >= 14
    assert len(counts["kinds"]) >= 20
