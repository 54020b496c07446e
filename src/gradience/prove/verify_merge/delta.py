"""Weights and updates by rows: W read from its file on demand, and dW computed with the precision of a replay.

Stored weights and products B A are never in memory whole. Each thread reuses its arrays of a span's size, because the
page faults of fresh arrays cost more than the arithmetic on them.

A product B A in float32 depends on the order in which a machine adds up its r terms, so two correct merges may differ
in the last bits. `PlainDelta.bounds` bounds the results of all orders, so that the verdict "exact" depends on none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from gradience.adapters.layout import Array, Module
from gradience.base.weights import BaseTensor, matrix_of, plain_factors
from gradience.errors import AdapterError
from gradience.io.safetensors import DTYPES, TensorReader
from gradience.schema.merge import MergeReplay
from gradience.spectral import scratch

UNIT: Final = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
"""Unit roundoff: a bound on the relative error of rounding a normal number to nearest (IEEE 754; bfloat16: 8 bits)."""

FLOATS: Final = frozenset(UNIT)
HALVES: Final = ("BF16", "F16")

_ROUNDINGS: Final = 8  # float32 roundings in a dense update before the sum: norms, quotients, products (heuristic)


class _Part(NamedTuple):
    """Consecutive rows in one tensor; `start` is the first row's offset in bytes."""

    reader: TensorReader
    start: int
    rows: int


class Stored:
    """A matrix in files: the rows of one tensor, or of several stacked. Index it by a slice or by row numbers."""

    def __init__(self, parts: Sequence[_Part], columns: int, dtype: np.dtype[Any]) -> None:
        self._parts = parts
        self.dtype = dtype
        self.shape = (sum(part.rows for part in parts), columns)
        self._last: tuple[bytes, Array] = (b"", np.empty((0, columns), dtype))

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    @property
    def size(self) -> int:
        """The number of entries."""
        return self.shape[0] * self.shape[1]

    def __getitem__(self, at: slice | Array) -> Array:
        """Return rows as stored; rows picked by an array of numbers, as by `Case.probe`, are read-only."""
        if isinstance(at, slice):
            return self.read(at, np.empty(self.extent(at), self.dtype))
        numbers = at.tobytes()
        asked, rows = self._last
        if asked != numbers:  # the last rows are kept, because each replay is tried on the same few rows
            rows = self._picked(at)
            self._last = numbers, rows
        return rows

    def _picked(self, at: Array) -> Array:
        """Return rows by their numbers; consecutive rows are read in one piece."""
        runs = np.split(at, np.flatnonzero(np.diff(at) != 1) + 1)
        rows = np.concatenate([self[int(run[0]) : int(run[-1]) + 1] for run in runs if len(run)])
        rows.flags.writeable = False
        return rows

    def extent(self, at: slice) -> tuple[int, int]:
        """Return the shape of a slice of rows."""
        start, stop, _ = at.indices(len(self))
        return max(0, stop - start), self.shape[1]

    def read(self, at: slice, out: Array) -> Array:
        """Fill `out`, of the right shape and dtype, with a slice of rows, and return it."""
        start, stop, _ = at.indices(len(self))
        self._read(start, stop, out.reshape(-1).view(np.uint8))
        return out

    def head(self, rows: int) -> Stored:
        """Return the first `rows` rows, without reading them."""
        kept, left = [], rows
        for part in self._parts:
            kept.append(part._replace(rows=min(part.rows, left)))
            left -= kept[-1].rows
        return Stored(kept, self.shape[1], self.dtype)

    def _read(self, start: int, stop: int, out: npt.NDArray[np.uint8]) -> None:
        width = self.shape[1] * self.dtype.itemsize
        above = 0
        for part in self._parts:
            first, last = max(start - above, 0), min(stop - above, part.rows)
            if first < last:
                into = out[(above + first - start) * width : (above + last - start) * width]
                part.reader.into(part.start + first * width, into)
            above += part.rows


Matrix: TypeAlias = Array | Stored


