"""The best factors of a lower rank by the Gram route: long axes are only multiplied, never orthogonalised.

With A A^T = R R^T, the update is B A = (B R)(R^-1 A), the second of orthonormal rows: the eigenvectors Y of
R^T B^T B R are its right singular vectors there. So b' = B M and a' = N A, with M and N of r x k, both without an
inverse of anything but the singular values that are kept. Where the Gram route cannot be trusted, QR of both
factors (`lowrank.decomposed`) does the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from gradience.spectral.lowrank import Floats, Matrix, decomposed
from gradience.spectral.update import TRUSTED_SHARE, gram_core

__all__ = ["Maps", "gram_maps", "reduced"]

_TILE: Final = 1 << 20  # elements cast to float64 at a time (8 MiB)
_FLOOR: Final = 1e-7  # of sigma_1: below it a squared singular value is rounding; left out, it costs no more than that


class Maps(NamedTuple):
    """b' = B @ left and a' = right @ A; left (r, k), right (k, r), in float64."""

    left: Floats
    right: Floats


def reduced(
    b: Matrix, a: Matrix, scale: float, rank: int, *, grams: tuple[Floats, Floats] | None = None, half: bool = False
) -> tuple[Matrix, Matrix]:
    """Return (b', a') with scale * b' @ a' the best approximation of scale * b @ a of that rank.

    b (d_out, r) and a (r, d_in) of any real dtype, finite; the sizes of b' and a' are shared evenly. Memory
    beside the results is a few tiles. Within 1e-6 of the dense optimum, relative to the update's norm.

    Args:
        b: the left factor.
        a: the right factor.
        scale: of the product; not part of b' and a'.
        rank: k.
        grams: A A^T and B^T B, both (r, r) in float64, where they are known.
        half: the result will be stored in 16 bits, so float32 products do.
    """
    gram_a, gram_b = (_gram(a), _gram(b.T)) if grams is None else grams
    maps = gram_maps(gram_a, gram_b, rank)
    if maps is None:
        return _by_qr(b, a, scale, rank)
    kind = np.float32 if half else np.float64
    left, right = maps.left.astype(kind), maps.right.astype(kind)
    new_b, new_a = np.empty((len(b), rank), kind), np.empty((rank, a.shape[1]), kind)
    for span, tile in _tiles(b, kind):
        np.matmul(tile, left, out=new_b[span])
    for span, tile in _tiles(a.T, kind):
        new_a[:, span] = right @ tile.T
    return new_b, new_a


def gram_maps(gram_a: Floats, gram_b: Floats, rank: int) -> Maps | None:
    """Return the maps to the best factors of that rank from A A^T and B^T B, or None where QR must decide.

    Columns beyond the numerical rank are zero.
    """
    core = gram_core(gram_a, gram_b)
    r = len(gram_a)
    squares, vectors = np.linalg.eigh(core.squared)
    squares, vectors = np.maximum(squares[::-1], 0.0), vectors[:, ::-1]
    left, right = np.zeros((r, rank)), np.zeros((rank, r))
    if not (core.size_a > 0.0 and core.size_b > 0.0):
        return Maps(left, right)
    if squares[0] < TRUSTED_SHARE * core.largest:
        return None
    kept = min(rank, int(np.count_nonzero(squares > _FLOOR**2 * squares[0])))
    unit = np.sqrt(squares[:kept])
    turned = core.root @ vectors[:, :kept]
    size_a, size_b = np.sqrt(core.size_a), np.sqrt(core.size_b)
    root = np.sqrt(unit * size_a * size_b)  # of sigma: each factor gets half of it
    left[:, :kept] = turned * (root / (unit * size_b)) / core.balance[:, None]
    right[:kept] = (turned.T @ core.unit_b) * (root / (unit**2 * size_a))[:, None] * core.balance
    return Maps(left, right)


def _by_qr(b: Matrix, a: Matrix, scale: float, rank: int) -> tuple[Floats, Floats]:
    return decomposed(b, a, scale).factors(rank, scale)


def _gram(x: Matrix) -> Floats:
    """Return X X^T of (r, d), in float64, a tile at a time."""
    total = np.zeros((len(x), len(x)))
    for _, tile in _tiles(x.T, np.float64):
        total += tile.T @ tile
    return total


def _tiles(x: Matrix, kind: type[np.float32 | np.float64]) -> Iterator[tuple[slice, Matrix]]:
    """Yield the rows of (d, r) as floats of that kind, some at a time, with where they are."""
    rows = max(1, _TILE // max(1, x.shape[1]))
    for start in range(0, len(x), rows):
        span = slice(start, start + rows)
        yield span, x[span].astype(kind)
