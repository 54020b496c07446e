"""Speed and memory of another program's rows, as the `throughput` events that the recorder writes itself.

Programs log a clock or the seconds since the start, tokens so far or a second, memory in GiB or in bytes; `names.toml`
says which column is which. Rows are joined to windows of ten steps, as the recorder's are. What a program's summary
says of the whole run stands for it only where no window was timed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

from gradience.importers.files import LoggedRow, MemoryReading
from gradience.names import NAMES
from gradience.schema import Json, as_float
from gradience.schema.values import number_of
from gradience.telemetry.rows import HELD_OUT

EVERY: Final = 10  # optimizer steps of a window, at least: as many as the recorder's
_SHOWN: Final = 60.0  # seconds of a window by a clock that shows whole ones, which is then off by under 2 %
_FASTEST: Final = 1e-3  # seconds a step: a log whose clock runs faster was written afterwards
_LARGEST: Final = 1 << 42  # bytes of a node's cards together: more was logged in another unit
_MOST: Final = 1e9  # tokens a second, and seconds of a run: more is no measurement
_BYTES: Final = {"GiB": 2.0**30, "GB": 1e9, "bytes": 1.0}  # the other units are those of the fields
_CLOCK: Final = re.compile(  # 1:02:03, 1h 2m 3s
    r"(?:(\d{1,9}) ?d(?:ays?)?,? *)?(?:(\d{1,9}):(\d\d):(\d\d)|(?:(\d{1,9})h *)?(?:(\d{1,9})m *)?(?:(\d{1,9})s)?)"
)
_UNIT: Final = {1: 86400, 2: 3600, 3: 60, 4: 1, 5: 3600, 6: 60, 7: 1}  # seconds, by group of the clock
_SOFAR: Final = {"tokens": "tokens_per_second", "padded_tokens": "padded_tokens_per_second"}
_RATES: Final = ("seconds_per_step", "tokens_per_second")
_SUMMARY: Final = "train_runtime"
_OF_TRAINER: Final = {
    "samples_per_second": "train_samples_per_second",
    "padded_tokens_per_second": "train_tokens_per_second",
}
_TRACKED: Final = ("before_init_mem_{}", "init_mem_{}_alloc_delta", "train_mem_{}_alloc_delta")
_SEPARATOR: Final = re.compile(r"[^a-z0-9]+")
Fields: TypeAlias = dict[str, Any]  # of a `throughput` event


class _Mark(NamedTuple):
    """Where the program was when it logged a training row."""

    step: int
    ts: float | None
    sofar: Mapping[str, float]  # seconds and tokens since the start
    aside: float  # seconds of evaluations until then
    untimed: int  # evaluations until then whose seconds are not known


class Windows:
    """The windows of one start of a program, whose rows are given in order.

    Args:
        start: the step it began at.
        readings: of memory, in the order of time.
    """

    def __init__(self, start: int | None = None, readings: Sequence[MemoryReading] = ()) -> None:
        self._start, self._readings = start or 0, list(reversed(readings))
        self._begin: _Mark | None = None
        self._last: _Mark | None = None
        self._aside, self._untimed = 0.0, 0
        self._rates: dict[str, list[float]] = {}
        self._memory: dict[str, int] = {}
        self._told: dict[str, int] = {}
        self._timed = False
        self._before: tuple[int | None, Mapping[str, float]] = None, {}

    def take(self, row: LoggedRow) -> Fields:
        """The fields of the event that a row completes; empty if it completes none."""
        shape = _shape(row.names)
        if not shape.tells and row.ts is None:
            return {}
        values = row.values if shape.tells else {}
        numbers = _read(values, shape)
        self._remember(numbers, row.ts)
        if _SUMMARY in values:
            return {} if self._timed else self._whole(values, row.step)
        if shape.evaluates:
            runtime = sum(_number(values, name) or 0.0 for name in shape.runtimes) or self._since(row, numbers)
            self._aside += runtime
            self._untimed += not runtime
        self._before = row.step, numbers
        if not shape.trains or row.step is None:
            return {}
        for name in _RATES:
            if name in numbers:
                self._rates.setdefault(name, []).append(numbers[name])
        self._last = _Mark(row.step, row.ts, numbers, self._aside, self._untimed)
        return self._window(self._last)

    def rest(self) -> Fields:
        """The fields of a last event, if memory was read that no event has told."""
        while self._readings:
            self._raise(self._readings.pop().memory)
        return {"steps": 0, **self._memory} if self._memory != self._told else {}

    def _since(self, row: LoggedRow, found: Mapping[str, float]) -> float:
        """Seconds since the row before, if both are of one step, as of an evaluation; else 0."""
        step, sofar = self._before
        if step is None or step != row.step or not {"elapsed"} <= found.keys() & sofar.keys():
            return 0.0
        return max(found["elapsed"] - sofar["elapsed"], 0.0)

    def _remember(self, found: Mapping[str, float], ts: float | None) -> None:
        self._raise({name: value for name, value in found.items() if name.endswith("_bytes")})
        while ts is not None and self._readings and self._readings[-1].ts <= ts:
            self._raise(self._readings.pop().memory)

    def _raise(self, memory: Mapping[str, float]) -> None:
        sizes = {name: int(size) for name, size in memory.items() if 0.0 < size <= _LARGEST}
        for name, size in sizes.items():
            # What is held is of now; the other sizes are peaks.
            self._memory[name] = size if name == "held_bytes" else max(size, self._memory.get(name, 0))

    def _window(self, end: _Mark) -> Fields:
        begin = self._begin
        if begin is None:
            self._begin = end
            return {}
        steps, seconds, shown = end.step - begin.step, *_between(begin, end)
        if steps < EVERY or (shown and seconds is not None and 0 <= seconds < _SHOWN):
            return {}
        rates = {name: sum(values) / len(values) for name, values in self._rates.items()}
        each = rates.get("seconds_per_step") or (None if seconds is None else seconds / steps)
        fields: Fields = {"seconds_per_step": each if each is not None and each >= _FASTEST else None, **rates}
        if fields["seconds_per_step"] is not None:
            fields |= _speeds(begin.sofar, end.sofar, each * steps if each else 0.0)
        fields = {name: value for name, value in (fields | self._memory).items() if value is not None}
        self._begin, self._rates, self._told = end, {}, dict(self._memory)
        self._timed = self._timed or "seconds_per_step" in fields
        return {"steps": steps, **fields} if fields else {}

    def _whole(self, values: Mapping[str, Json], end: int | None) -> Fields:
        """What the Trainer's summary says of all steps."""
        runtime, peak = _number(values, _SUMMARY) or 0.0, _tracked(values)
        steps, seconds = max((end or 0) - self._start, 0), runtime - self._aside
        fields: Fields = {} if peak is None else {"peak_bytes": peak}
        if steps and not self._untimed and _FASTEST * steps <= seconds <= _MOST:
            fields["seconds_per_step"] = seconds / steps
            rates = {name: _number(values, column) for name, column in _OF_TRAINER.items()}
            # The Trainer divides by the whole runtime, evaluations included.
            fields |= {name: rate * runtime / seconds for name, rate in rates.items() if rate and rate <= _MOST}
            if self._last is not None and self._last.step == end and not self._start:
                fields |= _speeds(dict.fromkeys(_SOFAR, 0.0), self._last.sofar, seconds)
        self._told = dict(self._memory)
        return {"steps": steps, **self._memory, **fields} if fields else {}


