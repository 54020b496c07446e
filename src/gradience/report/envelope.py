"""A long column of a log drawn in few points, so that no spike and no non-finite row is lost."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["BUCKETS", "Envelope", "Floats", "envelope"]

BUCKETS: Final = 480  # at most: about two columns of pixels each at the widest plot

Floats = npt.NDArray[np.float64]

_LARGEST: Final = 1e300  # what is drawn at most: the range of two such numbers is still finite


class Envelope(NamedTuple):
    """The finite rows by bucket of steps: lowest, median and highest value; and where rows are not finite.

    The first four arrays are parallel, of one entry a bucket that holds a finite row. Where every row has its own
    bucket, lowest, median and highest are the row.
    """

    steps: Floats  # the middle of the bucket's steps
    low: Floats
    middle: Floats
    high: Floats
    lost: Floats  # one step a bucket that holds a row that is not finite
    broken: npt.NDArray[np.bool_]  # whether the line breaks before the bucket: all rows between are not finite
    rows: int  # finite
    lost_rows: int
    sampled: bool

    @property
    def per_bucket(self) -> int:
        """Rows in a bucket, on average."""
        return round((self.rows + self.lost_rows) / max(len(self.steps), 1))


def envelope(steps: npt.ArrayLike, values: npt.ArrayLike, *, buckets: int = BUCKETS) -> Envelope:
    """Return a column of values by their steps, in at most so many buckets of equal width in steps.

    Args:
        steps: of each row, in any order.
        values: of each row; NaN and infinities are counted and placed, never averaged.
        buckets: at most; rows share them from more than two rows a bucket on.
    """
    at, column = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    order = np.argsort(at, kind="stable")
    at, column = at[order], column[order]
    sampled = len(at) > 2 * buckets
    bucket = _bucket(at, buckets) if sampled else np.arange(len(at))
    finite = np.isfinite(column)
    own, kept = bucket[finite], np.clip(column[finite], -_LARGEST, _LARGEST)
    starts = np.flatnonzero(np.diff(own, prepend=-1))
    lost_at = np.flatnonzero(~finite)
    lost_at = lost_at[np.flatnonzero(np.diff(bucket[lost_at], prepend=-1))]
    return Envelope(
        steps=_centres(at[finite], starts),
        low=np.minimum.reduceat(kept, starts) if len(kept) else kept,
        middle=_medians(kept, starts) if sampled else kept,
        high=np.maximum.reduceat(kept, starts) if len(kept) else kept,
        lost=at[lost_at],
        broken=_broken(own[starts], bucket[lost_at]),
        rows=len(kept),
        lost_rows=int(len(column) - len(kept)),
        sampled=sampled,
    )


def _bucket(steps: Floats, buckets: int) -> npt.NDArray[np.int64]:
    first, last = steps[0], steps[-1]
    share = (steps - first) / max(last - first, 1.0)
    return np.asarray(np.minimum(share * buckets, buckets - 1), np.int64)


def _centres(steps: Floats, starts: npt.NDArray[np.int64]) -> Floats:
    ends = np.append(starts[1:], len(steps)) - 1
    return (steps[starts] + steps[ends]) / 2 if len(steps) else steps


def _medians(values: Floats, starts: npt.NDArray[np.int64]) -> Floats:
    return np.array([np.median(part) for part in np.split(values, starts[1:])]) if len(values) else values


def _broken(own: npt.NDArray[np.int64], lost: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return before which buckets others lie that hold non-finite rows alone."""
    alone = np.setdiff1d(lost, own)
    passed = np.searchsorted(alone, own)
    return np.asarray(np.diff(passed, prepend=passed[:1]) > 0)
