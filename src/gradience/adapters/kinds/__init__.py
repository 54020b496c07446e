"""Adapter kinds: builders that turn each kind's tensors into an update.

This module has the updates that depend on the base weight, so that the factors alone do not give them; several kinds
share them. Each function returns a function of the base weight W as stored. That returns the true update W' - W, as a
matrix or as two factors of it. A convolution's weight is flattened to (out, in * kernel). The reference for each
formula is PEFT's own merge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from gradience.adapters.layout import Array, DenseUpdate, FactoredUpdate, LoadFactors, oriented
from gradience.errors import AdapterError

_BLOCK: Final = 1 << 20  # elements worked on in float64 at a time


def as_float32(x: Array) -> Array:
    """The array in float32, or unchanged if it is float64.

    On a CPU, PEFT also multiplies 16-bit factors in float32.
    """
    return x if x.dtype == np.float64 else x.astype(np.float32, copy=False)


def flipped(load: LoadFactors) -> LoadFactors:
    """A loader of the transposed update's factors: (B A)^T = A^T B^T."""

    def swapped() -> tuple[Array, Array]:
        b, a = load()
        return a.T, b.T

    return swapped


def dora(load: LoadFactors, scale: float, magnitude: Callable[[], Array], *, axis: int) -> DenseUpdate:
    """The update dW = (m / norm(V) - 1) W + (m / norm(V)) s B A with V = W + s B A.

    Norms run over `axis` of the matrix: 1 for a weight stored (out, in), 0 for one stored transposed and for
    embeddings (`peft/tuners/lora/dora.py`, get_weight_norm; `variants.py`, merge_safe).
    """

    def update(w: Array) -> Array:
        b, a, transposed = _oriented_factors(load, w)
        d = np.asarray((scale * b) @ a)
        along = 1 - axis if transposed else axis
        # In float64, because m / norm is near 1: in float32 its difference from 1 would be lost to rounding.
        m = magnitude().astype(np.float64).reshape(-1)
        norm = _norms(w, d, along)
        if m.shape != norm.shape:
            raise AdapterError(f"a magnitude of {len(m)} entries does not fit a base weight of shape {w.shape}")
        with np.errstate(divide="ignore", invalid="ignore"):  # for a norm of zero, PEFT's merge is not finite either
            factor = m / norm
            factor = factor[:, None] if along == 1 else factor[None, :]
            return np.asarray((factor - 1.0).astype(d.dtype) * w + factor.astype(d.dtype) * d)

    return _oriented(update)


