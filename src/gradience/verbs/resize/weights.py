"""Resizing an adapter by its weights: the spectra of its pairs, the ranks that a criterion makes of them, the cuts.

The factors are read once, one module at a time, for their Gram matrices. Singular values, ranks and errors follow from
these. The new factors are computed only while the file is written (`factors`).

A plain pair becomes the best approximation at its rank (Eckart and Young). DoRA's magnitudes are relative to
norm(W + s B A), so a DoRA pair is cut against the base weight, and its magnitudes are fitted again by least squares.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gradience.adapters.layout import Array
from gradience.adapters.pairs import StoredPair
from gradience.base.weights import BaseWeights, factors_of
from gradience.errors import AdapterError
from gradience.io.safetensors import TensorSource
from gradience.spectral.batch import Maps, Spectrum, spectra_and_maps
from gradience.spectral.grams import Floats
from gradience.spectral.update import reduced
from gradience.verbs.resize.factors import Cut, Loss, ResizePlan, bytes_beside, plan_of
from gradience.verbs.resize.options import Target
from gradience.verbs.resize.subject import Subject, factor_names

MEGABYTE: Final = 1_000_000
_HALF: Final = ("BF16", "F16")
_TILE: Final = 1 << 20  # elements of W that are held in float64 at a time


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
    cuts = [_cut(subject, one, ranks[one.pair.path], base) for one in spectra]
    return plan_of(subject, cuts, {})


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


def best_factors(
    subject: Subject, pair: StoredPair, rank: int, maps: Sequence[Maps | None]
) -> Callable[[], dict[str, Array]]:
    """Return the computation of a pair's best approximation at a rank.

    `maps` leads each module to its best factors, in the file's orientation; None means that QR is needed. If the
    factors are stored in 16 bits, float32 products are enough.
    """
    half = all(subject.dtype_of(name) in _HALF for name in factor_names(pair))

    def compute() -> dict[str, Array]:
        bs, as_ = pair.layout.read(subject.tensors)
        scale = pair.first.scale or 1.0  # if alpha is 0, the product b @ a is cut as it is
        parts = [_reduced(b, a, scale, rank, one, half=half) for b, a, one in zip(bs, as_, maps, strict=True)]
        return pair.layout.named(_stack([b for b, _ in parts]), _stack([a for _, a in parts]), rank)

    return compute


def _reduced(b: Array, a: Array, scale: float, rank: int, maps: Maps | None, *, half: bool) -> tuple[Array, Array]:
    """Return the new (b, a) of one module.

    For a zero update they are zeros and the first rows of a; if a is zero, they are the first columns of b and zeros.
    """
    new_b, new_a = reduced(b, a, scale, rank, maps=maps, half=half)
    if new_b.any():
        return new_b, new_a
    if a.any():
        return np.zeros((len(b), rank)), a[:rank]
    return b[:, :rank], np.zeros((rank, a.shape[1]))


def _stack(arrays: Sequence[Array]) -> Array:
    """Return the arrays stacked along a new first axis. A single array is not copied."""
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


class Refit(NamedTuple):
    """New factors and magnitudes, with the squared Frobenius norms of their error and of the whole update."""

    b: Floats
    a: Floats
    magnitude: Floats
    lost: float
    energy: float


def refit_of(tensors: TensorSource, pair: StoredPair, rank: int, base: BaseWeights | None) -> Refit:
    """Return a DoRA module at a rank, fitted to the base weight.

    Raises:
        AdapterError: the base is missing, or does not fit.
    """
    module, layout = pair.first, pair.layout
    if base is None:
        raise AdapterError(
            f"{module.name} is DoRA: its magnitudes are relative to norm(W + s B A), which another B A changes",
            advice="give the base model with --base, and they are fitted anew",
        )
    name = module.base_name or f"{module.name}.weight"
    stored = base.find(name)
    if stored is None:
        raise AdapterError(f"the base has no {name}", advice="give the model the adapter was trained on")
    w = base.read(stored)
    b, a = (factors[0] for factors in layout.read(tensors))
    w = w.T if layout.transposed else w
    if w.shape != (len(b), a.shape[1]):
        raise AdapterError(
            f"{name} is of shape {list(w.shape)} in the base, and the update of {[len(b), a.shape[1]]}",
            advice="give the model the adapter was trained on",
        )
    magnitude = tensors.read(module.keys["lora_magnitude_vector"])
    return refitted(w, b, a, magnitude, scale=module.scale, rank=rank)


def refitted(w: Array, b: Array, a: Array, magnitude: Array, *, scale: float, rank: int) -> Refit:
    """Return a DoRA module at a rank, for the base weight w (d_out, d_in) and the magnitude (d_out,).

    DoRA's weight has rows m_i v_i / norm(v_i) with V = W + s B A. The new V' minimises the error of s B A, with row i
    weighted by m_i / norm(v_i). Each new magnitude is then the least squares fit of row i of V' to the old weight's.
    """
    m = magnitude.astype(np.float64).reshape(-1)
    b, a = b.astype(np.float64), a.astype(np.float64)
    norms = np.concatenate([np.linalg.norm(v, axis=1) for _, _, v in _rows(w, b, a, scale)])
    weights = m / np.where(norms > 0.0, norms, 1.0)
    new_b, new_a = reduced(weights[:, None] * b, a, scale, rank)
    new_b = new_b / np.where(weights != 0.0, weights, np.inf)[:, None]  # a row with weight 0 is 0 for any B
    fitted = np.zeros_like(m)
    lost = energy = 0.0
    new_rows = _rows(w, new_b, new_a, scale)
    for (span, part, v), (_, _, new_v) in zip(_rows(w, b, a, scale), new_rows, strict=True):
        aim = weights[span, None] * v
        size = np.linalg.norm(new_v, axis=1)
        unit = new_v / np.where(size > 0.0, size, 1.0)[:, None]
        fitted[span] = np.einsum("ij,ij->i", aim, unit)
        lost += float(np.sum((aim - fitted[span, None] * unit) ** 2))
        energy += float(np.sum((aim - part) ** 2))
    return Refit(new_b, new_a, fitted, lost, energy)


def _rows(w: Array, b: Floats, a: Floats, scale: float) -> Iterator[tuple[slice, Floats, Floats]]:
    """Yield (slice of rows, these rows of W, these rows of V) in float64, in blocks of rows."""
    count = max(1, _TILE // w.shape[1])
    for start in range(0, len(w), count):
        span = slice(start, start + count)
        part = w[span].astype(np.float64)
        yield span, part, part + scale * (b[span] @ a)
