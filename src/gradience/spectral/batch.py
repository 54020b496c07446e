"""The spectrum of a low-rank update B A and every quantity of it, in JAX: written for one module, vmapped over many.

B A is never formed. If B^T B = X^T X and A A^T = Y^T Y, the singular values of B A are those of the small core X Y^T.
QR of the factors gives X and Y (`by_qr`), and so do their Gram matrices (`by_grams`). QR is accurate for every update.
Gram matrices cost one fast pass over the factors, and give singular values with an error of about
sqrt(eps) * |B| * |A|. They are trusted only if sigma_1 is not much smaller than |B| * |A|; other updates go by QR.

On a CPU, BLAS forms the Gram matrices (`grams`), because it reads the stored factors faster than XLA does
(docs/evidence/audit.md). Everything after the product is one jitted program, and on an accelerator everything from the
factors on. Modules are padded to a few shapes, so that few programs are compiled, and divided among all local devices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gradience.spectral import in_threads, one_blas_thread
from gradience.spectral.decompositions import eigh, r_of_qr, singular_values, svd
from gradience.spectral.devices import devices, devices_of_float64, float64, has_float64
from gradience.spectral.grams import Factors, Floats, Grams, Loads, Matrix, bucket_of, grams_of, on_cpu

SHARES: Final = (0.90, 0.95, 0.99)
# If sigma_1^2 is below this share of |A|^2 |B|^2, Gram matrices may not give 1e-6 sigma_1 (tests/spectral shows it).
TRUSTED_SHARE: Final = 1e-2
SINGLE_ERROR: Final = 1e-5  # of |B| |A|: a bound on the error of singular values where a device has no float64
_FLOOR: Final = 1e-7  # relative to sigma_1: a smaller singular value is rounding, and leaving it out costs no more

_MODULES: Final = 64  # modules in a call, at most
_GRAM_NUMBERS: Final = 1 << 18  # entries of the Gram matrices of one side in a call, unless one module has more
_FACTOR_NUMBERS: Final = 1 << 24  # entries of all factors in a call, unless one module has more
_LENGTH: Final = 128  # sides of an update are padded to a multiple of it
_SHORT: Final = 2  # bytes: float32 holds floats of at most two exactly


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
    (r,), largest = sigma.shape, sigma[0]
    # All is computed of sigma / sigma_1, so that no square overflows or underflows.
    ratio = sigma / jnp.where(largest > 0.0, largest, 1.0)
    ratio = jnp.where(ratio > r * np.finfo(sigma.dtype).eps, ratio, 0.0)  # the rest is rounding
    energy = ratio**2
    total = jnp.sum(energy)
    return Quantities(
        stable_rank=total,
        effective_rank=effective_rank(ratio),
        participation_ratio=total**2 / jnp.where(total > 0.0, jnp.sum(energy**2), 1.0),
        energy_ranks=energy_ranks(energy),
        relative_errors=relative_errors(energy),
        frobenius_norm=largest * jnp.sqrt(total),
    )


def stable_rank(sigma: Array) -> Array:
    """The stable rank sum sigma^2 / sigma_1^2, in [1, r]. Rudelson & Vershynin, J. ACM 54(4), 2007."""
    return jnp.sum((sigma / jnp.where(sigma[0] > 0.0, sigma[0], 1.0)) ** 2)


def effective_rank(sigma: Array) -> Array:
    """The effective rank exp(entropy of sigma / sum sigma), in [1, r]. Roy & Vetterli, EUSIPCO 2007."""
    total = jnp.sum(sigma)
    share = sigma / jnp.where(total > 0.0, total, 1.0)
    entropy = -jnp.sum(share * jnp.log(jnp.where(share > 0.0, share, 1.0)))
    return jnp.where(total > 0.0, jnp.exp(entropy), 0.0)


def energy_ranks(energy: Array) -> Array:
    """The least k with sum_{i<=k} sigma^2 >= share * sum sigma^2, for each share in `SHARES`, from sigma^2.

    The best rank-k approximation then has a relative error of at most sqrt(1 - share).
    """
    sums = jnp.cumsum(energy)
    # If the first k squares reach the share exactly, rounding of the sum must not ask for one more rank.
    slack = 1.0 - len(energy) * np.finfo(energy.dtype).eps
    wanted = jnp.array(SHARES, energy.dtype) * slack * jnp.sum(energy)
    least = jnp.argmax(sums >= wanted[:, None], axis=1) + 1
    return jnp.where(sums[-1] > 0.0, least, 0)


def relative_errors(energy: Array) -> Array:
    """The relative Frobenius error of the best rank-k approximation, sqrt(sum_{i>k} sigma^2 / sum sigma^2), k = 0..r.

    `energy` is sigma^2.
    """
    # Summed from the smallest up: 1 minus the share held would cancel where little is left out.
    tails = jnp.append(jnp.cumsum(energy[::-1])[::-1], 0.0)
    return jnp.sqrt(tails / jnp.where(tails[0] > 0.0, tails[0], 1.0))


class Result(NamedTuple):
    """The numbers of one module's update B A; for a batch of modules, each field has a leading axis.

    `sigma` (r,) are the singular values, largest first, of B A divided by the product of `sizes`, as the norms are.
    `factor_stable_ranks` and `factor_norms` are those of B alone and of A alone; each norm is divided by its size.
    `trusted` says whether Gram matrices are enough.
    """

    sigma: Array
    sizes: Array
    finite: Array
    trusted: Array
    factor_stable_ranks: Array
    factor_norms: Array
    quantities: Quantities


class Root(NamedTuple):
    """A small matrix X with X^T X = F^T F for a factor F (d, r), and the singular values of both, largest first."""

    x: Array
    sigma: Array


def root_by_qr(factor: Array) -> Root:
    """Return the root of a factor (d, r) by QR: (min(d, r), r)."""
    x = r_of_qr(factor)
    return Root(x, singular_values(x))


def root_by_gram(gram: Array) -> Root:
    """Return the root of a factor from its Gram matrix F^T F (r, r)."""
    values, vectors = eigh(gram)
    sizes = jnp.sqrt(jnp.maximum(values, 0.0))  # rounding makes an eigenvalue of zero negative
    return Root(sizes[:, None] * vectors.T, sizes[::-1])


def result_of(sigma: Array, b: Root, a: Root, finite: Array) -> Result:
    """Return the numbers of B A, with sizes of one, from its singular values and the roots of B and A^T."""
    # Not >, or an update of zeros would count as one that cancels, and be loaded again for QR.
    trusted = sigma[0] >= TRUSTED_SHARE**0.5 * b.sigma[0] * a.sigma[0]
    alone = jnp.stack([stable_rank(b.sigma), stable_rank(a.sigma)])
    norms = jnp.stack([jnp.linalg.norm(b.sigma), jnp.linalg.norm(a.sigma)])
    return Result(sigma, jnp.ones(2), finite, trusted, alone, norms, quantities(sigma))


def by_qr(b: Array, a: Array) -> Result:
    """Return the numbers of B A by QR of both factors, b (d_out, r) and a (r, d_in).

    They are computed in float64, or in float32 if JAX's float64 is off. Each factor is divided by its largest entry,
    its size, so that nothing overflows or underflows.
    """
    finite = jnp.isfinite(b).all() & jnp.isfinite(a).all()
    (b, size_b), (a, size_a) = (_unit(jnp.where(finite, x, 0.0)) for x in (b, a))
    left, right = root_by_qr(b), root_by_qr(a.T)
    # A TPU, which has no float64, would by default multiply in bfloat16.
    sigma = singular_values(jnp.matmul(left.x, right.x.T, precision="highest"))
    # Where r exceeds a side of the update, the core has fewer than r singular values.
    result = result_of(jnp.pad(sigma, (0, len(a) - len(sigma))), left, right, finite)
    return result._replace(sizes=jnp.stack([size_b, size_a]))


def _unit(x: Array) -> tuple[Array, Array]:
    """Return x divided by its largest absolute entry, and that entry, in JAX's widest float."""
    x = x.astype(float)
    peak = jnp.max(jnp.abs(x), initial=0.0)  # of no entries, it is 0
    return x / jnp.where(peak > 0.0, peak, 1.0), peak


