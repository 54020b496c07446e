"""The verb: adapters' files to factors, factors to geometry, geometry to a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from gradience.adapters.modules import Module
from gradience.compare.rows import adapter_pair, module_pair, whole_of
from gradience.compare.series import are_series, checkpoints_of, means_of, series_of, step_of
from gradience.opened import PathLike
from gradience.rewrite.several import Matching, Side, config_differences, described, matched, open_sides
from gradience.schema.compare_adapters import (
    COMPARE_ADAPTERS_SCHEMA_ID,
    AdapterPair,
    CheckpointPoint,
    CompareAdaptersReport,
    ModulePair,
)
from gradience.spectral.batch import Factors, Spectrum, spectra
from gradience.spectral.subspace import PairGeometry, Stacked, pair_geometries

__all__ = ["compare_adapters"]

Progress: TypeAlias = Callable[[int, int, str], None]
_Places: TypeAlias = tuple[int, int]
_Seen: TypeAlias = dict[_Places, dict[str, PairGeometry]]

_NO_VECTORS: Final = np.zeros((0, 0))


class _Measured(NamedTuple):
    """An adapter with its modules' spectra, and the squared norm of each finite one by name."""

    side: Side
    spectra: list[Spectrum]
    energies: dict[str, float]

    @property
    def energy(self) -> float:
        return sum(self.energies.values())


def compare_adapters(*paths: PathLike, progress: Progress | None = None) -> CompareAdaptersReport:
    """Return adapters side by side, by their weights; no base model is needed, and nothing d x d is formed.

    Args:
        paths: two adapters or more, of any ranks and scales; or one folder of a run with checkpoint-N folders,
            which is compared as a series. Several folders named checkpoint-N in one place are a series too.
        progress: called with (pairs of modules done, in all, the module's name).

    Raises:
        AdapterError: an adapter cannot be read, or they have no module in common.

    >>> compare_adapters("runs/a/peft", "runs/b/peft").pairs[0].cosine  # doctest: +SKIP
    0.12
    """
    places = [Path(path) for path in paths] if len(paths) != 1 else list(checkpoints_of(Path(paths[0])))
    is_series = are_series(places)
    if is_series:
        places = sorted(places, key=lambda place: step_of(place) or 0)
    sides = open_sides(places)
    found = matched(sides)
    measured = [_measured(side) for side in sides]
    wanted = _wanted(len(sides), series=is_series)
    shown = list(pairwise(range(len(sides)))) if is_series else [(0, place) for place in range(1, len(sides))]
    geometry, rows = _seen(found, wanted, shown, progress)
    return CompareAdaptersReport(
        schema=COMPARE_ADAPTERS_SCHEMA_ID,
        adapters=[described(m.side, m.energy**0.5, step=step_of(m.side.path)) for m in measured],
        differences=config_differences(sides),
        cosines=_cosines(measured, geometry) if len(wanted) == len(sides) * (len(sides) - 1) // 2 else [],
        pairs=[_pair(measured, pair, rows[pair], geometry[pair]) for pair in shown],
        series=series_of(_points(measured, geometry)) if is_series else None,
        only_in=found.partial,
        different_shapes=found.odd,
        notes=_notes(sides),
    )


def _measured(side: Side) -> _Measured:
    found = spectra([_load(module) for module in side.adapter.modules])
    pairs = zip(side.adapter.modules, found, strict=True)
    return _Measured(side, found, {m.name: s.frobenius_norm**2 for m, s in pairs if s.finite})


def _load(module: Module) -> Callable[[], Factors]:
    def load() -> Factors:
        b, a = module.load()
        return Factors(b=b, a=a, scale=module.scale)

    return load


def _wanted(n: int, *, series: bool) -> list[_Places]:
    """Return the pairs to look at: all; of a series each with the next and with the last."""
    if not series:
        return list(combinations(range(n), 2))
    return sorted({*pairwise(range(n)), *((place, n - 1) for place in range(n - 1))})


