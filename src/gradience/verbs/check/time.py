"""How long a training takes, where a log of the same base lies beside its settings: that log's time, by the rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from gradience.reading.logs import Reading
from gradience.rules.log.pace import pace_of
from gradience.schema import Json, as_float
from gradience.schema.events import ConfigSnapshot
from gradience.schema.memory import Time

_SETTINGS: Final = (  # which change the time of a row; a step's time goes with its rows
    *("max_length", "dtype", "packing", "gradient_checkpointing", "load_in_4bit", "load_in_8bit"),
    *("use_liger_kernel", "attn_implementation", "world_size"),
)


def foretell_time(config: ConfigSnapshot, logs: Iterable[Reading]) -> Time | None:
    """The time of a step and of all planned steps, by the first log that has its own; None without one."""
    for log in logs:
        pace = pace_of(log.run.paces)
        if pace is not None and pace.seconds_per_step is not None:
            before = log.run.config or ConfigSnapshot()
            return _scaled(config, before, as_float(pace.seconds_per_step), log.files[0].name)
    return None


def _scaled(config: ConfigSnapshot, before: ConfigSnapshot, logged: float, name: str) -> Time:
    apart = next(_apart(config, before), "")
    rows, rows_before = _rows(config), _rows(before)
    if not apart and rows != rows_before and (rows is None or rows_before is None):
        apart = "its batch or its accumulation is not known, or that of the settings"
    if apart:
        return Time(by=name, logged_seconds_per_step=logged, reason=apart)
    each = logged * (rows / rows_before if rows and rows_before else 1.0)
    steps = config.training.planned_steps
    return Time(
        seconds_per_step=each,
        steps=steps,
        seconds=None if steps is None else each * steps,
        by=name,
        logged_seconds_per_step=logged,
    )


def _apart(config: ConfigSnapshot, before: ConfigSnapshot) -> Iterator[str]:
    """What of the settings makes a row's time another than the log's, or may."""
    if not before.model_name or not config.model_name:
        yield "it does not say what its base is, or the settings do not"
    elif before.model_name.rpartition("/")[2] != config.model_name.rpartition("/")[2]:
        yield f"its base is {before.model_name}"
    for name, new, old in (
        *((name, _setting(config, name), _setting(before, name)) for name in _SETTINGS),
        ("peft_type", config.lora.peft_type, before.lora.peft_type),
        ("use_dora", bool(config.lora.use_dora), bool(before.lora.use_dora)),
    ):
        # A setting that is off and one that is not stated are the same: programs write their defaults, or do not.
        if (new or None) != (old or None):
            yield f"its {name} is {'not stated' if old is None else old}, and not {new}"


def _setting(config: ConfigSnapshot, name: str) -> Json:
    training = config.training
    return getattr(training, name) if hasattr(training, name) else training.extras.get(name)


def _rows(config: ConfigSnapshot) -> int | None:
    """Rows of a step on one device; None if not known."""
    training = config.training
    if training.batch_size is None or training.gradient_accumulation is None:
        return None
    return training.batch_size * training.gradient_accumulation