def by_grams(gram_b: Array, gram_a: Array) -> Result:
    """Return the numbers of B A from B^T B and A A^T, both (r, r)."""
    left, right, finite = _roots(gram_b, gram_a)
    return result_of(singular_values(left.x @ right.x.T), left, right, finite)


def _roots(gram_b: Array, gram_a: Array) -> tuple[Root, Root, Array]:
    finite = jnp.isfinite(gram_b).all() & jnp.isfinite(gram_a).all()
    left, right = (root_by_gram(jnp.where(finite, gram, 0.0)) for gram in (gram_b, gram_a))
    return left, right, finite


class MappedResult(NamedTuple):
    """The numbers of an update, and the maps `left` (r, r) and `right` (r, r) of its `Maps`."""

    result: Result
    left: Array
    right: Array


def mapped(gram_b: Array, gram_a: Array) -> MappedResult:
    """Return the numbers of B A and the maps to its best factors, from B^T B and A A^T, both (r, r).

    With B = Q X, A^T = P Y and X Y^T = U S V^T, the left factor Q U S^(1/2) is B Y^T V S^(-1/2), and the right factor
    S^(1/2) V^T P^T is S^(-1/2) U^T X A. So the best factors are products with B and A, and Q and P are never formed.
    """
    left, right, finite = _roots(gram_b, gram_a)
    u, sigma, vt = svd(left.x @ right.x.T)
    known = sigma > _FLOOR * sigma[0]  # of a value that is rounding, the inverse would make noise as large as the rest
    inverse = jnp.where(known, 1.0 / jnp.sqrt(jnp.where(known, sigma, 1.0)), 0.0)
    result = result_of(sigma, left, right, finite)
    return MappedResult(result, right.x.T @ vt.T * inverse, inverse[:, None] * (u.T @ left.x))


