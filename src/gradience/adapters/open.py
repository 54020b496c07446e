"""Opening an adapter's files, for every verb that reads or rewrites one: safetensors, or pickles if torch is installed.

Checkpoints of one run, and adapters of one base by one recipe, have equal headers: only their numbers differ. `Layouts`
caches the modules that follow from a header and a config, and reuses them for such files. It caches plain LoRA in
PEFT's layout only; other adapters are read anew. A `HeldFile` is a safetensors file that is read once, and is both
hashed and computed with.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from gradience.adapters.config import AdapterConfig, read_config
from gradience.adapters.formats import distributed_advice, format_of, open_weights, orbax_advice
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
    indexed_files,
    parsed_header,
)

Bytes: TypeAlias = npt.NDArray[np.uint8]

_FIRST_ROOM: Final = 1 << 22  # bytes
_MOST: Final = 32  # cached layouts
_MOST_HEADER: Final = 1 << 20  # bytes of the header of a cached layout: thousands of modules

CONFIG_NAME: Final = "adapter_config.json"
WEIGHT_NAMES: Final = ("adapter_model.safetensors", "adapters.safetensors", "adapter_model.bin", "adapter_model.pt")
CHECKPOINT: Final = re.compile(r"checkpoint-(\d{1,15})")
"""The name that the Trainer gives to a checkpoint's folder; the group is the step."""

INDEX_NAMES: Final = (
    "adapter_model.safetensors.index.json",
    "model.safetensors.index.json",
    "adapters.safetensors.index.json",
    "adapter_model.bin.index.json",
)


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


def holds_adapter(folder: Path) -> bool:
    """Whether a folder holds weights under a name that PEFT or MLX-LM gives them."""
    return any((folder / name).is_file() for name in WEIGHT_NAMES)


class AdapterFiles(NamedTuple):
    """The files of an adapter. `config` may not exist, because some formats have none.

    `shards` is empty if one file holds all weights; otherwise `weights` is the index or one of the shards. `others`
    are sub-folders with further adapters, which PEFT saves beside the one named `default`.
    """

    folder: Path
    config: Path
    weights: Path
    shards: tuple[Path, ...] = ()
    others: tuple[Path, ...] = ()


def find_files(path: Path, *, config: Path | None = None, weights: Path | None = None) -> AdapterFiles:
    """The adapter's files; a config or weights file given explicitly takes precedence over the folder's.

    Raises:
        AdapterError: the folder or a file is missing, or several adapters could be meant.
    """
    if not os.path.exists(path):  # noqa: PTH110  # Path.exists raises where a name is too long
        raise AdapterError(f"no such file or folder: {path}", advice="give the folder that PEFT saved")
    folder = path if path.is_dir() else path.parent
    file = weights or (path if path.is_file() else _weights_in(folder))
    others: tuple[Path, ...] = ()
    if file is None:
        folder, file = _only_nested(folder)
    elif weights is None and path.is_dir():
        others = tuple(_nested(folder))  # PEFT saves adapters not named `default` in sub-folders
    if not os.path.isfile(file):  # noqa: PTH113  # as above
        raise AdapterError(f"no weights file at {file}", advice="give the weights file itself")
    if config is not None and not os.path.isfile(config):  # noqa: PTH113  # as above
        raise AdapterError(f"no config file at {config}", advice="give it with --adapter-config FILE")
    return AdapterFiles(folder, config or _config_beside(file, folder), file, _shards(file), others)


def _config_beside(weights: Path, folder: Path) -> Path:
    # With --weights, the config of the given folder is used if there is none beside the weights.
    beside = weights.parent / CONFIG_NAME
    return beside if beside.is_file() else folder / CONFIG_NAME


def _weights_in(folder: Path) -> Path | None:
    """The folder's weights file or index, or None if it holds none."""
    for name in (*WEIGHT_NAMES, *INDEX_NAMES):
        if (folder / name).is_file():
            return folder / name
    # kohya's scripts, for one, name the file as the user says.
    others = sorted(p for p in folder.glob("*.safetensors") if p.is_file())
    if len(others) == 1 or (others and _is_shard(others[0])):
        return others[0]
    if others:
        raise AdapterError(
            f"{len(others)} weights files, none named as PEFT does, in {folder} ({_listed(others)})",
            advice=f"expected {WEIGHT_NAMES[0]}; if they have another name, give the file itself",
        )
    return None


def _nested(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.iterdir() if p.is_dir() and any((p / n).is_file() for n in (*WEIGHT_NAMES, *INDEX_NAMES))
    )


def _only_nested(folder: Path) -> tuple[Path, Path]:
    """The one sub-folder that holds an adapter, and its weights."""
    nested = _nested(folder)
    if len(nested) == 1:
        file = _weights_in(nested[0])
        if file is not None:
            return nested[0], file
    if nested:
        raise AdapterError(
            f"{folder} holds {len(nested)} adapters in sub-folders ({_listed(nested)})",
            advice=f"give one of them, for example {nested[-1]}",
        )
    if (advice := orbax_advice(folder) or distributed_advice(folder, config=CONFIG_NAME)) is not None:
        raise AdapterError(f"no adapter weights that can be read from {folder}", advice=advice)
    raise AdapterError(
        f"no adapter weights in {folder} (it holds {_listed(sorted(folder.iterdir())) or 'nothing'})",
        advice=f"expected {WEIGHT_NAMES[0]}; if they have another name, give the file itself",
    )


def _listed(paths: list[Path]) -> str:
    most = 8
    return ", ".join(p.name for p in paths[:most]) + (", ..." if len(paths) > most else "")


def _is_shard(path: Path) -> bool:
    return "-of-" in path.name


def _shards(weights: Path) -> tuple[Path, ...]:
    """The shards that together hold the weights, or an empty tuple if one file holds them all."""
    if weights.name.endswith(".index.json"):
        return tuple(indexed_files(weights))
    if not _is_shard(weights):
        return ()
    # adapter_model-00001-of-00002.safetensors
    stem, total = weights.stem.rpartition("-of-")[::2]
    prefix = stem.rstrip("0123456789")
    shards = sorted(weights.parent.glob(f"*-of-{total}{weights.suffix}"))
    shards = [p for p in shards if p.name.startswith(prefix)]
    if not total.isdecimal() or len(shards) != int(total):
        raise AdapterError(f"{len(shards)} shards beside {weights}, expected {total}", advice="copy the missing ones")
    return tuple(shards)


def read_adapter(files: AdapterFiles, opened: Callable[[Path], TensorSource] = open_weights) -> Adapter:
    """The adapter that the files hold.

    Args:
        files: from `find_files`.
        opened: opens one weights file; the default reads safetensors, and pickles by torch's restricted loader.

    Raises:
        AdapterError: a file is missing, damaged, or of a type that the config contradicts.
    """
    shards = [opened(path) for path in files.shards]
    source = ShardedFiles(files.weights, shards) if shards else opened(files.weights)
    contents = Files(source, files.config)
    refuse_ungathered(source.path, source.tensors)
    adapter = format_of(contents).read(contents)
    notes = [*adapter.notes, *notes_on(files)]
    return replace(adapter, notes=notes, weights=list(files.shards) or [files.weights], source=source)


def notes_on(files: AdapterFiles) -> list[str]:
    """Notes on where an adapter's files lie: other adapters in sub-folders, and links to other places."""
    notes = []
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
