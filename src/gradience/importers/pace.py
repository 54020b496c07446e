"""The speed of a run by its Trainer's summary, as the `throughput` event that the recorder writes itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from gradience.importers.files import LoggedRow
from gradience.schema import Json, as_float
from gradience.schema.values import number_of
from gradience.telemetry.rows import HELD_OUT

_FASTEST: Final = 1e-3  # seconds a step: less is no training
_MOST: Final = 1e9  # samples a second, and seconds of a run: more is no measurement
_SUMMARY: Final = "train_runtime"
_SAMPLES: Final = "train_samples_per_second"
_HELD_OUT: Final = tuple(f"{word}_" for word in HELD_OUT)
Fields: TypeAlias = dict[str, Any]  # of a `throughput` event


def paces_of(rows: Sequence[LoggedRow], start: int | None) -> Iterator[tuple[int, Fields]]:
    """The fields of the events of one start of a program, each behind the row with this index, in order.

    A runtime is of training and evaluations: without the seconds of each evaluation it tells no speed.
    """
    aside: list[float | None] = []
    for place, row in enumerate(rows):
        if _SUMMARY in row.names:
            values, steps = row.values, max((row.step or 0) - (start or 0), 0)
            if None not in aside and (fields := _told(values, steps, sum(filter(None, aside)))):
                yield place, {"steps": steps, **fields}
        elif any(name.startswith(_HELD_OUT) for name in row.names):
            values = row.values
            timed = [name for name in values if name.startswith(_HELD_OUT) and name.endswith("_runtime")]
            aside.append(sum(_number(values, name) or 0.0 for name in timed) or None)


def _told(values: Mapping[str, Json], steps: int, aside: float) -> Fields:
    """What the summary says of all steps, without the seconds of the evaluations."""
    runtime, rate = _number(values, _SUMMARY) or 0.0, _number(values, _SAMPLES)
    seconds = runtime - aside
    if not steps or not _FASTEST * steps <= seconds <= _MOST:
        return {}
    # The Trainer divides by the whole runtime, evaluations included.
    samples = {"samples_per_second": rate * runtime / seconds} if rate and rate <= _MOST else {}
    return {"seconds_per_step": seconds / steps, **samples}


def _number(values: Mapping[str, Json], name: str) -> float | None:
    number = number_of(values.get(name))
    return as_float(number) if isinstance(number, int | float) else None
