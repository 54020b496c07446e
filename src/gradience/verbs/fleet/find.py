"""Find the adapters below folders by the names of their files; a header is read only if the names do not tell.

A folder may hold one adapter (PEFT, sharded or `.bin`, MLX), or several under their own names (kohya, MLX's
checkpoints). A config whose weights are missing is reported as broken.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from gradience.adapters.files import CONFIG_NAME, INDEX_NAMES, WEIGHT_NAMES
from gradience.adapters.formats import FORMATS
from gradience.adapters.layout import Files
from gradience.errors import AdapterError
from gradience.io.reading import read_small
from gradience.io.safetensors import SafetensorsFile
from gradience.schema.document import writable

_MOST_LIST: Final = 256 << 20  # bytes, enough for millions of paths
_OWN_INDEX: Final = ("adapter_model", "adapters")
_MLX_STEP: Final = re.compile(r"\d+_adapters\.safetensors")
_SHARD: Final = "-of-"
_ENDING: Final = ".safetensors"
_MAY_BE: Final = re.compile(r"\.(?:safetensors|json|bin|pt)$")


class AdapterPlace(NamedTuple):
    """One adapter: the key of its row, the path to open, the names of its files, and their stamps as one text."""

    path: str
    place: str
    files: tuple[str, ...]
    stamp: str
    fault: str | None = None
    """The reason why there is nothing to open, or None."""


Peek: TypeAlias = Callable[[str], bool]
Target: TypeAlias = tuple[str, tuple[str, ...]]
"""An adapter's name in its folder, "" for the folder itself, and its files."""


def targets(names: Collection[str], peek: Peek) -> Iterator[Target]:
    """Yield the adapters of one folder: the file's name, or "" for the folder itself, and the files to read.

    Args:
        names: the folder's files.
        peek: whether a safetensors file of unknown name holds an adapter, or cannot be read.
    """
    config = (CONFIG_NAME,) if CONFIG_NAME in names else ()
    tensors = sorted(name for name in names if name.endswith(_ENDING))
    main = next((name for name in WEIGHT_NAMES if name in names), None)
    # model.safetensors.index.json is that of a whole model, unless an adapter's config lies beside it.
    index = (
        None if main else next((n for n in INDEX_NAMES if n in names and (config or n.startswith(_OWN_INDEX))), None)
    )
    if main is not None:
        yield "", (*config, main)
    elif index is not None:
        yield "", (*config, index, *(name for name in sorted(names) if _SHARD in name))
    taken = {main} if index is None else {name for name in tensors if _SHARD in name}
    rest = [name for name in tensors if name not in taken]
    if main is None and index is None:
        yield from _unnamed(config, rest, peek)
    else:
        yield from ((name, (*config, name)) for name in rest if _MLX_STEP.fullmatch(name) or peek(name))


def _unnamed(config: tuple[str, ...], rest: list[str], peek: Peek) -> Iterator[Target]:
    """Yield the adapters of a folder in which no file has a usual name."""
    shards = [name for name in rest if _SHARD in name]
    if config and not rest:
        yield "", config
    elif config and (len(rest) == 1 or shards == rest):
        yield "", (*config, *rest)
    elif shards and shards == rest:
        if peek(shards[0]):
            yield "", tuple(shards)
    else:
        yield from ((name, (*config, name)) for name in rest if config or peek(name))


def find_adapters(
    roots: Iterable[str | os.PathLike[str]],
    listed: Iterable[str] = (),
    *,
    known: Collection[str] = (),
) -> Iterator[AdapterPlace]:
    """Yield every adapter below the roots and at the listed places once.

    Hidden folders are left out. Links to folders are followed last, so that an adapter gets its real path if both paths
    are below the roots.

    Args:
        roots: folders or weights files.
        listed: further places; one that is missing is a broken adapter instead of an error.
        known: paths known to be adapters, whose headers need not be read.

    Raises:
        AdapterError: a root is missing or cannot be listed.
    """
    paths: set[str] = set()
    walk = _FolderWalk(known)
    places = [*((os.fspath(root), True) for root in roots), *((place, False) for place in listed)]
    for place, required in places:
        try:
            for adapter in _below(place, walk):
                if adapter.path not in paths:
                    paths.add(adapter.path)
                    yield adapter
        except AdapterError as error:
            if required:
                raise
            yield AdapterPlace(place, place, (), "missing", fault=error.message)


