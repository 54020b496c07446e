"""A source, whatever it is, to runs of events."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from gradience.configs.settings import Layer
from gradience.errors import RecorderError
from gradience.importers.detect import Format, format_of
from gradience.importers.events import to_events
from gradience.importers.files import Raw, is_folder, refuse_summary, require_file, sha256_of
from gradience.importers.folder import find_log, inner_runs, read_file, read_run_folder, run_folders
from gradience.importers.order import arrange
from gradience.importers.settings import add_settings
from gradience.schema.events import Event
from gradience.schema.reports import SkippedRow
from gradience.schema.scalars import Json
from gradience.telemetry.redact import redact_event, redact_id

_ADVICE: Final = "give a run's output folder, a trainer_state.json, or a log; or say --format and --map"
_SHOWN: Final = 10
_HOSTED: Final = re.compile(r"^(events\.out\.tfevents\.\d+|[A-Z][a-z]{2}\d{2}_\d{2}-\d{2}-\d{2})[._].*$")


@dataclass(slots=True)
class ImportedRun:
    """One run as events, from its run_start to its run_end: redacted as a log of ours is."""

    run_id: str
    name: str
    events: list[Event]

    @property
    def counts(self) -> Counter[str]:
        """Events by name."""
        return Counter(str(event.__struct_config__.tag) for event in self.events)


@dataclass(slots=True)
class Imported:
    """What a source held: its runs, the one to show last, and everything worth saying about it."""

    source: Path
    format: Format
    runs: list[ImportedRun]
    layer: Layer  # the configuration of the run to show, and where it comes from
    files: list[Path] = field(default_factory=list)
    skipped: list[SkippedRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def is_foreign(path: Path) -> bool:
    """Whether this is a folder without a log of ours, or a file of a format that can be imported."""
    if is_folder(path):
        return find_log(path) is None
    return format_of(path) not in {None, "gradience"}


def read_source(
    source: Path, *, kind: Format | None = None, columns: Mapping[str, str] | None = None, run: str | None = None
) -> Imported:
    """Return the runs of a source.

    Args:
        source: an output folder, a folder of such folders, or a file.
        kind: its format; told by its content if None.
        columns: of a table: column of the source to name here (see `columns.parse_map`).
        run: only the run of this name, where the source holds several.

    Raises:
        RecorderError: the source is missing, of no known format, or holds no run.
    """
    chosen, raws = _read(source, kind, columns)
    _name_apart(source, raws)
    raws = _only(source, raws, run)
    runs = [told for raw in raws for told in _tell(source, chosen, raw)]
    if not any(e for told in runs for e in told.events if e.step is not None or told.counts["eval"]):
        raise RecorderError(f"{source} holds no row of a run", advice=_ADVICE)
    several = len(raws) > 1
    return Imported(
        source=source,
        format=chosen,
        runs=runs,
        layer=raws[-1].layer,
        files=list(dict.fromkeys(path for raw in raws for path in raw.files)),
        skipped=[skipped for raw in raws for skipped in raw.skipped],
        notes=[
            *_several(raws),
            *(f"{raw.name}: {n}" if several and raw.name else n for raw in raws for n in raw.notes),
        ],
    )


def read_folder_config(folder: Path) -> Layer:
    """Return what is known of the configuration of the run in a folder, its peak learning rate included.

    Raises:
        RecorderError: there is no run in it.
    """
    imported = read_source(folder)
    start = imported.runs[-1].events[0]
    return msgspec.structs.replace(imported.layer, config=start.config)  # type: ignore[union-attr]  # a run_start


def _read(source: Path, kind: Format | None, columns: Mapping[str, str] | None) -> tuple[Format, list[Raw]]:
    if is_folder(source):
        return _read_folder(source, kind, columns)
    require_file(source)
    refuse_summary(source)
    found = kind or ("table" if columns else format_of(source))
    if found == "gradience":
        raise RecorderError(f"{source} is a log of gradience already", advice="gradience monitor reads it as it is")
    if found is None:
        raise RecorderError(f"{source}: no format known here", advice=_ADVICE)
    raws = read_file(source, found, columns)
    if found in {"trainer-state", "llama-factory", "ms-swift"}:
        add_settings(raws[-1], source.parent)
    return found, raws


def _read_folder(folder: Path, kind: Format | None, columns: Mapping[str, str] | None) -> tuple[Format, list[Raw]]:
    folders = run_folders(folder)
    if not folders:
        raise RecorderError(f"{folder}: no run.jsonl, trainer_state.json, log or event file in it", advice=_ADVICE)
    raws: list[Raw] = []
    for each in folders:
        runs = read_run_folder(each, kind, columns)
        for raw in runs:
            parts = [each.relative_to(folder).as_posix() if each != folder else "", raw.name or ""]
            raw.name = "/".join(filter(None, parts)) or None
        raws += runs
    if folders == [folder] and (inner := [child.name for child in inner_runs(folder)]):
        raws[-1].notes.append(f"runs in subfolders, not read: {', '.join(inner[:_SHOWN])}")
    found = kind or format_of(raws[-1].path) or "trainer-state"
    return ("trainer-state" if found == "gradience" else found), raws


def _only(source: Path, raws: list[Raw], run: str | None) -> list[Raw]:
    if run is None:
        return raws
    chosen = [raw for raw in raws if run in {raw.name, raw.run_id}]
    if not chosen:
        names = ", ".join(str(raw.name or raw.path.name) for raw in raws[:_SHOWN])
        raise RecorderError(f"{source}: no run is called {run[:60]!r}", advice=f"there are {names}")
    return chosen


def _name_apart(source: Path, raws: list[Raw]) -> None:
    """Give every run an id of its own, the source's or one of its file's hash; of several, a name that --run takes."""
    if len(raws) > 1:
        names: Counter[str] = Counter()
        for raw in raws:
            name = raw.name or (raw.path.relative_to(source).as_posix() if raw.path != source else raw.path.name)
            names[name] += 1
            raw.name = name if names[name] == 1 else f"{name}.{names[name]}"
    taken: Counter[str] = Counter()
    for raw in raws:
        base = redact_id(raw.run_id) or f"import-{sha256_of(raw.files[0])[:16]}"
        taken[base] += 1
        raw.run_id = base if taken[base] == 1 else f"{base}.{taken[base]}"


def _several(raws: list[Raw]) -> list[str]:
    if len(raws) == 1:
        return []
    names = [str(raw.name or raw.path.name) for raw in raws]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{len(raws)} runs: {', '.join(names[:_SHOWN])}{more}; {names[-1]} is shown; --run NAME chooses"]


def _tell(source: Path, kind: Format, raw: Raw) -> list[ImportedRun]:
    """Return the runs of one log, each with its provenance."""
    digest = sha256_of(raw.files[0])
    base = str(raw.run_id)
    meta = _meta(source, kind, raw, digest)
    parts = arrange(raw)
    told = []
    for number, segments in enumerate(parts, 1):
        run_id = base if len(parts) == 1 else f"{base}-{number}"
        session = f"import-{digest[:8]}" + (f"-r{number}" if len(parts) > 1 else "")
        events = to_events(raw, segments, run_id=run_id, session=session, meta=meta)
        told.append(ImportedRun(run_id, raw.name or raw.path.name, [redact_event(event) for event in events]))
    return told


def _meta(source: Path, kind: Format, raw: Raw, digest: str) -> dict[str, Json]:
    """Return where the run comes from: base names and hashes, no path."""
    others = {_public(path.name): sha256_of(path) for path in raw.files[1:]}
    named = {"source_run": _public(raw.name)} if raw.name else {}
    return {
        "imported_from": _public(source.resolve().name),
        "source_file": _public(raw.path.name),
        "source_sha256": digest,
        "source_format": kind,
        **({"other_files_sha256": others} if others else {}),
        **named,
        "importer": f"gradience {version('gradience')}",
    }


def _public(name: str) -> str:
    """Return a name without the host's, which TensorBoard puts into those of its files and folders."""
    return "/".join(_HOSTED.sub(r"\1", part) for part in name.split("/"))
