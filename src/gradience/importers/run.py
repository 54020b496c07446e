"""The verb ``import``: a finished run of another program to a `run.jsonl`, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Final

from gradience.errors import RecorderError
from gradience.importers import Imported, ImportedRun, read_source
from gradience.importers.detect import Format
from gradience.importers.events import parse_map
from gradience.importers.files import is_folder, require_file
from gradience.schema.events import RunEnd, RunStart
from gradience.schema.reports import IMPORT_SCHEMA_ID, ImportedRunReport, ImportReport, SkippedRow
from gradience.telemetry.writer import TelemetryWriter

LOG_NAME: Final = "run.jsonl"
MAX_SKIPPED: Final = 100  # rows listed; all are counted

_ADVICE: Final = "choose another file with --out, or overwrite it with --force"


def import_run(
    source: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    kind: Format | None = None,
    columns: Mapping[str, str] | str | None = None,
    run: str | None = None,
    force: bool = False,
) -> ImportReport:
    """Write the runs of a source as a `run.jsonl`, and return what was read and written.

    Args:
        source: an output folder, a folder of such folders, or a file.
        out: the log to write; `run.jsonl` in the folder if None.
        kind: the source's format; told by its content if None.
        columns: of a table, as a mapping of columns to names or as text: `loss=train/loss,step=_step`.
        run: only the run of this name, where the source holds several.
        force: overwrite the log if it is there.

    Raises:
        RecorderError: the source cannot be read, or the log exists or cannot be written.
    """
    place = Path(source)
    target = _target(place, None if out is None else Path(out), force=force)
    given = parse_map([columns]) if isinstance(columns, str) else columns
    imported = read_source(place, kind=kind, columns=given, run=run)
    _keep_source(imported, target)
    refused = _write(imported, target, force=force)
    skipped = [*imported.skipped, *refused]
    return ImportReport(
        schema=IMPORT_SCHEMA_ID,
        source=str(place),
        format=imported.format,
        out=str(target),
        runs=[_run_report(told) for told in imported.runs],
        files=[str(path) for path in imported.files],
        skipped=skipped[:MAX_SKIPPED],
        skipped_total=len(skipped),
        notes=imported.notes,
    )


def _target(source: Path, out: Path | None, *, force: bool) -> Path:
    if out is None:
        if not is_folder(source):
            require_file(source)
            raise RecorderError("where should the log be written?", advice=f"say --out {LOG_NAME}")
        out = source / LOG_NAME
    if is_folder(out):
        raise RecorderError(f"{out} is a folder", advice=f"name the file, such as {out / LOG_NAME}")
    if os.path.lexists(out) and not force:
        raise RecorderError(f"{out} is there already", advice=_ADVICE)
    return out


def _keep_source(imported: Imported, target: Path) -> None:
    """Refuse to write over what was read."""
    if target.exists() and any(path.exists() and path.samefile(target) for path in imported.files):
        raise RecorderError(f"{target} is the source itself", advice="choose another file with --out")


def _write(imported: Imported, target: Path, *, force: bool) -> list[SkippedRow]:
    """Write the log beside its place and move it there; return the events that no line can hold."""
    refused: list[SkippedRow] = []
    with _beside(target) as draft:
        for told in imported.runs:
            writer = TelemetryWriter(draft, told.run_id, fsync="never", siblings=False)
            try:
                refused += _write_run(writer, told)
            finally:
                writer.close()
        _place(draft, target, force=force)
    return refused


def _write_run(writer: TelemetryWriter, told: ImportedRun) -> Iterator[SkippedRow]:
    for number, event in enumerate(told.events, 1):
        try:
            writer.write(event)
        except RecorderError as error:
            if isinstance(error.__cause__, OSError):
                raise
            yield SkippedRow(file=told.name, line=number, reason=f"event {number} of the run: {error}")


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Yield a file in a folder of its own beside the target: it leaves nothing behind, not even a lock."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=".import-"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RecorderError(f"cannot write into {target.parent}: {reason}", advice="say --out elsewhere") from error
    try:
        yield folder / LOG_NAME
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place(draft: Path, target: Path, *, force: bool) -> None:
    """Put the whole log in its place; without force only where nothing has appeared meanwhile."""
    try:
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        if force or not _linked(draft, target):
            draft.replace(target)
    except FileExistsError as error:
        raise RecorderError(f"{target} is there already", advice=_ADVICE) from error
    except OSError as error:
        raise RecorderError(f"cannot write {target}: {error.strerror}", advice="say --out elsewhere") from error


def _linked(draft: Path, target: Path) -> bool:
    """Link the file to its place, which fails where there is one already; False on a disk without links."""
    try:
        target.hardlink_to(draft)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):
        return False
    return True


def _run_report(told: ImportedRun) -> ImportedRunReport:
    end = told.events[-1]
    steps = [event.step for event in told.events if event.step is not None and not isinstance(event, RunStart)]
    return ImportedRunReport(
        run_id=told.run_id,
        name=told.name,
        status=end.status if isinstance(end, RunEnd) else "unknown",
        status_reason=end.reason if isinstance(end, RunEnd) else None,
        first_step=min(steps, default=None),
        last_step=max(steps, default=None),
        sessions=told.counts["run_start"],
        events=dict(told.counts),
    )
