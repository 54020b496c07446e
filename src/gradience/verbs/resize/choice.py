"""Which pieces of an adapter are kept: by what they do to the outputs for each parameter, over all modules at once.

The pieces are put in one order, and a choice is its beginning: of as many parameters as a budget has, or the shortest
whose measured divergence is within a tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_STEPS: Final = 100  # the shortest beginning is sought to within one in so many pieces: a measurement is a pass


Kept: TypeAlias = Mapping[str, list[int]]
"""The pieces of each module that are kept, in ascending order; none where the module leaves the adapter."""


class Candidate(NamedTuple):
    """A module's pieces: the gate of each in each sequence (n, r), the parameters of one, and how many must stay."""

    gates: Floats
    cost: int
    least: int = 0


class Order(NamedTuple):
    """All pieces as (module, index), the most useful for their parameters first; every choice has the `least` first."""

    pieces: list[tuple[str, int]]
    least: int


def ordered(candidates: Mapping[str, Candidate]) -> Order:
    """The pieces by their score per parameter; the score is the mean over sequences of the squared gate."""
    found: list[tuple[bool, float, tuple[str, int]]] = []
    for name, one in candidates.items():
        scores = np.mean(one.gates**2, axis=0)
        for place, index in enumerate(np.argsort(-scores, kind="stable").tolist()):
            found.append((place >= one.least, -float(scores[index]) / max(one.cost, 1), (name, index)))
    found.sort(key=lambda entry: entry[:2])
    least = sum(not entry[0] for entry in found)
    return Order([entry[2] for entry in found], max(1, least))  # an adapter of nothing is none


def predicted_kl(candidates: Mapping[str, Candidate], kept: Kept, predictions: int) -> float:
    """The KL in nats per prediction that leaving out the rest costs: 1/2 E[(sum of h^T (I - M) z)^2] over sequences.

    It is of the sequences that the pieces were chosen by, hence low: for choosing, not for reporting.
    """
    left = np.sum([np.delete(one.gates, kept[name], axis=1).sum(axis=1) for name, one in candidates.items()], axis=0)
    return 0.5 * float(np.sum(left**2)) / max(predictions, 1)


def predicted_by_module(candidates: Mapping[str, Candidate], kept: Kept, predictions: int) -> dict[str, float]:
    """The same of each module alone, were the others whole."""
    return {name: predicted_kl({name: one}, kept, predictions) for name, one in candidates.items()}


def first_pieces(order: Order, count: int) -> Kept:
    """The pieces of each module among the first so many."""
    kept: dict[str, list[int]] = {name: [] for name, _ in order.pieces}
    for name, index in order.pieces[:count]:
        kept[name].append(index)
    return {name: sorted(some) for name, some in kept.items()}


def within(order: Order, budget: int, costs: Mapping[str, int]) -> Kept | None:
    """The pieces in order as far as the budget has room for each; None where it has none for those that must be."""
    kept: dict[str, list[int]] = {name: [] for name, _ in order.pieces}
    left = budget
    for place, (name, index) in enumerate(order.pieces):
        if costs[name] <= left:
            kept[name].append(index)
            left -= costs[name]
        elif place < order.least:
            return None
    return {name: sorted(some) for name, some in kept.items()}


def shortest(order: Order, tolerance: float, measured: Callable[[int], float]) -> int:
    """The least number of first pieces whose measured KL is within the tolerance, to one in `_STEPS` of all.

    By bisection, as if KL fell with every piece; all pieces together are the adapter itself.
    """
    low, high = order.least - 1, len(order.pieces)  # low is too few, or nothing; high is enough
    step = max(1, len(order.pieces) // _STEPS)
    while high - low > step:
        middle = (low + high) // 2
        low, high = (low, middle) if measured(middle) <= tolerance else (middle, high)
    return high
