"""Writing an adapter, for all verbs that do: the check of the place, the folder as PEFT saves one, and its record.

A verb must compute all factors before it knows the ranks, and so the header, of the file that it writes. A `ArraySpool`
keeps the arrays on disk until then, so that at most one module is in memory.

A folder appears whole or not at all, and never replaces files that are read. Beside the weights and the config,
`gradience_provenance.json` records the operation, the files that were read, and the error of each module.

Threads compute tensors while earlier ones are written.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from gradience.adapters.files import INDEX_NAMES, WEIGHT_NAMES, AdapterFiles
from gradience.adapters.layout import Array
from gradience.base.weights import file_digest
from gradience.errors import OutputError, few
from gradience.io import PathLike
from gradience.io.atomic import atomic_folder, refuse_file, refuse_folder
from gradience.io.reading import read_small, real_path
from gradience.io.safetensors import PlannedTensor, write_safetensors
from gradience.schema.document import writable
from gradience.schema.merge import MergeReport
from gradience.schema.writing import ConvertReport, ModuleChange, Provenance, ResizedModule, ResizeReport, SourceFile
from gradience.spectral import each_in_threads
from gradience.telemetry.redact import hide_in
from gradience.telemetry.secrets import hide_secrets

WEIGHTS_NAME: Final = "adapter_model.safetensors"
CONFIG_NAME: Final = "adapter_config.json"
PROVENANCE_NAME: Final = "gradience_provenance.json"
PEFT_METADATA: Final = {"format": "pt"}

_ADAPTER_NAMES: Final = frozenset({CONFIG_NAME, PROVENANCE_NAME, *WEIGHT_NAMES, *INDEX_NAMES})
_BASE_NAMES: Final = ("base_model_name_or_path", "model")  # PEFT's and MLX-LM's names of the base model in a config
_SHARD: Final = re.compile(r"(?:adapter_model|adapters)-\d{5}-of-\d{5}\.(?:safetensors|bin)")
_NAMED: Final = 5  # entries that an error names, at most
_CARD_NAME: Final = "README.md"
_CARD_GAP: Final = b"[More Information Needed]"
_CARD_GAPS: Final = 20  # open fields that mark a card as unedited: PEFT writes about thirty, an edited card has few
_MAX_CARD: Final = 64 * 1024  # bytes; PEFT's card has 5 KB

STORED: Final[Mapping[str, str]] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""The dtypes in which factors are written, and safetensors' names of them."""
_AHEAD: Final = 2  # tensors for each thread: one being computed, one waiting to be written
_LARGE: Final = 1 << 26  # bytes: a larger tensor, such as a copied embedding, is loaded only when it is written


class NewAdapter(NamedTuple):
    """The contents of an adapter's folder: tensors in order, the config, and the weights file's metadata and name."""

    tensors: Sequence[PlannedTensor]
    config: Mapping[str, Any]
    metadata: Mapping[str, str] = PEFT_METADATA
    weights_name: str = WEIGHTS_NAME


def write_adapter(
    out: Path, new: NewAdapter, provenance: Callable[[], Provenance], *, sources: SourceFiles, force: bool = False
) -> None:
    """Write a folder with the weights, the config (keys sorted, as PEFT does) and the record.

    A secret in the name of the base model, such as the token in the URL that it was cloned from, is hidden.

    What others may not read of the sources, they may not read of the folder.

    Tensors are loaded one at a time. `provenance` is called after the last, to give the hashing of sources time to
    finish. With `force`, an existing adapter is replaced once the new one is complete.

    Raises:
        OutputError: the folder exists, holds more than an adapter, or cannot be written.
    """
    with atomic_folder(out, sources=sources.files, force=force, check=refuse_to_lose) as folder:
        write_safetensors(folder / new.weights_name, new.tensors, metadata=new.metadata)
        record = provenance()
        _write(folder / CONFIG_NAME, (json.dumps(_without_token(new.config), indent=2, sort_keys=True) + "\n").encode())
        _write(folder / PROVENANCE_NAME, msgspec.json.format(encoded(record), indent=2) + b"\n")


