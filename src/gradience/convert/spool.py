"""Factors that were expensive to compute, on disk until the adapter is written: one module in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Spool"]

Array: TypeAlias = npt.NDArray[Any]
Pair: TypeAlias = tuple[Array, Array]


class Spool:
    """A folder of pairs; whoever made the folder removes it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def keep(self, b: Array, a: Array) -> Callable[[], Pair]:
        """Return a function that gives the pair back, in float32, as it will be stored."""
        path = self._folder / f"{self._count}.npz"
        self._count += 1
        np.savez(path, b=b.astype(np.float32), a=a.astype(np.float32))

        def load() -> Pair:
            with np.load(path) as held:
                return held["b"], held["a"]

        return load
