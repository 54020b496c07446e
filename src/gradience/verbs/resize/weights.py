"""Resizing an adapter by its weights: the spectra of its pairs, the ranks that a criterion makes of them, the cuts.

The factors are read once, one module at a time, for their Gram matrices. Singular values, ranks and errors follow from
these. The new factors are computed only while the file is written (`factors`).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gradience.adapters.layout import Array
from gradience.adapters.pairs import StoredPair
from gradience.base.weights import BaseWeights, factors_of
from gradience.errors import AdapterError
from gradience.spectral.batch import Maps, Spectrum, spectra_and_maps
from gradience.spectral.grams import Floats
from gradience.verbs.resize.factors import Cut, Loss, ResizePlan, best_factors, bytes_beside, plan_of, refit_of
from gradience.verbs.resize.options import Target
from gradience.verbs.resize.subject import Subject

MEGABYTE: Final = 1_000_000


class PairSpectra(NamedTuple):
    """A pair, with each module's spectrum (scale included) and maps to its best factors in the file's orientation.

    Maps are None where only QR leads to the best factors.
    """

    pair: StoredPair
    spectra: list[Spectrum]
    maps: list[Maps | None]


def plan_by_weights(subject: Subject, target: Target, base: BaseWeights | None) -> ResizePlan:
    """Return the plan of the new file; `base` is needed for DoRA.

    Raises:
        AdapterError: the adapter is not finite, or does not fit the budget even at rank 1, or DoRA lacks its base.
    """
    spectra = spectra_of(subject.pairs)
    ranks = ranks_for(target, subject, spectra)
    return plan_of(subject, [_cut(subject, one, ranks[one.pair.path], base) for one in spectra], {})


def spectra_of(pairs: Sequence[StoredPair]) -> list[PairSpectra]:
    """Return the pairs with their spectra and maps.

    Raises:
        AdapterError: a module is not finite.
    """
    modules = [module for pair in pairs for module in pair.modules]
    spectra, maps = spectra_and_maps([factors_of(module) for module in modules])
    for module, spectrum in zip(modules, spectra, strict=True):
        if not spectrum.finite:
            raise AdapterError(
                f"{module.name} holds NaN or infinite numbers: it has no best update of a lower rank",
                advice="'gradience audit' names all such modules",
            )
    rest, turned = iter(spectra), iter(maps)
    return [
        PairSpectra(pair, [next(rest) for _ in pair.modules], [_in_file(pair, next(turned)) for _ in pair.modules])
        for pair in pairs
    ]


def _in_file(pair: StoredPair, maps: Maps | None) -> Maps | None:
    """The maps in the file's orientation; those of the transposed update are the transposes, and swapped."""
    return Maps(maps.right.T, maps.left.T) if maps is not None and pair.layout.transposed else maps


def ranks_for(target: Target, subject: Subject, spectra: Sequence[PairSpectra]) -> dict[str, int]:
    """Return the new rank of each path, from 1 to its present rank; pairs that share a path share the largest.

    Raises:
        AdapterError: the budget is too small even for rank 1.
    """
    if target.criterion == "max_params":
        return _affordable(spectra, int(target.value), lambda pair: pair.layout.params_per_rank, "parameters")
    if target.criterion == "max_mb":
        beside = bytes_beside(subject)
        budget = int(target.value * MEGABYTE) - beside
        return _affordable(spectra, budget, subject.bytes_per_rank, f"bytes beside the {beside} of the rest")
    ranks: dict[str, int] = {}
    for one in spectra:
        own = [_rank_of(target, spectrum) for spectrum in one.spectra]
        ranks[one.pair.path] = max(ranks.get(one.pair.path, 1), *own)
    return ranks


def _rank_of(target: Target, spectrum: Spectrum) -> int:
    """The rank of one module; for `like_suggested` as the audit suggests it: k@90%, its own for a zero update."""
    if target.criterion != "like_suggested":
        return module_rank(target, spectrum.sigma)
    return spectrum.energy_ranks[0] if spectrum.spectral_norm > 0.0 else len(spectrum.sigma)


