"""DoRA at a lower rank: W' = m V / norm(V) with V = W + s B A, norms over each output's row.

With the row weights D = m / norm(V) held, the best factors are those of D s B A, divided by D again; then the
magnitude of each row is fitted anew by least squares: m'_i = <W'_i, V'_i> / norm(V'_i). A heuristic in that the two
are not fitted together; the error that is reported is the one that results.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from gradience.adapters.modules import Array
from gradience.spectral.lowrank import Floats
from gradience.spectral.reduced import reduced

__all__ = ["Refit", "refitted"]

_TILE: Final = 1 << 20  # elements of W in float64 at a time


class Refit(NamedTuple):
    """New factors and magnitudes, and the squared norms of what they miss and of the update itself."""

    b: Floats
    a: Floats
    magnitude: Floats
    lost: float
    energy: float


def refitted(w: Array, b: Array, a: Array, magnitude: Array, *, scale: float, rank: int) -> Refit:
    """Return the module at that rank; w (d_out, d_in) is the base weight, an output a row, magnitude (d_out,)."""
    m = magnitude.astype(np.float64).reshape(-1)
    b, a = b.astype(np.float64), a.astype(np.float64)
    norms = np.concatenate([np.linalg.norm(v, axis=1) for _, _, v in _rows(w, b, a, scale)])
    weights = m / np.where(norms > 0.0, norms, 1.0)
    new_b, new_a = reduced(weights[:, None] * b, a, scale, rank)
    new_b = new_b / np.where(weights != 0.0, weights, np.inf)[:, None]  # a row of weight 0 is 0 whatever B says
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
    """Yield (rows, W there, V there) in float64, some rows at a time."""
    count = max(1, _TILE // w.shape[1])
    for start in range(0, len(w), count):
        span = slice(start, min(start + count, len(w)))
        part = w[span].astype(np.float64)
        yield span, part, part + scale * (b[span] @ a)