def _without_token(config: Mapping[str, Any]) -> dict[str, Any]:
    names = {key: name for key in _BASE_NAMES if isinstance(name := config.get(key), str)}
    return {**config, **{key: hide_secrets(name) for key, name in names.items()}}


def encoded(record: Provenance) -> bytes:
    """The record as JSON, without secrets; bytes of a name that are not UTF-8 are written as escapes."""
    return msgspec.json.encode(writable(msgspec.to_builtins(hide_in(record))))


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}", advice="check the space left") from error


class Changes(NamedTuple):
    """The part of a record about modules: each one's name, rank before and after, and relative error."""

    modules: Sequence[ModuleChange]
    relative_error: float | None = None
    notes: Sequence[str] = ()


class SourceFiles:
    """The source files that exist among those given, hashed by a thread of their own while other work goes on."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = [file for file in files if file.is_file()]
        self._found: list[SourceFile] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._hash, daemon=True)  # a signal ends it at once
        self._thread.start()

    def _hash(self) -> None:
        try:
            self._found = [SourceFile(name=f.name, bytes=f.stat().st_size, digest=file_digest(f)) for f in self.files]
        except Exception as error:  # noqa: BLE001  # `hashed` raises it
            self._error = error

    def hashed(self) -> list[SourceFile]:
        """Wait for the digests, and return the files with their sizes and digests."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._found


def provenance_of(
    operation: str,
    sources: SourceFiles,
    options: Mapping[str, Any],
    report: ResizeReport | ConvertReport | MergeReport | Changes,
) -> Provenance:
    """Return the record of an operation on the files; `options` must not hold paths.

    Relative errors above 1 are recorded as 1. Rounding to a narrow dtype can cause them.
    """
    return Provenance(
        operation=operation,
        version=version("gradience"),
        created=time.time(),
        options=dict(options),
        sources=sources.hashed(),
        relative_error=_at_most_one(report.relative_error),
        modules=[
            ModuleChange(
                name=row.name,
                rank_before=row.rank_before,
                rank_after=row.rank_after,
                relative_error=_at_most_one(row.relative_error),
                kl_predicted=row.kl_predicted if isinstance(row, ResizedModule) else None,
            )
            for row in report.modules
        ],
        notes=list(report.notes),
        calibration=report.calibration if isinstance(report, ResizeReport) else None,
        recovery=report.recovery if isinstance(report, ResizeReport) else None,
    )


def _at_most_one(error: float | None) -> float | None:
    return None if error is None else min(1.0, error)


def refuse_place(
    out: Path, adapters: Iterable[AdapterFiles], *, base: Iterable[Path] = (), force: bool, one_file: bool = False
) -> None:
    """Refuse an output place, before any work is done, if writing there would fail or would lose other data.

    Args:
        out: the folder to write, or the file.
        adapters: the adapters that are read.
        base: the files of the base model that are read.
        force: replace `out` if it exists; a folder is replaced only if it holds an adapter and nothing else.
        one_file: whether `out` is a file.

    Raises:
        OutputError: `out` is or contains a file that is read, or lies in the folder of an adapter that is read, or
            exists and must not be replaced.
    """
    place = real_path(out)
    for files in adapters:
        if any(source.is_relative_to(place) for source in _locations(files.folder, files.config, *weight_files(files))):
            raise OutputError(f"{out} is, or holds, an adapter that is read", advice="write to a place of its own")
        # A weights file may lie among many other things; only a folder with a config is an adapter's own.
        if (files.folder / CONFIG_NAME).is_file() and place.is_relative_to(real_path(files.folder)):
            raise OutputError(f"{out} is in an adapter's folder that is read", advice="write to a place of its own")
    if any(source.is_relative_to(place) for source in _locations(*base)):
        raise OutputError(f"{out} is, or holds, the base model that is read", advice="write to a place of its own")
    if one_file:
        refuse_file(out, force=force)
        return
    refuse_folder(out, force=force)
    if force and out.is_dir() and any(out.iterdir()):
        refuse_to_lose(out)


class Destination(NamedTuple):
    """The place that a verb writes, and the files that it reads, which are hashed while it works."""

    out: Path
    sources: SourceFiles
    force: bool

    def write(self, new: NewAdapter, provenance: Callable[[], Provenance]) -> None:
        """Write the folder, as `write_adapter` does."""
        write_adapter(self.out, new, provenance, sources=self.sources, force=self.force)


