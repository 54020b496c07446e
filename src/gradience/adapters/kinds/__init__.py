"""Adapter kinds: how each one's tensors become an update.

Here are the updates that are a function of the base weight, which several kinds share: what the factors alone do not
say. Each function returns the true update W' - W as a matrix, given the base weight as stored (a convolution's
flattened to (out, in * kernel)). PEFT's own merge is the reference for each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from gradience.adapters.layout import Array, DenseUpdate, FactoredUpdate, LoadFactors
from gradience.errors import AdapterError

_BLOCK: Final = 1 << 20  # elements worked on in float64 at a time


def as_float32(x: Array) -> Array:
    """The array in float32, or as it is where it is float64 already.

    PEFT on a CPU multiplies 16-bit factors in float32 too.
    """
    return x if x.dtype == np.float64 else x.astype(np.float32, copy=False)


def flipped(load: LoadFactors) -> LoadFactors:
    """A loader of the transposed update: (B A)^T = A^T B^T."""

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
        d, transposed = _product_and_orientation(load, scale, w)
        along = 1 - axis if transposed else axis
        # In float64: m / norm is near 1, and what is left after 1 is taken off would drown in float32.
        m = magnitude().astype(np.float64).reshape(-1)
        norm = _norms(w, d, along)
        if m.shape != norm.shape:
            raise AdapterError(f"a magnitude of {len(m)} entries does not fit a base weight of shape {w.shape}")
        with np.errstate(divide="ignore", invalid="ignore"):  # PEFT's merge is not finite there either
            factor = m / norm
        factor = factor[:, None] if along == 1 else factor[None, :]
        return np.asarray((factor - 1.0).astype(d.dtype) * w + factor.astype(d.dtype) * d)

    return _oriented(update)


def _norms(w: Array, d: Array, axis: int) -> Array:
    """Norms of W + dW along an axis, added up in float64 without a float64 copy of either."""
    squares = np.zeros(w.shape[1 - axis])
    rows = max(1, _BLOCK // max(1, w.shape[1]))  # a float64 copy of a whole embedding would be gigabytes
    for start in range(0, len(w), rows):
        block = w[start : start + rows].astype(np.float64) + d[start : start + rows]
        if axis == 1:
            squares[start : start + rows] = np.einsum("ij,ij->i", block, block)
        else:
            squares += np.einsum("ij,ij->j", block, block)
    return np.sqrt(squares)


def product(factored: FactoredUpdate) -> DenseUpdate:
    """The matrix of an update that is known by its factors."""

    def dense(w: Array) -> Array:
        b, a = factored(w)
        return np.asarray(b @ a)

    return dense


def pissa(load: LoadFactors, scale: float, r: int) -> FactoredUpdate:
    """The update dW = s B A - W_r, W_r the best rank-r part of W, PiSSA's share of it (layer.py, pissa_init)."""

    def taken(w: Array) -> tuple[Array, Array]:
        short = w if w.shape[0] <= w.shape[1] else w.T
        _, vectors = np.linalg.eigh(short @ short.T)  # of the smaller side: cheaper than an SVD, as exact
        top = vectors[:, -r:]
        part = top, top.T @ short
        return part if short is w else (part[1].T, part[0].T)

    return _without_part(load, scale, taken)


def olora(load: LoadFactors, scale: float, r: int) -> FactoredUpdate:
    """The update dW = s B A - s Q_r Q_r^T W, Q_r from the QR of W's first r columns (layer.py, olora_init)."""

    def taken(w: Array) -> tuple[Array, Array]:
        q, _ = np.linalg.qr(w[:, :r])
        return scale * q, q.T @ w

    return _without_part(load, scale, taken)


def kasa(load: LoadFactors, scale: float, r: int) -> FactoredUpdate:
    """The update dW = s (B diag) A - W's part on its r smallest singular values (variants.py, KasaLinearVariant)."""

    def taken(w: Array) -> tuple[Array, Array]:
        u, s, vh = np.linalg.svd(w, full_matrices=False)
        if r >= len(s):
            raise AdapterError(f"KaSA of rank {r} leaves nothing of a base weight of shape {w.shape}")
        return u[:, -r:] * s[-r:], vh[-r:]

    return _without_part(load, scale, taken)


