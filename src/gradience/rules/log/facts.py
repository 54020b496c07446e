"""The facts of one run that the rules on a log judge: rows, evaluations and events, without superseded rows.

A value that several rules use (curves, the trend of the loss, held-out losses) is computed once, on first use. The
functions at the end of the file are shared by several rules too.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, wraps
from itertools import islice
from operator import lt
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec

from gradience.configs.training import Kind, Objective, objective_by_names, objective_of
from gradience.rules import Description, Observe, Premise, Rule, Threshold, Unknown, cite, premise
from gradience.rules.log.statistics import FEW_POINTS, BlockedSeries, Trend, curve_of, median, moves, noise, trend_of
from gradience.schema import MAX_INT, Json, as_float, number_in
from gradience.schema.document import Evidence, Finding, RuleGroup
from gradience.schema.events import ConfigSnapshot, Eval
from gradience.schema.reports import BadLine, Cause, EvalPoint
from gradience.telemetry.series import PROBED, SPECTRAL, Column, RunSeries
from gradience.telemetry.signals import COMPONENTS, SIGNALS, Names

LOSS_GAP = Threshold("loss_gap", 1.5, "held-out over train perplexity, 0.41 nats", "50 logs: no change from 1.35 on")
EVAL_NOISE = Threshold("eval_noise", 3.0, "of the noise between evaluations", "arithmetic: noise has it once in 740")
UNFINISHED_FALL = Threshold("unfinished_fall", 0.01, "fraction of the loss, over the last quarter", "a judgement")
MOVED = Threshold("moved", 1e-3, "two-sided p that the gradient norm has no trend", "tuning seeds of real trainings")
JUDGEMENT: Final = "a judgement"
REAL_RUNS: Final = "tuning seeds of the real trainings of benchmarks/field.py"
DEFAULT_GAP: Final = LOSS_GAP.value
_SHOWS_A_CURVE: Final = 3  # evaluations of another split that outweigh a single one of the split shown
FEW_EVALS: Final = 5  # evaluations needed to estimate their noise: they give three second differences
_HELD_OUT: Final = ("test", "eval", "validation", "valid", "val", "dev")
_DERIVED: Final = "n_derived_from"
_DERIVATION: Final = "runtime * samples_per_second"
_FEW_EXAMPLES: Final = 200  # under it, a difference of a few points is chance, so the count is told
_CLASSES: Final = {  # number of classes of a data set, used if the log does not state it
    **dict.fromkeys(("sst2", "cola", "mrpc", "qqp", "qnli", "rte", "wnli", "imdb"), 2),
    "mnli": 3,
    "ag_news": 4,
}
_PARTS: Final = 5  # a column is cut into fifths; the first and the last are compared
START: Final = 3  # first rows that give the level at the start

PROBES: Final = tuple(f"{SPECTRAL}/{name}" for name in PROBED)  # spectra of the adapter in training (spectral_every)


class Signal(NamedTuple):
    """One logged column: its finite values, and the rising steps at which they were logged."""

    steps: Sequence[int]
    values: Sequence[float]


Signals: TypeAlias = Mapping[str, Signal]


def ends(signal: Signal, least: int = 1) -> tuple[float, float, int]:
    """Medians of the first and the last fifth of a column, and the number of rows in a fifth, `least` or more."""
    width = min(len(signal.values), max(least, len(signal.values) // _PARTS))
    return median(signal.values[:width]), median(signal.values[-width:]), width


def last_part(values: Sequence[float], parts: int, least: int = 1) -> Sequence[float]:
    """The last of `parts` equal parts of a series, with at least `least` values."""
    return values[-max(least, len(values) // parts) :]


class Logged(NamedTuple):
    """A quantity as it was logged."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]

    @property
    def start(self) -> float:
        """The level at the start: the median of the first three rows, or the first where these go one way.

        A learning rate that is much too high may take a run to its end within ten rows.
        """
        first = self.values[:START]
        return first[0] if list(first) in (sorted(first), sorted(first, reverse=True)) else median(first)

    @property
    def end(self) -> float:
        """The median of the last fifth of the rows, at least three."""
        return median(last_part(self.values, _PARTS, START))


