"""Read the log of a run: a gradience log, or another program's, which is imported in memory.

The path is that of one run's log, as `folder` finds it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from gradience.configs.document import read_settings
from gradience.configs.settings import Layer, overlay
from gradience.errors import ConfigError, RecorderError, few
from gradience.importers.files import SourceRun, keys_of, refuse_summary, require_file
from gradience.io.reading import open_regular
from gradience.schema import SCHEMA_PREFIX
from gradience.schema.events import ConfigSnapshot, Event, RunStart, UnknownEvent
from gradience.schema.reports import BadLine, InputFile
from gradience.telemetry.reader import RunSummary, TelemetryReader, version_notes
from gradience.telemetry.series import RunSeries
from gradience.telemetry.signals import KEPT

LOG_NAME: Final = "run.jsonl"
OF_IMPORT: Final = "import-"
"""The beginning of a run's id that was made of a file's hash."""
_SHOWN: Final = 10  # names in a sentence
_SHORTEST: Final = 8  # characters of a run's id that stand for it in a table
_NO_EVENT: Final = "give the run.jsonl that a run wrote, its folder, or another trainer's log"
_FIRST_BYTES: Final = 4096  # bytes read to recognise a log


@dataclass(frozen=True, slots=True)
class Reading:
    """What the log of a run says, read once: what every verb on a run takes.

    Attributes:
        path: the log, or the folder whose logs were imported.
        log: all runs of the log, its counts, and its bad lines.
        run: the run that was asked for, or the last.
        files: the files that were read.
        of_import: what an import says of itself.
        layer: where an import read settings; None of a log of our own.
        held: the bytes of the files of settings that an import read.
        states: the trainer_state.json files that an import read.
        digests: the digests of the files that an import read.
    """

    path: Path
    log: RunSummary
    run: RunSeries
    files: Sequence[Path]
    of_import: Sequence[str] = ()
    layer: Layer | None = None
    held: Mapping[Path, bytes] = field(default_factory=dict)
    states: Mapping[Path, SourceRun] = field(default_factory=dict)
    digests: Mapping[Path, str] = field(default_factory=dict)

    @property
    def settings(self) -> Layer:
        """The settings of the run, and the files that they are from."""
        config = self.run.config or ConfigSnapshot()
        if self.layer is None:
            return _as_a_file(config, self.path)
        return msgspec.structs.replace(self.layer, config=config, log=f"the log in {self.path.name}")

    @property
    def other_runs(self) -> list[str]:
        """The ids of the log's other runs."""
        return [run_id for run_id in self.log.runs if run_id != self.run.run_id]

    def of_each_run(self) -> Iterator[Reading]:
        """The readings of all runs of the log, in its order."""
        return (replace(self, run=run) for run in self.log.runs.values())

    def notes(self) -> Iterator[str]:
        """What a reader of the numbers should know of the log and its reading."""
        yield from self.of_import
        log, run = self.log, self.run
        if run.config is None:
            yield "no run_start in the log: the configuration is unknown"
        if others := ", ".join(self.other_runs):
            yield f"{len(log.runs)} runs in this log; {run.run_id} is shown; 'gradience runs': {others} too"
        if run.record.resumed_from:
            steps = ", ".join(map(str, run.record.resumed_from))
            yield f"resumed from step {steps}; {run.superseded} superseded rows are not shown"
        if log.unknown:
            known = ", ".join(f"{name} ({n})" for name, n in log.unknown.items())
            yield f"events of a name unknown here were kept and not used: {known}"
        yield from version_notes(log.version, log.softened)
        if log.bare_tokens:
            yield f"{log.bare_tokens} lines hold bare NaN or Infinity, which is not JSON; they were read anyway"


def _as_a_file(config: ConfigSnapshot, path: Path) -> Layer:
    """The settings of a log of our own, by the names that a file of settings may have."""
    named = Layer(config=config, sources=(InputFile(role="config", path=str(path)),))
    try:
        read = read_settings(msgspec.to_builtins(config), where=str(path))
    except ConfigError:  # it states none
        return named
    return msgspec.structs.replace(read, config=overlay(config, read.config))


def is_log(path: Path) -> bool:
    """Whether a file begins as a gradience log does, so that it needs no import."""
    try:
        with open_regular(path) as file:
            return SCHEMA_PREFIX.encode() in file.read(_FIRST_BYTES)
    except (OSError, ValueError):
        return False


