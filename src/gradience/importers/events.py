"""A run as its source has it, as events: with its own steps, and with no clock but the source's.

Each segment of rows, from one start of the training program to the next, becomes a session with a `run_start` of its
own; the run closes with a `run_end` whose status is what the source shows of the end, `unknown` where it shows nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from gradience.configs.settings import overlay
from gradience.importers.files import LoggedRow, SourceRun, listed
from gradience.importers.order import Segment
from gradience.schema.config import ConfigSnapshot, LoraSnapshot, OptimizerSnapshot, TrainingSnapshot
from gradience.schema.events import Eval, EvalMetrics, Event, Metrics, RunEnd, RunStart, TrainStep
from gradience.schema.scalars import SCHEMA_ID, Json, Status, as_float, real
from gradience.telemetry.rows import eval_columns, split_row, train_columns
from gradience.telemetry.values import described, number_of

_COLUMNS: Final = ("loss", "grad_norm", "epoch")  # named in a note where they held no number
_SHOWN: Final = 5


@dataclass(slots=True)
class _EventBuilder:
    """Makes the events of one run, numbered by session."""

    run_id: str
    session: str = ""
    seq: int = 0
    odd: list[tuple[str, int]] = field(default_factory=list)  # known columns that held no number, and where

    def begin(self, session: str) -> None:
        self.session, self.seq = session, 0

    def head(self, step: int | None, ts: float | None) -> dict[str, Any]:
        self.seq += 1
        return {
            "schema": SCHEMA_ID,
            "ts": ts,
            "run_id": self.run_id,
            "step": step,
            "seq": self.seq - 1,
            "session": self.session,
        }

    def row(self, row: LoggedRow) -> Iterator[Event]:
        """Yield the events of one row: a row of training, evaluations, the summary."""
        parts = split_row(row.values)
        if parts.train:
            known, extras = train_columns(parts.train)
            self.odd += [(name, row.place) for name in _COLUMNS if f"{name}_" in extras]
            yield TrainStep(**self.head(row.step, row.ts), **known, extras=extras)
        for split, measured in parts.evals.items():
            known, extras = eval_columns(measured)
            metrics = EvalMetrics(**known, extras=extras)
            yield Eval(**self.head(row.step, row.ts), split=str(described(split)), metrics=metrics)
        if parts.summary:
            values = {str(described(name)): described(value) for name, value in parts.summary.items()}
            yield Metrics(**self.head(row.step, row.ts), kind="train_summary", metrics=values)


def to_events(
    raw: SourceRun, segments: list[Segment], *, run_id: str, session: str, meta: Mapping[str, Json]
) -> list[Event]:
    """Return the run's events, from its run_start to its run_end.

    Args:
        raw: where the rows come from; known columns that held no number are named in its notes.
        segments: the rows, by starts of the program.
        run_id: of the run.
        session: what the sessions' ids begin with.
        meta: provenance, for run_start.
    """
    builder = _EventBuilder(run_id)
    config = _config(raw, segments)
    events: list[Event] = []
    for number, segment in enumerate(segments):
        builder.begin(f"{session}-{number}" if number else session)
        ts = next((row.ts for row in segment.rows if row.ts is not None), None)
        resumed = segment.resumed_from
        events.append(RunStart(**builder.head(resumed, ts), config=config, meta=dict(meta), resumed_from_step=resumed))
        for row in segment.rows:
            events.extend(builder.row(row))
    if builder.odd:
        places = [f"{name} ({raw.unit} {place})" for name, place in builder.odd]
        raw.notes.append(f"no numbers, kept as they are: {listed(places, _SHOWN)}")
    if segments:
        events.append(_end(builder, raw, events))
    return events


def _end(builder: _EventBuilder, raw: SourceRun, events: list[Event]) -> RunEnd:
    steps = [e.step for e in events if e.step is not None and not isinstance(e, RunStart)]
    reached = max([*steps, *([raw.reached] if raw.reached is not None else [])], default=None)
    ts = next((e.ts for e in reversed(events) if e.ts is not None), None)
    status, reason = _status(raw, events, reached)
    head = {**builder.head(reached, None), "ts": ts}
    return RunEnd(**head, status=status, reason=reason)


_ROUNDING: Final = 1000  # a plan from epochs may count a last step that a partial batch does not make: 6565 of 6566


def _status(raw: SourceRun, events: list[Event], reached: int | None) -> tuple[Status, str]:
    trained = max((e.step for e in events if isinstance(e, TrainStep) and e.step is not None), default=0)
    summaries = [e for e in events if isinstance(e, Metrics)]
    if raw.finished or any(e.step is None or e.step >= trained for e in summaries):
        return "ok", "the source has the summary of a finished run"
    planned = raw.planned or raw.layer.config.training.max_steps
    if planned is None or planned <= 0:
        return "unknown", "the source does not say how training ended"
    if reached is not None and reached >= planned - planned // _ROUNDING:
        return "ok", "the planned steps were made"
    return "unknown", f"the source ends before its {planned} planned steps"


def _config(raw: SourceRun, segments: list[Segment]) -> ConfigSnapshot:
    """Return the config of the source's files, completed from its rows: planned steps, the peak learning rate."""
    config = raw.layer.config
    plan = TrainingSnapshot(max_steps=raw.planned)
    shown = ConfigSnapshot(training=plan, optimizer=_peak(row for s in segments for row in s.rows))
    if config.optimizer.lr is not None:
        shown = msgspec.structs.replace(shown, optimizer=OptimizerSnapshot())
    return overlay(overlay(shown, config), ConfigSnapshot(lora=_ratio(config.lora)))


def _peak(rows: Iterable[LoggedRow]) -> OptimizerSnapshot:
    rates = (number_of(row.values.get("learning_rate", row.values.get("lr"))) for row in rows)
    highest = max((as_float(rate) for rate in rates if rate is not None and math.isfinite(as_float(rate))), default=0.0)
    if highest <= 0.0:
        return OptimizerSnapshot()
    return OptimizerSnapshot(lr=highest, extras={"lr_from": "the largest learning rate logged"})


def _ratio(lora: LoraSnapshot) -> LoraSnapshot:
    if not lora.r or lora.r < 0 or lora.alpha is None:
        return LoraSnapshot()
    return LoraSnapshot(alpha_over_r=real(as_float(lora.alpha) / lora.r))
