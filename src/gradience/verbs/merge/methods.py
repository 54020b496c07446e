"""The methods of a merge: their options, and for one module the update that a method defines, its factors and error.

`linear` and `cat` are exact, and `svd` is the best approximation at a rank; all three use the factors in float64. TIES
and DARE work on single entries, so they form each dense update in float32, for one module at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, get_args

import jax
import numpy as np
import numpy.typing as npt

from gradience.adapters.layout import Array, Module, all_finite
from gradience.errors import AdapterError, OptionError
from gradience.schema.merge import MergeMethod
from gradience.spectral.merging import dense_update, dropped, elected_mean, mask_generator, summed, trimmed
from gradience.spectral.sums import (
    Pair,
    Part,
    balanced_sum,
    balancing,
    gram_norm,
    is_narrow,
    low_rank_sum,
    norm_beyond_the_sides,
    numerical_rank,
    pair_grams,
    squared_distance,
    sum_grams,
)
from gradience.spectral.update import leading_part, reduced, stacked
from gradience.verbs.merge.options import MergeOptions

_ROWS: Final = 1024  # rows of a dense matrix that are compared at a time

TIES_DENSITY: Final = 0.2  # arXiv 2306.01708: the top 20 % of entries, its default if there is no validation set
_LARGEST: Final = 1e6  # of a weight's magnitude: more is a mistake, and products in float32 stay in range
_MEANS: Final = frozenset({"ties", "dare_ties"})
DENSE: Final = frozenset({"ties", "dare_linear", "dare_ties"})


Row = Sequence[Module | None]


class Recipe(NamedTuple):
    """A method with its options. There is one weight per adapter. TIES and DARE use `density`, DARE also `seed`."""

    method: MergeMethod
    weights: tuple[float, ...]
    rank: int | None = None
    density: float | None = None
    seed: int = 0


def weights_of(n: int, weights: Sequence[float] | None, method: MergeMethod = "linear") -> tuple[float, ...]:
    """Return a weight for each of n adapters: those given, or else 1/n for a sum and 1 for a mean.

    Raises:
        OptionError: there are not n weights, or one is not finite or above 10^6 in magnitude.
    """
    if weights is None:
        return ((1.0 if method in _MEANS else 1.0 / n) if n else 0.0,) * n
    if len(weights) != n:
        raise OptionError(f"{len(weights)} weights for {n} adapters: expected one for each")
    if not all(math.isfinite(weight) for weight in weights):
        raise OptionError(f"weights are {list(weights)}: expected finite numbers")
    if any(abs(weight) > _LARGEST for weight in weights):
        raise OptionError(f"weights are {list(weights)}: expected at most {_LARGEST:g} in size")
    return tuple(float(weight) for weight in weights)


def recipe_of(n: int, options: MergeOptions) -> Recipe:
    """Return the validated recipe for a merge of n adapters.

    Raises:
        OptionError: an option is out of range, or does not fit the method.
    """
    method, rank, density = options.method, options.rank, options.density
    if method not in get_args(MergeMethod):
        raise OptionError(f"--method is {method!r}, expected one of {', '.join(get_args(MergeMethod))}")
    options.refuse_bad()
    if rank is not None and method in {"linear", "cat"}:
        raise OptionError(f"{method} is exact and takes no rank: svd gives the best approximation of one")
    if density is not None and method not in DENSE:
        raise OptionError(f"{method} drops no entries and takes no density")
    if density is None and method in DENSE:
        if method != "ties":
            raise OptionError(f"{method} needs a density: its paper keeps as little as 0.1 of the entries")
        density = TIES_DENSITY
    return Recipe(method, weights_of(n, options.weights, method), rank, density, options.seed)


def dense_target(name: str, row: Row, parts: Sequence[Part], recipe: Recipe) -> npt.NDArray[np.float64]:
    """Return the merged update (d_out, d_in) by TIES or DARE, in float64, from the adapters' dense updates."""
    places = [place for place, module in enumerate(row) if module is not None]
    density = 1.0 if recipe.density is None else recipe.density

    def updates() -> Iterator[jax.Array]:
        for place, part in zip(places, parts, strict=True):
            dense = dense_update(*part)
            if recipe.method == "ties":
                yield trimmed(dense, density)
            else:
                yield dropped(dense, density, mask_generator(recipe.seed, place, name))

    merged = np.asarray(summed(updates()) if recipe.method == "dare_linear" else elected_mean(updates), np.float64)
    if not np.isfinite(merged).all():
        raise AdapterError(f"{name}: an update is over the range of float32", advice="linear, cat and svd are float64")
    return merged


def difference(target: npt.NDArray[np.float64], rounded: NewFactors) -> float:
    """Return the squared Frobenius norm of target - b @ a, computed in blocks of rows."""
    a = rounded.a.astype(np.float64)
    total = 0.0
    for start in range(0, len(target), _ROWS):
        span = slice(start, start + _ROWS)
        total += float(np.sum((target[span] - rounded.b[span].astype(np.float64) @ a) ** 2))
    return total


class NewFactors(NamedTuple):
    """The factors as they will be stored: b (d_out, k) and a (k, d_in), with scale 1, in the base's orientation."""

    b: Array
    a: Array


