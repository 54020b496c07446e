"""The only vmap and jit: many modules at once, in few shapes, from a stream.

Factors are cut into tiles along their long axis; equal tiles of any module are stacked and their Gram
matrices computed in one call. So memory stays at a few tiles whatever the adapter's size, and one
compilation serves every width. Ranks are padded to a power of two for the same reason.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from gradience.spectral import metrics, update

__all__ = ["Factors", "Spectrum", "spectra", "use_device"]

Matrix: TypeAlias = npt.NDArray[Any]

SHARES: Final = (0.90, 0.95, 0.99)

_TILE: Final = 1024  # columns (of A) or rows (of B) in a tile
_BATCH_ELEMENTS: Final = 1 << 18  # a call's tiles as float64 (2 MiB) stay in the cache; measured with 2**16 to 2**19
_MODULES: Final = 64  # modules per call for the quantities
_IN_FLIGHT: Final = 3
_LEAST_RANK: Final = 8


class Factors(NamedTuple):
    """One update: `scale` * b @ a, with b (d_out, r) and a (r, d_in) of any real dtype."""

    b: Matrix
    a: Matrix
    scale: float


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


class _Quantities(NamedTuple):
    stable_rank: jax.Array
    effective_rank: jax.Array
    participation_ratio: jax.Array
    energy_ranks: jax.Array
    relative_errors: jax.Array
    frobenius_norm: jax.Array


def _quantities(sigma: jax.Array) -> _Quantities:
    return _Quantities(
        stable_rank=metrics.stable_rank(sigma),
        effective_rank=metrics.effective_rank(sigma),
        participation_ratio=metrics.participation_ratio(sigma),
        energy_ranks=jnp.stack([metrics.energy_rank(sigma, share) for share in SHARES]),
        relative_errors=metrics.relative_errors(sigma),
        frobenius_norm=metrics.frobenius_norm(sigma),
    )


_gram_rows = jax.jit(jax.vmap(update.gram_rows))
_gram_columns = jax.jit(jax.vmap(update.gram_columns))
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


def spectra(loads: Sequence[Callable[[], Factors]]) -> list[Spectrum]:
    """Return the spectrum of each update, in order.

    Each load is called once (twice for the rare update whose factors all but cancel), from another
    thread, one ahead of the arithmetic; at most two modules are in memory.
    """
    with jax.enable_x64(True):  # noqa: FBT003  # JAX's own signature
        grams = _Grams(len(loads))
        for index, factors in enumerate(_prefetch(loads)):
            grams.add(index, factors)
        return _finish(loads, grams.finish(), grams.scales)


def _prefetch(loads: Sequence[Callable[[], Factors]]) -> Iterator[Factors]:
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead = deque(pool.submit(load) for load in loads[:1])
        for index in range(len(loads)):
            current = ahead.popleft()
            if index + 1 < len(loads):
                ahead.append(pool.submit(loads[index + 1]))
            yield current.result()


class _Grams:
    """Adds up A A^T and B^T B of every module from batches of tiles."""

    def __init__(self, n: int) -> None:
        self.scales: list[float] = [1.0] * n
        self._sums: list[list[Matrix | None]] = [[None, None] for _ in range(n)]
        self._ranks: list[int] = [0] * n
        self._open: dict[tuple[str, int, bool], _Batch] = {}
        self._running: deque[tuple[jax.Array, list[tuple[int, int]]]] = deque()

    def add(self, index: int, factors: Factors) -> None:
        self.scales[index] = factors.scale
        self._ranks[index] = factors.a.shape[0]
        self._tile(index, 0, factors.a, rows=True)
        self._tile(index, 1, factors.b, rows=False)

    def finish(self) -> list[tuple[Matrix, Matrix, int]]:
        """Return (A A^T, B^T B, r) of every module, padded to the rank's bucket."""
        for key in list(self._open):
            self._run(key)
        while self._running:
            self._collect()
        done = []
        for (gram_a, gram_b), r in zip(self._sums, self._ranks, strict=True):
            size = _bucket(r)
            empty = np.zeros((size, size))
            done.append((empty if gram_a is None else gram_a, empty if gram_b is None else gram_b, r))
        return done

    def _tile(self, index: int, side: int, factor: Matrix, *, rows: bool) -> None:
        r = factor.shape[0] if rows else factor.shape[1]
        key = (factor.dtype.str if factor.dtype.kind == "f" else factor.dtype.name, _bucket(r), rows)
        length = factor.shape[1] if rows else factor.shape[0]
        for start in range(0, length, _TILE):
            batch = self._open.get(key) or self._open.setdefault(key, _Batch(factor.dtype, key[1], rows=rows))
            batch.put(factor[:, start : start + _TILE] if rows else factor[start : start + _TILE], (index, side))
            if batch.full:
                self._run(key)

    def _run(self, key: tuple[str, int, bool]) -> None:
        batch = self._open.pop(key)
        kernel = _gram_rows if batch.rows else _gram_columns
        self._running.append((kernel(batch.tiles), batch.owners))
        while len(self._running) >= _IN_FLIGHT:
            self._collect()

    def _collect(self) -> None:
        result, owners = self._running.popleft()
        for gram, (index, side) in zip(np.asarray(result), owners, strict=False):
            held = self._sums[index][side]
            self._sums[index][side] = gram.copy() if held is None else held + gram