def _below(place: str, walk: _FolderWalk) -> Iterator[AdapterPlace]:
    if "://" in place:
        raise AdapterError(f"{place} is a URL", advice="copy the adapters here, and give their folder")
    path = os.path.abspath(place)  # noqa: PTH100  # links are not resolved: a row keeps the path that the user knows
    if os.path.isfile(path):  # noqa: PTH113  # Path.is_file raises if a name is too long
        folder, name = os.path.split(path)
        config = (CONFIG_NAME,) if os.path.isfile(f"{folder}/{CONFIG_NAME}") else ()  # noqa: PTH113  # the same
        yield _found(folder, name, (*config, name))
        return
    if not os.path.isdir(path):  # noqa: PTH112  # the same
        raise AdapterError(f"no such file or folder: {place}", advice="give a folder with adapters below it")
    yield from walk.below(path)


class _FolderWalk:
    """A walk through local folders that visits each folder once, whatever links lead to it."""

    def __init__(self, known: Collection[str]) -> None:
        self._known = known
        self._seen: set[tuple[int, int]] = set()
        self._linked: list[str] = []

    def below(self, root: str) -> Iterator[AdapterPlace]:
        hollow: list[AdapterPlace] = []
        parents: set[str] = set()
        self._linked = [root]
        while self._linked:
            for adapter in self._tree(self._linked.pop(0)):
                if len(adapter.files) == 1 and adapter.files[0] == CONFIG_NAME:
                    hollow.append(adapter)
                    continue
                parents.add(os.path.dirname(adapter.place))  # noqa: PTH120  # ten thousand times
                yield adapter
        # A run's folder may hold the config beside checkpoints that have the weights: it is no broken adapter.
        yield from (adapter for adapter in hollow if adapter.place not in parents)

    def _tree(self, root: str) -> Iterator[AdapterPlace]:
        """Yield the adapters in the folders below one, depth first; links to folders are kept for later."""
        stack = [root]
        while stack:
            folder = stack.pop()
            try:
                status, listed = os.stat(folder), _listed(folder)  # noqa: PTH116  # ten thousand times
            except OSError as error:
                if folder == root:
                    raise AdapterError(f"cannot read {folder}: {error.strerror}", advice="check the path") from error
                continue
            if not listed or not self._new(status):
                continue
            names = []
            for entry in listed:
                if not leads_to_folder(entry):
                    names.append(entry.name)
                elif not entry.name.startswith("."):
                    (self._linked if entry.is_symlink() else stack).append(entry.path)
            if any(map(_MAY_BE.search, names)):
                for name, files in targets(set(names), partial(self._peek, folder)):
                    yield _found(folder, name, files)

    def _new(self, status: os.stat_result) -> bool:
        key = (status.st_dev, status.st_ino)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def _peek(self, folder: str, name: str) -> bool:
        path = f"{folder}/{name}"
        return path in self._known or is_adapter(Path(path))


def _listed(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; False for a link to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_adapter(path: Path) -> bool:
    """Whether a safetensors file holds an adapter's tensors; True if it cannot be read, False for a whole model."""
    try:
        files = Files(SafetensorsFile(path), path.with_name(CONFIG_NAME))
    except AdapterError:
        return True
    return any(one.matches(files) for one in FORMATS)


def _found(folder: str, name: str, files: tuple[str, ...]) -> AdapterPlace:
    place = f"{folder}/{name}" if name else folder
    return AdapterPlace(writable(place), place, files, writable(stamp_of(folder, files)))


def stamp_of(folder: str, files: Iterable[str]) -> str:
    """Names, sizes and times of local files as one text; a missing file has only its name.

    The time of status change is one of them, because anybody can set that of modification.
    """
    parts = []
    for name in files:
        try:
            status = os.stat(f"{folder}/{name}")  # noqa: PTH116  # ten thousand times
        except OSError:
            parts.append(f"{name} -")
            continue
        parts.append(f"{name} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}")
    return "; ".join(parts)


def read_list(path: Path) -> list[str]:
    """The places in a list file: one path per line; empty lines and lines that begin with # are skipped.

    Raises:
        AdapterError: the file cannot be read.
    """
    try:
        text = read_small(path, most=_MOST_LIST, what="a list of adapters")
    except OSError as error:
        raise AdapterError(f"cannot read the list {path}: {error.strerror}", advice="check --list") from error
    lines = text.decode("utf-8", "surrogateescape").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
