"""What the detectors look at: the rows, evaluations and events of one run, superseded rows removed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from operator import itemgetter, le
from typing import Final, NamedTuple, TypeAlias

from gradience.rules.log.curve import Curve, curve_of, median
from gradience.rules.log.thresholds import LOSS_GAP
from gradience.rules.objective import Objective, objective_by_names, objective_of
from gradience.schema.config import ConfigSnapshot
from gradience.schema.events import Eval
from gradience.schema.reports import BadLine, EvalPoint, GapReading
from gradience.schema.scalars import Json

_PARTS: Final = 5  # of a column: its first and its last are compared

SIGNALS: Final[Mapping[str, str]] = {
    "rewards/margins": "margins",
    "rewards/accuracies": "accuracies",
    "rewards/chosen": "chosen",
    "rewards/rejected": "rejected",
    "log_odds_ratio": "log_odds_ratio",
    "nll_loss": "nll_loss",
    "reward": "reward",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "zero_std",
    "kl": "kl",
    "objective/kl": "objective_kl",
    "completions/clipped_ratio": "clipped",
}  # name on the wire: name as a field


class Signal(NamedTuple):
    """One column: the steps it was logged at, rising, and its finite values."""

    steps: Sequence[int]
    values: Sequence[float]


Signals: TypeAlias = Mapping[str, Signal]


def ends(signal: Signal) -> tuple[float, float, int]:
    """Return the medians of the first and of the last fifth of a column, and the rows of a fifth."""
    width = max(1, len(signal.values) // _PARTS)
    return median(signal.values[:width]), median(signal.values[-width:]), width


DEFAULT_GAP: Final = LOSS_GAP.value


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


@dataclass(frozen=True)
class RunFacts:
    """One run as its log tells it."""

    series: Series
    evals: Sequence[EvalPoint] = ()  # the newest of each split
    gap: GapReading | None = None
    held_out: EvalPoint | None = None
    num_labels: int | None = None
    epoch: float | None = None
    utilization_mean: float | None = None
    audit: Mapping[str, Json] | None = None  # payload of the newest lora_audit
    status: str = "unknown"
    last_step: int | None = None
    max_steps: int | None = None
    issues: Sequence[BadLine] = ()
    issues_total: int = 0
    gap_threshold: float = DEFAULT_GAP
    config: ConfigSnapshot = field(default_factory=ConfigSnapshot)
    logged: frozenset[str] = frozenset()  # names of further values in the training rows
    signals: Signals = field(default_factory=dict)  # of those, the columns of rewards and the like
    history: Sequence[Eval] = ()  # all evaluations, in the order written
    sessions: int = 0
    resumed_from: Sequence[int] = ()
    replaced: Sequence[tuple[int, float]] = ()  # step and loss of rows that a resume superseded
    duplicates: int = 0
    out_of_order: int = 0
    interleaved: int = 0
    missing: int = 0

    @cached_property
    def objective(self) -> Objective:
        """What the run optimises: as its config says it, else as the names of the logged values do."""
        stated = objective_of(self.config)
        return stated if stated.stated else objective_by_names(self.logged) or stated

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

    def step(self, row: int) -> int:
        """Return the step of a row of the series."""
        return self.series.steps[row]


def sorted_by_step(series: Series) -> Series:
    """Return the series in the order of its steps; rows of the same step stay in the order written."""
    steps = series.steps
    if series.in_order or all(map(le, steps, islice(steps, 1, None))):
        return series
    order = sorted(range(len(steps)), key=steps.__getitem__)
    take = itemgetter(*order)
    losses, norms, rates = (list(take(c)) if c else [] for c in (series.losses, series.grad_norms, series.rates))
    return Series(list(take(steps)), losses, norms, rates, lost_norms=series.lost_norms)
