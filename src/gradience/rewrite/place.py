"""Where a verb may write: never over what it reads, nor over a folder that is no adapter's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from gradience.adapters.folder import AdapterFiles
from gradience.errors import OutputError
from gradience.rewrite.folder import CONFIG_NAME, PROVENANCE_NAME
from gradience.whole import refuse_file, refuse_folder

__all__ = ["refuse_place"]


def refuse_place(
    out: Path, adapters: Iterable[AdapterFiles], *, base: Iterable[Path] = (), force: bool, one_file: bool = False
) -> None:
    """Refuse, before any work is done, a place that cannot be written to or whose replacement would cost something.

    Args:
        out: the folder to write, or the file.
        adapters: those that are read.
        base: the files of the base model that are read.
        force: replace what is there; of folders only one that holds an adapter.
        one_file: `out` is a file.

    Raises:
        OutputError: `out` holds what is read, lies in the folder of an adapter that is read, or exists and is not to
            be replaced.
    """
    place = out.resolve()
    for files in adapters:
        if any(source.is_relative_to(place) for source in _places(files.folder, files.config, *_weights(files))):
            raise OutputError(f"{out} is, or holds, an adapter that is read", advice="write to a place of its own")
        if (files.folder / CONFIG_NAME).is_file() and place.is_relative_to(files.folder.resolve()):
            raise OutputError(f"{out} is in an adapter's folder that is read", advice="write to a place of its own")
    if any(source.is_relative_to(place) for source in _places(*base)):
        raise OutputError(f"{out} is, or holds, the base model that is read", advice="write to a place of its own")
    if one_file:
        refuse_file(out, force=force)
        return
    refuse_folder(out, force=force)
    if force and out.is_dir() and any(out.iterdir()) and not _holds_adapter(out):
        raise OutputError(
            f"{out} holds no adapter ({CONFIG_NAME}): --force does not replace such a folder",
            advice="choose another name, or remove it yourself",
        )


def _weights(files: AdapterFiles) -> tuple[Path, ...]:
    return (files.weights, *files.shards)


def _places(*paths: Path) -> Iterator[Path]:
    """Yield where each path leads, and where it lies: the hub's cache and others keep links in their folders."""
    for path in paths:
        yield path.resolve()
        yield path.parent.resolve() / path.name


def _holds_adapter(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (CONFIG_NAME, PROVENANCE_NAME))
