"""Turn a source's run into events: rows in order, with the source's own steps and clock.

Copies are dropped. Resumes, restarts and several writers are told apart and noted. A log without sessions has only
steps to go by. A step that was logged before means a resume, or a new run if it is the first step. Many jumps back with
few rows between them mean several writers. Such decisions are guesses, and the notes say so.

The rows from one start of the training program to the next become a session with a `run_start` of its own. The run
closes with a `run_end`, whose status is what the source shows of the end, `unknown` if it shows nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import sub
from typing import Any, Final, NamedTuple, Self

import msgspec

from gradience.configs.settings import overlay, with_ratio
from gradience.errors import few
from gradience.importers.files import LoggedRow, SourceRun, count_of
from gradience.importers.pace import paces_of
from gradience.importers.trainer_state import shown_in_rows
from gradience.schema import MAX_INT, SCHEMA_ID, Json, Real, Status, as_float, real
from gradience.schema.events import (
    ConfigSnapshot,
    Eval,
    EvalMetrics,
    Event,
    Metrics,
    OptimizerSnapshot,
    RunEnd,
    RunStart,
    Throughput,
    TrainingSnapshot,
    TrainStep,
)
from gradience.schema.flat import unchecked
from gradience.schema.values import described, number_of
from gradience.telemetry.rows import eval_columns, split_row, train_columns
from gradience.telemetry.series import rate_of

_FEW: Final = 3  # mean rows between jumps back; fewer mean several writers in one log
_LOST: Final = 3  # strides between two rows of one writer at most, because rows may be lost
_MOST: Final = 8  # writers told apart at most
_ALIKE: Final = 0.005  # two processes of a public run are .0004 apart in the median, as fractions of the loss
_NOTHING: Final = 1e-12  # two losses of 0 are alike
_SHOWN: Final = 5  # places named in a note

_COLUMNS: Final = ("loss", "grad_norm", "epoch")  # a note says where they hold no number

_LEFT_OUT: Final = 1.5  # steps that may lack at the end of the last epoch: a partial batch
_EPOCH_ROUNDED: Final = 0.005  # old Trainers round the epoch to two decimals
_ROUNDED: Final = 1e-6  # an epoch so near to two decimals is a rounded one
_ROUNDING: Final = 1000  # one in so many planned steps may lack: a partial batch, or a state not saved


class Segment(NamedTuple):
    """The rows between two starts of the training program."""

    rows: list[LoggedRow]
    resumed_from: int | None = None


@dataclass(slots=True)
class _Walk:
    """One pass over the rows that looks for steps logged before."""

    runs: list[list[Segment]] = field(default_factory=lambda: [[Segment([])]])
    seen: set[int] = field(default_factory=set)
    last: int = -1
    first: int = -1
    resumes: list[tuple[int, int, int]] = field(default_factory=list)  # place, from step, to step
    restarts: list[int] = field(default_factory=list)
    swapped: list[int] = field(default_factory=list)

    @classmethod
    def over(cls, rows: Iterable[LoggedRow]) -> Self:
        """The pass over these rows."""
        walk = cls()
        for row in rows:
            walk.take(row)
        return walk

    def take(self, row: LoggedRow) -> None:
        """Add a row, after a new start if its step was logged before."""
        step = row.step
        if step is not None and _is_train(row):
            if step <= self.last and step in self.seen:
                self._begin(row.place, step)
            elif step < self.last:
                self.swapped.append(row.place)
            self.first = step if self.first < 0 else min(self.first, step)
            self.last = max(step, self.last)
            self.seen.add(step)
        self.runs[-1][-1].rows.append(row)

    def _begin(self, place: int, step: int) -> None:
        if step <= self.first:
            self.restarts.append(place)
            self.runs.append([Segment([])])
            self.seen, self.first = set(), -1
        else:
            kept = {s for s in self.seen if s < step}
            self.resumes.append((place, self.last, max(kept)))
            self.runs[-1].append(Segment([], max(kept)))
            self.seen = kept
        self.last = step

    @property
    def jumps(self) -> int:
        return len(self.resumes) + len(self.restarts) + len(self.swapped)


def arrange(raw: SourceRun) -> list[list[Segment]]:
    """Return the runs of a log, each as the segments between its starts; the run to show is last.

    Findings and decisions are added to the source's notes.
    """
    rows = list(_without_copies(raw))
    walk = _Walk.over(rows)
    trained = sum(map(_is_train, rows))
    if walk.jumps >= _FEW and trained < _FEW * (walk.jumps + 1):
        if (again := _written_twice(raw, rows)) is None:
            return _disentangle(raw, rows)
        walk = _Walk.over(row for row in rows if row.place not in again)
    _note_jumps(raw, walk)
    return [[_sorted(s) for s in run] for run in walk.runs]


def _is_train(row: LoggedRow) -> bool:
    return "loss" in row.names


def _without_copies(raw: SourceRun) -> Iterator[LoggedRow]:
    marks: set[int] = set()
    copies: list[int] = []
    for row in raw.rows:
        # A hash of 8 bytes for each row, since a log may have a million.
        mark = hash((row.step, msgspec.json.encode(row.values, order="sorted")))
        if mark in marks:
            copies.append(row.place)
        else:
            marks.add(mark)
            yield row
    if copies:
        n = f"{len(copies)} rows are copies" if len(copies) > 1 else "1 row is a copy"
        raw.notes.append(f"{n} of an earlier one, written once ({_places(raw.unit, copies)})")


def _written_twice(raw: SourceRun, rows: list[LoggedRow]) -> set[int] | None:
    """The places of rows that another process of one run wrote, if all rows of a step that came again are of one.

    Their rate and epoch are the same, and their losses nearly so.
    """
    first: dict[int, LoggedRow] = {}
    again: list[int] = []
    apart: list[float] = []
    for row in rows:
        if row.step is None or not _is_train(row) or (other := first.setdefault(row.step, row)) is row:
            continue
        (plan, loss), (own, own_loss) = _plan_of(other), _plan_of(row)
        if None in plan or plan != own:
            return None
        again.append(row.place)
        apart.append(abs(own_loss - loss) / max(abs(loss), abs(own_loss), _NOTHING))
    if not apart or not sorted(apart)[len(apart) // 2] <= _ALIKE:
        return None
    raw.notes.append(
        f"{len(again)} rows are of steps that another process of this run wrote, too, with nearly the same loss: left "
        f"out ({_places(raw.unit, again)})"
    )
    return set(again)


def _plan_of(row: LoggedRow) -> tuple[tuple[Json, Json], float]:
    """The learning rate and epoch of a row, and its loss; NaN if it is no number."""
    known, _ = train_columns(split_row(row.values).train)
    loss = number_of(known.get("loss"))
    return (known.get("lr"), known.get("epoch")), math.nan if loss is None else as_float(loss)


def _note_jumps(raw: SourceRun, walk: _Walk) -> None:
    if walk.swapped:
        n = f"{len(walk.swapped)} rows are" if len(walk.swapped) > 1 else "1 row is"
        raw.notes.append(f"{n} out of order, put in the order of steps ({_places(raw.unit, walk.swapped)})")
    for place, last, kept in walk.resumes[:_SHOWN]:
        raw.notes.append(
            f"steps go back from {last} to {kept} at {raw.unit} {place}: taken for a resume; replayed rows superseded"
        )
    if len(walk.resumes) > _SHOWN:
        raw.notes.append(f"... and {len(walk.resumes) - _SHOWN} more such resumes")
    if walk.restarts:
        raw.notes.append(
            f"steps start over ({_places(raw.unit, walk.restarts)}): {len(walk.runs)} runs in one log, the last shown"
        )


def _places(unit: str, places: list[int]) -> str:
    return f"{unit}{'s' if len(places) > 1 else ''} {few(places, _SHOWN)}"


def _sorted(segment: Segment) -> Segment:
    """Return the segment sorted by step; a row without a step stays behind the row that it followed."""
    keyed: list[tuple[int, LoggedRow]] = []
    last = -1
    for row in segment.rows:
        last = last if row.step is None else row.step
        keyed.append((last, row))
    keyed.sort(key=lambda pair: pair[0])
    return segment._replace(rows=[row for _, row in keyed])


def _disentangle(raw: SourceRun, rows: list[LoggedRow]) -> list[list[Segment]]:
    """Return one run per writer: each row goes to the writer whose next step it most likely is."""
    stride = _stride(rows)
    streams: list[list[LoggedRow]] = []  # of each writer, the one that wrote last at the end
    for row in rows:
        place = _writer_of(row, [_last_of(stream) for stream in streams], stride)
        stream = [] if place is None else streams.pop(place)
        stream.append(row)
        streams.append(stream)
    raw.notes.append(
        f"{len(streams)} writers at once in this log, told apart by their steps (a guess): "
        "each is a run of its own, the one with most rows is shown"
    )
    return [[_sorted(Segment(stream))] for stream in sorted(streams, key=len)]


def _last_of(stream: list[LoggedRow]) -> int:
    return next((row.step for row in reversed(stream) if row.step is not None and _is_train(row)), -1)


def _stride(rows: list[LoggedRow]) -> int:
    """Return the most frequent distance between successive steps."""
    steps = sorted({row.step for row in rows if row.step is not None and _is_train(row)})
    gaps = Counter(map(sub, steps[1:], steps))
    return gaps.most_common(1)[0][0] if gaps else 1


def _writer_of(row: LoggedRow, last: Sequence[int], stride: int) -> int | None:
    """The place of the writer of a row, by the last steps of all; None for a new one."""
    step, newest_first = row.step, range(len(last) - 1, -1, -1)
    if step is None or not _is_train(row):
        # An evaluation has the step of the training row that it follows.
        return next((at for at in newest_first if last[at] == step), len(last) - 1 if last else None)
    near = [at for at in range(len(last)) if 0 < step - last[at] <= _LOST * stride]
    if not near and len(last) >= _MOST:
        near = [at for at in range(len(last)) if last[at] < step]
    return min(near, key=lambda at: abs(step - last[at] - stride), default=None)


@dataclass(slots=True)
class _EventBuilder:
    """Makes the events of one run, with seq counted per session."""

    run_id: str
    percent: bool = False  # accuracies are in per cent
    session: str = ""
    seq: int = 0
    odd: list[tuple[str, int]] = field(default_factory=list)  # known columns without a number, and their places

    def begin(self, session: str) -> None:
        self.session, self.seq = session, 0

    def head(self, step: int | None, ts: Real | None) -> dict[str, Any]:
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
        """Yield the events of one row: a training row, evaluations, the summary."""
        parts = split_row(row.values)
        if parts.train:
            known, extras = train_columns(parts.train)
            self.odd += [(name, row.place) for name in _COLUMNS if f"{name}_" in extras]
            yield unchecked(TrainStep, **self.head(row.step, row.ts), **known, extras=extras)
        for split, measured in parts.evals.items():
            known, extras = eval_columns(measured)
            if self.percent and "accuracy" in known:
                known["accuracy"] = real(as_float(known["accuracy"]) / 100.0)
            metrics = unchecked(EvalMetrics, **known, extras=extras)
            yield unchecked(Eval, **self.head(row.step, row.ts), split=str(described(split)), metrics=metrics)
        if parts.summary:
            values = {str(described(name)): described(value) for name, value in parts.summary.items()}
            yield unchecked(Metrics, **self.head(row.step, row.ts), kind="train_summary", metrics=values)


class RunEvents:
    """The events of a run from run_start to run_end, made anew from the rows at each iteration.

    Making this object adds oddities of the source to the source's notes.

    Args:
        raw: the source of the rows.
        segments: the rows, by starts of the program.
        run_id: the run's id.
        session: prefix of the sessions' ids.
        meta: provenance, for run_start.
    """

    def __init__(
        self, raw: SourceRun, segments: list[Segment], *, run_id: str, session: str, meta: Mapping[str, Json]
    ) -> None:
        self._segments, self._run_id, self._session, self._meta = segments, run_id, session, meta
        self._percent = any(_in_percent(row) for segment in segments for row in segment.rows)
        if self._percent:
            raw.notes.append("accuracies above 1 were taken for per cent")
        raw.planned = raw.planned or _steps_of_epochs(raw)
        self._config = _config(raw, segments)
        builder = self._builder()
        tally = EventTally()
        for event in self._rows(builder):
            tally.take(event)
        if builder.odd:
            places = [f"{name} ({raw.unit} {place})" for name, place in builder.odd]
            raw.notes.append(f"no numbers, kept as they are: {few(places, _SHOWN)}")
        self._best = (
            Metrics(**builder.head(tally.last_step, tally.ts), kind="selection", metrics=raw.best) if raw.best else None
        )
        self.end = _end(builder, raw, tally)
        tally.counts.update(str(event.__struct_config__.tag) for event in self._last())
        self.tally = tally

    def __iter__(self) -> Iterator[Event]:
        """Yield the events."""
        yield from self._rows(self._builder())
        yield from self._last()

    def _last(self) -> Iterator[Event]:
        """Yield what the source says of the run as a whole: the best evaluation that it chose by, and the end."""
        if self._best is not None:
            yield self._best
        yield self.end

    def _builder(self) -> _EventBuilder:
        return _EventBuilder(self._run_id, percent=self._percent)

    def _rows(self, builder: _EventBuilder) -> Iterator[Event]:
        for number, segment in enumerate(self._segments):
            builder.begin(f"{self._session}-{number}" if number else self._session)
            ts = next((row.ts for row in segment.rows if row.ts is not None), None)
            resumed, meta = segment.resumed_from, dict(self._meta)
            yield RunStart(**builder.head(resumed, ts), config=self._config, meta=meta, resumed_from_step=resumed)
            paces = dict(paces_of(segment.rows, resumed))
            for place, row in enumerate(segment.rows):
                yield from builder.row(row)
                if place in paces:
                    yield Throughput(**builder.head(row.step, row.ts), **paces[place])


@dataclass(slots=True)
class EventTally:
    """Counts of a run's events."""

    counts: Counter[str] = field(default_factory=Counter)  # by name
    first_step: int | None = None  # over all events but run_start
    last_step: int | None = None
    trained: int = 0  # the last step with a training row
    summary: float = -1.0  # the last step of a summary of training; infinite if it has no step
    ts: Real | None = None  # the last clock reading
    epoch: float = 0.0  # the last epoch logged with a training row, and its step
    epoch_step: int = 0

    def made_epochs(self, planned: Real | None) -> bool:
        """Whether the planned passes over the data were made, but for the step that a trainer may leave out."""
        if planned is None or not self.epoch_step:
            return False
        a_step = self.epoch / self.epoch_step
        return as_float(planned) - self.epoch < _LEFT_OUT * a_step + _EPOCH_ROUNDED

    def take(self, event: Event) -> None:
        """Count an event."""
        self.counts[str(event.__struct_config__.tag)] += 1
        self.ts = self.ts if event.ts is None else event.ts
        step = event.step
        if isinstance(event, Metrics) and event.kind == "train_summary":
            self.summary = max(math.inf if step is None else step, self.summary)
        if step is None or isinstance(event, RunStart):
            return
        self.first_step = step if self.first_step is None else min(step, self.first_step)
        self.last_step = step if self.last_step is None else max(step, self.last_step)
        if isinstance(event, TrainStep):
            self.trained = max(step, self.trained)
            if event.epoch is not None and math.isfinite(as_float(event.epoch)):
                self.epoch, self.epoch_step = as_float(event.epoch), step


