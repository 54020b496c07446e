"""The verb `compare` on adapters: the similarity of their updates, pair by pair or along the checkpoints of one run.

Cosines, norms and subspace overlaps follow from the factors alone. So no base model is needed, and no d x d matrix is
formed. The adapters may differ in rank and scale, but must have the same base model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from gradience.adapters import layer_index, module_type
from gradience.adapters.layout import Module
from gradience.adapters.open import CHECKPOINT, holds_adapter
from gradience.errors import AdapterError
from gradience.io import PathLike, Progress
from gradience.io.reading import real_path
from gradience.rewrite.sides import (
    OwnNumbers,
    Side,
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


class _Measurement(NamedTuple):
    """An adapter with each module's squared norm by name (NaN if it is not finite), and in a series its spectra."""

    side: Side
    own: OwnNumbers

    @property
    def energies(self) -> dict[str, float]:
        return self.own.energies

    @property
    def energy(self) -> float:
        return sum(self.energies.values())


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
    comparison = _ComparisonRows(
        wanted, shown, sum(_both(row, pair) for row in matching.rows.values() for pair in wanted), progress
    )
    own = beside(sides, matching, wanted, comparison.add, whole=is_series)
    measured = [_Measurement(side, one) for side, one in zip(sides, own, strict=True)]
    geometry, rows = comparison.geometry, comparison.rows
    return CompareAdaptersReport(
        schema=COMPARE_ADAPTERS_SCHEMA_ID,
        adapters=[described(m.side, _norm(m.energy), step=step_of(m.side.path)) for m in measured],
        differences=config_differences(sides),
        cosines=_cosines(measured, geometry) if len(wanted) == len(sides) * (len(sides) - 1) // 2 else [],
        pairs=[_pair(measured, pair, rows[pair], geometry[pair]) for pair in shown],
        series=series_of(_points(measured, geometry)) if is_series else None,
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


class _ComparisonRows:
    """The collected results: each pair's geometry by module name, and the rows of the pairs that are shown.

    The singular vectors' inner products are dropped from the geometry, to save memory.
    """

    def __init__(self, wanted: Sequence[_Pair], shown: Sequence[_Pair], jobs: int, progress: Progress | None) -> None:
        self.geometry: _Geometry = {pair: {} for pair in wanted}
        self.rows: dict[_Pair, list[ModulePair]] = {pair: [] for pair in shown}
        self._jobs = jobs
        self._done = 0
        self._progress = progress

    def add(self, pair: _Pair, one: Module, two: Module, geometry: PairGeometry) -> None:
        """Keep the geometry of one module of a pair, and its row if the pair is shown."""
        self.geometry[pair][one.name] = geometry._replace(left=_NO_VECTORS, right=_NO_VECTORS)
        if pair in self.rows:
            self.rows[pair].append(module_pair(one, two, geometry))
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._jobs, one.name)


def _pair(
    measured: Sequence[_Measurement], pair: _Pair, rows: Sequence[ModulePair], geometry: Mapping[str, PairGeometry]
) -> AdapterPair:
    one, two = (measured[place] for place in pair)
    names = (one.side.name, two.side.name)
    return adapter_pair(names, rows, list(geometry.values()), (one.energies, two.energies))


def _cosines(measured: Sequence[_Measurement], geometry: _Geometry) -> list[list[float | None]]:
    n = len(measured)
    table: list[list[float | None]] = [[None] * n for _ in range(n)]
    for place, one in enumerate(measured):
        table[place][place] = 1.0 if 0.0 < one.energy < math.inf else None
    for (i, j), seen in geometry.items():
        table[i][j] = table[j][i] = _cosine(measured, (i, j), seen)
    return table


def _cosine(measured: Sequence[_Measurement], pair: _Pair, seen: dict[str, PairGeometry]) -> float | None:
    return cosine_of(seen.values(), measured[pair[0]].energy, measured[pair[1]].energy)


def _points(measured: Sequence[_Measurement], geometry: _Geometry) -> list[CheckpointPoint]:
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
                frobenius_norm=_norm(one.energy),
                cosine_to_final=to_final if place < last else (1.0 if 0.0 < one.energy < math.inf else None),
                cosine_to_previous=to_previous,
                relative_change=_change(measured[place - 1], geometry[before]) if place else None,
                **means_of(list(one.own.spectra.values())),
            )
        )
    return points


def _change(previous: _Measurement, seen: dict[str, PairGeometry]) -> float | None:
    moved = sum(one.distance * one.distance if one.finite else math.nan for one in seen.values())
    return _root_ratio(moved, previous.energy)


def _norm(energy: float) -> float | None:
    return math.sqrt(energy) if math.isfinite(energy) else None


def _root_ratio(energy: float, over: float) -> float | None:
    """The ratio of two norms from their squares; None if one is not finite, or the second is zero."""
    return math.sqrt(energy / over) if math.isfinite(energy) and 0.0 < over < math.inf else None


def _notes(sides: Sequence[Side]) -> list[str]:
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
    changed = alone + _total(g.distance * g.distance if g.finite else math.nan for g in geometries)
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
