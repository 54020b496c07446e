"""A folder's entries by name: bounded, links to folders left out, nothing opened."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from gradience.adapters.folder import WEIGHT_NAMES
from gradience.errors import GradienceError

__all__ = ["CHECKPOINT", "SHOWN", "CheckpointFolder", "Listing", "checkpoints_in", "holds_adapter", "list_folder"]

MAX_ENTRIES: Final = 10_000  # of one folder
SHOWN: Final = 5  # names in a sentence
CHECKPOINT: Final = re.compile(r"checkpoint-(\d{1,15})")


class Listing(NamedTuple):
    """The names of a folder's files, its subfolders, and what is to be said of what was left out."""

    files: list[str]
    folders: list[Path]
    notes: list[str]


class CheckpointFolder(NamedTuple):
    """A folder `checkpoint-N` that holds an adapter."""

    step: int
    path: Path


def list_folder(folder: Path) -> Listing:
    """Return the folder's regular files by name and its subfolders, sorted; what is left out is said.

    Links to folders may lead anywhere, and a pipe would be waited for.
    """
    try:
        with os.scandir(folder) as entries:
            seen = sorted(islice(entries, MAX_ENTRIES + 1), key=lambda entry: entry.name)
    except OSError as error:
        raise GradienceError(f"cannot read {folder}: {error.strerror}", advice="check the path") from error
    notes = [f"more than {MAX_ENTRIES} entries in {folder.name}: the rest was not looked at"]
    folders = [Path(entry.path) for entry in seen if _is_folder(entry)]
    links = [entry.name for entry in seen if entry.is_symlink() and _leads_to_folder(entry)]
    told = notes if len(seen) > MAX_ENTRIES else []
    if links:
        told = [*told, f"links to folders, not followed: {', '.join(links[:SHOWN])}"]
    strange = [
        entry.name for entry in seen if not _is_folder(entry) and entry.name not in links and not _is_file(entry)
    ]
    if strange:
        told = [*told, f"neither files nor folders, not read: {', '.join(strange[:SHOWN])}"]
    visible = [child for child in folders if not child.name.startswith(".")]
    return Listing([entry.name for entry in seen if _is_file(entry)], visible, told)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def checkpoints_in(folders: Iterable[Path]) -> list[CheckpointFolder]:
    """Return the checkpoints among the folders that hold an adapter, by step."""
    numbered = [(int(hit[1]), child) for child in folders if (hit := CHECKPOINT.fullmatch(child.name))]
    return [CheckpointFolder(step, child) for step, child in sorted(numbered) if holds_adapter(child)]


def holds_adapter(folder: Path) -> bool:
    """Whether a folder holds weights under a name that PEFT or MLX-LM gives them."""
    return any((folder / name).is_file() for name in WEIGHT_NAMES)
