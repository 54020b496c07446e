"""One module merged: what the method defines, its factors, and what these leave out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from gradience.adapters.layout import Array, Module
from gradience.errors import AdapterError
from gradience.schema.compare import SideOverlap
from gradience.schema.merge import Kept, MergeMethod
from gradience.spectral.batch import spectra
from gradience.spectral.grams import Factors
from gradience.spectral.merging import (
    Singles,
    dropped,
    elected_mean,
    mask_generator,
    numerical_rank,
    squared_distance,
    squared_norm,
    trimmed,
)
from gradience.spectral.reduced import leading_part, reduced, stacked
from gradience.spectral.subspace import PairGeometry, Stacked, pair_geometries
from gradience.verbs.several import Matching, Side
from gradience.verbs.writing import side_overlap

DENSE: Final = frozenset({"ties", "dare_linear", "dare_ties"})
_ROWS: Final = 1024  # of a dense matrix, compared at a time

Part: TypeAlias = tuple[Array, Array, float]
Row = Sequence[Module | None]


class Recipe(NamedTuple):
    """What was asked for: one weight per adapter; `density` and `seed` where entries are dropped."""

    method: MergeMethod
    weights: tuple[float, ...]
    rank: int | None = None
    density: float | None = None
    seed: int = 0


class Rounded(NamedTuple):
    """The factors as they will be stored: b (d_out, k) and a (k, d_in), with scale 1, in the base's orientation."""

    b: Array
    a: Array


class Losses(NamedTuple):
    """Squared Frobenius norms: of the target and what is left out of it; of the plain sum and the distance to it."""

    target: float
    left_out: float
    plain: float
    from_plain: float


def merged_module(row: Row, recipe: Recipe, dtype: np.dtype[Any]) -> tuple[Rounded, Losses]:
    """Return the module's factors and what they cost. `row` holds each adapter's module, or None.

    Raises:
        AdapterError: an update is not finite, or the factors do not fit the dtype.
    """
    parts = list(_parts(row, recipe.weights))
    name = next(module.name for module in row if module is not None)
    plain = stacked(parts)
    if not (np.isfinite(plain[0]).all() and np.isfinite(plain[1]).all()):
        raise AdapterError(
            f"{name} holds NaN or infinite numbers in one of the adapters", advice="'gradience audit' says which"
        )
    most = max(module.r for module in row if module is not None)
    with np.errstate(over="ignore", invalid="ignore"):
        energy = squared_norm(*plain)
    if not math.isfinite(energy):
        raise AdapterError(f"{name}: the weighted sum is over the range of float64", advice="give smaller --weights")
    if recipe.method in DENSE:
        target = _dense_target(name, row, parts, recipe)
        low = leading_part(target, min(recipe.rank or most, *target.shape)).low
        rounded = _rounded(*low.factors(len(low.sigma)), dtype, name)
        lost = Losses(float(np.sum(target * target)), _difference(target, rounded), energy, 0.0)
        return rounded, lost._replace(from_plain=squared_distance(plain, rounded))
    factors = _factors(plain, recipe, most) if energy > 0.0 or recipe.method == "cat" else _nothing(*plain)
    rounded = _rounded(*factors, dtype, name)
    away = squared_distance(plain, rounded) if energy > 0.0 else 0.0
    return rounded, Losses(energy, away, energy, away)


def _parts(row: Row, weights: Sequence[float]) -> Iterator[Part]:
    """Yield (b, a, w s) of each adapter that has the module."""
    for module, weight in zip(row, weights, strict=True):
        if module is not None:
            yield (*module.load(), weight * module.scale)


def _factors(plain: tuple[Array, Array], recipe: Recipe, most: int) -> tuple[Array, Array]:
    """Return the factors of the weighted sum: as they are, at the rank it has, or at the rank that was asked for."""
    held = len(plain[1])
    if recipe.method == "cat":
        return _balanced(*plain)
    rank = numerical_rank(*plain) if recipe.method == "linear" else min(recipe.rank or most, held)
    return _balanced(*plain) if rank >= held else reduced(*plain, 1.0, rank)


def _nothing(b: Array, a: Array) -> tuple[Array, Array]:
    """Return the factors of an update of zero."""
    return np.zeros((len(b), 1)), np.zeros((1, a.shape[1]))


def _balanced(b: Array, a: Array) -> tuple[Array, Array]:
    """Return the factors with column k of b as long as row k of a, up to a power of two: no digit is lost."""
    columns, rows = np.linalg.norm(b, axis=0), np.linalg.norm(a, axis=1)
    both = (columns > 0.0) & (rows > 0.0)
    ratio = np.where(both, rows, 1.0) / np.where(both, columns, 1.0)
    step = np.exp2(np.round(np.log2(ratio) / 2))
    return b * step, a / step[:, None]


def _rounded(b: Array, a: Array, dtype: np.dtype[Any], name: str) -> Rounded:
    with np.errstate(over="ignore"):
        rounded = Rounded(b.astype(dtype), a.astype(dtype))
    if not (np.isfinite(rounded.b).all() and np.isfinite(rounded.a).all()):
        raise AdapterError(f"{name}: the merged factors do not fit {dtype}", advice="name a wider --dtype")
    return rounded


def _dense_target(name: str, row: Row, parts: Sequence[Part], recipe: Recipe) -> npt.NDArray[np.float64]:
    """Return what TIES or DARE makes of the dense updates, in float64."""
    places = [place for place, module in enumerate(row) if module is not None]
    density = 1.0 if recipe.density is None else recipe.density

    def updates() -> Iterator[Singles]:
        for place, (b, a, scale) in zip(places, parts, strict=True):
            dense = (b.astype(np.float32) * np.float32(scale)) @ a.astype(np.float32)
            if recipe.method == "ties":
                yield trimmed(dense, density)
            else:
                yield dropped(dense, density, mask_generator(recipe.seed, place, name))

    with np.errstate(over="ignore", invalid="ignore"):
        merged = _summed(updates) if recipe.method == "dare_linear" else elected_mean(updates)
    if not np.isfinite(merged).all():
        raise AdapterError(f"{name}: an update is over the range of float32", advice="linear, cat and svd are float64")
    return merged.astype(np.float64)


def _summed(updates: Callable[[], Iterator[Singles]]) -> Singles:
    found = updates()
    total = next(found).copy()
    for update in found:
        total += update
    return total


def _difference(target: npt.NDArray[np.float64], rounded: Rounded) -> float:
    """Return the squared norm of target - b a, some rows at a time."""
    a = rounded.a.astype(np.float64)
    total = 0.0
    for start in range(0, len(target), _ROWS):
        span = slice(start, start + _ROWS)
        total += float(np.sum((target[span] - rounded.b[span].astype(np.float64) @ a) ** 2))
    return total


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
