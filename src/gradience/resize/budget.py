"""Ranks under a budget for the whole: the largest sum of sigma^2 kept for so many bytes or parameters.

One more rank of a group (the modules that must share a rank) costs the same at every rank and gains less at each:
its next sigma^2. So taking whatever gains most per cost, as long as it fits, is the optimum of the continuous
problem, and in whole ranks at most one step's gain below the best possible.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Priced", "ranks_within"]


class Priced(NamedTuple):
    """A group: gains[k] is what rank k + 1 adds to the sum of sigma^2, not increasing; cost is of one rank."""

    gains: npt.NDArray[np.float64]
    cost: int


def ranks_within(groups: Mapping[str, Priced], budget: int) -> dict[str, int] | None:
    """Return a rank from 1 for each group, or None where the budget does not hold rank 1 of all.

    A direction of no gain is not bought.
    """
    left = budget - sum(group.cost for group in groups.values())
    if left < 0:
        return None
    ranks = dict.fromkeys(groups, 1)
    heap = [entry for name, group in groups.items() if (entry := _next(name, group, 1)) is not None]
    heapq.heapify(heap)
    while heap:
        _, name = heapq.heappop(heap)
        group = groups[name]
        if group.cost > left:
            continue  # a later rank of this group would not fit either
        left -= group.cost
        ranks[name] += 1
        if (entry := _next(name, group, ranks[name])) is not None:
            heapq.heappush(heap, entry)
    return ranks


def _next(name: str, group: Priced, rank: int) -> tuple[float, str] | None:
    if rank >= len(group.gains) or group.gains[rank] <= 0.0:
        return None
    return -float(group.gains[rank]) / max(group.cost, 1), name
