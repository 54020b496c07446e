"""The logs below some folders: each run.jsonl, and each folder or file that another program's run wrote."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final

from gradience.configs.training import STATE_NAME
from gradience.errors import RecorderError
from gradience.importers.sources import is_run
from gradience.io.paths import PathLike
from gradience.schema.document import writable
from gradience.verbs.fleet.find import leads_to_folder, stamp_of
from gradience.verbs.fleet.job import Job
from gradience.verbs.monitor.source import is_log
from gradience.verbs.fleet.rows import version_of_rules

_LOGS: Final = (".jsonl", ".json", ".csv", ".tsv", ".db")
_SETTINGS: Final = (".yaml", ".yml", "training_args.bin")
_OF_LOGGERS: Final = frozenset({"runs", "logs", "tensorboard", "wandb", "mlruns"})
_CHECKPOINT: Final = "checkpoint-"


def find_runs(roots: Iterable[PathLike], known: Collection[str] = ()) -> Iterator[Job]:
    """A job for every run below the roots.

    A run.jsonl is one, and so is another file that begins as a log of ours; else a folder in which another program
    left a log or a state. Its checkpoints and its logger's own folders belong to it.

    Args:
        roots: folders, or logs.
        known: paths that are runs, which need not be opened to tell.

    Raises:
        RecorderError: a root is missing.
    """
    seen: set[str] = set()
    for root in roots:
        place = os.path.abspath(root)  # noqa: PTH100  # no links resolved: a row is named as the user knows it
        if not os.path.exists(place):  # noqa: PTH110  # Path.exists raises where a name is too long
            raise RecorderError(f"no such file or folder: {root}", advice="give a folder with runs below it")
        for path, stamp in _below(place, known) if os.path.isdir(place) else [_file(place)]:  # noqa: PTH112  # the same
            if path not in seen:
                seen.add(path)
                yield Job(path=writable(path), place=path, files=(), stamp=writable(stamp), rules=version_of_rules("config", "log"))


def _file(path: str) -> tuple[str, str]:
    folder, name = os.path.split(path)
    return path, stamp_of(folder, [name])


def _below(root: str, known: Collection[str]) -> Iterator[tuple[str, str]]:
    stack = [root]
    while stack:
        folder = stack.pop()
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            continue
        files = [entry.name for entry in listed if not leads_to_folder(entry)]
        below = [entry.name for entry in listed if entry.is_dir(follow_symlinks=False) and entry.name[0] != "."]
        found = list(_of(folder, files, below, known))
        yield from found
        passed = _OF_LOGGERS if found else frozenset()
        stack += [f"{folder}/{name}" for name in reversed(below) if not _belongs(name, found) and name not in passed]


def _belongs(name: str, found: list[tuple[str, str]]) -> bool:
    return bool(found) and name.startswith(_CHECKPOINT)


def _of(folder: str, files: list[str], below: list[str], known: Collection[str]) -> Iterator[tuple[str, str]]:
    """The runs of one folder: its logs of ours, or else itself."""
    paths = [f"{folder}/{name}" for name in files if name.endswith(".jsonl")]
    ours = [path for path in paths if path in known or is_log(Path(path))]
    if ours:
        yield from map(_file, ours)
        return
    logs = [name for name in files if name.endswith(_LOGS) or "tfevents" in name]
    states = [f"{name}/{STATE_NAME}" for name in below if name.startswith(_CHECKPOINT)]
    if not logs and not states:
        return
    if folder in known or is_run(Path(folder)):
        settings = [name for name in files if name.endswith(_SETTINGS)]
        yield folder, stamp_of(folder, [*logs, *settings, *states])
