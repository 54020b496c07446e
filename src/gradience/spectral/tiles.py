"""Gram matrices on an accelerator.

Factors are cut into tiles of a few fixed shapes, and each call of a jitted kernel computes the Gram matrices of many
tiles. The Gram matrix of a factor is the sum of those of its tiles.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from threading import Lock
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np

from gradience.spectral.grams import Factors, Grams, Loads, Matrix, bucket_of, narrowed

_SHORT: Final = 1024  # columns of A, or rows of B, in a tile
_LONG: Final = 4096  # columns or rows in a tile if that many are left, and one such tile fits a call
_BATCH_ELEMENTS: Final = 1 << 18  # a call's tiles as float64 (2 MiB) stay in the cache; measured with 2**16 to 2**19
# Calls whose results have not been collected yet, at most.
_IN_FLIGHT: Final = 3


class _Kernel:
    """A jitted function of stacked tiles; only one thread at a time compiles it."""

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


def gram_rows(x: jax.Array) -> jax.Array:
    """Return X X^T of a (r, d) array, accumulated in float64."""
    wide = x.astype(jnp.float64)
    return wide @ wide.T


def gram_columns(x: jax.Array) -> jax.Array:
    """Return X^T X of a (d, r) array, accumulated in float64."""
    wide = x.astype(jnp.float64)
    return wide.T @ wide


_gram_rows = _Kernel(gram_rows)
_gram_columns = _Kernel(gram_columns)


def on_device(loads: Loads, indices: Iterable[int]) -> list[tuple[int, Grams]]:
    """Return each of one thread's indices with its Gram matrices, by JAX."""
    with jax.enable_x64(True):  # noqa: FBT003  # of this thread alone
        adder = _Adder()
        for index in indices:
            adder.add(index, loads[index]())
        return adder.finish()


class _Adder:
    """Sums the Gram matrices of tiles into A A^T and B^T B of each module."""

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
        """Run the batches that are not full, and return each module's index and Gram matrices."""
        for key in list(self._open):
            self._run(self._open.pop(key))
        while self._running:
            self._collect()
        return [(index, self._grams(index, *sides)) for index, sides in self._modules.items()]

    def _grams(self, index: int, r: int, inner: int, scale: float) -> Grams:
        size = bucket_of(inner)
        sides = [self._sums.get((index, side)) for side in (0, 1)]
        gram_a, gram_b = (np.zeros((size, size)) if gram is None else gram for gram in sides)
        return Grams(gram_a, gram_b, r, scale)

    def _tile(self, owner: tuple[int, int], factor: Matrix, *, rows: bool) -> None:
        r, length = factor.shape if rows else factor.shape[::-1]
        size, start = bucket_of(r), 0
        while start < length:
            width = _LONG if length - start >= _LONG and size * _LONG <= _BATCH_ELEMENTS else _SHORT
            tile = factor[:, start : start + width] if rows else factor[start : start + width]
            self._put(owner, tile, (size, width), rows=rows)
            start += width

    def _put(self, owner: tuple[int, int], tile: Matrix, padded: tuple[int, int], *, rows: bool) -> None:
        count = max(1, _BATCH_ELEMENTS // (padded[0] * padded[1]))
        shape = padded if rows else padded[::-1]
        if count == 1 and tile.shape == shape and tile.flags.c_contiguous:
            self._run(_Batch(tile[None], [owner], rows=rows))  # used in place: no copy into a batch
            return
        key = (tile.dtype.str if tile.dtype.kind == "f" else tile.dtype.name, *padded, rows)
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
    """Tiles of one dtype, padded rank, width and orientation, collected until they fill a call."""

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
