"""What a run recorded that can be compared with another run, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gradience.errors import RecorderError
from gradience.folder.runs import find_run
from gradience.reading.logs import Session, sessions_of
from gradience.schema import as_float
from gradience.schema.events import ConfigSnapshot, RunStart, StepDigests, Throughput, TrainStep, Wiring
from gradience.telemetry.series import rate_of


@dataclass(frozen=True)
class Batch:
    """The digests of the rows of a step, in order, by micro-batch."""

    micro: Sequence[Sequence[str]]

    @classmethod
    def of(cls, text: str) -> Batch:
        """The batch as a log has it: rows apart by blanks, micro-batches by bars."""
        return cls([part.split() for part in text.split("|")])

    @cached_property
    def rows(self) -> Sequence[str]:
        """The rows of all micro-batches."""
        return [row for part in self.micro for row in part]

    def __str__(self) -> str:
        """The batch as a log has it."""
        return "|".join(map(" ".join, self.micro))


@dataclass(frozen=True)
class Trace:
    """What one run recorded that can be compared."""

    config: ConfigSnapshot
    versions: Sequence[Mapping[str, str]]
    wirings: Sequence[Wiring]
    rows: Mapping[int, TrainStep]
    batches: Mapping[int, Batch]
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
    sessions = sessions_of(*one)
    if runs or first.absolute() != second.absolute():
        return _joined(sessions), _joined(sessions_of(*others[0]))
    if len(sessions) < 2:
        raise RecorderError(f"{first} holds one run that was not resumed: there is nothing to compare it with")
    return _joined(sessions[:-1]), _joined(sessions[-1:])


def _joined(parts: Sequence[Session]) -> Trace:
    """One trace of a run's sessions; a later session's rows are those of the steps that it ran again."""
    last = parts[-1][0].run_id
    events = [event for part in parts if part[0].run_id == last for event in part]
    starts = [event for event in events if isinstance(event, RunStart)]
    wirings = [event for event in events if isinstance(event, Wiring)]
    batches, rng = dict[int, Batch](), dict[int, str]()
    for event in events:
        if isinstance(event, StepDigests):
            batches |= {event.first + place: Batch.of(text) for place, text in enumerate(event.batches) if text}
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
        return {step: str(batch) for step, batch in trace.batches.items()}
    if quantity == "rng":
        return trace.rng
    read = readers[quantity]
    values = {step: read(row) for step, row in trace.rows.items()}
    return {step: value for step, value in values.items() if math.isfinite(value)}
