"""Weights and updates by rows: W in its file, read as it is asked for, and dW in the precision of a replay.

None of them is in memory whole. Arrays of a span's size are used again by the thread that had them: fresh ones cost
more in page faults than the arithmetic in them.

A product B A in float32 depends on the order in which a machine adds up its r terms, so two correct merges may differ
in the last bits. `PlainDelta.bounds` gives all that any order can give: what is called exact must not depend on one.
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
from gradience.base.weights import Found, matrix_of, plain_factors
from gradience.errors import AdapterError
from gradience.io.safetensors import DTYPES, TensorReader
from gradience.schema.merge import MergeReplay
from gradience.spectral import scratch

UNIT: Final = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
"""Unit roundoff: the relative error of rounding a normal number to nearest (IEEE 754; bfloat16 keeps 8 bits)."""

FLOATS: Final = frozenset(UNIT)
HALVES: Final = ("BF16", "F16")

_ROUNDINGS: Final = 8  # of a dense update in float32: norms, quotients and products before the sum (heuristic)


class _Part(NamedTuple):
    """Rows that follow each other in one tensor; `start` is the first one's offset in bytes."""

    reader: TensorReader
    start: int
    rows: int


class Stored:
    """Rows of one tensor, or of several below each other. Indexed by a slice or by an array of row numbers."""

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
        """Return those rows, as stored; rows asked for by their numbers, as `Case.probe` picks them, are read-only."""
        if isinstance(at, slice):
            return self.read(at, np.empty(self.extent(at), self.dtype))
        numbers = at.tobytes()
        asked, rows = self._last
        if asked != numbers:  # each replay is tried on the same few rows
            rows = self._picked(at)
            self._last = numbers, rows
        return rows

    def _picked(self, at: Array) -> Array:
        """Rows by their numbers, those that follow each other in one piece."""
        runs = np.split(at, np.flatnonzero(np.diff(at) != 1) + 1)
        rows = np.concatenate([self[int(run[0]) : int(run[-1]) + 1] for run in runs if len(run)])
        rows.flags.writeable = False
        return rows

    def extent(self, at: slice) -> tuple[int, int]:
        """Return the shape of those rows."""
        start, stop, _ = at.indices(len(self))
        return max(0, stop - start), self.shape[1]

    def read(self, at: slice, out: Array) -> Array:
        """Fill an array of the right shape and dtype with those rows and return it."""
        start, stop, _ = at.indices(len(self))
        self._read(start, stop, out.reshape(-1).view(np.uint8))
        return out

    def head(self, rows: int) -> Stored:
        """Return the first rows."""
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