of_singular_values = jax.jit(quantities)
stable_ranks = jax.jit(jax.vmap(lambda matrix: stable_rank(singular_values(matrix))))
batched_by_qr = jax.jit(jax.vmap(by_qr))
batched_by_grams = jax.jit(jax.vmap(by_grams))
batched_maps = jax.jit(jax.vmap(mapped))


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
    factor_norms: tuple[float, float]
    """Their Frobenius norms, without the scale."""


class Maps(NamedTuple):
    """The maps to factors of a lower rank: b' = B @ left and a' = right @ A; left (r, k), right (k, r), in float64.

    Columns of `left` and rows of `right` beyond the numerical rank are zero.
    """

    left: Floats
    right: Floats

    def cut(self, inner: int, rank: int) -> Maps:
        """Return the maps (inner, rank) and (rank, inner): the leading columns and rows of these, zero-padded."""
        kept = min(rank, self.left.shape[1])
        left, right = np.zeros((inner, rank)), np.zeros((rank, inner))
        left[:, :kept], right[:kept] = self.left[:inner, :kept], self.right[:kept, :inner]
        return Maps(left, right)


def divided(stacks: Sequence[Matrix], among: Sequence[jax.Device]) -> list[Array]:
    """Put stacks of modules on devices, an equal part of the leading axis on each."""
    mesh = Mesh(np.array(among), ("modules",))
    return [jax.device_put(stack, NamedSharding(mesh, PartitionSpec("modules"))) for stack in stacks]


