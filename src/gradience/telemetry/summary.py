"""One pass over a log: the series and latest values of its last run."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from gradience.schema.config import ConfigSnapshot
from gradience.schema.events import (
    Alert,
    Eval,
    Event,
    Metrics,
    Recommendation,
    RecommendationItem,
    RunEnd,
    RunStart,
    TrainStep,
    UnknownEvent,
)
from gradience.schema.reports import BadLine
from gradience.schema.scalars import NonFinite, as_float
from gradience.telemetry.codec import MAX_LINE_BYTES, decode_known
from gradience.telemetry.reader import Block, Line, bad_line, read_blocks, read_line

__all__ = ["MAX_ISSUES", "RunSeries", "RunSummary", "summarize"]

MAX_ISSUES = 100
_ABSENT = float("nan")


@dataclass(slots=True)
class RunSeries:
    """What one run logged. The four arrays are parallel: one entry per row that has a loss."""

    run_id: str
    config: ConfigSnapshot | None = None
    meta: dict[str, object] = field(default_factory=dict)
    steps: array[int] = field(default_factory=lambda: array("q"))
    losses: array[float] = field(default_factory=lambda: array("d"))
    rates: array[float] = field(default_factory=lambda: array("d"))
    grad_norms: array[float] = field(default_factory=lambda: array("d"))
    evals: list[Eval] = field(default_factory=list)
    latest_metrics: dict[str, Metrics] = field(default_factory=dict)
    alerts: list[Alert] = field(default_factory=list)
    recommendations: list[RecommendationItem] = field(default_factory=list)
    end: RunEnd | None = None
    resumed_from: list[int] = field(default_factory=list)
    sessions: set[str] = field(default_factory=set)
    superseded: int = 0
    first_ts: float | None = None
    last_ts: float | None = None
    last_step: int | None = None
    last_epoch: float | None = None

    def latest_eval(self, split: str) -> Eval | None:
        """Return the newest evaluation of the split, or None."""
        return next((e for e in reversed(self.evals) if e.split == split), None)


@dataclass(slots=True)
class RunSummary:
    """The runs of one log, the bad lines among them, and what was counted."""

    path: Path
    runs: dict[str, RunSeries] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    issues: list[BadLine] = field(default_factory=list)
    issues_total: int = 0
    lines: int = 0
    bare_tokens: int = 0

    @property
    def last(self) -> RunSeries | None:
        """The run that began last in the file, or None for a log without one event."""
        return next(reversed(self.runs.values()), None)


def summarize(path: Path) -> RunSummary:
    """Return what the log holds, reading it once, in constant memory but for 32 bytes a row.

    Raises:
        RecorderError: the file cannot be read.
        SchemaError: the log is of another major version.
    """
    summary = RunSummary(path)
    for piece in read_blocks(path):
        if isinstance(piece, Line):
            _take_bad(summary, bad_line(piece, ""))
        else:
            _take_block(summary, piece)
    return summary


def _take_block(summary: RunSummary, block: Block) -> None:
    lines = block.data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    try:
        fits = max(map(len, lines)) <= MAX_LINE_BYTES
        events = [decode_known(line) for line in lines] if fits else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        events = None
    if events is None:
        _take_lines(summary, block.lines())
        return
    summary.lines += len(events)
    if not _take_rows(summary, events):
        for event in events:
            _take_event(summary, event)


def _take_lines(summary: RunSummary, lines: Iterable[Line]) -> None:
    """Take the lines one by one: a block with something unusual in it."""
    for line in lines:
        item = read_line(line)
        if isinstance(item, BadLine):
            _take_bad(summary, item)
            continue
        summary.lines += 1
        if isinstance(item, UnknownEvent):
            summary.unknown[item.event] += 1
            continue
        if b"NaN" in line.data or b"Infinity" in line.data:
            summary.bare_tokens += _has_bare_token(line.data)
        _take_event(summary, item)


def _has_bare_token(data: bytes) -> bool:
    try:
        msgspec.json.decode(data)
    except msgspec.DecodeError:
        return True
    return False


def _take_bad(summary: RunSummary, bad: BadLine) -> None:
    summary.lines += 1
    summary.issues_total += 1
    if len(summary.issues) < MAX_ISSUES:
        summary.issues.append(bad)


def _run(summary: RunSummary, run_id: str) -> RunSeries:
    run = summary.runs.get(run_id)
    if run is None:
        run = summary.runs[run_id] = RunSeries(run_id)
    return run


def _take_rows(summary: RunSummary, events: list[Event]) -> bool:
    """Take a block that is nothing but plain train rows of one run, column by column; False if it is not."""
    if any(type(event) is not TrainStep for event in events):
        return False
    rows: list[TrainStep] = events  # type: ignore[assignment]  # narrowed on the line above
    ids = {row.run_id for row in rows}
    try:
        steps = array("q", [row.step for row in rows])  # type: ignore[misc]  # None raises, below
        losses = array("d", [row.loss for row in rows])  # type: ignore[misc]
        rates = array("d", [row.lr for row in rows])  # type: ignore[misc]
        norms = array("d", [row.grad_norm for row in rows])  # type: ignore[misc]
    except TypeError:
        return False
    if len(ids) != 1:
        return False
    run = _run(summary, ids.pop())
    run.steps += steps
    run.losses += losses
    run.rates += rates
    run.grad_norms += norms
    run.sessions.update({row.session for row in rows if row.session})
    run.last_step = max(steps[-1], run.last_step or 0)
    _epoch(run, rows[-1])
    _clock(run, rows[0])
    _clock(run, rows[-1])
    summary.counts["train_step"] += len(rows)
    return True


def _take_event(summary: RunSummary, event: Event) -> None:
    summary.counts[str(event.__struct_config__.tag)] += 1
    run = _run(summary, event.run_id)
    _clock(run, event)
    if event.session:
        run.sessions.add(event.session)
    if event.step is not None and not isinstance(event, RunStart):
        run.last_step = max(event.step, run.last_step or 0)
    match event:
        case TrainStep():
            _take_row(run, event)
        case Eval():
            run.evals.append(event)
        case RunStart():
            _take_start(summary, run, event)
        case Metrics():
            run.latest_metrics[event.kind] = event
        case Alert():
            run.alerts.append(event)
        case Recommendation():
            run.recommendations.extend(event.recommendations)
        case RunEnd():
            run.end = event


def _epoch(run: RunSeries, row: TrainStep) -> None:
    if isinstance(row.epoch, (int, float)):
        run.last_epoch = row.epoch


def _take_row(run: RunSeries, row: TrainStep) -> None:
    _epoch(run, row)
    if row.loss is None or row.step is None:
        return
    run.steps.append(row.step)
    run.losses.append(as_float(row.loss))
    rate = row.lr[0] if isinstance(row.lr, list) and row.lr else row.lr
    run.rates.append(_ABSENT if rate is None or isinstance(rate, list) else as_float(rate))
    run.grad_norms.append(_ABSENT if row.grad_norm is None else as_float(row.grad_norm))


def _take_start(summary: RunSummary, run: RunSeries, start: RunStart) -> None:
    run.config = start.config
    run.meta = start.meta
    run.end = None
    if start.resumed_from_step is not None:
        run.resumed_from.append(start.resumed_from_step)
        _supersede(run, start.resumed_from_step)
    summary.runs[run.run_id] = summary.runs.pop(run.run_id)  # begun last, shown first


def _supersede(run: RunSeries, step: int) -> None:
    """Drop what was recorded beyond the step the run went back to: counted, no longer shown."""
    keep = [i for i, s in enumerate(run.steps) if s <= step]
    evals = [e for e in run.evals if e.step is None or e.step <= step]
    run.superseded += len(run.steps) - len(keep) + len(run.evals) - len(evals)
    run.evals = evals
    run.steps = array("q", (run.steps[i] for i in keep))
    run.losses = array("d", (run.losses[i] for i in keep))
    run.rates = array("d", (run.rates[i] for i in keep))
    run.grad_norms = array("d", (run.grad_norms[i] for i in keep))
    run.last_step = max(run.steps, default=step)


def _clock(run: RunSeries, event: Event) -> None:
    ts: float | NonFinite | None = event.ts
    if not isinstance(ts, (int, float)):
        return
    run.first_ts = ts if run.first_ts is None else min(run.first_ts, ts)
    run.last_ts = ts if run.last_ts is None else max(run.last_ts, ts)
