"""Pairs of updates of one shape: inner product, distance, and the angles between their subspaces.

The factors of two updates dW_i = s_i B_i A_i are stacked, B = [B_1 B_2] and A = [A_1; A_2]. Let X^T X = B^T B and
Y^T Y = A A^T. Then the small matrices s_i X_i Y_i^T have the singular values of the dW_i, their inner products, and
the angles between their subspaces. So nothing d x d is formed. X and Y come from the Gram matrices. If the terms of an
update almost cancel, they come from a QR of the stacked factors.

One pass over the factors of several updates gives the Gram matrices of all pairs: the factors are stacked, a block of
columns at a time, and the block is multiplied with its own transpose. On a CPU, BLAS computes that product, at half the
work of a general one. All else is one jitted function of a pair's Gram matrices, vmapped over pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradience.spectral import each_in_threads, scratch
from gradience.spectral.decompositions import eigh, singular_values, svd
from gradience.spectral.devices import float64
from gradience.spectral.grams import Floats, Matrix, bucket_of, on_cpu

Places: TypeAlias = tuple[int, int]
Load: TypeAlias = Callable[[], tuple[Matrix, Matrix]]

_BLOCK: Final = 1 << 18  # numbers cast to float64 at a time (2 MiB); measured with 2**16 to 2**19
_LEAST_WIDTH: Final = 256  # columns in a block, whatever its height: each product has a fixed cost
_KEPT: Final = 1 << 25  # bytes of factors held at a time; the two of a pair are always held

_PAIRS: Final = 8  # in a call of the kernel: more pairs are several calls, fewer are padded to a power of two
_AHEAD: Final = 2  # rows for each thread: one being computed, one waiting to be taken
# Columns of X and Y are accurate to 1e-8 of their length. If sigma_1^2 is below this share of sum |b_k|^2 |a_k|^2, that
# no longer gives sigma_1 to 1e-6.
_TRUSTED: Final = 1e-4
_FLOOR: Final = 1e-6  # relative to sigma_1: below it, a direction is rounding of factors stored in float32


class CrossProducts(NamedTuple):
    """B_i^T B_j and A_i A_j^T by (i, j): for each pair, i < j, and for each update of a pair with itself, i = j.

    Each is zero-padded to (r, r), with one r for all.
    """

    b: dict[Places, Floats]
    a: dict[Places, Floats]

    def together(self, pair: Places) -> tuple[Floats, Floats]:
        """The Gram matrices B^T B and A A^T of a pair's stacked factors, B = [B_i B_j] and A = [A_i; A_j]."""
        i, j = pair
        gram_b, gram_a = (np.block([[x[i, i], x[i, j]], [x[i, j].T, x[j, j]]]) for x in self)
        return gram_b, gram_a


def crossed(loads: Mapping[int, Load], pairs: Sequence[Places], r: int) -> CrossProducts:
    """The products of the factors of each pair (i, j), i < j, zero-padded to (r, r).

    Each of `loads` returns (b, a), b (d_out, r_i) and a (r_i, d_in), of any real dtype. Up to 32 MiB of factors are
    held at a time, and at least those of one pair. If all factors do not fit, some are loaded more than once.
    """
    crosses = CrossProducts({}, {})
    with np.errstate(all="ignore"):  # entries that are not finite warn here; the caller finds them in the products
        for factors, some in _held_pairs(loads, pairs):
            wanted = [*some, *((i, i) for i in factors)]
            for side, of in (
                (crosses.b, [b.T for b, _ in factors.values()]),
                (crosses.a, [a for _, a in factors.values()]),
            ):
                products = dict(zip(factors, _gram(of, r), strict=True))
                side.update({(i, j): products[i][:, list(factors).index(j)] for i, j in wanted})
    return crosses


