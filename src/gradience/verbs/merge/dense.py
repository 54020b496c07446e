"""The update that TIES or DARE defines: a dense matrix, for they work on single entries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from gradience.errors import AdapterError
from gradience.spectral.merging import Singles, dropped, elected_mean, mask_generator, trimmed

if TYPE_CHECKING:
    from gradience.verbs.merge.methods import NewFactors, Part, Recipe, Row

_ROWS: Final = 1024  # of a dense matrix, compared at a time


def dense_target(name: str, row: Row, parts: Sequence[Part], recipe: Recipe) -> npt.NDArray[np.float64]:
    """Return the update that TIES or DARE defines from the dense ones, in float64."""
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


def difference(target: npt.NDArray[np.float64], rounded: NewFactors) -> float:
    """Return the squared norm of target - b a, some rows at a time."""
    a = rounded.a.astype(np.float64)
    total = 0.0
    for start in range(0, len(target), _ROWS):
        span = slice(start, start + _ROWS)
        total += float(np.sum((target[span] - rounded.b[span].astype(np.float64) @ a) ** 2))
    return total
