"""Weights that are stored in codes: W = scale (value(code) - zero), decoded a few rows at a time where they are used.

Each coding has one function from codes to values, written for one row of W. `tile` vmaps it over rows. `nearest` is the
way back: the value of a code that is closest to a number, by which `requantised` finds what a merge into the codes
would leave of an update.

Codes of less than 8 bits are packed into words of 32 bits along a row, the first code in the lowest bits. Words are
held as columns, one for each row of W, because XLA unpacks that order at the speed of a cast from bfloat16 and the
other at half of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt
from jax import Array, lax

Held: TypeAlias = Any
"""An array: of NumPy until it is put on a device, then of JAX."""

_MANTISSA: Final = 23  # bits of float32's
_WORD: Final = 32  # bits
_AWQ: Final = (0, 4, 1, 5, 2, 6, 3, 7)
"""The place in a word of AWQ's of each of eight neighbours (casper-hansen/AutoAWQ, packing_utils.py)."""


class Coding(NamedTuple):
    """What each code stands for, and the way from a number to the nearest of these values."""

    bits: int
    values: npt.NDArray[np.float32] | None
    """By code; None if each weight brings its own."""
    nearest: Callable[[Array, Array], Array]
    """From numbers and the values by code."""


def _whole(x: Array, values: Array) -> Array:
    return jnp.clip(jnp.round(x), values.min(), values.max())


def _floating(x: Array, values: Array, *, mantissa: int, least: float) -> Array:
    """The nearest float of so many bits of mantissa; `least` is the smallest normal one."""
    # Without its mantissa, |x| is the power of two at or below it, exactly; a logarithm could round to the next one.
    power = lax.bitcast_convert_type(jnp.abs(x), jnp.int32) >> _MANTISSA << _MANTISSA
    step = jnp.maximum(lax.bitcast_convert_type(power, jnp.float32), least) * 2.0**-mantissa
    # E5M2 has codes of infinity and NaN, E4M3 of NaN: a number beyond the range gets the largest finite value.
    largest = jnp.nanmax(values, where=jnp.isfinite(values), initial=0.0)
    return jnp.clip(jnp.round(x / step) * step, -largest, largest)


def _listed(x: Array, values: Array) -> Array:
    levels = jnp.sort(values)
    # The default method searches in a loop; with at most 16 levels, comparing with all is less work.
    return levels[jnp.searchsorted((levels[1:] + levels[:-1]) / 2.0, x, method="compare_all")]


def _counted(first: int, bits: int) -> Coding:
    return Coding(bits, np.arange(first, first + 2**bits, dtype=np.float32), _whole)


def _float(kind: npt.DTypeLike, bits: int, *, mantissa: int, least: float) -> Coding:
    values = np.arange(2**bits, dtype=np.uint8).view(kind).astype(np.float32)
    return Coding(bits, values, partial(_floating, mantissa=mantissa, least=least))


CODINGS: Final = MappingProxyType(
    {
        **{f"uint{bits}": _counted(0, bits) for bits in (2, 4, 8)},  # beside zero points
        **{f"offset{bits}": _counted(-(2 ** (bits - 1)), bits) for bits in (2, 4, 8)},
        "int8": Coding(8, np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32), _whole),
        "float8_e4m3fn": _float(ml_dtypes.float8_e4m3fn, 8, mantissa=3, least=2.0**-6),
        "float8_e5m2": _float(ml_dtypes.float8_e5m2, 8, mantissa=2, least=2.0**-14),
        "float4_e2m1fn": _float(ml_dtypes.float4_e2m1fn, 4, mantissa=1, least=1.0),
        "own values": Coding(4, None, _listed),
    }
)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("packed", "scales", "zeros", "groups", "values"),
    meta_fields=("coding", "columns", "block"),
)
@dataclass(frozen=True)
class Codes:
    """A weight (m, n) in codes; arrays of numpy or JAX."""

    packed: Held
    """Words (ceil(n / codes in a word), m) uint32, or one byte a code (m, n), uint8 or int8."""
    scales: Held
    """(g, m) beside words, (m, g) beside bytes; float32."""
    coding: str
    """A name of `CODINGS`."""
    columns: int
    """n."""
    block: int
    """Neighbours in a row that share a scale."""
    zeros: Held | None = None
    """Shaped as the scales."""
    groups: Held | None = None
    """The group of each column (n,), where neighbours do not share theirs (act order)."""
    values: Held | None = None
    """The value of each code (2^bits,), for a coding that has none."""

    @property
    def axis(self) -> int:
        """The axis of the arrays along which W's rows lie."""
        return int(self.packed.dtype.itemsize == 4)  # bytes of a word

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.packed.shape[self.axis], self.columns

    @property
    def size(self) -> int:
        """The number of weights."""
        return self.shape[0] * self.columns

    def rows(self, start: Array | int, count: int) -> Codes:
        """Some rows of it."""
        cut = partial(lax.dynamic_slice_in_dim, start_index=start, slice_size=count, axis=self.axis)
        zeros = None if self.zeros is None else cut(self.zeros)
        return replace(self, packed=cut(self.packed), scales=cut(self.scales), zeros=zeros)


