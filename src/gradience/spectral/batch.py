"""The spectra of many modules at once: their Gram matrices, then every quantity in one vmapped call."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, Final, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from gradience.spectral import update
from gradience.spectral.narrow import narrowed

Matrix: TypeAlias = npt.NDArray[Any]

_SHORT: Final = 1024  # columns (of A) or rows (of B) in a tile
_LONG: Final = 4096  # the same, where a factor is that long and a call's tiles still fit the cache
_BATCH_ELEMENTS: Final = 1 << 18  # a call's tiles as float64 (2 MiB) stay in the cache; measured with 2**16 to 2**19
_MOST_WORKERS = 8  # threads; `use_threads` lowers it
_LEAST_SHARE: Final = 8  # modules that are worth a thread
_IN_FLIGHT: Final = 3
_LEAST_RANK: Final = 8


class Factors(NamedTuple):
    """One update: `scale` * b @ a, with b (d_out, r) and a (r, d_in) of any real dtype."""

    b: Matrix
    a: Matrix
    scale: float


class Grams(NamedTuple):
    """What is left of a module once its long axes are summed away: A A^T and B^T B, padded to the rank's bucket.

    Of `narrowed` factors, where r is larger than a side.
    """

    gram_a: Matrix
    gram_b: Matrix
    r: int
    scale: float


class _Kernel:
    """A jitted function of stacked tiles that no two threads compile at the same time."""

    def __init__(self, function: Callable[[jax.Array], jax.Array]) -> None:
        self._call: Callable[[Matrix], jax.Array] = jax.jit(jax.vmap(function))
        self._compiled: set[tuple[tuple[int, ...], str]] = set()
        self._lock = Lock()

    def __call__(self, tiles: Matrix) -> jax.Array:
        key = (tiles.shape, tiles.dtype.name)
        if key in self._compiled:
            return self._call(tiles)
        with self._lock:
            result = self._call(tiles)
            self._compiled.add(key)
            return result


_gram_rows = _Kernel(update.gram_rows)
_gram_columns = _Kernel(update.gram_columns)


def grams_of(loads: Sequence[Callable[[], Factors]]) -> list[Grams]:
    """Return the Gram matrices of each update, in order; each load is called once, from one of several threads."""
    held: list[Grams | None] = [None] * len(loads)
    shares = _Shares(len(loads))

    def work() -> None:
        for index, one in _share(loads, shares):
            held[index] = one

    if shares.workers == 1:
        work()
    else:
        with ThreadPoolExecutor(shares.workers) as pool:
            for done in [pool.submit(work) for _ in range(shares.workers)]:
                done.result()
    return [one for one in held if one is not None]


_HOST_ELEMENTS: Final = 1 << 22  # of a factor in float64 at once: 32 MiB


def grams_on_host(loads: Sequence[Callable[[], Factors]]) -> list[Grams]:
    """The same as `grams_of`, by BLAS on this thread: quicker on a CPU for a process that has one core to itself."""
    found = []
    with np.errstate(all="ignore"):  # what is not finite is found by `spectra`
        for load in loads:
            b, a, scale = load()
            narrow_b, narrow_a = narrowed(b, a)
            grams = (_padded_gram(narrow_a), _padded_gram(narrow_b.T))
            found.append(Grams(*grams, len(a), scale))
    return found


def _padded_gram(factor: Matrix) -> Matrix:
    """X X^T of a (r, d) array in float64, padded to the rank's bucket."""
    r, length = factor.shape
    gram = np.zeros((bucket_of(r), bucket_of(r)))
    step = max(1, _HOST_ELEMENTS // max(r, 1))
    for start in range(0, length, step):
        wide = factor[:, start : start + step].astype(np.float64)
        gram[:r, :r] += wide @ wide.T
    return gram


class _Shares:
    """Indices 0 to n - 1 handed out to threads, a few consecutive ones at a time."""

    def __init__(self, n: int) -> None:
        self.workers = max(1, min(_cores(), _MOST_WORKERS, n // _LEAST_SHARE))
        size = max(1, n // (8 * self.workers))
        self._spans = iter([range(start, min(start + size, n)) for start in range(0, n, size)])
        self._lock = Lock()

    def __iter__(self) -> Iterator[int]:
        while True:
            with self._lock:
                span = next(self._spans, None)
            if span is None:
                return
            yield from span


def _share(loads: Sequence[Callable[[], Factors]], indices: Iterable[int]) -> list[tuple[int, Grams]]:
    """The Gram matrices of one thread's modules."""
    with jax.enable_x64(True):  # noqa: FBT003  # of this thread alone
        adder = _Adder()
        for index in indices:
            adder.add(index, loads[index]())
        return adder.finish()


class _Adder:
    """Adds up A A^T and B^T B of modules from batches of tiles."""

    def __init__(self) -> None:
        self._modules: dict[int, tuple[int, int, float]] = {}
        self._sums: dict[tuple[int, int], Matrix] = {}
        self._open: dict[tuple[str, int, int, bool], _Batch] = {}
        self._running: deque[tuple[jax.Array, list[tuple[int, int]]]] = deque()

    def add(self, index: int, factors: Factors) -> None:
        b, a = narrowed(factors.b, factors.a)
        self._modules[index] = (len(factors.a), len(a), factors.scale)
        self._tile((index, 0), a, rows=True)
        self._tile((index, 1), b, rows=False)

    def finish(self) -> list[tuple[int, Grams]]:
        """Return each module's index and what it comes to."""
        for key in list(self._open):
            self._run(self._open.pop(key))
        while self._running:
            self._collect()
        return [(index, self._grams(index, *told)) for index, told in self._modules.items()]

    def _grams(self, index: int, r: int, inner: int, scale: float) -> Grams:
        size = bucket_of(inner)
        sides = [self._sums.get((index, side)) for side in (0, 1)]
        gram_a, gram_b = (np.zeros((size, size)) if gram is None else gram for gram in sides)
        return Grams(gram_a, gram_b, r, scale)

    def _tile(self, owner: tuple[int, int], factor: Matrix, *, rows: bool) -> None:
        r, length = factor.shape if rows else factor.shape[::-1]
        bucket, start = bucket_of(r), 0
        while start < length:
            width = _LONG if length - start >= _LONG and bucket * _LONG <= _BATCH_ELEMENTS else _SHORT
            tile = factor[:, start : start + width] if rows else factor[start : start + width]
            self._put(owner, tile, bucket, width, rows=rows)
            start += width

    def _put(self, owner: tuple[int, int], tile: Matrix, bucket: int, width: int, *, rows: bool) -> None:
        count = max(1, _BATCH_ELEMENTS // (bucket * width))
        shape = (bucket, width) if rows else (width, bucket)
        if count == 1 and tile.shape == shape and tile.flags.c_contiguous:
            self._run(_Batch(tile[None], [owner], rows=rows))  # as it lies in memory
            return
        key = (tile.dtype.str if tile.dtype.kind == "f" else tile.dtype.name, bucket, width, rows)
        batch = self._open.get(key)
        if batch is None:
            batch = self._open[key] = _Batch(np.zeros((count, *shape), tile.dtype), [], rows=rows)
        batch.put(tile, owner)
        if batch.full:
            self._run(self._open.pop(key))

    def _run(self, batch: _Batch) -> None:
        kernel = _gram_rows if batch.rows else _gram_columns
        self._running.append((kernel(batch.tiles), batch.owners))
        while len(self._running) >= _IN_FLIGHT:
            self._collect()

    def _collect(self) -> None:
        result, owners = self._running.popleft()
        for gram, owner in zip(np.asarray(result), owners, strict=False):
            held = self._sums.get(owner)
            self._sums[owner] = gram.copy() if held is None else held + gram


class _Batch:
    """Tiles of one dtype, rank bucket, width and orientation, waiting to fill a call."""

    def __init__(self, tiles: Matrix, owners: list[tuple[int, int]], *, rows: bool) -> None:
        self.tiles = tiles
        self.owners = owners
        self.rows = rows

    @property
    def full(self) -> bool:
        return len(self.owners) == len(self.tiles)

    def put(self, tile: Matrix, owner: tuple[int, int]) -> None:
        self.tiles[len(self.owners), : tile.shape[0], : tile.shape[1]] = tile
        self.owners.append(owner)


def bucket_of(r: int) -> int:
    """Return the least power of two that is >= r, from 8."""
    return max(_LEAST_RANK, 1 << (r - 1).bit_length()) if r else _LEAST_RANK


def _cores() -> int:
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    factor_stable_ranks: tuple[float, float]
    """Of b and of a alone, in this order; of `narrowed` factors where r is larger than a side."""


class _Quantities(NamedTuple):
    stable_rank: jax.Array
    effective_rank: jax.Array
    participation_ratio: jax.Array
    energy_ranks: jax.Array
    relative_errors: jax.Array
    frobenius_norm: jax.Array


def _quantities(sigma: jax.Array) -> _Quantities:
    return _Quantities(
        stable_rank=update.stable_rank(sigma),
        effective_rank=update.effective_rank(sigma),
        participation_ratio=update.participation_ratio(sigma),
        energy_ranks=jnp.stack([update.energy_rank(sigma, share) for share in SHARES]),
        relative_errors=update.relative_errors(sigma),
        frobenius_norm=update.frobenius_norm(sigma),
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


def use_threads(most: int) -> None:
    """Let this process compute with at most so many threads. For one of several processes, each on its own core."""
    global _MOST_WORKERS  # noqa: PLW0603  # a setting of the process, as the device is
    _MOST_WORKERS = most


def spectra(loads: Sequence[Callable[[], Factors]], grams: Sequence[Grams] | None = None) -> list[Spectrum]:
    """Return the spectrum of each update, in order; from its `grams_of` where the caller has them.

    Each load is called once (twice for the rare update whose factors all but cancel), and from several
    threads: consecutive loads mostly from the same one. Each thread holds one module at a time.
    """
    held = grams_of(loads) if grams is None else grams
    with jax.enable_x64(True):  # noqa: FBT003  # JAX's own signature
        return _finish(loads, held)


def spectrum_of(sigma: Matrix) -> Spectrum:
    """Return the spectrum with these singular values: finite, largest first, in float64, at least one."""
    with jax.enable_x64(True):  # noqa: FBT003  # JAX's own signature
        numbers = _quantities(jnp.asarray(sigma, jnp.float64))
    unknown = np.full(2, np.nan)  # of the factors alone
    return _spectrum(sigma, numbers, Grams(sigma, sigma, len(sigma), 1.0), unknown, finite=True)


def _finish(loads: Sequence[Callable[[], Factors]], grams: Sequence[Grams]) -> list[Spectrum]:
    found: list[Spectrum | None] = [None] * len(grams)
    by_bucket: dict[int, list[int]] = {}
    for index, one in enumerate(grams):
        by_bucket.setdefault(len(one.gram_a), []).append(index)
    for bucket, indices in by_bucket.items():
        for start in range(0, len(indices), _MODULES):
            some = indices[start : start + _MODULES]
            sigma, finite, alone = _sigma(loads, grams, some, bucket)
            numbers = jax.tree.map(np.asarray, _all_quantities(sigma))
            for row, index in enumerate(some):
                one_row = _Quantities(*(field[row] for field in numbers))
                found[index] = _spectrum(sigma[row], one_row, grams[index], alone[:, row], finite=bool(finite[row]))
    return [spectrum for spectrum in found if spectrum is not None]


def _sigma(
    loads: Sequence[Callable[[], Factors]],
    grams: Sequence[Grams],
    some: list[int],
    bucket: int,
) -> tuple[Matrix, Matrix, Matrix]:
    """Return singular values (a fixed number of rows, zero beyond those asked for), and which are finite.

    And the stable ranks of a's and of b's alone (2, modules).
    """
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
    return sigma, finite, update.gram_stable_rank(sides)


def _spectrum(sigma: Matrix, numbers: _Quantities, grams: Grams, alone: Matrix, *, finite: bool) -> Spectrum:
    r, size = grams.r, abs(grams.scale)
    return Spectrum(
        sigma=_padded(sigma, r) * size,
        finite=finite,
        stable_rank=float(numbers.stable_rank),
        effective_rank=float(numbers.effective_rank),
        participation_ratio=float(numbers.participation_ratio),
        energy_ranks=tuple(int(k) for k in np.asarray(numbers.energy_ranks)),  # type: ignore[arg-type]  # three shares
        relative_errors=_padded(np.asarray(numbers.relative_errors), r + 1),
        spectral_norm=float(sigma[0]) * size,
        frobenius_norm=float(numbers.frobenius_norm) * size,
        factor_stable_ranks=(float(alone[1]), float(alone[0])),
    )


def _padded(values: Matrix, length: int) -> Matrix:
    """The first values, and zeros beyond them: what lies past the product's own rank is zero."""
    return np.pad(values, (0, length - len(values))) if length > len(values) else values[:length]
