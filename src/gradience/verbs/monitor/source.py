"""Find and read runs: a gradience log, or the logs of another program imported in memory.

A path may be a file, the folder of a run, or a folder of runs. `open_source` reads one source; `runs_in` finds the runs
of a folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import Final, NamedTuple

from gradience.errors import RecorderError
from gradience.importers.files import refuse_summary
from gradience.io.reading import open_regular
from gradience.rules.log.facts import KEPT
from gradience.schema.reports import SourceLocation
from gradience.schema.scalars import SCHEMA_PREFIX
from gradience.telemetry.reader import RunSummary, TelemetryReader

_OF_FOLDERS: Final = ("run.jsonl", "trainer_state.json")

_LOG: Final = "run.jsonl"
_MAX_ENTRIES: Final = 2000  # entries of a folder that are examined

_HEAD: Final = 4096  # bytes read to recognise a log


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


def _without_ending(names: Sequence[str]) -> list[str]:
    """The names without their common ending, which must begin with a point, dash or underscore."""
    if len(names) == 1:
        return list(names)
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*map(reversed, names), strict=False))
    shared = "".join(letters[0] for letters in same)[::-1]
    ending = shared[next((place for place, letter in enumerate(shared) if letter in "._-"), len(shared)) :]
    shorter = [name.removesuffix(ending) for name in names]
    return shorter if all(shorter) else list(names)


class Source(NamedTuple):
    """A log that was read: its path, its summary, and notes on the import."""

    path: Path
    summary: RunSummary
    notes: list[str]


def open_source(path: str | os.PathLike[str], run: str | None = None) -> Source:
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
        issues = source.summary.issues
        first = issues[0].reason if issues else "it holds none of the known events"
        raise RecorderError(f"{path} holds no event of a run: {first}", advice="give the run.jsonl that a run wrote")
    return source


def is_log(path: Path) -> bool:
    """Whether a file begins as a gradience log does, so that it needs no import."""
    try:
        with open_regular(path) as file:
            return SCHEMA_PREFIX.encode() in file.read(_HEAD)
    except (OSError, ValueError):
        return False


def _read(path: Path, run: str | None) -> Source:
    if not is_log(path):
        from gradience.importers import is_foreign  # noqa: PLC0415  # a gradience log does not need it

        if is_foreign(path):
            return _import(path, run)
    summary = TelemetryReader(path).summarize(KEPT)
    if run is not None:
        _show(summary, run)
    return Source(path, summary, [])


def _show(summary: RunSummary, run: str) -> None:
    """Move the run to the end, because the last run is the one shown."""
    chosen = summary.runs.pop(run, None)
    if chosen is None:
        known = ", ".join(islice(summary.runs, 10)) or "none"
        raise RecorderError(f"{summary.path}: no run is called {run[:60]!r}", advice=f"there are {known}")
    summary.runs[run] = chosen


def _import(path: Path, run: str | None) -> Source:
    """Import in memory the runs that another program left."""
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
