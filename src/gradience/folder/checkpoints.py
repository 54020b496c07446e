"""Whose a checkpoint is.

A folder may hold checkpoints of several runs, and a number says nothing of the run. The Trainer writes the history of
the run so far into each checkpoint: what that shares with the log decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from gradience.configs.training import STATE_NAME
from gradience.errors import GradienceError
from gradience.folder.found import CheckpointFolder
from gradience.importers.files import SourceRun
from gradience.importers.trainer_state import read_state
from gradience.schema import as_float
from gradience.telemetry.series import RunSeries

_EQUAL: Final = 1e-3  # relative: loggers round
_LOSS: Final = "loss"


class Identity(NamedTuple):
    """Whether a checkpoint is of a run, None if nothing shows it; the steps that its run planned; and why."""

    of_run: bool | None
    max_steps: int | None = None
    why: str = ""


class OwnedCheckpoint(NamedTuple):
    """A checkpoint, and whose it is."""

    folder: CheckpointFolder
    identity: Identity


def identify(folder: CheckpointFolder, run: RunSeries, states: Mapping[Path, SourceRun]) -> Identity:
    """Whose a checkpoint is, by the history in its own trainer_state.json; `states` are those that were read."""
    path = folder.path / STATE_NAME
    if not path.is_file():
        return Identity(None, why=f"it has no {STATE_NAME}")
    try:
        state = states.get(path) or read_state(path)
    except GradienceError:
        return Identity(None, why=f"its {STATE_NAME} cannot be read")
    return _compared(folder, state, run)


def _compared(folder: CheckpointFolder, state: SourceRun, run: RunSeries) -> Identity:
    planned = state.planned
    if state.furthest != folder.step:
        return Identity(None, planned, f"its {STATE_NAME} is of step {state.furthest}")
    same = [math.isclose(ours, theirs, rel_tol=_EQUAL) for ours, theirs in _shared(state, run)]
    if same:
        why = "its history is the log's" if all(same) else "its history has other losses at the same steps"
        return Identity(all(same), planned, why)
    ours = run.config.training.max_steps if run.config else None
    if planned and ours and planned != ours:
        return Identity(of_run=False, max_steps=planned, why=f"its run planned {planned} steps, the log's {ours}")
    return Identity(None, planned, "its history shares no step with the log")


def _shared(state: SourceRun, run: RunSeries) -> Iterator[tuple[float, float]]:
    """The losses that both histories have at one step, of training and of each evaluated split."""
    logged: dict[str, Mapping[int, float]] = {_LOSS: dict(zip(run.steps, run.losses, strict=True))}
    logged |= {f"{split}_{_LOSS}": curve for split, curve in run.loss_curves().items()}
    for row in state.rows:
        values = row.values
        for name, curve in logged.items():
            theirs = values.get(name)
            if row.step is not None and row.step in curve and isinstance(theirs, int | float):
                yield curve[row.step], as_float(theirs)
