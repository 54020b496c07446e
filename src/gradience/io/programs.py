"""A program that the user names: its command is split as a shell would split it, and run without a shell.

What it prints and how long it takes are limited, and the processes that it started end with it.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Final, NamedTuple

from gradience.errors import GradienceError

MAX_OUTPUT: Final = 64 << 20  # most bytes that a command may print; scores of a million examples take 20 MB
SHOWN: Final = 200  # most characters of a command or its output in an error
_POLL: Final = 0.05  # seconds
_TAIL: Final = 2048  # last bytes read of a failed command's output


def words(command: str, values: Mapping[str, str], *, required: str) -> list[str]:
    """The words of a command, with placeholders such as {adapter} filled in.

    Raises:
        GradienceError: it cannot be split, is empty, or lacks the required placeholder.
    """
    try:
        parts = shlex.split(command)
    except ValueError as error:
        raise GradienceError(f"cannot read the command {command!r}: {error}", advice="check its quotes") from error
    if not parts or f"{{{required}}}" not in command:
        raise GradienceError(f"the command {command!r} has no {{{required}}}", advice="write it where the path goes")
    for name, value in values.items():
        parts = [part.replace(f"{{{name}}}", value) for part in parts]
    return parts


class Started(NamedTuple):
    """A program that runs, and the files that take what it prints."""

    process: subprocess.Popen[bytes]
    out: IO[bytes]
    err: IO[bytes]

    def last_words(self) -> str:
        """The last line that it printed."""
        return _last(self.err) or _last(self.out) or "it said nothing"


@contextmanager
def started(argv: list[str]) -> Iterator[Started]:
    """A program in a group of processes of its own, which is killed at the end.

    Raises:
        GradienceError: it cannot be started.
    """
    # Files, not pipes: a full pipe stops the command, and what it leaves running would hold a pipe open.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(  # noqa: S603  # the user's own command, without a shell
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )
        except OSError as error:
            raise GradienceError(f"cannot start {argv[0]}: {error.strerror}", advice="check the command") from error
        try:
            yield Started(process, out, err)
        finally:
            _end(process)


def run(argv: list[str], *, timeout: float) -> bytes:
    """Run a command and return its stdout.

    Raises:
        GradienceError: it cannot be started, fails, takes longer than `timeout` seconds, or prints too much.
    """
    with started(argv) as program:
        until = time.monotonic() + timeout
        while program.process.poll() is None:
            if fault := _fault(program, until):
                raise GradienceError(f"{short(argv)} {fault}", advice="see --timeout; earlier evaluations are kept")
            with suppress(subprocess.TimeoutExpired):
                program.process.wait(_POLL)
        _end(program.process)  # what it leaves running prints no more
        if program.process.returncode != 0:
            raise GradienceError(
                f"{short(argv)} failed with exit code {program.process.returncode}: {program.last_words()}",
                advice="earlier evaluations are kept: run it again when that is mended",
            )
        program.out.seek(0)
        return program.out.read()


def _fault(program: Started, until: float) -> str:
    """What is wrong with a program that runs, or ""."""
    if time.monotonic() > until:
        return "takes longer than its time"
    if any(os.fstat(file.fileno()).st_size > MAX_OUTPUT for file in (program.out, program.err)):
        return f"printed more than {MAX_OUTPUT >> 20} MiB"
    return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and the rest of its process group."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):  # all of it has ended
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
        process.kill()
    process.wait()


def _last(file: IO[bytes]) -> str:
    """The last line of a file that is not blank, or ""."""
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - _TAIL))
    lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][-SHOWN:] if lines else ""


def short(argv: list[str]) -> str:
    """A command as an error shows it."""
    text = shlex.join(argv)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
