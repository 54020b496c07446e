"""Arrays as they are stored: safetensors' names of their types, and zeros that change no product."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from gradience.adapters.modules import Array
from gradience.adapters.tensors import DTYPES

__all__ = ["dtype_name", "padded"]

_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return safetensors' name of the type, such as `BF16`."""
    return _NAMES[dtype]


def padded(array: Array, shape: tuple[int, ...]) -> Array:
    """Return the array with zeros behind it on each axis, up to the shape."""
    if array.shape == shape:
        return array
    wide = np.zeros(shape, array.dtype)
    wide[tuple(slice(0, size) for size in array.shape)] = array
    return wide
