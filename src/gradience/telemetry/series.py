"""The log of one run as columns: compact arrays for training rows, whole events for the few others.

A resume supersedes what was recorded beyond the step it went back to. Superseded rows and evaluations are counted but
no longer shown. How the log itself was written (sessions, gaps, copies) is kept separately, as a `LogRecord`.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence, Set as AbstractSet
from dataclasses import dataclass, field
from itertools import compress, islice
from math import isfinite
from operator import attrgetter, lt
from types import NoneType
from typing import Final

from gradience.schema import Json, Real, as_float
from gradience.schema.events import (
    Alert,
    ConfigSnapshot,
    Eval,
    Event,
    Metrics,
    Recommendation,
    RecommendationItem,
    RunEnd,
    RunStart,
    StepDigests,
    Throughput,
    TrainStep,
    UnknownEvent,
    Wiring,
)
from gradience.schema.values import number_of
from gradience.telemetry.codec import PlainRow

_ABSENT = float("nan")
SPECTRAL: Final = "spectral"
"""The kind of `metrics` events that the callback's `spectral_every` writes, and the prefix of their columns."""
PROBED: Final = ("update_norm", "stable_rank_mean")
FIRST_FED: Final = 64
"""Steps of a session whose batches' digests are kept for good."""
_NEWEST_FED: Final = 4096


