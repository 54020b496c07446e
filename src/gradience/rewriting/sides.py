"""Adapters opened by their headers, once each; several for one report: modules matched by name, rows about each.

`beside` goes through the adapters module by module, and reads each module's factors once for all pairs. It gives the
geometry of the two updates of each pair, and each adapter's own norms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import msgspec
import numpy as np

from gradience.adapters.config import config_bytes
from gradience.adapters.files import AdapterFiles, find_files
from gradience.adapters.layout import Adapter, Module
from gradience.adapters.open import read_adapter
from gradience.base.weights import factors_of
from gradience.configs.families import base_key
from gradience.errors import AdapterError
from gradience.io import PathLike, natural_key
from gradience.io.reading import decode_json, real_path
from gradience.io.safetensors import TensorSource
from gradience.schema import Json
from gradience.schema.compare import ComparedAdapter, ConfigDifference, OnlyIn, Overlap, SideOverlap
from gradience.spectral.grams import Floats, inner_size, narrowed
from gradience.spectral.subspace import (
    PairGeometry,
    Places,
    StackTerm,
    chance_overlap,
    chance_overlap_sd,
    overlap,
    row_geometries,
)

if TYPE_CHECKING:
    from gradience.spectral.batch import Spectrum


_SETS: Final = {"target_modules", "modules_to_save", "exclude_modules", "target_parameters"}  # order is irrelevant
_ANGLES: Final = 16  # principal angles that a report lists, at most
_OF_NO_EFFECT: Final = {"inference_mode", "peft_version", "auto_mapping"}


class StoredAdapter(NamedTuple):
    """An adapter and its files: `raw` is its config with every key, or empty without one; `tensors` reads from them."""

    path: Path
    files: AdapterFiles
    adapter: Adapter
    raw: dict[str, Any]
    tensors: TensorSource
    name: str = ""
    """Of one of several: short, and unique among them."""

    @property
    def paths(self) -> list[Path]:
        """The files that are read."""
        return [self.files.config, *self.adapter.weights]


class Matching(NamedTuple):
    """Modules matched by name: `rows` holds for each name, in natural order, every adapter's `Module` or None.

    `partial` are the modules that some adapters lack. `odd` are those whose shapes differ; they are not in `rows`.
    """

    rows: dict[str, list[Module | None]]
    partial: list[OnlyIn]
    odd: list[str]


def open_stored(
    path: PathLike, *, adapter_config: PathLike | None = None, weights: PathLike | None = None
) -> StoredAdapter:
    """Open an adapter by its headers only.

    Raises:
        AdapterError: it cannot be read.
    """
    config, file = (None if place is None else Path(place) for place in (adapter_config, weights))
    files = find_files(Path(path), config=config, weights=file)
    stated = config_bytes(files.config) if files.config.is_file() else None
    adapter = read_adapter(files, config=stated)
    if adapter.source is None:
        raise AdapterError(f"{path} cannot be read again", advice="give the adapter's folder")
    raw = {} if stated is None else raw_config(files.config, stated)
    return StoredAdapter(Path(path), files, adapter, raw, adapter.source)


def open_sides(paths: Sequence[PathLike]) -> list[StoredAdapter]:
    """Return the adapters, opened by their headers only.

    Raises:
        AdapterError: fewer than two are given, or one cannot be read, or one holds no update that is understood.
    """
    if len(paths) < 2:
        raise AdapterError(f"{len(paths)} adapters given, expected at least two", advice="give the folders PEFT saved")
    sides = []
    for name, path in zip(_names([Path(path) for path in paths]), paths, strict=True):
        stored = open_stored(path)
        if not stored.adapter.modules:
            skipped = stored.adapter.skipped
            why = skipped[0].reason if skipped else "it holds no LoRA pair"
            raise AdapterError(
                f"{path}: no update that can be read from its factors: {why}",
                advice="'gradience audit' says what it holds; 'gradience convert' makes a plain LoRA of many types",
            )
        sides.append(stored._replace(name=name))
    return sides


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a short unique name for each path: its last parts, as few as distinguish all paths."""
    parts = [real_path(path).parts for path in paths]
    for n in range(1, max(map(len, parts)) + 1):
        names = [Path(*p[-n:]).as_posix() for p in parts]
        if len(set(names)) == len(names):
            return names
    # No parts of the paths tell them apart: one adapter was given twice.
    return [f"{p[-1]}#{place}" for place, p in enumerate(parts, 1)]


def matched(sides: Sequence[StoredAdapter], *, overlapping: bool = True) -> Matching:
    """Return the adapters' modules, matched by name.

    Raises:
        AdapterError: `overlapping` is true, and no two adapters share a module of one name and shape.
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


def config_differences(sides: Sequence[StoredAdapter]) -> list[ConfigDifference]:
    """Return the config fields that differ between the adapters, without those that have no effect on the update."""
    keys = sorted({key for side in sides for key in side.raw} - _OF_NO_EFFECT)
    differences = []
    for key in keys:
        values = [_normal(key, side.raw.get(key)) for side in sides]
        if any(value != values[0] for value in values):
            differences.append(ConfigDifference(key=key, values=values))
    return differences


def _normal(key: str, value: Json) -> Json:
    """Return a config value normalised for comparison: lists that are sets are sorted, empty values become None."""
    if key in _SETS and isinstance(value, list):
        value = sorted(value, key=str)
    return None if value in ([], {}, "") else value


def described(side: StoredAdapter, norm: float | None, *, step: int | None = None) -> ComparedAdapter:
    """Return the adapter's row of a report; `norm` is the Frobenius norm of all its updates."""
    modules, config = side.adapter.modules, side.adapter.config
    ranks, scales = [m.r for m in modules], [m.scale for m in modules]
    return ComparedAdapter(
        name=side.name,
        path=str(side.path),
        format=side.adapter.format,
        peft_type=config.peft_type,
        base_model=config.base_model_name_or_path,
        step=step,
        modules=len(modules),
        rank=[min(ranks), max(ranks)],
        scaling=[min(scales), max(scales)],
        frobenius_norm=norm,
    )