def windows_of(
    rows: Sequence[LoggedRow], start: int | None, readings: Sequence[MemoryReading]
) -> list[tuple[int, Fields]]:
    """The fields of the events of one start of a program, each behind the row with this index, in order."""
    windows = Windows(start, readings)
    events = [(place, fields) for place, row in enumerate(rows) if (fields := windows.take(row))]
    rest = windows.rest() if rows else {}
    return [*events, (len(rows) - 1, rest)] if rest else events


def _between(begin: _Mark, end: _Mark) -> tuple[float | None, bool]:
    """Seconds between two rows without evaluations, None if not known; and whether the clock shows whole ones."""
    if end.untimed > begin.untimed:
        return None, False
    aside, shown = end.aside - begin.aside, "elapsed" in begin.sofar and "elapsed" in end.sofar
    if shown:
        return end.sofar["elapsed"] - begin.sofar["elapsed"] - aside, True
    return (None if begin.ts is None or end.ts is None else end.ts - begin.ts - aside), False


def _speeds(begin: Mapping[str, float], end: Mapping[str, float], seconds: float) -> Fields:
    """Tokens a second by the counts so far, where they rose."""
    both = {name: (end[name] - begin[name]) / seconds for name in _SOFAR if name in begin and name in end}
    return {_SOFAR[name]: rate for name, rate in both.items() if 0.0 < rate <= _MOST}


