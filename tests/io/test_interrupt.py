"""Signals end a program whatever code they meet: an import, a finaliser, a library that makes another error of them."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from gradience.io import interrupt

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


def test_a_delayed_signal_is_raised_once(monkeypatch):
    monkeypatch.setattr(interrupt, "_SOON", 30.0)
    monkeypatch.setattr(interrupt, "_Waiting", type("Waiting", (), {"blocks": 0, "signal": 0, "raised": 0, "soon": 0}))
    before = signal.getsignal(signal.SIGALRM)
    try:
        interrupt.raise_soon(signal.SIGINT)
        assert 0.0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 30.0
        with pytest.raises(KeyboardInterrupt):
            interrupt.raise_delayed()
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        assert interrupt.came() == signal.SIGINT
        interrupt.raise_delayed()  # none is left
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
