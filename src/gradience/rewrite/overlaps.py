"""Overlaps of subspaces as reports say them: phi at leading directions, beside what chance gives."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import numpy as np

from gradience.schema.compare_adapters import Overlap, SideOverlap
from gradience.spectral.subspace import Floats, chance_overlap, chance_overlap_sd, overlap, principal_cosines

__all__ = ["mean_overlaps", "side_overlap"]

_ANGLES: Final = 16


def side_overlap(cross: Floats, d: int) -> SideOverlap:
    """Return phi(k, k) for k = 1, 2, 4, ... and phi of the whole spans, in R^d, from all inner products U^T V."""
    k, n = cross.shape
    sizes = [(1 << e, 1 << e) for e in range(min(k, n).bit_length())]
    if (k, n) not in sizes:
        sizes.append((k, n))
    angles = np.degrees(np.arccos(principal_cosines(cross)[:_ANGLES]))
    return SideOverlap(overlaps=[_overlap(cross, i, j, d) for i, j in sizes], angles=[float(a) for a in angles])


def _overlap(cross: Floats, i: int, j: int, d: int) -> Overlap:
    return Overlap(
        i=i, j=j, phi=overlap(cross, i, j), chance=chance_overlap(i, j, d), chance_sd=chance_overlap_sd(i, j, d)
    )


def mean_overlaps(sides: Iterable[SideOverlap | None]) -> list[Overlap]:
    """Return the mean of phi(k, k) over the modules that have k directions, for each k = 1, 2, 4, ..."""
    by_size: dict[int, list[Overlap]] = {}
    for side in sides:
        for item in side.overlaps if side is not None else ():
            if item.i == item.j and item.i.bit_count() == 1:
                by_size.setdefault(item.i, []).append(item)
    return [
        Overlap(
            i=size,
            j=size,
            phi=min(1.0, math.fsum(item.phi for item in some) / len(some)),
            chance=math.fsum(item.chance for item in some) / len(some),
            chance_sd=math.sqrt(math.fsum(item.chance_sd**2 for item in some)) / len(some),
        )
        for size, some in sorted(by_size.items())
    ]
