"""What pure noise looks like: the stable rank expected of random factors of a shape.

A Gaussian (d, r) factor has a Wishart Gram matrix, and Bartlett's decomposition samples its Cholesky
factor in r^2 numbers, whatever d is. Kaiming-uniform A has the same second moments.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

__all__ = ["null_stable_rank"]

_SAMPLES = 8


@cache
def null_stable_rank(r: int, d_out: int, d_in: int, *, seed: int = 0) -> float:
    """Return the mean stable rank of B A with random B (d_out, r) and A (r, d_in)."""
    rng = np.random.default_rng(seed)
    return float(np.mean([_sample(rng, r, d_out, d_in) for _ in range(_SAMPLES)]))


def _sample(rng: np.random.Generator, r: int, d_out: int, d_in: int) -> float:
    core = _bartlett(rng, r, d_out).T @ _bartlett(rng, r, d_in)
    energy = np.linalg.svd(core, compute_uv=False) ** 2
    return float(energy.sum() / energy[0])


def _bartlett(rng: np.random.Generator, r: int, d: int) -> npt.NDArray[np.float64]:
    """Return a lower factor L with L L^T distributed as the Gram matrix of a Gaussian (d, r) array."""
    lower = np.tril(rng.standard_normal((r, r)), -1)
    freedom = np.maximum(d - np.arange(r), 0)
    diagonal = np.diag(np.sqrt(rng.chisquare(np.maximum(freedom, 1)) * (freedom > 0)))
    return np.asarray(lower + diagonal)
