"""Where weighted updates disagree, entry by entry: rows of their dense sum, all of them or a random sample.

Rows are computed from the factors in float32, a chunk at a time; nothing d x d is held. A sample is of whole rows
without replacement, so the standard errors are those of cluster sampling with rows as clusters (Cochran, Sampling
Techniques, 3rd ed. 1977, sections 6.3 for the ratio and 9A.2 for the proportion).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Signs", "pooled_signs", "signs_of"]

Floats: TypeAlias = npt.NDArray[np.float64]
Matrix: TypeAlias = npt.NDArray[Any]
Part: TypeAlias = tuple[Matrix, Matrix, float]

_CHUNK: Final = 1 << 18  # entries of each update at a time: three of them stay in the cache


class Signs(NamedTuple):
    """Shares of entries in conflict and of magnitude that cancels, with standard errors; `weight` is sum |x_i|."""

    conflict: float
    cancelled: float
    conflict_error: float
    cancelled_error: float
    entries: int
    of: int
    weight: float


def signs_of(parts: Sequence[Part], *, most: int | None, seed: int) -> Signs:
    """Return the disagreement of updates scale * b @ a of one shape, b (d_out, r), a (r, d_in), finite.

    Args:
        parts: the (b, a, scale) of two updates or more.
        most: read about so many entries of each, at least eight rows; None reads all.
        seed: of the sample of rows.
    """
    d_out, d_in = len(parts[0][0]), parts[0][1].shape[1]
    wanted = d_out if most is None else min(d_out, max(8, most // max(1, d_in)))
    rows = np.sort(np.random.default_rng(seed).choice(d_out, wanted, replace=False)) if wanted < d_out else None
    sums = np.concatenate(list(_row_sums(parts, rows, d_in)))
    conflict, net, gross = sums.T
    left = 1.0 - len(sums) / d_out
    share = float(np.mean(conflict)) / d_in if d_in else 0.0
    total = float(np.sum(gross))
    ratio = float(np.sum(net)) / total if total > 0.0 else 1.0
    return Signs(
        conflict=share,
        cancelled=min(1.0, max(0.0, 1.0 - ratio)),
        conflict_error=_error(conflict / max(1, d_in), left),
        cancelled_error=_error(net - ratio * gross, left) * len(sums) / total if total > 0.0 else 0.0,
        entries=len(sums) * d_in,
        of=d_out * d_in,
        weight=total * d_out / len(sums),
    )


def _row_sums(parts: Sequence[Part], rows: npt.NDArray[np.int64] | None, d_in: int) -> Iterator[Floats]:
    """Yield for each row: entries in conflict, sum |sum_i x_i| and sum sum_i |x_i|."""
    wide = [(b.astype(np.float32) * np.float32(scale), a.astype(np.float32)) for b, a, scale in parts]
    if rows is not None:
        wide = [(b[rows], a) for b, a in wide]
    step = max(1, _CHUNK // max(1, d_in))
    for start in range(0, len(wide[0][0]), step):
        first, *rest = (b[start : start + step] @ a for b, a in wide)
        positive, negative = first > 0.0, first < 0.0
        net, gross = first.copy(), np.abs(first)
        for other in rest:
            positive |= other > 0.0
            negative |= other < 0.0
            net += other
            gross += np.abs(other)
        clash = np.count_nonzero(positive & negative, axis=1)
        yield np.stack([clash, np.abs(net).sum(axis=1, dtype=np.float64), gross.sum(axis=1, dtype=np.float64)], axis=1)


def _error(per_row: Floats, left: float) -> float:
    """Return the standard error of the mean of rows sampled without replacement; `left` is the share not sampled."""
    if left <= 0.0 or len(per_row) < 2:  # noqa: PLR2004  # no variance of one row
        return 0.0
    return math.sqrt(left * float(np.var(per_row, ddof=1)) / len(per_row))


def pooled_signs(some: Sequence[Signs]) -> Signs | None:
    """Return the disagreement over several modules as one; errors as of independent samples."""
    of, weight = sum(s.of for s in some), math.fsum(s.weight for s in some)
    if not of:
        return None
    return Signs(
        conflict=math.fsum(s.conflict * s.of for s in some) / of,
        cancelled=math.fsum(s.cancelled * s.weight for s in some) / weight if weight > 0.0 else 0.0,
        conflict_error=math.sqrt(math.fsum((s.conflict_error * s.of) ** 2 for s in some)) / of,
        cancelled_error=math.sqrt(math.fsum((s.cancelled_error * s.weight) ** 2 for s in some)) / weight
        if weight > 0.0
        else 0.0,
        entries=sum(s.entries for s in some),
        of=of,
        weight=weight,
    )
