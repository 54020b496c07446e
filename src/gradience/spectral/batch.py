"""The spectra of updates: of many low-rank updates from their Gram matrices, and of one update that is a dense matrix.

The quantities are written for one module, then vmapped and jitted. Each process traces them at its first call, in a
time that grows with the number of operations. So shared terms are computed once, and `lax` primitives replace
`jax.numpy` functions, which trace more operations.

Some updates, such as DoRA's, are dense matrices without low-rank factors. `dense_spectrum` gives all singular values of
a small one, from the float64 Gram matrix of its shorter side. Of a large one it gives the leading values and a bound on
the rest, from which every energy rank is bounded from both sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple

import jax
import numpy as np
import numpy.typing as npt
from jax import Array, lax

from gradience.spectral import in_threads, update
from gradience.spectral.grams import Floats, Grams, Loads, Matrix, grams_of
from gradience.spectral.krylov import Operator, as_float32, leading
from gradience.spectral.update import LowRank, Maps, core_maps, leading_part

SHARES: Final = (0.90, 0.95, 0.99)

_MODULES: Final = 64  # modules per call for the quantities
_USED: Final = np.zeros((0, 0))

EXACT_UP_TO: Final = 2048  # of the shorter side: a second for all singular values
_COLUMNS: Final = 1024  # columns cast to float64 at a time
_LEADING: Final = 64  # leading singular values of a large dense matrix, at least
_SLACK: Final = 1e-4  # relative: added to the largest singular value of the remainder, to make it an upper bound


class Quantities(NamedTuple):
    """The quantities of one module's spectrum; for a batch of modules, each field has a leading axis."""

    stable_rank: Array
    effective_rank: Array
    participation_ratio: Array
    energy_ranks: Array
    relative_errors: Array
    frobenius_norm: Array


def quantities(sigma: Array) -> Quantities:
    """Return every quantity of the singular values sigma (r,), largest first; all are 0 if sigma is zero."""
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
    """Return x where it is positive, else 1, so that the result can divide."""
    return _where(_is_positive(x), x, 1.0)


def _is_positive(x: Array) -> Array:
    return lax.gt(x, lax.full_like(x, 0.0))


def _where(condition: Array, x: Array, other: float) -> Array:
    return lax.select(condition, x, lax.full_like(x, other))


def _spread(x: Array, like: Array) -> Array:
    """Return the scalar x broadcast to the shape of `like`."""
    return lax.broadcast(x, like.shape)


def _sum(x: Array) -> Array:
    return lax.reduce_sum(x, (x.ndim - 1,))


def effective_rank(ratio: Array) -> Array:
    """The effective rank exp(entropy of sigma / sum sigma), in [1, r]. Roy & Vetterli, EUSIPCO 2007."""
    total = _sum(ratio)
    share = lax.div(ratio, _spread(_or_one(total), ratio))
    entropy = lax.neg(_sum(lax.mul(share, lax.log(_or_one(share)))))
    return _where(_is_positive(total), lax.exp(entropy), 0.0)


def participation_ratio(energy: Array, total: Array) -> Array:
    """The participation ratio (sum sigma^2)^2 / sum sigma^4, in [1, r]."""
    return lax.div(lax.mul(total, total), _or_one(_sum(lax.mul(energy, energy))))


def energy_ranks(held: Array, total: Array) -> Array:
    """The least k with sum_{i<=k} sigma^2 >= share * sum sigma^2, for each share in `SHARES`.

    The best rank-k approximation then has a relative error of at most sqrt(1 - share). `held` (r,) holds the sums of
    the first k squares.
    """
    # If the first k squares reach the share exactly, rounding of the sum must not ask for one more rank.
    slack = 1.0 - held.shape[0] * np.finfo(held.dtype).eps
    bars = lax.mul(np.asarray(SHARES, held.dtype) * slack, lax.broadcast(total, (len(SHARES),)))
    size = (len(SHARES), *held.shape)
    reached = lax.ge(lax.broadcast_in_dim(held, size, (1,)), lax.broadcast_in_dim(bars, size, (0,)))
    least = lax.add(lax.argmax(reached, 1, np.int32), np.int32(1))
    return lax.select(lax.broadcast(_is_positive(total), (len(SHARES),)), least, lax.full_like(least, 0))


def relative_errors(tails: Array, total: Array) -> Array:
    """The relative Frobenius error of the best rank-k approximation, sqrt(sum_{i>k} sigma^2 / sum sigma^2), k = 0..r.

    `tails` (r,) holds the sums of all squares but the first k, for k = 0..r-1.
    """
    return lax.pad(lax.sqrt(lax.div(tails, _spread(_or_one(total), tails))), np.zeros((), tails.dtype), ((0, 1, 0),))


