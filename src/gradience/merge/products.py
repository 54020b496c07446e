"""Inner products of adapters' updates, module by module, and what a weighted sum makes of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from gradience.adapters.modules import Module
from gradience.rewrite.overlaps import side_overlap
from gradience.rewrite.several import Matching, Side
from gradience.schema.compare_adapters import SideOverlap
from gradience.schema.merge import Kept
from gradience.spectral.batch import Factors, spectra
from gradience.spectral.subspace import PairGeometry, Stacked, pair_geometries

__all__ = ["Floats", "Overlaps", "Places", "Products", "cosine_of", "is_finite", "kept_of", "products_of", "total_of"]

Floats: TypeAlias = npt.NDArray[np.float64]
Places: TypeAlias = tuple[int, int]

_TWO: Final = 2


class Overlaps(NamedTuple):
    """The overlaps of one pair of adapters, module by module."""

    output: list[SideOverlap]
    input: list[SideOverlap]


class Products(NamedTuple):
    """<dW_i, dW_j> of each module, n x n; not finite where an update is not. And the overlaps by pair."""

    by_module: dict[str, Floats]
    overlaps: dict[Places, Overlaps]


def products_of(sides: Sequence[Side], found: Matching) -> Products:
    """Return the inner products and overlaps of every two adapters; each module is read once a pair and once more."""
    n = len(sides)
    by_module = {name: np.zeros((n, n)) for name in found.rows}
    for place, side in enumerate(sides):
        seen = spectra([_load(module) for module in side.adapter.modules])
        for module, spectrum in zip(side.adapter.modules, seen, strict=True):
            if module.name in by_module:
                by_module[module.name][place, place] = spectrum.frobenius_norm**2 if spectrum.finite else math.nan
    jobs = [
        (places, one, two)
        for places in combinations(range(n), _TWO)
        for row in found.rows.values()
        if (one := row[places[0]]) is not None and (two := row[places[1]]) is not None
    ]
    overlaps: dict[Places, Overlaps] = {places: Overlaps([], []) for places in combinations(range(n), _TWO)}
    geometries = pair_geometries([(_stacked(one), _stacked(two)) for _, one, two in jobs])
    for ((i, j), one, _), geometry in zip(jobs, geometries, strict=True):
        table = by_module[one.name]
        table[i, j] = table[j, i] = geometry.inner
        _add_overlaps(overlaps[i, j], one, geometry)
    return Products(by_module, overlaps)


def _load(module: Module) -> Callable[[], Factors]:
    def load() -> Factors:
        b, a = module.load()
        return Factors(b=b, a=a, scale=module.scale)

    return load


def _stacked(module: Module) -> Stacked:
    return Stacked(module.load, module.r, module.scale)


def _add_overlaps(held: Overlaps, module: Module, geometry: PairGeometry) -> None:
    if geometry.left.size:
        held.output.append(side_overlap(geometry.left, module.shape[0]))
        held.input.append(side_overlap(geometry.right, module.shape[1]))


def is_finite(table: Floats) -> bool:
    """Return whether all inner products of a module are finite."""
    return bool(np.isfinite(table).all())


def total_of(products: Products) -> Floats:
    """Return the inner products of the adapters as one vector each, over the modules that are finite in all."""
    tables = [table for table in products.by_module.values() if is_finite(table)]
    return np.asarray(sum(tables, np.zeros_like(next(iter(products.by_module.values())))))


def kept_of(table: Floats, weights: Sequence[float], place: int) -> Kept:
    """Return what M holds of one adapter, from all inner products."""
    w = np.asarray(weights)
    along, own, whole = float(w @ table[:, place]), float(table[place, place]), float(w @ table @ w)
    if own <= 0.0:
        return Kept(coefficient=None, other=1.0 if whole > 0.0 else None)
    other = min(1.0, max(0.0, 1.0 - along**2 / (own * whole))) if whole > 0.0 else None
    return Kept(coefficient=along / own, other=other)


def cosine_of(table: Floats, weights: Sequence[float], places: Places) -> float | None:
    """Return the cosine between two weighted updates; None where one is zero."""
    i, j = places
    size = abs(weights[i] * weights[j]) * math.sqrt(table[i, i] * table[j, j])
    return max(-1.0, min(1.0, weights[i] * weights[j] * float(table[i, j]) / size)) if size > 0.0 else None
