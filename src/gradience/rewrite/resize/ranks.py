"""Ranks from singular values: of one module by a rule, of all modules within a budget.

The `sv_*` criteria are those of sd-scripts' networks/resize_lora.py, under the same names.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gradience.rewrite.options import Target
from gradience.spectral.grams import Floats


def module_rank(target: Target, sigma: Floats) -> int:
    """Return the rank of one module by a criterion that looks at modules singly: at least 1, at most its own rank.

    `sigma` holds the module's singular values, largest first. For a zero update the rank is 1, except by `rank`.
    """
    r = len(sigma)
    if target.criterion == "rank":
        return min(int(target.value), r)
    if r == 0 or sigma[0] <= 0.0:
        return 1
    ratio = sigma / sigma[0]
    ratio = np.where(ratio > r * np.finfo(np.float64).eps, ratio, 0.0)
    return max(1, min(r, _RULES[target.criterion](ratio, target.value)))


def _reaching(shares: Floats, least: float) -> int:
    """Return the least k whose first k entries sum to the share `least` of the total, up to the sum's rounding."""
    slack = 1.0 - len(shares) * np.finfo(np.float64).eps
    return int(np.argmax(np.cumsum(shares) >= least * np.sum(shares) * slack)) + 1


def _within(s: Floats, error: float) -> int:
    """Return the least k with sqrt(sum_{i>k} s_i^2 / sum s_i^2) <= error. Tails are summed from the small end."""
    tails = np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0)
    return int(np.argmax(np.sqrt(tails / tails[0]) <= error))


_RULES: Final[dict[str, Callable[[Floats, float], int]]] = {
    "energy": lambda s, share: _reaching(s**2, share),
    "rel_error": _within,
}


class Priced(NamedTuple):
    """The price list of a group: gains[k] is what rank k + 1 adds to the sum of sigma^2, and cost is that of one rank.

    The gains do not increase. The cost is in the unit of the budget.
    """

    gains: npt.NDArray[np.float64]
    cost: int


def ranks_within(groups: Mapping[str, Priced], budget: int) -> dict[str, int] | None:
    """Return a rank of at least 1 for each group, or None if the budget is too small for rank 1 in all groups.

    The budget is spent greedily on the rank with the largest gain per cost. A rank without gain is not bought.
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
            continue  # further ranks of this group cost the same, so they would not fit either
        left -= group.cost
        ranks[name] += 1
        if (entry := _next(name, group, ranks[name])) is not None:
            heapq.heappush(heap, entry)
    return ranks


def _next(name: str, group: Priced, rank: int) -> tuple[float, str] | None:
    if rank >= len(group.gains) or group.gains[rank] <= 0.0:
        return None
    return -float(group.gains[rank]) / group.cost, name
