"""Bounds on the squared overlaps of vectors y with the left singular vectors of W, from a block Krylov space.

The squared overlaps are the atoms of the spectral measure of W W^T seen from y. Let u, v be singular vectors for
sigma, and t = (P^T u, Q^T v), of length at most sqrt(2). All but the last block of rows of the augmented matrix
[0 C; C^T 0] - sigma are zero at t, since the recurrence holds there exactly. So y's overlap is at most what the space
of such t has of y: the Christoffel function, in blocks. For a whole interval [c - h, c + h] of sigma the rows are
within h |t| of zero at c, and

    overlap^2 <= |t|^2 (1 + s h^2) [(1 + s M^T M)^-1]_yy,    M those rows less c, for every s > 0

which the eigenvectors of the small matrix give in closed form. Rounding widens h. The same of W^T y on W^T W, divided
by sigma^2, has no part in the null space of W^T, and W W^T alone does not count a vector twice near zero: the better
bounds of small sigma. From below: the weight of a Ritz vector that has settled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from gradience.spectral.krylov import Bidiagonal, Floats
from gradience.spectral.lanczos import Ritz, ritz_of

_SETTLED: Final = 1e-4  # residual of a Ritz value, of the value itself: it belongs to one singular vector
_ROUNDING: Final = 2e-6  # of sigma_1: how well float32 products obey the recurrence, and the width of no interval
_RESOLVED: Final = 1e-3  # of sigma_1: below it float32 products tell few singular vectors apart
_INTERVALS: Final = 160  # from there to sigma_1, at first
_SHARE: Final = 0.05  # s h^2: what the width of an interval adds to the bound of its middle


class Atoms(NamedTuple):
    """Bounds on max_i <u_i, y>^2 for each vector; `upper` is only as sharp as the given thresholds need."""

    lower: Floats
    upper: Floats


class _Measure(NamedTuple):
    """A small symmetric matrix by its eigenvectors: values (n,), first k rows (k, n), last block of rows (c, n)."""

    values: Floats
    first: Floats
    last: Floats


def atoms(basis: Bidiagonal, k: int, thresholds: Sequence[float]) -> Atoms:
    """Bounds for the first k vectors of the block at which the bases begin.

    `thresholds` of the squared overlap: the upper bound is searched until it is shown to be under the next one above
    the lower bound, or cannot be.
    """
    ritz = ritz_of(basis)
    first, largest = ritz.left[:k], float(ritz.sigma[0])
    if largest == 0.0:
        return Atoms(np.zeros(k), np.zeros(k))
    settled = (ritz.residuals <= _SETTLED * ritz.sigma) & (ritz.sigma > _RESOLVED * largest)
    lower = np.max(first**2, axis=1, where=settled, initial=0.0)
    under = np.sum(first**2, axis=1, where=ritz.sigma <= _RESOLVED * largest)
    if np.all(lower >= max(thresholds)):
        return Atoms(lower, np.ones(k))
    upper = _search(_measures(basis, ritz, k), largest, np.maximum(lower, under), thresholds)
    return Atoms(lower, np.minimum(np.maximum(lower, upper), 1.0))


class _Measures(NamedTuple):
    """Of the augmented matrix, with eigenvalues +-sigma and zeros; of W W^T on P; of W^T W on Q, begun at W^T y."""

    both: _Measure
    outer: _Measure
    inner: _Measure


def _measures(basis: Bidiagonal, ritz: Ritz, k: int) -> _Measures:
    c = basis.width
    sigma, left, right = ritz.sigma, ritz.left, ritz.right
    null = np.linalg.qr(left, mode="complete")[0][:, len(sigma) :]
    twice = np.concatenate([left, left, np.sqrt(2.0) * null], axis=1) / np.sqrt(2.0)
    whole = np.concatenate([left, null], axis=1)
    zeros = np.zeros(c)
    return _Measures(
        _Measure(np.concatenate([sigma, -sigma, zeros]), twice[:k], twice[-c:]),
        _Measure(np.concatenate([sigma**2, zeros]), whole[:k], whole[-c:]),
        _Measure(sigma**2, left[:k] * sigma, right[-c:]),
    )


def _search(measures: _Measures, largest: float, known: Floats, thresholds: Sequence[float]) -> Floats:
    """Return upper bounds over all sigma that float32 resolves, as sharp as the thresholds above `known` need.

    Intervals where a bound is not under the next threshold are halved, as long as the bound at their middles is.
    """
    steps = np.append(np.sort(thresholds), np.inf)
    edges = np.geomspace(_RESOLVED * largest, largest * (1.0 + _SETTLED), _INTERVALS + 1)
    middle, half = (edges[1:] + edges[:-1]) / 2.0, (edges[1:] - edges[:-1]) / 2.0
    upper = known
    while len(middle):
        least = np.maximum(_SETTLED / 2.0 * middle, _ROUNDING * largest)
        wide, sharp = (_over(measures, middle, x, largest) for x in (half, np.minimum(half, least)))
        known = np.maximum(known, sharp.max(axis=0))
        goals = steps[np.searchsorted(steps, known, side="right")]
        halved = np.any(wide >= goals, axis=1) & (half > least)
        upper = np.maximum(upper, wide[~halved].max(axis=0, initial=0.0))
        half = np.tile(half[halved] / 2.0, 2)
        middle = np.tile(middle[halved], 2) + np.repeat([-1.0, 1.0], len(half) // 2) * half
    return upper


def _over(measures: _Measures, middle: Floats, half: Floats, largest: float) -> Floats:
    """Return bounds (intervals, k) on the atoms within each interval [middle - half, middle + half] of sigma."""
    least = np.maximum(middle - half, np.finfo(np.float64).tiny)
    rounding = _ROUNDING * largest
    of_both = 2.0 * _bound(measures.both, middle, half + rounding)
    square, width = middle**2 + half**2, 2.0 * middle * half + rounding * (largest + middle)
    of_outer = _bound(measures.outer, square, width)
    of_inner = _bound(measures.inner, square, width) / least[:, None] ** 2
    least_of_all: Floats = np.minimum(of_both, np.minimum(of_outer, of_inner))
    return least_of_all


def _bound(measure: _Measure, middle: Floats, half: Floats) -> Floats:
    """Return (1 + s h^2) [(1 + s M^T M)^-1]_yy for each interval and vector, at s h^2 = 0.05.

    M^T M is (T - c) (1 - E E^T) (T - c), E the last block: in T's eigenvectors a diagonal matrix less one of rank c.
    """
    values, first, last = measure
    k, c, n = len(first), len(last), len(values)
    sharpness = _SHARE / half**2
    gaps = values - middle[:, None]
    weights = 1.0 / (1.0 + sharpness[:, None] * gaps**2)
    own = weights @ (first**2).T
    mixed = ((weights * gaps) @ (first[:, None] * last).reshape(k * c, n).T).reshape(-1, k, c)
    end = (weights @ (last[:, None] * last).reshape(c * c, n).T).reshape(-1, c, c)
    solved = np.linalg.solve(end, np.swapaxes(mixed, 1, 2))
    bound: Floats = (1.0 + _SHARE) * (own + sharpness[:, None] * np.einsum("pkc,pck->pk", mixed, solved))
    return bound