def _held_pairs(
    loads: Mapping[int, Load], pairs: Sequence[Places]
) -> Iterator[tuple[dict[int, tuple[Matrix, Matrix]], list[Places]]]:
    """Yield runs of consecutive pairs with the factors of their updates, as many as may be held at a time."""
    factors: dict[int, tuple[Matrix, Matrix]] = {}
    some: list[Places] = []
    for pair in pairs:
        if some and not factors.keys() >= set(pair) and sum(b.nbytes + a.nbytes for b, a in factors.values()) >= _KEPT:
            yield factors, some
            factors, some = {i: factors[i] for i in pair if i in factors}, []
        factors |= {i: loads[i]() for i in pair if i not in factors}
        some.append(pair)
    if some:
        yield factors, some


def _gram(factors: Sequence[Matrix], r: int) -> Floats:
    """The products X_i X_j^T of n arrays X_i (r_i, d), zero-padded, as (n, r, n, r) in float64."""
    n, (_, length) = len(factors), factors[0].shape
    width = min(length, max(_LEAST_WIDTH, _BLOCK // (n * r)))
    total = np.zeros((n * r, n * r))
    for start in range(0, length, width):
        part = scratch.like(factors[0], "crossed", (n * r, min(width, length - start)), np.float64)
        # Scratch holds arbitrary values, and rows beyond a factor's rank are read.
        part[...] = 0.0
        for i, factor in enumerate(factors):
            part[i * r : i * r + len(factor)] = factor[:, start : start + width]
        total += part @ part.T if on_cpu() else np.asarray(_square(part))
    return total.reshape(n, r, n, r)


@jax.jit
def _square(x: Array) -> Array:
    gram: Array = x @ x.T
    return gram


class StackTerm(NamedTuple):
    """An update scale * b @ a to be stacked with another; `load` returns (b, a), b (d_out, rank), a (rank, d_in)."""

    load: Load
    rank: int
    scale: float


class PairNumbers(NamedTuple):
    """The numbers of a pair, of which the first has r and the second r singular values, padded with zeros."""

    finite: Array
    norms: Array
    inner: Array
    distance: Array
    ranks: Array
    left: Array
    right: Array
    cosines: tuple[Array, Array]
    trusted: Array


def compared(x: Array, y: Array, scales: Array) -> PairNumbers:
    """Compare the updates scales[i] * X_i Y_i^T, X = [X_1 X_2] (m, 2 r) and Y = [Y_1 Y_2] (n, 2 r)."""
    (x1, x2), (y1, y2) = jnp.split(x, 2, axis=1), jnp.split(y, 2, axis=1)
    dense = jnp.stack([scales[0] * x1 @ y1.T, scales[1] * x2 @ y2.T])
    r = min(*dense.shape[1:], x1.shape[1])
    u, sigma, vt = jax.vmap(svd)(dense)
    u, sigma, vt = u[:, :, :r], sigma[:, :r], vt[:, :r]
    # Not >=, or every direction of an update of zeros would be one.
    known = sigma > _FLOOR * sigma[:, :1]
    both = known[0][:, None] & known[1]
    left, right = jnp.where(both, u[0].T @ u[1], 0.0), jnp.where(both, vt[0] @ vt[1].T, 0.0)
    bound = jnp.sum(jnp.sum(x * x, axis=0).reshape(2, -1) * jnp.sum(y * y, axis=0).reshape(2, -1), axis=1) * scales**2
    return PairNumbers(
        finite=jnp.isfinite(dense).all(),
        norms=jnp.linalg.norm(dense, axis=(1, 2)),
        inner=jnp.vdot(*dense),
        distance=jnp.linalg.norm(dense[1] - dense[0]),
        ranks=jnp.sum(known, axis=1),
        left=left,
        right=right,
        cosines=(principal_cosines(left), principal_cosines(right)),
        trusted=jnp.all(sigma[:, 0] ** 2 >= _TRUSTED * bound),
    )


def principal_cosines(cross: Array) -> Array:
    """Return the cosines of the principal angles between the spans of U and V, largest first, from U^T V."""
    cosines: Array = jnp.clip(singular_values(cross), 0.0, 1.0)
    return cosines


def root(gram: Array) -> Array:
    """Return X with X^T X = gram (n, n), up to rounding errors of the order of gram's.

    The columns are scaled to length one first, so that a short one is not lost in the rounding errors of a long one.
    """
    length = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0.0))
    safe = jnp.where(length > 0.0, length, 1.0)
    values, vectors = eigh(gram / jnp.outer(safe, safe))
    root: Array = jnp.sqrt(jnp.maximum(values, 0.0))[:, None] * vectors.T * length
    return root


