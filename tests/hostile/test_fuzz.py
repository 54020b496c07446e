"""Damaged inputs over all verbs, the same in every run: `nox -s fuzz` takes more."""

from __future__ import annotations

import json
import os

SLOW = bool(os.environ.get("GRADIENCE_SLOW"))
INPUTS = 2000 if SLOW else 300
EACH = INPUTS if SLOW else 2  # of a verb and a kind of file: half of 300 are more of `check` and `monitor`


# In a fork that has imported what the program imports; XLA, which begins in it, reads the flags that the program sets.
PROGRAM = """
import jax, runpy, sys
jax.config.update("jax_compilation_cache_dir", None)  # each program keeps what it compiles where it may write
sys.argv = {argv!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_damaged_inputs_end_in_a_report_or_one_line(run, root, tmp_path):
    out = tmp_path / "failures"
    argv = [str(root / "tests" / "fuzz.py"), "--seed", "0", "--raw", "--workers", "1", "--out", str(out)]
    argv += ["--inputs", str(INPUTS), "--each", str(EACH)]
    told = run(python=PROGRAM.format(argv=argv), imports=("torch",), limit_s=600)
    assert (told.code, told.err) == (0, ""), told.out
    counts = json.loads((out / "counts.json").read_text())
    assert counts["faults"] == {}, told.out
    assert counts["inputs"] >= (INPUTS if SLOW else 90)
    assert len(counts["verbs"]) >= 14
    assert len(counts["kinds"]) >= 20
