"""Row 0, a bug of ours: it must never look like a finding (1), unusable input (2) or no verdict (3)."""

from __future__ import annotations

import pytest

SOFTWARE = 70  # EX_SOFTWARE of sysexits.h

PRINTER = """
import sys
class Broken:
    encoding = "utf-8"
    def write(self, text): raise RuntimeError("a bug")
    def writelines(self, lines): raise RuntimeError("a bug")
    def flush(self): pass
    def isatty(self): return False
    def fileno(self): return 1
    @property
    def buffer(self): raise RuntimeError("a bug")
sys.stdout = Broken()
"""
BROKEN = """
import {module}
def broken(*given, **named): raise {error}("a bug")
{module}.{name} = broken
"""
BUGS = {
    "a printer that breaks": (PRINTER, ["rules"]),
    "a recursion": (BROKEN.format(module="cyclopts", name="App.__call__", error="RecursionError"), ["rules"]),
}


@pytest.mark.parametrize("case", BUGS)
def test_a_bug_of_ours_has_an_exit_code_of_its_own_and_a_line_that_says_whose_it_is(run, case):
    patch, argv = BUGS[case]
    told = run(python=f"{patch}import sys\nsys.argv = {['gradience', *argv]!r}\n{CALL}")
    assert told.code == SOFTWARE
    assert "Traceback" in told.err
    assert "a bug" in told.err
    last = told.errors[-1]
    assert "gradience" in last
    assert "report" in last.lower()


CALL = "from gradience.cli.main import script\nraise SystemExit(script())\n"
