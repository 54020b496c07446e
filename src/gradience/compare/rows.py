"""Two adapters over the modules they share: each module's row, and what the rows come to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from gradience.adapters.modules import Module
from gradience.adapters.names import layer_index, module_type
from gradience.rewrite.overlaps import mean_overlaps, side_overlap
from gradience.schema.compare_adapters import AdapterPair, LayerShare, ModulePair
from gradience.spectral.subspace import PairGeometry

__all__ = ["Whole", "adapter_pair", "module_pair", "whole_of"]


def module_pair(first: Module, second: Module, found: PairGeometry) -> ModulePair:
    """Return the row of one module in two adapters."""
    zero = found.finite and 0.0 in found.norms
    common: dict[str, Any] = {
        "name": first.name,
        "module_type": module_type(first.name),
        "layer": layer_index(first.name),
        "state": "zero" if zero else "ok" if found.finite else "non_finite",
        "shape": list(first.shape),
        "ranks": [first.r, second.r],
    }
    if not found.finite:
        return ModulePair(**common)
    one, two = found.norms
    return ModulePair(
        **common,
        frobenius_norms=[one, two],
        norm_ratio=two / one if one > 0.0 else None,
        cosine=found.cosine,
        relative_change=found.distance / one if one > 0.0 else None,
        output_side=None if zero else side_overlap(found.left, first.shape[0]),
        input_side=None if zero else side_overlap(found.right, first.shape[1]),
    )


class Whole(NamedTuple):
    """Sums over modules of two adapters: inner product, and squared norms (of all modules of each)."""

    inner: float
    first: float
    second: float

    @property
    def cosine(self) -> float | None:
        """The cosine between both, as one vector each."""
        size = math.sqrt(self.first * self.second)
        return max(-1.0, min(1.0, self.inner / size)) if size > 0.0 else None


def whole_of(found: Iterable[PairGeometry], first: float, second: float) -> Whole:
    """Return the sums; `first` and `second` are the squared norms of all of each adapter's finite updates."""
    return Whole(math.fsum(one.inner for one in found if one.finite), first, second)


def adapter_pair(
    names: tuple[str, str],
    rows: Sequence[ModulePair],
    found: Sequence[PairGeometry],
    energies: tuple[dict[str, float], dict[str, float]],
) -> AdapterPair:
    """Return what the rows come to.

    Args:
        names: of the two adapters.
        rows: the modules that both have.
        found: their geometry, in the same order.
        energies: the squared norm of each finite module of each adapter, by name.
    """
    one, two = (math.fsum(table.values()) for table in energies)
    whole = whole_of(found, one, two)
    alone = math.fsum(
        energy for mine, other in (energies, energies[::-1]) for name, energy in mine.items() if name not in other
    )
    changed = math.sqrt(alone + math.fsum(g.distance**2 for g in found if g.finite))
    shares = _shares(energies)
    return AdapterPair(
        first=names[0],
        second=names[1],
        compared=sum(row.state != "non_finite" for row in rows),
        cosine=whole.cosine,
        norm_ratio=math.sqrt(two / one) if one > 0.0 else None,
        relative_change=changed / math.sqrt(one) if one > 0.0 else None,
        energy_moved=min(1.0, sum(abs(s.first - s.second) for s in shares) / 2) if shares else None,
        output_side=mean_overlaps(row.output_side for row in rows),
        input_side=mean_overlaps(row.input_side for row in rows),
        layers=shares,
        modules=list(rows),
    )


def _shares(energies: tuple[dict[str, float], dict[str, float]]) -> list[LayerShare]:
    """Return each layer's share of either adapter's energy; none where one adapter has no energy."""
    totals = [math.fsum(table.values()) for table in energies]
    if not all(0.0 < total < math.inf for total in totals):
        return []
    sums: dict[int | None, list[float]] = {}
    for place, (table, total) in enumerate(zip(energies, totals, strict=True)):
        for name, energy in table.items():
            sums.setdefault(layer_index(name), [0.0, 0.0])[place] += energy / total
    order = sorted(sums, key=lambda layer: (layer is None, layer or 0))
    return [LayerShare(layer=layer, first=min(1.0, sums[layer][0]), second=min(1.0, sums[layer][1])) for layer in order]
