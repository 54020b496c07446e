"""What the verbs that write an adapter share: where they may write, the folder as PEFT saves one, and its record.

A folder appears whole or not at all, and never in place of what is read. Beside the weights and the config lies
`gradience_provenance.json`: which files were read, by which operation, at what cost in each module.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np

from gradience.adapters.config import LARGEST_CONFIG
from gradience.adapters.layout import Adapter, Module
from gradience.adapters.open import INDEX_NAMES, WEIGHT_NAMES, AdapterFiles, open_adapter
from gradience.base.weights import file_digest
from gradience.errors import AdapterError, OutputError
from gradience.io.atomic import atomic_folder, refuse_file, refuse_folder
from gradience.io.paths import PathLike, natural_key
from gradience.io.reading import decode_json, read_small, real_path
from gradience.io.safetensors import PlannedTensor, write_safetensors
from gradience.schema.compare import ComparedAdapter, ConfigDifference, OnlyIn, Overlap, SideOverlap
from gradience.schema.merge import MergeReport
from gradience.schema.scalars import Json
from gradience.schema.writing import (
    ConvertReport,
    ModuleChange,
    Provenance,
    ResizedModule,
    ResizeReport,
    SourceFile,
)
from gradience.spectral.grams import Factors
from gradience.spectral.subspace import (
    Floats,
    chance_overlap,
    chance_overlap_sd,
    overlap,
    principal_cosines,
)

_SETS: Final = {"target_modules", "modules_to_save", "exclude_modules", "target_parameters"}  # order means nothing
_ANGLES: Final = 16  # principal angles that a report lists
_OF_NO_EFFECT: Final = {"inference_mode", "peft_version", "auto_mapping"}


class Side(NamedTuple):
    """One of the adapters: `name` is short, and its own among them; `raw` is its config with every key."""

    name: str
    path: Path
    files: AdapterFiles
    adapter: Adapter
    raw: dict[str, Any]


class Matching(NamedTuple):
    """Modules by name, each with what every adapter has under it (None where it has none), in natural order.

    `partial` are those that not all adapters have; `odd` those whose shapes differ, which are in `rows` no more.
    """

    rows: dict[str, list[Module | None]]
    partial: list[OnlyIn]
    odd: list[str]

    @property
    def common(self) -> dict[str, list[Module]]:
        """The modules that all adapters have."""
        full = {name: [m for m in row if m is not None] for name, row in self.rows.items()}
        return {name: row for name, row in full.items() if len(row) == len(self.rows[name])}


def open_sides(paths: Sequence[PathLike]) -> list[Side]:
    """Return the adapters, opened by their headers only.

    Raises:
        AdapterError: fewer than two are given, or one cannot be read or holds no update that is understood.
    """
    if len(paths) < 2:
        raise AdapterError(f"{len(paths)} adapters given, expected at least two", advice="give the folders PEFT saved")
    sides = []
    for name, path in zip(_names([Path(path) for path in paths]), paths, strict=True):
        files, adapter = open_adapter(path)
        if not adapter.modules:
            why = adapter.skipped[0].reason if adapter.skipped else "it holds no LoRA pair"
            raise AdapterError(
                f"{path}: no update that can be read from its factors: {why}",
                advice="'gradience audit' says what it holds; 'gradience convert' makes a plain LoRA of many types",
            )
        raw = raw_config(files.config) if files.config.is_file() else {}
        sides.append(Side(name, Path(path), files, adapter, raw))
    return sides


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a short name for each path: its last parts, as few as distinguish them all."""
    parts = [real_path(path).parts for path in paths]
    for n in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-n:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{p[-1]}#{place}" for place, p in enumerate(parts, 1)]


def matched(sides: Sequence[Side], *, overlapping: bool = True) -> Matching:
    """Return the adapters' modules by name.

    Raises:
        AdapterError: no two have a module of one name and shape in common, and `overlapping` asks for one.
    """
    tables = [{module.name: module for module in side.adapter.modules} for side in sides]
    names = sorted({name for table in tables for name in table}, key=natural_key)
    rows = {name: [table.get(name) for table in tables] for name in names}
    odd = [name for name, row in rows.items() if len({m.shape for m in row if m is not None}) > 1]
    rows = {name: row for name, row in rows.items() if name not in set(odd)}
    partial = [
        OnlyIn(module=name, adapters=[side.name for side, m in zip(sides, row, strict=True) if m is not None])
        for name, row in rows.items()
        if None in row
    ]
    if overlapping and all(sum(m is not None for m in row) < 2 for row in rows.values()):
        first = [next(iter(table), "-") for table in tables]
        raise AdapterError(
            f"the adapters have no module in common ({sides[0].name} has {first[0]}, {sides[1].name} has {first[1]})",
            advice="are they of one base model, and of one format?",
        )
    return Matching(rows, partial, odd)


