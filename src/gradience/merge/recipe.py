"""What was asked for, checked: weights, rank and density that go with the method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, get_args

from gradience.merge.methods import DENSE, Recipe
from gradience.schema.merge import MergeMethod

__all__ = ["TIES_DENSITY", "recipe_of", "weights_of"]

TIES_DENSITY: Final = 0.2  # arXiv 2306.01708: the top 20 % of the entries, where nothing can be validated
_LARGEST: Final = 1e6  # of a weight: no sum of updates is meant by more, and products of float32 stay in range
_MEANS: Final = frozenset({"ties", "dare_ties"})


def weights_of(n: int, weights: Sequence[float] | None, method: MergeMethod = "linear") -> tuple[float, ...]:
    """Return a weight for each of n adapters: those given, or 1/n for a sum and 1 for a mean.

    Raises:
        ValueError: there are not n, or one is not finite, or beyond reason.
    """
    if weights is None:
        return ((1.0 if method in _MEANS else 1.0 / n) if n else 0.0,) * n
    if len(weights) != n:
        raise ValueError(f"{len(weights)} weights for {n} adapters: expected one for each")
    if not all(math.isfinite(weight) for weight in weights):
        raise ValueError(f"weights are {list(weights)}: expected finite numbers")
    if any(abs(weight) > _LARGEST for weight in weights):
        raise ValueError(f"weights are {list(weights)}: expected at most {_LARGEST:g} in size")
    return tuple(float(weight) for weight in weights)


def recipe_of(
    n: int,
    method: MergeMethod,
    *,
    weights: Sequence[float] | None,
    rank: int | None,
    density: float | None,
    seed: int,
) -> Recipe:
    """Return the recipe for n adapters.

    Raises:
        ValueError: an option is out of range, or does not go with the method.
    """
    if method not in get_args(MergeMethod):
        raise ValueError(f"method is {method!r}: expected one of {', '.join(get_args(MergeMethod))}")
    if rank is not None and method in {"linear", "cat"}:
        raise ValueError(f"{method} is exact and takes no rank: svd gives the best approximation of one")
    if rank is not None and rank < 1:
        raise ValueError(f"rank is {rank}: expected at least 1")
    if density is not None and method not in DENSE:
        raise ValueError(f"{method} drops no entries and takes no density")
    if density is not None and not 0.0 < density <= 1.0:
        raise ValueError(f"density is {density}: expected over 0 and at most 1")
    if density is None and method in DENSE:
        if method != "ties":
            raise ValueError(f"{method} needs a density: its paper keeps as little as 0.1 of the entries")
        density = TIES_DENSITY
    return Recipe(method, weights_of(n, weights, method), rank, density, seed)