def _in_percent(row: LoggedRow) -> bool:
    """Whether the row has an accuracy over 1, so in per cent. One such value decides for the run."""
    numbers = (number_of(value) for key, value in row.values.items() if key.endswith(("accuracy", "_acc")))
    return any(isinstance(number, float) and 1.0 < number <= 100.0 for number in numbers)  # noqa: PLR2004  # per cent


def _end(builder: _EventBuilder, raw: SourceRun, tally: EventTally) -> RunEnd:
    reached = max((step for step in (tally.last_step, raw.reached) if step is not None), default=None)
    status, reason = _status(raw, tally, reached)
    silence = _silence(raw, tally, reached)
    return RunEnd(
        **builder.head(reached, tally.ts), status=status, reason=f"{reason}; {silence}" if silence else reason
    )


def _status(raw: SourceRun, tally: EventTally, reached: int | None) -> tuple[Status, str]:
    status, reason = raw.ending or ("unknown", "")
    # A summary with training rows behind it is of an earlier start: the run was resumed.
    if tally.summary >= tally.trained:
        after = f"; after it: {reason}" if status not in {"ok", "unknown"} else ""
        return "ok", f"the source has the summary of a finished run{after}"
    if status not in {"ok", "unknown"}:
        return status, reason
    planned = raw.planned or raw.layer.config.training.planned_steps
    done = _finished(raw, tally, reached, planned)
    if done or planned is None:
        # A program may end well that made no step
        well = not done and status == "ok" and tally.trained > 0
        return "ok" if done or well else "unknown", done or reason or "the source does not say how training ended"
    before = f"the source ends before its {planned} planned steps"
    return "unknown", f"{reason}; {before}" if reason else before