class Spectrum(NamedTuple):
    """The spectrum of one module's update and its quantities; norms and singular values include the scale."""

    sigma: npt.NDArray[np.float64]
    finite: bool
    stable_rank: float
    effective_rank: float
    participation_ratio: float
    energy_ranks: tuple[int, int, int]
    relative_errors: npt.NDArray[np.float64]
    spectral_norm: float
    frobenius_norm: float
    factor_stable_ranks: tuple[float, float]
    """The stable ranks of b alone and of a alone; of the `narrowed` factors if `inner_size` is below r."""


_of_one = jax.jit(quantities)
_of_many = jax.jit(jax.vmap(quantities))


def use_device(device: str) -> None:
    """Choose the device on which this process computes: `auto`, `cpu`, `gpu` or `tpu`. Call it at program start.

    Raises:
        ValueError: JAX has no such device here.
    """
    if device == "auto":
        return
    try:
        jax.config.update("jax_default_device", jax.devices(device)[0])
    except RuntimeError as error:
        message = f"JAX finds no {device} device here: {error}"
        raise ValueError(message) from error


def spectra(loads: Loads, grams: Sequence[Grams] | None = None) -> list[Spectrum]:
    """Return the spectrum of each update, in order. `grams` are the updates' `grams_of`, if the caller has them.

    Several threads call the loads, consecutive loads mostly the same thread, and each thread holds one module at a
    time. Each load is called once, or twice for the rare update whose factors almost cancel.
    """
    return _finish(loads, grams_of(loads) if grams is None else list(grams))


def spectra_and_maps(loads: Loads) -> tuple[list[Spectrum], list[Maps | None]]:
    """Return each update's spectrum and its `gram_maps` at full rank, both from one eigendecomposition.

    The spectra's `factor_stable_ranks` are NaN. Loads are called as by `spectra`.
    """
    maps: dict[int, Maps | None] = {}
    found = _finish(loads, grams_of(loads), maps)
    return found, [maps[index] for index in range(len(loads))]


def spectrum_of(sigma: Matrix) -> Spectrum:
    """Return the spectrum that has the given singular values: at least one, finite, largest first.

    `factor_stable_ranks` are NaN, because there are no factors.
    """
    with jax.enable_x64(True):  # noqa: FBT003  # JAX's own signature
        numbers = _of_one(np.asarray(sigma, np.float64))
    unknown = np.full(2, np.nan)  # the stable ranks of the factors
    return _spectrum(sigma, numbers, Grams(sigma, sigma, len(sigma), 1.0), unknown, finite=True)


def _finish(loads: Loads, grams: list[Grams], maps: dict[int, Maps | None] | None = None) -> list[Spectrum]:
    by_bucket: dict[int, list[int]] = {}
    for index, one in enumerate(grams):
        by_bucket.setdefault(len(one.gram_a), []).append(index)
    calls = [some[start : start + _MODULES] for some in by_bucket.values() for start in range(0, len(some), _MODULES)]
    sigmas = in_threads([partial(_sigma, loads, grams, some, maps) for some in calls])
    found: dict[int, Spectrum] = {}
    for some, (sigma, finite, alone) in zip(calls, sigmas, strict=True):
        with jax.enable_x64(True):  # noqa: FBT003  # JAX's own signature
            numbers = jax.tree.map(np.asarray, _of_many(sigma))
        for row, index in enumerate(some):
            one_row = Quantities(*(field[row] for field in numbers))
            found[index] = _spectrum(sigma[row], one_row, grams[index], alone[:, row], finite=bool(finite[row]))
    return [found[index] for index in range(len(grams))]


def _sigma(
    loads: Loads, grams: list[Grams], some: Sequence[int], maps: dict[int, Maps | None] | None
) -> tuple[Matrix, Matrix, Matrix]:
    """Return the singular values, the finite flags and the factors' stable ranks of a batch of updates.

    The singular values have `_MODULES` rows in every batch, so that XLA compiles one shape per matrix size; surplus
    rows are zero.
    The stable ranks (2, modules) are those of each a, then of each b. If `maps` is given, they are NaN, and each
    module's maps are put into `maps`; its Gram matrices are dropped.

    Args:
        loads: the loads of all updates.
        grams: the Gram matrices of all updates.
        some: the batch's indices, at most `_MODULES`; their Gram matrices have one size.
        maps: where to put the maps, by index.
    """
    size = len(grams[some[0]].gram_a)
    sides = np.zeros((2, len(some), size, size))
    for row, index in enumerate(some):
        sides[0, row], sides[1, row] = grams[index].gram_a, grams[index].gram_b
    finite = np.asarray(np.isfinite(sides).all(axis=(0, 2, 3)))
    sides[:, ~finite] = 0.0
    if maps is None:
        spectrum = update.gram_singular_values(sides[0], sides[1])
        alone = update.gram_stable_rank(sides)
    else:
        core = update.gram_core(sides[0], sides[1])
        squares, vectors = np.linalg.eigh(core.squared)
        spectrum, alone = update.core_spectrum(core, squares), np.full(sides.shape[:2], np.nan)
        for row, index in enumerate(some):
            one = update.GramCore(*(field[row] for field in core))
            maps[index] = core_maps(one, squares[row], vectors[row], size)
            grams[index] = grams[index]._replace(gram_a=_USED, gram_b=_USED)  # the maps are as large: free these
    sigma = np.zeros((_MODULES, size))
    sigma[: len(some)] = spectrum.sigma
    for row, index in enumerate(some):
        if not spectrum.trusted[row]:  # one that is not finite is zero here, which is trusted
            factors = loads[index]()
            exact = update.core_singular_values(factors.b, factors.a)
            sigma[row] = 0.0
            sigma[row, : len(exact)] = exact
    return sigma, finite, alone


