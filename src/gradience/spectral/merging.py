"""Merges that act on the entries of dense updates: TIES and DARE. One module at a time, in float32.

TIES: Yadav et al. 2023, arXiv 2306.01708. DARE: Yu et al. 2023, arXiv 2311.03099.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["dropped", "elected_mean", "mask_generator", "trimmed"]

Singles: TypeAlias = npt.NDArray[np.float32]
Matrix: TypeAlias = npt.NDArray[Any]


def trimmed(update: Singles, density: float) -> Singles:
    """Return the update with all but the largest |entries| set to zero: floor(density * n) of n are kept (TIES, trim).

    Entries as large as the smallest that is kept are kept as well.
    """
    kept = int(density * update.size)
    if kept >= update.size:
        return update
    if kept == 0:
        return np.zeros_like(update)
    sizes = np.abs(update)
    least = np.partition(sizes.reshape(-1), update.size - kept)[update.size - kept]
    return np.where(sizes >= least, update, np.float32(0.0))


def dropped(update: Singles, density: float, generator: np.random.Generator) -> Singles:
    """Return the update with each entry kept with probability `density`, and those kept divided by it (DARE)."""
    if density >= 1.0:
        return update
    kept = generator.random(update.shape, dtype=np.float32) < np.float32(density)
    return np.where(kept, update / np.float32(density), np.float32(0.0))


def mask_generator(seed: int, adapter: int, module: str) -> np.random.Generator:
    """Return the generator of one adapter's mask in one module: the same whatever else is merged, in any order."""
    return np.random.default_rng([seed, adapter, zlib.crc32(module.encode())])


def elected_mean(updates: Callable[[], Iterable[Singles]]) -> Singles:
    """Return the disjoint mean of weighted, sparse updates (TIES, elect and merge).

    The sign of an entry is that of the updates' sum; the result is the mean over the updates that have this sign
    there, and zero where the sum is. `updates` is called twice, so that no more than one is held beside the sums.
    """
    total = _sum(updates())
    elected = np.sign(total)
    total[...] = 0.0
    count = np.zeros_like(total)
    for update in updates():
        agrees = (np.sign(update) == elected) & (elected != 0.0)
        total += np.where(agrees, update, np.float32(0.0))
        count += agrees
    return np.asarray(total / np.maximum(count, 1.0))


def _sum(updates: Iterable[Singles]) -> Singles:
    total: Singles | None = None
    for update in updates:
        total = update.copy() if total is None else total + update
    if total is None:
        raise ValueError("nothing to merge")
    return total
