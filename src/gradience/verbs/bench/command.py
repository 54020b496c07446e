"""Programs of the user's: an evaluator that prints a number or JSON, and a training that fills a folder.

A command is split as a shell would split it, and run without one. Its output is bounded, its time too, and what it
started ends with it.
"""

from __future__ import annotations

import math
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any, Final, NamedTuple

import msgspec

from gradience.errors import GradienceError
from gradience.io.reading import decode_json

DEFAULT_TIMEOUT: Final = 3600.0  # seconds of one command
MAX_OUTPUT: Final = 64 << 20  # bytes that a command may print: scores of a million examples take 20 MB
_POLL: Final = 0.05  # seconds
_TAIL: Final = 2048  # bytes of what a failed command said last
_SHOWN: Final = 200  # characters of it in an error
_SCORES: Final = ("scores", "score")


class Printed(NamedTuple):
    """What an evaluator printed: a score, or one of each example."""

    score: float
    scores: list[float] | None = None


def words(command: str, values: Mapping[str, str], *, required: str) -> list[str]:
    """The command's words with its places such as {adapter} filled in.

    Raises:
        GradienceError: it cannot be split, is empty, or lacks a place that it must have.
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


def run(argv: list[str], *, timeout: float) -> bytes:
    """Run a command and return what it printed on stdout.

    Raises:
        GradienceError: it cannot be started, fails, takes longer than `timeout` seconds, or prints too much.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(  # noqa: S603  # the user's own command, without a shell
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )
        except OSError as error:
            raise GradienceError(f"cannot start {argv[0]}: {error.strerror}", advice="check the command") from error
        try:
            fault = _waited(process, (out, err), time.monotonic() + timeout)
        finally:
            _end(process)
        if fault:
            raise GradienceError(f"{_short(argv)} {fault}", advice="see --timeout; earlier evaluations are kept")
        if process.returncode != 0:
            last = _last(err) or _last(out) or "it said nothing"
            raise GradienceError(
                f"{_short(argv)} failed with exit code {process.returncode}: {last}",
                advice="earlier evaluations are kept: run it again when that is mended",
            )
        out.seek(0)
        return out.read()


def _waited(process: subprocess.Popen[bytes], files: tuple[IO[bytes], IO[bytes]], until: float) -> str:
    """Wait for the end of the process; what is wrong where it has to be ended instead."""
    while process.poll() is None:
        if time.monotonic() > until:
            return "takes longer than its time"
        if any(os.fstat(file.fileno()).st_size > MAX_OUTPUT for file in files):
            return f"printed more than {MAX_OUTPUT >> 20} MiB"
        time.sleep(_POLL)
    return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and all of its group that is left."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):  # all of it has ended
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
        process.kill()
    process.wait()


def _last(file: IO[bytes]) -> str:
    """The last line of a file."""
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - _TAIL))
    lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][-_SHOWN:] if lines else ""


def _short(argv: list[str]) -> str:
    text = shlex.join(argv)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def parsed(output: bytes, argv: list[str]) -> Printed:
    """What an evaluator printed, as numbers: all of it as JSON, else its last line.

    A number is a score; a list has one of each example, where true is 1; an object has `scores`, a list, or `score`.

    Raises:
        GradienceError: it printed nothing, or something else.
    """
    text = output.decode("utf-8", "replace").strip()
    if not text:
        raise GradienceError(f"{_short(argv)} printed nothing", advice="it has to print a number or JSON")
    for part in (text, text.splitlines()[-1]):
        found = _printed(_json(part))
        if found is not None:
            return found
    raise GradienceError(
        f"{_short(argv)} printed no number: {text.splitlines()[-1][-_SHOWN:]!r}",
        advice='expected a number, a list of one number per example, or {"scores": [...]}',
    )


def _json(text: str) -> Any:
    try:
        return decode_json(text, object)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _printed(value: Any) -> Printed | None:
    if isinstance(value, dict):
        value = next((value[name] for name in _SCORES if name in value), None)
    if isinstance(value, list):
        scores = [_number(item) for item in value]
        known = [score for score in scores if score is not None]
        return Printed(math.fsum(known) / len(known), known) if known and len(known) == len(scores) else None
    score = _number(value)
    return None if score is None else Printed(score)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, bool | int | float) else None
