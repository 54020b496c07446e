"""Updates by rows: dW as the product of its factors, which is never in memory whole; and roundings to a dtype."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from gradience.adapters.layout import Array, Module
from gradience.base.weights import matrix_of, plain_factors
from gradience.io.safetensors import DTYPES

UNIT: Final = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
"""Unit roundoff: a bound on the relative error of rounding a normal number to nearest (IEEE 754; bfloat16: 8 bits)."""

FLOATS: Final = frozenset(UNIT)
HALVES: Final = ("BF16", "F16")

_MANY: Final = 16  # above one entry in 16, computing all is as quick as picking some (heuristic)
_ROUNDINGS: Final = 8  # float32 roundings in a dense update before the sum: norms, quotients, products (heuristic)

Entries: TypeAlias = npt.NDArray[np.int64]
"""Places in flattened rows."""


def narrower(dtype: str, other: str) -> bool:
    """Return whether rounding values of dtype `other` to `dtype` can change them."""
    return dtype != other and (UNIT[dtype] >= UNIT[other] or (dtype == "F16" and other == "BF16"))


def working(*dtypes: str) -> np.dtype[Any]:
    """Return the dtype to compute in: float64 if one of the dtypes is float64, else float32."""
    return np.dtype(np.float64 if "F64" in dtypes else np.float32)


def rounded(x: Array, dtype: str) -> Array:
    """Return the values rounded to nearest in `dtype`, ties to even, but held in the array's own dtype."""
    kind = DTYPES[dtype]
    if kind.itemsize >= x.dtype.itemsize:
        return x
    if dtype == "BF16" and x.dtype == np.float32:
        return _rounded_to_bf16(x)
    with np.errstate(over="ignore"):  # a value beyond float16's range becomes infinity, as in a merge
        return np.asarray(x.astype(kind).astype(x.dtype))


def _rounded_to_bf16(x: Array) -> Array:
    """Return float32 numbers rounded to bfloat16, ties to even, by integer arithmetic: much faster than two casts."""
    bits = x.view(np.uint32)
    carry = bits >> 16
    carry &= 1
    # Half a unit less one, and the last bit that stays: a tie goes up only from an odd number.
    carry += 0x7FFF
    carry += bits
    carry &= 0xFFFF0000
    y = carry.view(np.float32)
    # An overflow gives infinity, as it should. A NaN may have lost its payload or become zero, so it is restored.
    return np.where(np.isnan(x), x, y) if np.isnan(x).any() else y


class PlainDelta:
    """The update dW = scale * b @ a; only some of its rows are formed at a time."""

    is_known: Final = True
    """Whether a merge's dW follows from the files, up to the order of sums."""
    rescales: Final = False
    slack: float = 1.0
    """The number of float32 roundings that the weight itself may have gone through."""

    @np.errstate(over="ignore")  # beyond float32 is infinity, as in a merge
    def __init__(self, b: Array, a: Array, scale: float) -> None:
        self._b, self._a = (np.ascontiguousarray(x.astype(np.float32)) for x in (b, a))
        self.scale = np.float32(scale)

    @property
    def rank(self) -> int:
        """The number of products that are summed in each entry."""
        return len(self._a)

    @np.errstate(over="ignore", invalid="ignore")  # beyond float32 is infinity, as in a merge
    def rows(self, at: slice | Array) -> Array:
        """Return rows of dW, in float32."""
        d = np.asarray(self._b[at] @ self._a)
        # After the product, as in PEFT's get_delta_weight: in float32 the order decides the last bit.
        d *= self.scale
        return d

    @np.errstate(over="ignore", invalid="ignore")
    def terms(self, at: slice | Array, entries: Entries) -> tuple[Array, Array]:
        """Return entries of the flattened rows of s B A in float64, and of |s| sum_k |b_ik a_kj|."""
        b, a = (x.astype(np.float64) for x in (self._b[at], self._a))
        if len(entries) > len(b) * a.shape[1] // _MANY:
            total, size = (b @ a).reshape(-1)[entries], (np.abs(b) @ np.abs(a)).reshape(-1)[entries]
        else:
            row, column = np.divmod(entries, a.shape[1])
            each = b[row] * a.T[column]
            total, size = each.sum(axis=1), np.abs(each).sum(axis=1)
        return float(self.scale) * total, abs(float(self.scale)) * size


class WholeDelta:
    """An update held as one matrix: a bias, or a function of the base weight (DoRA, PiSSA).

    `is_known` is False for a function of the base weight, because norms and factorisations have machine-dependent last
    bits. `rescales` says that it is DoRA's, whose merge rounds a norm, a quotient and a product too.
    """

    slack: float = _ROUNDINGS

    def __init__(self, update: Array, rank: int, *, is_known: bool, rescales: bool = False) -> None:
        self._update, self.rank, self.is_known, self.rescales = update, rank, is_known, rescales

    def rows(self, at: slice | Array) -> Array:
        """Return rows of dW."""
        return self._update[at]

    def terms(self, at: slice | Array, entries: Entries) -> tuple[Array, Array]:
        """Return entries of the rows, and for each the size that a rounding acts on.

        That is zero where there is no sum whose order could differ, else the root mean square of the entry's row.
        """
        part = self._update[at].astype(np.float64)
        size = np.zeros(len(part)) if self.is_known else np.sqrt(np.mean(part**2, axis=1))
        return part.reshape(-1)[entries], size[entries // part.shape[1]]


Delta = PlainDelta | WholeDelta


def delta_of(module: Module, w: Array) -> Delta:
    """Return the module's true update in the orientation of the base's weight.

    Raises:
        AdapterError: the base's weight has another shape.
    """
    if module.dense is not None:
        update = matrix_of(module.dense, w)
        return WholeDelta(update, module.r, is_known=False, rescales=module.magnitude is not None)
    return PlainDelta(*plain_factors(module, w.shape), module.scale)