@jax.jit
@jax.vmap
def compared_by_grams(gram_b: Array, gram_a: Array, scales: Array) -> PairNumbers:
    """`compared` by the Gram matrices of the stacked factors, both (2 r, 2 r); their entries may not be finite."""
    finite = jnp.isfinite(gram_b).all() & jnp.isfinite(gram_a).all() & jnp.isfinite(scales).all()
    x, y = (root(jnp.where(finite, gram, 0.0)) for gram in (gram_b, gram_a))
    return compared(x, y, jnp.where(finite, scales, 0.0))._replace(finite=finite)


@jax.jit
def compared_by_qr(b: Array, a: Array, scales: Array) -> PairNumbers:
    """`compared` by the stacked factors, b (d_out, 2 r) and a (2 r, d_in)."""
    return compared(jnp.linalg.qr(b, mode="r"), jnp.linalg.qr(a.T, mode="r"), scales)


class PairGeometry(NamedTuple):
    """The geometry of two updates of one shape; `norms` are Frobenius norms, `distance` is that of dW_2 - dW_1.

    `left[i, j]` is the inner product of the i-th left singular vector of dW_1 and the j-th of dW_2 (output side).
    `right[i, j]` is that of the right singular vectors. Both cover the directions whose singular value is above 1e-6
    of the update's largest. `cosines` are those of the principal angles between the spans, left and right.
    """

    finite: bool
    norms: tuple[float, float]
    inner: float
    distance: float
    left: Floats
    right: Floats
    cosines: tuple[Floats, Floats]

    @property
    def cosine(self) -> float | None:
        """<dW_1, dW_2> / (norm dW_1 norm dW_2), Frobenius; None if one of them is zero or not finite."""
        size = self.norms[0] * self.norms[1]
        if not self.finite or size == 0.0:
            return None
        return max(-1.0, min(1.0, self.inner / size))


class RowGeometry(NamedTuple):
    """A row of updates of one shape: B^T B and A A^T of each by its place, and the geometry of each pair."""

    own: dict[int, tuple[Floats, Floats]]
    pairs: dict[Places, PairGeometry]


Row: TypeAlias = Sequence[StackTerm | None]


def row_geometries(rows: Sequence[Row], pairs: Sequence[Places]) -> Iterator[RowGeometry]:
    """Yield the geometry of each row, for those of the pairs (i, j), i < j, whose two updates are in the row.

    Several threads call the loads, each load once if the row's factors fit into the memory allowed for them.
    """
    yield from each_in_threads([partial(_row, row, pairs) for row in rows], ahead=_AHEAD)


def _row(row: Row, pairs: Sequence[Places]) -> RowGeometry:
    present = {place: one for place, one in enumerate(row) if one is not None}
    wanted = [pair for pair in pairs if present.keys() >= set(pair)]
    r = bucket_of(max((present[i].rank for pair in wanted for i in pair), default=1))
    geometries: dict[Places, PairGeometry] = {}
    with float64():
        grams = crossed({place: one.load for place, one in present.items()}, wanted, r)
        for start in range(0, len(wanted), _PAIRS):
            geometries |= _compared(present, wanted[start : start + _PAIRS], grams)
    ranks = {i: present[i].rank for i, j in grams.b if i == j}
    own = {i: (grams.b[i, i][:k, :k], grams.a[i, i][:k, :k]) for i, k in ranks.items()}
    return RowGeometry(own, geometries)