def config_differences(sides: Sequence[Side]) -> list[ConfigDifference]:
    """Return the fields of the configs that are not the same in all, but for those without effect on the update."""
    keys = sorted({key for side in sides for key in side.raw} - _OF_NO_EFFECT)
    found = []
    for key in keys:
        values = [_normal(key, side.raw.get(key)) for side in sides]
        if any(value != values[0] for value in values):
            found.append(ConfigDifference(key=key, values=values))
    return found


def _normal(key: str, value: Json) -> Json:
    """Return a value as it is compared: a set in order, and nothing for an empty one, which says as much as none."""
    if key in _SETS and isinstance(value, list):
        value = sorted(value, key=str)
    return None if value in ([], {}, "") else value


def span(values: Sequence[float]) -> list[float]:
    """Return [least, most]."""
    return [min(values), max(values)]


def described(side: Side, norm: float | None, *, step: int | None = None) -> ComparedAdapter:
    """Return the adapter's row of a report; `norm` is the Frobenius norm of all its updates."""
    modules, config = side.adapter.modules, side.adapter.config
    return ComparedAdapter(
        name=side.name,
        path=str(side.path),
        format=side.adapter.format,
        peft_type=config.peft_type,
        base_model=config.base_model_name_or_path,
        step=step,
        modules=len(modules),
        rank=[min(m.r for m in modules), max(m.r for m in modules)],
        scaling=span([m.scale for m in modules]),
        frobenius_norm=norm,
    )


def factors_of(module: Module) -> Callable[[], Factors]:
    """Return a loader of the module's update for the spectral kernels."""

    def load() -> Factors:
        b, a = module.load()
        return Factors(b=b, a=a, scale=module.scale)

    return load


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


WEIGHTS_NAME: Final = "adapter_model.safetensors"
CONFIG_NAME: Final = "adapter_config.json"
PROVENANCE_NAME: Final = "gradience_provenance.json"
PEFT_METADATA: Final = {"format": "pt"}

_ADAPTER_NAMES: Final = frozenset({CONFIG_NAME, PROVENANCE_NAME, *WEIGHT_NAMES, *INDEX_NAMES})
_SHARD: Final = re.compile(r"(?:adapter_model|adapters)-\d{5}-of-\d{5}\.(?:safetensors|bin)")
_NAMED: Final = 5  # entries that an error names
_CARD_NAME: Final = "README.md"
_CARD_GAP: Final = b"[More Information Needed]"
_CARD_GAPS: Final = 20  # fields that PEFT's card leaves open: it writes some thirty, a person who fills it in few
_MAX_CARD: Final = 64 * 1024  # bytes; PEFT's card has 5 KB

Dtype: TypeAlias = Literal["float32", "float16", "bfloat16"]
STORED: Final[Mapping[str, str]] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""The dtypes that factors are written in, and safetensors' names of them."""


class NewAdapter(NamedTuple):
    """The contents of a folder: tensors in their order, `adapter_config.json`, and the weights file's header."""

    tensors: Sequence[PlannedTensor]
    config: Mapping[str, Any]
    metadata: Mapping[str, str] = PEFT_METADATA
    weights_name: str = WEIGHTS_NAME


def write_adapter(out: Path, new: NewAdapter, provenance: Provenance, *, force: bool = False) -> None:
    """Write a folder with the weights, the config (keys sorted, as PEFT does) and the record.

    Tensors are loaded one at a time. `force` replaces an adapter that exists, once the new one is complete.

    Raises:
        OutputError: the folder exists, holds more than an adapter, or cannot be written.
    """
    with atomic_folder(out, force=force, check=refuse_to_lose) as folder:
        write_safetensors(folder / new.weights_name, new.tensors, metadata=new.metadata)
        _write(folder / CONFIG_NAME, (json.dumps(new.config, indent=2, sort_keys=True) + "\n").encode())
        _write(folder / PROVENANCE_NAME, msgspec.json.format(msgspec.json.encode(provenance), indent=2) + b"\n")


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}", advice="check the space left") from error


