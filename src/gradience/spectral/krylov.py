"""The leading singular values of W or of W + B A, the latter without forming the sum, by block Lanczos methods.

`leading` uses block Golub-Kahan bidiagonalisation. It multiplies W by one block of c vectors at a time, c a multiple
of 8, and builds two orthonormal bases P and Q:

    W Q = P C,        W^T P = Q C^T + Q_next [0, R]

P has one block of columns more than Q, C is block bidiagonal, and the c x c factor R acts on P's last block. The
singular values of C approximate those of W. A block finds equal singular values together, and costs little more than
one vector. `leading` starts from random vectors and stops when the residuals show convergence. Products with W are in
float32, everything as small as C in float64. The arrays of the bases have room for all vectors that
there may be, so that XLA compiles one program.

`spectral_norm` gives the largest singular value of a weight as it is stored, by Lanczos on W^T W. It converts a few
rows at a time to float32, and uses them for both halves of the product while they are in the cache. So a pass costs
little more than reading W, and no second copy of W is held. It starts from two vectors, because one vector does not
show that the second singular value is almost as large as the first. More vectors cost more than the passes they save.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array, lax

from gradience.spectral.codes import Codes, whole
from gradience.spectral.devices import float64
from gradience.spectral.grams import Matrix
from gradience.spectral.stored import put, tile

_ALIGNMENT: Final = 64  # bytes: XLA uses an array in place if its address is a multiple of 64
_OUTSIDE: Final = 0.5  # of a unit vector: the share outside a basis above which no more of it need be taken away
_TURNS: Final = 4  # orthogonalisations of one block, at most

_GUARD: Final = 6  # extra vectors in a block, beyond the number asked for
_WIDTHS: Final = 8  # a block's width is a multiple of 8, the width of a register
_VECTORS: Final = 768  # of each basis, at most
EXACT_UNDER: Final = 96  # shorter side: up to it, a dense float64 SVD
_SMALL: Final = 768  # shorter side: up to it, a dense SVD if the iteration did not converge
_FIRST_LOOK: Final = 3  # steps before convergence is first checked
_ROOM: Final = 16  # blocks of the smallest core that is decomposed
_ANGLE: Final = 2e-3  # radians: the largest error of a converged singular vector

_PART: Final = 1 << 17  # entries of W converted to float32 at a time: 512 KiB stay in a core's cache
_PAIR: Final = 2  # vectors: two tell almost equal values apart; a product with more vectors costs more
_PASSES: Final = 64  # over W, at most
_ERROR: Final = 2e-6  # relative to sigma_1
_LEAST: Final = 1e-15  # sigma: its square, spread over the entries of W^T W x, is far above float32's subnormals

_product = partial(jnp.matmul, precision="highest")


class Operator(NamedTuple):
    """The matrix W + B A: w (m, n), b (m, r), a (r, n), all float32; r may be 0."""

    w: Array
    b: Array
    a: Array

    @classmethod
    def of(cls, w: Matrix) -> Operator:
        """Return the operator of W alone, on JAX's default device.

        If the device is the CPU, an array from `as_float32` is shared and not copied, so the caller must not change it.
        """
        m, n = w.shape
        weight = jax.device_put(w.astype(np.float32, copy=False), may_alias=True)
        return cls(weight, jnp.zeros((m, 0), jnp.float32), jnp.zeros((0, n), jnp.float32))

    def plus(self, b: Matrix, a: Matrix) -> Operator:
        """Return the operator of W + b a, sharing W."""
        return Operator(self.w, jnp.asarray(b, jnp.float32), jnp.asarray(a, jnp.float32))

    def turned(self) -> Operator:
        """Return the operator of the transpose."""
        return Operator(self.w.T, self.a.T, self.b.T)

    def whole(self) -> Array:
        """Return W + B A as a dense float64 matrix."""
        w, b, a = (x.astype(jnp.float64) for x in self)
        whole: Array = w + _product(b, a)
        return whole

    def times(self, v: Array) -> Array:
        """Return (W + B A) applied to each row of v (c, n), as rows (c, m)."""
        image: Array = _product(self.w, v.T) + _product(self.b, _product(self.a, v.T))
        return image.T

    def times_transposed(self, u: Array) -> Array:
        """Return (W + B A)^T applied to each row of u (c, m), as rows (c, n)."""
        image: Array = _product(u, self.w) + _product(_product(u, self.b), self.a)
        return image


def as_float32(x: Matrix) -> Matrix:
    """Return x as a contiguous float32 array, aligned so that XLA needs no copy; x itself if it already is one."""
    if x.dtype == np.float32 and x.ctypes.data % _ALIGNMENT == 0 and x.flags.c_contiguous:
        return x
    raw = np.empty(x.size * 4 + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    out: Matrix = raw[start : start + x.size * 4].view(np.float32).reshape(x.shape)
    np.copyto(out, x, casting="unsafe")
    return out


def orthonormal(block: Array, basis: Array, count: Array) -> tuple[Array, Array]:
    """Return (Y, R) with R^T Y = block minus its projection on the basis; vectors are rows.

    The rows of Y are orthonormal, and orthogonal to the first `count` blocks of the basis (room, c, m). If rows of the
    block are linearly dependent, Y holds arbitrary orthonormal rows in their place, and R only rounding errors there.
    """

    def turn(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        turns, _, block, total = state
        q, r = jnp.linalg.qr(_outside(block, basis, count).T.astype(jnp.float64))
        return turns + 1, jnp.min(jnp.abs(jnp.diagonal(r))), q.T.astype(block.dtype), r @ total

    def again(state: tuple[Array, Array, Array, Array]) -> Array:
        turns, share, *_ = state
        # "Twice is enough" (Parlett), unless the block is rounding errors.
        return (turns < 2) | ((turns < _TURNS) & (share <= _OUTSIDE))

    start = jnp.int32(0), jnp.float64(0.0), block, jnp.eye(len(block), dtype=jnp.float64)
    *_, rows, total = lax.while_loop(again, turn, start)
    return rows, total


def _outside(block: Array, basis: Array, count: Array) -> Array:
    """Return the block minus its projection on the first blocks of the basis."""

    def more(i: Array, within: Array) -> Array:
        return within + _product(_product(block, basis[i].T), basis[i])

    outside: Array = block - lax.fori_loop(0, count, more, jnp.zeros_like(block))
    return outside


class Bidiagonal(NamedTuple):
    """A block Golub-Kahan bidiagonalisation in progress, in arrays that have room for more; all else is zero.

    `left` (room, c, m) holds the blocks of P, vectors as rows, and `right` (room, c, n) those of Q and the next one;
    both have `blocks`. `core` (room, c, room, c), float64, holds C, and R^T in the last of these blocks of columns.
    """

    left: Array
    right: Array
    core: Array
    blocks: Array

    @classmethod
    def empty(cls, matrix: Operator, c: int, room: int) -> Bidiagonal:
        """Return the bases before the first block."""
        left, right = (jnp.zeros((room, c, size), jnp.float32) for size in matrix.w.shape)
        return cls(left, right, jnp.zeros((room, c, room, c), jnp.float64), jnp.int32(0))


# The bases are the largest arrays here; if they were not donated, each call would copy them.
@partial(jax.jit, donate_argnames="basis")
def advanced(matrix: Operator, start: Array, basis: Bidiagonal, blocks: int) -> Bidiagonal:
    """Return the bases with that many blocks each, P's first from the rows of `start` (c, m).

    Each block takes two products with W, and the first one.
    """

    # Each block is made orthogonal to the whole basis: by the recurrence alone, float32 loses that in a few steps.
    def step(s: Array, now: Bidiagonal) -> Bidiagonal:
        block = lax.cond(s == 0, lambda: start, lambda: matrix.times(now.right[s - 1]))
        new, size = orthonormal(block, now.left, s)
        left = now.left.at[s].set(new)
        core = now.core.at[s, :, s - 1].set(jnp.where(s == 0, 0.0, size))
        new, size = orthonormal(matrix.times_transposed(new), now.right, s)
        return Bidiagonal(left, now.right.at[s].set(new), core.at[s, :, s].set(size.T), s + 1)

    grown: Bidiagonal = lax.fori_loop(basis.blocks, jnp.int32(blocks), step, basis)
    return grown


def looks(matrix: Operator, start: Matrix, most: int) -> Iterator[tuple[Bidiagonal, int]]:
    """Yield the bases after three steps, then after a quarter more each time, and at last after `most`; and the steps.

    A step adds a block to both bases, which begin with one each. Bases that were yielded are gone after the next.
    """
    steps = min(_FIRST_LOOK, most)
    basis = Bidiagonal.empty(matrix, len(start), most + 1)
    while True:
        basis = advanced(matrix, start, basis, steps + 1)
        yield basis, steps
        if steps == most:
            return
        steps = min(most, steps + max(1, steps // 4))


def room_for(blocks: int, most: int) -> int:
    """Return a power of two that is at least `blocks` and 16, or `most`: for few sizes of the core XLA compiles few."""
    return min(most, max(_ROOM, 1 << (blocks - 1).bit_length()))


class Ritz(NamedTuple):
    """The SVD of C, padded with zeros: values largest first, vectors in P and Q, residuals |W^T p - sigma q|."""

    sigma: Array
    left: Array
    right: Array
    residuals: Array


def ritz_of(basis: Bidiagonal, size: int) -> Ritz:
    """Return the Ritz values and vectors of the bases, approximate singular triplets of W: (k,), (k, k), (k, k), (k,).

    `size`, at least `blocks`, is the number of blocks of the core to decompose: k is c times as large. Values beyond
    those of C are zero, and their vectors complete the bases.
    """
    last, c = basis.blocks - 1, basis.core.shape[1]
    core = basis.core[:size, :, :size].reshape(size * c, size * c)
    left, sigma, right = jnp.linalg.svd(jnp.where(jnp.arange(size * c) < c * last, core, 0.0))
    residuals = jnp.linalg.norm(basis.core[last, :, last].T @ left.reshape(size, c, -1)[last], axis=0)
    return Ritz(sigma, left, right.T, residuals)


def converged(ritz: Ritz, k: int, tolerance: float, *, vectors: bool) -> Array:
    """Whether the k largest values are within the tolerance, relative to the largest; see `leading`."""
    sigma, residuals = ritz.sigma, ritz.residuals[:k]
    gaps, bar = gaps_of(sigma)[:k], tolerance * sigma[0]
    are_close = jnp.minimum(residuals, residuals**2 / gaps) <= bar
    if vectors:
        are_close &= (residuals <= _ANGLE * gaps) | (residuals <= bar)
    return jnp.all(are_close)


def gaps_of(sigma: Array) -> Array:
    """Return each value's distance to its nearest neighbour; at least the smallest float64, so that it can divide."""
    steps = jnp.pad(jnp.abs(jnp.diff(sigma)), 1, constant_values=jnp.inf)
    return jnp.maximum(jnp.minimum(steps[:-1], steps[1:]), np.finfo(np.float64).tiny)