def read_log(path: Path, run: str | None = None) -> Reading:
    """Read the log of a run, or a folder that holds one.

    Args:
        path: a run.jsonl, the folder of a run, or anything that `gradience import` reads.
        run: the id, or its beginning, of the run that is asked for, or its name in an import; the last if None.

    Raises:
        RecorderError: the log is missing, empty, or holds no event of a run, or no run of that name.
        SchemaError: the log is of another major version.
    """
    place = path / LOG_NAME if is_log(path / LOG_NAME) else path
    refuse_summary(place)
    if _is_foreign(place):
        return _imported(place, run)
    log = TelemetryReader(place).summarize(KEPT)
    name = _last(log) if run is None else called(log.runs, run, place)
    return Reading(place, log, log.runs[name], [place])


def _last(log: RunSummary) -> str:
    """The id of the run that started last.

    Raises:
        RecorderError: there is none.
    """
    if log.last is None:
        raise _no_event(log.path, log.issues)
    return log.last.run_id


def _no_event(path: Path, issues: Sequence[BadLine]) -> RecorderError:
    if path.is_file():
        require_file(path)  # a git-lfs pointer says so
    why = issues[0].reason if issues else "it holds none of the known events"
    if (keys := keys_of(path)) is not None:
        why = f"it is JSON, and no log known here (its keys: {few(keys, _SHOWN)})"
    return RecorderError(f"{path} holds no event of a run: {why}", advice=_NO_EVENT)


def called(runs: Iterable[str], run: str, path: Path) -> str:
    """The id, among those of the log's runs, that is called so: the id itself, or a long enough beginning of one.

    Raises:
        RecorderError: no run, or more than one, is called so.
    """
    ids = list(runs)
    known = [run] if run in ids else []
    if not known and len(run) >= _SHORTEST:
        known = [each for each in ids if each.removeprefix(OF_IMPORT).startswith(run)]
    if len(known) != 1:
        there = ", ".join(islice(ids, _SHOWN)) or "none"
        raise RecorderError(f"{path}: no run is called {run[:60]!r}", advice=f"there are {there}")
    return known[0]


def _is_foreign(place: Path) -> bool:
    if is_log(place):
        return False
    from gradience.importers import is_foreign  # a log of our own need not pay for it

    return is_foreign(place)


def _imported(path: Path, run: str | None) -> Reading:
    """Import in memory the runs that another program left."""
    from gradience.importers import read_source  # as in `_is_foreign`

    source = read_source(path, run=run)
    log = RunSummary(path, KEPT)
    for each in source.runs:
        for event in each.events:
            log.add(event)
    files = ", ".join(os.path.relpath(file, path) if path.is_dir() else file.name for file in source.files)
    notes = [f"imported in memory from {files} ({source.format}); no file was written", *source.notes]
    if source.skipped:
        first = source.skipped[0]
        rows = "1 row was" if len(source.skipped) == 1 else f"{len(source.skipped)} rows were"
        notes.append(f"{rows} not imported; the first: {first.file} {first.line}: {first.reason}")
    return Reading(
        path,
        log,
        log.runs[run if run in log.runs else _last(log)],
        source.files,
        notes,
        source.layer,
        source.held,
        source.states,
        source.digests,
    )


Session: TypeAlias = Sequence[Event | UnknownEvent]
"""The events of a run from one run_start to the next."""


def sessions_of(path: Path, run: str | None = None) -> Sequence[Session]:
    """The sessions of a run, and, where the last run began once and none is asked for, that before it; or an import's.

    Args:
        path: as `read_log` takes it.
        run: as `read_log` takes it.

    Raises:
        RecorderError: as in `read_log`.
        SchemaError: the log is of another major version.
    """
    place = path / LOG_NAME if is_log(path / LOG_NAME) else path
    if _is_foreign(place):
        from gradience.importers import read_source  # as in `_is_foreign`

        return [list(read_source(place, run=run).runs[-1].events)]
    reader, sessions = TelemetryReader(place), list[list[Event | UnknownEvent]]()
    for event in reader:
        if isinstance(event, RunStart) or not sessions:
            sessions.append([])
        sessions[-1].append(event)
    if not sessions:
        raise _no_event(place, reader.issues)
    ids = [session[0].run_id for session in sessions]
    run_id = ids[-1] if run is None else called(dict.fromkeys(ids), run, place)
    own = [session for session in sessions if session[0].run_id == run_id]
    return own if run is not None or len(own) > 1 else sessions[-2:]
