"""Find a run in a folder by names and first bytes: where its log, its weights and its settings are, and which they are.

What is ambiguous is named here, once: it is a note, a place without a path that has its reason, or an error that asks
the user to choose. A folder is searched one level deep; links to folders are not followed, and at most 10 000 entries
are listed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Final, Literal, NamedTuple

from gradience.adapters.files import CHECKPOINT, CONFIG_NAME, holds_adapter
from gradience.configs.training import STATE_NAME as _STATE, TRAINING_NAMES
from gradience.errors import GradienceError, few
from gradience.folder.runs import RunList, RunPlace, find_run, run_list
from gradience.io import PathLike
from gradience.reading.logs import Reading
from gradience.schema.diagnose import SourceKind

MAX_ENTRIES: Final = 10_000  # most entries of one folder
SHOWN: Final = 5  # most names in a sentence
MODEL_NAMES: Final = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")

_LOG: Final = "run.jsonl"
_NAMED: Final = "named"
ARCHIVE: Final = "adapters.npz"
"""The weights file of MLX before 2024."""
_WHOLE_MODEL: Final = re.compile(r"(model|pytorch_model|consolidated|optimizer|diffusion_).*")
_ABSENT: Final[dict[SourceKind, str]] = {
    "config": "configuration was",
    "log": "log was",
    "weights": "adapter weights were",
}


class CheckpointFolder(NamedTuple):
    """A folder `checkpoint-N` that holds weights, of an adapter or a whole model, or the history of its run."""

    step: int
    path: Path

    @property
    def has_weights(self) -> bool:
        """Whether it holds an adapter or a whole model."""
        return holds_adapter(self.path) or any((self.path / name).is_file() for name in MODEL_NAMES)


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


class Place(NamedTuple):
    """Where a part of a run is, and how it was chosen; or the reason why there is none."""

    path: Path | None = None
    reason: str = ""
    chosen: str = ""
    run: str | None = None  # of a log of several runs, the id of the one that is meant
    reading: Reading | None = None  # of a log that was read to tell it from a copy


@dataclass(frozen=True)
class Found:
    """Where the parts of one run are. `config` is a named file only; log and adapter state configurations too."""

    path: Path
    log: Place
    weights: Place
    config: Place
    training: Path | None = None
    """Training arguments as JSON, YAML or the Trainer's pickle, if the folder holds them."""
    folder: Path | None = None
    """The folder that was searched; None if every source was named."""
    checkpoints: list[CheckpointFolder] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find(
    path: PathLike | None = None,
    *,
    run: PathLike | None = None,
    adapter: PathLike | None = None,
    config: PathLike | None = None,
) -> Found:
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
    named = {source: Place(_existing(Path(at)), chosen=_NAMED) for source, at in places.items() if at is not None}
    if given_place is None:
        if not named:
            raise GradienceError("nothing to diagnose", advice="give a run's folder, or --run, --adapter, --config")
        return _of_names(next(source.path for source in named.values() if source.path), named)
    place = given_place.path
    if place.is_dir():
        return _of_folder(place, named, given_place.run)
    if place.suffix in {".safetensors", ".bin", ".pt"}:
        return _of_names(place, {"weights": Place(place, chosen=_NAMED), **named})
    return _of_log(place, {"log": Place(place, chosen=_NAMED, run=given_place.run), **named})


def weights_alone(path: Path) -> Found:
    """An adapter that was named by itself: no log is looked for."""
    found = _of_names(path, {"weights": Place(path, chosen=_NAMED)})
    folder = path if path.is_dir() else path.parent
    above = [folder.parent] if CHECKPOINT.fullmatch(folder.name) else []
    return replace(found, training=_training(folder, *above))


def around(reading: Reading) -> Found:
    """What the run of a log that was read left beside it."""
    named: dict[SourceKind, Place] = {"log": Place(reading.path, reading=reading)}
    return _of_folder(reading.path, named) if reading.path.is_dir() else _of_log(reading.path, named)


def _of_log(log: Path, named: dict[SourceKind, Place]) -> Found:
    """The sources of one log, with what its run wrote beside it: all of a folder if the log's name is the run's own."""
    folder = log.parent
    if log.name in {_LOG, _STATE}:
        return replace(_of_folder(folder, named), path=log)
    weights = Place(folder, chosen="beside the log") if holds_adapter(folder) else None
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


def _of_names(place: Path, named: dict[SourceKind, Place]) -> Found:
    sources = {**{source: Place(reason=f"no {what} named") for source, what in _ABSENT.items()}, **named}
    return Found(place, log=sources["log"], weights=sources["weights"], config=sources["config"])