class RitzValues(NamedTuple):
    """What a look at the bases shows: Ritz values (n,), a block of left vectors (m, c), and whether k converged."""

    sigma: Array
    left: Array
    converged: Array


@partial(jax.jit, static_argnames=("size", "k", "vectors"))
def looked(basis: Bidiagonal, size: int, k: int, *, vectors: bool) -> RitzValues:
    """Look at the bases, of at most `size` blocks, for the k largest singular values."""
    ritz, c = ritz_of(basis, size), basis.core.shape[1]
    left = _product(basis.left[:size].reshape(size * c, -1).T, ritz.left[:, :c].astype(jnp.float32))
    return RitzValues(ritz.sigma, left, converged(ritz, k, _ERROR, vectors=vectors))


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
    # One less than the blocks that fit, because both bases begin with a block before the first step.
    most = min(_VECTORS, m, n) // width - 1
    with float64():
        if min(m, n) <= EXACT_UNDER or most < 1:
            return _dense(matrix, k)
        start = np.random.default_rng(seed).standard_normal((width, m), np.float32)
        iterated = _iterated(matrix, k, start, most, vectors=vectors)
        return iterated if iterated.converged or min(m, n) > _SMALL else _dense(matrix, k)


def _iterated(matrix: Operator, k: int, start: Matrix, most: int, *, vectors: bool) -> Triplets:
    for basis, steps in looks(matrix, start, most):
        ritz = looked(basis, room_for(steps + 1, most + 1), k, vectors=vectors)
        if ritz.converged:
            break
    left = np.asarray(ritz.left)
    return Triplets(
        np.asarray(ritz.sigma[:k]), left[:, :k], steps, bool(ritz.converged), exact=False, guard=left[:, k:]
    )


