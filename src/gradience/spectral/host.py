"""One pass over the factors of many small updates on this thread: their Gram matrices by BLAS, and their sketch.

For a process that has one core to itself, and an adapter of which a module costs less than a call: updates of one shape
are computed together. Each number is that of the update alone, whatever it is stacked with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from gradience.spectral.grams import Factors, Grams, bucket_of, grams_on_host
from gradience.spectral.narrow import inner_size
from gradience.spectral.sketch import Sketch

Matrix: TypeAlias = npt.NDArray[Any]

_STACKED: Final = 1 << 17  # elements of a factor in one stack: 1 MiB as float64 stay in the cache


def grams_and_sketch(names: Sequence[str], loads: Sequence[Callable[[], Factors]]) -> tuple[list[Grams], list[float]]:
    """The Gram matrices of each update, in order, and the numbers of the sketch of all; each load is called once.

    What is not finite stays so in its Gram matrices, and is left out of the sketch.
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
        with np.errstate(all="ignore"):  # what is not finite is found by `spectra`
            wide_b, wide_a = b.astype(np.float64), a.astype(np.float64)
            grams_a = _padded(wide_a @ wide_a.transpose(0, 2, 1))
            grams_b = _padded(wide_b.transpose(0, 2, 1) @ wide_b)
        for place, (index, factors) in enumerate(held):
            self._found[index] = Grams(grams_a[place], grams_b[place], a.shape[1], factors.scale)

    def grams(self) -> list[Grams]:
        """All of them, in the order of their indices."""
        while self._open:
            self._stack(self._open.popitem()[1])
        return [self._found[index] for index in sorted(self._found)]


def _padded(grams: Matrix) -> Matrix:
    """Gram matrices (n, r, r), padded to the rank's bucket."""
    n, r, _ = grams.shape
    size = bucket_of(r)
    if size == r:
        return grams
    found = np.zeros((n, size, size))
    found[:, :r, :r] = grams
    return found
