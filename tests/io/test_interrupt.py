"""Signals end a program whatever code they meet: an import, a finaliser, a library that makes another error of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

START = """
import os, signal, sys
from gradience.cli import main as module
from gradience.io import interrupt

def kill():
    os.kill(os.getpid(), {number})

def wait():
    import time
    time.sleep(5)
"""
ODD = """
try:
    kill()
    sum(range(10**5))
except BaseException as error:
    raise ImportError("odd") from error
"""
MET = {
    "an import": """
import builtins, pathlib, tempfile
builtins.kill = kill
folder = tempfile.mkdtemp()
pathlib.Path(folder, "odd.py").write_text(ODD)
sys.path.insert(0, folder)

def command(tokens):
    import odd
    wait()
""",
    "a finaliser": """
class Odd:
    def __del__(self):
        kill()
        sum(range(10**5))

def command(tokens):
    Odd()
    wait()
""",
    "another error": """
def command(tokens):
    try:
        kill()
        wait()
    except BaseException as error:
        raise ValueError("other") from error
""",
}


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "code", "said"), [(2, 130, "gradience: interrupted\n"), (15, 143, "")])
@pytest.mark.parametrize("met", MET)
def test_a_signal_ends_the_command_whatever_it_meets(met, number, code, said):
    script = (
        START.format(number=number)
        + f"ODD = {ODD!r}\n"
        + MET[met]
        + "module._run = command\nraise SystemExit(module.script())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (code, said)
