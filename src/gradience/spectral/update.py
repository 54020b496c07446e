"""The singular values of one low-rank update B A, without ever forming it.

`grams` sums the long axes away, in float64, and sees every byte of the adapter. What is left is r x r, and
LAPACK on the host does that faster than any accelerator and as exactly on every backend; these functions
take numpy arrays with any leading axes.

The Gram route loses about sqrt(eps) * |A| * |B|, so it is trusted only where sigma_1 is not much smaller
than that product. `core_singular_values` (QR of both factors) is backward stable and covers the rest.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from gradience.spectral.narrow import inner_size

Floats: TypeAlias = npt.NDArray[np.float64]

_SAMPLES = 8


@cache
def null_stable_rank(r: int, d_out: int, d_in: int, *, seed: int = 0) -> float:
    """Return the mean stable rank of B A with random B (d_out, r) and A (r, d_in)."""
    rng = np.random.default_rng(seed)
    return float(np.mean([_sample(rng, r, d_out, d_in) for _ in range(_SAMPLES)]))


@cache
def null_factor_stable_rank(r: int, d: int, *, seed: int = 0) -> float:
    """Return the mean stable rank of one random factor (d, r), r at most d."""
    rng = np.random.default_rng(seed)
    grams = (lower @ lower.T for lower in (_bartlett(rng, r, d) for _ in range(_SAMPLES)))
    return float(np.mean([float(gram_stable_rank(gram)) for gram in grams]))


def gram_stable_rank(gram: Floats) -> Floats:
    """Return the stable rank of a factor from its Gram matrix (..., r, r), finite: trace over largest eigenvalue."""
    largest = np.linalg.eigvalsh(gram)[..., -1]
    trace = np.trace(gram, axis1=-2, axis2=-1)
    return np.asarray(np.where(largest > 0.0, trace / np.where(largest > 0.0, largest, 1.0), 0.0))


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


# sigma_1^2 below this share of |A|^2 |B|^2: the Gram route may miss 1e-6 sigma_1 (tests/spectral shows it).
TRUSTED_SHARE: Final = 1e-2


class GramSpectrum(NamedTuple):
    """Singular values, largest first, and whether the Gram route can vouch for them."""

    sigma: Floats
    trusted: npt.NDArray[np.bool_]


def gram_singular_values(gram_a: Floats, gram_b: Floats) -> GramSpectrum:
    """Return the singular values of B A from A A^T and B^T B, both (..., r, r) and finite.

    Rows of A and columns of B are balanced first (A -> D A, B -> B D^-1 leaves B A as it is), and both
    are scaled to trace one: neither a row's scale nor the adapter's costs accuracy.
    """
    core = gram_core(gram_a, gram_b)
    return core_spectrum(core, np.asarray(np.linalg.eigvalsh(core.squared), np.float64))


def core_spectrum(core: GramCore, eigenvalues: Floats) -> GramSpectrum:
    """Return the same from the core's eigenvalues, in ascending order."""
    squares = np.maximum(eigenvalues[..., ::-1], 0.0)
    trusted = (squares[..., 0] >= TRUSTED_SHARE * core.largest) | (core.size_a == 0.0) | (core.size_b == 0.0)
    scale = np.sqrt(core.size_a) * np.sqrt(core.size_b)
    return GramSpectrum(np.sqrt(squares) * scale[..., None], trusted)


class GramCore(NamedTuple):
    """The core of B A from two Gram matrices: `squared` = root^T B^T B root has its squared singular values.

    They are in units of size_a * size_b: B^T B is balanced and divided by its trace size_b (`unit_b`), and so is
    A A^T = root root^T by size_a. `balance` is the diagonal of D; `largest` bounds the squares.
    """

    squared: Floats
    root: Floats
    unit_b: Floats
    size_a: Floats
    size_b: Floats
    balance: Floats
    largest: Floats


def gram_core(gram_a: Floats, gram_b: Floats) -> GramCore:
    """Return the r x r problem whose eigenvalues are squared singular values of B A; Grams as above."""
    balance = _balance(_diagonal(gram_a), _diagonal(gram_b))
    outer = balance[..., :, None] * balance[..., None, :]
    unit_a, size_a = _unit_trace(gram_a * outer)
    unit_b, size_b = _unit_trace(gram_b / outer)
    values, vectors = np.linalg.eigh(unit_a)
    root = vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]
    largest = values[..., -1] * np.linalg.norm(unit_b, axis=(-2, -1))
    return GramCore(_transpose(root) @ unit_b @ root, root, unit_b, size_a, size_b, balance, largest)


def core_singular_values(b: npt.NDArray[Any], a: npt.NDArray[Any]) -> Floats:
    """Return the singular values of B A by QR of both factors: b (d_out, r), a (r, d_in), in float64.

    Each factor is scaled to a largest entry of one, so that squares neither overflow nor vanish.
    """
    unit_b, size_b = _unit_peak(b.astype(np.float64))
    unit_a, size_a = _unit_peak(a.astype(np.float64))
    core = np.asarray(np.linalg.qr(unit_b, mode="r")) @ np.asarray(np.linalg.qr(unit_a.T, mode="r")).T
    sigma: Floats = np.linalg.svd(core, compute_uv=False) * size_b * size_a
    return sigma


def _diagonal(gram: Floats) -> Floats:
    return np.diagonal(gram, axis1=-2, axis2=-1)


def _transpose(x: Floats) -> Floats:
    return np.swapaxes(x, -1, -2)


def _balance(diagonal_a: Floats, diagonal_b: Floats) -> Floats:
    """Return D that makes row i of A and column i of B equally long; 1 where either is zero."""
    both = (diagonal_a > 0.0) & (diagonal_b > 0.0)
    ratio = np.where(both, diagonal_b, 1.0) / np.where(both, diagonal_a, 1.0)
    balance: Floats = np.where(both, np.sqrt(np.sqrt(ratio)), 1.0)
    return balance


def _unit_trace(gram: Floats) -> tuple[Floats, Floats]:
    size = np.trace(gram, axis1=-2, axis2=-1)
    return gram / np.where(size > 0.0, size, 1.0)[..., None, None], size


def _unit_peak(x: Floats) -> tuple[Floats, float]:
    peak = float(np.max(np.abs(x), initial=0.0))
    return (x / peak, peak) if peak > 0.0 else (x, 1.0)
