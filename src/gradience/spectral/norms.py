"""The largest singular value of a weight as it is stored: Lanczos on W^T W, a product one pass over W's rows.

A few rows at a time are made float32 and used for both halves of the product while they are in the cache: a pass
costs little more than reading W, and no second copy of it is held. Two vectors begin, since one does not see that the
second singular value is all but as large as the first; more cost more than the passes that they save.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from gradience.spectral.krylov import Floats, Matrix, Operator, as_float32, orthonormal
from gradience.spectral.lanczos import EXACT_UNDER, leading

_PART: Final = 1 << 17  # numbers of W that are widened at a time: 512 KiB stay in a core's cache
_WIDTH: Final = 2  # vectors, so that two values all but equal are told apart; thin matrix products cost more than this
_STEPS: Final = 64
_ERROR: Final = 2e-6  # of sigma
_LEAST: Final = 1e-15  # its square, spread over the entries of W^T W x, is far from where float32 loses digits


class SpectralNorm(NamedTuple):
    """The value, the passes over W that it took, and whether its residual says that it is within 1e-5."""

    value: float
    passes: int
    converged: bool


def spectral_norm(w: Matrix, *, seed: int = 0) -> SpectralNorm:
    """Return the largest singular value of a finite matrix of any float dtype.

    Blocks of eight vectors where two do not get there, or float32 does not hold squares; of small matrices a dense SVD.
    """
    if min(w.shape) > EXACT_UNDER:
        with np.errstate(over="ignore", invalid="ignore"):
            found = _iterated(_Rows(w), np.random.default_rng(seed))
        if found.converged and found.value > _LEAST:
            return found
    top = leading(Operator.of(as_float32(w)), seed=seed)
    return SpectralNorm(float(top.sigma[0]), 2 * top.steps, top.converged)


class _Rows:
    """W in parts of some rows, each in float32 until the next is asked for."""

    def __init__(self, w: Matrix) -> None:
        self.shape = w.shape
        self._w = w
        self._part = np.empty((min(max(1, _PART // w.shape[1]), len(w)), w.shape[1]), np.float32)

    def __iter__(self) -> Iterator[Matrix]:
        size = len(self._part)
        for first in range(0, len(self._w), size):
            rows = self._w[first : first + size]
            part = self._part[: len(rows)]
            np.copyto(part, rows, casting="unsafe")
            yield part

    def squared(self, block: Matrix) -> Floats:
        """W^T W x of float32 vectors as rows."""
        total = np.zeros_like(block)
        for part in self:
            for i, x in enumerate(block):
                total[i] += (part @ x) @ part
        return total.astype(np.float64)


def _iterated(w: _Rows, rng: np.random.Generator) -> SpectralNorm:
    c, n = _WIDTH, w.shape[1]
    most = min(_STEPS, min(w.shape) // c)
    basis, core = np.empty((c * (most + 1), n), np.float32), np.zeros((c * most, c * most))
    basis[:c], _ = orthonormal(rng.standard_normal((c, n), np.float32), basis[:0])
    for step in range(most):
        here, known = slice(c * step, c * (step + 1)), basis[: c * (step + 1)]
        product = w.squared(basis[here])
        if not np.isfinite(product).all():
            return SpectralNorm(float("inf"), step + 1, converged=False)
        inner = known.astype(np.float64) @ product.T
        core[: len(known), here], core[here, : len(known)] = inner, inner.T
        basis[len(known) : len(known) + c], left = orthonormal(product, known)
        values, vectors = np.linalg.eigh(core[: len(known), : len(known)])
        largest, residual = max(float(values[-1]), 0.0), float(np.linalg.norm(left @ vectors[here, -1]))
        if _is_close(largest, residual, largest - float(values[-2])):
            return SpectralNorm(float(np.sqrt(largest)), step + 1, converged=True)
    return SpectralNorm(float(np.sqrt(largest)), most, converged=False)


def _is_close(square: float, residual: float, gap: float) -> bool:
    """Whether the root of an eigenvalue is within 2e-6 of itself, by its residual and the distance of the next one."""
    error = 2.0 * _ERROR * square
    return residual <= error or residual**2 <= error * gap