class Changes(NamedTuple):
    """What a record says of the modules: name, rank before and after, relative error."""

    modules: Sequence[ModuleChange]
    relative_error: float | None = None
    notes: Sequence[str] = ()


def provenance_of(
    operation: str,
    files: Iterable[Path],
    options: Mapping[str, Any],
    report: ResizeReport | ConvertReport | MergeReport | Changes,
) -> Provenance:
    """Return the record of an operation on the files, which are hashed; `options` must not hold paths.

    Errors over 1 (rounding to a narrow dtype can add to what is left out) are recorded as 1.
    """
    return Provenance(
        operation=operation,
        version=version("gradience"),
        created=time.time(),
        options=dict(options),
        sources=[SourceFile(name=f.name, bytes=f.stat().st_size, digest=file_digest(f)) for f in files if f.is_file()],
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
    )


def _at_most_one(error: float | None) -> float | None:
    return None if error is None else min(1.0, error)


def raw_config(path: Path) -> dict[str, Any]:
    """Return an adapter's config with every key it has, known or not.

    Raises:
        AdapterError: the file cannot be read, or is not a JSON object.
    """
    try:
        return decode_json(read_small(path, most=LARGEST_CONFIG, what="an adapter config"), dict[str, Any])
    except OSError as error:
        raise AdapterError(f"cannot read {path}: {error.strerror}", advice="give the right file") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise AdapterError(f"{path} is not an adapter config: {error}", advice="give the right file") from error


def refuse_place(
    out: Path, adapters: Iterable[AdapterFiles], *, base: Iterable[Path] = (), force: bool, one_file: bool = False
) -> None:
    """Refuse, before any work is done, a place that cannot be written to or whose replacement would cost something.

    Args:
        out: the folder to write, or the file.
        adapters: those that are read.
        base: the files of the base model that are read.
        force: replace what is there; of folders only one that holds an adapter, and nothing else.
        one_file: `out` is a file.

    Raises:
        OutputError: `out` holds what is read, lies in the folder of an adapter that is read, or exists and is not to
            be replaced.
    """
    place = real_path(out)
    for files in adapters:
        if any(source.is_relative_to(place) for source in _locations(files.folder, files.config, *weight_files(files))):
            raise OutputError(f"{out} is, or holds, an adapter that is read", advice="write to a place of its own")
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


def refuse_to_lose(folder: Path) -> None:
    """Raise where the replacement of a folder would cost more than an adapter.

    Raises:
        OutputError: the folder holds no adapter, or something beside one: it is named.
    """
    if not any((folder / name).is_file() for name in (CONFIG_NAME, PROVENANCE_NAME)):
        raise OutputError(
            f"{folder} holds no adapter ({CONFIG_NAME}): --force does not replace such a folder",
            advice="choose another name, or remove it yourself",
        )
    others = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir() if not _is_of_an_adapter(entry))
    if others:
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        raise OutputError(
            f"{folder} holds more than an adapter, which --force would remove: {', '.join(others[:_NAMED])}{more}",
            advice="choose another name, or move these away",
        )


def _is_of_an_adapter(entry: Path) -> bool:
    """Whether an entry of a folder is a regular file that an adapter consists of. A model card is one until edited."""
    if entry.is_symlink() or not entry.is_file():
        return False
    if entry.name == _CARD_NAME:
        return _is_blank_card(entry)
    return entry.name in _ADAPTER_NAMES or bool(_SHARD.fullmatch(entry.name))


def _is_blank_card(entry: Path) -> bool:
    try:
        return read_small(entry, most=_MAX_CARD, what="a model card").count(_CARD_GAP) >= _CARD_GAPS
    except OSError:  # what cannot be read is somebody's
        return False


def weight_files(files: AdapterFiles) -> tuple[Path, ...]:
    """Return the files that hold an adapter's weights, an index among them."""
    return (files.weights, *files.shards)


def _locations(*paths: Path) -> Iterator[Path]:
    """Yield where each path leads, and where it lies: the hub's cache and others keep links in their folders."""
    for path in paths:
        yield real_path(path)
        yield real_path(path.parent) / path.name
