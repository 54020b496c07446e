"""Read any source as runs of events; and the verb ``import``, which writes these runs as one `run.jsonl`.

`read_source` finds the logs in a path, reads them with the module of their format, orders the rows and makes redacted
events of them. `gradience monitor` stops there and writes nothing. `import_run` also writes the file, which appears
whole or not at all. A log that is recognised but cannot be read is refused with advice on what to export.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Final

from gradience.configs.settings import Layer
from gradience.configs.training import STATE_NAME
from gradience.errors import OutputError, RecorderError, few
from gradience.importers.events import EventTally, RunEvents, arrange
from gradience.importers.files import SourceRun, add_settings, is_folder, refuse_summary, require_file
from gradience.importers.loops import EXAMPLE
from gradience.importers.sources import (
    TABLES,
    WITHOUT_SETTINGS,
    Format,
    find_log,
    format_of,
    inner_runs,
    read_file,
    read_run_folder,
    require_fetched,
    run_folders,
)
from gradience.importers.table import parse_map
from gradience.importers.trainer_state import add_results
from gradience.io.atomic import atomic_file, refuse_file
from gradience.io.reading import real_path
from gradience.schema import Json
from gradience.schema.events import Event, RunEnd
from gradience.schema.reports import IMPORT_SCHEMA_ID, ImportedRunReport, ImportReport, SkippedRow
from gradience.telemetry.redact import redact_event, redact_id, to_line

LOG_NAME: Final = "run.jsonl"
MAX_SKIPPED: Final = 100  # skipped rows listed; all are counted

_ADVICE: Final = (
    f"give a run's output folder, a trainer_state.json, or a log; lines of your own are read as {EXAMPLE} prints them"
)
_SHOWN: Final = 10
_SHORT: Final = 8  # characters of a run's id
_HOSTED: Final = re.compile(r"^(events\.out\.tfevents\.\d+|[A-Z][a-z]{2}\d{2}_\d{2}-\d{2}-\d{2})[._].*$")


@dataclass(slots=True)
class ImportedRun:
    """One run as events, from run_start to run_end, redacted as in a log of our own."""

    run_id: str
    name: str
    made: RunEvents

    @property
    def events(self) -> Iterator[Event]:
        """The events, made anew at each access so that they are never all in memory."""
        return map(redact_event, self.made)


@dataclass(slots=True)
class Imported:
    """The contents of a source: its runs, the one to show last, and notes."""

    source: Path
    format: Format
    runs: list[ImportedRun]
    layer: Layer  # the configuration of the run to show, and where it comes from
    files: list[Path] = field(default_factory=list)
    held: dict[Path, bytes] = field(default_factory=dict)
    states: dict[Path, SourceRun] = field(default_factory=dict)
    digests: dict[Path, str] = field(default_factory=dict)
    skipped: list[SkippedRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def is_foreign(path: Path) -> bool:
    """Whether the path is a folder without a gradience log, or a file of an importable format."""
    if is_folder(path):
        return find_log(path) is None
    return format_of(path) not in {None, "gradience"} or path.suffix.lower() in TABLES


def read_source(
    source: Path, *, kind: Format | None = None, columns: Mapping[str, str] | None = None, run: str | None = None
) -> Imported:
    """Return the runs of a source.

    Args:
        source: an output folder, a folder of such folders, or a file.
        kind: its format; found by its content if None.
        columns: for a table: source column to name here (see `table.parse_map`).
        run: only the run of this name, if the source holds several.

    Raises:
        RecorderError: the source is missing, of no known format, or holds no run.
    """
    chosen, raws = _read(source, kind, columns)
    _name_apart(source, raws)
    raws = _only(source, raws, run)
    runs = [run for raw in raws for run in _build_runs(source, chosen, raw)]
    if not any(_holds_a_row(run.made.tally) for run in runs) and not any(raw.reached or raw.began for raw in raws):
        raise RecorderError(f"{source} holds no row of a run", advice=_ADVICE)
    several = len(raws) > 1
    return Imported(
        source=source,
        format=chosen,
        runs=runs,
        layer=raws[-1].layer,
        files=list(dict.fromkeys(path for raw in raws for path in raw.files)),
        held={path: data for raw in raws for path, data in raw.held.items()},
        states={state.path: state for raw in raws for state in raw.states},
        digests={path: digest for raw in raws for path, digest in raw.digests.items()},
        skipped=[skipped for raw in raws for skipped in raw.skipped],
        notes=[
            *_several(raws),
            *(f"{raw.name}: {n}" if several and raw.name else n for raw in raws for n in raw.notes),
        ],
    )


def _holds_a_row(tally: EventTally) -> bool:
    return tally.last_step is not None or bool(tally.counts["eval"])


def _read(source: Path, kind: Format | None, columns: Mapping[str, str] | None) -> tuple[Format, list[SourceRun]]:
    if is_folder(source):
        return _read_folder(source, kind, columns)
    refuse_summary(source)
    require_file(source)
    source_format = kind or ("table" if columns else format_of(source))
    if source_format is None and source.suffix.lower() in TABLES:
        source_format = "table"  # reading it as a table gives an error that names the columns
    if source_format == "gradience":
        raise RecorderError(f"{source} is a log of gradience already", advice="gradience monitor reads it as it is")
    if source_format is None:
        raise RecorderError(f"{source}: no format known here", advice=_ADVICE)
    raws = read_file(source, source_format, columns)
    if source.name == STATE_NAME:
        add_results(raws[-1], source.parent)
    if source_format in WITHOUT_SETTINGS:
        add_settings(raws[-1], source.parent)
    return source_format, raws


def _read_folder(
    folder: Path, kind: Format | None, columns: Mapping[str, str] | None
) -> tuple[Format, list[SourceRun]]:
    folders = run_folders(folder)
    if not folders:
        refuse_unread(folder)
        require_fetched(folder)
        raise RecorderError(f"{folder}: no run.jsonl, trainer_state.json, log or event file in it", advice=_ADVICE)
    raws: list[SourceRun] = []
    for each in folders:
        runs = read_run_folder(each, kind, columns)
        for raw in runs:
            parts = [each.relative_to(folder).as_posix() if each != folder else "", raw.name or ""]
            raw.name = "/".join(filter(None, parts)) or None
        raws += runs
    if folders == [folder] and (inner := [child.name for child in inner_runs(folder)]):
        raws[-1].notes.append(f"runs in subfolders, not read: {', '.join(inner[:_SHOWN])}")
    is_state = raws[-1].path.name == STATE_NAME  # read already, and known by its name
    source_format = kind or ("trainer-state" if is_state else format_of(raws[-1].path)) or "trainer-state"
    return ("trainer-state" if source_format == "gradience" else source_format), raws


def _only(source: Path, raws: list[SourceRun], run: str | None) -> list[SourceRun]:
    if run is None:
        return raws
    of_log, _, number = run.rpartition("-")
    chosen = [raw for raw in raws if run in {raw.name, raw.run_id} or (number.isdigit() and of_log == raw.run_id)]
    chosen = chosen or [raw for raw in raws if f"/{raw.name}".endswith(f"/{run}")]
    if not chosen and len(run) >= _SHORT:  # as a table shortens an id
        chosen = [raw for raw in raws if str(raw.run_id).removeprefix("import-").startswith(run)]
    if not chosen:
        names = ", ".join(str(raw.name or raw.path.name) for raw in raws[:_SHOWN])
        raise RecorderError(f"{source}: no run is called {run[:60]!r}", advice=f"there are {names}")
    return chosen


def _name_apart(source: Path, raws: list[SourceRun]) -> None:
    """Give every run a unique id, the source's or one of its file's hash; if there are several, also a unique name."""
    if len(raws) > 1:
        names: Counter[str] = Counter()
        for raw in raws:
            name = raw.name or (raw.path.relative_to(source).as_posix() if raw.path != source else raw.path.name)
            names[name] += 1
            raw.name = name if names[name] == 1 else f"{name}.{names[name]}"
    taken: Counter[str] = Counter()
    for raw in raws:
        # By content: a log has one id, wherever it lies and whenever it is imported.
        base = redact_id(raw.run_id) or f"import-{raw.digest_of(raw.files[0])[:16]}"
        taken[base] += 1
        raw.run_id = base if taken[base] == 1 else f"{base}.{taken[base]}"


def _several(raws: list[SourceRun]) -> list[str]:
    if len(raws) == 1:
        return []
    names = [str(raw.name or raw.path.name) for raw in raws]
    return [f"{len(raws)} runs: {few(names, _SHOWN)}; {names[-1]} is shown; --run NAME chooses"]


def _build_runs(source: Path, kind: Format, raw: SourceRun) -> list[ImportedRun]:
    """Return the runs of one log, each with its provenance in `meta`."""
    digest = raw.digest_of(raw.files[0])
    base = str(raw.run_id)
    meta = _meta(source, kind, raw, digest)
    parts = arrange(raw)
    runs = []
    for number, segments in enumerate(parts, 1):
        run_id = base if len(parts) == 1 else f"{base}-{number}"
        session = f"import-{digest[:8]}" + (f"-r{number}" if len(parts) > 1 else "")
        made = RunEvents(raw, segments, run_id=run_id, session=session, meta=meta)
        runs.append(ImportedRun(run_id, raw.name or raw.path.name, made))
    return runs


def _meta(source: Path, kind: Format, raw: SourceRun, digest: str) -> dict[str, Json]:
    """Return the provenance of a run as base names and hashes, never a path."""
    others = {_public(path.name): raw.digest_of(path) for path in raw.files[1:]}
    named = {"source_run": _public(raw.name)} if raw.name else {}
    return {
        "imported_from": _public(real_path(source).name),
        "source_file": _public(raw.path.name),
        "source_sha256": digest,
        "source_format": kind,
        **({"other_files_sha256": others} if others else {}),
        **named,
        "importer": f"gradience {version('gradience')}",
    }


def _public(name: str) -> str:
    """Return a name without the host's name, which TensorBoard puts into file and folder names."""
    return "/".join(_HOSTED.sub(r"\1", part) for part in name.split("/"))