def _affordable(
    spectra: Sequence[PairSpectra], budget: int, cost_of: Callable[[StoredPair], int], unit: str
) -> dict[str, int]:
    groups: dict[str, PriceList] = {}
    for one in spectra:
        gains: Floats = np.sum([s.sigma**2 for s in one.spectra], axis=0)
        cost, shared = cost_of(one.pair), groups.get(one.pair.path)
        groups[one.pair.path] = (
            PriceList(gains, cost) if shared is None else PriceList(shared.gains + gains, shared.cost + cost)
        )
    ranks = ranks_within(groups, budget)
    if ranks is None:
        least = sum(group.cost for group in groups.values())
        raise AdapterError(
            f"the budget leaves {budget} {unit}, and rank 1 of every module needs {least}", advice="give a larger one"
        )
    return ranks


def module_rank(target: Target, sigma: Floats) -> int:
    """Return the rank of one module by a criterion that looks at modules singly: at least 1, at most its own rank.

    `sigma` holds the module's singular values, largest first. For a zero update the rank is 1, except by `rank`.
    """
    r = len(sigma)
    if target.criterion == "rank":
        return min(int(target.value), r)
    if r == 0 or sigma[0] <= 0.0:
        return 1
    return max(1, min(r, _reaching((sigma / sigma[0]) ** 2, target.value)))


def _reaching(shares: Floats, least: float) -> int:
    """Return the least k whose first k entries sum to the share `least` of the total, up to the sum's rounding."""
    slack = 1.0 - len(shares) * np.finfo(np.float64).eps
    return int(np.argmax(np.cumsum(shares) >= least * np.sum(shares) * slack)) + 1


class PriceList(NamedTuple):
    """The price list of a group: gains[k] is what rank k + 1 adds to the sum of sigma^2, and cost is that of one rank.

    The gains do not increase. The cost is in the unit of the budget.
    """

    gains: npt.NDArray[np.float64]
    cost: int


def ranks_within(groups: Mapping[str, PriceList], budget: int) -> dict[str, int] | None:
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


def _next(name: str, group: PriceList, rank: int) -> tuple[float, str] | None:
    if rank >= len(group.gains) or group.gains[rank] <= 0.0:
        return None
    return -float(group.gains[rank]) / group.cost, name


def _cut(subject: Subject, one: PairSpectra, rank: int, base: BaseWeights | None) -> Cut:
    """The pair at its new rank; for DoRA the loss is that of the refitted magnitudes."""
    pair, module = one.pair, one.pair.first
    if "lora_magnitude_vector" in module.keys and rank < pair.layout.rank:
        # Fitted for its errors now and again when it is written: the factors of all modules may not fit in memory.
        fit = refit_of(subject.tensors, pair, rank, base)
        return Cut(pair, rank, [Loss(fit.lost, fit.energy)], partial(_refitted, subject, pair, rank, base))
    energies = [s.frobenius_norm * s.frobenius_norm for s in one.spectra]
    if math.inf in energies:
        raise AdapterError(
            f"{module.name}: the square of its norm is over the range of float64", advice="lower its alpha"
        )
    losses = [
        Loss(energy * float(s.relative_errors[rank]) ** 2, energy)
        for s, energy in zip(one.spectra, energies, strict=True)
    ]
    return Cut(pair, rank, losses, best_factors(subject, pair, rank, one.maps))


def _refitted(subject: Subject, pair: StoredPair, rank: int, base: BaseWeights | None) -> dict[str, Array]:
    fit = refit_of(subject.tensors, pair, rank, base)
    names = (pair.layout.b_name, pair.layout.a_name, pair.first.keys["lora_magnitude_vector"])
    return dict(zip(names, (fit.b, fit.a, fit.magnitude), strict=True))
