"""Find the three sources of a diagnosis, and read them by check, monitor and audit.

They are found by name in one folder, or named one by one. A folder is searched one level deep; links to folders are not
followed, and at most 10 000 entries are listed. A source that cannot be read gets a state and raises no error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

import msgspec

from gradience.adapters.open import CHECKPOINT, CONFIG_NAME, WEIGHT_NAMES, holds_adapter
from gradience.configs.training import PICKLED, STATE_NAME as _STATE, TRAINING_NAMES, read_training
from gradience.errors import ConfigError, DamagedError, GradienceError, few
from gradience.importers.files import is_pointer
from gradience.importers.sources import is_run, pointer_in
from gradience.io import PathLike
from gradience.reading import Reading, read_run
from gradience.reading.places import RunList, RunPlace, find_run, run_list
from gradience.rules import without
from gradience.rules.config import RULES
from gradience.rules.config.facts import CheckContext
from gradience.rules.log import DETECTED
from gradience.rules.weights.rules import ADAPTER_RULES
from gradience.schema.audit import AuditReport
from gradience.schema.diagnose import DiagnosedSource, SourceKind
from gradience.schema.events import ConfigSnapshot
from gradience.schema.reports import CheckReport, MonitorReport
from gradience.verbs.check.run import CheckOptions, judged, when_of
from gradience.verbs.diagnose.identity import CheckpointFolder, OwnedCheckpoint, identify
from gradience.verbs.monitor.run import report_of

MAX_ENTRIES: Final = 10_000  # most entries of one folder
SHOWN: Final = 5  # most names in a sentence

_LOG: Final = "run.jsonl"
_NAMED: Final = "named"
_WHOLE_MODEL: Final = re.compile(r"(model|pytorch_model|consolidated|optimizer|diffusion_).*")
_ABSENT: Final[dict[SourceKind, str]] = {
    "config": "configuration was",
    "log": "log was",
    "weights": "adapter weights were",
}


class Listing(NamedTuple):
    """The names of a folder's files, its subfolders, and notes on entries left out."""

    files: list[str]
    folders: list[Path]
    notes: list[str]


def list_folder(folder: Path) -> Listing:
    """The folder's regular files by name and its subfolders, sorted, with notes on entries left out.

    Links to folders are left out because they may lead anywhere, pipes because opening one would wait.
    """
    try:
        with os.scandir(folder) as entries:
            # Sorted, because the order of scandir is the file system's. One entry more shows that there are too many.
            listed = sorted(islice(entries, MAX_ENTRIES + 1), key=lambda entry: entry.name)
    except OSError as error:
        raise GradienceError(f"cannot read {folder}: {error.strerror}", advice="check the path") from error
    kinds: dict[str, list[str]] = {}
    for entry in listed:
        kinds.setdefault(_kind(entry), []).append(entry.name)
    links, strange = kinds.get("link", []), kinds.get("other", [])
    notes = {
        f"more than {MAX_ENTRIES} entries in {folder.name}: the rest was not looked at": len(listed) > MAX_ENTRIES,
        f"links to folders, not followed: {', '.join(links[:SHOWN])}": bool(links),
        f"neither files nor folders, not read: {', '.join(strange[:SHOWN])}": bool(strange),
    }
    visible = [folder / name for name in kinds.get("folder", []) if not name.startswith(".")]
    return Listing(kinds.get("file", []), visible, [note for note, applies in notes.items() if applies])


def _kind(entry: os.DirEntry[str]) -> Literal["folder", "link", "file", "other"]:
    """The kind of an entry; `link` is a symbolic link to a folder."""
    try:
        if entry.is_dir():
            return "folder" if entry.is_dir(follow_symlinks=False) else "link"
        return "file" if entry.is_file() else "other"
    except OSError:
        return "other"


def checkpoints_in(folders: Iterable[Path]) -> list[CheckpointFolder]:
    """The checkpoints among the folders, sorted by step."""
    numbered = sorted((int(hit[1]), child) for child in folders if (hit := CHECKPOINT.fullmatch(child.name)))
    checkpoints = [CheckpointFolder(step, child) for step, child in numbered]
    return [item for item in checkpoints if item.has_weights or (item.path / _STATE).is_file()]


