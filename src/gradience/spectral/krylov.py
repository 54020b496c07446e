"""The leading singular values of W or of W + B A, the latter without forming the sum, by block Lanczos methods.

Block Golub-Kahan bidiagonalisation shows of singular values what a few products of W with 16 vectors at a time hold:

    W Q = P C,        W^T P = Q (C, next)^T

P and Q have orthonormal columns, P one block more than Q, and C is block bidiagonal. The products with W are float32
and XLA's, which is twice as fast as BLAS at matrices as thin as a block. What is as small as a block stays in numpy. A
block finds equal values together, and costs little more than one vector. `leading` begins at random vectors and goes on
until the residuals show convergence.

`spectral_norm` is the largest value of a weight as it is stored: Lanczos on W^T W. A few rows at a time are made
float32 and used for both halves of the product while they are in the cache: a pass costs little more than reading W,
and no second copy of it is held. Two vectors begin, since one does not see that the second singular value is all but
as large as the first; more cost more than the passes that they save.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from gradience.spectral.grams import Floats, Matrix

_HIGHEST: Final = lax.Precision.HIGHEST
_ALIGNMENT: Final = 64  # bytes: an array that begins at a multiple of it is used by XLA where it lies
_DEPENDENT: Final = 1e-10  # of the largest pivot, squared: below it a block's Gram matrix does not give its basis

_GUARD: Final = 6  # vectors of a block beyond those that are asked for
_WIDTHS: Final = 8  # a block is a multiple of it: so wide is a register
_VECTORS: Final = 768  # of each basis, at most
EXACT_UNDER: Final = 96  # smaller matrices: dense float64 SVD
_SMALL: Final = 768  # the same, where the iteration did not converge
_FIRST_LOOK: Final = 3  # steps
_ANGLE: Final = 2e-3

_PART: Final = 1 << 17  # numbers of W that are widened at a time: 512 KiB stay in a core's cache
_PAIR: Final = 2  # vectors, so that two values all but equal are told apart; thin matrix products cost more than this
_PASSES: Final = 64
_ERROR: Final = 2e-6  # of sigma
_LEAST: Final = 1e-15  # its square, spread over the entries of W^T W x, is far from where float32 loses digits


class Operator(NamedTuple):
    """The matrix W + B A: w (m, n), b (m, r), a (r, n), all float32; r may be 0."""

    w: jax.Array
    b: jax.Array
    a: jax.Array

    @classmethod
    def of(cls, w: Matrix) -> Operator:
        """Return the operator of W alone, on JAX's default device.

        An array as `as_float32` gives it is not copied where that is the processor's memory: it must not change.
        """
        m, n = w.shape
        held = jax.device_put(w.astype(np.float32, copy=False), may_alias=True)
        return cls(held, jnp.zeros((m, 0), jnp.float32), jnp.zeros((0, n), jnp.float32))

    def plus(self, b: Matrix, a: Matrix) -> Operator:
        """Return W + b a, of the same W."""
        return Operator(self.w, jnp.asarray(b, jnp.float32), jnp.asarray(a, jnp.float32))

    def whole(self) -> Floats:
        """Return the sum, in float64."""
        w, b, a = (np.asarray(x, np.float64) for x in self)
        return w + b @ a

    def times(self, v: Matrix) -> Matrix:
        """Return (W + B A) v of vectors as rows, v (c, n)."""
        return np.asarray(_times(self, v.T)).T

    def turned(self, u: Matrix) -> Matrix:
        """Return (W + B A)^T u of vectors as rows, u (c, m)."""
        return np.asarray(_turned(self, u.T))


@jax.jit
def _times(x: Operator, v: jax.Array) -> jax.Array:
    low = jnp.matmul(x.b, jnp.matmul(x.a, v, precision=_HIGHEST), precision=_HIGHEST)
    return jnp.matmul(x.w, v, precision=_HIGHEST) + low


@jax.jit
def _turned(x: Operator, u: jax.Array) -> jax.Array:
    low = jnp.matmul(jnp.matmul(u.T, x.b, precision=_HIGHEST), x.a, precision=_HIGHEST)
    return jnp.matmul(u.T, x.w, precision=_HIGHEST) + low


def as_float32(x: Matrix) -> Matrix:
    """Return x in float32, where XLA can use it without a copy; x itself if it is such an array."""
    if x.dtype == np.float32 and x.ctypes.data % _ALIGNMENT == 0 and x.flags.c_contiguous:
        return x
    raw = np.empty(x.size * 4 + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    out: Matrix = raw[start : start + x.size * 4].view(np.float32).reshape(x.shape)
    np.copyto(out, x, casting="unsafe")
    return out


class Bidiagonal:
    """The bases P and Q after some steps, begun at a block on the left.

    `left` and `right` have basis vectors as rows; `core` is C, (c (steps + 1), c steps); `next` the c x c factor that
    leads on to the block of Q behind it.
    """

    def __init__(self, matrix: Operator, start: Matrix, most: int) -> None:
        """Begin at the rows of `start` (c, m), with room for so many steps."""
        self._matrix = matrix
        self.width = c = len(start)
        m, n = matrix.w.shape
        self.steps = 0
        self._left, self._right = (np.empty((c * (most + 1), size), np.float32) for size in (m, n))
        self._core = np.zeros((c * (most + 1), c * (most + 1)))
        self._left[:c], _ = orthonormal(start, self._left[:0])
        self._turn()

    @property
    def left(self) -> Matrix:
        """P, vectors as rows."""
        return self._left[: self.width * (self.steps + 1)]

    @property
    def right(self) -> Matrix:
        """Q, vectors as rows."""
        return self._right[: self.width * self.steps]

    @property
    def core(self) -> Floats:
        """C."""
        return self._core[: self.width * (self.steps + 1), : self.width * self.steps]

    @property
    def next(self) -> Floats:
        """What W^T takes from the last block of P out of the span of Q; c x c, to be multiplied by it from the left."""
        last = self._block(self.steps)
        return self._core[last, last].T

    def step(self) -> None:
        """Add a block to each side."""
        here, last = self._block(self.steps + 1), self._block(self.steps)
        self._left[here], size = orthonormal(self._matrix.times(self._right[last]), self.left)
        self._core[here, last] = size
        self.steps += 1
        self._turn()

    def _turn(self) -> None:
        last = self._block(self.steps)
        self._right[last], size = orthonormal(self._matrix.turned(self._left[last]), self.right)
        self._core[last, last] = size.T

    def _block(self, place: int) -> slice:
        return slice(place * self.width, (place + 1) * self.width)


def orthonormal(block: Matrix, basis: Matrix) -> tuple[Matrix, Floats]:
    """Return (Y, R) with block - its part in the span of the basis = R^T Y, rows of Y orthonormal, also to the basis.

    Where rows depend on each other Y has others in their place, and R nothing but rounding there.
    """
    total = np.eye(len(block))
    for _ in range(2):  # twice is enough (Parlett)
        block = block - (block @ basis.T) @ basis
        block, size = _triangular(block)
        total = size @ total
    return block, total


def _triangular(block: Matrix) -> tuple[Matrix, Floats]:
    """Return (Y, R) with block = R^T Y: by Cholesky's factor of the Gram matrix, or by Householder's reflections."""
    wide = block.astype(np.float64)
    gram = wide @ wide.T
    try:
        lower: Matrix = np.linalg.cholesky(gram)
    except np.linalg.LinAlgError:
        lower = np.zeros_like(gram)
    pivots = np.diagonal(lower) ** 2
    if pivots.min() > _DEPENDENT * pivots.max():
        y, r = (np.linalg.inv(lower) @ wide).T, lower.T  # a product: LAPACK solves for wide right sides slowly
    else:
        y, r = np.linalg.qr(wide.T)
    factor: Floats = np.asarray(r, np.float64)
    return y.T.astype(np.float32), factor


class Triplets(NamedTuple):
    """Leading singular values and left vectors, largest first.

    `guard` has further left vectors, which may not have converged: all that follows W + B A well can start from them.
    """

    sigma: npt.NDArray[np.float64]
    left: Matrix
    residuals: npt.NDArray[np.float64]
    steps: int
    converged: bool
    exact: bool
    guard: Matrix


def leading(matrix: Operator, k: int = 1, *, tolerance: float = 2e-6, vectors: bool = False, seed: int = 0) -> Triplets:
    """Return the k largest singular values of W + B A, with left vectors.

    A value counts as converged when its error bound min(rho, rho^2 / gap) is within tolerance * sigma_1, rho
    being the residual and gap the distance to the next value; with `vectors`, when also the angle rho / gap is
    within 2e-3, or rho within tolerance * sigma_1 (equal values have no vectors of their own).
    """
    m, n = matrix.w.shape
    k = min(k, m, n)
    width = _WIDTHS * -(-(k + (_GUARD if vectors else 0)) // _WIDTHS)
    most = min(_VECTORS, m, n) // width - 1
    if min(m, n) <= EXACT_UNDER or most < 1:
        return _dense(matrix, k)
    found = _iterated(matrix, k, (width, most), tolerance, vectors=vectors, seed=seed)
    return found if found.converged or min(m, n) > _SMALL else _dense(matrix, k)


def _iterated(
    matrix: Operator, k: int, sizes: tuple[int, int], tolerance: float, *, vectors: bool, seed: int
) -> Triplets:
    width, most = sizes
    start = np.random.default_rng(seed).standard_normal((width, matrix.w.shape[0]), np.float32)
    basis, look = Bidiagonal(matrix, start, most), min(_FIRST_LOOK, most)
    while True:
        basis.step()
        if basis.steps < look:
            continue
        ritz = ritz_of(basis)
        converged = _converged(ritz, k, tolerance, vectors=vectors)
        if converged or basis.steps == most:
            left = basis.left.T @ ritz.left[:, :width].astype(np.float32)
            return Triplets(
                ritz.sigma[:k], left[:, :k], ritz.residuals[:k], basis.steps, converged, exact=False, guard=left[:, k:]
            )
        look = min(most, look + max(1, look // 4))


def _dense(matrix: Operator, k: int) -> Triplets:
    left, sigma, _ = np.linalg.svd(matrix.whole(), full_matrices=False)
    return Triplets(sigma[:k], left[:, :k], np.zeros(k), 0, converged=True, exact=True, guard=left[:, k:k])


class Ritz(NamedTuple):
    """SVD of the core: values largest first, vectors in the bases, and the residuals |W^T p - sigma q|."""

    sigma: Floats
    left: Floats
    right: Floats
    residuals: Floats


def ritz_of(basis: Bidiagonal) -> Ritz:
    """Return what the bases hold of singular triplets."""
    left, sigma, right = np.linalg.svd(basis.core, full_matrices=False)
    residuals = np.linalg.norm(basis.next @ left[-basis.width :], axis=0)
    return Ritz(sigma, left, right.T, residuals)


def _converged(ritz: Ritz, k: int, tolerance: float, *, vectors: bool) -> bool:
    gaps, bar = _gaps(ritz.sigma)[:k], tolerance * ritz.sigma[0]
    residuals = ritz.residuals[:k]
    held = np.minimum(residuals, residuals**2 / gaps) <= bar
    if vectors:
        held &= (residuals <= _ANGLE * gaps) | (residuals <= bar)
    return bool(held.all())


def _gaps(sigma: Floats) -> Floats:
    """Return the distance of each value to its nearest neighbour, never 0."""
    steps = np.abs(np.diff(sigma))
    nearest = np.minimum(np.append(np.inf, steps), np.append(steps, np.inf))
    gaps: Floats = np.maximum(nearest, np.finfo(np.float64).tiny)
    return gaps


class SpectralNorm(NamedTuple):
    """The value, the passes over W that it took, and whether its residual says that it is within 1e-5."""

    value: float
    passes: int
    converged: bool


def spectral_norm(w: Matrix, *, seed: int = 0) -> SpectralNorm:
    """Return the largest singular value of a finite matrix of any float dtype.

    Blocks of eight vectors where two do not get there, or float32 does not hold squares; of small matrices a dense SVD.
    """
    if min(w.shape) > EXACT_UNDER:
        with np.errstate(over="ignore", invalid="ignore"):
            found = _largest(_Rows(w), np.random.default_rng(seed))
        if found.converged and found.value > _LEAST:
            return found
    top = leading(Operator.of(as_float32(w)), seed=seed)
    return SpectralNorm(float(top.sigma[0]), 2 * top.steps, top.converged)


class _Rows:
    """W in parts of some rows, each in float32 until the next is asked for."""

    def __init__(self, w: Matrix) -> None:
        self.shape = w.shape
        self._w = w
        self._part = np.empty((min(max(1, _PART // w.shape[1]), len(w)), w.shape[1]), np.float32)

    def __iter__(self) -> Iterator[Matrix]:
        size = len(self._part)
        for first in range(0, len(self._w), size):
            rows = self._w[first : first + size]
            part = self._part[: len(rows)]
            np.copyto(part, rows, casting="unsafe")
            yield part

    def squared(self, block: Matrix) -> Floats:
        """W^T W x of float32 vectors as rows."""
        total = np.zeros_like(block)
        for part in self:
            for i, x in enumerate(block):
                total[i] += (part @ x) @ part
        return total.astype(np.float64)


def _largest(w: _Rows, rng: np.random.Generator) -> SpectralNorm:
    c, n = _PAIR, w.shape[1]
    most = min(_PASSES, min(w.shape) // c)
    basis, core = np.empty((c * (most + 1), n), np.float32), np.zeros((c * most, c * most))
    basis[:c], _ = orthonormal(rng.standard_normal((c, n), np.float32), basis[:0])
    for step in range(most):
        here, known = slice(c * step, c * (step + 1)), basis[: c * (step + 1)]
        product = w.squared(basis[here])
        if not np.isfinite(product).all():
            return SpectralNorm(float("inf"), step + 1, converged=False)
        inner = known.astype(np.float64) @ product.T
        core[: len(known), here], core[here, : len(known)] = inner, inner.T
        basis[len(known) : len(known) + c], left = orthonormal(product, known)
        values, vectors = np.linalg.eigh(core[: len(known), : len(known)])
        largest, residual = max(float(values[-1]), 0.0), float(np.linalg.norm(left @ vectors[here, -1]))
        if _is_close(largest, residual, largest - float(values[-2])):
            return SpectralNorm(float(np.sqrt(largest)), step + 1, converged=True)
    return SpectralNorm(float(np.sqrt(largest)), most, converged=False)


def _is_close(square: float, residual: float, gap: float) -> bool:
    """Whether the root of an eigenvalue is within 2e-6 of itself, by its residual and the distance of the next one."""
    error = 2.0 * _ERROR * square
    return residual <= error or residual**2 <= error * gap
