"""XLA's pool has threads for two LAPACK calls at once: with two threads, both waited for ever."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os
import gradience.spectral.batch
assert "PJRT_NPROC" not in os.environ, "set on import"
import jax._src.xla_bridge as bridge
import numpy as np
import gradience as g
made, real = [], bridge._init_backend
bridge._init_backend = lambda *args: made.append(os.environ.get("PJRT_NPROC")) or real(*args)
{call}
assert set(made) == {{"64"}}, made
"""
CALLS = {
    "a call of the library": 'g.audit_arrays({"q": (np.ones((2, 8)), np.ones((6, 2)))})',
    "the command line": 'from gradience.device import prepare_jax; prepare_jax("cpu")',
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_threads_are_there_before_the_first_array_and_no_import_sets_them(call):
    bare = {name: value for name, value in os.environ.items() if name != "PJRT_NPROC"}
    subprocess.run([sys.executable, "-c", SCRIPT.format(call=call)], env=bare, check=True)
