"""Roundings: to which values a dtype can be rounded, and how far that may be."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from gradience.adapters.modules import Array
from gradience.adapters.tensors import DTYPES

__all__ = ["FLOATS", "HALVES", "UNIT", "narrower", "rounded", "working"]

UNIT: Final = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
"""Unit roundoff: the relative error of rounding a normal number to nearest (IEEE 754; bfloat16 keeps 8 bits)."""

FLOATS: Final = frozenset(UNIT)
HALVES: Final = ("BF16", "F16")


def narrower(dtype: str, other: str) -> bool:
    """Return whether rounding the other's values to the dtype can change them."""
    return dtype != other and (UNIT[dtype] >= UNIT[other] or (dtype == "F16" and other == "BF16"))


def working(*dtypes: str) -> np.dtype[Any]:
    """Return the dtype to compute in: float32, or float64 where a tensor is stored so."""
    return np.dtype(np.float64 if "F64" in dtypes else np.float32)


def rounded(x: Array, dtype: str) -> Array:
    """Return the values rounded to the nearest of a dtype, ties to even, still in the array's own dtype."""
    kind = DTYPES[dtype]
    if kind.itemsize >= x.dtype.itemsize:
        return x
    with np.errstate(over="ignore"):  # beyond float16's range is infinity, as in a merge
        return np.asarray(x.astype(kind).astype(x.dtype))