def _without_part(load: LoadFactors, scale: float, taken: FactoredUpdate) -> FactoredUpdate:
    """The update s B A less what the start took out of the base (in float64): together of rank 2 r at most."""

    def factored(w: Array) -> tuple[Array, Array]:
        exact = w.reshape(w.shape[0], -1).astype(np.float64)
        b, a, _ = _oriented_factors(load, exact)
        left, right = taken(exact)
        return np.hstack([scale * b, -left]), np.vstack([a, right])

    return factored


def hira(factors: LoadFactors) -> DenseUpdate:
    """The update dW = W o (B A), elementwise (hira/layer.py, _merge)."""
    return _oriented(lambda w: w * _product(factors, 1.0, w))


def vera(factors: Callable[[tuple[int, int]], tuple[Array, Array]]) -> FactoredUpdate:
    """The update dW = (b o B) (d o A), with A cut to the width of W (vera/layer.py, get_delta_weight)."""

    def factored(w: Array) -> tuple[Array, Array]:
        b, a = factors((w.shape[0], w.size // max(1, w.shape[0])))
        return as_float32(b), as_float32(a)

    return factored


def miss(block: Callable[[], Array], kind: object) -> FactoredUpdate:
    """MiSS's update (miss/layer.py): each r columns of W gain the same block, so its rank is r at most."""

    def factored(w: Array) -> tuple[Array, Array]:
        piece = as_float32(block())
        out, inner = w.shape[0], w.size // max(1, w.shape[0])
        repeats = out // piece.shape[1]
        if repeats * piece.shape[1] != out or (repeats != 1 and kind != "mini"):
            raise AdapterError(f"a MiSS block of shape {piece.shape} does not fit a base weight of shape {w.shape}")
        r = len(piece)
        # The last repetition is cut where the width is not a multiple of r.
        ones = np.tile(np.eye(r, dtype=piece.dtype), (1, -(-inner // r)))[:, :inner]
        return np.tile(piece, (1, repeats)).T, ones

    return factored


def bat(block: Callable[[], Array]) -> DenseUpdate:
    """The update of MiSS with `init_weights="bat"`: the block multiplies W too (miss/layer.py)."""
    return _oriented(lambda w: _bat(w, as_float32(block())))


def _bat(w: Array, block: Array) -> Array:
    out, inner = w.shape
    n, r, _ = block.shape
    if n * r != out or inner % r:
        raise AdapterError(f"a MiSS block of shape {block.shape} does not fit a base weight of shape {w.shape}")
    # W in blocks of r x r, the column of blocks first: each is multiplied by its row's own block.
    grid = w.reshape(n, r, inner // r, r).transpose(2, 0, 1, 3)
    return (grid @ block + block).transpose(1, 2, 0, 3).reshape(out, inner)


def _oriented(update: DenseUpdate) -> DenseUpdate:
    """The update for a base weight of any number of axes, floats of at least 32 bits."""

    def dense(w: Array) -> Array:
        return update(as_float32(w.reshape(w.shape[0], -1)))

    return dense


def _product(load: LoadFactors, scale: float, w: Array) -> Array:
    return _product_and_orientation(load, scale, w)[0]


def _product_and_orientation(load: LoadFactors, scale: float, w: Array) -> tuple[Array, bool]:
    """The product s B A in W's orientation, and whether that is the factors' transposed; W must fit one of both."""
    b, a, transposed = _oriented_factors(load, w)
    return np.asarray((scale * b) @ a), transposed


def _oriented_factors(load: LoadFactors, w: Array) -> tuple[Array, Array, bool]:
    """B and A in W's orientation and precision, and whether that is the file's transposed."""
    b, a = load()
    b, a = as_float32(b), as_float32(a)
    if w.dtype == np.float64:
        b, a = b.astype(np.float64), a.astype(np.float64)
    # Experts of some models are stored (in, out), which their file does not say: W's shape decides.
    if (len(b), a.shape[1]) == w.shape:
        return b, a, False
    if (a.shape[1], len(b)) != w.shape:
        raise AdapterError(
            f"an update of shape ({len(b)}, {a.shape[1]}) does not fit a base weight of shape {w.shape}",
            advice="give the base model that the adapter was trained on",
        )
    return a.T, b.T, True
