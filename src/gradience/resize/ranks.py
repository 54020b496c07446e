"""A rank for each path: a criterion of single modules, the audit's suggestion, or a budget for the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np

from gradience.adapters.tensors import DTYPES
from gradience.audit.rows import module_row
from gradience.errors import AdapterError
from gradience.policy.rank_pattern import rank_pattern
from gradience.resize.budget import Priced, ranks_within
from gradience.resize.criteria import Target, module_rank
from gradience.resize.pairs import Pair
from gradience.schema.audit import ModuleAudit
from gradience.spectral.batch import Spectrum
from gradience.spectral.lowrank import Floats

__all__ = ["Measured", "ranks_of"]

_MEGABYTE: Final = 1_000_000


class Measured(NamedTuple):
    """A pair; of each of its modules the spectrum, scaled, and A A^T and B^T B in the file's orientation."""

    pair: Pair
    spectra: tuple[Spectrum, ...]
    grams: tuple[tuple[Floats, Floats], ...]


def ranks_of(target: Target, measured: Sequence[Measured], *, other_bytes: int, dtype: str | None) -> dict[str, int]:
    """Return the rank of each path, from 1 and at most the present one; what shares a path gets the largest.

    `other_bytes` is what the file holds beside the factors' data; `dtype` (of safetensors) is that of the new ones.

    Raises:
        AdapterError: the budget does not even hold rank 1.
    """
    if target.criterion == "max_params":
        return _within(measured, int(target.value), lambda pair: pair.cost, "parameters")
    if target.criterion == "max_mb":
        budget = int(target.value * _MEGABYTE) - other_bytes
        return _within(
            measured, budget, lambda pair: _bytes(pair, dtype), f"bytes beside the {other_bytes} of the rest"
        )
    if target.criterion == "like_suggested":
        return _suggested(measured)
    return _largest((one.pair.path, module_rank(target, s.sigma)) for one in measured for s in one.spectra)


def _largest(ranks: Iterable[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for path, rank in ranks:
        found[path] = max(rank, found.get(path, 1))
    return found


def _suggested(measured: Sequence[Measured]) -> dict[str, int]:
    """Return what `gradience audit --suggest-per-layer` reports."""
    rows: list[ModuleAudit] = []
    paths: list[str] = []
    for one in measured:
        for module, spectrum in zip(one.pair.modules, one.spectra, strict=True):
            rows.append(module_row(module, spectrum, top=0))
            paths.append(one.pair.path)
    pattern = rank_pattern(rows, bytes_per_param=0.0)
    if pattern is None:
        raise AdapterError("the audit suggests no ranks for this adapter", advice="give --rank N")
    return _largest((path, row.rank) for path, row in zip(paths, pattern.modules, strict=True))


def _within(measured: Sequence[Measured], budget: int, cost_of: Callable[[Pair], int], what: str) -> dict[str, int]:
    groups: dict[str, Priced] = {}
    for one in measured:
        gains = np.sum([s.sigma**2 for s in one.spectra], axis=0)
        cost = cost_of(one.pair)
        held = groups.get(one.pair.path)
        groups[one.pair.path] = Priced(gains, cost) if held is None else Priced(held.gains + gains, held.cost + cost)
    ranks = ranks_within(groups, budget)
    if ranks is None:
        least = sum(group.cost for group in groups.values())
        raise AdapterError(
            f"the budget leaves {budget} {what}, and rank 1 of every module needs {least}", advice="give a larger one"
        )
    return ranks


def _bytes(pair: Pair, dtype: str | None) -> int:
    return sum(info.size // pair.r * DTYPES[dtype or info.dtype].itemsize for info in (pair.a, pair.b))