def import_run(
    source: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    kind: Format | None = None,
    columns: Mapping[str, str] | str | None = None,
    run: str | None = None,
    force: bool = False,
) -> ImportReport:
    """Write the runs of a source as a `run.jsonl`, and return a report of what was read and written.

    Args:
        source: an output folder, a folder of such folders, or a file.
        out: the log to write; `run.jsonl` in the folder if None.
        kind: the source's format; found by its content if None.
        columns: for a table, as a mapping of columns to names or as text: `loss=train/loss,step=_step`.
        run: only the run of this name, if the source holds several.
        force: overwrite the log if it exists.

    Raises:
        RecorderError: the source cannot be read, or no log can have the given name.
        OutputError: the log exists, or cannot be written.
    """
    place = Path(source)
    target = _target(place, None if out is None else Path(out))
    refuse_file(target, force=force)
    mapping = parse_map([columns]) if isinstance(columns, str) else columns
    imported = read_source(place, kind=kind, columns=mapping, run=run)
    if target.exists() and any(path.exists() and path.samefile(target) for path in imported.files):
        raise RecorderError(f"{target} is the source itself", advice="choose another file with --out")
    skipped = [*imported.skipped, *_write(imported.runs, target, force=force)]
    return ImportReport(
        schema=IMPORT_SCHEMA_ID,
        source=str(place),
        format=imported.format,
        out=str(target),
        runs=[_run_report(each) for each in imported.runs],
        files=[str(path) for path in imported.files],
        skipped=skipped[:MAX_SKIPPED],
        skipped_total=len(skipped),
        notes=imported.notes,
    )


