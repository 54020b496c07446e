"""What a Trainer's summary and the names of its values say of a configuration that no file states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from gradience.importers.files import SourceRun
from gradience.schema.config import ConfigSnapshot, TrainingSnapshot
from gradience.schema.events import TELLING
from gradience.schema.scalars import Json, as_float
from gradience.telemetry.values import number_of

_ROUNDED: Final = 0.0005  # the Trainer rounds rates to three decimals
_MOST: Final = 2**20  # sequences per step; a larger quotient is not a batch size


def shown_in_rows(raw: SourceRun, config: ConfigSnapshot) -> ConfigSnapshot:
    """Settings inferred from the rows: sequences per step where no file has the accumulation, and the task by names.

    Both are in the extras of the training settings: `samples_per_step`, and `logged_names`.
    """
    extras: dict[str, Json] = {}
    names = sorted(TELLING & {name for row in raw.rows for name in row.values})
    if names:
        extras["logged_names"] = list(names)
    training = config.training
    summary = next((row.values for row in reversed(raw.rows) if "train_samples_per_second" in row.values), None)
    if training.gradient_accumulation is None and summary is not None:
        epochs = None if training.epochs is None else as_float(training.epochs)
        steps = raw.planned or training.max_steps
        batch = samples_per_step(summary, steps=steps, epochs=epochs, micro_batch=training.batch_size)
        if batch is not None:
            extras["samples_per_step"] = batch
    return ConfigSnapshot(training=TrainingSnapshot(extras=extras))


def samples_per_step(
    summary: Mapping[str, Json], *, steps: int | None, epochs: float | None = None, micro_batch: int | None = None
) -> int | None:
    """Return the sequences per optimizer step, on all processes; None where the summary leaves several open.

    The Trainer counts max_steps x batch, or examples x epochs: then the last step of an epoch may be smaller, and the
    ratio is a little below the batch.

    Args:
        summary: with `train_samples_per_second`, and `train_steps_per_second` or `train_runtime`.
        steps: planned optimizer steps; with the runtime they are more exact than the rounded steps per second.
        epochs: planned.
        micro_batch: sequences of one device and micro-batch, of which a step has a multiple.

    >>> samples_per_step({"train_samples_per_second": 26.2, "train_steps_per_second": 3.275}, steps=None)
    8
    """
    rate, pace = _number(summary, "train_samples_per_second"), _number(summary, "train_steps_per_second")
    runtime = _number(summary, "train_runtime")
    if rate is None or rate <= 0.0:
        return None
    error = _ROUNDED / rate
    if steps and runtime:
        ratio, error = rate * runtime / steps, error + _ROUNDED / runtime
    elif pace:
        ratio, error = rate / pace, error + _ROUNDED / pace
    else:
        return None
    low, high = ratio * (1.0 - error), ratio * (1.0 + error)
    exact = _only(low, high, micro_batch or 1)
    if exact is not None or not steps or not epochs:
        return exact
    per_epoch = steps / epochs
    if per_epoch <= 1.0:
        return None
    return _only(low, (high * per_epoch - 1.0) / (per_epoch - 1.0), micro_batch or 1)


def _only(low: float, high: float, unit: int) -> int | None:
    """Return the one multiple of the unit between two bounds; of several the one power of two."""
    if not 0.0 < low <= high < _MOST or unit < 1:
        return None
    found = range(math.ceil(low / unit) * unit, math.floor(high) + 1, unit)
    powers = [number for number in found if number & (number - 1) == 0] if len(found) < _MOST else []
    if len(found) == 1:
        return found[0]
    return powers[0] if len(powers) == 1 else None


def _number(values: Mapping[str, Json], key: str) -> float | None:
    number = number_of(values.get(key))
    return number if isinstance(number, float) and number > 0.0 else None