def side_overlap(cross: Floats, cosines: Floats, d: int) -> SideOverlap:
    """Return the subspace overlaps phi(k, k) for k = 1, 2, 4, ..., that of the whole spans, and principal angles.

    `cross` is U^T V, all inner products of singular vectors in R^d, and `cosines` are those of the principal angles.
    Angles are in degrees.
    """
    k, n = cross.shape
    sizes = [(1 << e, 1 << e) for e in range(min(k, n).bit_length())]
    if (k, n) not in sizes:
        sizes.append((k, n))
    angles = np.degrees(np.arccos(cosines[:_ANGLES]))
    return SideOverlap(overlaps=[_overlap(cross, i, j, d) for i, j in sizes], angles=[float(a) for a in angles])


def _overlap(cross: Floats, i: int, j: int, d: int) -> Overlap:
    return Overlap(
        i=i, j=j, phi=overlap(cross, i, j), chance=chance_overlap(i, j, d), chance_sd=chance_overlap_sd(i, j, d)
    )


def mean_overlaps(sides: Iterable[SideOverlap | None]) -> list[Overlap]:
    """Return for each k = 1, 2, 4, ... the mean of phi(k, k) over the modules with at least k directions."""
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
            # Of a mean, with each module's chance taken as independent of the others'.
            chance_sd=math.sqrt(math.fsum(item.chance_sd**2 for item in some)) / len(some),
        )
        for size, some in sorted(by_size.items())
    ]


def raw_config(path: Path, stated: bytes) -> dict[str, Any]:
    """Return an adapter's config, of these bytes, with every key it has, known or not.

    Raises:
        AdapterError: it is not a JSON object.
    """
    try:
        return decode_json(stated, dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise AdapterError(f"{path} is not an adapter config: {error}", advice="give the right file") from error


Take: TypeAlias = Callable[[Places, Module, Module, PairGeometry], object]


class OwnNumbers(NamedTuple):
    """An adapter's squared norm of each module's update by name (NaN if not finite), and its spectra if asked for."""

    energies: dict[str, float]
    spectra: dict[str, Spectrum]

    @property
    def energy(self) -> float:
        """The squared norm of the whole update."""
        return sum(self.energies.values())

    @property
    def norm(self) -> float | None:
        """The norm of the whole update; None if it is not finite."""
        return math.sqrt(self.energy) if math.isfinite(self.energy) else None


def beside(
    sides: Sequence[StoredAdapter], matching: Matching, pairs: Sequence[Places], take: Take, *, whole: bool
) -> list[OwnNumbers]:
    """Call `take` with the geometry of each module in each pair of adapters, and return each adapter's own numbers.

    Args:
        sides: the adapters.
        matching: their modules by name.
        pairs: pairs of places of adapters, the smaller place first.
        take: called for each module in the order of `matching`, and within it for each pair that both have the module.
        whole: also return the spectra of all modules.
    """
    known: list[dict[str, float]] = [{} for _ in sides]
    rows = [[None if module is None else _stacked(module) for module in row] for row in matching.rows.values()]
    for row, geometries in zip(matching.rows.values(), row_geometries(rows, pairs), strict=True):
        for (i, j), geometry in geometries.pairs.items():
            if (one := row[i]) is None or (two := row[j]) is None:
                continue
            take((i, j), one, two, geometry)
            if geometry.finite:  # else which of the two is not finite, its own spectrum says
                known[i][one.name], known[j][two.name] = (norm * norm for norm in geometry.norms)
    # Spectra are read of all modules and hold the norms too, so a norm that is known saves no reading.
    return [_own(side, {} if whole else energies, whole=whole) for side, energies in zip(sides, known, strict=True)]


def _own(side: StoredAdapter, known: Mapping[str, float], *, whole: bool) -> OwnNumbers:
    """An adapter's numbers in the order of its modules; those whose squared norm is not known are read here."""
    from gradience.spectral.batch import spectra  # jax, which a merge does not need

    rest = [module for module in side.adapter.modules if module.name not in known]
    read = dict(zip((module.name for module in rest), spectra([factors_of(module) for module in rest]), strict=True))
    energies = {**known, **{name: _energy(spectrum) for name, spectrum in read.items()}}
    return OwnNumbers({m.name: energies[m.name] for m in side.adapter.modules}, read if whole else {})


def _energy(spectrum: Spectrum) -> float:
    # as a product: `**` would raise OverflowError where this is infinite
    return spectrum.frobenius_norm * spectrum.frobenius_norm if spectrum.finite else math.nan


def _stacked(module: Module) -> StackTerm:
    return StackTerm(lambda: narrowed(*module.load()), inner_size(module.r, *module.shape), module.scale)


def why_not_together(sides: Sequence[StoredAdapter], matching: Matching) -> str | None:
    """Why adapters are not of one base model, from its names in their configs and from their modules; else None."""
    names = {base_key(side.adapter.config.base_model_name_or_path): side for side in sides}
    # A config that names no base is no sign of another base.
    names.pop("", None)
    if len(names) > 1:
        listed = ", ".join(str(side.adapter.config.base_model_name_or_path) for side in names.values())
        return f"they are of different base models ({listed})"
    shared = any(sum(module is not None for module in row) > 1 for row in matching.rows.values())
    return None if shared else "no two of them have a module in common"
