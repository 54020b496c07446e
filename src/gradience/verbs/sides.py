"""Adapters side by side: opened by their headers, modules matched by name, and what a report says of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from gradience.adapters.config import LARGEST_CONFIG
from gradience.adapters.layout import Adapter, Module
from gradience.adapters.open import AdapterFiles, open_adapter
from gradience.errors import AdapterError
from gradience.io.paths import PathLike, natural_key
from gradience.io.reading import decode_json, read_small, real_path
from gradience.schema.compare import ComparedAdapter, ConfigDifference, OnlyIn, Overlap, SideOverlap
from gradience.schema.scalars import Json
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
        names = [Path(*p[-n:]).as_posix() for p in parts]
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
