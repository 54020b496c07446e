"""How finely weights are rounded, as their values show: a file in float32 may hold what bfloat16 or 8 bits left.

A float that was rounded to 16 bits has zeros in the low bits of its mantissa. Weights behind codes of 8 bits are
multiples of a group's largest one over 127, and those behind codes of 4 bits have at most 16 values in a group.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_ROWS: Final = 64  # of a matrix are looked at
_GROUP: Final = 32  # the smallest group of values that shares a scale in usual formats; the larger are multiples of it
_STEPS: Final = 127.0
_LEVELS: Final = 16
_OFF: Final = 0.13  # of a step, what a float16 leaves; 32 random values are that near with a chance of 1e-18
_LOW_BITS: Final = {"bfloat16": 0xFFFF, "float16": 0x1FFF}
"""The bits of a float32 that are zero in a number of that kind."""

ORDER: Final = ("int4", "int8", "bfloat16", "float16", "float32")
"""The widths, the coarsest first."""


def precision_of(matrices: Iterable[npt.NDArray[Any]], stored: str) -> str:
    """The coarsest width that all matrices (out, in) have; `stored`, the dtype of the file, if nothing coarser is seen.

    One matrix that is finer, such as that of a merge into a rounded base, makes all of them as fine as it.
    """
    finest = max((ORDER.index(_width(each)) for each in matrices), default=len(ORDER) - 1)
    return min(ORDER[finest], stored, key=ORDER.index) if stored in ORDER else stored


def _width(matrix: npt.NDArray[Any]) -> str:
    some = np.ascontiguousarray(matrix[:_ROWS], np.float32)
    if not some.any():
        return ORDER[0]  # a matrix of zeros says nothing
    for name, holds in (("int4", _has_few_values), ("int8", _is_on_a_grid)):
        if holds(some):
            return name
    bits = some.view(np.uint32)
    return next((name for name, low in _LOW_BITS.items() if not (bits & low).any()), "float32")


def _groups(matrix: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    """The values (groups, size) that are not all 0, of whole groups along the rows."""
    whole = matrix[:, : matrix.shape[1] // size * size].reshape(-1, size)
    return whole[whole.any(axis=1)]


def _has_few_values(matrix: npt.NDArray[np.float32]) -> bool:
    ordered = np.sort(_groups(matrix, _GROUP), axis=1)
    return len(ordered) > 0 and bool(((np.diff(ordered, axis=1) > 0.0).sum(axis=1) < _LEVELS).all())


def _is_on_a_grid(matrix: npt.NDArray[np.float32]) -> bool:
    sizes = (matrix.shape[1], *(size for size in (32, 64, 128) if size < matrix.shape[1]))
    return matrix.shape[1] >= _GROUP and any(_all_on_a_grid(_groups(matrix, size)) for size in sizes)


def _all_on_a_grid(groups: npt.NDArray[np.float32]) -> bool:
    steps = groups / np.abs(groups).max(axis=1, keepdims=True) * _STEPS
    return len(groups) > 0 and bool((np.abs(steps - np.round(steps)) <= _OFF).all())