class HeldOutCurve(NamedTuple):
    """The evaluations of one split in order of step, with finite losses over 0; the later one wins at a shared step."""

    split: str
    evals: Sequence[Eval]
    steps: Sequence[int]
    losses: Sequence[float]

    @property
    def best(self) -> int:
        """The index of the lowest loss."""
        return min(range(len(self.losses)), key=self.losses.__getitem__)

    @property
    def noise(self) -> float:
        """Standard deviation of the noise between evaluations; 0 if fewer than five, which are too few to show it."""
        return noise(self.losses, few=0) if len(self.losses) >= FEW_EVALS else 0.0

    def since(self, step: float) -> int:
        """The index of the last evaluation at or before a step, never that of the final evaluation."""
        return max(0, min(bisect_right(self.steps, step) - 1, len(self.steps) - 2))

    def still_falls(self, step: float) -> bool:
        """Whether the last loss is the best, and lower than the loss at `step` by more than `least_fall`."""
        at, last = self.losses[self.since(step)], self.losses[-1]
        return last <= min(self.losses) and 1.0 - last / at > self.least_fall(step)

    def least_fall(self, step: float) -> float:
        """The smallest fall since `step` that counts as one, as a fraction of the loss there."""
        return max(UNFINISHED_FALL.value, EVAL_NOISE.value * self.noise / self.losses[self.since(step)])


