"""What was asked for, and the rank that it gives one module by its singular values.

The `sv_*` criteria are those of sd-scripts' networks/resize_lora.py, by its names.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from gradience.schema.writing import Criterion
from gradience.spectral.grams import Floats

_RANGES: Final[dict[Criterion, tuple[Callable[[float], bool], str]]] = {
    "rank": (lambda x: x >= 1 and x == int(x), "a whole number from 1"),
    "energy": (lambda x: 0.0 < x <= 1.0, "above 0, at most 1"),
    "rel_error": (lambda x: 0.0 <= x < 1.0, "from 0, under 1"),
    "max_mb": (lambda x: x > 0.0, "above 0"),
    "max_params": (lambda x: x >= 1 and x == int(x), "a whole number from 1"),
    "like_suggested": (lambda x: x == 1, "true"),
    "kl": (lambda x: x > 0.0, "above 0, in nats"),
    "sv_ratio": (lambda x: x >= 1.0, "from 1"),
    "sv_fro": (lambda x: 0.0 < x <= 1.0, "above 0, at most 1"),
    "sv_cumulative": (lambda x: 0.0 < x <= 1.0, "above 0, at most 1"),
}


class Target(NamedTuple):
    """One criterion and its number."""

    criterion: Criterion
    value: float


def target_of(given: dict[str, Any]) -> Target:
    """Return the one criterion that is given; None and False stand for one that is not.

    Raises:
        ValueError: none or several are given, or the number is out of its range.
    """
    found = [
        (name, value)
        for name in get_args(Criterion)
        if (value := given.get(name)) is not None and value is not False  # a number 0.0 is given, and equals False
    ]
    if len(found) != 1:
        named = ", ".join(name for name, _ in found) or "none"
        message = f"expected exactly one criterion of {', '.join(get_args(Criterion))}; got {named}"
        raise ValueError(message)
    name, value = found[0]
    holds, wanted = _RANGES[name]
    if not (isinstance(value, int | float) and math.isfinite(value) and holds(value)):
        message = f"{name} is {value}, expected {wanted}"
        raise ValueError(message)
    return Target(name, float(value))


def module_rank(target: Target, sigma: Floats) -> int:
    """Return the rank that a criterion of single modules gives one of them, at least 1 and at most its own.

    `sigma` are the module's singular values, largest first; one that is zero gets 1, or `rank`.
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
    """Return the least k whose cumulative sum reaches the share of the total, but for the sum's own rounding."""
    slack = 1.0 - len(shares) * np.finfo(np.float64).eps
    return int(np.argmax(np.cumsum(shares) >= least * np.sum(shares) * slack)) + 1


def _within(s: Floats, error: float) -> int:
    """Return the least k with sqrt(sum_{i>k} sigma^2 / sum sigma^2) <= error; tails are summed from the small end."""
    tails = np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0)
    return int(np.argmax(np.sqrt(tails / tails[0]) <= error))


_RULES: Final[dict[str, Callable[[Floats, float], int]]] = {
    "energy": lambda s, share: _reaching(s**2, share),
    "rel_error": _within,
    "sv_ratio": lambda s, ratio: int(np.count_nonzero(s > 1.0 / ratio)),
    "sv_fro": lambda s, share: _reaching(s**2, share**2),
    "sv_cumulative": _reaching,
}


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
    return -float(group.gains[rank]) / group.cost, name
