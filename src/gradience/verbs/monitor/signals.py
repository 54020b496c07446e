"""Columns of further values out of a log: decoded alone, for a summary does not keep them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Final

import msgspec

from gradience.rules.log.facts import SIGNALS, Signal, Signals
from gradience.schema.events import Event, RunStart, TrainStep
from gradience.schema.scalars import Real, as_float
from gradience.telemetry.scan import Line, read_blocks

_Row: Final = msgspec.defstruct(
    "_Row",
    [
        ("run_id", str),
        ("event", str),
        ("step", int | None, None),
        ("resumed_from_step", int | None, None),
        *((field, Any, None) for field in SIGNALS.values()),
    ],
    rename={field: name for name, field in SIGNALS.items()},
    gc=False,
)


class _Columns:
    """The values of each name by step: a step that was run again counts once, as it went the last time."""

    def __init__(self) -> None:
        self._values: dict[str, dict[int, float]] = {name: {} for name in SIGNALS}

    def put(self, name: str, step: int, value: Real) -> None:
        if math.isfinite(as_float(value)):
            self._values[name][step] = as_float(value)

    def cut(self, step: int) -> None:
        """Forget what came after the step to which a resume went back."""
        self._values = {name: {s: v for s, v in column.items() if s <= step} for name, column in self._values.items()}

    def signals(self) -> Signals:
        """Return the columns that hold anything, by rising step."""
        return {
            name: Signal(steps, [column[step] for step in steps])
            for name, column in self._values.items()
            if (steps := sorted(column))
        }


def signals_of(events: Iterable[Event]) -> Signals:
    """Return the columns of one run's events."""
    columns = _Columns()
    for event in events:
        if isinstance(event, RunStart) and event.resumed_from_step is not None:
            columns.cut(event.resumed_from_step)
        if isinstance(event, TrainStep) and event.step is not None:
            for name in SIGNALS.keys() & event.extras.keys():
                if _is_real(event.extras[name]):
                    columns.put(name, event.step, event.extras[name])
    return columns.signals()


def read_signals(path: Path, run_id: str) -> Signals:
    """Return the columns of one run of a log; lines that are no events are the reader's to name, not ours.

    Raises:
        RecorderError: the file cannot be read.
    """
    columns = _Columns()
    fields = list(SIGNALS.items())
    for row in _rows(path):
        if row.run_id != run_id:
            continue
        if row.event == "run_start" and row.resumed_from_step is not None:
            columns.cut(row.resumed_from_step)
        if row.event == "train_step" and row.step is not None:
            for name, field in fields:
                value = getattr(row, field)
                if value is not None and _is_real(value):
                    columns.put(name, row.step, value)
    return columns.signals()


def _rows(path: Path) -> Iterator[Any]:
    decode = msgspec.json.Decoder(_Row).decode
    pieces = (piece for piece in read_blocks(path) if not isinstance(piece, Line))
    for line in chain.from_iterable(piece.data.split(b"\n") for piece in pieces):
        try:
            if line:
                yield decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue  # the reader has counted it among the bad lines


def _is_real(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