def _of_folder(folder: Path, named: dict[SourceKind, Place], run: str | None = None) -> Found:
    listing = list_folder(folder)
    checkpoints = checkpoints_in(listing.folders)
    inner = RunList([]) if named or _LOG in listing.files else _inner_runs(folder)
    of_run = bool(checkpoints) or holds_adapter(folder) or not {CONFIG_NAME, *TRAINING_NAMES}.isdisjoint(listing.files)
    if inner.places and not of_run and any(map(_holds_weights, inner.places)):
        return _of_inner(folder, inner)
    logs = inner._replace(places=[place for place in inner.places if not _holds_weights(place)])
    log = named.get("log") or _log(folder, listing, logs)
    adapters = [checkpoint for checkpoint in checkpoints if holds_adapter(checkpoint.path)]
    weights = named.get("weights") or _weights(folder, listing, adapters)
    beside = [weights.path] if weights.path and weights.path.is_dir() else []
    return Found(
        folder,
        log=log._replace(run=log.run or run),
        weights=weights,
        config=named.get("config") or Place(reason="no adapter_config.json, training arguments or run_start"),
        training=_training(folder, folder / "training", *beside),
        folder=folder,
        checkpoints=checkpoints,
        notes=[*listing.notes, *_apart(folder, log, weights)],
    )


def _apart(folder: Path, log: Place, weights: Place) -> list[str]:
    """A note if log and adapter are in two subfolders, because it is a guess then that they are of one run."""
    both = [source.path for source in (log, weights) if source.path is not None and source.chosen != _NAMED]
    apart = [path.name for path in both if path.is_dir() and path != folder and not CHECKPOINT.fullmatch(path.name)]
    if len(set(apart)) < 2:  # two places
        return []
    return [f"log and adapter are in different subfolders ({', '.join(apart)}) and taken as one run's"]


def _inner_runs(folder: Path) -> RunList:
    """The runs in subfolders as every verb finds them, as folders where they have one; none if the folder is a run."""
    runs = run_list(folder)
    at = {place: place.parent if place.name == _LOG else place for place in runs.places if place != folder}
    readings = {at[place]: reading for place, reading in runs.readings.items() if place in at}
    return RunList([*at.values()], runs.copies, readings)


def _holds_weights(place: Path) -> bool:
    if not place.is_dir():
        return False
    return holds_adapter(place) or any(holds_adapter(child) for child in list_folder(place).folders)


def _of_inner(folder: Path, inner: RunList) -> Found:
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


def _weights(folder: Path, listing: Listing, checkpoints: list[CheckpointFolder]) -> Place:
    """The folder's own adapter, else that of a subfolder, else that of the last checkpoint."""
    others = [c for c in listing.folders if not CHECKPOINT.fullmatch(c.name) and holds_adapter(c)]
    last = f"{checkpoints[-1].path.name} is the last checkpoint" if checkpoints else ""
    if holds_adapter(folder):
        many = [*(child.name for child in others), *(c.path.name for c in checkpoints[-1:])]
        return Place(folder, chosen=f"the folder's own; also there: {', '.join(many[:SHOWN])}" if many else "")
    if len(others) == 1:
        return Place(others[0], chosen=f"in {others[0].name}" + (f"; {last}" if last else ""))
    if checkpoints:
        also = f"; also there: {_names(others)}" if others else ""
        return Place(checkpoints[-1].path, chosen=f"no adapter in the folder itself: {last}{also}")
    if others:
        return Place(reason=f"{len(others)} adapters in subfolders ({_names(others)}): --adapter chooses")
    return _single_file(folder, listing.files)


def _single_file(folder: Path, files: list[str]) -> Place:
    """The only weights file, if it has another name as kohya's have, or the reason why none counts."""
    tensors = [name for name in files if name.endswith(".safetensors")]
    alone = [name for name in tensors if not _WHOLE_MODEL.fullmatch(name)]
    if len(alone) == 1 and len(tensors) == 1:
        return Place(folder / alone[0], chosen="the only weights file")
    if tensors and not alone:
        return Place(reason=f"{', '.join(tensors[:SHOWN])}: a whole model, no adapter")
    if tensors:
        return Place(reason=f"{', '.join(tensors[:SHOWN])}: not named as an adapter is (name it with --adapter)")
    if ARCHIVE in files:
        return Place(reason=f"{ARCHIVE} is MLX's older format: gradience audit {folder / ARCHIVE} reads it")
    lost = f": {CONFIG_NAME} is there, its weights are not" if CONFIG_NAME in files else ""
    return Place(reason=f"no adapter in the folder{lost}")


def _log(folder: Path, listing: Listing, inner: RunList) -> Place:
    if _LOG in listing.files:
        return Place(folder / _LOG, chosen=f"{_LOG}; {_STATE} is there too" if _STATE in listing.files else "")
    from gradience.importers.sources import is_run, pointer_in  # a log of our own needs none

    if is_run(folder):
        return Place(folder)
    if len(inner.places) == 1:
        (place,) = inner.places
        chosen = "; ".join([f"in {place.relative_to(folder)}", *inner.copies])
        return Place(place, chosen=chosen, reading=inner.readings.get(place))
    if inner.places:
        return Place(reason=f"{len(inner.places)} runs in it ({_names(inner.places)}): --run chooses")
    if (pointer := pointer_in(folder)) is not None:
        return Place(reason=f"{pointer.name} is a git-lfs pointer: 'git lfs pull' fetches the log")
    return Place(reason=f"no {_LOG}, {_STATE}, log or event file in the folder")


def _names(folders: list[Path]) -> str:
    return few([folder.name for folder in folders], SHOWN)
