"""Opening an adapter's files, for every verb that reads or rewrites one: safetensors, or pickles if torch is installed.

Checkpoints of one run, and adapters of one base by one recipe, have equal headers: only their numbers differ. `Layouts`
caches the modules that follow from a header and a config, and reuses them for such files. It caches plain LoRA in
PEFT's layout only; other adapters are read anew. A `HeldFile` is a safetensors file that is read once, and is both
hashed and computed with.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from gradience.adapters.config import AdapterConfig, read_config
from gradience.adapters.files import WEIGHT_NAMES, AdapterFiles, find_files
from gradience.adapters.formats import format_of, open_weights
from gradience.adapters.gathered import refuse_ungathered
from gradience.adapters.layout import Adapter, Files
from gradience.errors import AdapterError
from gradience.io import PathLike
from gradience.io.reading import open_raw, real_path
from gradience.io.safetensors import (
    Array,
    SafetensorsFile,
    ShardedFiles,
    TensorSource,
    ThreadBuffer,
    cut_short,
    header_length,
    parsed_header,
)

Bytes: TypeAlias = npt.NDArray[np.uint8]

_FIRST_ROOM: Final = 1 << 22  # bytes
_MOST: Final = 32  # cached layouts
_MOST_HEADER: Final = 1 << 20  # bytes of the header of a cached layout: thousands of modules


def open_adapter(
    path: PathLike, *, adapter_config: PathLike | None = None, weights: PathLike | None = None
) -> tuple[AdapterFiles, Adapter]:
    """An adapter's files and the adapter that they declare; no tensor's data is read yet.

    Args:
        path: the folder that PEFT (or MLX-LM, kohya, diffusers) saved, or its weights file.
        adapter_config: a config that does not lie beside the weights.
        weights: a weights file of another name.

    Raises:
        AdapterError: files are missing, damaged or of another format.
    """
    files = find_files(Path(path), config=_path(adapter_config), weights=_path(weights))
    return files, read_adapter(files)


def _path(path: PathLike | None) -> Path | None:
    return None if path is None else Path(path)


def read_adapter(
    files: AdapterFiles,
    opened: Callable[[Path], TensorSource] = open_weights,
    *,
    config: bytes | None = None,
    unscaled: bool = False,
) -> Adapter:
    """The adapter that the files hold.

    Args:
        files: from `find_files`.
        opened: opens one weights file; the default reads safetensors, and pickles by torch's restricted loader.
        config: the bytes of the config, if they are read already.
        unscaled: whether plain LoRA is read without a config too: at scale 1, and with a note.

    Raises:
        AdapterError: a file is missing, damaged, or of a type that the config contradicts.
    """
    shards = [opened(path) for path in files.shards]
    source = ShardedFiles(files.weights, shards) if shards else opened(files.weights)
    contents = Files(source, files.config, config, unscaled)
    refuse_ungathered(source.path, source.tensors)
    adapter = format_of(contents).read(contents)
    notes = [*adapter.notes, *notes_on(files)]
    return replace(adapter, notes=notes, weights=list(files.shards) or [files.weights], source=source)


def notes_on(files: AdapterFiles) -> list[str]:
    """Notes on where an adapter's files lie: other weights, adapters in sub-folders, and links to other places."""
    notes = []
    named = files.weights.name in WEIGHT_NAMES  # of one that was named by itself nothing is said
    also = [name for name in WEIGHT_NAMES if named and name != files.weights.name and (files.folder / name).is_file()]
    if also:
        notes.append(f"{files.weights.name} is read; {' and '.join(also)} in the same folder may hold other weights")
    if files.others:
        names = ", ".join(path.name for path in files.others)
        notes.append(f"the folder also holds adapters in sub-folders, which were not read: {names}")
    links = [(path, _target_outside(path)) for path in (files.config, *(files.shards or (files.weights,)))]
    return notes + [
        f"{path.name} is a link to another place, which was read: {target}" for path, target in links if target
    ]


def _target_outside(path: Path) -> Path | None:
    """The target of a link that leads out of its folder, else None; links to a hub cache's blobs do not count."""
    if not path.is_symlink():
        return None
    target, home = real_path(path), real_path(path.parent)
    in_cache = target.parent.name == "blobs" and home.is_relative_to(target.parent.parent / "snapshots")
    return None if target.is_relative_to(home) or in_cache else target


