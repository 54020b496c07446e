"""Merging entry by entry: the steps of TIES and DARE, and how far the signs of several updates disagree."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from gradience.spectral.grams import Floats
from gradience.spectral.sums import Part

Singles: TypeAlias = npt.NDArray[np.float32]

_SINGLE: Final = 1e37  # sums up to it are computed in float32, whose range is 3e38
_CHUNK: Final = 1 << 18  # entries of each update at a time: three such arrays stay in the cache


def trimmed(update: Singles, density: float) -> Singles:
    """Return the update with only its largest entries by magnitude, floor(density * n) of n; others are 0 (TIES, trim).

    Entries tied with the smallest one kept are kept as well.
    """
    kept = int(density * update.size)
    if kept >= update.size:
        return update
    if kept == 0:
        return np.zeros_like(update)
    sizes = np.abs(update)
    least = np.partition(sizes.reshape(-1), update.size - kept)[update.size - kept]
    return np.where(sizes >= least, update, np.float32(0.0))


def dropped(update: Singles, density: float, generator: np.random.Generator) -> Singles:
    """Return the update with each entry kept with probability `density` and divided by it; others are 0 (DARE)."""
    if density >= 1.0:
        return update
    kept = generator.random(update.shape, dtype=np.float32) < np.float32(density)
    return np.where(kept, update / np.float32(density), np.float32(0.0))


def mask_generator(seed: int, adapter: int, module: str) -> np.random.Generator:
    """Return the generator of one adapter's mask in one module; it does not depend on what else is merged, or when."""
    return np.random.default_rng([seed, adapter, zlib.crc32(module.encode())])


def elected_mean(updates: Callable[[], Iterable[Singles]]) -> Singles:
    """Return the disjoint mean of weighted, sparse updates (TIES, elect and merge).

    The elected sign of an entry is the sign of the sum of the updates. The result is the mean over the updates with
    that sign, or zero if the sum is zero. `updates` is called twice, so that only one update is held beside the sums.
    """
    total = _sum(updates())
    elected = np.sign(total)
    total[...] = 0.0
    count = np.zeros_like(total)
    for update in updates():
        agrees = np.sign(update) == elected  # where the sum is zero, only zeros do, and their mean is zero
        total += np.where(agrees, update, np.float32(0.0))
        count += agrees
    return np.asarray(total / np.maximum(count, 1.0))


def _sum(updates: Iterable[Singles]) -> Singles:
    total: Singles | None = None
    for update in updates:
        total = update.copy() if total is None else total + update
    if total is None:
        raise ValueError("nothing to merge")
    return total


class Signs(NamedTuple):
    """The disagreement of several updates' signs, estimated from sampled rows, with standard errors.

    `conflict` is the share of entries in which two updates have opposite signs. `cancelled` is the share of the
    magnitude that cancels in the sum, 1 - sum |sum_i x_i| / sum sum_i |x_i|. `entries` were read, out of `of`.
    `weight` is the estimate of sum sum_i |x_i| over all entries.
    """

    conflict: float
    cancelled: float
    conflict_error: float
    cancelled_error: float
    entries: int
    of: int
    weight: float


def signs_of(parts: Sequence[Part], *, most: int | None, seed: int) -> Signs:
    """Return the disagreement of finite updates scale * b @ a of one shape, b (d_out, r), a (r, d_in).

    Args:
        parts: the (b, a, scale) of two updates or more.
        most: read about this many entries of each update, at least eight rows; None reads all.
        seed: of the sample of rows.
    """
    d_out, d_in = len(parts[0][0]), parts[0][1].shape[1]
    wanted = d_out if most is None else min(d_out, max(8, most // max(1, d_in)))
    rows = np.sort(np.random.default_rng(seed).choice(d_out, wanted, replace=False))
    sums = np.concatenate(list(_row_sums(parts, rows, d_in)))
    conflict, net, gross = sums.T
    left = 1.0 - len(sums) / d_out
    share = float(np.mean(conflict)) / d_in if d_in else 0.0
    total = float(np.sum(gross))
    ratio = float(np.sum(net)) / total if total > 0.0 else 1.0
    return Signs(
        conflict=share,
        cancelled=1.0 - ratio,
        conflict_error=_error(conflict / max(1, d_in), left),
        cancelled_error=_error(net - ratio * gross, left) * len(sums) / total if total > 0.0 else 0.0,
        entries=len(sums) * d_in,
        of=d_out * d_in,
        weight=total * d_out / len(sums),
    )


def _row_sums(parts: Sequence[Part], rows: npt.NDArray[np.int64], d_in: int) -> Iterator[Floats]:
    """Yield, for chunks of the rows, an array (rows, 3): entries in conflict, sum |sum_i x_i|, sum sum_i |x_i|."""
    kind: Any = np.float32 if sum(map(_peak, parts)) < _SINGLE else np.float64
    wide = [(b[rows].astype(kind) * kind(scale), a.astype(kind)) for b, a, scale in parts]
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


def _peak(part: Part) -> float:
    """An upper bound on the magnitudes of the entries of scale * b @ a."""
    b, a, scale = part
    return float(abs(scale)) * len(a) * float(np.max(np.abs(b), initial=0.0)) * float(np.max(np.abs(a), initial=0.0))


def _error(per_row: Floats, left: float) -> float:
    """Return the standard error of the mean of rows sampled without replacement; `left` is the share not sampled."""
    if left <= 0.0:  # of one row, which is then all there is, no variance can be taken
        return 0.0
    return math.sqrt(left * float(np.var(per_row, ddof=1)) / len(per_row))


def pooled_signs(some: Sequence[Signs]) -> Signs | None:
    """Return the disagreement over several modules together, None without entries; errors are taken as independent."""
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
