"""An adapter folder as PEFT saves one, written whole or not at all, with a record of where it came from."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from gradience.adapters.open import AdapterFiles
from gradience.base.weights import file_digest
from gradience.errors import AdapterError, OutputError
from gradience.io.atomic import atomic_folder, refuse_file, refuse_folder
from gradience.io.safetensors import PlannedTensor, write_safetensors
from gradience.schema.compare import Overlap, SideOverlap
from gradience.schema.writing import ModuleChange, Provenance, SourceFile
from gradience.spectral.subspace import Floats, chance_overlap, chance_overlap_sd, overlap, principal_cosines

WEIGHTS_NAME: Final = "adapter_model.safetensors"
CONFIG_NAME: Final = "adapter_config.json"
PROVENANCE_NAME: Final = "gradience_provenance.json"


def write_adapter(
    out: Path,
    *,
    tensors: Sequence[PlannedTensor],
    config: Mapping[str, Any],
    provenance: Provenance,
    force: bool = False,
    weights_name: str = WEIGHTS_NAME,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a folder with the weights, the config and the record; tensors are loaded one at a time.

    Args:
        out: the folder; it must not exist, or be empty, unless `force`.
        tensors: written in this order.
        config: `adapter_config.json`, keys sorted as PEFT does.
        provenance: from `provenance_of`.
        force: replace a folder that exists, once the new one is complete. Never the source of a tensor.
        weights_name: for formats other than PEFT's.
        metadata: of the safetensors header; PEFT's is `{"format": "pt"}`.

    Raises:
        OutputError: the folder exists, or cannot be written.
    """
    with atomic_folder(out, force=force) as folder:
        write_safetensors(folder / weights_name, tensors, metadata={"format": "pt"} if metadata is None else metadata)
        _write(folder / CONFIG_NAME, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
        _write(folder / PROVENANCE_NAME, msgspec.json.format(msgspec.json.encode(provenance), indent=2) + b"\n")


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}", advice="check the space left") from error


def provenance_of(
    operation: str,
    files: Iterable[Path],
    *,
    options: Mapping[str, Any],
    modules: Sequence[ModuleChange] = (),
    relative_error: float | None = None,
    notes: Sequence[str] = (),
) -> Provenance:
    """Return the record of an operation on the files, which are hashed; `options` must not hold paths."""
    return Provenance(
        operation=operation,
        version=version("gradience"),
        created=time.time(),
        options=dict(options),
        sources=[SourceFile(name=f.name, bytes=f.stat().st_size, digest=file_digest(f)) for f in files if f.is_file()],
        relative_error=relative_error,
        modules=list(modules),
        notes=list(notes),
    )


def raw_config(path: Path) -> dict[str, Any]:
    """Return an adapter's config with every key it has, known or not.

    Raises:
        AdapterError: the file cannot be read, or is no JSON object.
    """
    try:
        config = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise AdapterError(f"cannot read {path}: {error.strerror}", advice="give the right file") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise AdapterError(f"{path} is no adapter config: {error}", advice="give the right file") from error
    return config


_ANGLES: Final = 16


def side_overlap(cross: Floats, d: int) -> SideOverlap:
    """Return phi(k, k) for k = 1, 2, 4, ... and phi of the whole spans, in R^d, from all inner products U^T V."""
    k, n = cross.shape
    sizes = [(1 << e, 1 << e) for e in range(min(k, n).bit_length())]
    if (k, n) not in sizes:
        sizes.append((k, n))
    angles = np.degrees(np.arccos(principal_cosines(cross)[:_ANGLES]))
    return SideOverlap(overlaps=[_overlap(cross, i, j, d) for i, j in sizes], angles=[float(a) for a in angles])


def _overlap(cross: Floats, i: int, j: int, d: int) -> Overlap:
    return Overlap(
        i=i, j=j, phi=overlap(cross, i, j), chance=chance_overlap(i, j, d), chance_sd=chance_overlap_sd(i, j, d)
    )


def mean_overlaps(sides: Iterable[SideOverlap | None]) -> list[Overlap]:
    """Return the mean of phi(k, k) over the modules that have k directions, for each k = 1, 2, 4, ..."""
    by_size: dict[int, list[Overlap]] = {}
    for side in sides:
        for item in side.overlaps if side is not None else ():
            if item.i == item.j and item.i.bit_count() == 1:
                by_size.setdefault(item.i, []).append(item)
    return [
        Overlap(
            i=size,
            j=size,
            phi=min(1.0, math.fsum(item.phi for item in some) / len(some)),
            chance=math.fsum(item.chance for item in some) / len(some),
            chance_sd=math.sqrt(math.fsum(item.chance_sd**2 for item in some)) / len(some),
        )
        for size, some in sorted(by_size.items())
    ]


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
