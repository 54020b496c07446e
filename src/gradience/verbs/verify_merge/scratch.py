"""Arrays that one thread uses again for every span: fresh ones cost more in page faults than the arithmetic in them."""

from __future__ import annotations

import math
import threading

import numpy as np
import numpy.typing as npt

from gradience.adapters.layout import Array


class Scratch(threading.local):
    """Uninitialised arrays by name. Each call with a name takes back what the last one with that name gave."""

    def __init__(self) -> None:
        self._held: dict[str, npt.NDArray[np.uint8]] = {}
        self._last: dict[str, Array] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return an array of that shape and dtype, with any values."""
        last = self._last.get(name)
        if last is not None and last.shape == shape and last.dtype == dtype:
            return last  # spans of one matrix follow each other
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        held = self._held.get(name)
        if held is None or len(held) < nbytes:
            held = self._held[name] = np.empty(nbytes, np.uint8)
        last = self._last[name] = held[:nbytes].view(dtype).reshape(shape)
        return last


scratch = Scratch()
