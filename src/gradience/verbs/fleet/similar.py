"""Adapters that are the same, or nearly: by content hash, and by sketches of their updates, then by exact cosines.

Only adapters of one base and one set of modules and shapes are compared. Of those, two are candidates where one of the
bands of their sketches' signs agrees; the estimated cosine of the sketches then leaves a few, whose factors are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from gradience.adapters.layout import Adapter
from gradience.adapters.open import open_adapter
from gradience.errors import AdapterError
from gradience.schema.fleet import Alike, Similar

Floats: TypeAlias = npt.NDArray[np.float64]

BANDS: Final = 12
BITS: Final = 10  # signs of a band; 12 x 10 of the sketch's 128
MARGIN: Final = 0.1  # under the threshold, of the sketches' cosine: its error at 0.99 is under 0.01, see docs/fleet.md
_MOST_IN_BUCKET: Final = 500  # adapters of one bucket, beyond which each is compared with its neighbours only
_NEIGHBOURS: Final = 16


def similar(rows: Sequence[Mapping[str, Any]], *, threshold: float, most: int) -> Similar:
    """What is alike among adapters.

    Args:
        rows: of each readable adapter `path`, `base_model`, `shape_key`, `content_hash` and `sketch`.
        threshold: the cosine from which two are nearly the same.
        most: how many pairs to compute the cosine of, those first whose sketches are closest.
    """
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault(row["content_hash"], []).append(row["path"])
    blocks: dict[tuple[str | None, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if row["shape_key"]:
            blocks.setdefault((row["base_model"], row["shape_key"]), {}).setdefault(row["content_hash"], row)
    found = [pair for block in blocks.values() for pair in _candidates(list(block.values()), threshold - MARGIN)]
    found.sort(reverse=True)
    near, failed = _exact([(one, two) for _, one, two in found[:most]], threshold)
    return Similar(
        threshold=threshold,
        same=[Alike(paths=sorted(paths)) for paths in groups.values() if len(paths) > 1],
        near=near,
        compared=min(len(found), most) - failed,
        not_compared=max(0, len(found) - most) + failed,
        all_pairs=sum(len(block) * (len(block) - 1) // 2 for block in blocks.values()),
    )


def _candidates(block: Sequence[Mapping[str, Any]], least: float) -> Iterator[tuple[float, str, str]]:
    if len(block) < 2:
        return
    sketches = np.array([row["sketch"] for row in block], dtype=np.float64)
    sizes = np.linalg.norm(sketches, axis=1)
    unit = sketches / np.where(sizes > 0.0, sizes, 1.0)[:, None]
    for one, two in candidate_pairs(unit):
        cosine = float(unit[one] @ unit[two])
        if cosine >= least:
            yield cosine, block[one]["path"], block[two]["path"]


def candidate_pairs(unit: Floats) -> set[tuple[int, int]]:
    """Pairs of sketches, unit vectors (n, D), of which at least one band of signs agrees."""
    signs = (unit > 0.0)[:, : BANDS * BITS].reshape(len(unit), BANDS, BITS)
    keys = signs @ (1 << np.arange(BITS))
    alive = np.flatnonzero(unit.any(axis=1))
    pairs: set[tuple[int, int]] = set()
    for band in range(BANDS):
        buckets: dict[int, list[int]] = {}
        for index in alive:
            buckets.setdefault(int(keys[index, band]), []).append(int(index))
        for members in buckets.values():
            pairs.update(_pairs_in(members))
    return pairs


def _pairs_in(members: list[int]) -> Iterable[tuple[int, int]]:
    if len(members) <= _MOST_IN_BUCKET:
        return combinations(members, 2)
    return ((one, two) for at, one in enumerate(members) for two in members[at + 1 : at + 1 + _NEIGHBOURS])


def _exact(pairs: Sequence[tuple[str, str]], threshold: float) -> tuple[list[Alike], int]:
    """The pairs whose cosine is at least the threshold, and how many could not be compared."""
    near, failed = [], 0
    for one, two in pairs:
        try:
            cosine = update_cosine(open_adapter(Path(one))[1], open_adapter(Path(two))[1])
        except (AdapterError, OSError):  # gone since, or behind a URL
            failed += 1
            continue
        if cosine >= threshold:
            near.append(Alike(paths=[one, two], cosine=cosine))
    return sorted(near, key=lambda alike: -(alike.cosine or 0.0)), failed


def update_cosine(one: Adapter, two: Adapter) -> float:
    """<dW1, dW2> / (norm(dW1) norm(dW2)) over the modules of both, by Gram matrices in float64; 0 where one is zero."""
    others = {module.name: module for module in two.modules}
    sums = np.zeros(3)
    for module in one.modules:
        other = others.get(module.name)
        if other is None:
            continue
        b1, a1 = (part.astype(np.float64) for part in module.load())
        b2, a2 = (part.astype(np.float64) for part in other.load())
        s1, s2 = module.scale, other.scale
        sums += (
            s1 * s2 * np.sum((b1.T @ b2) * (a1 @ a2.T)),
            s1 * s1 * np.sum((b1.T @ b1) * (a1 @ a1.T)),
            s2 * s2 * np.sum((b2.T @ b2) * (a2 @ a2.T)),
        )
    size = float(np.sqrt(sums[1] * sums[2]))
    return float(sums[0]) / size if size > 0.0 else 0.0
