"""The leading singular values of W or of W + B A, the latter without forming the sum, by block Lanczos methods.

`leading` uses block Golub-Kahan bidiagonalisation. It multiplies W by one block of c vectors at a time, c a multiple
of 8, and builds two orthonormal bases P and Q:

    W Q = P C,        W^T P = Q C^T + Q_next [0, R]

P has one block of columns more than Q, C is block bidiagonal, and the c x c factor R acts on P's last block. The
singular values of C approximate those of W. A block finds equal singular values together, and costs little more than
one vector. `leading` starts from random vectors and stops when the residuals show convergence. XLA computes the
products with W in float32, because it is twice as fast as BLAS for matrices as thin as a block. Arrays as small as a
block stay in numpy.

`spectral_norm` gives the largest singular value of a weight as it is stored, by Lanczos on W^T W. It converts a few
rows at a time to float32, and uses them for both halves of the product while they are in the cache. So a pass costs
little more than reading W, and no second copy of W is held. It starts from two vectors, because one vector does not
show that the second singular value is almost as large as the first. More vectors cost more than the passes they save.
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
_ALIGNMENT: Final = 64  # bytes: XLA uses an array in place if its address is a multiple of 64
_OUTSIDE: Final = 0.5  # of a unit vector: the share outside a basis above which no more of it need be taken away
_DEPENDENT: Final = 1e-10  # pivot^2 relative to the largest: below it, Cholesky of the Gram matrix gives no basis

_GUARD: Final = 6  # extra vectors in a block, beyond the number asked for
_WIDTHS: Final = 8  # a block's width is a multiple of 8, the width of a register
_VECTORS: Final = 768  # of each basis, at most
EXACT_UNDER: Final = 96  # shorter side: up to it, a dense float64 SVD
_SMALL: Final = 768  # shorter side: up to it, a dense SVD if the iteration did not converge
_FIRST_LOOK: Final = 3  # steps before convergence is first checked
_ANGLE: Final = 2e-3  # radians: the largest error of a converged singular vector

_PART: Final = 1 << 17  # entries of W converted to float32 at a time: 512 KiB stay in a core's cache
_PAIR: Final = 2  # vectors: two tell almost equal values apart; a product with more vectors costs more
_PASSES: Final = 64  # over W, at most
_ERROR: Final = 2e-6  # relative to sigma_1
_LEAST: Final = 1e-15  # sigma: its square, spread over the entries of W^T W x, is far above float32's subnormals


class Operator(NamedTuple):
    """The matrix W + B A: w (m, n), b (m, r), a (r, n), all float32; r may be 0."""

    w: jax.Array
    b: jax.Array
    a: jax.Array

    @classmethod
    def of(cls, w: Matrix) -> Operator:
        """Return the operator of W alone, on JAX's default device.

        If the device is the CPU, an array from `as_float32` is shared and not copied, so the caller must not change it.
        """
        m, n = w.shape
        held = jax.device_put(w.astype(np.float32, copy=False), may_alias=True)
        return cls(held, jnp.zeros((m, 0), jnp.float32), jnp.zeros((0, n), jnp.float32))

    def plus(self, b: Matrix, a: Matrix) -> Operator:
        """Return the operator of W + b a, sharing W."""
        return Operator(self.w, jnp.asarray(b, jnp.float32), jnp.asarray(a, jnp.float32))

    def whole(self) -> Floats:
        """Return W + B A as a dense float64 matrix."""
        w, b, a = (np.asarray(x, np.float64) for x in self)
        return w + b @ a

    def times(self, v: Matrix) -> Matrix:
        """Return (W + B A) applied to each row of v (c, n), as rows (c, m)."""
        return np.asarray(_times(self, v.T)).T

    def turned(self, u: Matrix) -> Matrix:
        """Return (W + B A)^T applied to each row of u (c, m), as rows (c, n)."""
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
    """Return x as a contiguous float32 array, aligned so that XLA needs no copy; x itself if it already is one."""
    if x.dtype == np.float32 and x.ctypes.data % _ALIGNMENT == 0 and x.flags.c_contiguous:
        return x
    raw = np.empty(x.size * 4 + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    out: Matrix = raw[start : start + x.size * 4].view(np.float32).reshape(x.shape)
    np.copyto(out, x, casting="unsafe")
    return out


class Bidiagonal:
    """A block Golub-Kahan bidiagonalisation in progress: the bases P and Q and the core C after some steps.

    It starts from a block of P. `left` and `right` hold the basis vectors as rows. `core` is C, of shape
    (c (steps + 1), c steps). `next` is R (c, c), which couples the last block of P to the next block of Q.
    """

    def __init__(self, matrix: Operator, start: Matrix, most: int) -> None:
        """Start from the rows of `start` (c, m), with room for `most` steps."""
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
        """The basis P, vectors as rows: (c (steps + 1), m)."""
        return self._left[: self.width * (self.steps + 1)]

    @property
    def right(self) -> Matrix:
        """The basis Q, vectors as rows: (c steps, n)."""
        return self._right[: self.width * self.steps]

    @property
    def core(self) -> Floats:
        """The block bidiagonal core C, (c (steps + 1), c steps)."""
        return self._core[: self.width * (self.steps + 1), : self.width * self.steps]

    @property
    def next(self) -> Floats:
        """The factor R (c, c): W^T P_last is its part in the span of Q, plus Q_next R."""
        last = self._block(self.steps)
        return self._core[last, last].T

    def step(self) -> None:
        """Add a block of vectors to each basis: two products with W."""
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
    """Return (Y, R) with R^T Y = block minus its projection on the basis; vectors are rows.

    The rows of Y are orthonormal, and orthogonal to the basis. If rows of the block are linearly dependent, Y holds
    arbitrary orthonormal rows in their place, and R holds only rounding errors there.
    """
    total = np.eye(len(block))
    for turn in range(4):  # one reorthogonalisation: "twice is enough" (Parlett), unless the block is rounding errors
        block = block - (block @ basis.T) @ basis
        block, size = _triangular(block)
        total = size @ total
        if turn and np.abs(np.diagonal(size)).min() > _OUTSIDE:
            break
    return block, total


def _triangular(block: Matrix) -> tuple[Matrix, Floats]:
    """Return (Y, R) with block = R^T Y: by Cholesky QR, or by Householder QR if the rows are nearly dependent."""
    wide = block.astype(np.float64)
    gram = wide @ wide.T
    try:
        lower: Matrix = np.linalg.cholesky(gram)
    except np.linalg.LinAlgError:
        lower = np.zeros_like(gram)
    pivots = np.diagonal(lower) ** 2
    if pivots.min() > _DEPENDENT * pivots.max():
        y, r = (np.linalg.inv(lower) @ wide).T, lower.T  # not a solve: LAPACK's is slow for a wide right-hand side
    else:
        y, r = np.linalg.qr(wide.T)
    factor: Floats = np.asarray(r, np.float64)
    return y.T.astype(np.float32), factor


class Triplets(NamedTuple):
    """Leading singular values and left singular vectors (columns), largest first.

    `guard` holds the block's further left vectors, which may not have converged. They are good starting vectors for
    another iteration on the matrix.
    """

    sigma: npt.NDArray[np.float64]
    left: Matrix
    steps: int
    converged: bool
    exact: bool
    guard: Matrix


def leading(matrix: Operator, k: int = 1, *, vectors: bool = False, seed: int = 0) -> Triplets:
    """Return the k largest singular values of W + B A, with left singular vectors.

    A value has converged if its error bound min(rho, rho^2 / gap) is at most 2e-6 sigma_1. Here rho is the residual,
    and gap the distance to the nearest other value. With `vectors`, the angle rho / gap must also be at most 2e-3, or
    rho at most 2e-6 sigma_1; the latter is for equal singular values, whose vectors are not unique.
    """
    m, n = matrix.w.shape
    width = _WIDTHS * -(-(k + (_GUARD if vectors else 0)) // _WIDTHS)
    most = min(_VECTORS, m, n) // width - 1
    if min(m, n) <= EXACT_UNDER or most < 1:
        return _dense(matrix, k)
    found = _iterated(matrix, k, (width, most), _ERROR, vectors=vectors, seed=seed)
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
            return Triplets(ritz.sigma[:k], left[:, :k], basis.steps, converged, exact=False, guard=left[:, k:])
        look = min(most, look + max(1, look // 4))


def _dense(matrix: Operator, k: int) -> Triplets:
    left, sigma, _ = np.linalg.svd(matrix.whole(), full_matrices=False)
    return Triplets(sigma[:k], left[:, :k], 0, converged=True, exact=True, guard=left[:, k:k])


class Ritz(NamedTuple):
    """The SVD of the core: values largest first, vectors as coordinates in P and Q, and residuals |W^T p - sigma q|."""

    sigma: Floats
    left: Floats
    right: Floats
    residuals: Floats


def ritz_of(basis: Bidiagonal) -> Ritz:
    """Return the Ritz values and vectors of the bases: approximate singular triplets of W."""
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
    """Return each value's distance to its nearest neighbour; at least the smallest float64, so that it can divide."""
    steps = np.abs(np.diff(sigma))
    nearest = np.minimum(np.append(np.inf, steps), np.append(steps, np.inf))
    gaps: Floats = np.maximum(nearest, np.finfo(np.float64).tiny)
    return gaps


