"""The spectra of many modules at once: their Gram matrices, then every quantity in one vmapped call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from gradience.spectral import metrics, update
from gradience.spectral.grams import Factors, Grams, grams_of

Matrix: TypeAlias = npt.NDArray[Any]

SHARES: Final = (0.90, 0.95, 0.99)

_MODULES: Final = 64  # modules per call for the quantities


class Spectrum(NamedTuple):
    """The numbers of one module; norms and singular values include the scale."""

    sigma: npt.NDArray[np.float64]
    finite: bool
    stable_rank: float
    effective_rank: float
    participation_ratio: float
    energy_ranks: tuple[int, int, int]
    relative_errors: npt.NDArray[np.float64]
    spectral_norm: float
    frobenius_norm: float


class _Quantities(NamedTuple):
    stable_rank: jax.Array
    effective_rank: jax.Array
    participation_ratio: jax.Array
    energy_ranks: jax.Array
    relative_errors: jax.Array
    frobenius_norm: jax.Array


def _quantities(sigma: jax.Array) -> _Quantities:
    return _Quantities(
        stable_rank=metrics.stable_rank(sigma),
        effective_rank=metrics.effective_rank(sigma),
        participation_ratio=metrics.participation_ratio(sigma),
        energy_ranks=jnp.stack([metrics.energy_rank(sigma, share) for share in SHARES]),
        relative_errors=metrics.relative_errors(sigma),
        frobenius_norm=metrics.frobenius_norm(sigma),
    )


_all_quantities = jax.jit(jax.vmap(_quantities))


def use_device(device: str) -> None:
    """Choose where the core runs in this process: `auto`, `cpu`, `gpu` or `tpu`. For a program's start.

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


def spectra(loads: Sequence[Callable[[], Factors]], grams: Sequence[Grams] | None = None) -> list[Spectrum]:
    """Return the spectrum of each update, in order; from its `grams_of` where the caller has them.

    Each load is called once (twice for the rare update whose factors all but cancel), and from several
    threads: consecutive loads mostly from the same one. Each thread holds one module at a time.
    """
    held = grams_of(loads) if grams is None else grams
    with jax.enable_x64(True):  # noqa: FBT003  # JAX's own signature
        return _finish(loads, held)


def _finish(loads: Sequence[Callable[[], Factors]], grams: Sequence[Grams]) -> list[Spectrum]:
    found: list[Spectrum | None] = [None] * len(grams)
    by_bucket: dict[int, list[int]] = {}
    for index, one in enumerate(grams):
        by_bucket.setdefault(len(one.gram_a), []).append(index)
    for bucket, indices in by_bucket.items():
        for start in range(0, len(indices), _MODULES):
            some = indices[start : start + _MODULES]
            sigma, finite = _sigma(loads, grams, some, bucket)
            numbers = jax.tree.map(np.asarray, _all_quantities(sigma))
            for row, index in enumerate(some):
                one_row = _Quantities(*(field[row] for field in numbers))
                found[index] = _spectrum(sigma[row], one_row, grams[index], finite=bool(finite[row]))
    return [spectrum for spectrum in found if spectrum is not None]


def _sigma(
    loads: Sequence[Callable[[], Factors]],
    grams: Sequence[Grams],
    some: list[int],
    bucket: int,
) -> tuple[Matrix, Matrix]:
    """Return singular values (a fixed number of rows, zero beyond those asked for), and which are finite."""
    sides = np.zeros((2, len(some), bucket, bucket))
    for row, index in enumerate(some):
        sides[0, row], sides[1, row] = grams[index].gram_a, grams[index].gram_b
    finite = np.asarray(np.isfinite(sides).all(axis=(0, 2, 3)))
    sides[:, ~finite] = 0.0
    spectrum = update.gram_singular_values(sides[0], sides[1])
    sigma = np.zeros((_MODULES, bucket))
    sigma[: len(some)] = spectrum.sigma
    for row, index in enumerate(some):
        if finite[row] and not spectrum.trusted[row]:
            factors = loads[index]()
            exact = update.core_singular_values(factors.b, factors.a)
            sigma[row] = 0.0
            sigma[row, : len(exact)] = exact
    return sigma, finite


def _spectrum(sigma: Matrix, numbers: _Quantities, grams: Grams, *, finite: bool) -> Spectrum:
    r, size = grams.r, abs(grams.scale)
    return Spectrum(
        sigma=_padded(sigma, r) * size,
        finite=finite,
        stable_rank=float(numbers.stable_rank),
        effective_rank=float(numbers.effective_rank),
        participation_ratio=float(numbers.participation_ratio),
        energy_ranks=tuple(int(k) for k in numbers.energy_ranks),  # type: ignore[arg-type]  # three shares
        relative_errors=_padded(np.asarray(numbers.relative_errors), r + 1),
        spectral_norm=float(sigma[0]) * size,
        frobenius_norm=float(numbers.frobenius_norm) * size,
    )


def _padded(values: Matrix, length: int) -> Matrix:
    """The first values, and zeros beyond them: what lies past the product's own rank is zero."""
    return np.pad(values, (0, length - len(values))) if length > len(values) else values[:length]