class RunSource(NamedTuple):
    """One source: its path and how it was chosen, or the reason why there is none."""

    path: Path | None = None
    reason: str = ""
    chosen: str = ""
    run: str | None = None  # of a log of several runs, the id of the one that is meant
    reading: Reading | None = None  # of a log that was read to tell it from a copy


@dataclass(frozen=True)
class RunSources:
    """The sources of one diagnosis. `config` is a named file only; log and adapter state configurations too."""

    path: Path
    log: RunSource
    weights: RunSource
    config: RunSource
    training: Path | None = None
    """Training arguments as JSON, YAML or the Trainer's pickle, if the folder holds them."""
    folder: Path | None = None
    """The folder that was searched; None if every source was named."""
    checkpoints: list[CheckpointFolder] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_sources(
    path: PathLike | None = None,
    *,
    run: PathLike | None = None,
    adapter: PathLike | None = None,
    config: PathLike | None = None,
) -> RunSources:
    """Find log, weights and configuration. A named source wins over one found in the folder.

    Args:
        path: the folder that a run left; or a file, weights or a log by its name.
        run: the log, as `gradience monitor` takes it; or, of several runs in `path`, the one of this name or id.
        adapter: the adapter, as `gradience audit` takes it.
        config: a configuration, as `gradience check` takes it.

    Raises:
        GradienceError: nothing was given, a path does not exist, or the folder cannot be read.
    """
    places: dict[SourceKind, PathLike | None] = {"log": run, "weights": adapter, "config": config}
    given_place = None if path is None else RunPlace(_existing(Path(path)))
    if given_place is not None and run is not None and not os.path.lexists(run):
        given_place, places["log"] = find_run(given_place.path, str(run)), None
    named = {source: RunSource(_existing(Path(at)), chosen=_NAMED) for source, at in places.items() if at is not None}
    if given_place is None:
        if not named:
            raise GradienceError("nothing to diagnose", advice="give a run's folder, or --run, --adapter, --config")
        return _of_names(next(source.path for source in named.values() if source.path), named)
    place = given_place.path
    if place.is_dir():
        return _of_folder(place, named, given_place.run)
    if place.suffix in {".safetensors", ".bin", ".pt"}:
        return _of_names(place, {"weights": RunSource(place, chosen=_NAMED), **named})
    return _of_log(place, {"log": RunSource(place, chosen=_NAMED, run=given_place.run), **named})


def _of_log(log: Path, named: dict[SourceKind, RunSource]) -> RunSources:
    """The sources of one log, with what its run wrote beside it: all of a folder if the log's name is the run's own."""
    folder = log.parent
    if log.name in {_LOG, _STATE}:
        return replace(_of_folder(folder, named), path=log)
    weights = RunSource(folder, chosen="beside the log") if holds_adapter(folder) else None
    sources = _of_names(log, {**({"weights": weights} if weights else {}), **named})
    return replace(sources, training=_training(folder), folder=folder if weights else None)


def _training(*folders: Path) -> Path | None:
    return next((at / name for at in folders for name in TRAINING_NAMES if (at / name).is_file()), None)


def _existing(place: Path) -> Path:
    try:
        there = place.exists()
    except (OSError, ValueError):  # a name that no disk can hold
        there = False
    if not there:
        raise GradienceError(f"no such file or folder: {str(place)[:300]}", advice="check the path")
    return place


def _of_names(place: Path, named: dict[SourceKind, RunSource]) -> RunSources:
    sources = {**{source: RunSource(reason=f"no {what} named") for source, what in _ABSENT.items()}, **named}
    return RunSources(place, log=sources["log"], weights=sources["weights"], config=sources["config"])


def _of_folder(folder: Path, named: dict[SourceKind, RunSource], run: str | None = None) -> RunSources:
    listing = list_folder(folder)
    checkpoints = checkpoints_in(listing.folders)
    inner = RunList([]) if named or _LOG in listing.files or is_run(folder) else _inner_runs(folder)
    if inner.places and not checkpoints and not holds_adapter(folder) and any(map(_holds_weights, inner.places)):
        return _of_inner(folder, inner)
    logs = inner._replace(places=[place for place in inner.places if not _holds_weights(place)])
    log = named.get("log") or _log(folder, listing, logs)
    adapters = [checkpoint for checkpoint in checkpoints if holds_adapter(checkpoint.path)]
    weights = named.get("weights") or _weights(folder, listing, adapters)
    beside = [weights.path] if weights.path and weights.path.is_dir() else []
    return RunSources(
        folder,
        log=log._replace(run=log.run or run),
        weights=weights,
        config=named.get("config") or RunSource(reason="no adapter_config.json, training arguments or run_start"),
        training=_training(folder, folder / "training", *beside),
        folder=folder,
        checkpoints=checkpoints,
        notes=[*listing.notes, *_apart(folder, log, weights)],
    )


