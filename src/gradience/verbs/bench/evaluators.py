"""Score an adapter by the user's own command. Scoring by the model itself is in `trial`."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from hashlib import file_digest, sha256
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from gradience.errors import GradienceError
from gradience.io.programs import SHOWN, run, short, words
from gradience.io.reading import decode_json, open_regular, read_small, real_path
from gradience.schema import real
from gradience.verbs.bench.store import MOST_SCORE, Evaluation

_WITHIN: Final = re.compile(r"[\s=;|&<>()'\"]+")
_SCRIPTS: Final = frozenset({".py", ".sh", ".pl", ".rb", ".js", ".lua"})
_SHELLS: Final = frozenset({".sh", ".bash"})
_IMPORTED: Final = re.compile(rb"^[ \t]*(?:from|import)[ \t]+(\w+)", re.MULTILINE)
_MOST_SHELL: Final = 1 << 20  # bytes of a script whose words are looked at
_LONGEST_NAME: Final = 4096  # bytes of a path
_WRITTEN: Final = frozenset({"", ".log", ".out", ".err", ".tmp", ".lock", ".pid"})
_LARGEST_SCRIPT: Final = 64 << 20  # bytes of a file that is hashed
_MOST_FILES: Final = 10_000


def digest_of_command(command: str) -> str:
    """A hash of a command and of the files that it names, so that a score is not kept after an evaluator was edited.

    A file counts if it is a word, or part of one (`sh -c "python eval.py"`, `--task=eval.yaml`); with a Python script,
    so do those beside it and the packages beside it that these import; with a shell script, the files that it names;
    with `-m name`, those of the module. Of a file over 64 MiB, the size and times count. A log does not count, nor what
    a program reads without being told on its command line.
    """
    parts = [part for word in shlex.split(command) for part in _parts(word)]
    parts += [word for part in dict.fromkeys(parts) for word in _words_of_script(Path(part))]
    modules = [name for flag, name in pairwise(parts) if flag == "-m"]
    places = [Path(part) for part in parts] + [Path(name.replace(".", "/")) for name in modules]
    places += [place.with_name(f"{place.name}.py") for place in places if place.name]
    digest = sha256(command.encode("utf-8", "surrogateescape"))
    for path in dict.fromkeys(file for place in places for file in _files_at(place)):
        digest.update(f"\0{path}\0{_state_of(path)}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _parts(text: str) -> list[str]:
    return [part for part in _WITHIN.split(text) if part and "{" not in part]


def _words_of_script(path: Path) -> Iterator[str]:
    """The parts of a shell script, as they are and as names in its folder."""
    try:
        text = read_small(path, most=_MOST_SHELL, what="a script") if path.suffix in _SHELLS else b""
    except OSError:
        return
    for part in _parts(text.decode("utf-8", "surrogateescape")):
        if len(part) <= _LONGEST_NAME and "\0" not in part:
            yield from (part, str(path.parent / part))


def _beside(script: Path) -> Iterator[Path]:
    """The Python files beside a script, and those of the packages beside it that they import."""
    files = list(islice(sorted(script.parent.glob("*.py")), _MOST_FILES))
    yield from files
    named: set[bytes] = set()
    for path in files:
        with suppress(OSError):
            named.update(_IMPORTED.findall(read_small(path, most=_MOST_SHELL, what="a script")))
    for name in sorted(named):
        yield from islice(sorted((script.parent / os.fsdecode(name)).rglob("*.py")), _MOST_FILES)


def _files_at(place: Path) -> Iterator[Path]:
    try:
        # Words such as `.` and `/` are folders too, and hold more than the evaluator: also what it writes.
        if place.is_dir() and not Path.cwd().is_relative_to(real_path(place)):
            yield from islice(sorted(place.rglob("*")), _MOST_FILES)
        elif place.is_file() and not _may_be_written(place):
            yield from _beside(place) if place.suffix == ".py" else [place]
    except OSError:  # a name that no disk can hold is no file
        return


def _may_be_written(path: Path) -> bool:
    """Whether a file looks like one that the command writes, such as a log; a score must not depend on it."""
    return path.suffix in _WRITTEN and not os.access(path, os.X_OK)


def _state_of(path: Path) -> str:
    try:
        status = path.stat()
        if path.suffix in _SCRIPTS or (path.is_file() and status.st_size <= _LARGEST_SCRIPT):
            with open_regular(path) as file:
                return file_digest(file, "sha256").hexdigest()
    except OSError:
        return "-"
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def parsed(output: bytes, argv: list[str]) -> list[float]:
    """Parse an evaluator's output as the score of each example: the whole output as JSON, else its last line.

    It is a list, in which true is 1, or an object with a list `scores`.

    Raises:
        GradienceError: it printed nothing, or something else.
    """
    text = output.decode("utf-8", "replace").strip()
    if not text:
        raise GradienceError(f"{short(argv)} printed nothing", advice="it has to print the score of each example")
    for part in (text, text.splitlines()[-1]):
        scores = _printed(_json(part))
        if scores:
            return scores
    raise GradienceError(
        f"{short(argv)} printed no scores: {text.splitlines()[-1][-SHOWN:]!r}",
        advice='expected a list of one number per example, or {"scores": [...]}',
    )


def _json(text: str) -> Any:
    try:
        return decode_json(text, object)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _printed(value: Any) -> list[float] | None:
    if isinstance(value, dict):
        value = value.get("scores")
    if not isinstance(value, list):
        return None
    scores = [score for item in value if (score := _number(item)) is not None]
    return scores if len(scores) == len(value) else None


def _number(value: Any) -> float | None:
    if not isinstance(value, bool | int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond the largest float
        return None
    return number if abs(number) <= MOST_SCORE else math.copysign(math.inf, number)


class Evaluator(Protocol):
    """Scores adapters."""

    name: str
    higher_is_better: bool

    @property
    def of(self) -> dict[str, Any]:
        """Everything that a score depends on beside the adapter and its reference."""

    def evaluate(self, adapter: Path, reference: Path | None) -> Evaluation:
        """Score an adapter. If the evaluator sees outputs, they are compared with the reference's."""


class Command:
    """A program of the user that prints the score of each example."""

    def __init__(
        self,
        command: str,
        *,
        values: Mapping[str, str],
        timeout: float,
        higher_is_better: bool = True,
        of: Mapping[str, Any],
    ) -> None:
        words(command, {}, required="adapter")
        self.name = command
        self.higher_is_better = higher_is_better
        # hashed, because the command may hold a key
        self.of = {"command": digest_of_command(command), **values, **of}
        self._values = values
        self._timeout = timeout

    def evaluate(self, adapter: Path, reference: Path | None) -> Evaluation:  # noqa: ARG002  # it sees no outputs
        """Run the command.

        Raises:
            GradienceError: it fails, or prints no scores.
        """
        argv = words(self.name, {**self._values, "adapter": str(real_path(adapter))}, required="adapter")
        scores = parsed(run(argv, timeout=self._timeout), argv)
        return Evaluation(scores=[real(score) for score in scores], weights=[1.0] * len(scores))
