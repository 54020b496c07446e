"""Checkpoints of one run: which folders they are, and where the update stops turning."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from gradience.adapters.folder import WEIGHT_NAMES
from gradience.errors import AdapterError
from gradience.schema.compare_adapters import CheckpointPoint, CheckpointSeries
from gradience.spectral.batch import Spectrum

__all__ = ["SETTLED", "are_series", "checkpoints_of", "means_of", "series_of", "step_of"]

SETTLED: Final = 0.99  # cosine to the final update: 8 degrees, or a seventh of its norm; a heuristic of the project
_CHECKPOINT: Final = re.compile(r"checkpoint-(\d{1,15})")
_FEW: Final = 2


def step_of(path: Path) -> int | None:
    """Return the step that a folder's name gives, or None."""
    hit = _CHECKPOINT.fullmatch(path.resolve().name)
    return int(hit[1]) if hit else None


def are_series(paths: Sequence[Path]) -> bool:
    """Return whether the folders are checkpoints of one run: named checkpoint-N, in one place."""
    return all(step_of(path) is not None for path in paths) and len({path.resolve().parent for path in paths}) == 1


def checkpoints_of(folder: Path) -> list[Path]:
    """Return the checkpoint-N folders of a run that hold an adapter, by step.

    Raises:
        AdapterError: the folder is missing, or holds fewer than two.
    """
    if not folder.is_dir():
        raise AdapterError(f"no such folder: {folder}", advice="give two adapters, or a run's folder with checkpoints")
    found = [child for child in folder.iterdir() if step_of(child) is not None and _holds_adapter(child)]
    if len(found) < _FEW:
        raise AdapterError(
            f"{folder} holds {len(found)} checkpoint-N folders with an adapter, expected at least two",
            advice="give a second adapter, or the folder of a run that saved checkpoints",
        )
    return sorted(found, key=lambda child: step_of(child) or 0)


def _holds_adapter(folder: Path) -> bool:
    return any((folder / name).is_file() for name in WEIGHT_NAMES)


def means_of(spectra: Sequence[Spectrum]) -> dict[str, float]:
    """Return the means of the quantities that grow with the rank in use, over finite updates that are not zero."""
    alive = [s for s in spectra if s.finite and s.spectral_norm > 0.0]
    if not alive:
        return {}
    return {
        "stable_rank_mean": float(np.mean([s.stable_rank for s in alive])),
        "effective_rank_mean": float(np.mean([s.effective_rank for s in alive])),
        "energy_rank_90_mean": float(np.mean([s.energy_ranks[0] for s in alive])),
    }


def series_of(points: Sequence[CheckpointPoint]) -> CheckpointSeries:
    """Return the series with the checkpoint from which the update no longer turns.

    That is the first, before the last, from which on every cosine to the final update is at least `SETTLED`.
    """
    settled: CheckpointPoint | None = None
    for point in reversed(points[:-1]):
        if point.cosine_to_final is None or point.cosine_to_final < SETTLED:
            break
        settled = point
    first, last = points[0].effective_rank_mean, points[-1].effective_rank_mean
    return CheckpointSeries(
        points=list(points),
        settled=None if settled is None else settled.name,
        settled_step=None if settled is None else settled.step,
        threshold=SETTLED,
        rank_growth=last / first if first and last else None,
    )