def decoded(codes: Codes) -> Array:
    """The weights (m, n) in float32."""
    return _by_rows(_row, codes)


@jax.jit
def moved(codes: Codes, delta: Array) -> Array:
    """The change of W (m, n) by a merge of delta that is rounded to the codes, their scales and zero points kept."""
    return _by_rows(_moved_row, codes, delta)


whole = jax.jit(decoded)


def _by_rows(of_row: Callable[..., Array], codes: Codes, *more: Array) -> Array:
    if codes.axis:
        columns: Array = of_row(codes, *(x.T for x in more))
        return columns.T
    # vmap wants the axes in a tree like its argument: the same class, with an axis or None for each array.
    each: Codes = replace(codes, packed=0, scales=0, zeros=0, groups=None, values=None)
    rows: Array = jax.vmap(of_row, in_axes=(each, *(0 for _ in more)))(codes, *more)
    return rows


# The functions below take one row of W (n,), or several as the columns of (n, k).


def _row(row: Codes) -> Array:
    value = _known(row)[_codes(row)]
    return (value if row.zeros is None else value - _spread(row, row.zeros)) * _spread(row, row.scales)


def _moved_row(row: Codes, delta: Array) -> Array:
    """The change is found among values, so that a code that stays adds exactly nothing."""
    values, scales = _known(row), _spread(row, row.scales)
    value = values[_codes(row)]
    aim = value + delta / jnp.where(scales == 0.0, 1.0, scales)
    return (CODINGS[row.coding].nearest(aim, values) - value) * scales


def _known(row: Codes) -> Array:
    listed = CODINGS[row.coding].values
    return jnp.asarray(row.values if listed is None else listed)


def _codes(row: Codes) -> Array:
    packed = row.packed
    if not row.axis:
        # int8 too: `values` are listed by the code's bits, and a negative index would count from the end.
        single: Array = packed.astype(jnp.uint8)
        return single
    bits = CODINGS[row.coding].bits
    shifts = jnp.arange(0, _WORD, bits, dtype=jnp.uint32).reshape(-1, *(1 for _ in packed.shape[1:]))
    apart: Array = (packed[:, None] >> shifts) & (2**bits - 1)
    return apart.reshape(-1, *packed.shape[1:])[: row.columns]


def _spread(row: Codes, of_group: Array) -> Array:
    """The number of each column's group."""
    if row.groups is not None:
        own: Array = of_group[row.groups]
        return own
    count, *rest = of_group.shape
    return jnp.broadcast_to(of_group[:, None], (count, row.block, *rest)).reshape(-1, *rest)[: row.columns]


@jax.jit
def from_awq(words: Array) -> Array:
    """AWQ's words (n, m / 8), eight neighbours of a column each, as words (n / 8, m) along the rows of W."""
    n, width = words.shape
    shifts = 4 * jnp.asarray(_AWQ, jnp.uint32)
    codes = ((words[:, :, None] >> shifts) & 15).reshape(n // 8, 8, width * 8)
    return jnp.sum(codes << (4 * jnp.arange(8, dtype=jnp.uint32))[:, None], axis=1, dtype=jnp.uint32)


def words_of(codes: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """Bytes (m, k), the first code of each in its lowest bits, as words (ceil(k / 4), m)."""
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % 4)))
    return np.ascontiguousarray(padded.view("<u4").T)