def _finished(raw: SourceRun, tally: EventTally, reached: int | None, planned: int | None) -> str:
    """By what the source shows that training was finished; "" if it does not."""
    if raw.finished:
        return "the source has the summary of a finished run"
    if planned is None:
        return "the planned epochs were made" if tally.made_epochs(raw.layer.config.training.epochs) else ""
    made = reached is not None and reached >= planned - planned // _ROUNDING
    return "the planned steps were made" if made else ""


def _silence(raw: SourceRun, tally: EventTally, reached: int | None) -> str:
    """Why no training row was logged, as far as the source tells; "" if there is one."""
    if tally.counts["train_step"]:
        return ""
    silent, training = "no training row was logged", raw.layer.config.training
    strategy, every = training.extras.get("logging_strategy"), as_float(training.logging_steps or 0.0)
    if strategy in {"no", "epoch"}:
        return f"{silent}: logging_strategy is {strategy}"
    if not 1.0 <= every <= MAX_INT:
        return silent
    if reached is None:
        return f"{silent} (logging_steps is {every:.0f})"
    steps = "1 step was" if reached == 1 else f"{reached} steps were"
    return f"{silent}: logging_steps is {every:.0f}, and {steps} made" if reached < every else silent


def _config(raw: SourceRun, segments: list[Segment]) -> ConfigSnapshot:
    """Return the config of the source's files, completed from its rows: planned steps, peak learning rate."""
    config = raw.layer.config
    plan = TrainingSnapshot(max_steps=raw.planned)
    shown = ConfigSnapshot(training=plan, optimizer=_peak(row for s in segments for row in s.rows))
    if config.optimizer.lr is not None:
        shown = msgspec.structs.replace(shown, optimizer=OptimizerSnapshot())
    shown = overlay(shown, shown_in_rows(raw, config))
    return msgspec.structs.replace(overlay(shown, config), lora=with_ratio(config.lora))