def stored(tensors: Iterable[BaseTensor], expert: int | None, files: ExitStack) -> Stored:
    """Return the tensors' rows stacked, each tensor as a matrix with all axes after the first flattened.

    Args:
        tensors: tensors with at least two axes, none of them empty.
        expert: the index on the first axis to take, for tensors with at least three axes.
        files: keeps the files open.

    Raises:
        AdapterError: there is no such expert, or the tensors differ in dtype or width.
    """
    parts, forms = [], set()
    for found in tensors:
        count, *rest = found.info.shape
        start = 0
        if expert is not None:
            if expert >= count or len(rest) < 2:
                raise AdapterError(f"{found.name}: of shape {list(found.info.shape)}: no expert {expert}")
            start = expert * (found.info.nbytes // count)
            count, *rest = rest
        forms.add((found.info.dtype, math.prod(rest)))
        parts.append(_Part(files.enter_context(found.file.reader(found.name)), start, count))
    if len(forms) != 1:
        raise AdapterError(f"the parts of one weight are of several dtypes or widths: {sorted(forms)}")
    ((dtype, columns),) = forms
    return Stored(parts, columns, DTYPES[dtype])


def head(data: Matrix, rows: int) -> Matrix:
    """Return the first `rows` rows of a matrix."""
    return data.head(rows) if isinstance(data, Stored) else data[:rows]


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
    carry += 0x7FFF
    carry += bits
    carry &= 0xFFFF0000
    y = carry.view(np.float32)
    # An overflow gives infinity, as it should. A NaN may have lost its payload or become zero, so it is restored.
    return np.where(np.isnan(x), x, y) if np.isnan(x).any() else y


@cache  # it is called for every span
def _plain(replay: MergeReplay) -> tuple[MergeReplay, bool]:
    """Return the replay that adds dW in float32 with a factor of 1, and whether the given one only rounds that dW."""
    plain = MergeReplay(weight=replay.weight)
    return plain, msgspec.structs.replace(plain, delta=replay.delta) == msgspec.structs.replace(replay, times=1)


class PlainDelta:
    """The update dW = scale * b @ a; only some of its rows are formed at a time."""

    is_known: Final = True
    """Whether a merge's dW follows from the files, up to the order of sums."""
    slack: float = 1.0
    """The number of float32 roundings that the weight itself may have gone through."""

    def __init__(self, b: Array, a: Array, scale: float) -> None:
        self._b, self._a, self.scale = b, a, scale
        self._cast: dict[str | None, tuple[Array, Array]] = {}
        self._ready: dict[MergeReplay, tuple[Array, Array]] = {}
        self._sizes: tuple[Array, Array] | None = None

    @property
    def rank(self) -> int:
        """The number of products that are summed in each entry."""
        return len(self._a)

    @np.errstate(over="ignore", invalid="ignore")  # beyond float32 is infinity, as in a merge
    def prepare(self, replay: MergeReplay) -> None:
        """Compute the factors that the replay needs, before several threads use them."""
        self._factors(None)
        whole = slice(None)
        self._ready = {each: self._left_and_right(whole, each) for each in (replay, _plain(replay)[0])}

    @np.errstate(over="ignore", invalid="ignore")  # beyond float32 is infinity, as in a merge
    def rows(self, at: slice | Array, replay: MergeReplay) -> Array:
        """Return rows of dW, in float32, as the replay computes them on this machine."""
        return self._finished(self._product(*self._left_and_right(at, replay)), replay)

    @np.errstate(over="ignore", invalid="ignore")  # beyond float32 is infinity, as in a merge
    def both(self, at: slice | Array, replay: MergeReplay) -> tuple[Array, Array]:
        """Return rows of dW twice: as the replay adds them, and in float32 with a factor of 1."""
        plain, shares_product = _plain(replay)
        if not shares_product:
            return self.rows(at, replay), self.rows(at, plain)
        b, a = self._left_and_right(at, plain)
        d = self._finished(self._product(b, a, out=scratch.array("dW", (len(b), a.shape[1]), np.float32)), plain)
        return rounded(d, replay.delta), d

    @np.errstate(over="ignore", invalid="ignore")  # beyond float32 is infinity, as in a merge
    def bounds(
        self, at: slice | Array, replay: MergeReplay, entries: npt.NDArray[np.int64] | None = None
    ) -> tuple[Array, Array]:
        """Return the least and the largest possible values of rows of dW, over all orders of adding up r products.

        The sum in any order, with or without fused multiply-add, is within gamma_r sum_k |b_ik a_kj| of the exact sum,
        with gamma_r = r u / (1 - r u) (Higham, Accuracy and Stability of Numerical Algorithms, 3.1). The later steps,
        roundings and the scale, are monotone, so the bounds remain bounds. `entries` selects places in the flattened
        rows; None selects all.
        """
        b, a = self._left_and_right(at, replay)
        total, size = _sums_of_products(b, a, entries)
        off = self.rank * UNIT["F32"]
        reach = off / (1.0 - off) * size
        ends = [self._finished(end.astype(np.float32), replay) for end in (total - reach, total + reach)]
        return np.minimum(*ends), np.maximum(*ends)

    def _left_and_right(self, at: slice | Array, replay: MergeReplay) -> tuple[Array, Array]:
        """Return the factors to multiply: rows of b, scaled if the replay scales b first, and a."""
        if (ready := self._ready.get(replay)) is not None:
            return ready[0][at], ready[1]
        b, a = self._factors(replay.factors)
        return self._scale(replay) * b[at] if self._is_scaled_first(replay) else b[at], a

    def _is_scaled_first(self, replay: MergeReplay) -> bool:
        """Return whether b is scaled before the product: if the replay says so, or if the scale is a power of two.

        Scaling by a power of two changes no rounding.
        """
        is_power = abs(math.frexp(self._scale(replay))[0]) == 0.5  # noqa: PLR2004  # frexp's mantissa
        return replay.scales_factor or (is_power and not replay.rounds_product)

    def _product(self, b: Array, a: Array, out: Array | None = None) -> Array:
        return np.matmul(b, a, out=out)

    def _scale(self, replay: MergeReplay) -> np.float32:
        return np.float32(self.scale * replay.factor)

    def _finished(self, product: Array, replay: MergeReplay) -> Array:
        """Return dW from the product b @ a, which is overwritten: scaled and rounded as the replay does."""
        if not self._is_scaled_first(replay):
            product = rounded(product, replay.delta) if replay.rounds_product else product
            product *= self._scale(replay)
        return rounded(product, replay.delta)

    @np.errstate(over="ignore", invalid="ignore")  # beyond float32 is infinity, as in a merge
    def size(self, at: slice | Array) -> Array:
        """Return an upper bound on sum_k |s b_ik a_kj| for each entry of some rows (Cauchy-Schwarz)."""
        if self._sizes is None:
            b, a = self._factors(None)
            self._sizes = (abs(self.scale) * np.linalg.norm(b, axis=1), np.linalg.norm(a, axis=0))
        left, right = self._sizes
        return np.asarray(np.outer(left[at], right))

    @np.errstate(over="ignore", invalid="ignore")  # beyond float32 is infinity, as in a merge
    def _factors(self, dtype: str | None) -> tuple[Array, Array]:
        if dtype not in self._cast:
            b, a = (x.astype(np.float32) for x in (self._b, self._a))
            pair = (b, a) if dtype is None else (rounded(b, dtype), rounded(a, dtype))
            self._cast[dtype] = (np.ascontiguousarray(pair[0]), np.ascontiguousarray(pair[1]))
        return self._cast[dtype]


def _sums_of_products(b: Array, a: Array, entries: npt.NDArray[np.int64] | None) -> tuple[Array, Array]:
    """Return entries of b @ a and of |b| @ |a| in float64; all of them if `entries` is None."""
    if entries is None:
        left, right = b.astype(np.float64), a.astype(np.float64)
        return left @ right, np.abs(left) @ np.abs(right)
    row, column = np.divmod(entries, a.shape[1])
    terms = b[row].astype(np.float64) * a.T[column]
    return terms.sum(axis=1), np.abs(terms).sum(axis=1)


class WholeDelta:
    """An update held as one matrix: a bias, or a function of the base weight (DoRA, PiSSA).

    `is_known` is False for a function of the base weight, because norms and factorisations have machine-dependent last
    bits.
    """

    slack: float = _ROUNDINGS

    def __init__(self, update: Array, rank: int, *, is_known: bool) -> None:
        self._update, self.rank, self.is_known = update, rank, is_known

    def prepare(self, replay: MergeReplay) -> None:
        """Do nothing: the matrix is in memory."""

    def rows(self, at: slice | Array, replay: MergeReplay) -> Array:
        """Return rows of dW; of the replay, only its factor and the rounding of dW itself apply."""
        part = self._update[at]
        if replay.factor != 1.0:
            part = part * np.asarray(replay.factor, part.dtype)
        return rounded(part, replay.delta)

    def both(self, at: slice | Array, replay: MergeReplay) -> tuple[Array, Array]:
        """Return rows of dW twice: as the replay adds them, and unchanged."""
        return self.rows(at, replay), self._update[at]

    def bounds(
        self, at: slice | Array, replay: MergeReplay, entries: npt.NDArray[np.int64] | None = None
    ) -> tuple[Array, Array]:
        """Return rows of dW, or some of their entries, as both bounds: there is no sum whose order could differ."""
        rows = self.rows(at, replay)
        rows = rows if entries is None else rows.reshape(-1)[entries]
        return rows, rows

    def size(self, at: slice | Array) -> Array:
        """Return each row's root mean square, for each of its entries: the size that a rounding of factors acts on."""
        part = self._update[at]
        spread = np.sqrt(np.mean(part.astype(np.float64) ** 2, axis=1, keepdims=True))
        return np.asarray(np.broadcast_to(spread, part.shape))


Delta = PlainDelta | WholeDelta


def delta_of(module: Module, w: Matrix) -> Delta:
    """Return the module's true update in the orientation of the base's weight.

    Raises:
        AdapterError: the base's weight has another shape.
    """
    if module.dense is not None:
        return WholeDelta(matrix_of(module.dense, w[:]), module.r, is_known=False)
    return PlainDelta(*plain_factors(module, w.shape), module.scale)
