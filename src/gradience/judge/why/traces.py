"""What a run recorded that can be compared with another run, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from gradience.errors import RecorderError
from gradience.judge.monitor.source import find_run, is_log, open_source
from gradience.schema import as_float
from gradience.schema.events import ConfigSnapshot, RunStart, StepDigests, Throughput, TrainStep, Wiring
from gradience.telemetry.reader import TelemetryReader
from gradience.telemetry.series import rate_of

_LOG: Final = "run.jsonl"


@dataclass
class Trace:
    """What one run recorded that can be compared."""

    config: ConfigSnapshot
    versions: Sequence[Mapping[str, str]]
    wirings: Sequence[Wiring]
    rows: Mapping[int, TrainStep]
    batches: Mapping[int, str]
    rng: Mapping[int, str]
    paces: Sequence[Throughput] = ()

    @cached_property
    def start(self) -> Wiring | None:
        """The look at the run's beginning."""
        return next((w for w in self.wirings if w.phase in {"start", "resume"}), None)


def traces_of(first: Path, second: Path, runs: Sequence[str] = ()) -> tuple[Trace, Trace]:
    """Return what two runs recorded; of one log given twice, a run and its resume, or its last two runs.

    Raises:
        RecorderError: a log is missing, empty, holds no event of a run, or is given twice and holds one run.
    """
    one, *others = (find_run(path, run) for path, run in zip((first, second), (*runs, None, None), strict=False))
    sessions = _sessions(*one)
    if runs or first.absolute() != second.absolute():
        return _joined(sessions), _joined(_sessions(*others[0]))
    if len(sessions) < 2:
        raise RecorderError(f"{first} holds one run that was not resumed: there is nothing to compare it with")
    return _joined(sessions[:-1]), _joined(sessions[-1:])


def _sessions(path: Path, run: str | None) -> list[list[Any]]:
    """The events of the log by run_start, those of the last run only, unless it holds several runs begun once."""
    place = path / _LOG if is_log(path / _LOG) else path
    if not is_log(place):
        return [_imported(place, run)]
    parts: list[list[Any]] = []
    for event in TelemetryReader(place):
        if isinstance(event, RunStart) or not parts:
            parts.append([])
        parts[-1].append(event)
    if not parts:
        raise RecorderError(f"{path} holds no event of a run", advice="give the run.jsonl that a run wrote")
    last = parts[-1][0].run_id if run is None else run
    own = [part for part in parts if part[0].run_id == last]
    if run is not None and not own:
        open_source(path, run)  # says which runs there are
    return own if run is not None or len(own) > 1 else parts[-2:]


def _imported(path: Path, run: str | None) -> list[Any]:
    from gradience.importers import read_source  # a log of our own need not pay for it

    open_source(path, run)  # refuses what holds no run
    return list(read_source(path, run=run).runs[-1].events)


def _joined(parts: Sequence[Sequence[Any]]) -> Trace:
    """One trace of a run's sessions; a later session's rows are those of the steps that it ran again."""
    last = parts[-1][0].run_id
    events = [event for part in parts if part[0].run_id == last for event in part]
    starts = [event for event in events if isinstance(event, RunStart)]
    wirings = [event for event in events if isinstance(event, Wiring)]
    batches, rng = dict[int, str](), dict[int, str]()
    for event in events:
        if isinstance(event, StepDigests):
            batches |= {event.first + place: text for place, text in enumerate(event.batches) if text}
            rng |= {event.first + place: text for place, text in enumerate(event.rng) if text}
    meta = starts[-1].meta.get("versions", {}) if starts else {}
    versions = [meta if isinstance(meta, dict) else {}, wirings[0].versions if wirings else {}]
    rows = {event.step: event for event in events if isinstance(event, TrainStep) and event.step is not None}
    paces = [event for event in events if isinstance(event, Throughput)]
    return Trace(starts[-1].config if starts else ConfigSnapshot(), versions, wirings, rows, batches, rng, paces)


def column(trace: Trace, quantity: str) -> Mapping[int, Any]:
    """Return a quantity by step: `batch` and `rng` as text, `lr`, `loss` and `grad_norm` where finite."""
    readers: dict[str, Callable[[TrainStep], float]] = {
        "lr": lambda row: rate_of(row.lr),
        "loss": lambda row: math.nan if row.loss is None else as_float(row.loss),
        "grad_norm": lambda row: math.nan if row.grad_norm is None else as_float(row.grad_norm),
    }
    if quantity == "batch":
        return trace.batches
    if quantity == "rng":
        return trace.rng
    read = readers[quantity]
    values = {step: read(row) for step, row in trace.rows.items()}
    return {step: value for step, value in values.items() if math.isfinite(value)}