def _tracked(values: Mapping[str, Json]) -> int | None:
    """The peak by the Trainer's own tracker (skip_memory_metrics=False), bytes; that of the card, if it had one."""
    for device in ("gpu", "cpu"):
        parts = [_number(values, name.format(device)) for name in (*_TRACKED, "train_mem_{}_peaked_delta")]
        peak = sum(part or 0.0 for part in parts)
        if None not in parts and peak <= _LARGEST:
            return int(max(peak, 0.0))
    return None


def _read(values: Mapping[str, Json], shape: _Shape) -> dict[str, float]:
    """The numbers of a row's columns of speed and memory, by our field and in its unit."""
    numbers: dict[str, float] = {}
    for name, field, unit in shape.columns:
        number = _clock(values[name]) if unit == "clock" else _number(values, name)
        most = math.inf if field in _SOFAR or field.endswith("_bytes") else _MOST  # these are looked at in their use
        if number is not None and 0.0 <= number <= most and field not in numbers:
            numbers[field] = number * _BYTES.get(unit, 1.0)
    return numbers


class _Shape(NamedTuple):
    """What the names of a row say: what it is of, and its columns of speed and memory with our field and unit."""

    columns: tuple[tuple[str, str, str], ...]
    evaluates: bool
    runtimes: tuple[str, ...]  # of evaluations
    trains: bool
    tells: bool  # whether a value of it matters here


@lru_cache(maxsize=256)
def _shape(names: tuple[str, ...]) -> _Shape:
    plain = ((name, _SEPARATOR.sub("_", name.lower()).strip("_").removeprefix("train_")) for name in names)
    columns = tuple((name, *_FIELDS[known]) for name, known in plain if known in _FIELDS)
    held_out = [name for name in names if name.startswith(_HELD_OUT)] if _OF_THE_CRITIC not in names else []
    runtimes = tuple(name for name in held_out if name.endswith("_runtime"))
    tells = bool(columns or held_out or _SUMMARY in names)
    return _Shape(columns, bool(held_out), runtimes, "loss" in names, tells)


_OF_THE_CRITIC: Final = "val/ratio"  # of TRL's PPO, whose `val/` is the value function's
_HELD_OUT: Final = tuple(f"{word}{mark}" for word in HELD_OUT for mark in "_/")
_FIELDS: Final = {
    column: (field, unit)
    for field, units in NAMES.pace.items()
    for unit, columns in units.items()
    for column in columns.split()
}


def _clock(value: Json) -> float | None:
    """Seconds since the start, as a text of days, hours, minutes and seconds shows them.

    >>> _clock("4 days, 7:19:52"), _clock("18m 42s"), _clock("1d 2h 3m 4s"), _clock("soon")
    (371992.0, 1122.0, 93784.0, None)
    """
    hit = _CLOCK.fullmatch(value.strip()) if isinstance(value, str) and value.strip() else None
    return None if hit is None else float(sum(int(hit[n]) * size for n, size in _UNIT.items() if hit[n]))


def _number(values: Mapping[str, Json], name: str) -> float | None:
    number = number_of(values.get(name))
    return as_float(number) if isinstance(number, int | float) else None
