"""mypy, which takes half a minute of one core: here it runs beside the other tests."""

from __future__ import annotations

import subprocess
import sys


def test_the_source_is_typed(root):
    told = subprocess.run([sys.executable, "-m", "mypy"], cwd=root, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
