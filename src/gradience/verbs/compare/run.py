"""The verb `compare` on adapters: the similarity of their updates, pair by pair or along the checkpoints of one run.

Cosines, norms and subspace overlaps follow from the factors alone. So no base model is needed, and no d x d matrix is
formed. The adapters may differ in rank and scale, but must have the same base model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations, count, pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from gradience.adapters import layer_index, module_type
from gradience.adapters.files import CHECKPOINT, holds_adapter
from gradience.adapters.layout import Module
from gradience.errors import AdapterError
from gradience.io import PathLike, Progress
from gradience.io.reading import real_path
from gradience.rewriting.sides import (
    OwnNumbers,
    StoredAdapter,
    beside,
    config_differences,
    described,
    matched,
    mean_overlaps,
    open_sides,
    side_overlap,
)
from gradience.schema.compare import (
    COMPARE_ADAPTERS_SCHEMA_ID,
    AdapterPair,
    CheckpointPoint,
    CheckpointSeries,
    CompareAdaptersReport,
    LayerShare,
    ModulePair,
)
from gradience.spectral.batch import Spectrum
from gradience.spectral.subspace import PairGeometry

SETTLED: Final = 0.99  # cosine to the final update: 8 degrees, or a seventh of its norm; a heuristic of the project

_Pair: TypeAlias = tuple[int, int]
_Geometry: TypeAlias = dict[_Pair, dict[str, PairGeometry]]

_NO_VECTORS: Final = np.zeros((0, 0))


def compare_adapters(*paths: PathLike, progress: Progress | None = None) -> CompareAdaptersReport:
    """Return the comparison of adapters by their weights; no base model is needed, and nothing d x d is formed.

    Args:
        paths: two adapters or more, of any ranks and scales; or one folder of a run with checkpoint-N folders,
            which is compared as a series. Several folders named checkpoint-N in one place are a series too.
        progress: called with (pairs of modules done, in all, the module's name).

    Raises:
        AdapterError: an adapter cannot be read, or the adapters have no module in common.

    >>> compare_adapters("runs/a/peft", "runs/b/peft").pairs[0].cosine  # doctest: +SKIP
    0.12
    """
    places = [Path(path) for path in paths] if len(paths) != 1 else list(checkpoints_of(Path(paths[0])))
    is_series = are_series(places)
    if is_series:
        places = sorted(places, key=lambda place: step_of(place) or 0)
    sides = open_sides(places)
    matching = matched(sides)
    wanted = _wanted(len(sides), series=is_series)
    shown = list(pairwise(range(len(sides)))) if is_series else [(0, place) for place in range(1, len(sides))]
    geometry: _Geometry = {pair: {} for pair in wanted}
    rows: dict[_Pair, list[ModulePair]] = {pair: [] for pair in shown}
    done, jobs = count(1), sum(_both(row, pair) for row in matching.rows.values() for pair in wanted)

    def take(pair: _Pair, one: Module, two: Module, found: PairGeometry) -> None:
        geometry[pair][one.name] = found._replace(left=_NO_VECTORS, right=_NO_VECTORS)  # which would fill the memory
        if pair in rows:
            rows[pair].append(module_pair(one, two, found))
        if progress is not None:
            progress(next(done), jobs, one.name)

    whole = _Compared(sides, beside(sides, matching, wanted, take, whole=is_series), geometry)
    return CompareAdaptersReport(
        schema=COMPARE_ADAPTERS_SCHEMA_ID,
        adapters=[
            described(side, own.norm, step=step_of(side.path)) for side, own in zip(sides, whole.own, strict=True)
        ],
        differences=config_differences(sides),
        # Of a longer series not every pair was compared.
        cosines=whole.cosines() if len(wanted) == math.comb(len(sides), 2) else [],
        pairs=[whole.pair(places, rows[places]) for places in shown],
        series=series_of(whole.points()) if is_series else None,
        only_in=matching.partial,
        different_shapes=matching.odd,
        notes=_notes(sides),
    )


def _wanted(n: int, *, series: bool) -> list[_Pair]:
    """Return the pairs to compare: all pairs, or in a series each checkpoint with the next and with the last."""
    if not series:
        return list(combinations(range(n), 2))
    return sorted({*pairwise(range(n)), *((place, n - 1) for place in range(n - 1))})


def _both(row: Sequence[Module | None], pair: _Pair) -> bool:
    return row[pair[0]] is not None and row[pair[1]] is not None


class _Compared(NamedTuple):
    """Adapters with their own numbers, and the geometry of each pair that was compared by the modules' names."""

    sides: Sequence[StoredAdapter]
    own: Sequence[OwnNumbers]
    geometry: _Geometry

    def pair(self, places: _Pair, rows: Sequence[ModulePair]) -> AdapterPair:
        (one, of_one), (two, of_two) = ((self.sides[i].name, self.own[i].energies) for i in places)
        return adapter_pair((one, two), rows, list(self.geometry[places].values()), (of_one, of_two))

    def cosine(self, places: _Pair) -> float | None:
        i, j = sorted(places)
        if i == j:
            return 1.0 if 0.0 < self.own[i].energy < math.inf else None
        return cosine_of(self.geometry[i, j].values(), self.own[i].energy, self.own[j].energy)

    def cosines(self) -> list[list[float | None]]:
        places = range(len(self.sides))
        return [[self.cosine((i, j)) for j in places] for i in places]

    def points(self) -> list[CheckpointPoint]:
        """The checkpoints of a series, each beside the one before it and the last."""
        last = len(self.sides) - 1
        return [
            CheckpointPoint(
                name=side.name,
                step=step_of(side.path),
                frobenius_norm=own.norm,
                cosine_to_final=self.cosine((place, last)),
                cosine_to_previous=self.cosine((place - 1, place)) if place else None,
                relative_change=self._change(place) if place else None,
                **means_of(list(own.spectra.values())),
            )
            for place, (side, own) in enumerate(zip(self.sides, self.own, strict=True))
        ]

    def _change(self, place: int) -> float | None:
        return _root_ratio(_distance(self.geometry[place - 1, place].values()), self.own[place - 1].energy)


def _distance(geometries: Iterable[PairGeometry]) -> float:
    """The squared distance of two adapters over the modules that both have; NaN if one is not finite."""
    return _total(one.distance * one.distance if one.finite else math.nan for one in geometries)


def _root_ratio(energy: float, over: float) -> float | None:
    """The ratio of two norms from their squares; None if one is not finite, or the second is zero."""
    return math.sqrt(energy / over) if math.isfinite(energy) and 0.0 < over < math.inf else None


def _notes(sides: Sequence[StoredAdapter]) -> list[str]:
    """Return the readers' notes, and notes on modules that need the base model and on different base models."""
    notes = []
    for side in sides:
        notes += [f"{side.name}: {note}" for note in side.adapter.notes]
        unseen = len(side.adapter.base_dependent)
        if unseen:
            notes.append(f"{side.name}: {unseen} modules need the base model, and are not compared")
    if len({side.adapter.config.base_model_name_or_path for side in sides}) > 1:
        notes.append("the configs name different base models: the same numbers then mean different things")
    return notes


def step_of(path: Path) -> int | None:
    """Return the step N of a folder named checkpoint-N, or None for another name."""
    hit = CHECKPOINT.fullmatch(real_path(path).name)
    return int(hit[1]) if hit else None


def are_series(paths: Sequence[Path]) -> bool:
    """Return whether the folders are checkpoints of one run: all named checkpoint-N, and in one folder."""
    return all(step_of(path) is not None for path in paths) and len({real_path(path).parent for path in paths}) == 1


def checkpoints_of(folder: Path) -> list[Path]:
    """Return the checkpoint-N folders of a run that hold an adapter, by step.

    Raises:
        AdapterError: the folder is missing, or holds fewer than two.
    """
    if not folder.is_dir():
        raise AdapterError(f"no such folder: {folder}", advice="give two adapters, or a run's folder with checkpoints")
    checkpoints = [child for child in folder.iterdir() if step_of(child) is not None and holds_adapter(child)]
    if len(checkpoints) < 2:
        raise AdapterError(
            f"{folder} holds {len(checkpoints)} checkpoint-N folders with an adapter, expected at least two",
            advice="give a second adapter, or the folder of a run that saved checkpoints",
        )
    return sorted(checkpoints, key=lambda child: step_of(child) or 0)


def means_of(spectra: Sequence[Spectrum]) -> dict[str, float]:
    """Return the mean stable, effective and 90 % energy ranks over finite nonzero updates; empty without any."""
    alive = [s for s in spectra if s.finite and s.spectral_norm > 0.0]
    if not alive:
        return {}
    return {
        "stable_rank_mean": float(np.mean([s.stable_rank for s in alive])),
        "effective_rank_mean": float(np.mean([s.effective_rank for s in alive])),
        "energy_rank_90_mean": float(np.mean([s.energy_ranks[0] for s in alive])),
    }


def series_of(points: Sequence[CheckpointPoint]) -> CheckpointSeries:
    """Return the series of checkpoints, with the one from which the update's direction is settled.

    From that checkpoint on, every cosine to the final update is at least `SETTLED`. It is the first such checkpoint,
    and not the last of the series.
    """
    settled: CheckpointPoint | None = None
    for point in reversed(points[:-1]):
        if point.cosine_to_final is None or point.cosine_to_final < SETTLED:
            break
        settled = point
    first, last = points[0].effective_rank_mean, points[-1].effective_rank_mean
    return CheckpointSeries(
        points=list(points),
        settled=None if settled is None else settled.name,
        settled_step=None if settled is None else settled.step,
        threshold=SETTLED,
        rank_growth=last / first if first and last else None,
    )


def module_pair(first: Module, second: Module, geometry: PairGeometry) -> ModulePair:
    """Return the row that compares one module in two adapters."""
    zero = geometry.finite and 0.0 in geometry.norms
    common: dict[str, Any] = {
        "name": first.name,
        "module_type": module_type(first.name),
        "layer": layer_index(first.name),
        "state": "zero" if zero else "ok" if geometry.finite else "non_finite",
        "shape": list(first.shape),
        "ranks": [first.r, second.r],
    }
    if not geometry.finite:
        return ModulePair(**common)
    one, two = geometry.norms
    return ModulePair(
        **common,
        frobenius_norms=[one, two],
        norm_ratio=two / one if one > 0.0 else None,
        cosine=geometry.cosine,
        relative_change=geometry.distance / one if one > 0.0 else None,
        output_side=None if zero else side_overlap(geometry.left, geometry.cosines[0], first.shape[0]),
        input_side=None if zero else side_overlap(geometry.right, geometry.cosines[1], first.shape[1]),
    )


def cosine_of(geometries: Iterable[PairGeometry], first: float, second: float) -> float | None:
    """Return the cosine between two adapters, each as one vector of all its updates.

    `first` and `second` are the squared norms of the adapters, including modules that the other lacks. None if one of
    them is zero or not finite.
    """
    # Roots first: the product of two squared norms may overflow.
    size = math.sqrt(first) * math.sqrt(second)
    inner = _total(one.inner for one in geometries if one.finite)
    return max(-1.0, min(1.0, inner / size)) if 0.0 < size < math.inf else None


def _total(values: Iterable[float]) -> float:
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # beyond the largest float, or infinities of both signs
        return math.nan


def adapter_pair(
    names: tuple[str, str],
    rows: Sequence[ModulePair],
    geometries: Sequence[PairGeometry],
    energies: tuple[dict[str, float], dict[str, float]],
) -> AdapterPair:
    """Return the comparison of two adapters as a whole.

    Args:
        names: the names of the two adapters.
        rows: the rows of the modules that both have.
        geometries: the geometry of these modules, in the same order.
        energies: for each adapter, the squared norms of its modules by name. If one is NaN (not finite), the numbers
            of the whole are None.
    """
    one, two = (_total(table.values()) for table in energies)
    alone = _total(
        energy for mine, other in (energies, energies[::-1]) for name, energy in mine.items() if name not in other
    )
    changed = alone + _distance(geometries)
    shares = _shares(energies)
    return AdapterPair(
        first=names[0],
        second=names[1],
        compared=sum(row.state != "non_finite" for row in rows),
        cosine=cosine_of(geometries, one, two),
        norm_ratio=_root_ratio(two, one),
        relative_change=_root_ratio(changed, one),
        energy_moved=min(1.0, sum(abs(s.first - s.second) for s in shares) / 2) if shares else None,
        output_side=mean_overlaps(row.output_side for row in rows),
        input_side=mean_overlaps(row.input_side for row in rows),
        layers=shares,
        modules=list(rows),
    )


def _shares(energies: tuple[dict[str, float], dict[str, float]]) -> list[LayerShare]:
    """Return each layer's share of each adapter's squared norm; empty if an adapter's is zero or not finite."""
    totals = [_total(table.values()) for table in energies]
    if not all(0.0 < total < math.inf for total in totals):
        return []
    sums: dict[int | None, list[float]] = {}
    for place, (table, total) in enumerate(zip(energies, totals, strict=True)):
        for name, energy in table.items():
            sums.setdefault(layer_index(name), [0.0, 0.0])[place] += energy / total
    order = sorted(sums, key=lambda layer: (layer is None, layer or 0))
    return [LayerShare(layer=layer, first=min(1.0, sums[layer][0]), second=min(1.0, sums[layer][1])) for layer in order]
