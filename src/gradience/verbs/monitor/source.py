"""Where runs come from: a log of ours, the logs of another program, imported in memory, or a log still written to.

A path may be a file, the folder of a run, or a folder of runs; `open_source` reads one run's, `runs_in` finds several.
`Tail` gives whole lines of a file that grows, is cut, replaced or not there yet. `Watch` makes of them the same series
that a summary of the finished log has.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from io import FileIO
from itertools import islice, takewhile
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

import msgspec

from gradience.errors import RecorderError, SchemaError
from gradience.importers.files import refuse_summary
from gradience.io.reading import open_raw, open_regular
from gradience.rules.log.facts import KEPT
from gradience.schema.events import Event, TrainStep, UnknownEvent
from gradience.schema.reports import SourceLocation
from gradience.schema.scalars import SCHEMA_PREFIX, as_float
from gradience.telemetry.codec import MAX_LINE_BYTES, convert, decode_known, parse
from gradience.telemetry.reader import RunSummary, TelemetryReader
from gradience.telemetry.series import Column, RunSeries

_OF_FOLDERS: Final = ("run.jsonl", "trainer_state.json")

_LOG: Final = "run.jsonl"
_MAX_ENTRIES: Final = 2000  # of a folder that are looked at

_FIRST_BYTES: Final = 4096  # bytes

_CHUNK: Final = 1 << 20
_HEAD: Final = 256  # bytes by which a file is recognised
_REWARD: Final = "reward"  # the one further value that is watched: under RL the loss shows little
_REWARD_KEY: Final = b'"reward":'
_MOST_POINTS: Final = 512  # of a curve
_MOST_EVALS: Final = 1000


def log_place(file: str) -> SourceLocation | None:
    """The place of a log: itself, of a folder the log in it, or None where several files were read."""
    path = Path(file)
    if path.is_file():
        return SourceLocation(file)
    return next((SourceLocation(str(path / name)) for name in _OF_FOLDERS if (path / name).is_file()), None)


def runs_in(path: str | os.PathLike[str]) -> list[Path]:
    """The runs of a folder of runs, by name; the path itself where it is a run, or anything else.

    A folder that one run wrote into is that run. Else each log of ours in it or up to three levels below is a
    run, and so is each folder there that another program's run wrote into; at most 100.
    """
    place = Path(path)
    if not place.is_dir() or is_log(place / _LOG):
        return [place]
    from gradience.importers.sources import MAX_DEPTH, MAX_RUNS, run_folders  # noqa: PLC0415  # as in `_read`

    foreign = run_folders(place)
    if foreign == [place]:
        return [place]
    ours = list(_logs(place, MAX_DEPTH))
    found = {*ours, *(folder for folder in foreign if not is_log(folder / _LOG))}
    return sorted(found)[:MAX_RUNS] or [place]


def holds_runs(path: str | os.PathLike[str]) -> bool:
    """Whether the path is a folder of several runs."""
    return len(runs_in(path)) > 1


def _logs(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())[:_MAX_ENTRIES]
    except OSError:
        return
    if is_log(folder / _LOG):
        yield folder / _LOG  # what else lies beside it is the same run's
        return
    yield from (path for path in entries if path.suffix == ".jsonl" and is_log(path))
    if depth:
        for child in entries:
            if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
                yield from _logs(child, depth - 1)


def names_of(paths: Sequence[Path]) -> list[str]:
    """Short names of the paths, each its own: what they share in front and at the end is left out.

    >>> names_of([Path("runs/a/run.jsonl"), Path("runs/b/run.jsonl")])
    ['a', 'b']
    >>> names_of([Path("seed1-run.jsonl"), Path("seed2-run.jsonl")])
    ['seed1', 'seed2']
    """
    parts = [(path.parent if path.name == _LOG else path).parts or (str(path),) for path in paths]
    shared = 0
    while len({part[: shared + 1] for part in parts}) == 1 and all(len(part) > shared + 1 for part in parts):
        shared += 1
    names = _without_ending(["/".join(part[shared:]) for part in parts])
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _without_ending(names: Sequence[str]) -> list[str]:
    """The names without what all end in, from a point, dash or underscore on."""
    if len(names) == 1:
        return list(names)
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*map(reversed, names), strict=False))
    shared = "".join(letters[0] for letters in same)[::-1]
    ending = shared[next((place for place, letter in enumerate(shared) if letter in "._-"), len(shared)) :]
    shorter = [name.removesuffix(ending) for name in names]
    return shorter if all(shorter) else list(names)


class Source(NamedTuple):
    """A log that was read: its place, its summary, and notes on the import."""

    path: Path
    summary: RunSummary
    notes: list[str]


def open_source(path: str | os.PathLike[str], run: str | None = None) -> Source:
    """The runs of a log, of the folder that holds one, or of anything that can be imported.

    Args:
        path: a run.jsonl, the folder of a run, or anything that `gradience import` reads.
        run: id, or name in an import, of the run to show; the last if None.

    Raises:
        RecorderError: the source is missing, empty, or holds no event of a run, or none of that name.
        SchemaError: the log is of another major version.
    """
    place = Path(path)
    if is_log(place / "run.jsonl"):
        place /= "run.jsonl"
    refuse_summary(place)
    source = _read(place, run)
    if source.summary.last is None:
        issues = source.summary.issues
        first = issues[0].reason if issues else "it holds none of the known events"
        raise RecorderError(f"{path} holds no event of a run: {first}", advice="give the run.jsonl that a run wrote")
    return source


def is_log(path: Path) -> bool:
    """Whether a file begins as a log of ours does: then nothing else need be asked, or imported."""
    try:
        with open_regular(path) as file:
            return SCHEMA_PREFIX.encode() in file.read(_FIRST_BYTES)
    except (OSError, ValueError):
        return False


def _read(path: Path, run: str | None) -> Source:
    if not is_log(path):
        from gradience.importers import is_foreign  # noqa: PLC0415  # a log of ours need not pay for it

        if is_foreign(path):
            return _import(path, run)
    summary = TelemetryReader(path).summarize(KEPT)
    if run is not None:
        _show(summary, run)
    return Source(path, summary, [])


def _show(summary: RunSummary, run: str) -> None:
    """Put the run last, where the one to show stands."""
    chosen = summary.runs.pop(run, None)
    if chosen is None:
        known = ", ".join(islice(summary.runs, 10)) or "none"
        raise RecorderError(f"{summary.path}: no run is called {run[:60]!r}", advice=f"there are {known}")
    summary.runs[run] = chosen


def _import(path: Path, run: str | None) -> Source:
    """The runs that another program left, in memory."""
    from gradience.importers import read_source  # noqa: PLC0415  # the same

    imported = read_source(path, run=run)
    summary = RunSummary(path, KEPT)
    for each in imported.runs:
        for event in each.events:
            summary.take(event)
    files = ", ".join(os.path.relpath(file, path) if path.is_dir() else file.name for file in imported.files)
    notes = [f"imported in memory from {files} ({imported.format}); no file was written", *imported.notes]
    if imported.skipped:
        first = imported.skipped[0]
        rows = "1 row was" if len(imported.skipped) == 1 else f"{len(imported.skipped)} rows were"
        notes.append(f"{rows} not imported; the first: {first.file} {first.line}: {first.reason}")
    return Source(path, summary, notes)


class Tail:
    """Whole lines as they come; a line without its newline yet is held back.

    The file may not exist yet, may be cut and written anew, or replaced by another: then `restarts` counts up,
    and what follows comes from the new file's beginning.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.restarts = 0
        self._file: FileIO | None = None
        self._head = b""
        self._held = b""
        self._overlong = False  # inside a line longer than one may be: no event, skipped to its end

    def __enter__(self) -> Self:
        """The tail itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    @property
    def found(self) -> bool:
        """Whether there is a file."""
        return self._file is not None

    def poll(self) -> Iterator[bytes]:
        """The lines that were finished since the last call, without their newlines."""
        if self._file is None and not self._open():
            return
        if self._was_written_over():
            self._start_over()
        yield from self._drain()
        if self._was_replaced():
            self.close()
            if self._open():
                self._forget()
                yield from self._drain()

    def close(self) -> None:
        """Close the file; the next poll opens what is there then."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> bool:
        try:
            self._file = open_raw(self.path)
        except OSError:
            return False
        return True

    def _was_written_over(self) -> bool:
        """Whether the open file is shorter than what was read of it, or begins otherwise."""
        file = self._file
        if file is None:
            return False
        place = file.tell()
        if os.fstat(file.fileno()).st_size < place:
            return True
        file.seek(0)
        head = file.read(_HEAD)
        file.seek(place)
        if not head.startswith(self._head):
            return True
        self._head = head[:place]
        return False

    def _was_replaced(self) -> bool:
        """Whether the path now names another file; one that is gone may come back."""
        if self._file is None:
            return False
        try:
            now, mine = self.path.stat(), os.fstat(self._file.fileno())
        except OSError:
            return False
        return (now.st_ino, now.st_dev) != (mine.st_ino, mine.st_dev)

    def _start_over(self) -> None:
        if self._file is not None:
            self._file.seek(0)
        self._forget()

    def _forget(self) -> None:
        self.restarts += 1
        self._head, self._held, self._overlong = b"", b"", False

    def _drain(self) -> Iterator[bytes]:
        while self._file is not None and (chunk := self._file.read(_CHUNK)):
            *lines, self._held = (self._held + chunk).split(b"\n")
            if self._overlong and lines:
                del lines[0]
                self._overlong = False
            yield from (line for line in lines if len(line) <= MAX_LINE_BYTES and line.strip())
            if len(self._held) > MAX_LINE_BYTES:
                self._held, self._overlong = b"", True