@dataclass(slots=True)
class Column:
    """A further value of training rows: two parallel arrays, of steps and of the finite numbers logged there."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def extend(self, steps: list[int], values: list[float | None]) -> None:
        """Add one value per step, leaving out None."""
        if None in values:
            steps = [step for step, value in zip(steps, values, strict=True) if value is not None]
        self.steps.fromlist(steps)
        self.values.fromlist([value for value in values if value is not None])

    def cut(self, step: int) -> None:
        """Drop the values beyond a step."""
        keep = [s <= step for s in self.steps]
        self.values = array("d", compress(self.values, keep))
        self.steps = array("q", compress(self.steps, keep))


@dataclass(slots=True)
class LogRecord:
    """How the log of a run was written."""

    sessions: set[str] = field(default_factory=set)
    resumed_from: list[int] = field(default_factory=list)
    replaced: list[tuple[int, float]] = field(default_factory=list)  # step and loss of rows that a resume superseded
    duplicates: int = 0  # rows that repeat the previous row's step, and lines that repeat a seq
    out_of_order: int = 0  # rows with a lower step than the row before
    missing: int = 0  # lines lost, by the gaps in seq
    interleaved: int = 0  # returns to an earlier session, as if two processes wrote one log


@dataclass(slots=True)
class RunSeries:
    """The log of one run. The four arrays are parallel: one entry per row that has a loss and a step.

    Attributes:
        kept: names of the further values of rows to keep; `rewards/` stands for all that begin so.
        columns: the values of those names that were logged.
    """

    run_id: str
    kept: frozenset[str] = frozenset()
    config: ConfigSnapshot | None = None
    meta: dict[str, object] = field(default_factory=dict)
    steps: array[int] = field(default_factory=lambda: array("q"))
    losses: array[float] = field(default_factory=lambda: array("d"))
    rates: array[float] = field(default_factory=lambda: array("d"))
    grad_norms: array[float] = field(default_factory=lambda: array("d"))
    lost_norms: set[int] = field(default_factory=set)  # steps whose gradient norm was recorded as NaN, not missing
    columns: dict[str, Column] = field(default_factory=dict)
    evals: list[Eval] = field(default_factory=list)
    latest_metrics: dict[str, Metrics] = field(default_factory=dict)
    wirings: list[Wiring] = field(default_factory=list)  # what was trained, in the order written
    fed: dict[int, str] = field(default_factory=dict)  # digests of batches by step: the first, and the newest
    fed_before: dict[int, str] = field(default_factory=dict)  # of the sessions before the last resume
    paces: list[Throughput] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    recommendations: list[RecommendationItem] = field(default_factory=list)
    end: RunEnd | None = None
    record: LogRecord = field(default_factory=LogRecord)
    superseded: int = 0  # rows and evaluations
    first_ts: float | None = None
    last_ts: float | None = None
    last_step: int | None = None
    last_epoch: float | None = None
    _next_seq: dict[str, int] = field(default_factory=dict, repr=False)
    _session: str | None = field(default=None, repr=False)
    _families: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Look for the families among the names once, not for every row."""
        self._families = tuple(name for name in self.kept if name.endswith("/"))

    def latest_eval(self, split: str) -> Eval | None:
        """Return the newest evaluation of the split, or None."""
        return next((e for e in reversed(self.evals) if e.split == split), None)

    def losses_of(self, split: str | None) -> dict[int, float]:
        """The finite losses of a split's evaluations, by rising step; the later one at a shared step."""
        return dict(sorted(self.loss_curves().get(split, {}).items()))

    def loss_curves(self) -> dict[str | None, dict[int, float]]:
        """The finite losses of the evaluations by split and step; the later one at a shared step."""
        curves: dict[str | None, dict[int, float]] = {}
        for event in self.evals:
            if event.step is not None and event.metrics.loss is not None:
                curves.setdefault(event.split, {})[event.step] = as_float(event.metrics.loss)
        return {
            split: {step: loss for step, loss in curve.items() if isfinite(loss)} for split, curve in curves.items()
        }

    def add(self, event: Event) -> None:
        """Add one event."""
        self._take_clock(event.ts)
        self._take_seq(event.session, event.seq)
        # The start of a resume, a look and the digests have a step too, but no value was measured there.
        if event.step is not None and not isinstance(event, RunStart | Wiring | StepDigests):
            self.last_step = max(event.step, self.last_step or 0)
        match event:
            case TrainStep():
                self._take_row(event)
            case Eval():
                self.evals.append(event)
            case RunStart():
                self._take_start(event)
            case Metrics():
                self._take_metrics(event)
            case Wiring() | StepDigests() | Throughput():
                self.look(event)
            case Alert():
                self.alerts.append(event)
            case Recommendation():
                self.recommendations.extend(event.recommendations)
            case RunEnd():
                self.end = event

    def take_unknown(self, event: UnknownEvent) -> None:
        """Count an event of an unknown name among the lines of its session."""
        self._take_clock(event.ts)
        self._take_seq(event.session, event.seq)

    def take_rows(self, rows: Sequence[PlainRow]) -> bool:
        """Add rows of one class as columns; add nothing and return False if one is out of order."""
        steps = [row.step for row in rows]
        # `_take_seqs` is asked last, because it counts the rows as taken.
        if not (_rise(steps) and (not self.steps or self.steps[-1] < steps[0]) and self._take_seqs(rows)):
            return False
        self.steps.fromlist(steps)
        self.losses.fromlist([row.loss for row in rows])
        _extend(self.rates, [row.lr for row in rows])
        _extend(self.grad_norms, [row.grad_norm for row in rows])
        further = rows[0].further
        for name in self._kept_of(further.keys()):
            self._take_values(name, steps, list(map(attrgetter(further[name]), rows)))
        self.last_step = max(steps[-1], self.last_step or 0)
        if clocks := [row.ts for row in rows if row.ts is not None]:
            self._take_clock(min(clocks))
            self._take_clock(max(clocks))
        if epochs := [row.epoch for row in rows if row.epoch is not None]:
            self._take_epoch(epochs[-1])
        return True

    def _kept_of(self, names: AbstractSet[str]) -> set[str]:
        return {*(self.kept & names), *(name for name in names if name.startswith(self._families))}

    def _column(self, name: str) -> Column:
        return self.columns.setdefault(name, Column())

    def _take_seqs(self, rows: Sequence[PlainRow]) -> bool:
        session = rows[0].session  # the class of the rows has but one
        if session is None or session != self._session:
            return session is self._session
        expected = self._next_seq.get(session)
        if expected is None or list(map(attrgetter("seq"), rows)) != list(range(expected, expected + len(rows))):
            return False
        self._next_seq[session] = expected + len(rows)
        return True

    def _take_seq(self, session: str | None, seq: int | None) -> None:
        if session is None:
            return
        if session != self._session:
            self.record.interleaved += session in self.record.sessions
            self.record.sessions.add(session)
            self._session = session
        if seq is None:
            return
        expected = self._next_seq.get(session, seq)
        self.record.missing += max(seq - expected, 0)
        self.record.duplicates += seq < expected
        self._next_seq[session] = max(seq + 1, expected)

    def _take_row(self, row: TrainStep) -> None:
        self._take_epoch(row.epoch)
        if row.step is None:
            return
        for name in self._kept_of(row.extras.keys()):
            self._take_value(name, row.step, row.extras[name])
        if row.loss is None:
            return
        if self.steps:
            self.record.duplicates += row.step == self.steps[-1]
            self.record.out_of_order += row.step < self.steps[-1]
        self.steps.append(row.step)
        self.losses.append(as_float(row.loss))
        self.rates.append(rate_of(row.lr))
        norm = _ABSENT if row.grad_norm is None else as_float(row.grad_norm)
        self.grad_norms.append(norm)
        if row.grad_norm is not None and norm != norm:  # noqa: PLR0124  # NaN alone differs from itself
            self.lost_norms.add(row.step)

    def _take_metrics(self, event: Metrics) -> None:
        """Add a block of numbers; those of a spectral probe, an audit of the adapter in training, also as columns."""
        self.latest_metrics[event.kind] = event
        if event.kind == SPECTRAL and event.step is not None:
            for name in PROBED:
                self._take_value(f"{SPECTRAL}/{name}", event.step, event.metrics.get(name))

    def look(self, event: Wiring | StepDigests | Throughput) -> None:
        """Add a look at what is trained, the digests of what was fed, or how fast the last steps went."""
        if isinstance(event, Wiring):
            self.wirings.append(event)
            return
        if isinstance(event, Throughput):
            self.paces.append(event)
            return
        fed = self.fed
        fed.update(enumerate(event.batches, event.first))
        while len(fed) > FIRST_FED + _NEWEST_FED:
            # A dict keeps the order of its keys: behind the first ones stands the oldest of the others.
            del fed[next(islice(fed, FIRST_FED, None))]

    def _take_values(self, name: str, steps: list[int], values: list[Json]) -> None:
        if {*map(type, values)} <= {float, NoneType} and values.count(None) < len(values):
            self._column(name).extend(steps, values)
            return
        for step, value in zip(steps, values, strict=True):
            self._take_value(name, step, value)

    def _take_value(self, name: str, step: int, value: Json) -> None:
        """Add a further value of a row. A value that is not a finite number creates the column but adds nothing."""
        if value is None:
            return
        column, number = self._column(name), number_of(value)
        if number is not None and isfinite(as_float(number)):
            column.extend([step], [as_float(number)])

    def _take_start(self, start: RunStart) -> None:
        self.config = start.config
        self.meta = start.meta
        # A run that goes on has not ended, whatever an earlier session wrote.
        self.end = None
        if start.resumed_from_step is not None:
            self.record.resumed_from.append(start.resumed_from_step)
            self.resume_from(start.resumed_from_step)

    def resume_from(self, step: int) -> None:
        """Remove rows and evaluations beyond the step that the run went back to, and count them."""
        self.fed_before, self.fed = {**self.fed_before, **self.fed}, {}
        keep = [s <= step for s in self.steps]
        evals = [e for e in self.evals if e.step is None or e.step <= step]
        self.superseded += keep.count(False) + len(self.evals) - len(evals)
        self.evals = evals
        self.latest_metrics = {k: m for k, m in self.latest_metrics.items() if m.step is None or m.step <= step}
        self.wirings = [w for w in self.wirings if w.step is None or w.step <= step]
        self.paces = [pace for pace in self.paces if pace.step is None or pace.step <= step]
        self.record.replaced += [(s, loss) for s, loss in zip(self.steps, self.losses, strict=True) if s > step]
        self.lost_norms = {s for s in self.lost_norms if s <= step}
        self.losses = array("d", compress(self.losses, keep))
        self.rates = array("d", compress(self.rates, keep))
        self.grad_norms = array("d", compress(self.grad_norms, keep))
        self.steps = array("q", compress(self.steps, keep))
        for column in self.columns.values():
            column.cut(step)
        self.last_step = max(self.steps, default=step)

    def _take_epoch(self, epoch: Real | None) -> None:
        if isinstance(epoch, (int, float)):
            self.last_epoch = epoch

    def _take_clock(self, ts: Real | None) -> None:
        if not isinstance(ts, (int, float)):
            return
        self.first_ts = ts if self.first_ts is None else min(self.first_ts, ts)
        self.last_ts = ts if self.last_ts is None else max(self.last_ts, ts)


def rate_of(rate: Json) -> float:
    """The learning rate; the largest of those of several parameter groups; NaN if none was logged.

    >>> rate_of(1e-3), rate_of([1e-5, 2e-4]), rate_of(None)
    (0.001, 0.0002, nan)
    """
    if type(rate) is float:
        return rate
    rates = [number_of(each) for each in (rate if isinstance(rate, list) else [rate])]
    return max((as_float(each) for each in rates if each is not None), default=_ABSENT)


def _extend(column: array[float], values: list[float | None]) -> None:
    """Append the values, with NaN for None."""
    try:
        # If a value is None, `fromlist` leaves the array as it was.
        column.fromlist(values)  # type: ignore[arg-type]  # None raises TypeError, handled below
    except TypeError:
        column.fromlist([_ABSENT if value is None else value for value in values])


def _rise(steps: list[int]) -> bool:
    """Whether each step is greater than the one before; False for no steps."""
    if len(steps) > 1 and (stride := steps[1] - steps[0]) > 0:
        # Most logs have one row every n steps: comparing two lists is faster than comparing neighbours.
        even = range(steps[0], steps[0] + stride * len(steps), stride)
        return steps == list(even) or all(map(lt, steps, islice(steps, 1, None)))
    return len(steps) == 1