def _target(source: Path, out: Path | None) -> Path:
    if out is None:
        if not is_folder(source):
            require_file(source)
            raise RecorderError("where should the log be written?", advice=f"give --out {LOG_NAME}")
        return source / LOG_NAME
    if is_folder(out):
        raise RecorderError(f"{out} is a folder", advice=f"name the file, such as {out / LOG_NAME}")
    return out


def _write(runs: list[ImportedRun], target: Path, *, force: bool) -> list[SkippedRow]:
    """Write the log atomically; return the events that do not fit a line."""
    refused: list[SkippedRow] = []
    try:
        with (
            atomic_file(target, sources=[], force=force, private=True) as partial,  # as every log is
            partial.open("wb") as file,
        ):
            for run in runs:
                file.writelines(_lines(run, refused))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(
            f"cannot write {target}: {error.strerror}", advice="free space, or choose another --out"
        ) from error
    return refused


def _lines(run: ImportedRun, refused: list[SkippedRow]) -> Iterator[bytes]:
    for number, event in enumerate(run.events, 1):
        try:
            yield to_line(event) + b"\n"
        except RecorderError as error:
            refused.append(SkippedRow(file=run.name, line=number, reason=f"event {number} of the run: {error.message}"))


def _run_report(run: ImportedRun) -> ImportedRunReport:
    end, tally = redact_event(run.made.end), run.made.tally
    return ImportedRunReport(
        run_id=run.run_id,
        name=run.name,
        status=end.status if isinstance(end, RunEnd) else "unknown",
        status_reason=end.reason if isinstance(end, RunEnd) else None,
        first_step=tally.first_step,
        last_step=tally.last_step,
        sessions=tally.counts["run_start"],
        events=dict(tally.counts),
    )


def refuse_unread(path: Path) -> None:
    """Refuse an Aim repository.

    Raises:
        RecorderError: the folder is one, or holds one.
    """
    if (path / ".aim").is_dir() or path.name == ".aim":
        raise RecorderError(
            f"{path} is an Aim repository, whose database has no documented format",
            advice="export the run's metrics as CSV in Aim's Metrics Explorer, and import the table",
        )