def _norms(w: Array, d: Array, axis: int) -> Array:
    """Euclidean norms of W + dW along an axis, summed in float64 without a float64 copy of W or dW."""
    squares = np.zeros(w.shape[1 - axis])
    rows = max(1, _BLOCK // w.shape[1])  # a float64 copy of a whole embedding would be gigabytes
    for start in range(0, len(w), rows):
        block = w[start : start + rows].astype(np.float64) + d[start : start + rows]
        if axis == 1:
            squares[start : start + rows] = np.einsum("ij,ij->i", block, block)
        else:
            squares += np.einsum("ij,ij->j", block, block)
    return np.sqrt(squares)


def product(factored: FactoredUpdate) -> DenseUpdate:
    """The dense update of one that is known by its factors."""

    def dense(w: Array) -> Array:
        b, a = factored(w)
        return np.asarray(b @ a)

    return dense


def pissa(load: LoadFactors, scale: float, r: int) -> FactoredUpdate:
    """PiSSA's update dW = s B A - W_r, with W_r the best rank-r approximation of W (layer.py, pissa_init)."""

    def taken(w: Array) -> tuple[Array, Array]:
        short = w if w.shape[0] <= w.shape[1] else w.T
        _, vectors = _by_jax("eigh", short @ short.T)  # of the shorter side: cheaper than an SVD, and as exact here
        top = vectors[:, -r:]
        part = top, top.T @ short
        return part if short is w else (part[1].T, part[0].T)

    return _without_part(load, scale, taken)


def olora(load: LoadFactors, scale: float, r: int) -> FactoredUpdate:
    """OLoRA's update dW = s B A - s Q_r Q_r^T W, with Q_r from the QR of W's first r columns (layer.py, olora_init)."""

    def taken(w: Array) -> tuple[Array, Array]:
        # The first r columns of W's own Q, which PEFT takes, need no more than W's first r columns.
        q, _ = _by_jax("qr", w[:, :r])
        return scale * q, q.T @ w

    return _without_part(load, scale, taken)


def kasa(load: LoadFactors, scale: float, r: int) -> FactoredUpdate:
    """KaSA's update: dW = s (B diag) A minus W's part on its r smallest singular values.

    Source: variants.py, KasaLinearVariant.
    """

    def taken(w: Array) -> tuple[Array, Array]:
        u, s, vh = _by_jax("svd", w, full_matrices=False)
        if r >= len(s):
            raise AdapterError(f"KaSA of rank {r} leaves nothing of a base weight of shape {w.shape}")
        return u[:, -r:] * s[-r:], vh[-r:]

    return _without_part(load, scale, taken)


def _by_jax(name: str, x: Array, **options: bool) -> tuple[Array, ...]:
    """Return the arrays of a decomposition of `jax.numpy.linalg`, in float64."""
    import jax  # only these kinds need it here

    with jax.enable_x64(True):  # noqa: FBT003  # JAX's own signature
        parts: tuple[Array, ...] = tuple(np.asarray(y) for y in getattr(jax.numpy.linalg, name)(x, **options))
    return parts


def qalora(load: LoadFactors, scale: float, size: int, *, transposed: bool) -> FactoredUpdate:
    """QALoRA's update, whose A is of inputs averaged over groups of `size`, times the number of groups (variants.py).

    PEFT ignores the setting on a base that is not of GPTQ. No file of the adapter says which it was: the base weight's
    width does, unless a group has one input.
    """

    def factored(w: Array) -> tuple[Array, Array]:
        b, a = map(as_float32, load())
        groups, width = a.shape[1], w.shape[0 if transposed else 1]
        if size == 1:
            raise AdapterError("QALoRA with groups of one input: nothing tells whether PEFT counted them (use_qalora)")
        if width == groups * size:
            a = np.repeat(a, size, axis=1) * np.float32(groups / size)
        b = scale * b
        return (a.T, b.T) if transposed else (b, a)

    return factored


def _without_part(load: LoadFactors, scale: float, taken: FactoredUpdate) -> FactoredUpdate:
    """The update s B A minus the part that the initialisation took out of the base, as factors of inner size 2 r.

    `taken` returns that part's factors, computed in float64.
    """

    def factored(w: Array) -> tuple[Array, Array]:
        # What the start took out is large beside what is left of it after training: float32 would lose the difference.
        exact = w.reshape(w.shape[0], -1).astype(np.float64)
        b, a, _ = _oriented_factors(load, exact)
        left, right = taken(exact)
        return np.hstack([scale * b, -left]), np.vstack([a, right])

    return factored


def vera(factors: Callable[[tuple[int, int]], tuple[Array, Array]]) -> FactoredUpdate:
    """VeRA's update dW = (b o B) (d o A), with A cut to the width of W (vera/layer.py, get_delta_weight)."""

    def factored(w: Array) -> tuple[Array, Array]:
        b, a = factors((w.shape[0], w.size // w.shape[0]))
        return as_float32(b), as_float32(a)

    return factored


def _oriented(update: DenseUpdate) -> DenseUpdate:
    """The update as a function of a base weight with any number of axes; it gets a matrix in float32 or float64."""

    def dense(w: Array) -> Array:
        return update(as_float32(w.reshape(w.shape[0], -1)))

    return dense


def _oriented_factors(load: LoadFactors, w: Array) -> tuple[Array, Array, bool]:
    """B and A in W's orientation and precision, and whether the file's were transposed for that; W must fit one."""
    b, a = load()
    b, a = as_float32(b), as_float32(a)
    if w.dtype == np.float64:
        b, a = b.astype(np.float64), a.astype(np.float64)
    return oriented(b, a, w.shape)