def _seen(
    found: Matching, wanted: Sequence[_Places], shown: Sequence[_Places], progress: Progress | None
) -> tuple[_Seen, dict[_Places, list[ModulePair]]]:
    """Return the geometry of every module that both of a pair have, by pair and name, without its vectors.

    And the modules' rows, where they are shown.
    """
    jobs = [
        (pair, one, two)
        for pair in wanted
        for row in found.rows.values()
        if (one := row[pair[0]]) is not None and (two := row[pair[1]]) is not None
    ]
    kept: _Seen = {pair: {} for pair in wanted}
    rows: dict[_Places, list[ModulePair]] = {pair: [] for pair in shown}
    seen = pair_geometries([(_stacked(one), _stacked(two)) for _, one, two in jobs])
    for place, ((pair, one, two), geometry) in enumerate(zip(jobs, seen, strict=True), 1):
        kept[pair][one.name] = geometry._replace(left=_NO_VECTORS, right=_NO_VECTORS)
        if pair in rows:
            rows[pair].append(module_pair(one, two, geometry))
        if progress is not None:
            progress(place, len(jobs), one.name)
    return kept, rows


def _stacked(module: Module) -> Stacked:
    return Stacked(module.load, module.r, module.scale)


def _pair(
    measured: Sequence[_Measured], pair: _Places, rows: Sequence[ModulePair], geometry: Mapping[str, PairGeometry]
) -> AdapterPair:
    one, two = (measured[place] for place in pair)
    names = (one.side.name, two.side.name)
    return adapter_pair(names, rows, list(geometry.values()), (one.energies, two.energies))


def _cosines(measured: Sequence[_Measured], geometry: _Seen) -> list[list[float | None]]:
    n = len(measured)
    table: list[list[float | None]] = [[None] * n for _ in range(n)]
    for place, one in enumerate(measured):
        table[place][place] = 1.0 if one.energy > 0.0 else None
    for (i, j), seen in geometry.items():
        table[i][j] = table[j][i] = _cosine(measured, (i, j), seen)
    return table


def _cosine(measured: Sequence[_Measured], pair: _Places, seen: dict[str, PairGeometry]) -> float | None:
    return whole_of(seen.values(), measured[pair[0]].energy, measured[pair[1]].energy).cosine


def _points(measured: Sequence[_Measured], geometry: _Seen) -> list[CheckpointPoint]:
    last = len(measured) - 1
    points = []
    for place, one in enumerate(measured):
        before = (place - 1, place)
        to_final = _cosine(measured, (place, last), geometry[place, last]) if place < last else None
        to_previous = _cosine(measured, before, geometry[before]) if place else None
        points.append(
            CheckpointPoint(
                name=one.side.name,
                step=step_of(one.side.path),
                frobenius_norm=one.energy**0.5,
                cosine_to_final=to_final if place < last else (1.0 if one.energy > 0.0 else None),
                cosine_to_previous=to_previous,
                relative_change=_change(measured[place - 1], geometry[before]) if place else None,
                **means_of(one.spectra),
            )
        )
    return points


def _change(previous: _Measured, seen: dict[str, PairGeometry]) -> float | None:
    moved = sum(one.distance**2 for one in seen.values() if one.finite)
    return float((moved / previous.energy) ** 0.5) if previous.energy > 0.0 else None


def _notes(sides: Sequence[Side]) -> list[str]:
    """Return what the adapters' readers remark, and which modules are seen without what their base adds."""
    notes = []
    for side in sides:
        notes += [f"{side.name}: {note}" for note in side.adapter.notes]
        unseen = len(side.adapter.needs_base)
        if unseen:
            notes.append(f"{side.name}: {unseen} modules need the base model, and are not compared")
    if len({side.adapter.config.base_model_name_or_path for side in sides}) > 1:
        notes.append("the configs name different base models: the same numbers then mean different things")
    return notes
