"""Collect the configuration of an imported run from config files, a Trainer's summary, and the names of logged values.

A file that cannot be read becomes a note on the run, not an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from gradience.configs.document import CONFIG_NAME, MODEL_CONFIG, read_labels, read_peft
from gradience.configs.settings import LORA, OPTIMIZER, RUN, TRAINING, Draft, Layer, Level, stack
from gradience.configs.training import STATE_NAME, TRAINING_NAMES, note_training, read_training
from gradience.configs.values import Fields
from gradience.errors import ConfigError
from gradience.importers.files import SourceRun, count_of
from gradience.schema import Json, as_float
from gradience.schema.events import TELLING, ConfigSnapshot, TrainingSnapshot
from gradience.schema.reports import SourceFile
from gradience.telemetry.values import number_of

_LEVELS: Final[tuple[Level, ...]] = ("run", "optimizer", "lora", "training")

_ROUNDED: Final = 0.0005  # the Trainer rounds rates to three decimals
_MOST: Final = 2**20  # sequences per step; a larger quotient is not a batch size


def add_settings(raw: SourceRun, *folders: Path) -> None:
    """Add the settings of an adapter config, training arguments and a model's config from the folders.

    For each kind of file, the first folder that has one counts.
    """
    for names, read in (((CONFIG_NAME,), read_peft), (TRAINING_NAMES, read_training)):
        path = next((f / name for f in folders for name in names if (f / name).is_file()), None)
        if path is not None:
            _add(raw, path, read)
    model = next((f / MODEL_CONFIG for f in folders if (f / MODEL_CONFIG).is_file()), None)
    if model is not None:
        _add(raw, model, read_labels)
    if raw.layer.secret_keys:
        raw.notes.append(f"not copied, for they hold a secret: {', '.join(dict.fromkeys(raw.layer.secret_keys))}")


def _add(raw: SourceRun, path: Path, read: Callable[[Path], Layer]) -> None:
    try:
        layer = read(path)
    except ConfigError as error:
        raw.notes.append(f"{path.name} was not used: {str(error).removeprefix(f'{path}: ')}")
        return
    if layer == Layer():
        return
    raw.layer = stack([raw.layer, layer])
    raw.files.append(path)


def mapping_layer(mapping: Mapping[str, Json], raw: SourceRun) -> Layer:
    """Return the settings in a logger's own mapping, read by their usual names. A wrong value becomes a note."""
    flat = {**mapping, **_adapter(mapping)}
    draft = Draft()
    for level, settings in zip(_LEVELS, (RUN, OPTIMIZER, LORA, TRAINING), strict=True):
        for setting in settings:
            try:
                draft.read(level, (setting,), Fields(dict(flat), raw.path.name), loose=level != "lora")
            except ConfigError as error:
                raw.notes.append(f"a setting was not used: {error}")
    try:
        note_training(Fields(dict(flat), raw.path.name), draft)
    except ConfigError as error:
        raw.notes.append(f"a setting was not used: {error}")
    return Layer(config=draft.snapshot())


def _adapter(mapping: Mapping[str, Json]) -> dict[str, Json]:
    """Return PEFT's settings from `peft_config`, where the Trainer's callbacks for other loggers nest them."""
    nested = mapping.get("peft_config")
    if not isinstance(nested, dict):
        return {}
    only = next(iter(nested.values())) if len(nested) == 1 else nested
    return only if isinstance(only, dict) else nested


def state_layer(state: Mapping[str, Json], path: Path) -> Layer:
    """Return the settings in a trainer_state.json: run length, batch size and intervals."""
    batch, epochs = count_of(state.get("train_batch_size")), count_of(state.get("num_train_epochs"))
    training = TrainingSnapshot(
        max_steps=count_of(state.get("max_steps")),
        epochs=None if epochs is None else float(epochs),
        batch_size=batch,
        extras={} if batch is None else {"batch_from": STATE_NAME},  # one device's batch, without the accumulation
        logging_steps=_interval(state.get("logging_steps")),
        save_steps=_interval(state.get("save_steps")),
    )
    source = SourceFile(role="trainer state", path=str(path))
    return Layer(config=ConfigSnapshot(training=training), sources=(source,))


def _interval(value: Json) -> float | None:
    """Return an interval in steps, or as a fraction of all steps; None if it is not a positive finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 < value < float("inf") else None


def shown_in_rows(raw: SourceRun, config: ConfigSnapshot) -> ConfigSnapshot:
    """Settings that are inferred from the rows, in the extras of the training settings.

    `logged_names` are the logged names that tell the task. `samples_per_step` is the number of sequences per step, only
    if no file states the accumulation.
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
    """Return the sequences per optimizer step over all processes; None if the summary fits several numbers.

    The Trainer counts samples as max_steps x batch, or as examples x epochs. In the latter case the last step of an
    epoch may be smaller, so the ratio is a little below the batch.

    Args:
        summary: has `train_samples_per_second`, and `train_steps_per_second` or `train_runtime`.
        steps: planned optimizer steps; with the runtime they are more exact than the rounded steps per second.
        epochs: planned epochs.
        micro_batch: sequences in one device's micro-batch; the sequences per step are a multiple of it.

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
    """Return the only multiple of `unit` between the bounds, or if several, the only power of two; else None."""
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