def _steps_of_epochs(raw: SourceRun) -> int | None:
    """The steps of the planned epochs, by the last row; None if they are stated, or the row's epoch is rounded.

    A trainer may leave out the partial step at the end of an epoch: then the last row's step is the last of all.
    """
    training = raw.layer.config.training
    row = next((row for row in reversed(raw.rows) if row.step and "epoch" in row.values), None)
    if training.planned_steps or training.epochs is None or row is None or row.step is None:
        return None
    epoch, epochs = as_float(number_of(row.values["epoch"]) or 0.0), as_float(training.epochs)
    steps = row.step * epochs / epoch if epoch > 0.0 else math.nan
    if not math.isfinite(steps) or (not epoch.is_integer() and math.isclose(epoch, round(epoch, 2), abs_tol=_ROUNDED)):
        return None
    return row.step if 0 < steps - row.step <= epochs else count_of(round(steps))


def _peak(rows: Iterable[LoggedRow]) -> OptimizerSnapshot:
    rates = (rate_of(row.values.get("learning_rate", row.values.get("lr"))) for row in rows)
    highest = max((rate for rate in rates if math.isfinite(rate)), default=0.0)
    if highest <= 0.0:
        return OptimizerSnapshot()
    return OptimizerSnapshot(lr=highest, extras={"lr_from": "the largest learning rate logged"})