def _apart(folder: Path, log: RunSource, weights: RunSource) -> list[str]:
    """A note if log and adapter are in two subfolders, because it is a guess then that they are of one run."""
    both = [source.path for source in (log, weights) if source.path is not None and source.chosen != _NAMED]
    apart = [path.name for path in both if path.is_dir() and path != folder and not CHECKPOINT.fullmatch(path.name)]
    if len(set(apart)) < 2:  # two places
        return []
    return [f"log and adapter are in different subfolders ({', '.join(apart)}) and taken as one run's"]


def _inner_runs(folder: Path) -> RunList:
    """The runs in subfolders as every verb finds them, as folders where they have one."""
    runs = run_list(folder)
    at = {place: place.parent if place.name == _LOG else place for place in runs.places if place != folder}
    readings = {at[place]: reading for place, reading in runs.readings.items() if place in at}
    return RunList([*at.values()], runs.copies, readings)


def _holds_weights(place: Path) -> bool:
    if not place.is_dir():
        return False
    return holds_adapter(place) or any(holds_adapter(child) for child in list_folder(place).folders)


def _of_inner(folder: Path, inner: RunList) -> RunSources:
    """The sources of the only run in subfolders; if there are several, an error asks the user to choose one."""
    place, *others = inner.places
    if others:
        raise GradienceError(
            f"{folder} holds no run itself, and {len(inner.places)} folders in it do ({_names(inner.places)})",
            advice=f"give one of them, for example {others[-1]}, or its name with --run",
        )
    only = _of_folder(place, {})
    log = only.log
    if log.path in {place, place / _LOG}:
        log = log._replace(reading=inner.readings.get(place))
    note = f"{folder.name} holds one run, in {place.relative_to(folder)}: that is diagnosed"
    return replace(only, log=log, notes=[note, *inner.copies, *only.notes])


def _weights(folder: Path, listing: Listing, checkpoints: list[CheckpointFolder]) -> RunSource:
    """The folder's own adapter, else that of a subfolder, else that of the last checkpoint."""
    others = [c for c in listing.folders if not CHECKPOINT.fullmatch(c.name) and holds_adapter(c)]
    last = f"{checkpoints[-1].path.name} is the last checkpoint" if checkpoints else ""
    if holds_adapter(folder):
        many = [*(child.name for child in others), *(c.path.name for c in checkpoints[-1:])]
        return RunSource(folder, chosen=f"the folder's own; also there: {', '.join(many[:SHOWN])}" if many else "")
    if len(others) == 1:
        return RunSource(others[0], chosen=f"in {others[0].name}" + (f"; {last}" if last else ""))
    if checkpoints:
        also = f"; also there: {_names(others)}" if others else ""
        return RunSource(checkpoints[-1].path, chosen=f"no adapter in the folder itself: {last}{also}")
    if others:
        return RunSource(reason=f"{len(others)} adapters in subfolders ({_names(others)}): --adapter chooses")
    return _single_file(folder, listing.files)


def _single_file(folder: Path, files: list[str]) -> RunSource:
    """The only weights file, if it has another name as kohya's have, or the reason why none counts."""
    tensors = [name for name in files if name.endswith(".safetensors")]
    alone = [name for name in tensors if not _WHOLE_MODEL.fullmatch(name)]
    if len(alone) == 1 and len(tensors) == 1:
        return RunSource(folder / alone[0], chosen="the only weights file")
    if tensors and not alone:
        return RunSource(reason=f"{', '.join(tensors[:SHOWN])}: a whole model, no adapter")
    if tensors:
        return RunSource(reason=f"{', '.join(tensors[:SHOWN])}: not named as an adapter is (name it with --adapter)")
    lost = f": {CONFIG_NAME} is there, its weights are not" if CONFIG_NAME in files else ""
    return RunSource(reason=f"no adapter in the folder{lost}")