def _compared(
    present: Mapping[int, StackTerm], pairs: Sequence[Places], grams: CrossProducts
) -> dict[Places, PairGeometry]:
    """The geometry of at most `_PAIRS` pairs of a row."""
    calls = 1 << (len(pairs) - 1).bit_length()
    padded = [*pairs, *[pairs[0]] * (calls - len(pairs))]
    gram_b, gram_a = (np.stack(some) for some in zip(*map(grams.together, padded), strict=True))
    scales = np.array([[present[i].scale, present[j].scale] for i, j in padded])
    numbers = jax.device_get(compared_by_grams(gram_b, gram_a, scales))
    geometries = {}
    for k, (i, j) in enumerate(pairs):
        one = jax.tree.map(lambda x, k=k: x[k], numbers)
        if one.finite and not one.trusted:
            one = jax.device_get(compared_by_qr(*_together(present[i], present[j], gram_b.shape[1] // 2), scales[k]))
        geometries[i, j] = _geometry(one)
    return geometries


def _together(one: StackTerm, two: StackTerm, r: int) -> tuple[Floats, Floats]:
    """Both updates' factors, (d_out, 2 r) and (2 r, d_in), each padded with zeros to r."""
    (b1, a1), (b2, a2) = one.load(), two.load()
    b, a = np.zeros((len(b1), 2, r)), np.zeros((2, r, a1.shape[1]))
    b[:, 0, : one.rank], b[:, 1, : two.rank], a[0, : one.rank], a[1, : two.rank] = b1, b2, a1, a2
    return b.reshape(len(b), 2 * r), a.reshape(2 * r, -1)


def _geometry(found: PairNumbers) -> PairGeometry:
    """The numbers of a pair without their padding; NaN and no directions if they are not finite."""
    k, n = found.ranks if found.finite else (0, 0)
    first, second, inner, distance = (
        float(x) if found.finite else math.nan for x in (*found.norms, found.inner, found.distance)
    )
    return PairGeometry(
        finite=bool(found.finite),
        norms=(first, second),
        inner=inner,
        distance=distance,
        left=np.asarray(found.left)[:k, :n],
        right=np.asarray(found.right)[:k, :n],
        cosines=(np.asarray(found.cosines[0])[: min(k, n)], np.asarray(found.cosines[1])[: min(k, n)]),
    )


def overlap(cross: Floats, i: int, j: int) -> float:
    """Return the subspace overlap phi(i, j) = norm(U_i^T V_j)_F^2 / min(i, j), in [0, 1].

    `cross` is U^T V, all inner products. The overlap is 1 if one span contains the other, and 0 if they are orthogonal.
    LoRA, Hu et al. 2021 (arXiv 2106.09685), section 7.2, equation 4.
    """
    fewest = min(i, j)
    return min(1.0, float(np.sum(cross[:i, :j] ** 2)) / fewest) if fewest else 0.0


def chance_overlap(i: int, j: int, d: int) -> float:
    """Return the mean of phi(i, j) for independent, uniformly random subspaces of R^d: max(i, j) / d."""
    return max(i, j) / d if d else 0.0


def chance_overlap_sd(i: int, j: int, d: int) -> float:
    """Return the standard deviation of phi(i, j) for independent, uniformly random subspaces of R^d.

    The variance of norm(U_i^T V_j)_F^2 is 2 i j (d - i) (d - j) / (d^2 (d - 1) (d + 2)). It follows from the second
    moments of a uniformly random projection.
    """
    fewest = min(i, j)
    if d <= 1 or not fewest:
        return 0.0
    variance = 2.0 * i * j * (d - i) * (d - j) / (d**2 * (d - 1) * (d + 2))
    return math.sqrt(variance) / fewest
