"""The checkpoints of a run that could go: no better than the best, not the newest, not the weights diagnosed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from gradience.schema.diagnose import SpareCheckpoint
from gradience.verbs.diagnose.checkpoints import CheckpointChoice, is_within


def spare_checkpoints(choice: CheckpointChoice, weights: Path | None) -> list[SpareCheckpoint]:
    """The checkpoints that could go; none unless the noise shows that what is kept is as good. Nothing is removed."""
    best = choice.best
    if best is None or best.noise is None:
        return []
    newest = max(item.step for item in choice.checkpoints)  # from which a run resumes
    others = [item for item in choice.of_run() if item.name != best.name and item.step != newest and not item.fault]
    worse = [
        item for item in others if item.name in choice.no_better and not is_within(weights, choice.paths[item.name])
    ]
    return [
        SpareCheckpoint(
            path=str(choice.paths[item.name]),
            bytes=sum(_sizes(choice.paths[item.name])),
            kept=best.name,
            within_noise=item.tied,
        )
        for item in worse
    ]


def _sizes(folder: Path) -> Iterator[int]:
    """The sizes of a folder's own files; links lead elsewhere, and a file that is gone takes nothing."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            try:
                yield 0 if path.is_symlink() else path.stat().st_size
            except OSError:
                yield 0
