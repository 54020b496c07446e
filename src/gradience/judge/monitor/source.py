"""Find and read runs: a gradience log, another program's logs imported in memory, or a log still being written.

A path may be a file, the folder of a run, or a folder of runs. `open_source` reads one source; `runs_in` finds the runs
of a folder. `Tail` yields the whole lines of a file that grows, is cut, is replaced or does not exist yet. `LiveRun`
turns them into the series that a summary of the finished log has.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from io import FileIO
from itertools import islice, takewhile
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

import msgspec

from gradience.errors import GradienceError, RecorderError, SchemaError, few
from gradience.importers.files import keys_of, refuse_summary, require_file
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
_SHOWN: Final = 10  # names in a sentence
_SHORTEST: Final = 8  # characters of a run's id that stand for it in a table
_OF_IMPORT: Final = "import-"  # an id that was made of a file's hash
_NO_EVENT: Final = "give the run.jsonl that a run wrote, its folder, or another trainer's log"
_MOST_LOGS: Final = 6  # folders that are read to see whether they are of one run
_LEAST_SHARED: Final = 3  # losses that two logs share, or all that the shorter one has
_EQUAL: Final = 1e-3  # relative: loggers round
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
    three levels below, and the folders there into which another program's run wrote, but for a logger's copy of a run
    that is there too. At most 100 are returned.
    """
    return found_runs(path)[0]


def found_runs(path: str | os.PathLike[str]) -> tuple[list[Path], list[str]]:
    """The runs of a folder, as `runs_in` has them, and a note on each copy of a run that is left out."""
    place = Path(path)
    if not place.is_dir() or is_log(place / _LOG):
        return [place], []
    from gradience.importers.sources import MAX_DEPTH, MAX_RUNS, run_folders  # as in `_read`

    foreign = run_folders(place)
    if foreign == [place]:
        return [place], []
    ours = list(_logs(place, MAX_DEPTH))
    kept, same = _distinct(sorted({*ours, *(folder for folder in foreign if not is_log(folder / _LOG))}))
    return kept[:MAX_RUNS] or [place], same


def holds_runs(path: str | os.PathLike[str]) -> bool:
    """Whether the path is a folder of several runs."""
    return len(runs_in(path)) > 1


class Found(NamedTuple):
    """Where a run is: its log or folder, and its id or name in there if that holds several."""

    path: Path
    run: str | None = None


def find_run(path: str | os.PathLike[str], run: str | None = None) -> Found:
    """Find a run as every verb does.

    Args:
        path: a log, the folder of a run, or a folder of runs; of the only run in a folder of runs, that is found.
        run: the run as any verb names it: a name as `monitor` prints it for a folder of runs, a path below that
            folder, or a run's id, or name, in a log of several.

    Raises:
        RecorderError: no run is called so, or several are.
    """
    place, places = Path(path), runs_in(path)
    if run is None:
        return Found(places[0] if len(places) == 1 else place)
    if places == [place] and not place.is_dir():
        return Found(place, _id_of(run, {place.name}))
    from gradience.importers.sources import inner_runs  # the same

    inner = inner_runs(place) if places == [place] else []
    names = _called([*places, *inner], place)
    name, _, part = run.rpartition("#")
    for asked, of_log in ((run, None), (name.strip(), part)):
        hits = _matching(asked, names)
        if len(hits) > 1:
            said = ", ".join(str(hit) for hit in hits[:_SHOWN])
            raise RecorderError(f"{path}: several runs are called {asked[:60]!r}", advice=f"there are {said}")
        if hits:
            return Found(hits[0], of_log)
    return _found_within(place, places, run)


def _id_of(run: str, names: set[str]) -> str | None:
    """The id in a name such as `seed1#3f2a`; None if the name is the log's own."""
    return None if run in names else run.rpartition("#")[2]


def _called(places: Sequence[Path], folder: Path) -> dict[str, Path]:
    """The runs by all names that a verb may print of them."""
    named = dict(zip(names_of(places), places, strict=True))
    for place in places:
        at = place.parent if place.name == _LOG else place
        below = {at.relative_to(folder).as_posix()} if at.is_relative_to(folder) else set()
        named |= dict.fromkeys({str(place), str(at), os.path.abspath(place), os.path.abspath(at), *below}, place)  # noqa: PTH100  # links are kept
    return named


def _matching(asked: str, names: Mapping[str, Path]) -> list[Path]:
    """The run of that name, else those whose names end so, as a table that is short of room prints them (`..a/b`)."""
    if asked in names or not asked:
        return [names[asked]] if asked else []
    numbered = re.sub(r"^\d+:", "", asked)
    if numbered in names:
        return [names[numbered]]
    cut = numbered.startswith("..")
    ending = numbered.lstrip(".") if cut else numbered
    return sorted({at for name, at in names.items() if name.endswith(ending if cut else f"/{ending}")})