def _spectrum(sigma: Matrix, numbers: Quantities, grams: Grams, alone: Matrix, *, finite: bool) -> Spectrum:
    r, size = grams.r, abs(grams.scale)
    return Spectrum(
        sigma=_padded(sigma, r) * size,
        finite=finite,
        stable_rank=float(numbers.stable_rank),
        effective_rank=float(numbers.effective_rank),
        participation_ratio=float(numbers.participation_ratio),
        energy_ranks=tuple(int(k) for k in np.asarray(numbers.energy_ranks)),  # type: ignore[arg-type]  # three shares
        relative_errors=_padded(np.asarray(numbers.relative_errors), r + 1),
        spectral_norm=float(sigma[0]) * size,
        frobenius_norm=float(numbers.frobenius_norm) * size,
        factor_stable_ranks=(float(alone[1]), float(alone[0])),
    )


def _padded(values: Matrix, length: int) -> Matrix:
    """Return the values cut or zero-padded to a length: beyond the rank of the product, singular values are zero."""
    found = np.zeros(length)
    found[: len(values)] = values[:length]
    return found


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
        held = np.cumsum(self.sigma**2)
        wanted = share * self.energy * (1.0 - self.size * np.finfo(np.float64).eps)
        reached = np.flatnonzero(held >= wanted)
        if self.is_whole:
            most = int(reached[0]) + 1 if len(reached) else self.size
            return most, most
        rest = self.energy - float(held[-1])
        if len(reached):
            most = int(reached[0]) + 1
        else:
            slope = rest / (self.size - len(self.sigma))
            most = len(self.sigma) + math.ceil((wanted - float(held[-1])) / slope)
        counts = np.arange(1, most + 1)
        highest = held[np.minimum(counts, len(held)) - 1] + np.minimum(counts * self.next_square, rest)
        return int(np.flatnonzero(highest >= wanted)[0]) + 1 if highest[-1] >= wanted else most, most


def dense_spectrum(matrix: Matrix, *, values: int = _LEADING, seed: int = 0) -> DenseSpectrum:
    """The spectrum of a finite matrix (m, n), in float64; of a large one, the leading `values` (at least 64).

    Singular values below about 1e-8 of the largest are rounding errors, because they are roots of eigenvalues of a
    Gram matrix.
    """
    size = min(matrix.shape)
    if size <= EXACT_UP_TO:
        squares = np.maximum(np.linalg.eigvalsh(gram_of(matrix))[::-1], 0.0)
        return DenseSpectrum(np.sqrt(squares), float(squares.sum()), size)
    part = leading_part(matrix.astype(np.float64), max(values, _LEADING), seed=seed)
    whole = Operator.of(as_float32(matrix))
    top, rest = (leading(x, seed=seed) for x in (whole, _less(whole, part.low)))
    sigma = part.low.sigma.copy()
    sigma[0] = max(sigma[0], float(top.sigma[0]))
    return DenseSpectrum(
        sigma,
        part.norm**2,
        size,
        next_square=(float(rest.sigma[0]) * (1.0 + _SLACK)) ** 2,
        is_whole=False,
        converged=top.converged and rest.converged,
    )


def gram_of(matrix: Matrix) -> Floats:
    """The Gram matrix of the shorter side of a matrix (m, n), in float64: X X^T of a wide one, X^T X of a tall one."""
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    total = np.zeros((len(short), len(short)))
    for start in range(0, short.shape[1], _COLUMNS):
        tile = short[:, start : start + _COLUMNS].astype(np.float64)
        total += tile @ tile.T
    return total


def _less(matrix: Operator, low: LowRank) -> Operator:
    """The matrix minus its leading part, as an operator; the leading part is subtracted as factors."""
    return matrix.plus(-low.u * low.sigma, low.v)