def _log(folder: Path, listing: Listing, inner: RunList) -> RunSource:
    if _LOG in listing.files:
        return RunSource(folder / _LOG, chosen=f"{_LOG}; {_STATE} is there too" if _STATE in listing.files else "")
    if is_run(folder):
        return RunSource(folder)
    if len(inner.places) == 1:
        (place,) = inner.places
        chosen = "; ".join([f"in {place.relative_to(folder)}", *inner.copies])
        return RunSource(place, chosen=chosen, reading=inner.readings.get(place))
    if inner.places:
        return RunSource(reason=f"{len(inner.places)} runs in it ({_names(inner.places)}): --run chooses")
    if (pointer := pointer_in(folder)) is not None:
        return RunSource(reason=f"{pointer.name} is a git-lfs pointer: 'git lfs pull' fetches the log")
    return RunSource(reason=f"no {_LOG}, {_STATE}, log or event file in the folder")


def _names(folders: list[Path]) -> str:
    return few([folder.name for folder in folders], SHOWN)


class JudgedLog(NamedTuple):
    """A run's log as it was read, and monitor's report on it."""

    reading: Reading
    report: MonitorReport


class SourceReports(NamedTuple):
    """The reports that could be made, the state of each source, and the sources, of one run where the log tells."""

    sources: RunSources
    checkpoints: list[OwnedCheckpoint]
    states: dict[SourceKind, DiagnosedSource]
    check: CheckReport | None
    log: JudgedLog | None
    audit: AuditReport | None


def read_sources(
    sources: RunSources,
    base: PathLike | None,
    task: str | None,
    gap_threshold: float,
    *,
    top_singular_values: int = 0,
    left_out: Mapping[str, str] = MappingProxyType({}),
) -> SourceReports:
    """The reports of check, monitor and audit on the sources that exist; rules left out have their reasons."""
    states: dict[SourceKind, DiagnosedSource] = {}
    log, states["log"] = _read_log(sources.log, gap_threshold, left_out)
    run = None if log is None else log.reading.run
    checkpoints = [] if run is None else [OwnedCheckpoint(each, identify(each, run)) for each in sources.checkpoints]
    sources = _of_one_run(sources, checkpoints)
    audit, states["weights"] = _read_weights(sources.weights, base, top_singular_values, left_out, log)
    check, states["config"] = _read_config(sources, log, base, task, left_out)
    return SourceReports(sources, checkpoints, states, check, log, audit)


def _of_one_run(sources: RunSources, checkpoints: Sequence[OwnedCheckpoint]) -> RunSources:
    """The sources with the newest checkpoint of the log's run, if the newest one is another run's."""
    chosen = sources.weights.path
    if not any(each.folder.path == chosen and each.identity.of_run is False for each in checkpoints):
        return sources
    own = [each.folder.path for each in checkpoints if each.identity.of_run and holds_adapter(each.folder.path)]
    name = "" if chosen is None else chosen.name
    if not own:
        return replace(sources, weights=RunSource(reason=f"{name} is of another run than the log"))
    why = f"{own[-1].name} is the last of the log's run; {name} is of another"
    return replace(sources, weights=RunSource(own[-1], chosen=why))


def _state(
    source: SourceKind, at: RunSource, *, holds: str = "", fault: GradienceError | None = None
) -> DiagnosedSource:
    path = None if at.path is None else str(at.path)
    if fault is not None:
        return DiagnosedSource(source=source, state="unreadable", path=path, chosen=at.chosen, reason=str(fault))
    if at.path is None:
        return DiagnosedSource(source=source, state="absent", reason=at.reason)
    return DiagnosedSource(source=source, state="read", path=path, chosen=at.chosen, holds=holds)


def _read_log(
    at: RunSource, gap_threshold: float, left_out: Mapping[str, str]
) -> tuple[JudgedLog | None, DiagnosedSource]:
    if at.path is None:
        return None, _state("log", at)
    try:
        reading = at.reading or read_run(at.path, at.run)
        report = report_of(reading, gap_threshold=gap_threshold, left_out=_of(DETECTED, left_out))
    except GradienceError as fault:
        return None, _state("log", at, fault=fault)
    rows, evals = report.train.rows, len(reading.run.evals)
    holds = f"{_plural(rows, 'row')}, {_plural(evals, 'evaluation')}, status {report.status.replace('_', ' ')}"
    return JudgedLog(reading, report), _state("log", at, holds=holds)