def _dense(matrix: Operator, k: int) -> Triplets:
    left, sigma = (np.asarray(x)[..., :k] for x in dense_svd(matrix))
    return Triplets(sigma, left, 0, converged=True, exact=True, guard=left[:, k:])


@jax.jit
def dense_svd(matrix: Operator) -> tuple[Array, Array]:
    """Return all left singular vectors of W + B A, and its singular values."""
    left, sigma, _ = jnp.linalg.svd(matrix.whole(), full_matrices=False)
    return left, sigma


class SpectralNorm(NamedTuple):
    """The largest singular value, the passes over W, and whether the residual shows convergence (1e-5 or better)."""

    value: float
    passes: int
    converged: bool


def spectral_norm(w: Matrix | Codes, *, seed: int = 0) -> SpectralNorm:
    """Return the largest singular value of a finite matrix of any float dtype, or in codes.

    `leading`, with blocks of eight vectors, takes over if two vectors do not converge, or if float32 does not hold
    the squares. A matrix with a side up to 96 gets a dense SVD.
    """
    if min(w.shape) > EXACT_UNDER:
        start = np.random.default_rng(seed).standard_normal((_PAIR, w.shape[1]), np.float32)
        with float64():
            # After so many passes the vectors span the shorter side, and there is no further direction.
            value, passes, done = lanczos(put(w), start, min(_PASSES, min(w.shape) // _PAIR))
            norm = SpectralNorm(float(value), int(passes), bool(done))
        if norm.converged and norm.value > _LEAST:
            return norm
    top = leading(Operator.of(as_float32(np.asarray(whole(w)) if isinstance(w, Codes) else w)), seed=seed)
    return SpectralNorm(float(top.sigma[0]), 2 * top.steps, top.converged)


class _Lanczos(NamedTuple):
    """The state of `lanczos`: orthonormal vectors as rows, their core V W^T W V^T, and what is known of sigma."""

    basis: Array
    core: Array
    passes: Array
    value: Array
    converged: Array


@partial(jax.jit, static_argnames="most")
def lanczos(w: Array | Codes, start: Array, most: int) -> tuple[Array, Array, Array]:
    """Return the largest singular value of W as it is `put`, the passes over W, and whether the value converged.

    Block Lanczos on W^T W from the rows of `start` (c, n); infinite if a product is beyond float32.
    """
    c, n = start.shape

    def step(now: _Lanczos) -> _Lanczos:
        s = now.passes
        product = squared(w, now.basis[s])
        # In float64: the core's largest eigenvalue is asked for to 2e-6, which sums in float32 do not give.
        inner = jnp.einsum("scn,dn->scd", now.basis[:most].astype(jnp.float64), product.astype(jnp.float64))
        core = now.core.at[:, :, s].set(inner).at[s].set(inner.transpose(2, 0, 1))
        new, left = orthonormal(product, now.basis, s + 1)
        finite = jnp.isfinite(product).all()
        values, vectors = jnp.linalg.eigh(jnp.where(finite, core, 0.0).reshape(c * most, c * most))
        square = jnp.maximum(values[-1], 0.0)
        residual = jnp.linalg.norm(left @ vectors[:, -1].reshape(most, c)[s])
        done = finite & is_close(square, residual, square - values[-2])
        return _Lanczos(now.basis.at[s + 1].set(new), core, s + 1, jnp.where(finite, jnp.sqrt(square), jnp.inf), done)

    def goes_on(now: _Lanczos) -> Array:
        return (now.passes < most) & ~now.converged & jnp.isfinite(now.value)

    basis = jnp.zeros((most + 1, c, n), jnp.float32)
    first, _ = orthonormal(start, basis, jnp.int32(0))
    core, none = jnp.zeros((most, c, most, c), jnp.float64), jnp.zeros((), jnp.float64)
    state = lax.while_loop(goes_on, step, _Lanczos(basis.at[0].set(first), core, jnp.int32(0), none, none > 0.0))
    return state.value, state.passes, state.converged


def squared(w: Array | Codes, block: Array) -> Array:
    """Return W^T W applied to each row of a float32 block, in one pass over W as it is `put`."""
    m, n = w.shape
    size = min(m, max(1, _PART // n))

    def of(part: Array) -> Array:
        return _product(_product(block, part.T), part)

    def more(i: Array, total: Array) -> Array:
        return total + of(tile(w, i * size, size))

    full = m // size * size
    total: Array = lax.fori_loop(0, m // size, more, jnp.zeros_like(block))
    return total + of(tile(w, full, m - full)) if full < m else total


def is_close(square: Array, residual: Array, gap: Array) -> Array:
    """Whether sigma = sqrt(square) is known to a relative 2e-6, by the eigenvalue's residual and its gap.

    An eigenvalue's error is at most min(residual, residual^2 / gap). Twice sigma's relative error is allowed for its
    square.
    """
    error = 2.0 * _ERROR * square
    return (residual <= error) | (residual**2 <= error * gap)
