"""Whose a checkpoint is, and whether its weights are whole.

A folder may hold checkpoints of several runs, and a number says nothing of the run. The Trainer writes the history of
the run so far into each checkpoint: what that shares with the log decides. Weights are opened before they are advised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from gradience.adapters.open import holds_adapter
from gradience.configs.training import STATE_NAME
from gradience.errors import GradienceError
from gradience.importers.files import SourceRun
from gradience.importers.trainer_state import read_state
from gradience.io.reading import is_zip
from gradience.io.safetensors import read_header
from gradience.schema import as_float
from gradience.telemetry.series import RunSeries

MODEL_NAMES: Final = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_EQUAL: Final = 1e-3  # relative: loggers round
_LOSS: Final = "loss"


class CheckpointFolder(NamedTuple):
    """A folder `checkpoint-N` that holds weights, of an adapter or a whole model, or the history of its run."""

    step: int
    path: Path

    @property
    def has_weights(self) -> bool:
        """Whether it holds an adapter or a whole model."""
        return holds_adapter(self.path) or any((self.path / name).is_file() for name in MODEL_NAMES)


class Identity(NamedTuple):
    """Whether a checkpoint is of a run, None if nothing shows it; the steps that its run planned; and why."""

    of_run: bool | None
    max_steps: int | None = None
    why: str = ""


class OwnedCheckpoint(NamedTuple):
    """A checkpoint, and whose it is."""

    folder: CheckpointFolder
    identity: Identity


def identify(folder: CheckpointFolder, run: RunSeries) -> Identity:
    """Whose a checkpoint is, by the history in its own trainer_state.json."""
    path = folder.path / STATE_NAME
    if not path.is_file():
        return Identity(None, why=f"it has no {STATE_NAME}")
    try:
        state = read_state(path)
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
    splits = {event.split for event in run.evals}
    logged: dict[str, Mapping[int, float]] = {_LOSS: dict(zip(run.steps, run.losses, strict=True))}
    logged |= {f"{split}_{_LOSS}": run.losses_of(split) for split in splits}
    for row in state.rows:
        values = row.values
        for name, curve in logged.items():
            theirs = values.get(name)
            if row.step is not None and row.step in curve and isinstance(theirs, int | float):
                yield curve[row.step], as_float(theirs)


def unreadable(folder: Path) -> str:
    """The reason why a folder's weights cannot be used: not whole, not weights, or not finite; "" if they can."""
    from gradience.verbs.audit.run import audit_adapter  # imports jax: only if a checkpoint is examined

    try:
        if not CheckpointFolder(0, folder).has_weights:
            return "it holds no weights"
        if holds_adapter(folder):
            health = audit_adapter(folder).health
            return health.reason if health.verdict in {"broken", "not_analysed"} else ""
        for path in sorted(folder.glob("*.safetensors")):
            # The header tells where the file must end; to read the numbers of a whole model would take minutes.
            read_header(path)
        broken = [path.name for path in sorted(folder.glob("pytorch_model*.bin")) if not is_zip(path)]
    except GradienceError as fault:
        return str(fault).removeprefix(f"{folder}/")
    return f"{broken[0]} is no file that torch wrote whole" if broken else ""
