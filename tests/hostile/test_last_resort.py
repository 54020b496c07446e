"""Row 0, a bug of ours: it must never look like a finding (1), unusable input (2) or no verdict (3)."""

from __future__ import annotations

import pytest

SOFTWARE = 70  # EX_SOFTWARE of sysexits.h

BUGS = {
    "a printer that breaks": (
        "import sys\n"
        "class Broken:\n"
        "    encoding = 'utf-8'\n"
        "    def write(self, text): raise RuntimeError('a bug')\n"
        "    def writelines(self, lines): raise RuntimeError('a bug')\n"
        "    def flush(self): pass\n"
        "    def isatty(self): return False\n"
        "    def fileno(self): return 1\n"
        "    @property\n"
        "    def buffer(self): raise RuntimeError('a bug')\n"
        "sys.stdout = Broken()\n",
        ["rules"],
    ),
    "an encoder that breaks": (
        "import msgspec\n"
        "def broken(*a, **k): raise KeyError('a bug')\n"
        "msgspec.json.encode = msgspec.json.format = broken\n",
        ["rules", "--json"],
    ),
    "a library that recurses for ever": (
        "import cyclopts\ndef broken(*a, **k): raise RecursionError('a bug')\ncyclopts.App.__call__ = broken\n",
        ["rules"],
    ),
    "an assertion": (
        "import pathlib\ndef broken(*a, **k): raise AssertionError('a bug')\npathlib.Path.cwd = broken\n",
        ["check", "x.json"],
    ),
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


def test_what_the_user_can_mend_is_no_bug_of_ours(run):
    assert run("check", "nowhere.json").refused
    assert run("monitor").refused
