"""Where runs come from: a log of ours, or what another program left, in memory."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from gradience.errors import RecorderError
from gradience.policy.detectors.signals import SIGNALS, Signals
from gradience.schema.events import TrainStep
from gradience.schema.scalars import SCHEMA_PREFIX
from gradience.telemetry.reader import TelemetryReader
from gradience.telemetry.summary import RunSeries, RunSummary

__all__ = ["Source", "is_log", "logged_in", "open_source", "signals_in"]

_HEAD: Final = 4096  # bytes
_FIRST_ROWS: Final = 50


class Source(NamedTuple):
    """What was read, from where, and what is to be said of that."""

    path: Path
    summary: RunSummary
    notes: list[str]
    signals: dict[str, Signals]  # by run; of an import only: a log of ours is asked when a run needs it


def open_source(path: str | os.PathLike[str], run: str | None = None) -> Source:
    """Return the runs of a log, of the folder that holds one, or of anything that can be imported.

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
    source = _read(place, run)
    if source.summary.last is None:
        issues = source.summary.issues
        first = issues[0].reason if issues else "it holds none of the known events"
        raise RecorderError(f"{path} holds no event of a run: {first}", advice="give the run.jsonl that a run wrote")
    return source


def is_log(path: Path) -> bool:
    """Whether a file begins as a log of ours does: then nothing else need be asked, or imported."""
    try:
        if not path.is_file():  # a pipe can be read once only
            return False
        with path.open("rb") as file:
            return SCHEMA_PREFIX.encode() in file.read(_HEAD)
    except (OSError, ValueError):
        return False


def _read(path: Path, run: str | None) -> Source:
    if not is_log(path):
        from gradience.importers import is_foreign  # noqa: PLC0415  # a log of ours need not pay for it

        if is_foreign(path):
            return _import(path, run)
    summary = TelemetryReader(path).summarize()
    if run is not None:
        _show(summary, run)
    return Source(path, summary, [], {})


def _show(summary: RunSummary, run: str) -> None:
    """Put the run last, where the one to show stands."""
    chosen = summary.runs.pop(run, None)
    if chosen is None:
        known = ", ".join(islice(summary.runs, 10)) or "none"
        raise RecorderError(f"{summary.path}: no run is called {run[:60]!r}", advice=f"there are {known}")
    summary.runs[run] = chosen


def _import(path: Path, run: str | None) -> Source:
    """Return what a source of another program holds, in memory."""
    from gradience.importers import read_source  # noqa: PLC0415  # the same
    from gradience.monitor.signals import signals_of  # noqa: PLC0415  # the same

    imported = read_source(path, run=run)
    summary = RunSummary(path)
    for told in imported.runs:
        for event in told.events:
            summary.take(event)
    files = ", ".join(os.path.relpath(file, path) if path.is_dir() else file.name for file in imported.files)
    notes = [f"imported in memory from {files} ({imported.format}); no file was written", *imported.notes]
    if imported.skipped:
        first = imported.skipped[0]
        rows = "1 row was" if len(imported.skipped) == 1 else f"{len(imported.skipped)} rows were"
        notes.append(f"{rows} not imported; the first: {first.file} {first.line}: {first.reason}")
    return Source(path, summary, notes, {told.run_id: signals_of(told.events) for told in imported.runs})


def logged_in(source: Source, run: RunSeries) -> frozenset[str]:
    """Return the names of further values in a run's training rows: a summary does not keep them."""
    if run.logged or not is_log(source.path):
        return frozenset(run.logged)
    rows = islice(TelemetryReader(source.path).of(TrainStep), _FIRST_ROWS)
    return frozenset(name for row in rows if row.run_id == run.run_id for name in row.extras)


def signals_in(source: Source, run: RunSeries, logged: frozenset[str]) -> Signals:
    """Return the columns of rewards and the like that a run logged; a log without them is not read again."""
    if run.run_id in source.signals:
        return source.signals[run.run_id]
    if not logged & SIGNALS.keys() or not is_log(source.path):
        return {}
    from gradience.monitor.signals import read_signals  # noqa: PLC0415  # the same

    return read_signals(source.path, run.run_id)