def rows_for(numbers: int, most: int, among: Sequence[jax.Device]) -> int:
    """The modules in a call: a multiple of the devices, with at most that many numbers if each module has `numbers`."""
    return len(among) * max(1, min(_MODULES, most // numbers) // len(among))


def spectra(loads: Loads, grams: Sequence[Grams] | None = None) -> list[Spectrum]:
    """Return the spectrum of each update, in order. `grams` are the updates' `grams_of`, if the caller has them.

    On a CPU, several threads call the loads, consecutive loads mostly the same thread, and each thread holds one module
    at a time. Each load is called once, or twice for the rare update whose factors almost cancel.
    """
    with jax.enable_x64(has_float64()):
        if grams is None and not on_cpu():
            return _of_factors(loads)
    grams = grams_of(loads) if grams is None else grams
    return [_spectrum(result, one.r, one.scale) for one, result in zip(grams, _of_grams(loads, grams), strict=True)]


def spectra_and_maps(loads: Loads) -> tuple[list[Spectrum], list[Maps | None]]:
    """Return each update's spectrum and its maps at full rank (`update.gram_maps`), from one decomposition.

    Loads are called as by `spectra`. An update that is not given accurately by its Gram matrices has no maps.
    """
    grams = grams_of(loads)
    maps: dict[int, Maps] = {}
    results = _of_grams(loads, grams, maps)
    spectra = [_spectrum(result, one.r, one.scale) for one, result in zip(grams, results, strict=True)]
    return spectra, [maps.get(index) for index in range(len(loads))]


def spectrum_of(sigma: Matrix) -> Spectrum:
    """Return the spectrum that has the given singular values: at least one, finite, largest first.

    What is told of the factors is NaN, because there are none.
    """
    sigma = np.asarray(sigma, np.float64)
    with one_blas_thread(), float64():
        numbers = jax.device_get(of_singular_values(sigma))
    nothing = np.full(2, np.nan)
    result = Result(sigma, np.ones(2), np.True_, np.True_, nothing, nothing, numbers)  # type: ignore[arg-type]  # of NumPy
    return _spectrum(result, len(sigma), 1.0)


def _of_grams(loads: Loads, grams: Sequence[Grams], maps: dict[int, Maps] | None = None) -> list[Result]:
    """Return the numbers of each update from its Gram matrices, or by QR of its factors if these are not enough.

    If `maps` is given, the maps of the updates whose Gram matrices are enough are put into it, by index.
    """
    results: dict[int, Result] = {}
    for some in _alike([len(one.gram_a) for one in grams]):
        size = len(grams[some[0]].gram_a)
        rows = rows_for(size**2, _GRAM_NUMBERS, devices_of_float64())
        calls = [partial(_call, grams, some[i : i + rows], rows, maps) for i in range(0, len(some), rows)]
        results |= calls[0]()  # it compiles; the threads that follow find the program
        for more in in_threads(calls[1:]):
            results |= more
    for index, result in results.items():
        if not result.trusted:  # one that is not finite counts as zero here, which is trusted
            results[index] = by_qr_alone(loads[index]())
    return [results[index] for index in range(len(grams))]


def _call(grams: Sequence[Grams], some: Sequence[int], rows: int, maps: dict[int, Maps] | None) -> dict[int, Result]:
    """Compute `some` of the modules, all of one size, in one call, padded with zeros to `rows` modules."""
    size = len(grams[some[0]].gram_a)
    stacks = np.zeros((2, rows, size, size))
    for row, index in enumerate(some):
        stacks[:, row] = grams[index].gram_b, grams[index].gram_a
    with one_blas_thread(), float64():
        sides = divided([*stacks], devices_of_float64())
        if maps is None:
            # Rows of padding have no index, so this zip and the last one end before them.
            return dict(zip(some, _each(jax.device_get(batched_by_grams(*sides))), strict=False))
        result, left, right = jax.device_get(batched_maps(*sides))
    maps.update({index: Maps(left[row], right[row]) for row, index in enumerate(some) if result.trusted[row]})
    return dict(zip(some, _each(result), strict=False))


def by_qr_alone(factors: Factors) -> Result:
    """The numbers of one update by QR of its factors, in float64."""
    b, a = _PaddedShape.of(factors).stacks([factors], 1)
    with one_blas_thread(), float64():
        (result,) = _each(jax.device_get(batched_by_qr(b, a)))
    return result


def _of_factors(loads: Loads) -> list[Spectrum]:
    """Return the spectrum of each update by QR of its factors on the devices; each load is called once."""
    by_index: dict[int, Spectrum] = {}
    for shape, bucket in _buckets(loads):
        stacks = shape.stacks([*bucket.values()], shape.rows)
        results = _each(jax.device_get(batched_by_qr(*divided(stacks, devices()))))
        for (index, one), result in zip(bucket.items(), results, strict=False):
            by_index[index] = _spectrum(result, len(one.a), one.scale)
    return [by_index[index] for index in range(len(loads))]


class _PaddedShape(NamedTuple):
    """The shape to which modules are padded for a call of `batched_by_qr`."""

    d_out: int
    d_in: int
    r: int
    dtype: str

    @classmethod
    def of(cls, factors: Factors) -> _PaddedShape:
        d_out, d_in = (_LENGTH * -(-side // _LENGTH) for side in (len(factors.b), factors.a.shape[1]))
        single = all(x.dtype.itemsize <= _SHORT or x.dtype == np.float32 for x in (factors.b, factors.a))
        return cls(d_out, d_in, bucket_of(len(factors.a)), "float32" if single else "float64")

    @property
    def rows(self) -> int:
        """The modules in each call."""
        return rows_for(self.r * (self.d_out + self.d_in), _FACTOR_NUMBERS, devices())

    def stacks(self, some: Sequence[Factors], rows: int) -> tuple[Matrix, Matrix]:
        """Return the factors b and a of `rows` modules, padded with zeros."""
        b = np.zeros((rows, self.d_out, self.r), self.dtype)
        a = np.zeros((rows, self.r, self.d_in), self.dtype)
        for row, one in enumerate(some):
            (d_out, r), d_in = one.b.shape, one.a.shape[1]
            b[row, :d_out, :r], a[row, :r, :d_in] = one.b, one.a
        return b, a


def _buckets(loads: Loads) -> Iterator[tuple[_PaddedShape, dict[int, Factors]]]:
    """Yield the updates by the shape to which they are padded, as many as make a call, with their indices."""
    waiting: dict[_PaddedShape, dict[int, Factors]] = {}
    for index, load in enumerate(loads):
        factors = load()
        shape = _PaddedShape.of(factors)
        waiting.setdefault(shape, {})[index] = factors
        if len(waiting[shape]) == shape.rows:
            yield shape, waiting.pop(shape)
    yield from waiting.items()


def _alike(sizes: Sequence[int]) -> list[list[int]]:
    """The indices of equal sizes together."""
    places: dict[int, list[int]] = {}
    for index, size in enumerate(sizes):
        places.setdefault(size, []).append(index)
    return list(places.values())


def _each(batch: Result) -> list[Result]:
    """The numbers of each module of a batch, as arrays of NumPy."""
    leaves, tree = jax.tree.flatten(batch)
    return [jax.tree.unflatten(tree, one) for one in zip(*leaves, strict=True)]


def _spectrum(result: Result, r: int, scale: float) -> Spectrum:
    numbers, size = result.quantities, abs(scale) * math.prod(float(x) for x in result.sizes)
    k90, k95, k99 = (int(k) for k in numbers.energy_ranks)
    of_b, of_a = (float(x) for x in result.factor_stable_ranks)
    norm_b, norm_a = (float(norm) * float(each) for norm, each in zip(result.factor_norms, result.sizes, strict=True))
    return Spectrum(
        sigma=_padded(result.sigma, r) * size,
        finite=bool(result.finite),
        stable_rank=float(numbers.stable_rank),
        effective_rank=float(numbers.effective_rank),
        participation_ratio=float(numbers.participation_ratio),
        energy_ranks=(k90, k95, k99),
        relative_errors=_padded(numbers.relative_errors, r + 1),
        spectral_norm=float(result.sigma[0]) * size,
        frobenius_norm=float(numbers.frobenius_norm) * size,
        factor_stable_ranks=(of_b, of_a),
        factor_norms=(norm_b, norm_a),
    )


def _padded(values: Any, length: int) -> Floats:
    """Return the values cut or zero-padded to a length: beyond the rank of the product, singular values are zero."""
    padded = np.zeros(length)
    padded[: len(values)] = values[:length]
    return padded
