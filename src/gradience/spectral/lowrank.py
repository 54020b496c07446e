"""Best approximations of s B A of lower rank, and sums of such products, from the factors alone.

Backward stable (QR of both factors, then an SVD of the r x r core) and in float64 on the host, like
`core_singular_values`: the dense matrix is never formed. Eckart and Young, Psychometrika 1(3), 1936.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["LowRank", "decomposed", "stacked"]

Floats: TypeAlias = npt.NDArray[np.float64]
Matrix: TypeAlias = npt.NDArray[Any]


class LowRank(NamedTuple):
    """u diag(sigma) v: u (d_out, n) with orthonormal columns, sigma (n,) largest first, v (n, d_in)."""

    u: Floats
    sigma: Floats
    v: Floats

    def factors(self, rank: int, scale: float = 1.0) -> tuple[Floats, Floats]:
        """Return (b, a) with scale * b @ a the best approximation of that rank, its size shared evenly.

        Above n the factors are padded with zeros: the product does not change.
        """
        kept = min(rank, len(self.sigma))
        root = np.sqrt(self.sigma[:kept] / abs(scale)) if scale else np.zeros(kept)
        b = np.zeros((len(self.u), rank))
        a = np.zeros((rank, self.v.shape[1]))
        b[:, :kept] = self.u[:, :kept] * (root if scale > 0.0 else -root)
        a[:kept] = self.v[:kept] * root[:, None]
        return b, a

    def error(self, rank: int) -> float:
        """Return the Frobenius norm of what the best approximation of that rank leaves out."""
        return float(np.linalg.norm(self.sigma[rank:]))


def decomposed(b: Matrix, a: Matrix, scale: float = 1.0) -> LowRank:
    """Return the singular value decomposition of scale * b @ a; b (d_out, r), a (r, d_in), both finite."""
    left, core_b = np.linalg.qr(b.astype(np.float64))
    right, core_a = np.linalg.qr(a.T.astype(np.float64))
    u, sigma, v = np.linalg.svd(core_b @ core_a.T, full_matrices=False)
    sign = -1.0 if scale < 0.0 else 1.0
    return LowRank(left @ u * sign, sigma * abs(scale), v @ right.T)


def stacked(parts: Sequence[tuple[Matrix, Matrix, float]]) -> tuple[Floats, Floats]:
    """Return (b, a) with b @ a = sum of scale * b_i @ a_i exactly, of the sum of the ranks. Parts are (b, a, scale)."""
    b = np.concatenate([b.astype(np.float64) * scale for b, _, scale in parts], axis=1)
    a = np.concatenate([a.astype(np.float64) for _, a, _ in parts], axis=0)
    return b, a
