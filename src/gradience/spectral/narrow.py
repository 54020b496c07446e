"""Factors of a rank beyond their product's, brought down to it: all later work then grows with min(d_out, d_in, r)."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

Matrix: TypeAlias = npt.NDArray[Any]

_CHEAP: Final = 64  # r x r matrices of that size cost nothing: factors up to it are left as they are


def inner_size(rank: int, d_out: int, d_in: int) -> int:
    """The inner size of `narrowed` factors: the rank, or the lesser side where that is smaller."""
    return rank if rank <= max(_CHEAP, min(d_out, d_in)) else min(d_out, d_in)


def narrowed(b: Matrix, a: Matrix) -> tuple[Matrix, Matrix]:
    """Return (b', a') with the same product as b (d_out, r) and a (r, d_in), of inner size `inner_size`.

    Where r is larger than a side, one factor becomes the identity and the other the product, in float64: it has no more
    entries than the larger factor.
    """
    d_out, rank = b.shape
    d_in = a.shape[1]
    if inner_size(rank, d_out, d_in) == rank:
        return b, a
    with np.errstate(all="ignore"):  # of entries that are not finite, which the caller finds in the product
        product = b.astype(np.float64) @ a.astype(np.float64)
    return (np.eye(d_out), product) if d_out <= d_in else (product, np.eye(d_in))
