"""Commands of the user's: what they may print, and how they end."""

from __future__ import annotations

import math
import os
import select
import sys

import pytest
from tables import every

from gradience.errors import GradienceError
from gradience.io.programs import run, words
from gradience.verbs.bench.evaluators import parsed


def python(code, *arguments):
    return [sys.executable, "-c", code, *arguments]


@every(
    ("output", "found"),
    [
        (b"loading\nready\n [3e-1] \n", [0.3]),
        (b"[1, 0, true, false]", [1.0, 0.0, 1.0, 0.0]),
        (b'log line\n{"scores": [0.25, 0.75], "score": 9}', [0.25, 0.75]),
        (b'{\n  "scores": [0.25]\n}\n', [0.25]),
        (b"[-1.1e100, 1e100]", [-math.inf, 1e100]),  # beyond all measures
    ],
)
def test_lists_and_objects_are_understood(output, found):
    assert parsed(output, ["x"]) == found


@every("output", [b"accuracy: high", b"{}", b"[]", b'["a"]', b'{"score": 2}', b"0.5", b"\xff\xfe", b"9" * 401])
def test_what_is_no_list_of_scores_is_refused(output):
    with pytest.raises(GradienceError, match="printed no scores"):
        parsed(output, ["x"])


def test_nothing_is_refused():
    with pytest.raises(GradienceError, match="printed nothing"):
        parsed(b" \n", ["x"])


def test_places_are_filled_in_word_by_word_and_no_shell_reads_them():
    found = words("run '{adapter}' --seed={seed} $HOME;", {"adapter": "/a b/$(x)", "seed": "7"}, required="adapter")
    assert found == ["run", "/a b/$(x)", "--seed=7", "$HOME;"]


@every("command", ["", "run it", "run 'it {adapter}"])
def test_a_command_without_its_place_or_with_an_open_quote_is_refused(command):
    with pytest.raises(GradienceError, match="command"):
        words(command, {}, required="adapter")


def test_a_failure_is_its_exit_code_and_its_last_line():
    with pytest.raises(GradienceError, match=r"failed with exit code 3: no such task \("):
        run(python("import sys; print('first', file=sys.stderr); print('no such task', file=sys.stderr); sys.exit(3)"),
            timeout=300)  # fmt: skip


def test_a_program_that_is_not_there_is_named():
    with pytest.raises(GradienceError, match="cannot start no-such-program"):
        run(["no-such-program"], timeout=1)


def read_to_the_end(pipe):
    """Return what was written, once no process has the pipe open any longer."""
    said = b""
    while True:
        try:
            part = os.read(pipe, 100)
        except BlockingIOError:
            assert select.select([pipe], [], [], 60)[0], "a process goes on"
            continue
        if not part:
            return said
        said += part


def test_a_command_that_takes_too_long_ends_with_all_that_it_started(tmp_path):
    """Both hold the pipe open, and its reader is told when the last of them has ended."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    child = f"import time; file = open({str(pipe)!r}, 'w'); print('begun', file=file, flush=True); time.sleep(600)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    for timeout in (0.5, 4.0, 30.0):  # a machine may take longer to start both than they were given
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        with pytest.raises(GradienceError, match="takes longer than its time"):
            run(python(code), timeout=timeout)
        said = read_to_the_end(reader)
        os.close(reader)
        if said:
            break
    assert said == b"begun\n"


def test_a_command_that_prints_without_end_is_ended(monkeypatch):
    monkeypatch.setattr("gradience.io.programs.MAX_OUTPUT", 1 << 20)
    with pytest.raises(GradienceError, match="printed more than 1 MiB"):
        run(python("while True: print('x' * 10000)"), timeout=300)