class SpectralNorm(NamedTuple):
    """The largest singular value, the passes over W, and whether the residual shows convergence (1e-5 or better)."""

    value: float
    passes: int
    converged: bool


def spectral_norm(w: Matrix, *, seed: int = 0) -> SpectralNorm:
    """Return the largest singular value of a finite matrix of any float dtype.

    `leading`, with blocks of eight vectors, takes over if two vectors do not converge, or if float32 does not hold
    the squares. A matrix with a side up to 96 gets a dense SVD.
    """
    if min(w.shape) > EXACT_UNDER:
        with np.errstate(over="ignore", invalid="ignore"):
            found = _largest(_Rows(w), np.random.default_rng(seed))
        if found.converged and found.value > _LEAST:
            return found
    top = leading(Operator.of(as_float32(w)), seed=seed)
    return SpectralNorm(float(top.sigma[0]), 2 * top.steps, top.converged)


class _Rows:
    """Blocks of rows of W in float32. They share one buffer, so each is valid until the next is asked for."""

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
        """Return W^T W applied to each row of a float32 block, in one pass over W."""
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
    """Whether sigma = sqrt(square) is known to a relative 2e-6, by the eigenvalue's residual and its gap.

    An eigenvalue's error is at most min(residual, residual^2 / gap). Twice sigma's relative error is allowed for its
    square.
    """
    error = 2.0 * _ERROR * square
    return residual <= error or residual**2 <= error * gap