def _found_within(place: Path, places: Sequence[Path], run: str) -> Found:
    """The run of this id, or name, in one of the logs, which are read until it is found."""
    for each in places:
        with suppress(GradienceError):  # there is no such run in it, or it cannot be read
            _read(each, run)
            return Found(each, run)
    if len(places) == 1:
        return Found(places[0], run)  # opening it says what there is
    there = ", ".join(names_of(places)[:_SHOWN])
    raise RecorderError(f"{place}: no run is called {run[:60]!r}", advice=f"there are {there}")


def _distinct(places: list[Path]) -> tuple[list[Path], list[str]]:
    """Of the logs of one run, only the longest, the trainer's own first; and a note on each other one.

    Loggers write beside the trainer: `output/` and `wandb/` may hold the same losses of the same steps. Only a few
    folders are read for that.
    """
    if not 1 < len(places) <= _MOST_LOGS or all(place.is_file() for place in places):
        return places, []
    losses = {place: _losses_in(place) for place in places}
    trainers = {place for place in places if _holds_results(place)}
    kept: list[Path] = []
    notes: list[str] = []
    for place in sorted(places, key=lambda place: (place not in trainers, -len(losses[place]))):
        # Two trainers' folders, or two logs of one logger, may be alike: of one seed, or of tries that died early
        others = trainers - {place} if place not in trainers else set[Path]()
        same = next((other for other in kept if other in others and _one_run(losses[other], losses[place])), None)
        if same is None:
            kept.append(place)
        else:
            notes.append(f"{place.name} is a log of the same run as {same.name}, which is read")
    return [place for place in places if place in kept], notes


def _holds_results(place: Path) -> bool:
    """Whether a run is in the trainer's own folder: with an adapter, its states, or our recorder's log."""
    from gradience.adapters.open import holds_adapter  # numpy: a log of our own need not pay for it
    from gradience.importers.trainer_state import find_states  # the same

    folder = place.parent if place.is_file() else place
    try:
        return (
            bool(find_states(folder))
            or holds_adapter(folder)
            or any(map(holds_adapter, filter(Path.is_dir, folder.iterdir())))
        )
    except OSError:
        return False


def _losses_in(folder: Path) -> dict[int, float]:
    try:
        run = _read(folder, None).summary.last
    except GradienceError:
        return {}
    return dict(zip(run.steps, run.losses, strict=True)) if run is not None else {}


def _one_run(one: Mapping[int, float], other: Mapping[int, float]) -> bool:
    shared = one.keys() & other.keys()
    enough = len(shared) >= min(_LEAST_SHARED, len(one), len(other)) > 0
    return enough and all(math.isclose(one[step], other[step], rel_tol=_EQUAL) for step in shared)


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
    ids = [run.removeprefix(_OF_IMPORT) for _, run in runs]
    brief = [run[:8] for run in ids]
    if len({(path, each) for (path, _), each in zip(runs, brief, strict=True)}) < len(runs):
        brief = ids  # ids that begin alike
    named = zip((path for path, _ in runs), brief, strict=True)
    return [f"{short[path]} #{run}" if count[path] > 1 else short[path] for path, run in named]


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
        run: the run to show, as `find_run` takes it; the last if None.

    Raises:
        RecorderError: the source is missing, empty, or holds no event of a run, or no run of that name.
        SchemaError: the log is of another major version.
    """
    place, run = find_run(path, run)
    if is_log(place / _LOG):
        place /= _LOG
    refuse_summary(place)
    source = _read(place, run)
    if source.summary.last is None:
        if place.is_file():
            require_file(place)  # a git-lfs pointer says so
        raise RecorderError(f"{path} holds no event of a run: {_why_none(place, source)}", advice=_NO_EVENT)
    return source


def _why_none(place: Path, source: LogSource) -> str:
    if (keys := keys_of(place)) is not None:
        return f"it is JSON, and no log known here (its keys: {few(keys, _SHOWN)})"
    issues = source.summary.issues
    return issues[0].reason if issues else "it holds none of the known events"


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
    known = [name for name in summary.runs if run == name] or [
        name for name in summary.runs if len(run) >= _SHORTEST and name.removeprefix(_OF_IMPORT).startswith(run)
    ]
    chosen = summary.runs.pop(known[0]) if len(known) == 1 else None
    if chosen is None:
        there = ", ".join(islice(summary.runs, _SHOWN)) or "none"
        raise RecorderError(f"{summary.path}: no run is called {run[:60]!r}", advice=f"there are {there}")
    summary.runs[known[0]] = chosen


def _import(path: Path, run: str | None) -> LogSource:
    """Import in memory the runs that another program left."""
    from gradience.importers import read_source  # the same

    imported = read_source(path, run=run)
    summary = RunSummary(path, KEPT)
    for each in imported.runs:
        for event in each.events:
            summary.add(event)
    if run in summary.runs:
        _show(summary, run)
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
