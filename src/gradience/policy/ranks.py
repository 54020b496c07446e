"""Which rank an update could be compressed to after training, conservatively.

A suggestion is a hypothesis about the weights, to be verified with an evaluation. It never says to
train with less rank: utilization falls with r by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from gradience.schema.audit import ModuleAudit, SuggestedRank

__all__ = ["BUCKETS", "bucket", "percentile", "suggest"]

BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def bucket(k: float, cap: int) -> int:
    """Return the least bucket that holds k, never above the present rank and never 0.

    >>> bucket(2.5, 8), bucket(6, 8), bucket(6, 6)
    (4, 8, 6)
    """
    return min(next((size for size in BUCKETS if size >= k), cap), cap)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value at the share (0..1) of the sorted sequence, interpolated linearly.

    >>> percentile([1, 2, 3, 10], 0.5)
    2.5
    """
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def suggest(modules: Sequence[ModuleAudit], rank: int) -> SuggestedRank:
    """Return what cutting every module to at most the rank would cost and save."""
    energies = [(module, float(module.frobenius_norm) ** 2) for module in modules]
    total = sum(energy for _, energy in energies)
    lost = sum(energy * _error(module, rank) ** 2 for module, energy in energies)
    kept = 1.0 - (lost / total if total else 0.0)
    return SuggestedRank(
        rank=rank,
        energy_kept=kept,
        relative_error=math.sqrt(1.0 - kept),
        relative_error_worst=max((_error(module, rank) for module in modules), default=0.0),
        params_saved=sum(max(m.r - rank, 0) * m.params // m.r for m in modules),
    )


def _error(module: ModuleAudit, rank: int) -> float:
    """Return the module's relative error at the rank; 0 where it is not above the rank."""
    return 0.0 if rank >= module.r else module.relative_errors[str(rank)]
