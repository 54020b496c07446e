"""Find and read runs: a gradience log, another program's logs imported in memory, or a log still being written.

A path may be a file, the folder of a run, or a folder of runs. `open_source` reads one source; `runs_in` finds the runs
of a folder. `Tail` yields the whole lines of a file that grows, is cut, is replaced or does not exist yet. `LiveRun`
turns them into the series that a summary of the finished log has.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from io import FileIO
from itertools import islice, takewhile
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

import msgspec

from gradience.errors import RecorderError, SchemaError
from gradience.importers.files import refuse_summary, require_file
from gradience.io.reading import open_raw, open_regular
from gradience.rules.log.facts import KEPT
from gradience.schema import SCHEMA_PREFIX, as_float
from gradience.schema.events import Event, TrainStep, UnknownEvent
from gradience.schema.reports import SourceLocation
from gradience.telemetry.codec import MAX_LINE_BYTES, convert, decode_known, parse
from gradience.telemetry.reader import RunSummary, TelemetryReader
from gradience.telemetry.series import Column, RunSeries

_OF_FOLDERS: Final = ("run.jsonl", "trainer_state.json")

_LOG: Final = "run.jsonl"
_MAX_ENTRIES: Final = 2000  # entries of a folder that are examined

_FIRST_BYTES: Final = 4096  # bytes read to recognise a log

_CHUNK: Final = 1 << 20
_HEAD: Final = 256  # first bytes by which a rewritten file is noticed
_REWARD: Final = "reward"  # the only further value watched: under RL the loss shows little
_REWARD_KEY: Final = b'"reward":'
_MOST_POINTS: Final = 512  # most points of a curve
_MOST_EVALS: Final = 1000


def log_place(file: str) -> SourceLocation | None:
    """The file of a log: the file itself, or the log in the folder; None if several files were read."""
    path = Path(file)
    if path.is_file():
        return SourceLocation(file)
    return next((SourceLocation(str(path / name)) for name in _OF_FOLDERS if (path / name).is_file()), None)


def runs_in(path: str | os.PathLike[str]) -> list[Path]:
    """The runs of a folder of runs, sorted; the path itself if it is one run or anything else.

    A folder that one run wrote into is that run. Otherwise the runs are the gradience logs in the folder and up to
    three levels below, and the folders there into which another program's run wrote. At most 100 are returned.
    """
    place = Path(path)
    if not place.is_dir() or is_log(place / _LOG):
        return [place]
    from gradience.importers.sources import MAX_DEPTH, MAX_RUNS, run_folders  # as in `_read`

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
        yield folder / _LOG  # the files beside it belong to the same run
        return
    yield from (path for path in entries if path.suffix == ".jsonl" and is_log(path))
    if depth:
        for child in entries:
            if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
                yield from _logs(child, depth - 1)


def names_of(paths: Sequence[Path]) -> list[str]:
    """Short unique names of the paths, without the beginning and the ending that all share.

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


def names_of_runs(runs: Sequence[tuple[str, str]]) -> list[str]:
    """A unique name for each pair of path and run id: the part of the path that differs, and the id if that is needed.

    >>> names_of_runs([("x/a/run.jsonl", "1"), ("x/b/run.jsonl", "2"), ("x/b/run.jsonl", "3")])
    ['a', 'b #2', 'b #3']
    """
    if not runs:
        return []
    paths = list(dict.fromkeys(path for path, _ in runs))
    short = dict(zip(paths, names_of([Path(path) for path in paths]), strict=True))
    count = Counter(path for path, _ in runs)
    return [
        f"{short[path]} #{run.removeprefix('import-')[:8]}" if count[path] > 1 else short[path] for path, run in runs
    ]


def _without_ending(names: Sequence[str]) -> list[str]:
    """The names without their common ending, which must begin with a point, dash or underscore."""
    if len(names) == 1:
        return list(names)
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*map(reversed, names), strict=False))
    shared = "".join(letters[0] for letters in same)[::-1]
    ending = shared[next((place for place, letter in enumerate(shared) if letter in "._-"), len(shared)) :]
    shorter = [name.removesuffix(ending) for name in names]
    return shorter if all(shorter) else list(names)


class LogSource(NamedTuple):
    """A log that was read: its path, its summary, and notes on the import."""

    path: Path
    summary: RunSummary
    notes: list[str]


def open_source(path: str | os.PathLike[str], run: str | None = None) -> LogSource:
    """Read the runs of a log, of the folder that holds one, or of anything that can be imported.

    Args:
        path: a run.jsonl, the folder of a run, or anything that `gradience import` reads.
        run: id, or name in an import, of the run to show; the last if None.

    Raises:
        RecorderError: the source is missing, empty, or holds no event of a run, or no run of that name.
        SchemaError: the log is of another major version.
    """
    place = Path(path)
    if is_log(place / "run.jsonl"):
        place /= "run.jsonl"
    refuse_summary(place)
    source = _read(place, run)
    if source.summary.last is None:
        if place.is_file():
            require_file(place)  # a git-lfs pointer says so
        issues = source.summary.issues
        first = issues[0].reason if issues else "it holds none of the known events"
        raise RecorderError(f"{path} holds no event of a run: {first}", advice="give the run.jsonl that a run wrote")
    return source


