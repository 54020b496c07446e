"""Quantities of one spectrum, all scale-free: sigma is 1-D, non-negative, largest first.

A zero spectrum gives 0 for every quantity (the caller turns that into "untrained"); nothing here
divides by zero.
"""

from __future__ import annotations

from functools import cache

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array

from gradience.spectral.narrow import inner_size

_SAMPLES = 8


@cache
def null_stable_rank(r: int, d_out: int, d_in: int, *, seed: int = 0) -> float:
    """Return the mean stable rank of B A with random B (d_out, r) and A (r, d_in)."""
    rng = np.random.default_rng(seed)
    return float(np.mean([_sample(rng, r, d_out, d_in) for _ in range(_SAMPLES)]))


def _sample(rng: np.random.Generator, r: int, d_out: int, d_in: int) -> float:
    least, most = sorted((d_out, d_in))
    if inner_size(r, d_out, d_in) < r:  # the same distribution: B = L Q, and Q A is Gaussian as A is
        core = _bartlett(rng, least, r) @ _bartlett(rng, least, most)
    else:
        core = _bartlett(rng, r, d_out).T @ _bartlett(rng, r, d_in)
    energy = np.linalg.svd(core, compute_uv=False) ** 2
    return float(energy.sum() / energy[0])


def _bartlett(rng: np.random.Generator, r: int, d: int) -> npt.NDArray[np.float64]:
    """Return a lower factor L with L L^T distributed as the Gram matrix of a Gaussian (d, r) array."""
    lower = np.tril(rng.standard_normal((r, r)), -1)
    freedom = np.maximum(d - np.arange(r), 0)
    diagonal = np.diag(np.sqrt(rng.chisquare(np.maximum(freedom, 1)) * (freedom > 0)))
    return np.asarray(lower + diagonal)


def _relative(sigma: Array) -> Array:
    """Return sigma / sigma_1, with values under the floor of r * eps set to zero."""
    largest = sigma[0]
    ratio = sigma / jnp.where(largest > 0.0, largest, 1.0)
    floor = sigma.shape[0] * np.finfo(sigma.dtype).eps
    return jnp.where(ratio > floor, ratio, 0.0)


def stable_rank(sigma: Array) -> Array:
    """Sum sigma^2 / sigma_1^2, in [1, r]. Rudelson & Vershynin, J. ACM 54(4), 2007."""
    return jnp.sum(_relative(sigma) ** 2)


def effective_rank(sigma: Array) -> Array:
    """exp(entropy of sigma / sum sigma), in [1, r]. Roy & Vetterli, EUSIPCO 2007."""
    ratio = _relative(sigma)
    total = jnp.sum(ratio)
    share = ratio / jnp.where(total > 0.0, total, 1.0)
    entropy = -jnp.sum(share * jnp.log(jnp.where(share > 0.0, share, 1.0)))
    return jnp.where(total > 0.0, jnp.exp(entropy), 0.0)


def participation_ratio(sigma: Array) -> Array:
    """(sum sigma^2)^2 / sum sigma^4, in [1, r]."""
    energy = _relative(sigma) ** 2
    fourth = jnp.sum(energy**2)
    return jnp.sum(energy) ** 2 / jnp.where(fourth > 0.0, fourth, 1.0)


def energy_rank(sigma: Array, share: float) -> Array:
    """Least k with sum_{i<=k} sigma^2 >= share * sum sigma^2; the best rank-k error is sqrt(1 - share)."""
    energy = _relative(sigma) ** 2
    total = jnp.sum(energy)
    # The sum's own rounding must not ask for one more rank where the first k reach the share exactly.
    slack = 1.0 - sigma.shape[0] * np.finfo(sigma.dtype).eps
    reached = jnp.cumsum(energy) >= share * total * slack
    return jnp.where(total > 0.0, jnp.argmax(reached) + 1, 0)


def relative_errors(sigma: Array) -> Array:
    """sqrt(sum_{i>k} sigma^2 / sum sigma^2) for k = 0..r: the relative Frobenius error of the best rank k."""
    energy = _relative(sigma) ** 2
    total = jnp.sum(energy)
    tails = jnp.concatenate([jnp.cumsum(energy[::-1])[::-1], jnp.zeros(1, sigma.dtype)])
    return jnp.sqrt(tails / jnp.where(total > 0.0, total, 1.0))


def spectral_norm(sigma: Array) -> Array:
    """sigma_1."""
    return sigma[0]


def frobenius_norm(sigma: Array) -> Array:
    """sqrt(sum sigma^2)."""
    return sigma[0] * jnp.sqrt(stable_rank(sigma))
