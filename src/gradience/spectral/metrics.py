"""Quantities of one spectrum, all scale-free: sigma is 1-D, non-negative, largest first.

A zero spectrum gives 0 for every quantity (the caller turns that into "untrained"); nothing here
divides by zero.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

__all__ = [
    "effective_rank",
    "energy_rank",
    "frobenius_norm",
    "participation_ratio",
    "relative_errors",
    "spectral_norm",
    "stable_rank",
]


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
