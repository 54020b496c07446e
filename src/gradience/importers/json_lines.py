"""Logs of one JSON object a line: LLaMA-Factory's `trainer_log.jsonl`, ms-swift's `logging.jsonl`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, TypeAlias

from gradience.importers.files import LoggedRow, SourceRun, count_of, json_lines
from gradience.schema.scalars import Json
from gradience.telemetry.values import step_of

Dialect: TypeAlias = Literal["llama-factory", "ms-swift"]

_PLACE: Final = "global_step/max_steps"  # ms-swift: "12/100"
_PROGRESS: Final = frozenset({"percentage", "remaining_time"})  # follow from the step; not copied
_COUNTERS: Final = frozenset({"current_steps", "total_steps", "step", "global_step", _PLACE})
_IDLE: Final = frozenset({"epoch", "elapsed_time", "total_tokens", "throughput", "memory(GiB)", "train_speed(s/it)"})
_SHOWN: Final = 5
_CLOSING: Final = "log_history"  # ms-swift's last line repeats all rows


def dialect_of(row: dict[str, Json]) -> Dialect | None:
    """Return the program that logged a row, by its keys; None for any other.

    >>> dialect_of({"current_steps": 5, "total_steps": 10, "loss": 1.0}), dialect_of({"step": 5, "loss": 1.0})
    ('llama-factory', None)
    """
    if isinstance(row.get(_PLACE), str):
        return "ms-swift"
    if "total_steps" in row and ("current_steps" in row or "step" in row):
        return "llama-factory"
    return None


def read_json_lines(path: Path) -> SourceRun:
    """Return the rows of the log; lines that are not rows are listed as skipped.

    Raises:
        RecorderError: the file cannot be read.
    """
    raw = SourceRun(path, files=[path])
    for place, row in json_lines(path):
        if isinstance(row, str):
            raw.skip(place, row)
        elif _CLOSING in row:
            raw.notes.append(f"line {place} repeats the whole history and was not read")
        else:
            _take(raw, place, row)
    idle = [row.place for row in raw.rows if row.values.keys() <= _IDLE]
    raw.rows = [row for row in raw.rows if not row.values.keys() <= _IDLE]
    if idle:
        lines = ", ".join(map(str, idle[:_SHOWN])) + (" ..." if len(idle) > _SHOWN else "")
        raw.notes.append(f"measured nothing, marks of progress only: line {lines}")
    raw.notes.append(f"not copied, for they follow from the step: {', '.join(sorted(_PROGRESS))}")
    return raw


def _take(raw: SourceRun, place: int, row: dict[str, Json]) -> None:
    step, planned = _counters(row)
    values = {k: v for k, v in row.items() if v is not None and k not in _COUNTERS | _PROGRESS}
    if step is None:
        raw.skip(place, "no step in it")
        return
    raw.planned = planned or raw.planned
    raw.reached = max(step, raw.reached or 0)
    raw.rows.append(LoggedRow(place, step, values))


def _counters(row: dict[str, Json]) -> tuple[int | None, int | None]:
    """Return the step, and how many are planned."""
    place = row.get(_PLACE)
    if isinstance(place, str):
        step, _, planned = place.partition("/")
        return step_of(step), count_of(planned)
    steps: Iterator[int] = (s for key in ("current_steps", "step") if (s := step_of(row.get(key))) is not None)
    return next(steps, None), count_of(row.get("total_steps"))
