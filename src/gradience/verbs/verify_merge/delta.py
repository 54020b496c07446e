"""The update of one module, some rows at a time, in the precision of a replay; and the dtypes that replays round to.

A product B A in float32 depends on the order in which a machine adds up its r terms, so two correct merges may differ
in the last bits. `PlainDelta.bounds` gives all that any order can give: what is called exact must not depend on one.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from gradience.adapters.layout import Array, Module
from gradience.base.update import matrix_of, update_of
from gradience.io.safetensors import DTYPES
from gradience.schema.merge import MergeReplay

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


_ROUNDINGS: Final = 8  # of a dense update in float32: norms, quotients and products before the sum (heuristic)


class PlainDelta:
    """dW = scale * b @ a, of which no more than some rows are formed at a time."""

    is_known: Final = True
    """Whether a merge's dW follows from the files, up to the order of sums."""
    slack: float = 1.0
    """How many roundings in float32 the weight itself may have gone through."""

    def __init__(self, b: Array, a: Array, scale: float) -> None:
        self._b, self._a, self.scale = b, a, scale
        self._cast: dict[str | None, tuple[Array, Array]] = {}
        self._sizes: tuple[Array, Array] | None = None

    @property
    def rank(self) -> int:
        """The number of products that each entry is a sum of."""
        return len(self._a)

    def prepare(self, replay: MergeReplay) -> None:
        """Read what the replay needs, before several threads ask for it."""
        self._factors(replay.factors)
        self._factors(None)

    @np.errstate(over="ignore", invalid="ignore")  # beyond float32 is infinity, as in a merge
    def rows(self, at: slice | Array, replay: MergeReplay) -> Array:
        """Return those rows of dW, in float32, as the replay computes them on this machine."""
        return self._finished(self._product(*self._left_and_right(at, replay)), replay)

    @np.errstate(over="ignore", invalid="ignore")  # beyond float32 is infinity, as in a merge
    def bounds(self, at: slice | Array, replay: MergeReplay) -> tuple[Array, Array]:
        """Return the least and the largest that those rows of dW can be, over all orders of adding up r products.

        Any order, with or without fused multiply-add, is within gamma_r sum_k |b_ik a_kj| of the exact sum, with
        gamma_r = r u / (1 - r u) (Higham, Accuracy and Stability of Numerical Algorithms, 3.1). What follows the sum
        (roundings, the scale) is monotone, so the bounds stay bounds.
        """
        b, a = (x.astype(np.float64) for x in self._left_and_right(at, replay))
        off = self.rank * UNIT["F32"]
        total, reach = b @ a, off / (1.0 - off) * (np.abs(b) @ np.abs(a))
        ends = [self._finished(end.astype(np.float32), replay) for end in (total - reach, total + reach)]
        return np.minimum(*ends), np.maximum(*ends)

    def _left_and_right(self, at: slice | Array, replay: MergeReplay) -> tuple[Array, Array]:
        """Return the factors to multiply: rows of b, scaled if the replay does so first, and a."""
        b, a = self._factors(replay.factors)
        return self._scale(replay) * b[at] if replay.scales_factor else b[at], a

    def _product(self, b: Array, a: Array) -> Array:
        return b @ a

    def _scale(self, replay: MergeReplay) -> np.float32:
        return np.float32(self.scale * replay.factor)

    def _finished(self, product: Array, replay: MergeReplay) -> Array:
        """Return dW of b @ a, which is overwritten."""
        if not replay.scales_factor:
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

    def bounds(self, at: slice | Array, replay: MergeReplay) -> tuple[Array, Array]:
        """Return those rows twice: nothing is added up."""
        rows = self.rows(at, replay)
        return rows, rows

    def size(self, at: slice | Array) -> Array:
        """Return the rows' root mean square beside each entry: what a rounding of factors moves."""
        part = self._update[at]
        spread = np.sqrt(np.mean(part.astype(np.float64) ** 2, axis=1, keepdims=True))
        return np.asarray(np.broadcast_to(spread, part.shape))


Delta = PlainDelta | WholeDelta


def delta_of(module: Module, w: Array) -> Delta:
    """Return the module's true update in the orientation of the base's weight.

    Raises:
        AdapterError: the base is of another shape.
    """
    if module.dense is not None:
        return WholeDelta(matrix_of(module.dense, w), module.r, is_known=False)
    update = update_of(module, w)
    return PlainDelta(update.b, update.a, update.scale)
