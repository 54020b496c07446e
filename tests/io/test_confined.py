"""An object in a child process: what it answers, and how its caller learns of a crash, a loop or a full memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tables import every

from gradience.errors import ConfigError
from gradience.io import confined
from gradience.io.confined import Confined, Foreign, Limits, prepare

HERE = str(Path(__file__).parent)
if HERE not in sys.path:  # where the helper looks for this module
    sys.path.insert(0, HERE)
SHORT = Limits(memory=256 << 20, seconds=0.3)


class Subject:
    """A parser of everything a stranger may have written."""

    def __init__(self, what: str) -> None:
        if what == "unusable":
            raise ConfigError("no file", advice="give one")
        if what == "damaged":
            raise ValueError("two\nlines")

    def add(self, one: int, two: int) -> int:
        return one + two

    def loop(self) -> None:
        while True:
            pass

    def fill(self) -> int:
        return len(bytearray(1 << 30))

    def end(self, number: int) -> None:
        os.kill(os.getpid(), number)

    def leave(self) -> None:
        os._exit(7)

    def panic(self) -> None:
        raise BaseException("a panic")  # noqa: TRY002  # as Rust's is

    def odd(self) -> Any:
        return {"big": 10**30}

    def ask(self) -> str:
        sys.stdout.write("a panic's text")
        sys.stderr.write("the same")
        return input()

    def has(self, module: str) -> bool:
        return module in sys.modules

    def many(self, count: int) -> Iterator[int]:
        for number in range(count):
            if number == 1000:
                raise ValueError("at a thousand")
            yield number


def subject(what: str = "", limits: Limits = SHORT) -> Confined:
    return Confined(f"{Path(__file__).stem}:Subject", what, limits=limits)


def test_a_method_answers_and_the_object_lives_on() -> None:
    made = subject()
    assert [made.call("add", 2, 3), made.call("add", 4, 5)] == [5, 9]
    made.close()


def test_the_helper_imports_in_advance_what_it_is_prepared_for() -> None:
    confined.end_helper()
    assert not subject().call("has", "colorsys")
    prepare(["colorsys"])  # there is a helper already
    assert not subject().call("has", "colorsys")
    confined.end_helper()
    prepare(["no_such_module", "colorsys"])
    assert subject().call("has", "colorsys")


@every(
    ("method", "args", "says"),
    [
        ("loop", (), "more than 0 s of processor time"),
        ("fill", (), "more memory than it may take"),
        ("end", (signal.SIGSEGV,), "crashes the library that reads it (SIGSEGV)"),
        ("end", (signal.SIGBUS,), "crashes the library that reads it (SIGBUS)"),
        ("end", (signal.SIGABRT,), "crashes the library that reads it, or needs more than 0 GiB of memory"),
        ("end", (signal.SIGKILL,), "more memory than there is"),
        ("leave", (), "crashes the library that reads it (exit code 7)"),
        ("panic", (), "BaseException: a panic"),
        ("odd", (), "OverflowError"),
        ("ask", (), "EOFError"),
        ("add", (1, 10**30), "cannot be passed on"),
    ],
)
def test_what_goes_wrong_is_said_and_ends_nothing_else(method: str, args: tuple[Any, ...], says: str) -> None:
    made = subject()
    with pytest.raises(Foreign) as caught:
        made.call(method, *args)
    assert says in str(caught.value)
    assert subject().call("add", 1, 1) == 2


def test_an_error_for_the_user_keeps_its_words_and_any_other_becomes_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^no file \(give one\)$") as caught:
        subject("unusable")
    assert caught.value.advice == "give one"
    with pytest.raises(Foreign, match=r"^ValueError: two lines$"):
        subject("damaged")


def test_a_stream_gives_what_came_before_its_error_and_ends_the_child() -> None:
    assert list(subject().stream("many", 5)) == [0, 1, 2, 3, 4]
    found: list[int] = []
    with pytest.raises(Foreign, match="at a thousand"):
        found.extend(subject().stream("many", 2000))
    assert found == list(range(1000))


def test_a_stream_that_is_left_ends_its_child() -> None:
    made = subject()
    stream = made.stream("many", 10**9)
    assert next(stream) == 0
    pid = made._pid
    stream.close()  # type: ignore[attr-defined]  # a generator
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.filterwarnings("ignore:os.fork")  # of JAX, where another test has imported it
def test_a_fork_of_the_caller_has_children_of_its_own() -> None:
    made = subject()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if subject().call("add", 1, 2) == 3 else 1
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert made.call("add", 2, 2) == 4


def test_children_end_with_the_process_that_asked() -> None:
    code = (
        f"import sys; sys.path.insert(0, {HERE!r})\n"
        "from test_confined import subject\nfrom gradience.io import confined\n"
        "made = subject()\nprint(made._pid, confined._HELPERS[0]._process.pid, flush=True)\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
        check=False,
    )
    pids = [int(word) for word in out.stdout.split()]
    assert len(pids) == 2, out.stderr
    deadline = time.monotonic() + 60
    while any(_state(pid) != "Z" for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"