def _plural(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _read_weights(
    at: RunSource, base: PathLike | None, top: int, left_out: Mapping[str, str], log: JudgedLog | None
) -> tuple[AuditReport | None, DiagnosedSource]:
    if at.path is None:
        return None, _state("weights", at)
    from gradience.verbs.audit.run import audit_adapter  # imports jax: only if there are weights

    if (pointer := _pointer(at.path)) is not None:
        return None, _state(
            "weights", RunSource(reason=f"{pointer} is a git-lfs pointer: 'git lfs pull' fetches the weights")
        )
    optimizer = None if log is None or log.report.config is None else log.report.config.optimizer.name
    try:
        audit = audit_adapter(at.path, base=base, top_singular_values=top, optimizer=optimizer)
    except DamagedError as fault:
        return None, msgspec.structs.replace(_state("weights", at, fault=fault), damaged=True)
    except GradienceError as fault:
        return None, _state("weights", at, fault=fault)
    findings, not_run = without(audit.findings, audit.not_run, _of((rule.id for rule in ADAPTER_RULES), left_out))
    audit = msgspec.structs.replace(audit, findings=findings, not_run=not_run)
    holds = f"{_plural(len(audit.modules), 'module')}, {audit.health.verdict.replace('_', ' ')}"
    return audit, _state("weights", at, holds=holds)


def _pointer(place: Path) -> str | None:
    """The name of a weights file that is only git-lfs's pointer to one, or None."""
    files = [place / name for name in WEIGHT_NAMES] if place.is_dir() else [place]
    file = next((file for file in files if file.is_file()), None)
    return file.name if file is not None and is_pointer(file) else None


def _read_config(
    sources: RunSources,
    log: JudgedLog | None,
    base: PathLike | None,
    task: str | None,
    left_out: Mapping[str, str],
) -> tuple[CheckReport | None, DiagnosedSource]:
    """Check the configuration. Files, named or found beside the adapter, win over settings stated in the log."""
    stated = None if log is None or log.report.config == ConfigSnapshot() else log.report.config
    named, training = sources.config.path, sources.training
    beside = _config_beside(sources.weights.path, sources.folder) if named is None else None
    if stated is None and named is None and training is None and beside is None:
        return None, _state("config", sources.config)
    at = RunSource(named or training or beside or sources.log.path, chosen=sources.config.chosen)
    if named is None and training is not None and (unused := _unused(training)) and (stated or beside):
        at, training = RunSource(beside or sources.log.path, chosen=unused), None
    used = None if named else training
    pace = None if log is None else log.report.pace
    longest = None if pace is None else pace.longest  # so that what is foretold is of the longest batch that was seen
    given = CheckOptions(
        config=stated, document=named, peft=beside, training=used, base=base, task=task, max_length=longest
    )
    reasons = _of((rule.id for rule in RULES), left_out)
    try:
        whole = given.read()
        around = when_of(whole) if log is None else _weighed(log)
        check = judged(whole, given, given.folders, unwanted=reasons, around=around)
    except GradienceError as fault:
        return None, _state("config", at, fault=fault)
    files = [Path(file.path).name for file in check.sources if file.role != "base"]
    holds = ", ".join(dict.fromkeys([*(["settings in the log"] if stated else []), *files]))
    return check, _state("config", at, holds=holds)


def _weighed(log: JudgedLog) -> CheckContext:
    """The context of a configuration whose run's log is read beside it."""
    return CheckContext(
        moment="weighed", begun=f"the log in {Path(log.report.file).name}", epochs_seen=log.reading.run.last_epoch
    )


def _unused(training: Path) -> str:
    """The reason why pickled training arguments cannot be used, such as a class of the user's own; "" if they can."""
    try:
        if training.suffix in PICKLED:
            read_training(training)
    except ConfigError as fault:
        return f"{training.name} was not used: {str(fault).removeprefix(f'{training}: ')}"
    return ""


def _of(ids: Iterable[str], left_out: Mapping[str, str]) -> dict[str, str]:
    """The reasons in `left_out` for these rule ids."""
    return {rule: left_out[rule] for rule in ids if rule in left_out}


def _config_beside(weights: Path | None, folder: Path | None) -> Path | None:
    """The adapter's config: beside its weights, or in the folder of a run whose weights are gone."""
    places = [weights if weights.is_dir() else weights.parent] if weights is not None else [folder] if folder else []
    return next((path for place in places if (path := place / CONFIG_NAME).is_file()), None)