def stored(tensors: Iterable[Found], expert: int | None, files: ExitStack) -> Stored:
    """Return the tensors' rows, one tensor below the other, a convolution flattened after its first axis.

    Args:
        tensors: of two axes or more, and with elements.
        expert: the slice of the first axis that is meant, of tensors of three axes or more.
        files: keeps them open.

    Raises:
        AdapterError: there is no such expert, or the tensors are not of one dtype and width.
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
    """Return the first rows."""
    return data.head(rows) if isinstance(data, Stored) else data[:rows]


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
    if dtype == "BF16" and x.dtype == np.float32:
        return _rounded_to_bf16(x)
    with np.errstate(over="ignore"):  # beyond float16's range is infinity, as in a merge
        return np.asarray(x.astype(kind).astype(x.dtype))


def _rounded_to_bf16(x: Array) -> Array:
    """Return float32 numbers with the lower 16 bits rounded away, ties to even: several times as fast as two casts."""
    bits = x.view(np.uint32)
    carry = bits >> 16
    carry &= 1
    carry += 0x7FFF
    carry += bits
    carry &= 0xFFFF0000
    y = carry.view(np.float32)
    # What overflows is infinity by itself; a NaN may have lost its payload, or become a zero.
    return np.where(np.isnan(x), x, y) if np.isnan(x).any() else y


@cache  # asked for every span
def _plain(replay: MergeReplay) -> tuple[MergeReplay, bool]:
    """Return the replay that adds dW in float32 with a factor of 1, and whether the other only rounds that dW."""
    plain = MergeReplay(weight=replay.weight)
    return plain, msgspec.structs.replace(plain, delta=replay.delta) == msgspec.structs.replace(replay, times=1)


class PlainDelta:
    """dW = scale * b @ a, of which no more than some rows are formed at a time."""

    is_known: Final = True
    """Whether a merge's dW follows from the files, up to the order of sums."""
    slack: float = 1.0
    """How many roundings in float32 the weight itself may have gone through."""

    def __init__(self, b: Array, a: Array, scale: float) -> None:
        self._b, self._a, self.scale = b, a, scale
        self._cast: dict[str | None, tuple[Array, Array]] = {}
        self._ready: dict[MergeReplay, tuple[Array, Array]] = {}
        self._sizes: tuple[Array, Array] | None = None

    @property
    def rank(self) -> int:
        """The number of products that each entry is a sum of."""
        return len(self._a)

    @np.errstate(over="ignore", invalid="ignore")  # beyond float32 is infinity, as in a merge
    def prepare(self, replay: MergeReplay) -> None:
        """Read what the replay needs, before several threads ask for it."""
        self._factors(None)
        whole = slice(None)
        self._ready = {each: self._left_and_right(whole, each) for each in (replay, _plain(replay)[0])}

    @np.errstate(over="ignore", invalid="ignore")  # beyond float32 is infinity, as in a merge
    def rows(self, at: slice | Array, replay: MergeReplay) -> Array:
        """Return those rows of dW, in float32, as the replay computes them on this machine."""
        return self._finished(self._product(*self._left_and_right(at, replay)), replay)

    @np.errstate(over="ignore", invalid="ignore")  # beyond float32 is infinity, as in a merge
    def both(self, at: slice | Array, replay: MergeReplay) -> tuple[Array, Array]:
        """Return those rows of dW as the replay adds them, and as they are in float32 with a factor of 1."""
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
        """Return the least and the largest that those rows of dW can be, over all orders of adding up r products.

        Any order, with or without fused multiply-add, is within gamma_r sum_k |b_ik a_kj| of the exact sum, with
        gamma_r = r u / (1 - r u) (Higham, Accuracy and Stability of Numerical Algorithms, 3.1). What follows the sum
        (roundings, the scale) is monotone, so the bounds stay bounds. `entries` are places in the flattened rows, if
        not all are asked for.
        """
        b, a = self._left_and_right(at, replay)
        total, size = _sums_of_products(b, a, entries)
        off = self.rank * UNIT["F32"]
        reach = off / (1.0 - off) * size
        ends = [self._finished(end.astype(np.float32), replay) for end in (total - reach, total + reach)]
        return np.minimum(*ends), np.maximum(*ends)

    def _left_and_right(self, at: slice | Array, replay: MergeReplay) -> tuple[Array, Array]:
        """Return the factors to multiply: rows of b, perhaps scaled, and a."""
        if (ready := self._ready.get(replay)) is not None:
            return ready[0][at], ready[1]
        b, a = self._factors(replay.factors)
        return self._scale(replay) * b[at] if self._is_scaled_first(replay) else b[at], a

    def _is_scaled_first(self, replay: MergeReplay) -> bool:
        """Return whether b takes the scale: a replay says so, or it is a power of two, which changes no rounding."""
        is_power = abs(math.frexp(self._scale(replay))[0]) == 0.5  # noqa: PLR2004  # frexp's mantissa
        return replay.scales_factor or (is_power and not replay.rounds_product)

    def _product(self, b: Array, a: Array, out: Array | None = None) -> Array:
        return np.matmul(b, a, out=out)

    def _scale(self, replay: MergeReplay) -> np.float32:
        return np.float32(self.scale * replay.factor)

    def _finished(self, product: Array, replay: MergeReplay) -> Array:
        """Return dW of b @ a, which is overwritten."""
        if not self._is_scaled_first(replay):
            product = rounded(product, replay.delta) if replay.rounds_product else product
            product *= self._scale(replay)
        return rounded(product, replay.delta)

    @np.errstate(over="ignore", invalid="ignore")  # beyond float32 is infinity, as in a merge
    def size(self, at: slice | Array) -> Array:
        """Return a bound of sum_k |s b_ik a_kj| for each entry of those rows (Cauchy and Schwarz)."""
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
    """Return entries of b @ a and of |b| @ |a| in float64; of the whole matrix if None."""
    if entries is None:
        left, right = b.astype(np.float64), a.astype(np.float64)
        return left @ right, np.abs(left) @ np.abs(right)
    row, column = np.divmod(entries, a.shape[1])
    terms = b[row].astype(np.float64) * a.T[column]
    return terms.sum(axis=1), np.abs(terms).sum(axis=1)


class WholeDelta:
    """An update as one matrix: a bias, or a function of the base weight (DoRA, PiSSA).

    `is_known` is False for the latter: it takes norms and factorisations, whose last bits are the machine's.
    """

    slack: float = _ROUNDINGS

    def __init__(self, update: Array, rank: int, *, is_known: bool) -> None:
        self._update, self.rank, self.is_known = update, rank, is_known

    def prepare(self, replay: MergeReplay) -> None:
        """Do nothing: the matrix is in memory."""

    def rows(self, at: slice | Array, replay: MergeReplay) -> Array:
        """Return those rows; of a replay's precision only the rounding of dW itself applies."""
        part = self._update[at]
        if replay.factor != 1.0:
            part = part * np.asarray(replay.factor, part.dtype)
        return rounded(part, replay.delta)

    def both(self, at: slice | Array, replay: MergeReplay) -> tuple[Array, Array]:
        """Return those rows as the replay adds them, and as they are."""
        return self.rows(at, replay), self._update[at]

    def bounds(
        self, at: slice | Array, replay: MergeReplay, entries: npt.NDArray[np.int64] | None = None
    ) -> tuple[Array, Array]:
        """Return those rows, or entries of them, twice: nothing is added up."""
        rows = self.rows(at, replay)
        rows = rows if entries is None else rows.reshape(-1)[entries]
        return rows, rows

    def size(self, at: slice | Array) -> Array:
        """Return the rows' root mean square beside each entry: what a rounding of factors moves."""
        part = self._update[at]
        spread = np.sqrt(np.mean(part.astype(np.float64) ** 2, axis=1, keepdims=True))
        return np.asarray(np.broadcast_to(spread, part.shape))


Delta = PlainDelta | WholeDelta


def delta_of(module: Module, w: Matrix) -> Delta:
    """Return the module's true update in the orientation of the base's weight.

    Raises:
        AdapterError: the base is of another shape.
    """
    if module.dense is not None:
        return WholeDelta(matrix_of(module.dense, w[:]), module.r, is_known=False)
    return PlainDelta(*plain_factors(module, w.shape), module.scale)