def is_log(path: Path) -> bool:
    """Whether a file begins as a gradience log does, so that it needs no import."""
    try:
        with open_regular(path) as file:
            return SCHEMA_PREFIX.encode() in file.read(_FIRST_BYTES)
    except (OSError, ValueError):
        return False


def _read(path: Path, run: str | None) -> LogSource:
    if not is_log(path):
        from gradience.importers import is_foreign  # a gradience log does not need it

        if is_foreign(path):
            return _import(path, run)
    summary = TelemetryReader(path).summarize(KEPT)
    if run is not None:
        _show(summary, run)
    return LogSource(path, summary, [])


def _show(summary: RunSummary, run: str) -> None:
    """Move the run to the end, because the last run is the one shown."""
    chosen = summary.runs.pop(run, None)
    if chosen is None:
        known = ", ".join(islice(summary.runs, 10)) or "none"
        raise RecorderError(f"{summary.path}: no run is called {run[:60]!r}", advice=f"there are {known}")
    summary.runs[run] = chosen


def _import(path: Path, run: str | None) -> LogSource:
    """Import in memory the runs that another program left."""
    from gradience.importers import read_source  # the same

    imported = read_source(path, run=run)
    summary = RunSummary(path, KEPT)
    for each in imported.runs:
        for event in each.events:
            summary.add(event)
    files = ", ".join(os.path.relpath(file, path) if path.is_dir() else file.name for file in imported.files)
    notes = [f"imported in memory from {files} ({imported.format}); no file was written", *imported.notes]
    if imported.skipped:
        first = imported.skipped[0]
        rows = "1 row was" if len(imported.skipped) == 1 else f"{len(imported.skipped)} rows were"
        notes.append(f"{rows} not imported; the first: {first.file} {first.line}: {first.reason}")
    return LogSource(path, summary, notes)


class Tail:
    """Yields whole lines of a file as they come; a line without its newline is held back.

    The file may not exist yet. If it is cut, rewritten or replaced, `restarts` counts up and reading starts again at
    the beginning of the new file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.restarts = 0
        self._file: FileIO | None = None
        self._head = b""
        self._held = b""
        self._overlong = False  # inside a line that is too long for an event and skipped to its end

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
        """Yield the lines finished since the last call, without their newlines."""
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
        """Close the file; the next poll opens the path again."""
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
        """Whether the open file is now shorter than what was read of it, or begins differently."""
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
        """Whether the path now names another file; False if it names none, for the file may come back."""
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


class LiveRun:
    """Collects the lines of a log that is being written, and shows the run that started last."""

    def __init__(self) -> None:
        self.bad_lines = 0
        self._log = RunSummary(Path(), frozenset({_REWARD}))
        self._none = RunSeries("")  # an empty run, shown until one begins

    @property
    def run(self) -> RunSeries:
        """The last run, as logged so far."""
        return self._log.last or self._none

    @property
    def rate(self) -> float | None:
        """The last logged learning rate, or None."""
        return next((rate for rate in reversed(self.run.rates) if not math.isnan(rate)), None)

    @property
    def not_finite(self) -> int:
        """Number of rows whose loss is not finite."""
        losses = self.run.losses
        return 0 if math.isfinite(sum(losses)) else len(losses) - sum(map(math.isfinite, losses))

    @property
    def points(self) -> list[tuple[int, float]]:
        """Steps and losses of the loss curve."""
        return thinned(self.run.steps, self.run.losses)

    @property
    def rewards(self) -> list[tuple[int, float]]:
        """Steps and rewards of the reward curve, which under RL is drawn instead of the loss."""
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

    def add(self, line: bytes) -> Event | UnknownEvent | None:
        """Add one line and return its event; None for a bad line.

        Raises:
            SchemaError: the line, and so the whole log, is of another major version.
        """
        event: Event | UnknownEvent | None
        try:
            event = decode_known(line)
        except (msgspec.MsgspecError, RecursionError):
            event = _look_closely(line)
        if isinstance(event, TrainStep) and _REWARD_KEY in line:
            event = _look_closely(line)  # keeps the row's further values
        if event is None:
            self.bad_lines += 1
        elif not isinstance(event, UnknownEvent):
            self._log.add(event)
        return event


def thinned(steps: Sequence[int], values: Sequence[float]) -> list[tuple[int, float]]:
    """A curve of at most 512 points by rising step. Each point is the mean of equally many rows, at their last step.

    The number of rows per point is a power of two, so a growing curve keeps its points until their number is halved.
    Values that are not finite are left out.
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