@dataclass(frozen=True)
class RunFacts:
    """One run as its log records it.

    Attributes:
        run: the run as it was logged.
        issues: the first lines of the log that are not events.
        issues_total: how many there are.
        gap_threshold: held-out over train perplexity from which the gap is a finding.
    """

    run: RunSeries
    issues: Sequence[BadLine] = ()
    issues_total: int = 0
    gap_threshold: float = DEFAULT_GAP

    @cached_property
    def series(self) -> RunSeries:
        """The run with its training rows by step; those of one step as they were written."""
        run = self.run
        if not run.record.out_of_order:
            return run
        order = sorted(range(len(run.steps)), key=run.steps.__getitem__)
        columns = (run.losses, run.grad_norms, run.rates)
        losses, norms, rates = (array("d", [column[row] for row in order]) for column in columns)
        steps = array("q", [run.steps[row] for row in order])
        return replace(run, steps=steps, losses=losses, grad_norms=norms, rates=rates)

    @cached_property
    def config(self) -> ConfigSnapshot:
        """The run's configuration; an empty one if the log has no run_start."""
        return self.run.config or ConfigSnapshot()

    @property
    def status(self) -> str:
        """The status of run_end, or `no_run_end`."""
        return self.run.end.status if self.run.end else "no_run_end"

    @property
    def status_reason(self) -> str | None:
        """Why the run ended with this status, such as the exception's name."""
        return self.run.end.reason if self.run.end else None

    @property
    def audit(self) -> Mapping[str, Json] | None:
        """The payload of the newest lora_audit."""
        return self._newest("lora_audit")

    @property
    def data(self) -> Mapping[str, Json] | None:
        """The payload of the newest `data` event: what the model was fed."""
        return self._newest("data")

    @property
    def chosen(self) -> Mapping[str, Json]:
        """The best value that the trainer chose by, and its step."""
        return self._newest("selection") or {}

    def _newest(self, kind: str) -> Mapping[str, Json] | None:
        event = self.run.latest_metrics.get(kind)
        return event.metrics if event else None

    @cached_property
    def num_labels(self) -> int | None:
        """The number of classes: as configured, else that of a data set known by its name."""
        config = self.config
        stated = config.num_labels or config.extras.get("num_labels")
        name = (config.dataset_name or "").lower().replace("-", "_").rsplit("/", 1)[-1]
        return stated if isinstance(stated, int) else _CLASSES.get(name)

    @cached_property
    def history(self) -> Sequence[Eval]:
        """All evaluations of the run's own model, in the order written."""
        return [event for event in self.run.evals if not self._is_foreign(event.step)]

    @cached_property
    def evals(self) -> Sequence[EvalPoint]:
        """The newest of each split, where that is of the run's own model; train first, then held-out splits."""
        return [point for point in latest_evals(self.run) if not self._is_foreign(point.step)]

    @cached_property
    def held_out(self) -> EvalPoint | None:
        """The evaluation that stands for held-out data."""
        return held_out_of(self.evals)

    def _is_foreign(self, step: int | None) -> bool:
        """Whether an evaluation was of another model, or of this one without its adapter: it tells nothing of the run.

        An evaluation that called the same as the one before has no event of its own.
        """
        looks = (at for at in self.run.wirings if (at.step or 0) <= (step or 0))
        evaluations = [at.evaluation for at in looks if at.evaluation is not None]
        return bool(evaluations) and (not evaluations[-1].called or evaluations[-1].adapted is False)

    @cached_property
    def logged(self) -> frozenset[str]:
        """The names of the further values kept from the training rows."""
        return frozenset(self.run.columns)

    @cached_property
    def signals(self) -> Signals:
        """The columns of rewards and the like, in the order of a report, then the reward's functions."""
        columns = self.run.columns
        parts = sorted(name for name in columns if name.startswith(COMPONENTS) and name not in SIGNALS)
        return {name: by_step(columns[name]) for name in (*SIGNALS, *parts) if name in columns and columns[name].steps}

    @cached_property
    def found(self) -> dict[str, object]:
        """Cache of the observations marked `once`."""
        return {}

    @cached_property
    def objective(self) -> Objective:
        """The run's training objective: as its config states it, else as the names of the logged values suggest."""
        # A loss that is evaluated is no policy's: then a column `reward` alone is one more value of somebody's log
        evaluated = any(event.metrics.loss is not None for event in self.history)
        ignored = frozenset({"reward"}) if evaluated else frozenset[str]()
        stated = objective_of(self.config, ignored)
        return stated if stated.stated else objective_by_names(self.logged - ignored) or stated

    @property
    def max_steps(self) -> int | None:
        """The planned number of steps."""
        return self.config.training.planned_steps

    @cached_property
    def loss(self) -> BlockedSeries:
        """The training loss where finite."""
        return curve_of(self.series.losses)

    @cached_property
    def norm(self) -> BlockedSeries:
        """The gradient norm where recorded and finite."""
        return curve_of(self.series.grad_norms)

    @cached_property
    def rate(self) -> BlockedSeries:
        """The learning rate where recorded and finite."""
        return curve_of(self.series.rates)

    @cached_property
    def peak_rate(self) -> float:
        """The highest learning rate; NaN where none was recorded."""
        return max(self.rate.values, default=math.nan)

    @cached_property
    def outline(self) -> BlockedSeries:
        """The training loss reduced to so few points that all pairs of points may be compared."""
        return self.loss.outline(FEW_POINTS)

    @cached_property
    def trend(self) -> Trend | None:
        """How the training loss falls; None if it has fewer than two rows or its median is not positive."""
        return trend_of(self.outline.points)

    @cached_property
    def moved(self) -> bool:
        """Whether the gradient norm has a trend. It has none while the weights stand still."""
        # The trend is looked for in logarithms, too
        points = [norm for norm in self.norm.outline(FEW_POINTS).points if norm > 0.0]
        return moves(points) <= MOVED.value

    @cached_property
    def evaluations(self) -> Sequence[Eval]:
        """The held-out evaluations, without those of weights that were restored at the end."""
        return [event for event in self.history if event.split != "train" and not self.is_restored(event)]

    def is_restored(self, event: Eval) -> bool:
        """Whether an evaluation measured a checkpoint restored at the end, and not the weights of its step."""
        # By identity, because the evaluation of restored weights may equal an earlier one
        return id(event) in self._restored

    @cached_property
    def _restored(self) -> frozenset[int]:
        """Evaluations that repeat a step with the loss of an earlier one, or with any if the best is loaded."""
        restored, first = set(), dict[tuple[str, int | None], float]()
        for event in self.history:
            at, loss = (event.split, event.step), loss_of(event)
            if at not in first:
                first[at] = loss
            elif first[at] != loss:
                earlier = loss > 0.0 and any(loss == other for key, other in first.items() if key[0] == at[0])
                if earlier or self.config.training.load_best_model_at_end:
                    restored.add(id(event))
        return frozenset(restored)

    @cached_property
    def curves(self) -> Sequence[HeldOutCurve]:
        """The loss curves of all held-out splits; the split that the report shows comes first."""
        named: dict[str, dict[int, Eval]] = {}
        for event in self.evaluations:
            of_split = named.setdefault(event.split, {})
            if event.step is not None and loss_of(event) > 0.0:
                of_split[event.step] = event
        shown = self.held_out.split if self.held_out else None
        return [_curve(split, named[split]) for split in sorted(named, key=lambda name: name != shown)]

    @property
    def held_out_curve(self) -> HeldOutCurve | None:
        """The loss curve of the held-out split to judge; None if the split that the report shows has no loss.

        It is the split that the report shows. If that split has only one loss and another has three or more, it is the
        split with most: a last `predict` on a test set must not hide the evaluations made during training.
        """
        with_losses = [curve for curve in self.curves if curve.losses]
        shown = self.held_out.split if self.held_out else None
        own = [curve for curve in with_losses if curve.split == shown]
        most = max(with_losses, key=lambda curve: len(curve.losses), default=None)
        if own and (len(own[0].losses) > 1 or most is None or len(most.losses) < _SHOWS_A_CURVE):
            return own[0]
        return most if own else None

    @property
    def evaluated(self) -> bool:
        """Whether anything was evaluated during the run or after it."""
        return bool(self.history or self.evals)

    @property
    def warming_up(self) -> bool:
        """Whether the learning rate was still rising at the end of the log."""
        rates = self.rate.points
        return len(rates) > 1 and rates[-1] == max(rates) and rates[-1] > max(rates[-2], rates[(len(rates) - 1) // 2])

    @property
    def in_mid_run(self) -> bool:
        """Whether the log ends before the planned steps, so more rows may follow."""
        return bool(self.max_steps and self.run.last_step and self.run.last_step < self.max_steps)

    def step(self, row: int) -> int:
        """The step of a row of the series."""
        return self.series.steps[row]

    def losses_until(self, step: int, count: int) -> Sequence[float]:
        """The last finite losses up to a step, at most `count`; the first loss if the step is before all rows."""
        end = bisect_left(self.loss.rows, bisect_right(self.series.steps, step))
        return self.loss.values[max(0, end - count) : max(1, end)]


_Found = TypeVar("_Found")


def once(observe: Callable[[RunFacts], _Found]) -> Callable[[RunFacts], _Found]:
    """Cache an observation that several rules ask for: it is computed once per `RunFacts`."""
    name = f"{observe.__module__}.{observe.__qualname__}"

    @wraps(observe)
    def kept(facts: RunFacts) -> _Found:
        if name not in facts.found:
            facts.found[name] = observe(facts)
        return facts.found[name]  # type: ignore[return-value]  # the line above stored it under this name

    return kept


Place: TypeAlias = Literal["broken", "meaning", "shape", "objective", "later", "log", "end"]
"""The part of the story to which a finding belongs, in this order."""

Topic: TypeAlias = Literal["learning", "improving", "held_out", "no_held_out", "accuracy", "reward", "ending"]
"""What the story says by itself, unless a finding has said it."""

Values: TypeAlias = Mapping[str, Json]
Phrase: TypeAlias = Callable[[Values], str | None]


@dataclass(frozen=True, kw_only=True)
class LogRule(Rule[RunFacts]):
    """A rule that `gradience monitor` applies to the log of a run.

    Attributes:
        place: where in the story a finding is told.
        phrase: a finding as a clause of the story; without one, its message up to the first colon is.
        as_info: whether the story tells a finding that is only info, too.
        look: whether a finding that is only info makes a run worth a look.
        covers: what the story then leaves out.
        cause: what is behind a finding, so far as advice differs.
        live: whether the rule is judged while training runs, too.
    """

    groups: tuple[RuleGroup, ...] = ("log",)
    place: Place = "later"
    phrase: Phrase | None = None
    as_info: bool = False
    look: bool = False
    covers: frozenset[Topic] | Callable[[Values], frozenset[Topic]] = frozenset()
    cause: Cause | Callable[[Values], Cause | None] | None = None
    live: bool = False

    def covered_by(self, finding: Finding) -> frozenset[Topic]:
        """What the story leaves out beside a finding of this rule."""
        return self.covers(finding.values) if callable(self.covers) else self.covers

    def cause_of(self, finding: Finding) -> Cause | None:
        """What is behind a finding of this rule."""
        return self.cause(finding.values) if callable(self.cause) else self.cause


def log_rule(rule: Description, observe: Observe[RunFacts], **more: Any) -> LogRule:
    """A rule of another family over the facts of a run: what the log holds is judged like a file."""
    # The description alone: what the rule needs and observes is of the facts of its own family
    described = {each.name: getattr(rule, each.name) for each in fields(Description)}
    return LogRule(**described, observe=observe, **more)


def shown(values: Values, key: str, spec: str = ".4g") -> str:
    """A value as text, a number by the format."""
    value = values.get(key)
    return format(value, spec) if isinstance(value, (int, float)) else str(value)


def _curve(split: str, events: Mapping[int, Eval]) -> HeldOutCurve:
    steps = sorted(events)
    evals = [events[step] for step in steps]
    return HeldOutCurve(split, evals, steps, [loss_of(e) for e in evals])


def loss_of(event: Eval) -> float:
    """The loss, or that of a logged perplexity; 0 if neither is there and finite, and `curves` leaves 0 out."""
    loss, ppl = event.metrics.loss, event.metrics.ppl
    if loss is None and ppl is not None and as_float(ppl) > 0.0:
        loss = math.log(as_float(ppl))
    value = as_float(loss) if loss is not None else 0.0
    return value if math.isfinite(value) else 0.0


def by_step(column: Column) -> Signal:
    """A column sorted by step; of a step that was logged again, the last value."""
    steps, values = column.steps, column.values
    if all(map(lt, steps, islice(steps, 1, None))):
        return Signal(steps, values)
    last = dict(zip(steps, values, strict=True))
    return Signal(sorted(last), [last[step] for step in sorted(last)])


def latest_evals(run: RunSeries) -> list[EvalPoint]:
    """The newest evaluation of every split, train first, then held-out splits, then others."""
    newest = {event.split: event for event in run.evals}
    order = {split: place for place, split in enumerate(("train", *_HELD_OUT))}
    splits = sorted(newest, key=lambda split: (order.get(split, len(order)), split))
    return [_with_count(EvalPoint(split=s, step=newest[s].step, metrics=newest[s].metrics)) for s in splits]


def _with_count(point: EvalPoint) -> EvalPoint:
    """The evaluation with its number of examples, computed from runtime and speed if the log lacks it."""
    metrics = point.metrics
    rate, runtime = (number_in(metrics.extras, key) for key in ("samples_per_second", "runtime"))
    if metrics.n is not None or rate is None or runtime is None or not 0.5 < rate * runtime < MAX_INT:  # noqa: PLR2004  # rounds to one example at least
        return point
    extras = {**metrics.extras, _DERIVED: _DERIVATION}
    counted = msgspec.structs.replace(metrics, n=round(rate * runtime), extras=extras)
    return msgspec.structs.replace(point, metrics=counted)


def derived_notes(evals: Sequence[EvalPoint]) -> list[str]:
    """A note on the numbers of examples that were computed from runtime and speed, if they are few."""
    few = [point for point in evals if _DERIVED in point.metrics.extras and (point.metrics.n or 0) < _FEW_EXAMPLES]
    counts = [f"{point.split} {point.metrics.n}" for point in few]
    return [f"examples per evaluation, derived as {_DERIVATION} (about): {', '.join(counts)}"] if counts else []


def held_out_of(evals: Sequence[EvalPoint]) -> EvalPoint | None:
    """The evaluation that stands for held-out data: the first that is not of the train split; or None."""
    return next((point for point in evals if point.split != "train"), None)


def seen(*says: str) -> tuple[Evidence, ...]:
    """Evidence for an observation: statements about what the log shows."""
    return tuple(cite("the log", each) for each in says)


@premise("the training loss is positive, so that ratios of it mean something")
def positive_loss(facts: RunFacts) -> str | None:
    """The reason why ratios of the training loss mean nothing."""
    if not facts.loss.values:
        return "no finite training loss was recorded"
    if median(facts.loss.points) <= 0.0:
        return "the loss is not positive: ratios of it mean nothing"
    return None


def find(facts: RunFacts, names: Names, least: float = 1) -> Logged | None:
    """The first of these columns that has at least so many values; None if none has."""
    for name in names:
        signal = facts.signals.get(name)
        if signal is not None and len(signal.values) >= least:
            return Logged(name, signal.steps, signal.values)
    return None


def logged(facts: RunFacts, names: Names, least: float) -> Logged:
    """The first of these columns that has at least so many values.

    Raises:
        Unknown: none has.
    """
    column = find(facts, names, least)
    if column is not None:
        return column
    rows = {name: len(facts.signals[name].values) for name in names if name in facts.signals}
    if rows:
        name = max(rows, key=rows.__getitem__)
        raise Unknown(f"{rows[name]} rows with {name}; it needs {least:g}")
    raise Unknown(f"no {names[0]} was logged")


def under(*kinds: Kind) -> Premise[RunFacts]:
    """The premise that the objective is one of these: what a rule is meant for."""
    says = f"the objective is {' or '.join(kinds)}"
    return Premise(says, lambda facts: None if facts.objective.kind in kinds else says)


def not_under(*kinds: Kind) -> Premise[RunFacts]:
    """The premise that the objective is none of these."""

    @premise(f"the objective is not {' or '.join(kinds)}")
    def reason(facts: RunFacts) -> str | None:
        kind, because, _ = facts.objective
        return f"does not fit the objective {kind} ({because})" if kind in kinds else None

    return reason
