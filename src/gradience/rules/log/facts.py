"""What the rules on a log look at: the rows, evaluations and events of one run, superseded rows removed.

What several rules need (curves, the trend of the loss, held-out losses) is worked out once, when the first asks for it.
The needs that several rules share stand at the end.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, wraps
from itertools import islice
from operator import itemgetter, le
from typing import Final, NamedTuple, TypeAlias, TypeVar

from gradience.rules.log.statistics import FEW_POINTS, Curve, Trend, curve_of, median, moves, noise, trend_of
from gradience.rules.objective import Objective, objective_by_names, objective_of
from gradience.rules.rule import Rule, Threshold, Unknown, cite
from gradience.schema.events import TELLING, ConfigSnapshot, Eval, Metrics
from gradience.schema.findings import Evidence, RuleGroup
from gradience.schema.reports import BadLine, EvalPoint, GapReading
from gradience.schema.scalars import Json, as_float
from gradience.telemetry.series import PROBED, SPECTRAL, LogRecord

LOSS_GAP = Threshold(
    "loss_gap", 1.5, "held-out over train perplexity, 0.41 nats", "a project convention, no source found"
)
EVAL_NOISE = Threshold("eval_noise", 3.0, "of the noise between evaluations", "trial")
UNFINISHED_FALL = Threshold("unfinished_fall", 0.01, "fraction of the loss, over the last quarter", "a judgement")
MOVED = Threshold("moved", 1e-3, "two-sided p that the gradient norm has no trend", "tuning seeds of real trainings")
JUDGEMENT: Final = "a judgement"
REAL_RUNS: Final = "tuning seeds of the real trainings of benchmarks/field.py"
DEFAULT_GAP: Final = LOSS_GAP.value
_SHOWS_A_CURVE: Final = 3  # evaluations of another split that say more than one of the split shown
FEW_EVALS: Final = 5  # evaluations that show their own noise: three second differences
_PARTS: Final = 5  # of a column: its first and its last are compared

SIGNALS: Final = (  # columns of rewards and the like, in the order of a report
    "rewards/margins",
    "rewards/accuracies",
    "rewards/chosen",
    "rewards/rejected",
    "log_odds_ratio",
    "nll_loss",
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "kl",
    "objective/kl",
    "completions/clipped_ratio",
)
PROBES: Final = tuple(f"{SPECTRAL}/{name}" for name in PROBED)  # the adapter in training, by spectral_every
KEPT: Final = frozenset({*SIGNALS, *TELLING})  # further values of training rows that a summary is to keep


class Signal(NamedTuple):
    """One column: the steps it was logged at, rising, and its finite values."""

    steps: Sequence[int]
    values: Sequence[float]


Signals: TypeAlias = Mapping[str, Signal]


def ends(signal: Signal) -> tuple[float, float, int]:
    """The medians of the first and of the last fifth of a column, and the rows of a fifth."""
    width = max(1, len(signal.values) // _PARTS)
    return median(signal.values[:width]), median(signal.values[-width:]), width


def last_part(values: Sequence[float], parts: int, least: int = 1) -> Sequence[float]:
    """The last of so many equal parts of a series, of `least` values at least."""
    return values[-max(least, len(values) // parts) :]


@dataclass(frozen=True, slots=True)
class Series:
    """Parallel columns of the training rows; a missing value is NaN. `lost_norms`: steps whose norm was a NaN.

    `in_order` spares looking whether the steps rise, where the reader knows they do.
    """

    steps: Sequence[int]
    losses: Sequence[float]
    grad_norms: Sequence[float]
    rates: Sequence[float] = ()
    lost_norms: frozenset[int] = frozenset()
    in_order: bool = False


class HeldOutCurve(NamedTuple):
    """The evaluations of one split by step, each with a finite loss over 0; of two at one step, the later."""

    split: str
    evals: Sequence[Eval]
    steps: Sequence[int]
    losses: Sequence[float]

    @property
    def noise(self) -> float:
        """Standard deviation of the noise between evaluations; 0 of fewer than five, which do not show it."""
        return noise(self.losses, few=0) if len(self.losses) >= FEW_EVALS else 0.0

    def since(self, step: float) -> int:
        """The place of the last evaluation up to a step, but before the last of all."""
        return max(0, min(bisect_right(self.steps, step) - 1, len(self.steps) - 2))

    def still_falls(self, step: float) -> bool:
        """Whether the last loss is the best, and surely lower than at a step."""
        at, last = self.losses[self.since(step)], self.losses[-1]
        return last <= min(self.losses) and 1.0 - last / at > self.least_fall(step)

    def least_fall(self, step: float) -> float:
        """The least fall since a step, as a fraction, that would be called one."""
        return max(UNFINISHED_FALL.value, EVAL_NOISE.value * self.noise / self.losses[self.since(step)])


@dataclass(frozen=True)
class RunFacts:
    """One run as its log has it."""

    series: Series
    evals: Sequence[EvalPoint] = ()  # the newest of each split
    gap: GapReading | None = None
    held_out: EvalPoint | None = None
    num_labels: int | None = None
    epoch: float | None = None
    utilization_mean: float | None = None
    audit: Mapping[str, Json] | None = None  # payload of the newest lora_audit
    data: Mapping[str, Json] | None = None  # the same of `data`: what the model was fed
    status: str = "unknown"
    status_reason: str | None = None  # why it ended so, such as the exception's name
    last_step: int | None = None
    issues: Sequence[BadLine] = ()
    issues_total: int = 0
    gap_threshold: float = DEFAULT_GAP
    config: ConfigSnapshot = field(default_factory=ConfigSnapshot)
    logged: frozenset[str] = frozenset()  # names of further values in the training rows, as far as they are kept
    signals: Signals = field(default_factory=dict)  # of those, the columns of rewards and the like
    history: Sequence[Eval] = ()  # all evaluations, in the order written
    record: LogRecord = field(default_factory=LogRecord)  # how the log was written
    guarded: Sequence[Metrics] = ()  # what a guard did to the run

    @cached_property
    def found(self) -> dict[str, object]:
        """What `once` keeps."""
        return {}

    @cached_property
    def objective(self) -> Objective:
        """What the run optimises: as its config says it, else as the names of the logged values do."""
        stated = objective_of(self.config)
        return stated if stated.stated else objective_by_names(self.logged) or stated

    @property
    def max_steps(self) -> int | None:
        """The planned steps."""
        return self.config.training.max_steps

    @cached_property
    def loss(self) -> Curve:
        """The training loss where finite."""
        return curve_of(self.series.losses)

    @cached_property
    def norm(self) -> Curve:
        """The gradient norm where recorded and finite."""
        return curve_of(self.series.grad_norms)

    @cached_property
    def rate(self) -> Curve:
        """The learning rate where recorded and finite."""
        return curve_of(self.series.rates)

    @cached_property
    def peak_rate(self) -> float:
        """The highest learning rate; NaN where none was recorded."""
        return max(self.rate.values, default=math.nan)

    @cached_property
    def outline(self) -> Curve:
        """The training loss in so few points that all pairs of them may be looked at."""
        return self.loss.outline(FEW_POINTS)

    @cached_property
    def trend(self) -> Trend | None:
        """How the training loss falls; None of fewer than two rows, or where it is not positive."""
        return trend_of(self.outline.points)

    @cached_property
    def moved(self) -> bool:
        """Whether the gradient norm has a trend: at weights that stand still it has none."""
        points = [norm for norm in self.norm.outline(FEW_POINTS).points if norm > 0.0]
        return moves(points) <= MOVED.value

    @cached_property
    def curves(self) -> Sequence[HeldOutCurve]:
        """The losses of every held-out split, the one that the report shows first."""
        named: dict[str, dict[int, Eval]] = {}
        for event in self.history:
            if event.split != "train":
                of_split = named.setdefault(event.split, {})
                if event.step is not None and _loss(event) > 0.0:
                    of_split[event.step] = event
        shown = self.held_out.split if self.held_out else None
        return [_curve(split, named[split]) for split in sorted(named, key=lambda name: name != shown)]

    @property
    def held_out_curve(self) -> HeldOutCurve | None:
        """The losses of the held-out split that the report shows, or of the one evaluated most where it has too few.

        A last `predict` on a test set must not hide the evaluations that were made all along. None without a loss.
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
        """Whether the learning rate still rose at the end of the log."""
        rates = self.rate.points
        return bool(rates) and rates[-1] == max(rates) and rates[-1] > rates[len(rates) // 2]

    @property
    def in_mid_run(self) -> bool:
        """Whether the log ends before the planned steps: more rows may follow."""
        return bool(self.max_steps and self.last_step and self.last_step < self.max_steps)

    def step(self, row: int) -> int:
        """The step of a row of the series."""
        return self.series.steps[row]

    def losses_until(self, step: int, count: int) -> Sequence[float]:
        """The last finite losses logged up to a step, at most so many; of a step before all rows, the first."""
        end = bisect_left(self.loss.rows, bisect_right(self.series.steps, step))
        return self.loss.values[max(0, end - count) : max(1, end)]


_Found = TypeVar("_Found")


def once(observe: Callable[[RunFacts], _Found]) -> Callable[[RunFacts], _Found]:
    """An observation that several rules ask for, worked out once of each run, as the properties of `RunFacts` are."""
    name = f"{observe.__module__}.{observe.__qualname__}"

    @wraps(observe)
    def kept(facts: RunFacts) -> _Found:
        if name not in facts.found:
            facts.found[name] = observe(facts)
        return facts.found[name]  # type: ignore[return-value]  # what was put there

    return kept


@dataclass(frozen=True, kw_only=True)
class LogRule(Rule[RunFacts]):
    """A rule that `gradience monitor` applies to the log of a run."""

    groups: tuple[RuleGroup, ...] = ("log",)


def _curve(split: str, events: Mapping[int, Eval]) -> HeldOutCurve:
    steps = sorted(events)
    evals = [events[step] for step in steps]
    return HeldOutCurve(split, evals, steps, [_loss(e) for e in evals])


def _loss(event: Eval) -> float:
    """The loss, or 0 where it is missing or not finite: such an evaluation is left out."""
    value = as_float(event.metrics.loss) if event.metrics.loss is not None else 0.0
    return value if math.isfinite(value) else 0.0


def sorted_by_step(series: Series) -> Series:
    """The series in the order of its steps; rows of the same step stay in the order written."""
    steps = series.steps
    if series.in_order or all(map(le, steps, islice(steps, 1, None))):
        return series
    order = sorted(range(len(steps)), key=steps.__getitem__)
    take = itemgetter(*order)
    losses, norms, rates = (list(take(c)) if c else [] for c in (series.losses, series.grad_norms, series.rates))
    return Series(list(take(steps)), losses, norms, rates, lost_norms=series.lost_norms)


def seen(*says: str) -> tuple[Evidence, ...]:
    """What was seen in the log, as evidence of an observation."""
    return tuple(cite("the log", each) for each in says)


def positive_loss(facts: RunFacts) -> str | None:
    """Need: a training loss of which ratios mean something."""
    if not facts.loss.values:
        return "no finite training loss was recorded"
    if median(facts.loss.points) <= 0.0:
        return "the loss is not positive: ratios of it mean nothing"
    return None


def column(facts: RunFacts, name: str, least: float) -> Signal:
    """A column of the log.

    Raises:
        Unknown: it was not logged, or in fewer rows than asked for.
    """
    signal = facts.signals.get(name)
    if signal is None:
        raise Unknown(f"no {name} was logged")
    if len(signal.values) < least:
        raise Unknown(f"{len(signal.values)} rows with {name}; it needs {least:g}")
    return signal
