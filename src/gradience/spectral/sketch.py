"""A sketch of a whole update: a short vector whose inner products estimate those of updates, to find near duplicates.

It is a TensorSketch (Pham and Pagh, KDD 2013) of each rank-one term b_i a_i^T. The two vectors are folded to D numbers
each, with random signs, and the circular convolutions of the terms are summed. That costs one pass over the factors,
and no matrix is formed.

`grams_and_sketch` computes the Gram matrices in the same pass, on the calling thread. It is meant for a process that
has one core, and for adapters whose modules are so small that calls cost more than the work. So it stacks updates of
one shape. An update's numbers do not depend on the stack it is in.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from gradience.spectral.grams import Factors, Grams, Matrix, grams_on_host, inner_size, padded

Floats: TypeAlias = npt.NDArray[np.float32]
Doubles: TypeAlias = npt.NDArray[np.float64]

DIMENSIONS: Final = 128
_SEED: Final = 20130811


_HELD: Final = 1 << 12  # pairs of folded vectors collected for one Fourier transform: 8 MiB

_STACKED: Final = 1 << 17  # elements of a factor in one stack: 1 MiB as float64 stays in the cache


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

    def _add(self, names: Sequence[str], left: Floats, right: Floats, scales: Sequence[float]) -> None:
        keys = [zlib.crc32(name.encode("utf-8", "surrogatepass")) for name in names]
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
        found = []
        for name in names:
            found.append(name not in self._added)
            self._added.add(name)
        return found

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
            found = np.fft.irfft(self._total, n=DIMENSIONS).astype(np.float32)
        return found.tolist() if np.isfinite(found).all() else [0.0] * DIMENSIONS


def _folded_rows(stack: Matrix) -> Floats:
    """Fold matrices (n, r, d) to (n, r, D): columns D apart are added, each block of D columns with a random sign."""
    n, rank, length = stack.shape
    numbers, whole = stack.astype(np.float32, copy=False), length // DIMENSIONS
    signs = _signs(whole + 1, 0)
    even = numbers[..., : whole * DIMENSIONS].reshape(n, rank, whole, DIMENSIONS)
    total = signs[:whole] @ even
    rest = numbers[..., whole * DIMENSIONS :]
    total[..., : rest.shape[-1]] += signs[whole] * rest
    return total


def _folded_columns(stack: Matrix) -> Floats:
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
def _signs(n: int, *key: int) -> Floats:
    """Return n random signs for a key, the same on every machine: numpy keeps a bit generator's raw stream stable."""
    words = np.random.PCG64([_SEED, *key]).random_raw(-(-n // 64))
    bits = np.unpackbits(np.asarray(words, dtype="<u8").view(np.uint8))[:n]
    return np.where(bits == 1, np.float32(1.0), np.float32(-1.0))


def grams_and_sketch(names: Sequence[str], loads: Sequence[Callable[[], Factors]]) -> tuple[list[Grams], list[float]]:
    """Return the Gram matrices of each update, in order, and the sketch of all; each load is called once.

    If an update is not finite, neither are its Gram matrices, and the sketch leaves it out.
    """
    work = _Pass(names)
    for index, load in enumerate(loads):
        work.add(index, load())
    return work.grams(), work.sketch.numbers()


class _Pass:
    def __init__(self, names: Sequence[str]) -> None:
        self.sketch = Sketch()
        self._names = names
        self._found: dict[int, Grams] = {}
        self._open: dict[tuple[object, ...], list[tuple[int, Factors]]] = {}

    def add(self, index: int, factors: Factors) -> None:
        b, a, scale = factors
        most = max(b.size, a.size)
        if 2 * most > _STACKED or inner_size(len(a), len(b), a.shape[1]) < len(a):
            self.sketch.add(self._names[index], b, a, scale)
            self._found[index] = grams_on_host(factors)
            return
        key = (b.shape, a.shape, b.dtype, a.dtype)
        held = self._open.setdefault(key, [])
        held.append((index, factors))
        if (len(held) + 1) * most > _STACKED:
            self._stack(self._open.pop(key))

    def _stack(self, held: list[tuple[int, Factors]]) -> None:
        b, a = (np.stack([factors[side] for _, factors in held]) for side in (0, 1))
        self.sketch.add_stack([self._names[i] for i, _ in held], b, a, [factors.scale for _, factors in held])
        with np.errstate(all="ignore"):  # entries that are not finite warn here; the Gram matrices show them
            wide_b, wide_a = b.astype(np.float64), a.astype(np.float64)
            grams_a = padded(wide_a @ wide_a.transpose(0, 2, 1))
            grams_b = padded(wide_b.transpose(0, 2, 1) @ wide_b)
        for place, (index, factors) in enumerate(held):
            self._found[index] = Grams(grams_a[place], grams_b[place], a.shape[1], factors.scale)

    def grams(self) -> list[Grams]:
        """The Gram matrices of all updates, in the order of their indices."""
        while self._open:
            self._stack(self._open.popitem()[1])
        return [self._found[index] for index in sorted(self._found)]
