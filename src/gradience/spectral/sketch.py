"""A short vector of a whole update, whose inner products estimate those of updates: near duplicates are found by it.

TensorSketch (Pham and Pagh, KDD 2013) of each b_i a_i^T: both sides are folded to D numbers with random signs, and
their circular convolution is added up. It costs one pass over the factors, and never forms the matrix.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

Matrix: TypeAlias = npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.float32]
Doubles: TypeAlias = npt.NDArray[np.float64]

DIMENSIONS: Final = 128
_SEED: Final = 20130811


_HELD: Final = 1 << 12  # pairs of folded columns that are kept for one transform: 8 MiB


class Sketch:
    """The sketch of one update, added up module by module."""

    def __init__(self) -> None:
        self._total = np.zeros(DIMENSIONS // 2 + 1, np.complex128)
        self._added: set[str] = set()
        self._held: list[tuple[Doubles, Doubles]] = []
        self._columns = 0

    def add(self, name: str, b: Matrix, a: Matrix, scale: float) -> None:
        """Add a module's update scale * b @ a, b (d_out, r), a (r, d_in), unless one of that name was added.

        An update that is not finite is left out.
        """
        if name in self._added:
            return
        self._added.add(name)
        key = zlib.crc32(name.encode("utf-8", "surrogatepass"))
        with np.errstate(all="ignore"):
            left, right = _folded(b.T, 2 * key), _folded(a, 2 * key + 1) * scale
            if not np.isfinite(left.sum() + right.sum()):
                return
        self._held.append((left, right))
        self._columns += len(left)
        if self._columns >= _HELD:
            self._transform()

    def _transform(self) -> None:
        """Convolve each pair of columns, and add all up: the sum is taken before the transform back."""
        if not self._held:
            return
        left, right = (np.fft.rfft(np.concatenate(side), axis=1) for side in zip(*self._held, strict=True))
        with np.errstate(all="ignore"):
            self._total += (left * right).sum(axis=0)
        self._held, self._columns = [], 0

    def numbers(self) -> list[float]:
        """The D numbers; zeros where one is beyond float32's range."""
        self._transform()
        with np.errstate(all="ignore"):
            found = np.fft.irfft(self._total, n=DIMENSIONS).astype(np.float32)
        return [float(x) for x in (found if np.isfinite(found).all() else np.zeros(DIMENSIONS))]


def _folded(factor: Matrix, key: int) -> Doubles:
    """The factor (r, d) with columns D apart added up, each block of D and each column under a random sign: (r, D)."""
    rank, length = factor.shape
    whole = length // DIMENSIONS
    numbers = factor.astype(np.float32, copy=False)
    signs, even = _signs(whole + 1, 0), numbers[:, : whole * DIMENSIONS]
    if numbers.flags.c_contiguous:
        folded = signs[:whole] @ even.reshape(rank, whole, DIMENSIONS)
    else:  # a transposed one, summed as it lies in memory
        folded = (signs[:whole] @ even.T.reshape(whole, DIMENSIONS * rank)).reshape(DIMENSIONS, rank).T
    total = folded.astype(np.float64)
    rest = numbers[:, whole * DIMENSIONS :]
    total[:, : rest.shape[1]] += signs[whole] * rest
    return total * _signs(DIMENSIONS, 1, key)


@lru_cache(maxsize=4096)
def _signs(n: int, *key: int) -> Floats:
    """Random signs, the same on every machine: numpy keeps the raw stream of a bit generator stable."""
    words = np.random.PCG64([_SEED, *key]).random_raw(-(-n // 64))
    bits = np.unpackbits(np.asarray(words, dtype="<u8").view(np.uint8))[:n]
    return np.where(bits == 1, np.float32(1.0), np.float32(-1.0))
