"""mypy, which takes half a minute of one core: here it runs beside the other tests."""

from __future__ import annotations

import os
import subprocess
import sys


def test_the_source_is_typed(root):
    cache = [] if (root / ".mypy_cache").exists() else ["--cache-dir", os.devnull]  # to write it takes 3 s
    told = subprocess.run([sys.executable, "-m", "mypy", *cache], cwd=root, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