class Watch:
    """The run that began last in a log that is being written, from its lines one by one."""

    def __init__(self) -> None:
        self.bad_lines = 0
        self._log = RunSummary(Path(), frozenset({_REWARD}))
        self._none = RunSeries("")  # stands for the run before any began

    @property
    def run(self) -> RunSeries:
        """What the run logged so far."""
        return self._log.last or self._none

    @property
    def rate(self) -> float | None:
        """The last learning rate that was logged."""
        return next((rate for rate in reversed(self.run.rates) if not math.isnan(rate)), None)

    @property
    def not_finite(self) -> int:
        """How many rows had a loss that was not finite."""
        losses = self.run.losses
        return 0 if math.isfinite(sum(losses)) else len(losses) - sum(map(math.isfinite, losses))

    @property
    def points(self) -> list[tuple[int, float]]:
        """Steps and losses of the curve."""
        return thinned(self.run.steps, self.run.losses)

    @property
    def rewards(self) -> list[tuple[int, float]]:
        """Steps and rewards of the curve that is drawn instead of the loss, under RL."""
        column = self.run.columns.get(_REWARD, Column())
        return thinned(column.steps, column.values)

    @property
    def evals(self) -> list[tuple[str, int, float]]:
        """Split, step and loss of the latest evaluations."""
        return [
            (event.split, event.step, as_float(event.metrics.loss))
            for event in self.run.evals[-_MOST_EVALS:]
            if event.step is not None and event.metrics.loss is not None
        ]

    def take(self, line: bytes) -> Event | UnknownEvent | None:
        """Add one line and return its event; None for a bad line.

        Raises:
            SchemaError: the line is of another major version: so is the whole log.
        """
        event: Event | UnknownEvent | None
        try:
            event = decode_known(line)
        except (msgspec.MsgspecError, RecursionError):
            event = _look_closely(line)
        if isinstance(event, TrainStep) and _REWARD_KEY in line:
            event = _look_closely(line)  # with its further values
        if event is None:
            self.bad_lines += 1
        elif not isinstance(event, UnknownEvent):
            self._log.take(event)
        return event


def thinned(steps: Sequence[int], values: Sequence[float]) -> list[tuple[int, float]]:
    """A curve of at most 512 points by rising step: each the mean of as many rows, at the last one's step.

    The rows of a point are a power of two, so that a growing curve keeps its points until it halves them. A value that
    is not finite is left out.
    """
    if not math.isfinite(sum(values)):
        rows = [row for row in zip(steps, values, strict=True) if math.isfinite(row[1])]
        steps, values = [step for step, _ in rows], [value for _, value in rows]
    width = 1
    while math.ceil(len(values) / width) > _MOST_POINTS:
        width *= 2
    parts = ((steps[i : i + width], values[i : i + width]) for i in range(0, len(values), width))
    return sorted((part[-1], sum(held) / len(held)) for part, held in parts)


def _look_closely(line: bytes) -> Event | UnknownEvent | None:
    try:
        document, _ = parse(line)
    except SchemaError:
        return None
    try:
        return convert(document)
    except msgspec.ValidationError:
        return None