class _Batch:
    """Tiles of one dtype, rank bucket and orientation, waiting to fill a call."""

    def __init__(self, dtype: np.dtype[Any], bucket: int, *, rows: bool) -> None:
        self.rows = rows
        n = max(1, _BATCH_ELEMENTS // (bucket * _TILE))
        self.tiles = np.zeros((n, bucket, _TILE) if rows else (n, _TILE, bucket), dtype)
        self.owners: list[tuple[int, int]] = []

    @property
    def full(self) -> bool:
        return len(self.owners) == len(self.tiles)

    def put(self, tile: Matrix, owner: tuple[int, int]) -> None:
        self.tiles[len(self.owners), : tile.shape[0], : tile.shape[1]] = tile
        self.owners.append(owner)


def _bucket(r: int) -> int:
    """Return the least power of two that is >= r, from 8."""
    return max(_LEAST_RANK, 1 << (r - 1).bit_length()) if r else _LEAST_RANK


def _finish(
    loads: Sequence[Callable[[], Factors]], grams: list[tuple[Matrix, Matrix, int]], scales: list[float]
) -> list[Spectrum]:
    found: list[Spectrum | None] = [None] * len(grams)
    by_bucket: dict[int, list[int]] = {}
    for index, (gram_a, _, _) in enumerate(grams):
        by_bucket.setdefault(len(gram_a), []).append(index)
    for bucket, indices in by_bucket.items():
        for start in range(0, len(indices), _MODULES):
            some = indices[start : start + _MODULES]
            sigma, finite = _sigma(loads, grams, some, bucket)
            numbers = jax.tree.map(np.asarray, _all_quantities(sigma))
            for row, index in enumerate(some):
                one = _Quantities(*(field[row] for field in numbers))
                found[index] = _spectrum(sigma[row], one, grams[index][2], scales[index], finite=bool(finite[row]))
    return [spectrum for spectrum in found if spectrum is not None]


def _sigma(
    loads: Sequence[Callable[[], Factors]],
    grams: list[tuple[Matrix, Matrix, int]],
    some: list[int],
    bucket: int,
) -> tuple[Matrix, Matrix]:
    """Return singular values (a fixed number of rows, zero beyond those asked for), and which are finite."""
    sides = np.zeros((2, len(some), bucket, bucket))
    for row, index in enumerate(some):
        sides[0, row], sides[1, row] = grams[index][0], grams[index][1]
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
    return sigma, finite


def _spectrum(sigma: Matrix, numbers: _Quantities, r: int, scale: float, *, finite: bool) -> Spectrum:
    size = abs(scale)
    return Spectrum(
        sigma=sigma[:r] * size,
        finite=finite,
        stable_rank=float(numbers.stable_rank),
        effective_rank=float(numbers.effective_rank),
        participation_ratio=float(numbers.participation_ratio),
        energy_ranks=tuple(int(k) for k in numbers.energy_ranks),  # type: ignore[arg-type]  # three shares
        relative_errors=np.asarray(numbers.relative_errors)[: r + 1],
        spectral_norm=float(sigma[0]) * size,
        frobenius_norm=float(numbers.frobenius_norm) * size,
    )
