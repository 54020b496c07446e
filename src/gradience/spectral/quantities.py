"""What the singular values of one update say of it: written for one module, vmapped and jitted in `batch`.

Every first call of a process traces these lines, which takes as long as they are many: what several quantities share is
computed once, and primitives of `lax` stand where numpy's manners would be paid for.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from jax import Array, lax

SHARES: Final = (0.90, 0.95, 0.99)


class Quantities(NamedTuple):
    """The numbers of one module; of a batch of them, each with a leading axis."""

    stable_rank: Array
    effective_rank: Array
    participation_ratio: Array
    energy_ranks: Array
    relative_errors: Array
    frobenius_norm: Array


def quantities(sigma: Array) -> Quantities:
    """Return every quantity of singular values (r,), largest first; all are 0 where the values are."""
    largest = lax.index_in_dim(sigma, 0, keepdims=False)
    ratio = _relative(sigma, largest)
    energy = lax.mul(ratio, ratio)
    total = _sum(energy)
    held, tails = lax.cumsum(energy), lax.cumsum(energy, reverse=True)
    return Quantities(
        stable_rank=total,
        effective_rank=effective_rank(ratio),
        participation_ratio=participation_ratio(energy, total),
        energy_ranks=energy_ranks(held, total),
        relative_errors=relative_errors(tails, total),
        frobenius_norm=lax.mul(largest, lax.sqrt(total)),
    )


def _relative(sigma: Array, largest: Array) -> Array:
    """Return sigma / sigma_1, with values under the floor of r * eps set to zero.

    The sum of its squares is the stable rank, in [1, r]. Rudelson & Vershynin, J. ACM 54(4), 2007.
    """
    ratio = lax.div(sigma, _spread(_or_one(largest), sigma))
    floor = lax.full_like(ratio, sigma.shape[0] * np.finfo(sigma.dtype).eps)
    return _where(lax.gt(ratio, floor), ratio, 0.0)


def _or_one(x: Array) -> Array:
    """Return x where it is above zero, else 1: a divisor."""
    return _where(_is_positive(x), x, 1.0)


def _is_positive(x: Array) -> Array:
    return lax.gt(x, lax.full_like(x, 0.0))


def _where(condition: Array, x: Array, other: float) -> Array:
    return lax.select(condition, x, lax.full_like(x, other))


def _spread(x: Array, like: Array) -> Array:
    """Return a scalar as an array of the shape of another."""
    return lax.broadcast(x, like.shape)


def _sum(x: Array) -> Array:
    return lax.reduce_sum(x, (x.ndim - 1,))


def effective_rank(ratio: Array) -> Array:
    """exp(entropy of sigma / sum sigma), in [1, r]. Roy & Vetterli, EUSIPCO 2007."""
    total = _sum(ratio)
    share = lax.div(ratio, _spread(_or_one(total), ratio))
    entropy = lax.neg(_sum(lax.mul(share, lax.log(_or_one(share)))))
    return _where(_is_positive(total), lax.exp(entropy), 0.0)


def participation_ratio(energy: Array, total: Array) -> Array:
    """(sum sigma^2)^2 / sum sigma^4, in [1, r]."""
    return lax.div(lax.mul(total, total), _or_one(_sum(lax.mul(energy, energy))))


def energy_ranks(held: Array, total: Array) -> Array:
    """Least k with sum_{i<=k} sigma^2 >= share * sum sigma^2, of each share; the best rank-k error is sqrt(1 - share).

    `held` (r,) are the sums of the first k squares.
    """
    # The sum's own rounding must not ask for one more rank where the first k reach the share exactly.
    slack = 1.0 - held.shape[0] * np.finfo(held.dtype).eps
    bars = lax.mul(np.asarray(SHARES, held.dtype) * slack, lax.broadcast(total, (len(SHARES),)))
    size = (len(SHARES), *held.shape)
    reached = lax.ge(lax.broadcast_in_dim(held, size, (1,)), lax.broadcast_in_dim(bars, size, (0,)))
    least = lax.add(lax.argmax(reached, 1, np.int32), np.int32(1))
    return lax.select(lax.broadcast(_is_positive(total), (len(SHARES),)), least, lax.full_like(least, 0))


def relative_errors(tails: Array, total: Array) -> Array:
    """sqrt(sum_{i>k} sigma^2 / sum sigma^2) for k = 0..r: the relative Frobenius error of the best rank k.

    `tails` (r,) are the sums of the squares from the k-th on, k = 0..r-1.
    """
    return lax.pad(lax.sqrt(lax.div(tails, _spread(_or_one(total), tails))), np.zeros((), tails.dtype), ((0, 1, 0),))
