"""safetensors' names of array types."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from gradience.adapters.tensors import DTYPES

__all__ = ["dtype_name"]

_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return safetensors' name of the type, such as `BF16`."""
    return _NAMES[dtype]
