"""The spectrum of an update that is a dense matrix without low-rank factors, such as DoRA's.

`dense_spectrum` gives all singular values of a small matrix. Of a large one it gives the leading values and a bound on
the rest, from which every energy rank is bounded from both sides.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradience.spectral import one_blas_thread
from gradience.spectral.devices import float64
from gradience.spectral.grams import Floats, Matrix
from gradience.spectral.krylov import Operator, as_float32, leading
from gradience.spectral.update import leading_part

EXACT_UP_TO: Final = 2048  # of the shorter side: some seconds for all singular values
_LEADING: Final = 64  # leading singular values of a large dense matrix, at least
_SLACK: Final = 1e-4  # relative: added to the largest singular value of the remainder, to make it an upper bound


@jax.jit
def singular_values(matrix: Array) -> Array:
    """Return all singular values of a matrix, largest first."""
    return jnp.linalg.svd(matrix, compute_uv=False)


class DenseSpectrum(NamedTuple):
    """The spectrum of a dense matrix, whose shorter side is `size`.

    `sigma` holds all singular values, largest first, or only the leading ones if `is_whole` is false. `energy` is the
    sum of all squared singular values. `next_square` bounds the square of every value that `sigma` lacks. `converged`
    says whether the iterations reached their tolerance.
    """

    sigma: Floats
    energy: float
    size: int
    next_square: float = 0.0
    is_whole: bool = True
    converged: bool = True

    def energy_rank(self, share: float) -> tuple[int, int]:
        """Bounds (lower, upper) on the energy rank: the fewest values whose squares hold this share of the energy.

        The squares beyond the leading ones decrease, so their partial sums lie on or above a straight line to the whole
        energy; that gives the upper bound. By Ky Fan's inequality, each further value adds at most `next_square`; that
        gives the lower bound.
        """
        sums = np.cumsum(self.sigma**2)
        # Less the rounding of a sum, as in `batch.energy_ranks`: a share reached exactly needs no further value.
        wanted = share * self.energy * (1.0 - self.size * np.finfo(np.float64).eps)
        reached = np.flatnonzero(sums >= wanted)
        if self.is_whole:
            most = int(reached[0]) + 1 if len(reached) else self.size
            return most, most
        rest = self.energy - float(sums[-1])
        if len(reached):
            most = int(reached[0]) + 1
        else:
            slope = rest / (self.size - len(self.sigma))
            most = len(self.sigma) + math.ceil((wanted - float(sums[-1])) / slope)
        counts = np.arange(1, most + 1)
        highest = sums[np.minimum(counts, len(sums)) - 1] + np.minimum(counts * self.next_square, rest)
        return int(np.flatnonzero(highest >= wanted)[0]) + 1 if highest[-1] >= wanted else most, most


def dense_spectrum(matrix: Matrix, *, values: int = _LEADING, seed: int = 0) -> DenseSpectrum:
    """The spectrum of a finite matrix (m, n), in float64; of a large one, the leading `values` (at least 64)."""
    size = min(matrix.shape)
    if size <= EXACT_UP_TO:
        with one_blas_thread(), float64():
            sigma = np.asarray(singular_values(matrix.astype(np.float64)))
        return DenseSpectrum(sigma, float(np.sum(sigma**2)), size)
    part = leading_part(matrix.astype(np.float64), max(values, _LEADING), seed=seed)
    whole = Operator.of(as_float32(matrix))
    remainder = whole.plus(-part.low.u * part.low.sigma, part.low.v)  # the leading part is subtracted as factors
    top, rest = (leading(x, seed=seed) for x in (whole, remainder))
    sigma = part.low.sigma.copy()
    # Both iterations approach sigma_1 from below, so the larger of their results is the closer one.
    sigma[0] = max(sigma[0], float(top.sigma[0]))
    return DenseSpectrum(
        sigma,
        part.norm**2,
        size,
        next_square=(float(rest.sigma[0]) * (1.0 + _SLACK)) ** 2,
        is_whole=False,
        converged=top.converged and rest.converged,
    )