class Buffer:
    """Memory for one file at a time, reused from file to file because fresh memory costs as much as the read."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._room: Bytes = np.empty(0, np.uint8)

    def read(self, path: Path) -> Bytes | None:
        """All bytes of a regular file, valid until the next call; None if the file has more than `most` bytes.

        Raises:
            OSError: the file cannot be opened or read, or is not a regular file.
        """
        size = 0
        with open_raw(path) as file:
            # To the end, and not for a size that was stated before, because the file may have changed since.
            while size < len(self._room) or self._grow():
                got = file.readinto(self._room.data[size:])
                if not got:
                    return self._room[:size]
                size += got
            return None if file.read(1) else self._room

    def _grow(self) -> bool:
        """Double the memory, up to the limit, and return whether it grew."""
        size = min(max(2 * len(self._room), _FIRST_ROOM), self._most)
        if size <= len(self._room):
            return False
        room = np.empty(size, np.uint8)
        room[: len(self._room)] = self._room
        self._room = room
        return True


def header_of(path: Path, data: Bytes) -> bytes:
    """The JSON of the header in a file's bytes; `path` names the file in errors.

    Raises:
        AdapterError: the file is not a safetensors file, or is cut short within the header.
    """
    length = header_length(path, data[:64].tobytes(), len(data))
    return data[8 : 8 + length].tobytes()


class HeldFile(SafetensorsFile):
    """A safetensors file whose bytes are in memory; its arrays are views of them.

    Raises:
        AdapterError: as for `SafetensorsFile`.
    """

    def __init__(self, path: Path, data: Bytes, header: bytes) -> None:
        self.path = path
        self._data = data
        self._start = 8 + len(header)
        self.tensors, self.metadata = parsed_header(path, header, len(data) - self._start)

    def turn_to(self, path: Path, data: Bytes) -> None:
        """Switch to another file, which must have the same header and the same size."""
        self.path, self._data = path, data

    def read(self, name: str, memory: ThreadBuffer | None = None) -> Array:
        """The tensor as a view of the bytes that are held."""
        return self._array(name, self.tensors[name].shape, memory)

    def _bytes(self, offset: int, count: int, memory: ThreadBuffer | None = None) -> Bytes:  # noqa: ARG002  # has its own
        start = self._start + offset
        if start + count > len(self._data):
            raise cut_short(self.path, start + count, len(self._data))
        return self._data[start : start + count]


class _CachedLayout(NamedTuple):
    size: int
    source: HeldFile
    config: bytes
    adapter: Adapter
    notes: list[str]


class Layouts:
    """A cache of the layouts read last, by file header. For one thread: an adapter is valid until the next is read."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, _CachedLayout] = OrderedDict()

    def read(self, files: AdapterFiles, data: Bytes) -> Adapter:
        """The adapter in one safetensors file whose bytes are in memory; equal to the result of `read_adapter`.

        Raises:
            AdapterError: as `read_adapter`.
        """
        header = header_of(files.weights, data)
        known = self._known.get(header)
        config = None if known is None or known.size != len(data) else _config(files.config)
        if known is not None and config is not None and _decisive(config) == known.config:
            self._known.move_to_end(header)
            return _again(known, files, data, config)
        source = HeldFile(files.weights, data, header)
        adapter = read_adapter(files, lambda _: source)
        # A builder of another kind may hold numbers that it read from this very file, such as an alpha.
        if _is_plain(adapter) and len(header) <= _MOST_HEADER:
            notes = adapter.notes[: len(adapter.notes) - len(notes_on(files))]
            self._known[header] = _CachedLayout(len(data), source, _decisive(adapter.config), adapter, notes)
            if len(self._known) > _MOST:
                self._known.popitem(last=False)
        return adapter


def _again(known: _CachedLayout, files: AdapterFiles, data: Bytes, config: AdapterConfig) -> Adapter:
    known.source.turn_to(files.weights, data)
    notes = [*known.notes, *notes_on(files)]
    return replace(known.adapter, config=config, notes=notes, weights=[files.weights])


def _config(path: Path) -> AdapterConfig | None:
    try:
        return read_config(path)
    except AdapterError:  # the format's own reader raises it again, if the format has a config
        return None


def _decisive(config: AdapterConfig) -> bytes:
    """A key for a config without the base's name, which does not affect the modules.

    It is JSON, because 1 and true, and two orders of one mapping, are equal in Python but may read differently.
    """
    return msgspec.json.encode(msgspec.structs.replace(config, base_model_name_or_path=None))


def _is_plain(adapter: Adapter) -> bool:
    """Whether the adapter is plain LoRA in PEFT's layout, whose modules can be reused for a file of equal header."""
    return (
        adapter.format == "peft"
        and adapter.config.peft_type in {"LORA", None}
        and not adapter.base_dependent
        and all(m.expert is None and m.dense is None and not m.is_unknown for m in adapter.modules)
    )