class Losses(NamedTuple):
    """Squared Frobenius norms of the target, of its part that the factors miss, of the plain sum, and of the distance.

    The target is the update that the method defines. `from_plain` is the distance of the factors from the plain
    weighted sum.
    """

    target: float
    left_out: float
    plain: float
    from_plain: float


def merged_module(row: Row, recipe: Recipe, dtype: np.dtype[Any]) -> tuple[NewFactors, Losses]:
    """Return the module's merged factors and their losses. `row` holds each adapter's module, or None.

    Raises:
        AdapterError: an update is not finite, or the factors do not fit the dtype.
    """
    parts = list(_parts(row, recipe.weights))
    name = next(module.name for module in row if module is not None)
    most = max(module.r for module in row if module is not None)
    if recipe.method not in DENSE and is_narrow(parts):
        return _merged_sum(name, parts, recipe, dtype, most)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found in the squared norm
        plain = stacked(parts)
        grams = pair_grams(*plain)
        energy = norm_beyond_the_sides(*plain, grams)
    _refuse_overflow(name, energy, parts)
    if recipe.method in DENSE:
        target = dense_target(name, row, parts, recipe)
        low = leading_part(target, min(recipe.rank or most, *target.shape)).low
        rounded = _rounded(*low.factors(len(low.sigma)), dtype, name)
        lost = Losses(float(np.sum(target * target)), difference(target, rounded), energy, 0.0)
        return rounded, lost._replace(from_plain=squared_distance(plain, rounded))
    # `cat` promises the factors side by side, of a zero sum too.
    factors = _factors(plain, grams, recipe, most) if energy > 0.0 or recipe.method == "cat" else _zero_update(*plain)
    rounded = _rounded(*factors, dtype, name)
    away = squared_distance(plain, rounded, grams=grams) if energy > 0.0 else 0.0
    return rounded, Losses(energy, away, energy, away)


def _refuse_overflow(name: str, energy: float, parts: Sequence[Part]) -> None:
    """Refuse a sum whose squared norm is not finite, because of a non-finite factor or an overflow."""
    if math.isfinite(energy):
        return
    if not all(all_finite(b) and all_finite(a) and math.isfinite(c) for b, a, c in parts):
        raise AdapterError(
            f"{name} holds NaN or infinite numbers in one of the adapters", advice="'gradience audit' says which"
        )
    raise AdapterError(f"{name}: the weighted sum is over the range of float64", advice="give smaller --weights")


def _merged_sum(
    name: str, parts: Sequence[Part], recipe: Recipe, dtype: np.dtype[Any], most: int
) -> tuple[NewFactors, Losses]:
    """Return the factors of the weighted sum and their losses; `most` is the adapters' largest rank in the module."""
    with np.errstate(over="ignore", invalid="ignore"):
        grams = sum_grams(parts)
        energy = gram_norm(grams, lambda: stacked(parts))
        _refuse_overflow(name, energy, parts)
        low = None
        if recipe.method != "cat":
            if energy == 0.0:
                return _rounded(*_zero_update(*parts[0][:2]), dtype, name), Losses(0.0, 0.0, 0.0, 0.0)
            low = low_rank_sum(parts, grams, recipe.rank or most if recipe.method == "svd" else None, dtype)
        b, a, lost = balanced_sum(parts, grams, dtype) if low is None else low
    _refuse_unfit(name, b, a, dtype)
    lost = lost if energy > 0.0 else 0.0
    return NewFactors(b, a), Losses(energy, lost, energy, lost)


def _refuse_unfit(name: str, b: Array, a: Array, dtype: np.dtype[Any]) -> None:
    if not (all_finite(b) and all_finite(a)):
        raise AdapterError(f"{name}: the merged factors do not fit {dtype}", advice="name a wider --dtype")


def _parts(row: Row, weights: Sequence[float]) -> Iterator[Part]:
    """Yield (b, a, weight * scale) of each adapter that has the module."""
    for module, weight in zip(row, weights, strict=True):
        if module is not None:
            yield (*module.load(), weight * module.scale)


def _factors(plain: tuple[Array, Array], grams: Pair, recipe: Recipe, most: int) -> tuple[Array, Array]:
    """Return the factors of the weighted sum: stacked (`cat`), at its numerical rank (`linear`), or cut (`svd`)."""
    width = len(plain[1])
    if recipe.method == "cat":
        return _balanced(*plain)
    rank = numerical_rank(*plain, grams=grams) if recipe.method == "linear" else recipe.rank or most
    return _balanced(*plain) if rank >= width else reduced(*plain, 1.0, rank, grams=grams[::-1])


def _zero_update(b: Array, a: Array) -> tuple[Array, Array]:
    """Return factors of rank 1 of a zero update."""
    return np.zeros((len(b), 1)), np.zeros((1, a.shape[1]))


def _balanced(b: Array, a: Array) -> tuple[Array, Array]:
    """Scale column k of b and row k of a to about the same norm, by powers of two so that no digit is lost."""
    step = balancing(np.linalg.norm(b, axis=0), np.linalg.norm(a, axis=1))
    return b * step, a / step[:, None]


def _rounded(b: Array, a: Array, dtype: np.dtype[Any], name: str) -> NewFactors:
    with np.errstate(over="ignore"):
        rounded = NewFactors(b.astype(dtype), a.astype(dtype))
    _refuse_unfit(name, *rounded, dtype)
    return rounded