def destination(
    out: PathLike | None,
    adapters: Iterable[AdapterFiles],
    read: Iterable[Path],
    *,
    base: Iterable[Path] = (),
    force: bool,
    one_file: bool = False,
) -> Destination | None:
    """Return where to write, or None if nothing is written; `read` are the files to record, the rest as `refuse_place`.

    Raises:
        OutputError: as of `refuse_place`.
    """
    if out is None:
        return None
    refuse_place(Path(out), adapters, base=base, force=force, one_file=one_file)
    return Destination(Path(out), SourceFiles(read), force)


def refuse_to_lose(folder: Path) -> None:
    """Refuse to replace a folder that holds anything but an adapter.

    Raises:
        OutputError: the folder holds no adapter, or other files beside one, which the message names.
    """
    if not any((folder / name).is_file() for name in (CONFIG_NAME, PROVENANCE_NAME)):
        raise OutputError(
            f"{folder} holds no adapter ({CONFIG_NAME}): --force does not replace such a folder",
            advice="choose another name, or remove it yourself",
        )
    others = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir() if not _is_of_an_adapter(entry))
    if others:
        raise OutputError(
            f"{folder} holds more than an adapter, which --force would remove: {few(others, _NAMED)}",
            advice="choose another name, or move these away",
        )


def _is_of_an_adapter(entry: Path) -> bool:
    """Whether a folder's entry is a regular file of an adapter; a model card counts as one until it is edited."""
    if entry.is_symlink() or not entry.is_file():
        return False
    if entry.name == _CARD_NAME:
        return _is_blank_card(entry)
    return entry.name in _ADAPTER_NAMES or bool(_SHARD.fullmatch(entry.name))


def _is_blank_card(entry: Path) -> bool:
    try:
        return read_small(entry, most=_MAX_CARD, what="a model card").count(_CARD_GAP) >= _CARD_GAPS
    except OSError:  # a card that cannot be read may be somebody's work
        return False


def weight_files(files: AdapterFiles) -> tuple[Path, ...]:
    """Return the files that hold an adapter's weights, including an index."""
    return (files.weights, *files.shards)


def _locations(*paths: Path) -> Iterator[Path]:
    """Yield for each path its target and its own place, which differ for links, as in the hub's cache."""
    for path in paths:
        yield real_path(path)
        yield real_path(path.parent) / path.name


@contextmanager
def loaded_ahead(tensors: Sequence[PlannedTensor]) -> Iterator[list[PlannedTensor]]:
    """The tensors, to be loaded once each and in order; several threads compute the next few ahead."""
    tasks = [partial(_loader, tensor) for tensor in tensors]
    with closing(each_in_threads(tasks, ahead=_AHEAD, waits=False)) as loaders:  # a signal ends it at once

        def load() -> Array:
            return next(loaders)()

        yield [tensor._replace(load=load) for tensor in tensors]


def _loader(tensor: PlannedTensor) -> Callable[[], Array]:
    """Compute a tensor's data and return a function that gives it.

    A large tensor, or one that is computed together with another, is not computed yet but when the function is called.
    """
    if tensor.nbytes > _LARGE or tensor.with_another:
        return tensor.load
    data = tensor.load()
    return lambda: data


class ArraySpool:
    """Arrays of any dtype, kept as files in a folder. The caller made the folder and removes it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = count()  # next() on it is one step, so several threads may keep arrays

    def keep(self, array: Array) -> Callable[[], Array]:
        """Write an array to disk, and return a function that reads it back bit for bit.

        Raises:
            OutputError: the array cannot be written.
        """
        path = self._folder / str(next(self._count))
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)  # as bytes: ml_dtypes' types have no buffer
        try:
            path.write_bytes(data.data)
        except OSError as error:
            message = f"cannot keep what is computed in {self._folder}: {error.strerror}"
            raise OutputError(message, advice="check the space left there, or set TMPDIR to another place") from error
        dtype, shape = array.dtype, array.shape
        return lambda: np.fromfile(path, dtype).reshape(shape)
