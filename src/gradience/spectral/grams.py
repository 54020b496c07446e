"""The Gram matrices A A^T and B^T B of many low-rank updates, in float64, and a sketch of each update.

JAX computes Gram matrices on an accelerator (`tiles`). BLAS computes them on a CPU, with each core on modules of its
own. BLAS does half the work of a general product for a matrix times its own transpose; XLA on a CPU does the general
product. If r exceeds the largest rank that the product can have, `narrowed` reduces the factors first. So the work
grows with min(d_out, d_in, r).

A sketch is a short vector whose inner products estimate those of whole updates, to find near duplicates. It is a
TensorSketch (Pham and Pagh, KDD 2013) of each rank-one term b_i a_i^T. The two vectors are folded to D numbers each,
with random signs, and the circular convolutions of the terms are summed. That costs one pass over the factors, and no
matrix is formed. `grams_and_sketch` computes the Gram matrices in the same pass, on the calling thread. It is meant for
a process that has one core, and for adapters whose modules are so small that calls cost more than the work. So it
stacks updates of one shape. An update's numbers do not depend on the stack it is in.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import chain
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from gradience.spectral import in_threads, most_threads

Matrix: TypeAlias = npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.float64]

_CHEAP: Final = 64  # rank: factors up to it are never narrowed, because their r x r matrices cost almost nothing

_TURNS: Final = 8  # runs of modules that a thread takes: few enough to be cheap, enough to end together
_LEAST_RANK: Final = 8  # the smallest padded size
_BLOCK: Final = 1 << 17  # numbers cast to float64 at a time: 1 MiB stays in a core's cache
_LEAST_WIDTH: Final = 256  # columns in a block, whatever its height: each product has a fixed cost

Singles: TypeAlias = npt.NDArray[np.float32]
Doubles: TypeAlias = npt.NDArray[np.float64]

DIMENSIONS: Final = 128
# Sketches stand in the rows of collections: with another seed or size, those of older rows would compare as noise.
_SEED: Final = 20130811

_HELD: Final = 1 << 12  # pairs of folded vectors collected for one Fourier transform: 8 MiB

_STACKED: Final = 1 << 17  # elements of a factor in one stack: 1 MiB as float64 stays in the cache


def inner_size(rank: int, d_out: int, d_in: int) -> int:
    """The inner size of `narrowed` factors: the rank, or the shorter side if the rank exceeds it and 64."""
    return rank if rank <= max(_CHEAP, min(d_out, d_in)) else min(d_out, d_in)


def narrowed(b: Matrix, a: Matrix) -> tuple[Matrix, Matrix]:
    """Return (b', a') with the product of b (d_out, r) and a (r, d_in), and the inner size `inner_size`.

    If `inner_size` is below r, one factor becomes the identity and the other the product, in float64. The product then
    has no more entries than the larger factor.
    """
    d_out, rank = b.shape
    d_in = a.shape[1]
    if inner_size(rank, d_out, d_in) == rank:
        return b, a
    with np.errstate(all="ignore"):  # entries that are not finite warn here; the caller finds them in the product
        product = b.astype(np.float64) @ a.astype(np.float64)
    return (np.eye(d_out), product) if d_out <= d_in else (product, np.eye(d_in))


class Factors(NamedTuple):
    """One update: `scale` * b @ a, with b (d_out, r) and a (r, d_in) of any real dtype."""

    b: Matrix
    a: Matrix
    scale: float


class Grams(NamedTuple):
    """The Gram matrices A A^T and B^T B of one update, zero-padded to `bucket_of` their size, without the scale.

    They are those of the `narrowed` factors if `inner_size` is below r.
    """

    gram_a: Matrix
    gram_b: Matrix
    r: int
    scale: float


Loads: TypeAlias = Sequence[Callable[[], Factors]]


def grams_of(loads: Loads) -> list[Grams]:
    """Return the Gram matrices of each update, in order. Several threads call the loads, each load once.

    A thread takes a run of consecutive loads at a time, since neighbours may share what they read.
    """
    step = max(1, len(loads) // (_TURNS * most_threads()))
    runs = [partial(_of_run, loads[start : start + step]) for start in range(0, len(loads), step)]
    return list(chain.from_iterable(in_threads(runs)))


def _of_run(loads: Loads) -> list[Grams]:
    return [grams_on_host(load()) for load in loads]


def on_cpu() -> bool:
    """Whether JAX computes on the CPU in this process."""
    from gradience.spectral.devices import devices  # JAX, which this module needs for this only

    return str(devices()[0].platform) == "cpu"


def grams_on_host(factors: Factors) -> Grams:
    """The Gram matrices of one update, by BLAS on this thread."""
    b, a, scale = factors
    with np.errstate(all="ignore"):  # entries that are not finite warn here; the spectra report them
        narrow_b, narrow_a = narrowed(b, a)
        return Grams(gram(narrow_a), gram(narrow_b.T), len(a), scale)


def gram(factor: Matrix) -> Matrix:
    """The Gram matrix X X^T of an (r, d) array of any real dtype, in float64, zero-padded to `bucket_of` r."""
    r, length = factor.shape
    total = np.zeros((bucket_of(r), bucket_of(r)))
    step = max(_LEAST_WIDTH, _BLOCK // max(r, 1))
    for start in range(0, length, step):  # a factor in float64 is never whole in memory
        wide = factor[:, start : start + step].astype(np.float64)
        total[:r, :r] += wide @ wide.T
    return total


def padded(grams: Floats) -> Floats:
    """The Gram matrices (..., r, r), zero-padded to `bucket_of` r."""
    r = grams.shape[-1]
    size = bucket_of(r)
    if size == r:
        return grams
    whole = np.zeros((*grams.shape[:-2], size, size))
    whole[..., :r, :r] = grams
    return whole


def bucket_of(r: int) -> int:
    """Return the least power of two that is >= r and >= 8: the size to which Gram matrices are padded."""
    return max(_LEAST_RANK, 1 << (r - 1).bit_length())


class Sketch:
    """The sketch of one adapter's update, summed module by module."""

    def __init__(self) -> None:
        self._total = np.zeros(DIMENSIONS // 2 + 1, np.complex128)
        self._added: set[str] = set()
        self._held: list[tuple[Doubles, Doubles]] = []
        self._columns = 0

    def add(self, name: str, b: Matrix, a: Matrix, scale: float) -> None:
        """Add a module's update scale * b @ a, b (d_out, r), a (r, d_in), unless a module of that name was added.

        An update with entries that are not finite is left out.
        """
        with np.errstate(all="ignore"):
            left = _folded_columns(b[None]) if b.flags.c_contiguous else _folded_rows(b.T[None])
            right = _folded_rows(a[None]) if a.flags.c_contiguous else _folded_columns(a.T[None])
            self._add([name], left, right, [scale])

    def add_stack(self, names: Sequence[str], b: Matrix, a: Matrix, scales: Sequence[float]) -> None:
        """Add several modules of one shape: b (modules, d_out, r), a (modules, r, d_in), both contiguous."""
        with np.errstate(all="ignore"):
            self._add(names, _folded_columns(b), _folded_rows(a), scales)

    def _add(self, names: Sequence[str], left: Singles, right: Singles, scales: Sequence[float]) -> None:
        # A name of a hostile file may hold half a surrogate pair.
        keys = [zlib.crc32(name.encode("utf-8", "surrogatepass")) for name in names]
        # Signs of each module's own, for either side, or updates of two modules would add up as if they were of one.
        signs = np.stack([_signs(DIMENSIONS, 1, 2 * key) for key in keys])
        others = np.stack([_signs(DIMENSIONS, 1, 2 * key + 1) for key in keys]) * np.array(scales)[:, None]
        columns = left.astype(np.float64) * signs[:, None]
        rows = right.astype(np.float64) * others[:, None]
        wanted = np.isfinite(columns.sum(axis=(1, 2)) + rows.sum(axis=(1, 2))) & self._are_new(names)
        if not wanted.all():
            columns, rows = columns[wanted], rows[wanted]
        self._held.append((columns.reshape(-1, DIMENSIONS), rows.reshape(-1, DIMENSIONS)))
        self._columns += len(self._held[-1][0])
        if self._columns >= _HELD:
            self._transform()

    def _are_new(self, names: Sequence[str]) -> list[bool]:
        are_new = []
        for name in names:
            are_new.append(name not in self._added)
            self._added.add(name)
        return are_new

    def _transform(self) -> None:
        """Add the convolutions of all collected pairs, summed in Fourier space: `numbers` transforms back once."""
        if not self._held:
            return
        left, right = (np.fft.rfft(np.concatenate(side), axis=1) for side in zip(*self._held, strict=True))
        with np.errstate(all="ignore"):
            self._total += (left * right).sum(axis=0)
        self._held, self._columns = [], 0

    def numbers(self) -> list[float]:
        """The D numbers of the sketch; all zeros if one of them is beyond float32's range."""
        self._transform()
        with np.errstate(all="ignore"):
            sketch = np.fft.irfft(self._total, n=DIMENSIONS).astype(np.float32)
        return sketch.tolist() if np.isfinite(sketch).all() else [0.0] * DIMENSIONS


def _folded_rows(stack: Matrix) -> Singles:
    """Fold matrices (n, r, d) to (n, r, D): columns D apart are added, each block of D columns with a random sign."""
    n, rank, length = stack.shape
    numbers, whole = stack.astype(np.float32, copy=False), length // DIMENSIONS
    signs = _signs(whole + 1, 0)
    even = numbers[..., : whole * DIMENSIONS].reshape(n, rank, whole, DIMENSIONS)
    total = signs[:whole] @ even
    rest = numbers[..., whole * DIMENSIONS :]
    total[..., : rest.shape[-1]] += signs[whole] * rest
    return total


def _folded_columns(stack: Matrix) -> Singles:
    """Fold matrices (n, d, r) to (n, r, D) as `_folded_rows` folds their transposes, in the order of their memory."""
    n, length, rank = stack.shape
    numbers, whole = stack.astype(np.float32, copy=False), length // DIMENSIONS
    signs = _signs(whole + 1, 0)
    even = numbers[:, : whole * DIMENSIONS].reshape(n, whole, DIMENSIONS * rank)
    total = (signs[:whole] @ even).reshape(n, DIMENSIONS, rank)
    rest = numbers[:, whole * DIMENSIONS :]
    total[:, : rest.shape[1]] += signs[whole] * rest
    return total.transpose(0, 2, 1)


@lru_cache(maxsize=4096)
def _signs(n: int, *key: int) -> Singles:
    """Return n random signs for a key, the same on every machine: numpy keeps a bit generator's raw stream stable."""
    words = np.random.PCG64([_SEED, *key]).random_raw(-(-n // 64))
    bits = np.unpackbits(np.asarray(words, dtype="<u8").view(np.uint8))[:n]
    return np.where(bits == 1, np.float32(1.0), np.float32(-1.0))


def grams_and_sketch(names: Sequence[str], loads: Sequence[Callable[[], Factors]]) -> tuple[list[Grams], list[float]]:
    """Return the Gram matrices of each update, in order, and the sketch of all; each load is called once.

    If an update is not finite, neither are its Gram matrices, and the sketch leaves it out.
    """
    sketch, grams = Sketch(), dict[int, Grams]()
    waiting: dict[tuple[object, ...], list[tuple[int, Factors]]] = {}
    for index, load in enumerate(loads):
        b, a, scale = factors = load()
        most = max(b.size, a.size)
        # Two of them would not fit a stack, or `narrowed` would have to change each by itself.
        if 2 * most > _STACKED or inner_size(len(a), len(b), a.shape[1]) < len(a):
            sketch.add(names[index], b, a, scale)
            grams[index] = grams_on_host(factors)
            continue
        alike = (b.shape, a.shape, b.dtype, a.dtype)
        waiting.setdefault(alike, []).append((index, factors))
        if (len(waiting[alike]) + 1) * most > _STACKED:
            grams |= _stacked(names, waiting.pop(alike), sketch)
    while waiting:
        grams |= _stacked(names, waiting.popitem()[1], sketch)
    return [grams[index] for index in range(len(loads))], sketch.numbers()


def _stacked(names: Sequence[str], some: Sequence[tuple[int, Factors]], sketch: Sketch) -> dict[int, Grams]:
    """The Gram matrices of some updates of one shape, by index; the sketch takes them too."""
    b, a = (np.stack([factors[side] for _, factors in some]) for side in (0, 1))
    sketch.add_stack([names[i] for i, _ in some], b, a, [factors.scale for _, factors in some])
    with np.errstate(all="ignore"):  # entries that are not finite warn here; the Gram matrices show them
        wide_b, wide_a = b.astype(np.float64), a.astype(np.float64)
        grams_a = padded(wide_a @ wide_a.transpose(0, 2, 1))
        grams_b = padded(wide_b.transpose(0, 2, 1) @ wide_b)
    return {
        index: Grams(grams_a[place], grams_b[place], a.shape[1], factors.scale)
        for place, (index, factors) in enumerate(some)
    }
