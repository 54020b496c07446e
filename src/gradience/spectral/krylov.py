"""Block Golub-Kahan bidiagonalisation: what a few products of W with 16 vectors at a time show of its singular values.

    W Q = P C,        W^T P = Q (C, next)^T

P and Q have orthonormal columns, P one block more than Q, and C is block bidiagonal. The products with W are float32
and XLA's, which is twice as fast as BLAS at matrices as thin as a block. What is as small as a block stays in numpy.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

Matrix: TypeAlias = npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.float64]

_HIGHEST: Final = lax.Precision.HIGHEST
_ALIGNMENT: Final = 64  # bytes: an array that begins at a multiple of it is used by XLA where it lies
_DEPENDENT: Final = 1e-10  # of the largest pivot, squared: below it a block's Gram matrix does not give its basis


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
