"""Room for what a thread needs for a moment, kept by it: fresh memory for every module costs as much as its casts."""

from __future__ import annotations

import math
import threading
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_KEPT: Final = 1 << 21  # bytes for each thread and use


class Scratch(threading.local):
    """Room for one array at a time, of each thread its own; what it held before is lost."""

    def __init__(self) -> None:
        self._room = np.empty(0, np.uint8)

    def of(self, shape: tuple[int, ...], kind: type[np.floating[Any]]) -> npt.NDArray[Any]:
        """An array of that shape and dtype, not cleared."""
        size = math.prod(shape) * np.dtype(kind).itemsize
        if size > _KEPT:
            return np.empty(shape, kind)
        if len(self._room) == 0:
            self._room = np.empty(_KEPT, np.uint8)
        return self._room[:size].view(kind).reshape(shape)
